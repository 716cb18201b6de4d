"""Prove that a finished file is what was planned, from its packets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Never

import av
import ffmpeg

from farm.errors import MediaError
from farm.media.command import FILM_GUARDS, film_input, locate, to_argv
from farm.media.run import run


@dataclass(frozen=True, slots=True)
class FilmFacts:
    """What a verified film holds."""

    frames: int
    video_seconds: float
    audio_seconds: float  # what a player plays: without the encoder's priming and padding
    width: int
    height: int
    sample_rate: int  # Hz
    channels: int
    size_bytes: int


def verify_film(
    path: Path,
    *,
    frames: int,
    fps: tuple[int, int],
    audio_seconds: float | None = None,
    decode_at: Sequence[int] | None = None,
) -> FilmFacts:
    """Check a film packet by packet and return its facts; raise MediaError with the first thing that is wrong.

    Checked: packet count, first packet a key frame at time 0, every time stamp exactly frame / fps, DTS strictly
    rising, sound and video (and sound and `audio_seconds`) less than a frame apart.  `decode_at` names frames,
    such as the first of each segment: the GOP before each, the first GOP and the last one are then decoded too.
    """
    with _open(path) as media:
        if not media.streams.video or not media.streams.audio:
            _refuse(path, "it must have one video and one sound")
        video, sound = media.streams.video[0], media.streams.audio[0]
        _check_packets(path, media, video, frames, fps)
        video_seconds = Fraction(frames) / Fraction(*fps)
        heard = _played_seconds(path, sound)
        for name, seconds in (("the video", video_seconds), ("the sound that was given", audio_seconds)):
            if seconds is not None and abs(heard - Fraction(seconds)) >= 1 / Fraction(*fps):
                _refuse(path, f"its sound has {float(heard):.4f} s and {name} {float(seconds):.4f} s")
        facts = FilmFacts(
            frames=frames,
            video_seconds=float(video_seconds),
            audio_seconds=float(heard),
            width=video.codec_context.width,
            height=video.codec_context.height,
            sample_rate=sound.codec_context.sample_rate,
            channels=sound.codec_context.channels,
            size_bytes=path.stat().st_size,
        )
    if decode_at is not None:
        for frame in sorted({1, frames, *decode_at}):
            _decode_up_to(path, min(frame, frames - 1), fps)
    return facts


def verify_segment(path: Path, *, frames: int, fps: tuple[int, int]) -> None:
    """Check a segment packet by packet.  Raises MediaError with the first thing that is wrong."""
    with _open(path) as media:
        if len(media.streams) != 1 or not media.streams.video:
            _refuse(path, "a segment holds video and nothing else")
        _check_packets(path, media, media.streams.video[0], frames, fps)


def frame_hashes(path: Path, *, timeout_seconds: float = 600) -> list[str]:
    """MD5 of each decoded frame of a film or segment, in order; equal pixels give equal hashes."""
    video = film_input(path)["v:0"]
    argv = to_argv(ffmpeg.output(video, "pipe:1", f="framemd5", pix_fmt="yuv420p", fps_mode="passthrough"))
    said = run(argv, timeout_seconds=timeout_seconds).decode()
    return [line.rsplit(",", 1)[-1].strip() for line in said.splitlines() if line and not line.startswith("#")]


def sha256_of_frames(path: Path) -> str:
    """One SHA-256 over all frames of a film or segment, in hex: two films with the same one show the same."""
    return hashlib.sha256("\n".join(frame_hashes(path)).encode()).hexdigest()


def _open(path: Path) -> av.container.InputContainer:
    try:
        return av.open(locate(path), options=FILM_GUARDS)
    except (av.FFmpegError, OSError) as error:
        raise MediaError([str(path)], 0, f"{path} cannot be read: {error}") from error


def _check_packets(
    path: Path,
    media: av.container.InputContainer,
    video: av.video.stream.VideoStream,
    frames: int,
    fps: tuple[int, int],
) -> None:
    assert video.time_base is not None
    ticks = 1 / Fraction(*fps) / video.time_base
    if ticks.denominator != 1:
        _refuse(path, f"its clock of {video.time_base} s cannot tell frames at {fps[0]}/{fps[1]} exactly")
    count, last = 0, None
    for packet in media.demux(video):
        if not packet.size:
            continue
        if count == 0 and not packet.is_keyframe:
            _refuse(path, "its first frame is no key frame")
        if packet.pts != count * ticks:
            _refuse(path, f"frame {count} is at tick {packet.pts} where {count * ticks} is right")
        if packet.dts is None or (last is not None and packet.dts <= last):
            _refuse(path, f"its decoding times do not rise at frame {count}")
        last = packet.dts
        count += 1
    if count != frames:
        _refuse(path, f"it holds {count} frames where {frames} were planned")


def _played_seconds(path: Path, sound: av.audio.stream.AudioStream) -> Fraction:
    """Length of the sound that a player lets hear, from the edit list."""
    assert sound.time_base is not None
    if sound.duration is None or sound.start_time not in (None, 0):
        _refuse(path, "its sound does not begin with its video")
    return sound.duration * sound.time_base


def _decode_up_to(path: Path, frame: int, fps: tuple[int, int]) -> None:
    """Decode from the key frame before `frame - 1` up to and with `frame`, without hiding any damage."""
    with _open(path) as media:
        video = media.streams.video[0]
        assert video.time_base is not None
        ticks = int(1 / Fraction(*fps) / video.time_base)
        video.codec_context.options = {"err_detect": "explode"}
        media.seek(max(0, frame - 1) * ticks, stream=video)
        expected = None
        try:
            for picture in media.decode(video):
                if expected not in (None, picture.pts) or picture.is_corrupt:
                    _refuse(path, f"it does not decode cleanly at frame {(expected or 0) // ticks}")
                assert picture.pts is not None
                expected = picture.pts + ticks
                if picture.pts >= frame * ticks:
                    return
        except av.FFmpegError as error:
            raise MediaError([str(path)], 0, f"{path} does not decode near frame {frame}: {error}") from error
    _refuse(path, f"it does not decode up to frame {frame}")


def _refuse(path: Path, what: str) -> Never:
    raise MediaError([str(path)], 0, f"{path} is not the film that was planned: {what}")
