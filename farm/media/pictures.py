"""Pictures for people: poster, thumbnail, contact sheet, waveform."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from farm.errors import MediaError
from farm.media.command import FILM_GUARDS, locate

JPEG_QUALITY = 85
PAPER, INK, FAINT = (250, 250, 248), (38, 70, 120), (205, 210, 216)
GAP = 6  # pixels between the pictures of a sheet


def poster(film: Path, out_jpg: Path, at_seconds: float = 0.0) -> None:
    """One full-size frame of a film as JPEG; its last one if it ends before `at_seconds`.  Raises MediaError."""
    (picture,) = _pictures_at(film, [min(at_seconds, _last_frame_seconds(film))])
    picture.save(out_jpg, "JPEG", quality=JPEG_QUALITY)


def thumbnail(segment: Path, out_jpg: Path, width: int = 320) -> None:
    """The middle frame of a segment or film as a small JPEG.  Raises MediaError."""
    (picture,) = _pictures_at(segment, [_last_frame_seconds(segment) / 2], width)
    picture.save(out_jpg, "JPEG", quality=JPEG_QUALITY)


def contact_sheet(film: Path, out_jpg: Path, columns: int = 4, rows: int = 3, width: int = 240) -> None:
    """`columns` x `rows` frames spread evenly over a film, each `width` pixels wide with its time below."""
    last = _last_frame_seconds(film)
    count = columns * rows
    times = [last * (index + 0.5) / count for index in range(count)]
    pictures = _pictures_at(film, times, width)
    height, font = pictures[0].height, ImageFont.load_default()
    line = 16
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + line + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (time, picture) in enumerate(zip(times, pictures, strict=True)):
        x = GAP + index % columns * (width + GAP)
        y = GAP + index // columns * (height + line + GAP)
        sheet.paste(picture, (x, y))
        draw.text((x + 2, y + height + 2), _clock(time), INK, font)
    sheet.save(out_jpg, "JPEG", quality=JPEG_QUALITY)


def waveform(driving: Path, out_png: Path, width: int = 1200, height: int = 160) -> None:
    """Draw driving sound (float32, raw) from its least to its greatest sample in each column of pixels."""
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    middle = (height - 1) / 2
    draw.line([(0, middle), (width, middle)], FAINT)
    edges = np.linspace(0, driving.stat().st_size // 4, width + 1).astype(int)
    for x, (start, stop) in enumerate(pairwise(edges.tolist())):
        # Read, not mapped: a map of ten hours would count as this process's memory.
        piece = np.fromfile(driving, "<f4", max(stop - start, 1), offset=4 * start)
        top, bottom = float(piece.max()), float(piece.min())
        draw.line([(x, middle * (1 - min(top, 1.0))), (x, middle * (1 - max(bottom, -1.0)))], INK)
    image.save(out_png, "PNG")


def _pictures_at(film: Path, times: Sequence[float], width: int | None = None) -> list[Image.Image]:
    """The frames that are shown at these times, in their order, scaled to `width` pixels where it is given."""
    pictures: list[Image.Image] = []
    try:
        with av.open(locate(film), options=FILM_GUARDS) as media:
            video = media.streams.video[0]
            assert video.time_base is not None
            for seconds in times:
                media.seek(int(seconds / video.time_base), stream=video)
                shown = None
                for frame in media.decode(video):
                    if shown is not None and frame.time > seconds + 1e-6:
                        break
                    shown = frame
                if shown is None:
                    raise MediaError([str(film)], 0, f"{film} has no picture at {seconds:.3f} s")
                height = round(shown.height * width / shown.width / 2) * 2 if width else None
                pictures.append(shown.to_image(width=width, height=height, interpolation="AREA"))  # type: ignore[no-untyped-call]
    except (av.FFmpegError, IndexError, OSError) as error:
        raise MediaError([str(film)], 0, f"{film} cannot be read: {error}") from error
    return pictures


def _last_frame_seconds(film: Path) -> float:
    """Time of the last frame."""
    try:
        with av.open(locate(film), options=FILM_GUARDS) as media:
            video = media.streams.video[0]
            assert video.time_base is not None
            rate = video.average_rate
            length = float((video.duration or 0) * video.time_base) or (media.duration or 0) / av.time_base
            return max(0.0, length - 1 / float(rate)) if rate else 0.0
    except (av.FFmpegError, IndexError, OSError) as error:
        raise MediaError([str(film)], 0, f"{film} cannot be read: {error}") from error


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02}"
    )
