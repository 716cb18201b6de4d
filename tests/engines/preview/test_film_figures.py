"""The figures of scripts/measure_film.py on short films, and what they must be for ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from farm.errors import InputError
from tests.conftest import ROOT
from tests.engines.preview.conftest import ASTRONAUT, MakeFilm, Samples, Sound, render
from workers.engines.contract import DRIVING_RATE, Engine
from workers.engines.preview.face import FaceReader
from workers.engines.preview.film_facts import SpeechRange, measure
from workers.engines.preview.framing import frame_portrait
from workers.engines.preview.motion import STILL
from workers.engines.preview.mouth import MouthWarp, measure_mouth
from workers.engines.preview.renderer import Renderer

sys.path.insert(0, str(ROOT / "scripts"))
import measure_film

HOPPER = ROOT / "examples/portraits/grace_hopper.jpg"
SIDE = 384

Figure = Callable[..., measure_film.Figures]


@pytest.fixture(scope="module")
def figure(
    engine: Engine, reader: FaceReader, make_film: MakeFilm, ffmpeg: Path, tmp_path_factory: pytest.TempPathFactory
) -> Figure:
    """Render a film of `sound`, encode it, and measure it against `heard`, or against the same sound."""

    def make(portrait: Path, sound: Samples, heard: Samples | None = None) -> measure_film.Figures:
        film = make_film(Sound(sound), portrait=portrait, size=(SIDE, SIDE))
        folder = tmp_path_factory.mktemp("film")
        (heard if heard is not None else sound).tofile(folder / "sound.f32")
        video = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{SIDE}x{SIDE}", "-r", "25", "-i", "-"]
        audio = ["-f", "f32le", "-ar", str(DRIVING_RATE), "-ac", "1", "-i", str(folder / "sound.f32")]
        codecs = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-threads", "1", "-c:a", "aac"]
        argv = [str(ffmpeg), "-v", "error", *video, *audio, *codecs, str(folder / "film.mp4")]
        subprocess.run(argv, input=render(engine, film).tobytes(), check=True)
        return measure_film.measure(folder / "film.mp4", reader=reader)

    return make


@pytest.mark.parametrize("portrait", [ASTRONAUT, HOPPER], ids=["toothy", "thin-lips-and-glasses"])
def test_lips_open_as_wide_as_a_talking_persons_close_when_they_should_and_are_in_time(
    figure: Figure, speech: Samples, portrait: Path
) -> None:
    seen = figure(portrait, speech)
    assert (seen.fps, seen.seconds) == (25, 6)
    assert seen.curve_r > 0.85
    assert abs(seen.curve_lag_ms) <= 20
    assert 0.3 < seen.aperture_p95 < 0.65
    assert seen.closures >= 3
    assert seen.closures_seen >= 0.85 * seen.closures
    assert seen.blinks_per_minute == pytest.approx(60 / 6, abs=11), "one or two in six seconds"
    assert 0.005 < seen.head_shift < 0.05
    assert seen.head_step < 0.03
    assert seen.identity_drift < 0.02
    assert seen.flicker < 1.0


def test_sound_that_comes_early_shows_as_a_lag_of_the_picture(figure: Figure, speech: Samples) -> None:
    early = np.concatenate([speech[DRIVING_RATE // 10 :], np.zeros(DRIVING_RATE // 10, np.float32)])
    assert figure(ASTRONAUT, speech, heard=early).curve_lag_ms == pytest.approx(100, abs=25)


def test_lips_stay_together_without_speech(figure: Figure) -> None:
    hiss = 0.02 * np.random.default_rng(3).normal(size=3 * DRIVING_RATE).astype(np.float32)
    seen = figure(HOPPER, hiss)
    assert seen.aperture_p95 < 0.12
    assert seen.closures == 0


def test_a_monotone_voice_opens_the_mouth_as_far_as_a_lively_one(speech: Samples) -> None:
    lively = SpeechRange.from_facts(measure(Sound(speech)))
    # The same voice behind a thick door: the network hears much less of its vowels.
    kernel = np.hanning(31)
    dull = np.convolve(speech, kernel / kernel.sum(), "same").astype(np.float32)
    muffled = SpeechRange.from_facts(measure(Sound(dull)))
    assert muffled.open_high != lively.open_high
    for voice in (lively, muffled):
        assert voice.open_low < voice.open_high - 0.15
        assert voice.wide_middle < voice.wide_high
        assert voice.round_low < voice.round_high


def test_without_speech_the_range_is_an_ordinary_voices() -> None:
    for sound in (np.zeros(5 * DRIVING_RATE, np.float32), np.zeros(0, np.float32)):
        assert SpeechRange.from_facts(measure(Sound(sound))) == SpeechRange()


def test_the_curve_next_to_values_that_never_falls() -> None:
    values = np.array([0.0, 2.0, 1.0, 3.0, 3.0, 2.0, 5.0])
    assert measure_film.rising(values).tolist() == pytest.approx([0, 1.5, 1.5, 8 / 3, 8 / 3, 8 / 3, 5])


def test_known_openings_make_the_mesh_an_even_ruler(reader: FaceReader) -> None:
    picture = cv2.imread(str(ASTRONAUT))
    ruler = measure_film.make_ruler(picture, (256, 256), reader)
    assert (np.diff(ruler.readings) >= 0).all()
    assert (np.diff(ruler.openings) >= 0).all()
    portrait = frame_portrait(picture, 256, 256, "auto", reader)
    renderer, mouth = Renderer(portrait, 1.0), MouthWarp(measure_mouth(portrait), 1.0)
    frame = np.empty((384, 256), np.uint8)
    speaks = replace(STILL, talk=1.0, level=0.8, rest_seconds=0.0, close=0.0)
    for pose in (replace(speaks, open=far, wide=0.45) for far in (0.15, 0.45, 0.85)):
        renderer.draw(pose, frame)
        drawn = cv2.cvtColor(frame, cv2.COLOR_YUV2BGR_I420)
        lips = measure_film.read_lips(drawn, reader.mesh_again(drawn, portrait.points).points, reader)
        assert ruler(lips) == pytest.approx(mouth.shape(pose).opening, abs=0.08 * mouth.geometry.half)


def test_a_mirror_image_is_read_alike(reader: FaceReader) -> None:
    picture = frame_portrait(cv2.imread(str(ASTRONAUT)), 256, 256, "auto", reader).image
    picture = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    read = []
    for one in (picture, np.ascontiguousarray(picture[:, ::-1])):
        points = reader.mesh(one, reader.detect(one)[0]).points
        read.append(measure_film.read_lips(one, points, reader))
    assert read[0] == pytest.approx(read[1], rel=0.1)


def test_every_figure_has_its_line_in_the_table(figure: Figure) -> None:
    assert {field.name for field in fields(measure_film.Figures)} == set(measure_film._LINES)


def test_a_file_that_is_no_film_is_one_sentence(reader: FaceReader, tmp_path: Path) -> None:
    letter = tmp_path / "letter.mp4"
    letter.write_text("hello")
    with pytest.raises(InputError, match="cannot read the film"):
        measure_film.measure(letter, reader=reader)
    script = ROOT / "scripts/measure_film.py"
    done = subprocess.run([sys.executable, script, letter], capture_output=True, text=True, check=False)
    assert done.returncode == InputError.exit_code
    assert done.stderr.count("\n") == 1
