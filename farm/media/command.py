"""Build ffmpeg's argv.  ffmpeg-python only writes it down here; `farm.media.run` runs it.

Every input goes through this module, because the options that keep ffmpeg from reading a second file or reaching a
network belong to each input by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ffmpeg

from farm.media.binary import find_ffmpeg

# Demuxers that read one file and nothing else.  Not among them, on purpose: hls, dash, concat, sdp, rtsp, image2,
# imf, vobsub, webvtt and every other format that names further files or addresses.
AUDIO_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mp4,mpeg,mpegts,ogg,rf64,tta,w64,wav,webm,wv"
)
INPUT_GUARDS = {"protocol_whitelist": "file", "format_whitelist": AUDIO_FORMATS}
FILM_GUARDS = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4"}


def locate(path: Path) -> str:
    """`path` as ffmpeg must be told it: absolute and marked as a file, so no dash or colon in it has a meaning."""
    return f"file:{path.absolute()}"


def untrusted_input(path: Path, **options: Any) -> Any:
    """A file of a user's: one media file, no playlists, no network."""
    return ffmpeg.input(locate(path), threads=1, **INPUT_GUARDS, **options)


def film_input(path: Path, **options: Any) -> Any:
    """A film or segment that the farm made."""
    return ffmpeg.input(locate(path), **FILM_GUARDS, **options)


def raw_input(fd: int, **options: Any) -> Any:
    """Bytes without a container, from a pipe."""
    return ffmpeg.input(f"pipe:{fd}", protocol_whitelist="pipe", **options)


def pattern_input(graph: str, **options: Any) -> Any:
    """A test signal of libavfilter; reads no file."""
    return ffmpeg.input(graph, f="lavfi", **options)


def to_argv(*outputs: Any, log: str = "error") -> list[str]:
    """The argv that writes `outputs`."""
    merged = outputs[0] if len(outputs) == 1 else ffmpeg.merge_outputs(*outputs)
    always = [str(find_ffmpeg()), "-nostdin", "-hide_banner", "-loglevel", log]
    argv: list[str] = ffmpeg.compile(merged, cmd=always, overwrite_output=True)
    return argv
