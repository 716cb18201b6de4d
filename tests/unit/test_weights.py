"""Weights are fetched whole or not at all, from a real HTTP server that speaks the hubs' routes."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from click.testing import Result

from farm.errors import ConfigError, InputError, NotEnoughRoom, NotFetched
from farm.hub import open_hub, safe_path
from farm.models import load_model
from farm.weights import pull, verify
from tests.command_line import run_farm

COMMIT = "c0ffee" + "0" * 34
LEAST = (Path(__file__).parent / "small_model.toml").read_text(encoding="utf-8")
MODEL = (
    LEAST
    + """
[source]
checkout = "https://example.org/small"
[[source.repositories]]
setting = "ckpt_dir"
hub = "owner/small"
folder = "small"
licence = "Apache-2.0"
gigabytes = 0.1
"""
)


def safetensors(size: int) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(n % 251 for n in range(size))


FILES = {
    "config.json": b'{"dim": 3}\n',
    "模型 weights.safetensors": safetensors(3_000_000),
    "vae/old.pth": b"\x80\x02 an old pickle",
}


class Shelf:
    """What the server has, what it does wrong, and what was asked of it."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.lies: dict[str, str] = {}  # file: the hash that is listed for it
        self.cut_after: int | None = None  # bytes of a large file after which the server hangs up
        self.ranges: list[str] = []
        self.sent = 0

    def sha256(self, name: str) -> str:
        return self.lies.get(name) or hashlib.sha256(self.files[name]).hexdigest()

    def siblings(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        for name, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            item: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": self.lies.get(name, blob)}
            if name.endswith((".safetensors", ".pth")):
                item["lfs"] = {"sha256": self.sha256(name), "size": len(data), "pointerSize": 134}
            listed.append(item)
        return listed


def make_handler(shelf: Shelf) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            parts = urlsplit(self.path)
            path, asked = unquote(parts.path), parse_qs(parts.query)
            if path.startswith("/api/models/owner/small"):
                said = {"id": "owner/small", "sha": COMMIT, "cardData": {"license": "apache-2.0"}, "tags": []}
                self.send_json({**said, "siblings": shelf.siblings()})
            elif path == "/api/v1/models/owner/small/repo/files":
                assert asked == {"Revision": ["master"], "Recursive": ["true"]}
                files = [
                    {"Path": n, "Size": len(d), "Sha256": shelf.sha256(n), "Type": "blob"}
                    for n, d in shelf.files.items()
                ]
                self.send_json({"Code": 200, "Data": {"Files": [*files, {"Path": "vae", "Size": 0, "Type": "tree"}]}})
            elif path.startswith(f"/owner/small/resolve/{COMMIT}/"):
                self.send_file(path.split(f"{COMMIT}/")[1], with_body)
            elif path.startswith("/models/owner/small/resolve/master/"):
                self.send_file(path.split("/master/")[1], with_body)
            else:
                self.send_json({"error": "Repository not found"}, 404)

        def send_json(self, said: Any, status: int = 200) -> None:
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, name: str, with_body: bool) -> None:
            data, start = shelf.files[name], 0
            wanted = self.headers.get("Range")
            if wanted and with_body:
                shelf.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", f'"{shelf.sha256(name)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if not with_body:
                return
            rest = data[start:]
            if shelf.cut_after is not None and len(data) > 1_000_000:
                rest = rest[: shelf.cut_after]
                self.close_connection = True
            shelf.sent += len(rest)
            self.wfile.write(rest)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def server(shelf: Shelf) -> Iterator[str]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(shelf))
    served.daemon_threads = True
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture(params=["huggingface", "modelscope"])
def hub(request: pytest.FixtureRequest) -> str:
    if request.param == "huggingface":
        pytest.importorskip("huggingface_hub")
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FARM_ROOM__MIN_FREE_DISK_GB", "0")
    monkeypatch.setenv("HF_ENDPOINT", server)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server)
    monkeypatch.setenv("NO_PROXY", "*")
    models = tmp_path / "home" / "models"
    models.mkdir(parents=True)
    (models / "small.toml").write_text(MODEL)
    return tmp_path / "home"


@pytest.fixture
def farm(home: Path) -> Callable[..., Result]:
    return run_farm


def fetch(hub: str, into: Path, **changes: Any) -> list[Any]:
    return list(pull(load_model("small"), open_hub(hub), into, **changes))


def test_a_model_is_fetched_whole_and_a_second_pull_fetches_nothing(
    hub: str, home: Path, shelf: Shelf, tmp_path: Path
) -> None:
    into = tmp_path / "models 模型"
    (first,) = fetch(hub, into)
    assert {name: (into / "small" / name).read_bytes() for name in FILES} == FILES
    assert (first.fetched, first.files) == (3, 3)
    sent = shelf.sent
    (second,) = fetch(hub, into)
    assert (second.fetched, second.files) == (0, 3)
    assert shelf.sent == sent
    assert all(found.verdict == "well" for found in verify(load_model("small"), into))


def test_a_pull_that_was_cut_goes_on_where_it_stopped(hub: str, home: Path, shelf: Shelf, tmp_path: Path) -> None:
    shelf.cut_after = 200_000
    with pytest.raises(NotFetched, match="was cut after 200000 of 3000080 bytes; pull again"):
        fetch(hub, tmp_path)
    assert not list((tmp_path / "small").glob("*.safetensors"))
    shelf.cut_after = None
    before = len(shelf.ranges)
    fetch(hub, tmp_path)
    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in shelf.ranges[before:]]
    assert starts == [200_000]
    assert (tmp_path / "small" / "模型 weights.safetensors").read_bytes() == FILES["模型 weights.safetensors"]


def test_a_file_of_another_hash_is_refused_and_deleted(hub: str, home: Path, shelf: Shelf, tmp_path: Path) -> None:
    shelf.lies["vae/old.pth"] = "0" * 64
    with pytest.raises(NotFetched, match=r"vae/old.pth: its SHA-256 is .*, the hub lists 0000"):
        fetch(hub, tmp_path)
    assert not (tmp_path / "small/vae/old.pth").exists()
    del shelf.lies["vae/old.pth"]
    assert fetch(hub, tmp_path)[0].fetched >= 1


def test_nothing_is_fetched_where_there_is_no_room(hub: str, home: Path, shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughRoom, match=r"are to be fetched into .* and 1000000000.0 GB to stay free, but only"):
        fetch(hub, tmp_path / "m", min_free_bytes=10**18)
    assert shelf.sent == 0
    assert not (tmp_path / "m").exists()


def test_a_licence_that_must_be_accepted_is(home: Path, shelf: Shelf, tmp_path: Path) -> None:
    path = home / "models" / "small.toml"
    path.write_text(MODEL.replace('licence = "Apache-2.0"\ngiga', 'licence = "its own"\naccept = true\ngiga'))
    with pytest.raises(InputError, match=r"owner/small is under its own: read its terms .* --accept-licence"):
        fetch("modelscope", tmp_path)
    assert fetch("modelscope", tmp_path, accepts_licence=True)[0].fetched == 3


def test_only_the_wanted_files_are_fetched(home: Path, tmp_path: Path) -> None:
    path = home / "models" / "small.toml"
    path.write_text(MODEL + 'files = ["*.json", "nothing"]\n')
    assert fetch("modelscope", tmp_path)[0].files == 1
    path.write_text(MODEL + 'files = ["nothing"]\n')
    with pytest.raises(NotFetched, match=r"owner/small at master has none of nothing"):
        fetch("modelscope", tmp_path)


def test_a_hub_without_the_model_is_told_in_one_sentence(hub: str, home: Path, tmp_path: Path) -> None:
    path = home / "models" / "small.toml"
    path.write_text(MODEL.replace("owner/small", "owner/none"))
    with pytest.raises(NotFetched) as caught:
        fetch(hub, tmp_path)
    assert "404" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", "a\\b", ""])
def test_a_listed_path_that_leaves_its_folder_is_refused(path: str) -> None:
    with pytest.raises(NotFetched, match="is no path below a folder"):
        safe_path(path)


def test_an_unknown_hub_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no hub 'x'; there are huggingface and modelscope"):
        open_hub("x")


def damage(folder: Path, name: str, how: str) -> None:
    path = folder / name
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("how", "sentence", "quick_sees_it"),
    [
        ("gone", "it is missing: farm models pull fetches it again", True),
        ("cut", "bytes and the hub lists", True),
        ("changed", "its SHA-256 is", False),
    ],
)
def test_verify_finds_what_is_wrong_and_pull_mends_it(
    home: Path, farm: Callable[..., Result], how: str, sentence: str, quick_sees_it: bool
) -> None:
    pulled = farm("models", "pull", "small", "--from", "modelscope")
    assert pulled.exit_code == 0, pulled.output
    assert f'ckpt_dir = "{home}/weights/small"' in pulled.output
    damage(home / "weights" / "small", "模型 weights.safetensors", how)
    checked = farm("models", "verify", "small", "--json")
    assert checked.exit_code == 1
    rows = [json.loads(line) for line in checked.output.splitlines()]
    assert [row["found"] for row in rows if row["is"] == "wrong" and sentence in row["found"]]
    assert farm("models", "verify", "small", "--quick").exit_code == (1 if quick_sees_it else 0)
    if how == "changed":
        (home / "weights/small/模型 weights.safetensors").unlink()  # as the sentence says
    assert farm("models", "pull", "small", "--from", "modelscope").exit_code == 0
    assert farm("models", "verify", "small").exit_code == 0


def test_a_folder_that_came_otherwise_is_checked_by_its_own_files(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "w.safetensors.index.json").write_text(json.dumps(index))
    (folder / "one.safetensors").write_bytes(safetensors(100)[:-1])
    (folder / "bad.pth").write_bytes(b"PK half of a zip")
    (folder / "page.bin").write_bytes(b"<html>")
    found = {f.path.name: f for f in verify(load_model("small"), tmp_path)}
    assert found["small"].verdict == "mind"
    assert "its header says" in found["one.safetensors"].found
    assert "it is missing" in found["two.safetensors"].found
    assert "it is cut off" in found["bad.pth"].found
    assert "it is no file of weights" in found["page.bin"].found


def test_a_model_without_weights_and_a_missing_folder_are_told(home: Path, farm: Callable[..., Result]) -> None:
    (home / "models" / "bare.toml").write_text(LEAST.replace('"small"', '"bare"', 1), encoding="utf-8")
    refused = farm("models", "pull", "bare")
    assert (refused.exit_code, "model bare has no weights to fetch" in refused.output) == (2, True)
    missing = farm("models", "verify", "small")
    assert (missing.exit_code, "the folder is missing" in missing.output) == (1, True)
    assert farm("models", "pull", "no-such").exit_code == 1


def test_show_tells_licence_memory_weights_and_code(home: Path, farm: Callable[..., Result]) -> None:
    shown = farm("models", "show", "small").output
    assert "weights   owner/small, 0.1 GB, Apache-2.0: ckpt_dir" in shown
    assert "code      https://example.org/small, no licence given: repo_path" in shown
