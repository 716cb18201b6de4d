"""The FlashTalk-compatible WebSocket: a real server, a real worker, a real client."""

from __future__ import annotations

import base64
import io
import json
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from farm.server.polls import RECORD_SECONDS
from tests.conftest import ROOT
from tests.farm_process import FarmProcess, served, workers
from tests.server.conftest import PORTRAIT, generate_body, send_files, wait_ended

SIZE = 256
PATH = f"/v1/avatar/flashtalk?size={SIZE}x{SIZE}"
PATIENCE = 120.0
LIMITS = {"FARM_LIVE__SESSIONS": "1", "FARM_LIVE__MESSAGE_MB": "2"}


class Talk:
    """A client that knows the protocol and nothing of the farm."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def ask(self, message: str | bytes | dict[str, Any]) -> Any:
        """The answer to one message: an object, or a list of pictures."""
        self.socket.send(json.dumps(message) if isinstance(message, dict) else message)
        answer = self.socket.recv(timeout=PATIENCE)
        return json.loads(answer) if isinstance(answer, str) else read_pictures(answer)

    def init(self, portrait: bytes | None = None, **more: Any) -> dict[str, Any]:
        image = base64.b64encode(PORTRAIT.read_bytes() if portrait is None else portrait).decode()
        answer: dict[str, Any] = self.ask({"type": "init", "ref_image": image, "seed": 7, **more})
        return answer

    def begin(self) -> int:
        """Begin a session; the bytes of one message of sound."""
        answer = self.init()
        assert answer["type"] == "init_ok", answer
        return 2 * int(answer["chunk_samples"])

    def speak(self, pcm: bytes) -> Any:
        return self.ask(b"AUDI" + pcm)


def read_pictures(message: bytes) -> list[bytes]:
    """As a strict client reads a VIDX message."""
    assert message[:4] == b"VIDX"
    (count,) = struct.unpack_from("<I", message, 4)
    pictures, at = [], 8
    for _ in range(count):
        (size,) = struct.unpack_from("<I", message, at)
        pictures.append(message[at + 4 : at + 4 + size])
        assert size and len(pictures[-1]) == size and pictures[-1][:2] == b"\xff\xd8"
        at += 4 + size
    assert at == len(message)
    return pictures


@contextmanager
def talking(farm: FarmProcess, path: str = PATH, key: str | None = None) -> Iterator[Talk]:
    """A connection whose key is the address's password, as clients without headers give it."""
    address = farm.url.replace("http://", f"ws://client:{farm.key if key is None else key}@")
    with connect(f"{address}{path}", max_size=50 << 20, open_timeout=PATIENCE) as socket:
        yield Talk(socket)


def refused(farm: FarmProcess, path: str = PATH, **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as told:
        connect(f"{farm.url.replace('http', 'ws')}{path}", **options)
    response = told.value.response
    return response.status_code, json.loads(response.body or b"{}").get("detail", "")


def preview_worker(farm: FarmProcess) -> dict[str, Any]:
    with farm.client() as client:
        found: list[dict[str, Any]] = client.get("/v1/farm").json()["workers"]
    return next((worker for worker in found if worker["queue"] == "preview"), {"state": "none", "reason": None})


def wait_until(true: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}")


def is_free(farm: FarmProcess) -> bool:
    worker = preview_worker(farm)
    return worker["state"] == "idle" and worker["reason"] is None


@pytest.fixture(scope="module")
def live_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarmProcess]:
    """A farm whose segments are short and which keeps one live session at once."""
    home = tmp_path_factory.mktemp("live")
    (home / "models").mkdir()
    model = (ROOT / "configs/models/preview.toml").read_text(encoding="utf-8")
    short = model.replace("segment_seconds = 30.0", "segment_seconds = 2.0")
    assert short != model
    (home / "models/preview.toml").write_text(short, encoding="utf-8")
    with served(home, env=LIMITS) as farm, workers(home, LIMITS):
        wait_until(lambda: is_free(farm), "the preview worker")
        yield farm


@pytest.fixture
def farm(live_farm: FarmProcess) -> FarmProcess:
    wait_until(lambda: is_free(live_farm), "the preview worker to be free")
    return live_farm


@pytest.mark.parametrize("path", [PATH, f"/?size={SIZE}", "/v1/audio2video/flashtalk"])
def test_speech_goes_in_and_pictures_of_a_talking_person_come_out(farm: FarmProcess, path: str, speech: Path) -> None:
    side = SIZE if "size" in path else 512
    with talking(farm, path) as talk:
        told = talk.init()
        wanted = {"type": "init_ok", "slice_len": 10, "fps": 25, "height": side, "width": side, "chunk_samples": 6400}
        assert told.items() >= wanted.items()
        assert told["frame_num"] - told["motion_frames_num"] == told["slice_len"]
        pcm = Path(speech).read_bytes()[44:]
        messages = [pcm[at : at + 12800].ljust(12800, b"\0") for at in range(0, 5 * 12800, 12800)]
        answers = [talk.speak(message) for message in messages]
        assert [len(pictures) for pictures in answers] == [0, 10, 10, 10, 10]  # each slice waits for the next one
        shown = [np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"), float) for jpeg in answers[1] + answers[4]]
        assert shown[0].shape == (side, side)
        assert np.abs(shown[0] - shown[-1]).max() > 20  # the mouth moves
        assert talk.ask({"type": "close"}) == {"type": "close_ok"}
        assert talk.speak(bytes(12800))["code"] == "no_session"
        assert talk.init()["type"] == "init_ok"  # the socket stays, a new session may follow
    wait_until(lambda: is_free(farm), "the worker to be given back")


def test_every_door_needs_a_key(farm: FarmProcess) -> None:
    for path in ("/", "/v1/avatar/flashtalk", "/v1/audio2video/flashtalk"):
        assert refused(farm, path) == (401, "Unauthorized")
    assert refused(farm, additional_headers={"x-api-key": "farm_0123456789ab_" + "A" * 43}) == (401, "Unauthorized")
    reader = farm.make_key("bob", "read")
    assert refused(farm, additional_headers={"x-api-key": reader})[0] == 403
    for headers in ({"x-api-key": farm.key}, {"Authorization": f"Bearer {farm.key}"}):
        with connect(f"{farm.url.replace('http', 'ws')}/", additional_headers=headers) as socket:
            assert Talk(socket).ask({"type": "close"}) == {"type": "close_ok"}


def test_another_sites_page_cannot_talk_through_a_browsers_cookie(farm: FarmProcess) -> None:
    with farm.client(key="") as browser:
        browser.post("/v1/session", json={"key": farm.key})
        cookie = {"Cookie": f"farm_key={browser.cookies['farm_key']}"}
    assert refused(farm, additional_headers=cookie, origin="https://evil.example")[0] == 403
    with connect(f"{farm.url.replace('http', 'ws')}/", additional_headers=cookie, origin=farm.url) as socket:
        assert Talk(socket).ask({"type": "close"}) == {"type": "close_ok"}


@pytest.mark.parametrize(
    ("message", "code", "sentence"),
    [
        ("{", "bad_json", "Invalid JSON"),
        ("[]", "bad_json", "Invalid JSON"),
        ("[" * 100_000, "bad_json", "Invalid JSON"),
        ({"type": "ping"}, "unsupported_message", "Unknown message type: ping"),
        ({"type": "init"}, "missing_image", "A base64 reference image is required."),
        ({"type": "init", "ref_image": ["x"]}, "missing_image", "A base64 reference image is required."),
        ({"type": "init", "ref_image": "n/a?"}, "bad_image_base64", "Reference image must be valid base64."),
        ({"type": "init", "ref_image": "aGk=", "seed": "x"}, "bad_seed", "seed must be a whole number"),
        ({"type": "init", "ref_image": "aGk="}, "bad_image", "the portrait is not a picture that can be read"),
        (b"AUDI" + bytes(12800), "no_session", "No active session. Send 'init' first."),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_message_that_cannot_be_served_is_answered_and_the_socket_stays(
    farm: FarmProcess, message: Any, code: str, sentence: str
) -> None:
    with talking(farm) as talk:
        answer = talk.ask(message)
        assert (answer["type"], answer["code"]) == ("error", code)
        assert answer["message"].startswith(sentence)
        assert "/" not in answer["message"]  # no path of ours
        assert talk.ask({"type": "close"}) == {"type": "close_ok"}


def test_wrong_sound_is_refused_and_the_session_goes_on(farm: FarmProcess) -> None:
    with talking(farm) as talk:
        size = talk.begin()
        answer = talk.ask(b"RIFF" + bytes(size))
        assert (answer["code"], answer["message"]) == (
            "bad_audio_magic",
            "Binary audio payload must start with AUDI magic.",
        )
        answer = talk.speak(bytes(100))
        assert answer["message"] == f"Expected {size} bytes of pcm_s16le audio, got 100."
        assert talk.speak(bytes(size)) == []
        assert len(talk.speak(bytes(size))) == 10


def test_a_second_init_replaces_the_session_and_two_connections_share_none(farm: FarmProcess) -> None:
    with talking(farm) as one, talking(farm) as other:
        size = one.begin()
        assert other.speak(bytes(size))["code"] == "no_session"
        assert other.init()["code"] == "busy"  # this server keeps one
        assert one.speak(bytes(size)) == []
        assert one.begin() == size
        assert one.speak(bytes(size)) == []  # begun anew
        one.ask({"type": "close"})
        assert other.begin() == size


def test_a_client_that_vanishes_gives_the_worker_back(farm: FarmProcess) -> None:
    with talking(farm) as talk:
        size = talk.begin()
        talk.socket.send(b"AUDI" + bytes(size))
        talk.socket.socket.close()
    wait_until(lambda: is_free(farm), "the worker to be given back")
    with talking(farm) as talk:
        assert talk.begin() == size


def test_a_batch_yields_to_a_session_and_goes_on_after_it(farm: FarmProcess, tmp_path: Path, ffmpeg: Path) -> None:
    longer = tmp_path / "longer.wav"
    source = ROOT / "examples/speech/reading_en.flac"
    subprocess.run([ffmpeg, "-v", "error", "-i", source, "-t", "16", longer], check=True)
    with farm.client() as client:
        body = generate_body(send_files(client, longer), size="512x512") | {"async_run": True}
        job = client.post("/v1/generate", json=body).json()["id"]

        def done() -> int:
            return int(client.get(f"/v1/jobs/{job}").json()["farm"]["segments_done"])

        wait_until(done, "a segment to be published")
        with talking(farm) as talk:
            size = talk.begin()
            time.sleep(2 * RECORD_SECONDS)  # an answer may be that old, from before the segment's publication
            before = done()
            assert client.get(f"/v1/jobs/{job}").json()["state"] == "running"  # it had not ended
            answers = [talk.speak(bytes(size)) for _ in range(5)]
            assert all(isinstance(answer, list) for answer in answers), answers
            assert done() == before
            wait_until(lambda: preview_worker(farm)["reason"] == "serves a live session", "the worker to say so")
        record = wait_ended(client, job)
        assert record["state"] == "succeeded"
        assert record["result"]["outputs"][0]["num_frames"] == 400  # type: ignore[index]
        tried = client.get(f"/v1/jobs/{job}/segments").json()
        assert all(segment["attempt"] == 1 for segment in tried if segment["kind"] == "render")


def test_a_drained_worker_ends_its_session_and_takes_none(farm: FarmProcess) -> None:
    name = preview_worker(farm)["name"]
    with talking(farm) as talk, farm.client() as client:
        size = talk.begin()
        assert client.post(f"/v1/workers/{name}/drain").status_code == 200
        try:
            wait_until(lambda: preview_worker(farm)["state"] == "draining", "the worker to drain")
            assert "the worker is drained" in talk.speak(bytes(size))["message"]
            answer = talk.init()
            assert answer["code"] == "no_host" and "no worker can serve" in answer["message"]
        finally:
            client.post(f"/v1/workers/{name}/resume")


def test_a_message_larger_than_allowed_ends_the_connection_and_nothing_else(farm: FarmProcess) -> None:
    with talking(farm) as talk, pytest.raises(ConnectionClosed):
        talk.init(bytes(3 << 20))
    assert httpx.get(f"{farm.url}/healthz").status_code == 200


def test_a_model_or_size_that_cannot_be_served_is_told_at_the_door(farm: FarmProcess) -> None:
    headers = {"x-api-key": farm.key}
    for query, sentence in (
        ("model=nothing", "there is no model 'nothing'"),
        ("size=7x7", "model preview cannot render 7x7"),
        ("fps=13", "model preview cannot render 13 frames per second"),
        ("preset=loud", "model preview has no preset 'loud'"),
    ):
        status, detail = refused(farm, f"/v1/avatar/flashtalk?{query}", additional_headers=headers)
        assert status == 400 and detail.startswith(sentence), detail
