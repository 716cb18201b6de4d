"""One segment: what comes out is what went in, whatever happens to the encoder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from farm.errors import MediaError
from farm.media.encode import SegmentEncoder, segment_argv, why_not_encoding
from farm.media.probe import probe_segment
from farm.media.profile import EncoderProfile, default_profile
from farm.media.verify import frame_hashes, verify_segment

from .conftest import MakeSegment, moving_frames, quick_profile, write_all

FPS = [(24, 1), (25, 1), (30, 1), (60, 1), (30_000, 1_001), (24_000, 1_001), (16, 1)]


@pytest.mark.parametrize("fps", FPS)
@pytest.mark.parametrize("frames", [1, 2, 61])
def test_a_segment_holds_its_frames_at_exact_times(make_segment: MakeSegment, fps: tuple[int, int], frames: int):
    verify_segment(make_segment(frames, profile=quick_profile(fps)), frames=frames, fps=fps)


def test_a_renderer_in_another_process_writes_into_the_encoder(tmp_path: Path):
    with SegmentEncoder(quick_profile(), "yuv420p", tmp_path / "s.tmp") as encoder:
        code = f"import os\nfor n in range(30): os.write({encoder.write_fd}, bytes([n * 8]) * {64 * 96})"
        with subprocess.Popen([sys.executable, "-c", code], pass_fds=[encoder.write_fd]) as renderer:
            encoder.close_write_end()
            segment = encoder.finish(120)
        assert renderer.returncode == 0
    assert segment.frames == 30 == encoder.frames_encoded
    assert segment.path == tmp_path / "s.tmp"
    assert segment.size_bytes == segment.path.stat().st_size
    assert len(set(frame_hashes(segment.path))) == 30


def test_the_same_frames_give_the_same_bytes(make_segment: MakeSegment):
    profile = default_profile(64, 64, (25, 1))
    first = make_segment(60, profile=profile, name="a.mp4").read_bytes()
    assert make_segment(60, profile=profile, name="b.mp4").read_bytes() == first


def test_every_gop_is_closed_and_as_long_as_the_profile_says(make_segment: MakeSegment):
    path = make_segment(70, profile=replace(quick_profile(), gop=20))
    with av.open(path) as media:
        keys = [index for index, packet in enumerate(media.demux(video=0)) if packet.is_keyframe]
    assert keys == [0, 20, 40, 60]


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "skin": (224, 172, 105), "grey": (128,) * 3}
KR, KB = 0.2126, 0.0722  # ITU-R BT.709


def bt709(red: int, green: int, blue: int) -> tuple[float, float, float]:
    luma = KR * red + (1 - KR - KB) * green + KB * blue
    return (
        16 + 219 * luma / 255,
        128 + 224 * (blue - luma) / 255 / (2 * (1 - KB)),
        128 + 224 * (red - luma) / 255 / (2 * (1 - KR)),
    )


def encode_one_colour(profile: EncoderProfile, pixel_format: str, frame: bytes, target: Path) -> av.VideoFrame:
    with SegmentEncoder(profile, pixel_format, target) as encoder:  # type: ignore[arg-type]
        write_all(encoder.write_fd, frame * 3)
        encoder.finish(120)
    with av.open(target) as media:
        return next(media.decode(video=0))


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("pixel_format", ["rgb24", "bgr24", "yuv420p"])
def test_colours_are_bt709_and_say_so(tmp_path: Path, name: str, pixel_format: str):
    profile = replace(quick_profile(), crf=1)
    expected = bt709(*COLOURS[name])
    if pixel_format == "yuv420p":
        luma, cb, cr = (bytes([round(value)]) for value in expected)
        frame = luma * 64 * 64 + cb * 32 * 32 + cr * 32 * 32
    else:
        frame = bytes(COLOURS[name][:: 1 if pixel_format == "rgb24" else -1]) * 64 * 64
    picture = encode_one_colour(profile, pixel_format, frame, tmp_path / "s.mp4")
    planes = picture.to_ndarray(format="yuv420p")
    found = planes[:64].mean(), planes[64:80].mean(), planes[80:].mean()
    assert np.abs(np.subtract(found, expected)).max() < 1.5
    context = (picture.colorspace, picture.color_range, picture.color_primaries, picture.color_trc)
    assert [int(value) for value in context] == [1, 1, 1, 1]  # bt709, limited, bt709, bt709


def test_another_matrix_of_an_engine_is_tagged_as_it_is(tmp_path: Path):
    profile = replace(quick_profile(), matrix="smpte170m", primaries="smpte170m", transfer="smpte170m")
    picture = encode_one_colour(profile, "yuv420p", bytes([81]) * 4096 + bytes([90]) * 1024 + bytes([240]) * 1024,
                                tmp_path / "s.mp4")  # fmt: skip
    assert [int(value) for value in (picture.colorspace, picture.color_primaries)] == [6, 6]


def test_a_segment_cut_off_by_sigkill_can_still_be_read(tmp_path: Path):
    target = tmp_path / "s.tmp"
    with SegmentEncoder(quick_profile(), "yuv420p", target) as encoder:
        write_all(encoder.write_fd, moving_frames(0, 400))
        while encoder.frames_encoded < 150:
            write_all(encoder.write_fd, moving_frames(0, 10))
            time.sleep(0.02)
        os.kill(encoder.pid, signal.SIGKILL)
        while encoder.running:
            time.sleep(0.01)

        assert probe_segment(target).frames >= 100
        assert len(frame_hashes(target)) == probe_segment(target).frames

        with pytest.raises(MediaError, match="ended with -9"):
            encoder.finish(10)
    assert not target.exists()


def test_an_encoder_that_waits_too_long_is_killed_with_its_file(tmp_path: Path):
    encoder = SegmentEncoder(quick_profile(), "yuv420p", tmp_path / "s.tmp")
    held = os.dup(encoder.write_fd)  # a renderer that hangs with the pipe open
    write_all(encoder.write_fd, moving_frames(0, 3))
    with pytest.raises(MediaError, match="ran out of time"):
        encoder.finish(0.3)
    os.close(held)
    assert not encoder.running
    assert list(tmp_path.iterdir()) == []


def test_abort_kills_and_deletes_and_may_be_repeated(tmp_path: Path):
    encoder = SegmentEncoder(quick_profile(), "yuv420p", tmp_path / "s.tmp")
    write_all(encoder.write_fd, moving_frames(0, 3))
    encoder.abort()
    encoder.abort()
    assert not encoder.running
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_without_frames_is_an_error(tmp_path: Path):
    encoder = SegmentEncoder(quick_profile(), "yuv420p", tmp_path / "s.tmp")
    with pytest.raises(MediaError):
        encoder.finish(120)
    assert list(tmp_path.iterdir()) == []


def test_half_a_frame_is_not_a_frame(tmp_path: Path):
    with SegmentEncoder(quick_profile(), "yuv420p", tmp_path / "s.tmp") as encoder:
        write_all(encoder.write_fd, moving_frames(0, 4)[: -64 * 48])
        try:
            assert encoder.finish(120).frames == 3
        except MediaError as error:  # newer ffmpeg calls it an error, which is as good
            assert "frame" in error.stderr or "packet" in error.stderr.lower() or error.code


def test_encoders_leave_no_descriptors(make_segment: MakeSegment):
    make_segment(2)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the listing itself holds one
    make_segment(2)
    make_segment(2)
    assert len(os.listdir("/proc/self/fd")) <= len(before)  # noqa: PTH208


def test_an_encoder_is_tried_and_says_itself_why_it_does_not_work():
    assert why_not_encoding("libx264") is None
    why = why_not_encoding("no_such_encoder")
    assert why is not None and "no_such_encoder" in why


def test_nvenc_understands_its_options_and_fails_for_want_of_a_card_alone():
    why = why_not_encoding("h264_nvenc", os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert why is not None and "\n" not in why
    assert not {"option", "undefined", "parse"} & set(why.lower().split()), why


def test_nvenc_is_told_quality_and_gops_in_its_own_words(tmp_path: Path):
    profile = replace(default_profile(64, 64, (25, 1), "h264_nvenc"), crf=0)
    argv = segment_argv(profile, "rgb24", tmp_path / "s.mp4", progress_fd=2)
    said = dict(pairwise(argv))
    wanted = {"-c:v": "h264_nvenc", "-preset": "p5", "-rc": "vbr", "-cq": "1", "-b:v": "0", "-bf": "0", "-g": "50"}
    assert {key: said.get(key) for key in wanted} == wanted
    assert said["-b_ref_mode"] == "disabled" and said["-pix_fmt"] == "yuv420p" and said["-colorspace"] == "bt709"
    assert not {"-crf", "-threads"} & set(argv)


@pytest.mark.parametrize("fps", FPS)
def test_a_profile_survives_json_and_tells_every_frame_exactly(fps: tuple[int, int]):
    profile = default_profile(512, 768, fps)
    assert EncoderProfile.from_json(profile.to_json()) == profile
    assert json.loads(profile.to_json())["codec"] == "libx264"
    assert (profile.video_track_timescale / Fraction(*fps)).denominator == 1
    assert profile.video_track_timescale >= 10_000


def test_every_field_changes_the_fingerprint():
    profile = default_profile(64, 64, (25, 1))
    others = [replace(profile, crf=19), replace(profile, preset="medium"), replace(profile, threads=1)]
    others.append(replace(profile, codec="h264_nvenc"))
    assert len({one.fingerprint() for one in (profile, *others)}) == 5


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="even"):
        default_profile(63, 64, (25, 1))
