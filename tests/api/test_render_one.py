"""One film without a farm: real workers in a child process, the preview engine, real ffmpeg."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import psutil
import pytest

from farm.errors import ConfigError, EngineError, InputError
from farm.ledger.progress import JobProgress
from farm.solo import render_one

PORTRAIT = Path(__file__).resolve().parents[2] / "examples/portraits/astronaut.jpg"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def frames_of(film: Path) -> int:
    with av.open(str(film)) as media:
        return sum(1 for _ in media.decode(video=0))


def test_a_film_is_rendered_without_a_farm_and_leaves_nothing_behind(tmp_path: Path, home: Path, speech: Path) -> None:
    seen: list[JobProgress] = []

    film = render_one(PORTRAIT, speech, tmp_path / "out.mp4", size="256x256", on_progress=seen.append)

    assert film == tmp_path / "out.mp4"
    assert frames_of(film) == 50
    assert seen[-1].share == 1.0
    assert not [path for path in (home / "render").iterdir() if path.is_dir()]


def test_what_cannot_be_rendered_is_told_in_one_sentence(tmp_path: Path, speech: Path) -> None:
    with pytest.raises(InputError, match=r"audio .*/none\.wav does not exist"):
        render_one(PORTRAIT, tmp_path / "none.wav", tmp_path / "out.mp4")
    with pytest.raises(InputError, match="has no preset 'opera'"):
        render_one(PORTRAIT, speech, tmp_path / "out.mp4", preset="opera")


def test_a_portrait_without_a_face_is_refused_by_the_worker(tmp_path: Path, speech: Path) -> None:
    from PIL import Image

    Image.new("RGB", (400, 400), "seagreen").save(tmp_path / "wall.png")
    with pytest.raises(InputError, match="face"):
        render_one(tmp_path / "wall.png", speech, tmp_path / "out.mp4")


def test_a_killed_render_goes_on_where_it_was_and_no_process_stays(tmp_path: Path, home: Path, speech: Path) -> None:
    script = (
        "import sys\n"
        "from farm.solo import render_one\n"
        "render_one(*sys.argv[1:4], size='256x256', on_progress=lambda p: print(p.doing or 'done', flush=True))"
    )
    argv = [sys.executable, "-c", script, str(PORTRAIT), str(speech), str(tmp_path / "out.mp4")]
    first = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith(("segment", "assemble")):
            break
    others = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    _, alive = psutil.wait_procs(others, timeout=120)
    assert not alive

    second = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "prepare" not in second.stdout  # it was published before the kill
    assert frames_of(tmp_path / "out.mp4") == 50


def test_a_model_that_cannot_be_loaded_ends_the_render_with_the_reason(
    tmp_path: Path, home: Path, speech: Path
) -> None:
    home.mkdir()
    worker = '[workers.preview]\nmodel = "preview"\npython_executable = "/no/such/python"\n'
    (home / "workers.toml").write_text(worker)
    with pytest.raises(EngineError, match=r"could not be loaded: .*/no/such/python"):
        render_one(PORTRAIT, speech, tmp_path / "out.mp4")


def test_a_missing_ffmpeg_is_told_before_anything_is_begun(
    tmp_path: Path, home: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_FFMPEG", "/no/such/ffmpeg")
    with pytest.raises(ConfigError, match="FARM_FFMPEG"):
        render_one(PORTRAIT, speech, tmp_path / "out.mp4")
    assert not home.exists()
