"""Every kind of picture file becomes the one kind that engines read, or is refused with one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from farm.errors import InputError
from tests.engines.preview.conftest import ASTRONAUT
from workers import portrait
from workers.portrait import normalise


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "portrait.png"


def gradient(width: int = 96, height: int = 80) -> np.ndarray:
    """RGB that differs at every corner."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], axis=-1).astype(np.uint8)


def written(target: Path) -> np.ndarray:
    with Image.open(target) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "RGB"
        assert not {"icc_profile", "exif"} & set(picture.info)
        return np.asarray(picture)


def test_a_photo_keeps_its_pixels(target: Path) -> None:
    made = normalise(ASTRONAUT, target)
    assert (made.width, made.height, made.notes) == (512, 512, ())
    with Image.open(ASTRONAUT) as photo:
        assert np.array_equal(written(target), np.asarray(photo))
    assert [path.name for path in target.parent.iterdir()] == ["portrait.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(source: Path, target: Path, orientation: int) -> None:
    upright = gradient()
    # What a camera held in each way stores: the transforms that undo the tag's meaning.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(source, format="PNG", exif=exif)
    normalise(source, target)
    assert np.array_equal(written(target), upright)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"])
def test_other_colour_modes_become_rgb(source: Path, target: Path, mode: str) -> None:
    if mode in ("LAB", "HSV"):
        picture = Image.fromarray(gradient()).convert("HSV") if mode == "HSV" else Image.new("LAB", (96, 80), 120)
        assert portrait._to_rgb(picture, []).mode == "RGB"
        return
    picture = Image.fromarray(gradient()).convert("L" if mode in ("I", "F") else mode)
    if mode == "I":
        picture = Image.fromarray(np.asarray(picture).astype(np.int32) * 257)
    if mode == "F":
        picture = Image.fromarray(np.asarray(picture).astype(np.float32) / 255)
    picture.save(source, format="JPEG" if mode == "YCbCr" else "TIFF")
    normalise(source, target)
    pixels = written(target).astype(int)
    assert pixels.shape == (80, 96, 3)
    grey = Image.fromarray(gradient()).convert("L")
    if mode in ("L", "I", "F"):
        assert np.abs(pixels[..., 0] - np.asarray(grey).astype(int)).max() <= 1
    if mode == "CMYK":
        assert np.abs(pixels - gradient()).mean() < 3


def test_sixteen_bits_keep_their_brightness(source: Path, target: Path) -> None:
    levels = np.linspace(0, 65535, 96 * 80).reshape(80, 96).astype(np.uint16)
    Image.fromarray(levels).save(source, format="PNG")
    normalise(source, target)
    assert np.abs(written(target)[..., 0].astype(float) - levels / 257).max() <= 0.6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_laid_over_grey(source: Path, target: Path, mode: str) -> None:
    picture = Image.new("RGBA", (96, 80), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 48, 80))
    if mode == "P":
        picture.quantize(8).save(source, format="PNG")
    else:
        picture.convert(mode).save(source, format="PNG")
    made = normalise(source, target)
    pixels = written(target)
    assert np.abs(pixels[:, :40].astype(int) - 190).max() <= 2
    assert pixels[0, -1].tolist() == ([255, 0, 0] if mode != "LA" else [76, 76, 76])
    assert made.notes == ("transparent parts of the portrait were laid over grey",)


def test_colours_are_converted_from_the_files_profile(source: Path, target: Path) -> None:
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(gradient()).save(source, format="PNG", icc_profile=linear)
    normalise(source, target)
    assert np.abs(written(target).astype(int) - gradient()).max() <= 1
    Image.fromarray(gradient()).save(source, format="PNG", icc_profile=b"nonsense")
    normalise(source, target)
    assert np.array_equal(written(target), gradient())


def test_the_first_picture_of_an_animation_is_used(source: Path, target: Path) -> None:
    first, second = Image.new("RGB", (96, 80), (200, 30, 30)), Image.new("RGB", (96, 80), (30, 30, 200))
    first.save(source, format="GIF", save_all=True, append_images=[second])
    made = normalise(source, target)
    assert written(target)[0, 0].tolist() == [200, 30, 30]
    assert made.notes == ("the portrait is an animation; its first picture is used",)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_huge_photo_is_scaled_down(source: Path, target: Path, kind: str) -> None:
    Image.fromarray(gradient(1500, 2100)).save(source, format=kind)
    made = normalise(source, target)
    assert (made.width, made.height) == (1463, 2048)
    assert made.notes == ("the portrait was scaled from 1500x2100 to 1463x2048 px",)


@pytest.mark.parametrize("side", [11_000, 20_000])  # below and above the limit of the library itself
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(source: Path, target: Path, side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header) - 4) + header + struct.pack(">I", zlib.crc32(header))
    source.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
    with pytest.raises(InputError, match="more than 120 million pixels; scale it down first"):
        normalise(source, target)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a picture that can be read"),
        (b"name,age\n", "is not a picture that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "is not a picture that can be read"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "is a HEIC picture; save it as JPEG or PNG first"),
    ],
)
def test_what_is_no_picture_is_refused(source: Path, target: Path, content: bytes, sentence: str) -> None:
    source.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        normalise(source, target)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_truncated_file_is_refused_and_nothing_is_left(source: Path, target: Path, kind: str) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(buffer, format=kind)
    source.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(InputError, match=r"is damaged or incomplete|is not a picture"):
        normalise(source, target)
    assert [path.name for path in target.parent.iterdir()] == ["source"]


def test_missing_and_unfit_paths_are_named(tmp_path: Path, target: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        normalise(tmp_path / "none.jpg", target)
    with pytest.raises(InputError, match="is a folder"):
        normalise(tmp_path, target)


@pytest.mark.parametrize(("size", "sentence"), [((63, 300), "is only 63x300 px"), ((70, 2500), "is too narrow")])
def test_too_small_and_too_narrow_pictures_are_refused(
    source: Path, target: Path, size: tuple[int, int], sentence: str
) -> None:
    Image.new("RGB", size).save(source, format="PNG")
    with pytest.raises(InputError, match=sentence):
        normalise(source, target)
