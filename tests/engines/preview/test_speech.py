"""Speech moves the mouth; silence does not."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from scripts.mouth import aligning, testing
from tests.conftest import ROOT
from tests.engines.preview.conftest import MakeFilm, Samples, Sound, render
from workers.engines.contract import DRIVING_RATE, Engine
from workers.engines.preview import landmarks
from workers.engines.preview.articulation import RATE, UNIT, Curve, SpeechCurves, SpeechNetwork
from workers.engines.preview.eyes import measure_eyes
from workers.engines.preview.face import FaceReader
from workers.engines.preview.framing import frame_portrait
from workers.engines.preview.loudness import measure
from workers.engines.preview.motion import STILL, Motion, Pose
from workers.engines.preview.renderer import Renderer
from workers.engines.preview.settings import PreviewSettings, follow_prompt

READING = aligning.read_phones(testing.READING)


@pytest.fixture(scope="module")
def network() -> SpeechNetwork:
    return SpeechNetwork()


def poses(
    network: SpeechNetwork, samples: Samples, fps: int = 25, seed: int = 7, settings: PreviewSettings | None = None
) -> list[Pose]:
    sound = Sound(samples)
    curves = SpeechCurves(network, sound, measure(sound)["speech_gain"])
    motion = Motion(curves, seed, (fps, 1), settings or PreviewSettings())
    return list(motion.poses(0, len(samples) * fps // DRIVING_RATE))


def loudness_per_frame(samples: Samples, fps: int = 25) -> np.ndarray:
    frame = DRIVING_RATE // fps
    windows = samples[: len(samples) // frame * frame].reshape(-1, frame).astype(np.float64)
    return np.sqrt((windows**2).mean(axis=1))


def apertures(reader: FaceReader, frames: np.ndarray) -> np.ndarray:
    """Gap of the lips in each frame, in mouth widths, as the face mesh sees it."""
    seen = []
    points = None
    for frame in frames:
        bgr = cv2.cvtColor(frame, cv2.COLOR_YUV2BGR_I420)
        mesh = reader.mesh(bgr, reader.detect(bgr)[0]) if points is None else reader.mesh_again(bgr, points)
        points = mesh.points
        gap = points[landmarks.LOWER_LIP_CENTRE, 1] - points[landmarks.UPPER_LIP_CENTRE, 1]
        width = np.linalg.norm(points[landmarks.LEFT_CORNER, :2] - points[landmarks.RIGHT_CORNER, :2])
        seen.append(gap / width)
    return np.array(seen)


def test_silence_keeps_the_mouth_shut(network: SpeechNetwork) -> None:
    for pose in poses(network, np.zeros(3 * DRIVING_RATE, np.float32)):
        assert pose.talk < 0.15
        assert pose.open < 0.2


@pytest.mark.parametrize("sound", ["hiss", "hum", "tone"])
def test_a_steady_noise_is_not_taken_for_speech(network: SpeechNetwork, sound: str) -> None:
    t = np.arange(4 * DRIVING_RATE) / DRIVING_RATE
    noise = {
        "hiss": 0.05 * np.random.default_rng(0).normal(size=len(t)),
        "hum": 0.1 * np.sin(100 * np.pi * t) + 0.05 * np.sin(300 * np.pi * t),
        "tone": 0.2 * np.sin(880 * np.pi * t),
    }[sound]
    late = poses(network, noise.astype(np.float32))[45:95]
    assert max(pose.talk for pose in late) < 0.15


def test_noise_under_a_voice_does_not_still_it(network: SpeechNetwork, speech: Samples) -> None:
    noise = np.random.default_rng(0).normal(size=len(speech)).astype(np.float32) * speech.std() * 0.1
    clean = np.array([pose.open * pose.talk for pose in poses(network, speech)])
    noisy = np.array([pose.open * pose.talk for pose in poses(network, speech + noise)])
    assert np.corrcoef(clean, noisy)[0, 1] > 0.9


@pytest.mark.parametrize("fps", [24, 25, 30, 50])
def test_a_pose_does_not_depend_on_which_poses_are_asked_with_it(
    network: SpeechNetwork, speech: Samples, fps: int
) -> None:
    sound = Sound(speech)
    whole = poses(network, speech, fps=fps)
    fresh = Motion(SpeechCurves(network, sound, measure(sound)["speech_gain"]), 7, (fps, 1), PreviewSettings())
    for first, count in ((0, 1), (7, 3), (fps, fps), (2 * fps - 1, 1), (4 * fps, 11)):
        assert list(fresh.poses(first, count)) == whole[first : first + count]


@pytest.mark.parametrize("gain", [0.01, 0.3, 1.0])
def test_the_level_of_a_recording_does_not_matter(network: SpeechNetwork, speech: Samples, gain: float) -> None:
    opened = np.array([pose.open for pose in poses(network, speech)])
    other = np.array([pose.open for pose in poses(network, speech * np.float32(gain))])
    assert np.corrcoef(opened, other)[0, 1] > 0.98


def test_the_jaw_follows_the_voice(network: SpeechNetwork, speech: Samples) -> None:
    opened = np.array([pose.open * pose.talk for pose in poses(network, speech)])
    loud = loudness_per_frame(speech)[: len(opened)]
    assert np.corrcoef(opened, loud)[0, 1] > 0.5


def test_lips_seen_in_the_film_open_with_the_voice_and_stay_shut_without(
    engine: Engine, reader: FaceReader, make_film: MakeFilm, speech: Samples
) -> None:
    spoken = make_film(total_frames=100, size=(384, 384), head_motion=0.0, blink_rate=0.0)
    seen = apertures(reader, render(engine, spoken))
    loud = loudness_per_frame(speech)[:100]
    silent = make_film(Sound(np.zeros_like(speech)), total_frames=25, size=(384, 384), blink_rate=0.0)
    shut = apertures(reader, render(engine, silent))

    assert np.corrcoef(seen, loud)[0, 1] > 0.45
    assert np.percentile(seen, 90) > np.percentile(seen, 10) + 0.08
    assert np.ptp(shut) < 0.04


def test_lips_that_close_for_60_ms_are_shown_closed_at_every_frame_rate(network: SpeechNetwork) -> None:
    class Closure(SpeechCurves):
        """Somebody says a long vowel with one short m."""

        def window(self, start: int, stop: int) -> np.ndarray:
            at = np.arange(start, stop)
            curves = np.zeros((stop - start, len(Curve)), np.int64)
            curves[:, Curve.TALK] = UNIT
            curves[:, Curve.CLOSE] = np.where((at >= self.onset) & (at < self.onset + 6), UNIT, 0)
            return curves

    sound = Sound(np.zeros(DRIVING_RATE, np.float32))
    for fps in (24, 25, 30, 50):
        for onset in range(40, 50):
            curves = Closure(network, sound, 1.0)
            curves.onset = onset
            closing = [pose.close for pose in Motion(curves, 1, (fps, 1), PreviewSettings()).poses(0, fps)]
            assert max(closing) > 0.9, f"{fps} fps, closed from {onset * 10} ms"
            assert sum(value > 0.5 for value in closing) <= 0.16 * fps, "it opens again at once"


def test_curves_do_not_depend_on_where_reading_starts(network: SpeechNetwork, speech: Samples) -> None:
    sound = Sound(speech)
    whole = SpeechCurves(network, sound, 2.0).window(-50, 550)
    for start, stop in ((-50, 10), (95, 130), (230, 231), (310, 550)):
        part = SpeechCurves(network, sound, 2.0).window(start, stop)
        assert np.array_equal(part, whole[start + 50 : stop + 50])


def test_curves_survive_samples_that_are_not_numbers(network: SpeechNetwork, speech: Samples) -> None:
    broken = speech[: 2 * DRIVING_RATE].copy()
    broken[1000:1010] = np.nan
    curves = SpeechCurves(network, Sound(broken), 1.0).window(0, 2 * RATE)
    assert curves[:, : Curve.LEVEL].min() >= 0
    assert curves[:, : Curve.LEVEL].max() <= UNIT


def test_blinks_come_at_about_the_asked_rate_and_differ_by_seed(network: SpeechNetwork) -> None:
    minute = np.zeros(60 * DRIVING_RATE, np.float32)

    def onsets(seed: int, rate: float) -> list[int]:
        lids = [p.blink > 0.5 for p in poses(network, minute, seed=seed, settings=PreviewSettings(blink_rate=rate))]
        return [i for i in range(1, len(lids)) if lids[i] and not lids[i - 1]]

    assert 13 <= len(onsets(1, 16)) <= 21
    assert 26 <= len(onsets(1, 30)) <= 36
    assert onsets(1, 0) == []
    assert onsets(1, 16) != onsets(2, 16)


def test_a_still_head_does_not_move(network: SpeechNetwork, speech: Samples) -> None:
    for pose in poses(network, speech, settings=PreviewSettings(head_motion=0.0, expression=0.0)):
        assert (pose.yaw, pose.pitch, pose.roll, pose.shift_x, pose.shift_y, pose.breath, pose.brow) == (0.0,) * 7
        assert (pose.gaze_x, pose.gaze_y) == (0.0, 0.0)


def test_the_head_settles_when_nobody_speaks_and_the_eyes_still_live(network: SpeechNetwork, speech: Samples) -> None:
    pause = np.zeros(30 * DRIVING_RATE, np.float32)
    spoken = poses(network, np.tile(speech, 5))
    silent = poses(network, pause)
    for name in ("yaw", "pitch", "roll"):
        assert np.std([getattr(p, name) for p in silent]) < 0.6 * np.std([getattr(p, name) for p in spoken])
    steps = np.abs(np.diff([p.gaze_x for p in silent]))
    assert 3 <= (steps > 0.1).sum() <= 40, "glances are few and quick"
    assert np.median(steps) < 0.01, "and the eyes rest between them"


def test_the_same_second_looks_the_same_at_25_and_50_frames(network: SpeechNetwork, speech: Samples) -> None:
    slow, fast = poses(network, speech), poses(network, speech, fps=50)
    for k in range(10, 140):
        # Motion that follows the phrase is read at the frame's middle, which is 10 ms later at 25 frames.
        assert slow[k].yaw == pytest.approx((fast[2 * k].yaw + fast[2 * k + 1].yaw) / 2, abs=0.06)
        assert slow[k].open == pytest.approx((fast[2 * k].open + fast[2 * k + 1].open) / 2, abs=0.08)


def test_the_speech_gain_is_the_same_for_any_length_and_finds_speech_between_pauses(speech: Samples) -> None:
    spoken = measure(Sound(speech))["speech_gain"]
    pauses = np.concatenate([speech, np.zeros(20 * DRIVING_RATE, np.float32), speech])
    assert measure(Sound(pauses))["speech_gain"] == pytest.approx(spoken, rel=0.15)
    assert measure(Sound(speech / 4))["speech_gain"] == pytest.approx(4 * spoken, rel=0.03)
    assert measure(Sound(np.zeros(16_000, np.float32))) == {"speech_gain": 1.0}
    assert measure(Sound(np.zeros(0, np.float32))) == {"speech_gain": 1.0}


def test_a_tune_is_not_taken_for_speech(network: SpeechNetwork) -> None:
    t = np.arange(8 * DRIVING_RATE) / DRIVING_RATE
    tune = np.zeros(len(t))
    for k, pitch in enumerate(220 * 2 ** (np.array([0, 4, 7, 12, 9, 5, 2, 0, 4, 7, 11, 12]) / 12)):
        since = t - 0.6 * k
        swell = np.where(since > 0, np.minimum(1, since / 0.02) * np.exp(-np.maximum(since, 0) / 0.35), 0)
        tune += swell * sum(np.sin(2 * np.pi * n * pitch * t) / n for n in range(1, 7))
    moving = [pose.open * pose.talk > 0.1 for pose in poses(network, (0.1 * tune).astype(np.float32))]
    assert np.mean(moving) < 0.2, "a network that had heard no music moved most of the time"


def test_lips_close_for_p_b_and_m_of_a_real_voice(network: SpeechNetwork) -> None:
    said = testing.Utterance("", testing.read_raw(ROOT / "examples/speech/reading_en.flac"), READING)
    figures = testing.Figures()
    testing.count(figures, said, testing.pose_film(network, said.samples))
    assert figures.wanted == 29
    assert figures.closed >= 0.9 * figures.wanted
    assert figures.false <= 6, "and not all the time"
    together = np.concatenate(figures.curves)
    assert np.corrcoef(together[:, 0, 0], together[:, 1, 0])[0, 1] > 0.85, "the jaw follows the phones"
    spread = [value for value, rounded in figures.vowels if not rounded]
    rounded = [value for value, rounded in figures.vowels if rounded]
    assert np.median(spread) > np.median(rounded) + 0.2


@pytest.mark.parametrize(
    ("prompt", "more_motion"),
    [
        ("A calm teacher explains", -1),
        ("an Energetic seller", 1),
        ("平静地讲课", -1),
        ("She stands still", -2),
        ("a person is talking, distilled", 0),
        ("", 0),
    ],
)
def test_a_prompt_says_how_somebody_talks(prompt: str, more_motion: int) -> None:
    usual = PreviewSettings()
    asked = follow_prompt(usual, prompt)
    assert np.sign(asked.head_motion - usual.head_motion) == np.sign(more_motion)
    assert np.sign(asked.expression - usual.expression) == np.sign(more_motion)
    assert (asked.head_motion == 0) is (more_motion == -2)
    assert follow_prompt(PreviewSettings(head_motion=2.0), "lively").head_motion == 2.0, "settings keep their bounds"


def test_a_blink_covers_the_eye_and_leaves_the_brow(reader: FaceReader) -> None:
    photo = cv2.imread(str(ROOT / "examples/portraits/astronaut.jpg"))
    portrait = frame_portrait(photo, 512, 512, "auto", reader)
    renderer = Renderer(portrait, 1.0)
    opened, closed = (np.empty((768, 512), np.uint8) for _ in range(2))
    renderer.draw(STILL, opened)
    renderer.draw(replace(STILL, blink=1.0), closed)
    for eye in measure_eyes(portrait):
        column, row = (int(v) for v in eye.axes.origin)
        brow = row + int(eye.brow)
        patch = slice(row - 3, row + 4), slice(column - 6, column + 7)
        assert np.ptp(closed[patch].astype(int)) < 0.5 * np.ptp(opened[patch].astype(int)), "skin instead of an iris"
        line = slice(brow - 4, brow + 2), slice(column - 6, column + 7)
        assert np.array_equal(opened[line], closed[line])


def test_a_head_at_rest_shows_the_photo_and_a_turned_one_leaves_the_background(reader: FaceReader) -> None:
    photo = cv2.imread(str(ROOT / "examples/portraits/grace_hopper.jpg"))
    portrait = frame_portrait(photo, 512, 512, "auto", reader)
    renderer = Renderer(portrait, 1.0)
    rest, turned = (np.empty((768, 512), np.uint8) for _ in range(2))
    renderer.draw(STILL, rest)
    renderer.draw(replace(STILL, yaw=1.5, roll=1.5, shift_x=1.0), turned)
    seen = cv2.cvtColor(rest, cv2.COLOR_YUV2BGR_I420).astype(int)
    assert np.abs(seen[:200, :80] - portrait.image[:200, :80]).mean() < 8, "coding to yuv420p aside"
    assert np.abs(rest[:300, :60].astype(int) - turned[:300, :60]).max() <= 1
    assert np.abs(rest[100:200, 220:300].astype(int) - turned[100:200, 220:300]).mean() > 3
