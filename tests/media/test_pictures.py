"""Pictures show what the film shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from farm.errors import MediaError
from farm.media.encode import SegmentEncoder
from farm.media.pictures import contact_sheet, poster, thumbnail, waveform
from farm.media.profile import default_profile

from .conftest import write_all

RED, BLUE = (200, 30, 30), (30, 30, 200)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A second of red, then a second of blue; 128 x 96."""
    path = tmp_path / "film.mp4"
    with SegmentEncoder(default_profile(128, 96, (25, 1)), "rgb24", path) as encoder:
        for colour in (RED, BLUE):
            write_all(encoder.write_fd, bytes(colour) * 128 * 96 * 25)
        encoder.finish(60)
    return path


def colour_at(path: Path, x: float, y: float) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB").getpixel((int(x * picture.width), int(y * picture.height))))


def is_like(found: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(found - colour).max() < 12)


@pytest.mark.parametrize(("at", "colour"), [(0.0, RED), (0.96, RED), (1.0, BLUE), (1.96, BLUE), (99.0, BLUE)])
def test_a_poster_shows_the_frame_of_its_time(film: Path, tmp_path: Path, at: float, colour: tuple[int, int, int]):
    poster(film, tmp_path / "p.tmp", at)
    with Image.open(tmp_path / "p.tmp") as picture:
        assert (picture.format, picture.size) == ("JPEG", (128, 96))
    assert is_like(colour_at(tmp_path / "p.tmp", 0.5, 0.5), colour)


def test_a_thumbnail_is_small(film: Path, tmp_path: Path):
    thumbnail(film, tmp_path / "t.jpg", width=64)
    with Image.open(tmp_path / "t.jpg") as picture:
        assert picture.size == (64, 48)


def test_a_contact_sheet_shows_the_film_in_order(film: Path, tmp_path: Path):
    contact_sheet(film, tmp_path / "c.jpg", columns=2, rows=2, width=64)
    assert is_like(colour_at(tmp_path / "c.jpg", 0.25, 0.2), RED)
    assert is_like(colour_at(tmp_path / "c.jpg", 0.75, 0.2), RED)
    assert is_like(colour_at(tmp_path / "c.jpg", 0.25, 0.7), BLUE)
    assert is_like(colour_at(tmp_path / "c.jpg", 0.75, 0.7), BLUE)


def test_a_picture_of_no_film_is_a_media_error(tmp_path: Path):
    (tmp_path / "x.mp4").write_text("no film")
    with pytest.raises(MediaError, match="cannot be read"):
        poster(tmp_path / "x.mp4", tmp_path / "p.jpg")
    assert not (tmp_path / "p.jpg").exists()


@pytest.mark.parametrize("samples", [1, 100, 50_000])
def test_a_waveform_is_tall_where_it_is_loud(tmp_path: Path, samples: int):
    sound = np.sin(np.arange(samples)) * (np.arange(samples) > samples // 2)
    sound.astype("<f4").tofile(tmp_path / "a.f32")
    waveform(tmp_path / "a.f32", tmp_path / "w.png", width=200, height=80)
    with Image.open(tmp_path / "w.png") as picture:
        ink = np.asarray(picture.convert("L")) < 128
    assert ink.shape == (80, 200)
    assert ink[:, :95].sum(axis=0).max() <= 1
    assert samples < 1000 or ink[:, 110:].sum(axis=0).min() > 60
