"""What the engine accepts and refuses, and what it says about itself."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from farm.errors import EngineError, InputError
from farm.models import load_model
from tests.conftest import ROOT
from tests.engines.preview.conftest import ASTRONAUT, MakeFilm, render
from workers.engines.contract import Engine
from workers.engines.preview import make_engine
from workers.engines.preview.colour import planes, to_yuv
from workers.engines.preview.engine import CARRY_LIMIT_BYTES
from workers.engines.preview.face import FaceReader
from workers.engines.preview.framing import choose_crop, frame_portrait
from workers.engines.preview.settings import PreviewSettings, read_settings


def test_the_model_file_says_what_the_engine_says(engine: Engine) -> None:
    told, planned = engine.describe(), load_model("preview")
    assert told.id == planned.id
    assert told.fps == (planned.frames.default_fps, 1)
    assert told.chunk_frames == planned.frames.chunk(told.fps)
    assert told.limits["fps"] == planned.frames.fps
    assert told.limits["chunk_frames"] == planned.frames.chunk_frames
    assert told.lookahead_samples == planned.frames.lookahead_samples
    assert told.carry_limit_bytes == planned.frames.carry_limit_bytes == CARRY_LIMIT_BYTES
    assert told.limits["sides"] == [planned.size.min, planned.size.max]
    assert {field.name for field in dataclasses.fields(PreviewSettings)} == set(planned.settings)
    for name in planned.presets:
        read_settings(planned.resolve(name, {}))
    assert read_settings(planned.resolve("natural", {})) == PreviewSettings()


@pytest.mark.parametrize("size", [(256, 256), (258, 514), (720, 406)])
def test_frames_have_the_asked_size_and_move(engine: Engine, make_film: MakeFilm, size: tuple[int, int]) -> None:
    frames = render(engine, make_film(size=size, total_frames=26))
    assert frames.shape == (26, size[1] * 3 // 2, size[0])
    assert frames.dtype == np.uint8
    assert (frames[0] != frames[20]).any()


def test_a_frame_shows_the_photo_in_bt709_colours(engine: Engine, make_film: MakeFilm, reader: FaceReader) -> None:
    film = make_film(total_frames=1, size=(512, 512))
    y, u, v = planes(render(engine, film)[0])
    photo = frame_portrait(cv2.imread(str(ASTRONAUT)), 512, 512, "auto", reader).image
    expected = to_yuv(photo)
    assert abs(float(y.mean()) - float(expected[..., 0].mean())) < 1.0
    assert abs(float(u.mean()) - float(expected[..., 1].mean())) < 1.0
    assert abs(float(v.mean()) - float(expected[..., 2].mean())) < 1.0
    assert np.allclose(to_yuv(np.array([[255.0, 255.0, 255.0]])), [[235, 128, 128]], atol=0.01)
    assert np.allclose(to_yuv(np.array([[0.0, 0.0, 255.0]])), [[62.56, 102.34, 240]], atol=0.01)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fps": (23, 1)}, "24, 25, 30, 50 frames per second, not 23/1"),
        ({"fps": (30000, 1001)}, "not 30000/1001"),
        ({"width": 255}, "width must be an even number from 256"),
        ({"height": 4096}, "height must be an even number from 256 to 1920, not 4096"),
        ({"settings": {"mouth": 9}}, "mouth must be a number from 0.3 to 1.6, not 9"),
        ({"settings": {"mouth": True}}, "mouth must be a number"),
        ({"settings": {"framing": "close"}}, 'framing must be "auto" or "whole"'),
        ({"settings": {"speed": 1}}, "no setting 'speed'"),
        ({"portrait": Path("/nowhere/a.png")}, "cannot read the portrait /nowhere/a.png"),
        ({"portrait": ROOT / "pyproject.toml"}, "is not a picture that can be read"),
    ],
)
def test_what_cannot_be_rendered_is_an_input_error_and_leaves_the_engine_warm(
    engine: Engine, make_film: MakeFilm, change: dict[str, Any], sentence: str
) -> None:
    film = make_film()
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
        engine.begin(dataclasses.replace(film, **change), 0, None)
    assert len(engine.begin(film, 0, None).step()) == 25


def test_a_picture_without_a_face_is_an_input_error(engine: Engine, make_film: MakeFilm, tmp_path: Path) -> None:
    path = tmp_path / "wall.png"
    cv2.imwrite(str(path), np.full((400, 400, 3), 120, np.uint8))
    with pytest.raises(InputError, match="no face was found in the portrait"):
        engine.begin(make_film(portrait=path), 0, None)


def test_an_engine_must_be_loaded_first(make_film: MakeFilm) -> None:
    with pytest.raises(EngineError, match="not loaded"):
        make_engine({}).begin(make_film(), 0, None)


def test_the_sound_is_measured_when_nobody_did(engine: Engine, make_film: MakeFilm) -> None:
    film = make_film(total_frames=25)
    unmeasured = dataclasses.replace(film, facts={})
    assert np.array_equal(render(engine, film), render(engine, unmeasured))


def test_a_photo_is_never_squashed() -> None:
    face = np.zeros((468, 3))
    face[:, 0] = np.linspace(400, 600, 468)
    face[:, 1] = np.linspace(300, 560, 468)
    for aspect in (9 / 16, 1.0, 16 / 9):
        for width, height in ((1000, 1400), (1400, 1000), (640, 620)):
            for framing in ("auto", "whole"):
                crop = choose_crop(face, width, height, aspect, framing)
                assert crop.width / crop.height == pytest.approx(aspect, rel=0.01)
                assert crop.left <= 400
                assert crop.left + crop.width >= 600
                assert crop.top <= 300
                assert crop.top + crop.height >= 560


def test_a_tight_photo_gets_room_for_the_head_in_every_shape(
    engine: Engine, make_film: MakeFilm, reader: FaceReader, tmp_path: Path
) -> None:
    tight = tmp_path / "tight.png"
    cv2.imwrite(str(tight), cv2.imread(str(ASTRONAUT))[50:200, 150:300])
    for size in ((512, 288), (288, 512)):
        framed = frame_portrait(cv2.imread(str(tight)), *size, "auto", reader)
        assert framed.points[:, 0].min() > 0
        assert framed.points[:, 0].max() < size[0]
        assert framed.points[:, 1].min() > 0
        assert framed.points[:, 1].max() < size[1]
        render(engine, make_film(portrait=tight, size=size, total_frames=3))


def test_naming_the_engine_does_not_load_opencv() -> None:
    code = "import sys, workers.engines.preview as p; p.make_engine; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_measuring_a_films_sound_needs_only_numpy() -> None:
    code = "import sys, workers.engines.preview.film_facts; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_engine_is_valid_python_3_10() -> None:
    candidates = [shutil.which("python3.10"), *sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python3.10"))]
    works = [c for c in candidates if c and not subprocess.run([c, "--version"], capture_output=True).returncode]
    if not works:
        pytest.skip("no Python 3.10 here")
    old = works[0]
    sources = sorted((ROOT / "workers/engines/preview").glob("*.py"))
    code = "import ast, sys; [ast.parse(open(p, encoding='utf-8').read(), p) for p in sys.argv[1:]]"
    subprocess.run([old, "-c", code, *map(str, sources)], check=True)
