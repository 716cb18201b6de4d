"""A live session has the warm host between two segments of a batch, and the batch's film does not show it."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from farm.errors import DeviceFault, EngineError, InputError
from farm.ledger import control, crew, live, read
from farm.ledger.live import LiveLease
from farm.states import JobState, WorkerState
from workers.host.audio import KEPT_SECONDS, GrowingSound
from workers.host.parent import Host
from workers.host.wire import Wire
from workers.runner import Runner

from .conftest import FRAME_BYTES, SIZE, Render, SmallFarm, StartHost, running, wait_until

SLICE = 5  # frames, as fake.toml says
SAMPLES = SLICE * 640
FILM = {"width": SIZE, "height": SIZE, "fps": [25, 1], "prompt": "", "seed": 7, "settings": {}}


def pcm_of(driving: Path, messages: int) -> list[bytes]:
    sound = np.fromfile(driving, "<f4")[: messages * SAMPLES]
    return [(part * 32768).clip(-32768, 32767).astype("<i2").tobytes() for part in sound.reshape(messages, SAMPLES)]


def host_film(portrait: Path, **film: Any) -> dict[str, Any]:
    more = {"portrait": str(portrait), "total_frames": 250, "facts": {}, "live_frames": SLICE}
    return {**FILM, **more, **film}


def test_a_live_sessions_frames_are_those_of_the_film_of_the_same_sound(
    host: Host, render: Render, portrait: Path, driving: Path, tmp_path: Path
) -> None:
    spoken = pcm_of(driving, 4)
    heard = tmp_path / "heard.f32"
    (np.frombuffer(b"".join(spoken), "<i2").astype("<f4") / 32768).tofile(heard)
    film = render(host, 20, audio=str(heard))
    with host.live(host_film(portrait)) as speak:
        made = [speak(part) for part in spoken]
    assert [answer.count for answer in made] == [SLICE] * 4
    assert b"".join(answer.pixels for answer in made) == film.frames
    assert len(film.frames) == 20 * FRAME_BYTES


def test_a_session_that_fails_is_over_and_the_host_renders_on(host: Host, render: Render, portrait: Path) -> None:
    pid = host.pid
    for kind, error in (("engine@5", EngineError), ("input@5", InputError)):
        with pytest.raises(error), host.live(host_film(portrait, prompt=kind)) as speak:
            speak(bytes(2 * SAMPLES))
            speak(bytes(2 * SAMPLES))
    with pytest.raises(ValueError, match="of the caller"), host.live(host_film(portrait)):
        raise ValueError("of the caller")  # ends the session as well
    assert host.pid == pid
    assert render(host, 10).end.frames == 10


def test_a_host_that_hangs_in_a_session_is_killed(start_host: StartHost, portrait: Path) -> None:
    host = start_host(spec={"stuck_floor_seconds": 0.3, "stuck_factor": 2.0})
    said = "showed no progress for 0 s while in a live session; it was killed"
    with pytest.raises(DeviceFault, match=said), host.live(host_film(portrait, prompt="hang@5")) as speak:
        speak(bytes(2 * SAMPLES))  # the first one may take as long as loading
        speak(bytes(2 * SAMPLES))
    assert not host.is_alive


def test_growing_sound_keeps_half_a_minute_and_refuses_what_is_older() -> None:
    sound = GrowingSound()
    for _ in range(KEPT_SECONDS + 5):
        sound.append(np.full(16_000, 16_384, "<i2").tobytes())
    assert len(sound) == (KEPT_SECONDS + 5) * 16_000
    assert sound.read(len(sound) - 2, len(sound) + 2).tolist() == [0.5, 0.5, 0.0, 0.0]
    assert sound.read(-3, 0).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(EngineError, match="more than 30 s old"):
        sound.read(0, 10)


class Client:
    """What a server is to a worker."""

    def __init__(self, lease: LiveLease) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(lease.address)
        self.wire = Wire(self.socket)

    def open(self, token: str, portrait: Path, **film: Any) -> dict[str, Any]:
        self.wire.send({"say": "open", "token": token, "model": "fake", "film": FILM | film}, portrait.read_bytes())
        return self.wire.receive()[0]

    def speak(self) -> tuple[dict[str, Any], bytes]:
        self.wire.send({"say": "speech"}, bytes(2 * SAMPLES))
        answer, pictures, _ = self.wire.receive()
        return answer, pictures

    def close(self) -> None:
        self.wire.send({"say": "close"})
        assert self.wire.receive()[0] == {"say": "closed"}
        self.wire.close()


def lease(farm: SmallFarm) -> LiveLease:
    found = wait_until(
        lambda: live.lease_host(farm.ledger, "fake", owner="test", ttl_seconds=20.0), "a worker that gives its host"
    )
    assert isinstance(found, LiveLease)
    return found


def knock(held: LiveLease, token: str, portrait: Path) -> dict[str, Any]:
    """What a server is answered that hangs up at once."""
    client = Client(held)
    try:
        return client.open(token, portrait)
    finally:
        client.wire.close()


@contextmanager
def opened(farm: SmallFarm, **film: Any) -> Iterator[Client]:
    held = lease(farm)
    client = Client(held)
    assert client.open(held.token, farm.portrait, **film) == {"say": "ready"}
    yield client
    client.wire.close()


def tells(farm: SmallFarm, state: WorkerState, reason: str | None) -> bool:
    (worker,) = read.workers(farm.ledger)
    return (worker.state, worker.reason) == (state, reason)


def is_idle(farm: SmallFarm) -> bool:
    return tells(farm, WorkerState.IDLE, None)


def history(farm: SmallFarm) -> list[str]:
    return [line.event for line in read.events(farm.ledger, limit=500) if line.event.startswith("live")]


def test_a_batch_yields_at_its_next_segment_and_its_film_is_the_same(farm: SmallFarm) -> None:
    undisturbed = farm.planned(seconds=3.0, name="undisturbed", seed=11)
    with running(farm.runner()):
        farm.wait_for(undisturbed, JobState.ASSEMBLING)
    disturbed = farm.planned(seconds=3.0, name="disturbed", seed=11)
    with running(farm.runner(pace=0.15)):
        wait_until(lambda: 0 < farm.segments_done(disturbed) < 5, "a segment to be published")
        with opened(farm) as client:
            done = farm.segments_done(disturbed)
            assert done < farm.job(disturbed).segments_total
            for _ in range(3):
                answer, pictures = client.speak()
                assert len(answer["sizes"]) == SLICE
                picture = Image.open(io.BytesIO(pictures[: answer["sizes"][0]]))
                assert (picture.format, picture.size) == ("JPEG", (SIZE, SIZE))
            assert farm.segments_done(disturbed) == done  # it waits
            wait_until(lambda: tells(farm, WorkerState.RENDERING, "serves a live session"), "the worker to say so")
            client.close()
        farm.wait_for(disturbed, JobState.ASSEMBLING)
    assert farm.segment_hashes(disturbed) == farm.segment_hashes(undisturbed)
    assert [outcome for _, outcome in farm.outcomes(disturbed)] == ["succeed"] * farm.job(disturbed).segments_total
    assert history(farm) == ["live_lease", "live_release"]
    assert farm.audit() == []


def test_a_server_that_vanishes_gives_the_worker_back(farm: SmallFarm) -> None:
    with running(farm.runner()):
        with opened(farm) as client:
            client.speak()
        wait_until(lambda: is_idle(farm), "the worker to be free again")
        with opened(farm) as client:  # and the next one is served
            assert len(client.speak()[0]["sizes"]) == SLICE
            client.close()
    assert not list(farm.home.glob("live/*/*")), "a portrait stayed"


def test_only_who_holds_the_lease_gets_the_host(farm: SmallFarm) -> None:
    with running(farm.runner()):
        held = lease(farm)
        answer = knock(held, "0" * 32, farm.portrait)
        assert answer["say"] == "error" and "no lease" in answer["message"]
        assert live.lease_host(farm.ledger, "fake", owner="test", ttl_seconds=20.0) is None  # one session at a time
        client = Client(held)
        assert client.open(held.token, farm.portrait) == {"say": "ready"}
        client.close()


def test_a_portrait_that_is_none_ends_the_session_and_not_the_worker(farm: SmallFarm, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture at all")
    with running(farm.runner()):
        held = lease(farm)
        answer = knock(held, held.token, broken)
        assert answer["kind"] == "input"
        assert answer["message"] == "the portrait is not a picture that can be read; use a JPEG, PNG or WebP file"
        wait_until(lambda: is_idle(farm), "the worker to be free again")
        assert read.workers(farm.ledger)[0].host_restarts == 0


@pytest.mark.parametrize("how", ["drain", "stop", "lease", "idle"])
def test_a_session_ends_when_the_worker_is_wanted_elsewhere(farm: SmallFarm, how: str) -> None:
    words = {"drain": "drained", "stop": "stopped", "lease": "lease is lost", "idle": "nothing was heard for 1 s"}
    if how == "idle":
        farm.change("live", idle_seconds=1.0)
    runner = farm.runner()
    with running(runner), opened(farm) as client:
        if how != "idle":  # a test that is held up for a second would be told before it can speak
            client.speak()
        end_it(farm, runner, how)
        answer = client.wire.receive()[0]
        assert (answer["say"], answer["kind"]) == ("error", "ended")
        assert words[how] in answer["message"]
    assert history(farm)[0] == "live_lease"


def end_it(farm: SmallFarm, runner: Runner, how: str) -> None:
    if how == "drain":
        control.drain_worker(farm.ledger, runner.name)
    elif how == "stop":
        threading.Thread(target=runner.stop).start()
    elif how == "lease":
        watch = wait_until(lambda: runner.heart._live, "the door to tell the heart")
        live.release(farm.ledger, runner.name, watch.token, "taken away")


def test_a_host_that_dies_in_a_session_is_replaced_and_the_client_is_told(farm: SmallFarm) -> None:
    with running(farm.runner()):
        with opened(farm, prompt="exit@5") as client:
            client.speak()
            answer, _ = client.speak()
            assert answer["kind"] == "engine" and "exited with 7" in answer["message"]
        job = farm.planned(seconds=1.0)
        farm.wait_for(job, JobState.ASSEMBLING)
        assert crew.sick_reason(farm.ledger, read.workers(farm.ledger)[0].name) is None


def test_a_host_that_hangs_in_a_session_does_not_keep_its_worker_from_stopping(farm: SmallFarm) -> None:
    farm.change("host", stop_seconds=0.3)
    runner = farm.runner()
    with running(runner), opened(farm, prompt="hang@0") as client:
        client.wire.send({"say": "speech"}, bytes(2 * SAMPLES))
        runner.stop()
        answer = client.wire.receive()[0]
        assert (answer["kind"], answer["message"]) == ("ended", "the worker was stopped")
