"""One decode gives what drives the engine, and a count of samples to plan by."""

from __future__ import annotations

import math
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from farm.errors import InputError, MediaError
from farm.media.assemble import sound_argv
from farm.media.decode import decode_driving, decode_native, to_driving
from farm.media.run import run
from farm.media.sound import SoundMeter
from workers.host.audio import DrivingFile

from .conftest import MakeMedia, WriteWav

RATES = [8_000, 22_050, 44_100, 48_000, 192_000]


def tone(seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("samples", [1, 2, 441, 12_345])
def test_samples_are_counted_exactly(write_wav: WriteWav, tmp_path: Path, rate: int, samples: int):
    source = write_wav("a.wav", tone(samples / rate, rate), rate)
    facts = decode_driving(source, tmp_path / "a.f32")
    assert (facts.native_rate, facts.native_samples) == (rate, samples)
    assert facts.driving_samples == math.ceil(samples * 16_000 / rate)
    assert (tmp_path / "a.f32").stat().st_size == 4 * facts.driving_samples


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1", "2.1"])
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_any_channels_become_one(make_media: MakeMedia, tmp_path: Path, layout: str, name: str):
    source = make_media(
        name, "-f", "lavfi", "-i", "sine=duration=0.5:sample_rate=44100", "-af", f"aformat=channel_layouts={layout}"
    )
    facts = decode_driving(source, tmp_path / "a.f32")
    assert (facts.native_rate, facts.native_samples, facts.driving_samples) == (44_100, 22_050, 8_000)
    assert facts.peak > 0.01


@pytest.mark.parametrize(
    ("name", "options", "least", "most"),
    [
        ("a.wav", (), 0, 0),
        ("a.flac", (), 0, 0),
        ("a.mp3", (), 0, 0),
        ("a.opus", ("-ar", "48000"), 0, 0),
        ("a.m4a", (), 0, 1024),  # the last AAC frame's padding stays, or not, by ffmpeg's version
        ("a.ogg", ("-c:a", "libvorbis"), -128, 0),  # ffmpeg drops the first short block
        ("a.mka", ("-c:a", "aac"), 0, 2048),
        ("a.ts", ("-c:a", "aac"), 0, 2048),  # a transport stream has no way to tell the priming
    ],
)
def test_codecs_keep_the_length(
    make_media: MakeMedia, tmp_path: Path, name: str, options: tuple[str, ...], least: int, most: int
):
    source = make_media(name, "-f", "lavfi", "-i", "sine=duration=1:sample_rate=44100", *options)
    facts = decode_driving(source, tmp_path / "a.f32")
    assert least <= facts.native_samples - facts.native_rate <= most
    assert facts.notes == ()


def test_the_sound_is_where_it_was(write_wav: WriteWav, make_media: MakeMedia, tmp_path: Path):
    rate = 44_100
    sound = np.zeros(rate * 2)
    sound[rate : rate + 40] = 0.9
    wav = write_wav("click.wav", sound, rate)
    for name in ("click.mp3", "click.m4a", "click.flac"):
        decode_driving(make_media(name, "-i", str(wav)), tmp_path / "a.f32")
        heard = np.fromfile(tmp_path / "a.f32", "<f4")
        assert abs(int(np.abs(heard).argmax()) - 16_000) < 16, name  # within a millisecond


@pytest.mark.parametrize("delay", ["1.0", "-0.5"])
def test_sound_that_starts_elsewhere_than_its_video_starts_at_its_first_sample(
    make_media: MakeMedia, tmp_path: Path, delay: str
):
    source = make_media(
        "late.mp4",
        *("-f", "lavfi", "-i", "testsrc=size=64x64:rate=25:duration=4"),
        *("-itsoffset", delay, "-f", "lavfi", "-i", "sine=duration=2:sample_rate=48000"),
        *("-map", "0", "-map", "1", "-c:a", "aac"),
    )
    facts = decode_driving(source, tmp_path / "a.f32")
    heard = np.fromfile(tmp_path / "a.f32", "<f4")
    assert 1.4 < facts.seconds < 2.1
    assert np.abs(heard[:1600]).max() > 0.05


def film_samples(source: Path) -> tuple[int, int]:
    """Rate and samples of the sound as the film's encoder gets it."""
    stream = run(sound_argv(source), timeout_seconds=60)
    _, offset, _, _, rate, channels = struct.unpack_from(">4s5I", stream)
    assert channels in (1, 2)
    return rate, (len(stream) - offset) // 4 // channels


def test_the_film_gets_as_many_samples_as_were_counted_when_the_rate_changes_inside(
    make_media: MakeMedia, tmp_path: Path
):
    pieces = [
        make_media(
            f"{rate}-{channels}.mp3", "-f", "lavfi", "-i", f"sine=duration=1:sample_rate={rate}", "-ac", channels
        )
        for rate, channels in ((44_100, "1"), (22_050, "2"), (48_000, "1"))
    ]
    source = tmp_path / "mixed.mp3"
    source.write_bytes(b"".join(piece.read_bytes() for piece in pieces))

    facts = decode_driving(source, tmp_path / "a.f32")

    assert film_samples(source) == (facts.native_rate, facts.native_samples)
    assert facts.seconds == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("name", ["a.mp3", "a.m4a", "a.ogg", "a.mka"])
def test_the_film_gets_as_many_samples_as_were_counted(make_media: MakeMedia, tmp_path: Path, name: str):
    source = make_media(name, "-f", "lavfi", "-i", "sine=duration=1.2345:sample_rate=48000", "-ac", "2")
    facts = decode_driving(source, tmp_path / "a.f32")
    assert film_samples(source) == (facts.native_rate, facts.native_samples)


def test_a_declared_rate_that_is_not_true_is_not_believed(write_wav: WriteWav, tmp_path: Path):
    source = write_wav("a.wav", tone(1, 16_000), 16_000)
    head = bytearray(source.read_bytes())
    struct.pack_into("<I", head, 24, 12_345)
    source.write_bytes(head)
    facts = decode_driving(source, tmp_path / "a.f32")
    assert (facts.native_rate, facts.native_samples) == (12_345, 16_000)


def damaged(path: Path, start: float, stop: float) -> Path:
    data = bytearray(path.read_bytes())
    first, last = round(len(data) * start), round(len(data) * stop)
    data[first:last] = np.random.default_rng(7).bytes(last - first)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.mp3", "a.flac"])
def test_a_file_damaged_in_the_middle_is_decoded_around_with_a_note(make_media: MakeMedia, tmp_path: Path, name: str):
    source = make_media(name, "-f", "lavfi", "-i", "sine=duration=4:sample_rate=44100")
    facts = decode_driving(damaged(source, 0.5, 0.6), tmp_path / "a.f32")
    assert 2 < facts.seconds < 5
    assert any("damaged" in note for note in facts.notes)
    assert film_samples(source) == (facts.native_rate, facts.native_samples)


def test_a_file_that_ends_early_says_so(make_media: MakeMedia, tmp_path: Path):
    source = make_media("a.wav", "-f", "lavfi", "-i", "sine=duration=10:sample_rate=44100")
    source.write_bytes(source.read_bytes()[: 44_100 * 2 * 4])
    facts = decode_driving(source, tmp_path / "a.f32")
    assert facts.seconds == pytest.approx(4, abs=0.01)


def test_a_file_damaged_all_over_is_refused_and_leaves_nothing(make_media: MakeMedia, tmp_path: Path):
    source = make_media("a.flac", "-f", "lavfi", "-i", "sine=duration=4:sample_rate=44100")
    head = source.read_bytes()[:42]  # the stream's description without any sound
    source.write_bytes(head)
    with pytest.raises(InputError, match=re.escape(str(source))):
        decode_driving(source, tmp_path / "a.f32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.flac"]


def test_samples_that_are_no_numbers_become_silence_with_a_note(tmp_path: Path):
    sound = tone(1, 16_000).astype("<f4")
    sound[100:110] = np.nan
    sound[200] = np.inf
    data = sound.tobytes()
    form = struct.pack("<HHIIHH", 3, 1, 16_000, 64_000, 4, 32)
    source = tmp_path / "nan.wav"
    source.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + form
        + b"data" + struct.pack("<I", len(data)) + data
    )  # fmt: skip
    facts = decode_driving(source, tmp_path / "a.f32")
    heard = np.fromfile(tmp_path / "a.f32", "<f4")
    assert facts.has_nan
    assert facts.notes == ("11 samples were no numbers and became silence.",)
    assert np.isfinite(heard).all()
    assert not heard[100:110].any()
    assert facts.peak == pytest.approx(0.5, abs=0.01)


def test_pauses_are_found_to_the_hundredth_of_a_second(write_wav: WriteWav, tmp_path: Path):
    rate = 16_000
    noise = np.random.default_rng(3).normal(0, 0.0005, rate * 6)
    noise[: rate * 2] += tone(2, rate)
    noise[rate * 3 : rate * 4] += tone(1, rate)
    noise[rate * 4 + 1600 : rate * 5] += tone(0.9, rate)
    facts = decode_driving(write_wav("a.wav", noise, rate), tmp_path / "a.f32")
    expected = [(2 * rate, 3 * rate), (5 * rate, 6 * rate)]  # the gap of 0.1 s is no pause
    assert np.abs(np.array(facts.pauses) - expected).max() <= 320


def test_silence_is_one_pause_and_a_steady_tone_has_none(write_wav: WriteWav, tmp_path: Path):
    silence = decode_driving(write_wav("s.wav", np.zeros(16_005), 16_000), tmp_path / "s.f32")
    steady = decode_driving(write_wav("t.wav", tone(2, 16_000), 16_000), tmp_path / "t.f32")
    assert silence.pauses == ((0, 16_005),)
    assert (silence.peak, silence.rms_dbfs, silence.loudness_lufs) == (0.0, -120, -120)
    assert steady.pauses == ()
    assert steady.rms_dbfs == pytest.approx(-9.03, abs=0.01)
    assert steady.peak == pytest.approx(0.5, abs=0.001)


def test_loudness_agrees_with_ffmpeg(ffmpeg: Path, make_media: MakeMedia, tmp_path: Path):
    source = make_media(
        "a.wav",
        *("-f", "lavfi", "-i", "anoisesrc=duration=12:sample_rate=16000:colour=pink:amplitude=0.3:seed=5"),
        *("-af", "volume='if(lt(mod(t,3),2),1,0.02)':eval=frame"),
    )
    command = [ffmpeg, "-nostdin", "-hide_banner", "-i", source, "-af", "ebur128", "-f", "null", "-"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    measured = float(re.findall(r"I:\s+(-?[\d.]+) LUFS", said)[-1])
    facts = decode_driving(source, tmp_path / "a.f32")
    assert facts.loudness_lufs == pytest.approx(measured, abs=0.2)


def test_the_meter_does_not_care_how_the_sound_is_cut():
    sound = np.random.default_rng(2).normal(0, 0.1, 50_001).astype(np.float32)
    sound[20_000:30_000] *= 0.001

    def measure(piece: int) -> tuple[object, ...]:
        meter = SoundMeter()
        for start in range(0, len(sound), piece):
            meter.take(sound[start : start + piece])
        meter.close()
        return meter.samples, meter.peak, meter.rms_dbfs, meter.loudness_lufs, meter.pauses()

    assert measure(50_001) == measure(777) == measure(16_000)
    assert len(measure(777)[-1]) == 1


def test_a_decode_that_takes_too_long_fails_and_leaves_nothing(make_media: MakeMedia, tmp_path: Path):
    source = make_media("a.flac", "-f", "lavfi", "-i", "sine=duration=600")
    before = set(tmp_path.iterdir())
    with pytest.raises(MediaError, match="ran out of time"):
        decode_driving(source, tmp_path / "a.f32", timeout_seconds=0.001)
    assert set(tmp_path.iterdir()) == before


def test_a_driving_file_reads_zeros_outside_itself(tmp_path: Path):
    path = tmp_path / "a.f32"
    np.arange(1, 11, dtype="<f4").tofile(path)
    audio = DrivingFile(path)
    assert len(audio) == 10
    assert audio.read(-2, 3).tolist() == [0, 0, 1, 2, 3]
    assert audio.read(8, 12).tolist() == [9, 10, 0, 0]
    assert audio.read(20, 22).tolist() == [0, 0]
    assert audio.read(-5, -3).tolist() == [0, 0]
    assert audio.read(5, 5).tolist() == []
    assert audio.read(0, 10).dtype == np.float32
    audio.read(0, 2)[:] = 99  # a copy: the file is shared by every segment of the job
    assert audio.read(0, 2).tolist() == [1, 2]


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
def test_a_stretch_is_resampled_to_as_many_samples_as_it_lasts_and_from_nothing_else(rate: int) -> None:
    sound = (np.sin(np.arange(rate) * 2 * np.pi * 440 / rate) * 20_000).astype(np.int16)
    for length in (1, rate // 3 + 1, rate):
        driving = to_driving(sound[:length], rate)
        assert driving.dtype == np.float32
        assert len(driving) == -(-length * 16_000 // rate)
    assert 0.58 < float(np.abs(driving).max()) < 0.65


def test_the_recordings_own_samples_come_out_as_they_are(write_wav: WriteWav, tmp_path: Path) -> None:
    sound = np.random.default_rng(5).uniform(-0.5, 0.5, 44_101)
    source, target = write_wav("a.wav", sound, 44_100), tmp_path / "a.s16"
    decode_native(source, target, rate=44_100, samples=44_103)
    written = np.fromfile(target, "<i2")
    assert len(written) == 44_103
    assert np.array_equal(written[:-2], (sound * 32767).round().astype("<i2"))
