"""Encode one segment from raw frames that arrive through a pipe, usually from another process.

A segment is video only, in fragmented MP4: after a SIGKILL every flushed GOP is still readable, the clock is exact at
every frame rate (MPEG-TS rounds to 1/90000 s), and a browser plays it as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ffmpeg

from farm.errors import MediaError
from farm.media.command import locate, pattern_input, raw_input, to_argv
from farm.media.probe import probe_segment
from farm.media.profile import SOFTWARE, EncoderProfile, default_profile
from farm.media.run import Child, enlarge_pipe, run

PixelFormat = Literal["rgb24", "bgr24", "yuv420p"]
FRAGMENTED = "+frag_keyframe+empty_moov+default_base_moof"
TRIAL_SIDE = 256  # pixels; more than the smallest picture that any card takes
TRIAL_SECONDS = 60.0  # a driver that nobody used since the machine started takes a while


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """A finished segment at its staging path; hashing and publishing it is the caller's."""

    path: Path
    frames: int
    size_bytes: int
    extradata_sha1: str


class SegmentEncoder:
    """A running encoder that reads frames from `write_fd`'s other end.

    Hand `write_fd` to the process that renders, then `close_write_end()` here; the segment ends when the last holder
    of the write end closes it.  Frames are uint8, packed, one after the other: height * width * 3 bytes for rgb24 and
    bgr24, height * width * 3 / 2 for yuv420p, which must already be in the profile's matrix and range.
    """

    def __init__(
        self,
        profile: EncoderProfile,
        pixel_format: PixelFormat,
        target: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the encoder.  `target` is a staging path, overwritten; its suffix does not matter.

        `environment`, the process's own unless given, says which cards the encoder sees.
        """
        self._target = target
        self._frames_encoded = 0
        read_end, self.write_fd = os.pipe()  # neither is inherited unless it is handed over
        progress_read, progress_write = os.pipe()
        self._progress_fd = progress_read
        enlarge_pipe(self.write_fd)
        argv = segment_argv(profile, pixel_format, target, progress_fd=progress_write)
        try:
            self._child = Child(
                argv,
                timeout_seconds=None,  # rendering sets the pace; `finish` sets the deadline
                stdin=read_end,
                pass_fds=(progress_write,),
                on_line={progress_read: self._note_progress},
                environment=environment,
            )
        except BaseException:
            os.close(progress_read)
            self._progress_fd = -1
            self.close_write_end()
            raise
        finally:
            os.close(read_end)
            os.close(progress_write)

    @property
    def frames_encoded(self) -> int:
        """Frames that the encoder has said it has written; lags behind by its own delay and half a second."""
        return self._frames_encoded

    @property
    def pid(self) -> int:
        """Process id of the encoder, which leads its own process group."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """False once the encoder has ended, well or not; writing then breaks the pipe."""
        return self._child.running

    def close_write_end(self) -> None:
        """Give up this process's write end; call it after the renderer has its own."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def finish(self, timeout_seconds: float) -> EncodedSegment:
        """Wait until everything written is encoded.

        Closes this process's write end first.  Raises MediaError when the encoder failed or is not done in time (it is
        killed and the staging file deleted), NotEnoughRoom when the disk is full.
        """
        self.close_write_end()
        self._child.set_timeout(timeout_seconds)
        try:
            self._child.finish()
            found = probe_segment(self._target)
        except BaseException:
            self.abort()
            raise
        self._close_progress()
        if found.frames == 0:
            self.abort()
            raise MediaError(self._child.argv, 0, "no frame arrived at the encoder")
        return EncodedSegment(self._target, found.frames, self._target.stat().st_size, found.extradata_sha1)

    def abort(self) -> None:
        """Kill the encoder and delete its staging file.  May be called at any time, and twice."""
        self.close_write_end()
        self._child.kill()
        self._close_progress()
        self._target.unlink(missing_ok=True)

    def __enter__(self) -> SegmentEncoder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None or self._child.running:
            self.abort()

    def _note_progress(self, line: str) -> None:
        key, _, value = line.partition("=")
        if key == "frame" and value.strip().isdigit():
            self._frames_encoded = int(value)

    def _close_progress(self) -> None:
        if self._progress_fd >= 0:
            os.close(self._progress_fd)
            self._progress_fd = -1


def segment_argv(profile: EncoderProfile, pixel_format: PixelFormat, target: Path, *, progress_fd: int) -> list[str]:
    """ffmpeg's argv to encode frames from stdin to `target`."""
    frames = raw_input(
        0,
        f="rawvideo",
        pixel_format=pixel_format,
        s=f"{profile.width}x{profile.height}",
        framerate=f"{profile.fps[0]}/{profile.fps[1]}",
    )
    options = _encoder_options(profile) | {
        "vf": _to_profile_colour(profile, pixel_format),
        "f": "mp4",
        "movflags": FRAGMENTED,
        "flush_packets": 1,  # a finished GOP is in the file, not in ffmpeg's buffer
        "video_track_timescale": profile.video_track_timescale,
        "fflags": "+bitexact",
        "progress": f"pipe:{progress_fd}",
    }
    return to_argv(ffmpeg.output(frames, locate(target), **options))


def _to_profile_colour(profile: EncoderProfile, pixel_format: PixelFormat) -> str:
    tags = (
        f"setparams=range={profile.range}:colorspace={profile.matrix}"
        f":color_primaries={profile.primaries}:color_trc={profile.transfer}"
    )
    if pixel_format == "yuv420p":
        return tags
    convert = (
        f"scale=out_color_matrix={profile.matrix}:out_range={profile.range}"
        f":flags=bicubic+accurate_rnd+full_chroma_int,format={profile.pix_fmt}"
    )
    return f"{convert},{tags}"


def _encoder_options(profile: EncoderProfile) -> dict[str, Any]:
    options: dict[str, Any] = {
        "c:v": profile.codec,
        "preset": profile.preset,
        "pix_fmt": profile.pix_fmt,
        "g": profile.gop,
        "bf": 0,
        "flags:v": "+cgop",
        "colorspace": profile.matrix,
        "color_primaries": profile.primaries,
        "color_trc": profile.transfer,
        "color_range": profile.range,
    }
    if profile.codec == SOFTWARE:
        return options | {"crf": profile.crf, "threads": profile.threads}
    # What the driver or another version of ffmpeg might choose otherwise is named.  Every GOP of NVENC begins with an
    # IDR frame; without looking ahead it puts no key frame anywhere else.
    return options | {
        "profile:v": "high",
        "tune": "hq",
        "rc": "vbr",
        "cq": max(1, profile.crf),  # 0 would mean that the card chooses
        "b:v": 0,  # otherwise 2 Mbit/s bound the quality
        "multipass": "disabled",
        "rc-lookahead": 0,
        "b_ref_mode": "disabled",
    }


def why_not_encoding(codec: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Why `codec` does not encode ten frames here, in the encoder's own words; None when it does.

    Being compiled in says nothing: an H100 has no encoder unit.  `environment` says which cards the encoder sees.
    """
    options = _encoder_options(default_profile(TRIAL_SIDE, TRIAL_SIDE, (25, 1), codec)) | {"frames:v": 10}
    pattern = pattern_input(f"testsrc=size={TRIAL_SIDE}x{TRIAL_SIDE}:rate=25")
    argv = to_argv(ffmpeg.output(pattern, "pipe:1", f="null", **options))
    try:
        run(argv, timeout_seconds=TRIAL_SECONDS, environment=environment)
    except MediaError as error:
        return _cause(error, codec)
    except OSError as error:
        return str(error)
    return None


def _cause(error: MediaError, codec: str) -> str:
    """What the encoder itself said first, else ffmpeg; it goes on with what that meant for everything around it."""
    lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(f"[{codec} @")] or lines
    return re.sub(r"^\[[^]]*\] ", "", told[0]).rstrip(".") if told else str(error)
