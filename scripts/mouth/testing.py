"""How well a network hears voices, languages and recordings that it was not trained on.

Figures are those of the poses that the engine makes of the sound at 25 frames per second, with the facts that prepare
measures: what the picture will be asked to show.  scripts/measure_film.py looks at pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scripts.mouth.aligning import read_phones
from scripts.mouth.phones import (
    BILABIALS,
    ROUND_VOWELS,
    WIDE_VOWELS,
    Segment,
    Utterance,
    draw_curves,
    letters,
)
from scripts.sounds import HeldSound
from workers.engines.contract import DRIVING_RATE
from workers.engines.preview import film_facts
from workers.engines.preview.articulation import Curve, SpeechCurves, SpeechNetwork
from workers.engines.preview.film_facts import SpeechRange
from workers.engines.preview.motion import Motion, Pose
from workers.engines.preview.settings import PreviewSettings
from workers.engines.preview.shaping import ease

FPS = 25
_AROUND = 0.03  # seconds that a closure may come early or late
_PIECE = 8  # utterances that make one film

READING = Path(__file__).with_name("reading_en.phones")


@dataclass
class Figures:
    """What was counted in one group of voices."""

    wanted: int = 0
    closed: int = 0
    false: int = 0  # closures beside every p, b, m and pause
    seconds: float = 0.0
    curves: list[npt.NDArray[np.float64]] = field(
        default_factory=list
    )  # [frames, 2, 3]: open, wide, round; got, wanted
    vowels: list[tuple[float, bool]] = field(default_factory=list)  # spread less rounding, and whether it is rounded


def pose_film(network: SpeechNetwork, samples: npt.NDArray[np.float32]) -> list[Pose]:
    """What the engine makes of a film with this sound."""
    sound = HeldSound(samples)
    facts = film_facts.measure(sound, network)
    curves = SpeechCurves(network, sound, facts["speech_gain"])
    motion = Motion(curves, 7, (FPS, 1), PreviewSettings(), SpeechRange.from_facts(facts))
    return list(motion.poses(0, len(samples) * FPS // DRIVING_RATE))


def join(utterances: Iterable[Utterance], pause: float = 0.4) -> Utterance:
    """One recording of several sentences."""
    samples, segments, at = [], [], 0.0
    for said in utterances:
        samples += [said.samples, np.zeros(int(pause * DRIVING_RATE), np.float32)]
        segments += [Segment(s.phone, s.start + at, s.stop + at) for s in said.segments]
        segments.append(
            Segment(None, at + len(said.samples) / DRIVING_RATE, at + len(said.samples) / DRIVING_RATE + pause)
        )
        at += len(said.samples) / DRIVING_RATE + int(pause * DRIVING_RATE) / DRIVING_RATE
    return Utterance("", np.concatenate(samples), tuple(segments))


def opening(pose: Pose) -> float:
    """How far the lips are apart, in any unit, as mouth.py has it."""
    return pose.open * ease(0.15, 0.5, pose.talk) * (1 - pose.closing)


def count(figures: Figures, said: Utterance, poses: list[Pose]) -> None:
    """Add one film to its group."""
    middles = (np.arange(len(poses)) + 0.5) / FPS
    shut = np.array([p.closing > 0.9 or ease(0.15, 0.5, p.talk) < 0.1 for p in poses])
    explained = np.array([ease(0.15, 0.5, p.talk) < 0.5 for p in poses])
    for before, segment in zip((None, *said.segments), said.segments, strict=False):
        near = (middles >= segment.start - _AROUND) & (middles <= segment.stop + _AROUND)
        known = letters(segment.phone)
        if not known or segment.phone is None:
            explained |= near
        elif known[0] in BILABIALS:
            explained |= (middles >= segment.start - 0.08) & (middles <= segment.stop + 0.08)
            if before is not None and before.phone and letters(before.phone)[:1] == known[:1]:
                continue  # a long consonant that is written as two
            figures.wanted += 1
            figures.closed += bool(shut[near].any())
        elif len(known) == 1 and known[0] in WIDE_VOWELS | ROUND_VOWELS:
            k = int((segment.start + segment.stop) / 2 * FPS)
            if k < len(poses) and ease(0.15, 0.5, poses[k].talk) > 0.5:
                figures.vowels.append((poses[k].wide - poses[k].round, known[0] in ROUND_VOWELS))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shut & ~explained, [0]]).astype(int)))
    figures.false += len(edges) // 2
    figures.seconds += len(poses) / FPS
    fine = draw_curves(said.segments, len(said.samples) * 100 // DRIVING_RATE).astype(np.float64)
    at = np.clip(np.rint(middles * 100 - 0.5).astype(int), 0, len(fine) - 1)
    talk = np.array([ease(0.15, 0.5, p.talk) for p in poses])
    got = np.array([[opening(p), (p.wide - 0.35) * t, p.round * t] for p, t in zip(poses, talk, strict=True)])
    wanted = fine[at][:, [Curve.OPEN, Curve.WIDE, Curve.ROUND]]
    wanted[:, 1] = (wanted[:, 1] - 0.35) * fine[at][:, Curve.TALK]
    figures.curves.append(np.stack([got, wanted], axis=1))


def row(name: str, figures: Figures) -> str:
    """One line of the table."""
    together = np.concatenate(figures.curves)
    open_r, wide_r, round_r = (np.corrcoef(together[:, 0, k], together[:, 1, k])[0, 1] for k in range(3))
    lags = range(-3, 4)
    inner = slice(3, -3)
    moved = [
        np.mean([np.corrcoef(np.roll(c[:, 0, 0], -lag)[inner], c[inner, 1, 0])[0, 1] for c in figures.curves])
        for lag in lags
    ]
    k = int(np.clip(np.argmax(moved), 1, len(moved) - 2))
    bend = moved[k - 1] - 2 * moved[k] + moved[k + 1]
    lag_ms = 1000 / FPS * (lags[k] + 0.5 * (moved[k - 1] - moved[k + 1]) / bend)
    spread = np.array([v for v, rounded in figures.vowels if not rounded])
    rounded = np.array([v for v, rounded in figures.vowels if rounded])
    told = (spread[:, None] > rounded[None]).mean() if len(spread) and len(rounded) else float("nan")
    share = f"{figures.closed}/{figures.wanted} ({100 * figures.closed / max(1, figures.wanted):.0f} %)"
    return (
        f"| {name} | {share} | {60 * figures.false / figures.seconds:.1f} | {open_r:.2f} | {lag_ms:+.0f} ms "
        f"| {wide_r:.2f} | {round_r:.2f} | {100 * told:.0f} % |"
    )


HEAD = (
    "| voice | p, b, m closed | closed without, a minute | jaw r | jaw after sound | spread r | rounding r "
    "| spread and rounded vowels told apart |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def compare(weights: Path, test: list[Utterance], reading: npt.NDArray[np.float32]) -> str:
    """The table of one set of weights."""
    from scripts.mouth import rooms  # needs scipy, which the farm does not

    network = SpeechNetwork(weights)
    groups: dict[str, list[Utterance]] = {}
    for said in test:
        groups.setdefault(said.voice, []).append(said)
    films = {
        name: [join(spoken[k : k + _PIECE]) for k in range(0, len(spoken), _PIECE)] for name, spoken in groups.items()
    }
    films["LibriVox reading (real, aligned)"] = [Utterance("", reading, read_phones(READING))]
    chance = np.random.default_rng(5)
    noisy = [Utterance("", _with_noise(f.samples, chance), f.segments) for name in groups for f in films[name][:1]]
    films["all of them under noise or music, 12 dB"] = noisy
    lines, whole = [HEAD], Figures()
    for name, pieces in films.items():
        figures = Figures()
        for film in pieces:
            poses = pose_film(network, film.samples)
            count(figures, film, poses)
            if name in groups:
                count(whole, film, poses)
        lines.append(row(name, figures))
    lines.append(row("**all synthetic voices**", whole))
    for kind, make in (("noise", rooms.make_noise), ("music", rooms.make_music)):
        opened = [
            opening(pose)
            for _ in range(20)
            for pose in pose_film(network, 0.05 * make(6 * DRIVING_RATE, chance))[12:-12]
        ]
        moving = 100 * np.mean(np.array(opened) > 0.15)
        lines.append(f"\n{kind} alone: mouth moves in {moving:.1f} % of the frames, 99th percentile of the opening "
                     f"{np.percentile(opened, 99):.2f} of a full one")  # fmt: skip
    return "\n".join(lines)


def _with_noise(samples: npt.NDArray[np.float32], chance: np.random.Generator) -> npt.NDArray[np.float32]:
    from scripts.mouth import rooms

    under = rooms.make_music if chance.random() < 0.5 else rooms.make_noise
    level = float(np.sqrt((samples[np.abs(samples) > 0.01] ** 2).mean()))
    return samples + under(len(samples), chance) * np.float32(level * 10 ** (-12 / 20))


def read_raw(path: Path) -> npt.NDArray[np.float32]:
    """The example reading at 16 kHz, decoded by the farm's ffmpeg."""
    import subprocess

    from farm.media.binary import find_ffmpeg

    argv = [
        str(find_ffmpeg()),
        "-v",
        "error",
        "-i",
        str(path),
        "-ac",
        "1",
        "-ar",
        str(DRIVING_RATE),
        "-f",
        "f32le",
        "-",
    ]
    return np.frombuffer(subprocess.run(argv, capture_output=True, check=True).stdout, np.float32)
