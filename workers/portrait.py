"""Any picture that a person may send, made into the one kind that engines read."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from farm.errors import InputError

LEAST_SIDE = 64  # pixels; nothing can be recognised in less
LONGEST_SIDE = 2048  # pixels; larger pictures are scaled down, no film is that large
MOST_PIXELS = 120_000_000  # of the file; more would need more memory than a worker should spend on one photo
_BEHIND = (190, 190, 190)  # what transparent parts are laid over
# Photos and drawings; left out are formats that run other programs or describe documents.  JPEG includes MPO.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


@dataclass(frozen=True)
class NormalisedPortrait:
    """What was written, and what had to be done to it, in sentences for the report."""

    width: int
    height: int
    notes: tuple[str, ...]


def normalise(source: Path, target: Path) -> NormalisedPortrait:
    """Write `source` as an upright 8-bit RGB PNG without metadata, at most 2048 px on its longer side.

    `target` appears only when it is complete.  Raises InputError with one sentence when the file is no picture, is
    damaged, too small or too large.
    """
    notes: list[str] = []
    try:
        with Image.open(source, formats=_FORMATS) as opened:
            upright = _upright_rgb(source, opened, notes)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"the portrait {source} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"the portrait {source} is a folder, not a picture") from None
    except PermissionError:
        raise InputError(f"the portrait {source} cannot be read: permission denied") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(_too_large(source)) from None
    except UnidentifiedImageError:
        raise InputError(_unknown(source)) from None
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error):
        raise InputError(f"the portrait {source} is damaged or incomplete; save or send it again") from None
    _write(upright, target)
    return NormalisedPortrait(upright.width, upright.height, tuple(notes))


def _upright_rgb(source: Path, opened: Image.Image, notes: list[str]) -> Image.Image:
    width, height = opened.size
    if width * height > MOST_PIXELS:
        raise InputError(_too_large(source))
    if min(width, height) < LEAST_SIDE:
        raise InputError(f"the portrait {source} is only {width}x{height} px; use a photo of at least 256x256 px")
    if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":
        notes.append("the portrait is an animation; its first picture is used")
    opened.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # a large JPEG is decoded at a fraction of its size
    opened.load()
    turned = ImageOps.exif_transpose(opened)
    picture = _to_rgb(turned, notes)
    if max(picture.size) > LONGEST_SIDE:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    if max(width, height) > LONGEST_SIDE:
        notes.append(f"the portrait was scaled from {width}x{height} to {picture.width}x{picture.height} px")
    if min(picture.size) < LEAST_SIDE:
        raise InputError(f"the portrait {source} is too narrow: {width}x{height} px")
    return picture


def _to_rgb(picture: Image.Image, notes: list[str]) -> Image.Image:
    """8-bit RGB from every mode that Pillow knows, in sRGB where the file says what its colours mean."""
    profile = picture.info.get("icc_profile")
    if picture.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        levels = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        picture = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    elif picture.mode == "F":
        levels = np.nan_to_num(np.asarray(picture, np.float64))
        scale = 255 if levels.max() <= 1 else 1
        picture = Image.fromarray(np.clip(np.round(levels * scale), 0, 255).astype(np.uint8))
    elif picture.has_transparency_data:
        layered = picture.convert("RGBA")
        if layered.getchannel("A").getextrema()[0] != 255:
            notes.append("transparent parts of the portrait were laid over grey")
        behind = Image.new("RGBA", layered.size, (*_BEHIND, 255))
        return Image.alpha_composite(behind, layered).convert("RGB")
    if profile and picture.mode in ("RGB", "CMYK"):
        # A damaged or unfit profile is ignored, as viewers do.
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            given, wanted = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(picture, given, wanted, outputMode="RGB")
            if converted is not None:
                return converted
    return picture.convert("RGB")


def _write(picture: Image.Image, target: Path) -> None:
    picture.info.clear()  # or Pillow would copy profiles and comments into the PNG
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as staging:
        try:
            picture.save(staging, format="PNG", compress_level=3)
            staging.flush()
            os.fsync(staging.fileno())
            Path(staging.name).replace(target)
        except BaseException:
            Path(staging.name).unlink(missing_ok=True)
            raise
    target.chmod(0o644)


def _too_large(source: Path) -> str:
    return f"the portrait {source} has more than {MOST_PIXELS // 1_000_000} million pixels; scale it down first"


def _unknown(source: Path) -> str:
    with source.open("rb") as file:
        head = file.read(16)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1"):
        return f"the portrait {source} is a HEIC picture; save it as JPEG or PNG first"
    return f"the portrait {source} is not a picture that can be read; use a JPEG, PNG or WebP file"
