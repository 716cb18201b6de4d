"""The film is its segments and its sound: no frame more or less, and every sample where it was."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from farm.errors import InputError, MediaError
from farm.media.assemble import assemble
from farm.media.decode import decode_driving
from farm.media.profile import EncoderProfile
from farm.media.verify import FilmFacts, frame_hashes, sha256_of_frames, verify_film, verify_segment

from .conftest import MakeMedia, MakeSegment, WriteWav, moving_frames, quick_profile


def film_frames(samples: int, rate: int, fps: tuple[int, int]) -> int:
    return math.ceil(Fraction(samples, rate) * Fraction(*fps))


def join(
    segments: Sequence[Path], sound: Path, film: Path, frames: int, profile: EncoderProfile | None = None
) -> FilmFacts:
    """Assemble and verify in full."""
    profile = profile or quick_profile()
    assemble(segments, sound, film, frames=frames, profile=profile)
    joins = [0]
    for segment in segments:
        with av.open(segment) as media:
            joins.append(joins[-1] + sum(1 for packet in media.demux(video=0) if packet.size))
    return verify_film(film, frames=frames, fps=profile.fps, decode_at=joins[1:-1] if len(joins) < 60 else None)


def cut(frames: int, pieces: int) -> list[int]:
    """`frames` in `pieces` uneven parts, the first and last of one frame where there is room."""
    edges = sorted(random.Random(frames).sample(range(1, frames), pieces - 1)) if pieces > 1 else []
    return [stop - start for start, stop in zip([0, *edges], [*edges, frames], strict=True)]


def render(make_segment: MakeSegment, counts: Sequence[int], profile: EncoderProfile) -> list[Path]:
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]]).tolist()
    return [make_segment(count, first, profile) for first, count in zip(firsts, counts, strict=True)]


@pytest.mark.parametrize(
    ("fps", "rate", "samples"),
    [
        ((25, 1), 48_000, 1),
        ((25, 1), 16_000, 320),  # 20 ms, half a frame
        ((25, 1), 44_100, 44_100),
        ((25, 1), 44_100, 44_101),  # one sample more is one frame more
        ((24, 1), 22_050, 33_333),
        ((30, 1), 8_000, 12_345),
        ((30_000, 1_001), 48_000, 96_096),  # sixty frames to the sample
        ((30_000, 1_001), 48_000, 96_097),
        ((30_000, 1_001), 192_000, 250_001),
        ((60, 1), 96_000, 100_003),
    ],
)
def test_a_film_has_as_many_frames_as_its_sound_needs(
    make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path, fps: tuple[int, int], rate: int, samples: int
):
    sound = write_wav("a.wav", 0.3 * np.sin(np.arange(samples) / 10), rate)
    facts = decode_driving(sound, tmp_path / "a.f32")
    frames = film_frames(facts.native_samples, facts.native_rate, fps)
    profile = quick_profile(fps)

    film = join([make_segment(frames, profile=profile)], sound, tmp_path / "film.tmp", frames, profile)

    assert film.frames == frames == film_frames(samples, rate, fps)
    assert 0 <= film.video_seconds - facts.seconds < float(1 / Fraction(*fps))
    # The sound ends with the last frame; ffmpeg 5 rounds an MP4's edit list to milliseconds.
    assert abs(film.audio_seconds - film.video_seconds) <= 0.001


@pytest.mark.parametrize("name", ["a.mp3", "a.m4a", "a.flac", "a.opus", "late.mp4"])
@pytest.mark.parametrize("channels", ["1", "2", "6"])
def test_any_sound_fits_its_film(
    make_media: MakeMedia, make_segment: MakeSegment, tmp_path: Path, name: str, channels: str
):
    if name == "a.mp3" and channels == "6":
        pytest.skip("an MP3 has at most two channels")
    sine = ("-f", "lavfi", "-i", "sine=duration=1.37:sample_rate=48000", "-ac", channels)
    video = ("-f", "lavfi", "-i", "testsrc=size=64x64:duration=3", "-itsoffset", "0.7") if name == "late.mp4" else ()
    sound = make_media(name, *video, *sine)
    facts = decode_driving(sound, tmp_path / "a.f32")
    frames = film_frames(facts.native_samples, facts.native_rate, (25, 1))
    film = join([make_segment(frames)], sound, tmp_path / "film.tmp", frames)
    assert film.channels == min(int(channels), 2)
    assert film.sample_rate == 48_000
    heard = np.abs(film_sound(tmp_path / "film.tmp"))
    assert heard[: film.sample_rate // 10].max() > 0.05  # the sound begins with the film


@pytest.mark.parametrize(
    ("pieces", "fps"), [(1, (25, 1)), (2, (25, 1)), (40, (25, 1)), (2, (30_000, 1_001)), (12, (30_000, 1_001))]
)
def test_joined_frames_are_the_segments_frames(
    make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path, pieces: int, fps: tuple[int, int]
):
    profile = quick_profile(fps)
    frames = 331
    sound = write_wav("a.wav", np.zeros(int(frames * 16_000 / Fraction(*fps))), 16_000)
    segments = render(make_segment, cut(frames, pieces), profile)

    join(segments, sound, tmp_path / "film.tmp", frames, profile)

    apart = [value for segment in segments for value in frame_hashes(segment)]
    assert len(apart) == frames
    assert frame_hashes(tmp_path / "film.tmp") == apart


def film_sound(film: Path) -> np.ndarray:
    """What a player plays: the first channel of the film's sound, priming removed."""
    pieces = []
    with av.open(film) as media:
        for frame in media.decode(audio=0):
            piece = frame.to_ndarray()[0]
            pieces.append(piece[max(0, -frame.pts) :])
    return np.concatenate(pieces)


def test_after_ten_minutes_in_twenty_segments_every_click_is_where_it_was(
    make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path
):
    rate, seconds = 48_000, 600
    sound = np.zeros(rate * seconds, np.float32)
    clicks = np.arange(rate // 2, len(sound), rate * 7)
    for click in clicks:
        sound[click : click + 3] = 0.8
    profile = replace(quick_profile(), width=16, height=16)
    segments = render(make_segment, cut(25 * seconds, 20), profile)

    film = join(segments, write_wav("clicks.wav", sound, rate), tmp_path / "film.tmp", 25 * seconds, profile)

    assert film.audio_seconds == seconds
    heard = film_sound(tmp_path / "film.tmp")
    found = [click - 480 + int(np.abs(heard[click - 480 : click + 480]).argmax()) for click in clicks]
    assert np.abs(np.array(found) - clicks).max() <= 2  # samples: 0.04 ms


@pytest.mark.slow
def test_a_thousand_segments_join_without_losing_a_frame(
    make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path
):
    kinds = [make_segment(count, 10 * count) for count in (1, 2, 3, 7)]
    hashes = [frame_hashes(kind) for kind in kinds]
    order = random.Random(5).choices(range(4), k=1000)
    expected = [value for kind in order for value in hashes[kind]]
    sound = write_wav("a.wav", np.zeros(len(expected) * 640), 16_000)

    join([kinds[kind] for kind in order], sound, tmp_path / "film.tmp", len(expected))

    assert frame_hashes(tmp_path / "film.tmp") == expected


def test_names_of_files_have_no_meaning(make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path):
    folder = tmp_path / '-it\'s a\n"dir" 文件夹'
    folder.mkdir()
    segment = make_segment(10).rename(folder / "-s'1\n%d.mp4")
    sound = write_wav("a.wav", np.zeros(6400), 16_000).rename(folder / "-a 'b'\n.wav")
    join([segment], sound, folder / "-o|'\n.tmp", 10)


def test_titles_are_kept_and_the_index_stands_in_front(make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path):
    film = tmp_path / "film.tmp"
    tags = {"title": "Größe = 你好; -y 'x'", "comment": "segment 1\nsegment 2"}
    sound = write_wav("a.wav", np.zeros(6400), 16_000)
    assemble([make_segment(10)], sound, film, frames=10, profile=quick_profile(), metadata=tags)
    with av.open(film) as media:
        assert tags.items() <= media.metadata.items()
    data = film.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_the_same_segments_and_sound_give_the_same_film(make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path):
    sound = write_wav("a.wav", 0.2 * np.sin(np.arange(6400) / 9), 16_000)
    for name in ("one.tmp", "two.tmp"):
        assemble([make_segment(10)], sound, tmp_path / name, frames=10, profile=quick_profile())
    assert (tmp_path / "one.tmp").read_bytes() == (tmp_path / "two.tmp").read_bytes()


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("encoder header", {"preset": "fast"}),
        ("size", {"width": 32, "height": 32}),
        ("time base", {"video_track_timescale": 25_600}),
    ],
)
def test_a_segment_of_another_profile_is_refused_by_name(
    make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path, what: str, change: dict[str, object]
):
    good = make_segment(5)
    other = make_segment(5, 5, replace(quick_profile(), **change))
    sound = write_wav("a.wav", np.zeros(6400), 16_000)
    with pytest.raises(MediaError, match=rf"{other.name} has another {what}"):
        assemble([good, other], sound, tmp_path / "film.tmp", frames=10, profile=quick_profile())
    assert not (tmp_path / "film.tmp").exists()


@pytest.mark.parametrize("harm", ["missing", "text", "cut"])
def test_a_broken_segment_is_refused(make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path, harm: str):
    good, bad = make_segment(5), make_segment(60, 5, replace(quick_profile(), gop=10))
    if harm == "missing":
        bad.unlink()
    elif harm == "text":
        bad.write_text("no segment")
    else:
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    sound = write_wav("a.wav", np.zeros(65 * 640), 16_000)
    with pytest.raises(MediaError, match=r"segment"):
        assemble([good, bad], sound, tmp_path / "film.tmp", frames=65, profile=quick_profile())


@pytest.mark.parametrize("seconds", [0.2, 0.9])
def test_a_sound_that_does_not_belong_to_the_frames_is_refused(
    make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path, seconds: float
):
    sound = write_wav("a.wav", np.zeros(int(16_000 * seconds)), 16_000)
    with pytest.raises(MediaError, match=rf"has {seconds:.3f} s, the film 0.400 s"):
        assemble([make_segment(10)], sound, tmp_path / "film.tmp", frames=10, profile=quick_profile())
    assert not (tmp_path / "film.tmp").exists()


def test_a_sound_that_is_gone_is_refused(make_segment: MakeSegment, tmp_path: Path):
    with pytest.raises((MediaError, InputError)):
        assemble([make_segment(10)], tmp_path / "no.wav", tmp_path / "film.tmp", frames=10, profile=quick_profile())


def test_sound_with_samples_that_are_no_numbers_is_encoded(
    make_media: MakeMedia, make_segment: MakeSegment, tmp_path: Path
):
    sound = np.full(6400, 0.1, ">f4")
    sound[1000:1100] = np.nan
    source = tmp_path / "nan.au"
    source.write_bytes(b".snd" + b"".join(n.to_bytes(4, "big") for n in (24, 25_600, 6, 16_000, 1)) + sound.tobytes())
    join([make_segment(10)], source, tmp_path / "film.tmp", 10)
    assert np.isfinite(film_sound(tmp_path / "film.tmp")).all()


@pytest.fixture
def film(make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path) -> Path:
    """60 frames in segments of 10, GOPs of 10, with 2.4 s of sound."""
    profile = replace(quick_profile(), gop=10)
    segments = [make_segment(10, first, profile) for first in range(0, 60, 10)]
    path = tmp_path / "film.mp4"
    assemble(segments, write_wav("a.wav", np.zeros(38_400), 16_000), path, frames=60, profile=profile)
    return path


def test_verification_accepts_a_film_and_tells_its_facts(film: Path):
    facts = verify_film(film, frames=60, fps=(25, 1), audio_seconds=2.4, decode_at=[10, 20, 30, 40, 50])
    assert (facts.frames, facts.width, facts.height, facts.channels) == (60, 64, 64, 1)
    assert facts.video_seconds == 2.4
    assert facts.size_bytes == film.stat().st_size


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"frames": 59}, "60 frames where 59"),
        ({"frames": 61}, "60 frames where 61"),
        ({"fps": (24, 1)}, "cannot tell frames|is at tick"),
        ({"audio_seconds": 2.5}, r"sound has 2.4000 s and the sound that was given 2.5000"),
    ],
)
def test_verification_refuses_what_was_not_planned(film: Path, wanted: dict[str, object], sentence: str):
    planned = {"frames": 60, "fps": (25, 1), "audio_seconds": 2.4} | wanted
    with pytest.raises(MediaError, match=sentence):
        verify_film(film, **planned)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("-an", "-c", "copy"), "one video and one sound"),
        (("-c:v", "copy", "-af", "atrim=end=1.2"), "its sound has 1.2"),
        (("-c", "copy", "-ss", "0.4"), "frames where 60|is at tick|does not begin"),
        (("-c:v", "libx264", "-bf", "2", "-sc_threshold", "0", "-x264-params", "b-adapt=0"), "is at tick|do not rise"),
    ],
)
def test_verification_refuses_a_film_that_was_tampered_with(
    make_media: MakeMedia, film: Path, options: tuple[str, ...], sentence: str
):
    other = make_media("other.mp4", "-i", str(film), *options)
    with pytest.raises(MediaError, match=sentence):
        verify_film(other, frames=60, fps=(25, 1))


def test_verification_in_depth_sees_a_damaged_join(film: Path):
    with av.open(film) as media:
        place = [(packet.pos, packet.size) for packet in media.demux(video=0)][30]
    data = bytearray(film.read_bytes())
    data[place[0] + 8 : place[0] + place[1]] = bytes([255]) * (place[1] - 8)
    film.write_bytes(data)
    verify_film(film, frames=60, fps=(25, 1))  # the packets are all there
    with pytest.raises(MediaError, match="decode"):
        verify_film(film, frames=60, fps=(25, 1), decode_at=[10, 30])


def test_verification_of_a_segment_refuses_sound_and_wrong_counts(make_segment: MakeSegment, film: Path):
    with pytest.raises(MediaError, match="video and nothing else"):
        verify_segment(film, frames=60, fps=(25, 1))
    with pytest.raises(MediaError, match="5 frames where 6"):
        verify_segment(make_segment(5), frames=6, fps=(25, 1))
    with pytest.raises(MediaError, match="cannot be read"):
        verify_segment(film.with_name("none"), frames=6, fps=(25, 1))


def test_one_other_frame_is_another_film(make_segment: MakeSegment):
    whole = sha256_of_frames(make_segment(12, name="a.mp4"))
    assert sha256_of_frames(make_segment(12, name="b.mp4")) == whole
    assert sha256_of_frames(make_segment(12, first=1, name="c.mp4")) != whole
    assert len(moving_frames(0, 2)) == 2 * 64 * 96


@pytest.mark.parametrize("fps", [(24, 1), (25, 1), (30, 1), (30_000, 1_001)])
def test_a_film_takes_the_first_frames_of_each_segment_and_no_others(
    make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path, fps: tuple[int, int]
):
    profile = quick_profile(fps)
    taken, extra = [40, 1, 73, 50, 12], [1, 1, 0, 1, 0]
    firsts = np.concatenate([[0], np.cumsum(taken)[:-1]]).tolist()
    # What is left out is unlike what follows: were it taken, every frame behind it would be another one.
    segments = [make_segment(n + more, first, profile) for n, more, first in zip(taken, extra, firsts, strict=True)]
    frames = sum(taken)
    rate = 24_000
    sound = write_wav("a.wav", 0.1 * np.ones(math.floor(frames / Fraction(*fps) * rate)), rate)
    film = tmp_path / "film.tmp"

    assemble(segments, sound, film, frames=frames, profile=profile, counts=taken)

    verify_film(film, frames=frames, fps=fps, decode_at=None)
    wanted = [h for path, n in zip(segments, taken, strict=True) for h in list(frame_hashes(path))[:n]]
    assert list(frame_hashes(film)) == wanted


def test_more_frames_than_a_segment_has_are_refused_by_name(
    make_segment: MakeSegment, write_wav: WriteWav, tmp_path: Path
):
    segment = make_segment(10)
    sound = write_wav("a.wav", 0.1 * np.ones(7_040), 16_000)
    with pytest.raises(MediaError, match=rf"segment {segment} has 10 frames where the film needs 11 of it"):
        assemble([segment], sound, tmp_path / "film.tmp", frames=11, profile=quick_profile(), counts=[11])
