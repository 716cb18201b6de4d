"""Look at a user's sound or picture: cheap enough for every row of a submit, and safe on files that mean harm.

Only headers are read.  A path is looked at with stat before it is opened, so a pipe or a device is refused instead
of waited for; the format whitelist of `farm.media.command` keeps playlists from naming further files.
"""

from __future__ import annotations

import hashlib
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image, UnidentifiedImageError

from farm.errors import InputError, MediaError
from farm.media.command import FILM_GUARDS, INPUT_GUARDS, locate

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_PICTURE_PIXELS = 100_000_000
QUICK = {"max_probe_packets": "4"}  # by default 2500 packets of every WAV are searched for DTS: 50 ms in place of 2
SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height
ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a sound file says of itself.  The exact length is only known once it is decoded."""

    duration_seconds: float
    sample_rate: int  # Hz
    channels: int
    codec: str
    container: str


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Size in pixels of a picture held upright, and its format in lower case ("png")."""

    width: int
    height: int
    format: str


def probe_audio(path: Path) -> AudioInfo:
    """The first sound of an audio or video file.  Raises InputError with a sentence that says what is wrong."""
    _check_regular(path, "sound")
    try:
        # Bytes that no whitelisted format knows are "invalid data"; a known but refused format is "invalid argument".
        with av.open(locate(path), options=INPUT_GUARDS | QUICK, metadata_errors="replace") as media:
            if not media.streams.audio:
                raise InputError(f"{path} has no sound.")
            sound = media.streams.audio[0]
            rate, channels = sound.codec_context.sample_rate, sound.codec_context.channels
            if rate <= 0 or channels <= 0:
                raise InputError(f"The sound of {path} does not say its sample rate or channels; the file is damaged.")
            seconds = _duration(media, sound)
            container, codec = media.format.name, sound.codec_context.name
    except PermissionError:
        raise InputError(f"{path} may not be read by this user.") from None
    except av.ArgumentError:
        raise InputError(f"{path} is a playlist or another format that is not taken as sound.") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a sound file that can be read ({_reason(error)}).") from None
    if seconds <= 0:
        raise InputError(f"The sound of {path} holds no samples.")
    return AudioInfo(seconds, rate, channels, codec, container)


def probe_image(path: Path) -> ImageInfo:
    """Size and format of a picture.  Raises InputError with a sentence that says what is wrong."""
    _check_regular(path, "picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=PICTURE_FORMATS) as picture:
                width, height = picture.size
                name = (picture.format or "").lower()
                if width * height > MAX_PICTURE_PIXELS:
                    raise _too_many_pixels(path)
                # Of a PNG without it in front, Pillow would decode all pixels to look for it behind them.
                has_orientation = name != "png" or "exif" in picture.info
                sideways = has_orientation and picture.getexif().get(ORIENTATION_TAG) in SIDEWAYS
    except UnidentifiedImageError:
        kinds = ", ".join(PICTURE_FORMATS)
        raise InputError(f"{path} is not a picture that can be read; the farm takes {kinds}.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read by this user.") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(path) from None
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError) as error:  # Pillow on damaged headers
        raise InputError(f"{path} is a damaged picture ({_reason(error)}).") from None
    return ImageInfo(height, width, name) if sideways else ImageInfo(width, height, name)


def probe_input(path: Path) -> ImageInfo | AudioInfo:
    """A picture, else a sound.  Raises InputError for what is neither."""
    try:
        return probe_image(path)
    except InputError:
        try:
            return probe_audio(path)
        except InputError:
            raise InputError(f"{path} is neither a picture nor a sound that this farm can read") from None


def _too_many_pixels(path: Path) -> InputError:
    return InputError(f"{path} has too many pixels; the limit is {MAX_PICTURE_PIXELS // 1_000_000} million.")


def _check_regular(path: Path, what: str) -> None:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({_reason(error)}).") from None
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a directory, not a {what} file.")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is a pipe, socket or device, not a {what} file.")
    if found.st_size == 0:
        raise InputError(f"{path} is empty.")


def _duration(media: av.container.InputContainer, sound: av.audio.stream.AudioStream) -> float:
    """Seconds by the header; by the packets where the header is silent, as in a browser's recording."""
    if sound.duration is not None and sound.time_base is not None:
        return float(sound.duration * sound.time_base)
    if media.duration is not None:
        return media.duration / av.time_base
    end = start = None
    for packet in media.demux(sound):
        if packet.pts is not None:
            start = packet.pts if start is None else start
            end = packet.pts + (packet.duration or 0)
    if start is None or end is None or sound.time_base is None:
        return 0.0
    return float((end - start) * sound.time_base)


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return said[:1].lower() + said[1:]


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """What must be equal before segments are joined by copying (`extradata_sha1` to `time_base`), and the count."""

    frames: int
    extradata_sha1: str
    width: int
    height: int
    pix_fmt: str
    time_base: tuple[int, int]


def probe_segment(path: Path) -> SegmentInfo:
    """Count the packets of a segment that the farm made.  Raises MediaError when it is no such segment."""
    try:
        with av.open(locate(path), options=FILM_GUARDS) as media:
            if not media.streams.video:
                raise MediaError([str(path)], 0, f"{path} has no video")
            video = media.streams.video[0]
            coder = video.codec_context
            base = video.time_base
            return SegmentInfo(
                frames=sum(1 for packet in media.demux(video) if packet.size),
                extradata_sha1=hashlib.sha1(coder.extradata or b"", usedforsecurity=False).hexdigest(),
                width=coder.width,
                height=coder.height,
                pix_fmt=coder.pix_fmt or "",
                time_base=(base.numerator, base.denominator) if base else (0, 1),
            )
    except (av.FFmpegError, OSError) as error:
        raise MediaError([str(path)], 0, f"{path} is not a segment that can be read: {_reason(error)}") from error
