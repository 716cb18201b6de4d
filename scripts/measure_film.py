#!/usr/bin/env python3
"""What a finished film shows: does the mouth follow the speech, does the face live, does the picture hold still?

    .venv/bin/python scripts/measure_film.py FILM.mp4 [--audio SPEECH] [--text TEXT | --phones FILE] [--portrait FILE]

The frames are decoded and the face mesh is run on each of them, so the figures are those of the picture and not of the
commands that drew it.  The sound is the film's own unless --audio names another.  The control curve is what our speech
network makes of that sound; a mesh that follows the picture lags by nothing if the film is in sync.

With --text, the English words that are said, pocketsphinx finds the phones; --phones names a file that has them, as
scripts/mouth/reading_en.phones.  Lips are then measured against the phones as well, which our network had no part in:
the mesh looks at each frame four times.  With --portrait, the picture that the film was made of, the mesh's scale is
made even as well, by known openings drawn into that picture.
Where dlib and face_recognition_models are installed, the distance to the person of the first frame is measured too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from farm.errors import FarmError, InputError  # noqa: E402
from scripts.mouth import aligning  # noqa: E402
from scripts.mouth.phones import (  # noqa: E402
    BILABIALS,
    RATE,
    ROUND_VOWELS,
    WIDE_VOWELS,
    Segment,
    draw_curves,
    letters,
)
from scripts.sounds import HeldSound  # noqa: E402
from workers.engines.contract import DRIVING_RATE  # noqa: E402
from workers.engines.preview import film_facts, landmarks  # noqa: E402
from workers.engines.preview.articulation import SpeechCurves, SpeechNetwork  # noqa: E402
from workers.engines.preview.face import FaceReader  # noqa: E402
from workers.engines.preview.film_facts import SpeechRange  # noqa: E402
from workers.engines.preview.framing import frame_portrait  # noqa: E402
from workers.engines.preview.motion import STILL, Motion, Pose  # noqa: E402
from workers.engines.preview.mouth import MouthWarp, measure_mouth  # noqa: E402
from workers.engines.preview.renderer import Renderer  # noqa: E402
from workers.engines.preview.settings import PreviewSettings  # noqa: E402
from workers.engines.preview.shaping import ease, luminance  # noqa: E402

Doubles = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]

_LAG_SECONDS = 0.2  # the furthest that speech and picture are moved against each other
_LAG_STEP = 0.005
_CLOSED_SHARE = 0.35  # of the film's own wide opening; the mesh reports some gap even for lips that touch
_ALIKE = 0.75  # correlation of an eye's picture with its usual one; below it the lids are closed
_EYE = (32, 16)  # pixels of an eye's picture, cut along its corners
_LONGEST_BLINK_SECONDS = 0.6
_EVERY = 10  # frames from one look at the person and beside the head to the next
_NEAR_SECONDS = 0.04  # by which a closure may be early or late: a frame
_EYE_CORNERS = ([33, 133], [362, 263])  # left to right in the picture
# Corners of the eyes, bridge and sides of the nose, temples: what speech does not move.
_RIGID = [33, 133, 362, 263, 168, 6, 197, 195, 48, 278, 127, 356]
# The middle of each lip lies half way between its borders: their middle landmarks, of the upper lip and of the lower.
_UPPER_LIP = landmarks.UPPER_INNER_LIP[4:7] + landmarks.UPPER_OUTER_LIP[4:7]
_LOWER_LIP = landmarks.LOWER_INNER_LIP[4:7] + landmarks.LOWER_OUTER_LIP[4:7]
# What the mesh looks at besides its usual region: closer, and a little lower; a mirror image is the last look.
_LOOKS = ({"scale": 0.85}, {"lower": 0.05})
# The mouths that the scale of the mesh is made even by, spread, rounded and turned so far, each shut and opened so far.
_SPEAKS = replace(STILL, talk=1.0, level=0.8, rest_seconds=0.0, close=0.0)
_MOUTHS = ((0.35, 0.0, 0.0), (0.35, 0.4, 0.5), (0.55, 0.0, -0.5), (0.1, 0.8, 0.0), (0.7, 0.0, 0.3))
_OPENINGS = np.linspace(0, 1.4, 12).tolist()
_PER_WIDTH = np.arange(0, 0.5, 0.05).tolist()


@dataclass(frozen=True)
class Figures:
    """One film; _LINES says what each figure is and its unit."""

    fps: float
    seconds: float
    energy_r: float
    energy_lag_ms: float
    curve_r: float
    curve_lag_ms: float
    aperture_p95: float
    aperture_rest: float
    closures: int
    closures_seen: int
    blinks_per_minute: float
    head_shift: float
    head_roll: float
    head_step: float
    identity_drift: float
    flicker: float
    beside: float
    identity: float | None = None
    phones_r: float | None = None
    phones_lag_ms: float | None = None
    phones_even_r: float | None = None
    bilabials: int | None = None
    bilabials_seen: int | None = None
    told_apart: float | None = None


_LINES = {
    "fps": ("frames per second", "{:.3g}"),
    "seconds": ("length", "{:.2f} s"),
    "energy_r": ("lips against loudness, best r", "{:.2f}"),
    "energy_lag_ms": ("  at a lag of the picture of", "{:+.0f} ms"),
    "curve_r": ("lips against the control curve, best r", "{:.2f}"),
    "curve_lag_ms": ("  at a lag of the picture of", "{:+.0f} ms"),
    "aperture_p95": ("lips apart, 95th percentile, in mouth half widths", "{:.2f}"),
    "aperture_rest": ("lips apart, 5th percentile", "{:.2f}"),
    "closures": ("lips to be closed for p, b, m", "{:d} times"),
    "closures_seen": ("  and seen closed", "{:d} times"),
    "blinks_per_minute": ("blinks", "{:.1f} per minute"),
    "head_shift": ("head moves, deviation, in face widths", "{:.2%}"),
    "head_roll": ("head leans, deviation", "{:.2f} degrees"),
    "head_step": ("  largest step between two frames, in face widths", "{:.2%}"),
    "identity_drift": ("rigid landmarks against the first second, in eye distances", "{:.2%}"),
    "flicker": ("flicker of the whole picture's light, levels of 255", "{:.3f}"),
    "beside": ("picture beside the head against its usual one, levels of 255", "{:.2f}"),
    "identity": ("distance to the person of the first frame, same under 0.6", "{:.2f}"),
    "phones_r": ("lips against the phones, best r", "{:.2f}"),
    "phones_lag_ms": ("  at a lag of the picture of", "{:+.0f} ms"),
    "phones_even_r": ("  with the mesh's scale made even, r", "{:.2f}"),
    "bilabials": ("p, b and m that are said", "{:d}"),
    "bilabials_seen": ("  and seen closed", "{:d}"),
    "told_apart": ("spread vowels wider than rounded ones", "{:.0%}"),
}


@dataclass(frozen=True)
class Seen:
    """What the mesh saw, a row per frame."""

    points: Doubles  # [frames, 468, 2], pixels
    light: Doubles  # mean luma
    eyes: Doubles  # [frames, 2, pixels], luma of the person's right and left eye, its mean 0 and its length 1
    beside: float  # mean distance of the picture around the head from its median, levels
    identity: float | None  # mean distance of faces, every tenth frame
    lips: Doubles  # [frames, 2], see `read_lips`; empty if that was not asked for
    size: tuple[int, int]  # width and height, pixels


def decode_sound(path: Path) -> HeldSound:
    """The first sound stream at 16 kHz, mono.  Raises InputError."""
    try:
        with av.open(str(path)) as media:
            resampler = av.AudioResampler("flt", "mono", DRIVING_RATE)
            pieces = [
                piece.to_ndarray().reshape(-1)
                for frame in (*media.decode(audio=0), None)
                for piece in resampler.resample(frame)
            ]
    except (av.FFmpegError, IndexError, OSError) as error:
        raise InputError(f"cannot read the sound of {path}: {error}") from None
    return HeldSound(np.concatenate(pieces) if pieces else np.zeros(0, np.float32))


def watch(film: Path, reader: FaceReader, closely: bool = False) -> tuple[Seen, Fraction]:
    """Run the mesh on every frame; `closely` reads the lips.  Raises InputError when it is no film or has no face."""
    points: list[Doubles] = []
    light, eyes, lips, around, faces_seen = [], [], [], [], []
    size = 0, 0
    recognise = person_reader()
    ring: npt.NDArray[np.bool_] | None = None
    last: Doubles | None = None
    try:
        with av.open(str(film)) as media:
            rate = media.streams.video[0].average_rate or Fraction(25)
            for frame in media.decode(video=0):
                picture = frame.to_ndarray(format="bgr24")
                if last is None:
                    size = picture.shape[1], picture.shape[0]
                    faces = reader.detect(picture)
                    if not faces:
                        raise InputError(f"{film} shows no face in frame {len(points)}")
                    last = reader.mesh(picture, faces[0]).points
                last = reader.mesh_again(picture, last).points
                points.append(last[:, :2])
                if closely:
                    lips.append(read_lips(picture, last, reader))
                luma = luminance(picture)
                light.append(float(luma.mean()))
                eyes.append([cut_eye(luma, last[corners, :2]) for corners in _EYE_CORNERS])
                if ring is None:
                    ring = ring_around(reader.matte(picture), last)
                if len(points) % _EVERY == 1:
                    around.append(luma[ring].astype(np.float32))
                    if recognise is not None:
                        faces_seen.append(recognise(picture, last))
    except (av.FFmpegError, IndexError, OSError) as error:
        raise InputError(f"cannot read the film {film}: {error}") from None
    if len(points) < 2:
        raise InputError(f"{film} has no two frames to compare")
    beside = np.stack(around)
    moved = float(np.abs(beside - np.median(beside, axis=0)).mean()) if beside.size else 0.0
    unlike = [float(np.linalg.norm(face - faces_seen[0])) for face in faces_seen[1:]]
    identity = float(np.mean(unlike)) if unlike else None
    seen = Seen(np.stack(points), np.array(light), np.array(eyes), moved, identity, np.array(lips), size)
    return seen, Fraction(rate)


def read_lips(picture: Picture, points: Doubles, reader: FaceReader) -> Doubles:
    """[2]: how far the middles of the lips are apart along the face, and the mouth's width, in pixels.

    The mean of several looks of the mesh: what differs between them at one picture is its own noise, not the film's.
    """
    mirrored = points.copy()
    mirrored[:, 0] = picture.shape[1] - 1 - points[:, 0]
    sides = [landmarks.RIGHT_EYE_OUTER, landmarks.LEFT_EYE_OUTER]
    mirrored[sides] = mirrored[sides[::-1]]  # the mesh tells by them which way is up
    looks = [points, *(reader.mesh_at(picture, points, **how).points for how in _LOOKS)]
    looks.append(reader.mesh_at(np.ascontiguousarray(picture[:, ::-1]), mirrored).points)
    found = []
    for look in looks:
        flat = look[:, :2]
        down = flat[landmarks.CHIN] - flat[landmarks.FOREHEAD]
        apart = (flat[_LOWER_LIP] - flat[_UPPER_LIP]) @ down / np.linalg.norm(down)
        found.append((apart.mean(), np.linalg.norm(flat[landmarks.LEFT_CORNER] - flat[landmarks.RIGHT_CORNER])))
    return np.mean(found, axis=0)


@dataclass(frozen=True)
class Ruler:
    """What `read_lips` reads of known openings of one face."""

    per_width: float  # by which a wider mouth is read as less open
    readings: Doubles  # rising
    openings: Doubles  # rising, pixels

    def __call__(self, lips: Doubles) -> Doubles:
        """Openings [frames], pixels, for lips that were read [frames, 2]."""
        return np.interp(lips @ (1, self.per_width), self.readings, self.openings)


def make_ruler(picture: Picture, size: tuple[int, int], reader: FaceReader) -> Ruler:
    """Read known openings drawn into a portrait.

    The mesh is no even ruler: it reads lips that stand a quarter of the half width apart as nearly shut in some faces,
    lips that touch as apart in others, and rounded lips as further apart than spread ones.  Neither the film's sound
    nor what it asked for has a part in this.
    """
    width, height = size
    portrait = frame_portrait(picture, width, height, "auto", reader)
    renderer, mouth = Renderer(portrait, 1.0), MouthWarp(measure_mouth(portrait), 1.0)
    frame = np.empty((height * 3 // 2, width), np.uint8)
    last = portrait.points
    lips, openings = [], []
    mouths = [replace(_SPEAKS, wide=wide, round=rounded, yaw=yaw) for wide, rounded, yaw in _MOUTHS]
    shut = [replace(pose, close=1.0) for pose in mouths]
    for pose in [*shut, *(replace(pose, open=far) for far in _OPENINGS for pose in mouths)]:
        renderer.draw(pose, frame)
        drawn = np.asarray(cv2.cvtColor(frame, cv2.COLOR_YUV2BGR_I420), np.uint8)
        last = reader.mesh_again(drawn, last).points
        lips.append(read_lips(drawn, last, reader))
        openings.append(mouth.shape(pose).opening)
    known = np.array(openings)
    rulers = [_ruler_of(np.array(lips), known, per_width) for per_width in _PER_WIDTH]
    return min(rulers, key=lambda ruler: float(np.square(ruler(np.array(lips)) - known).sum()))


def _ruler_of(lips: Doubles, openings: Doubles, per_width: float) -> Ruler:
    read = lips @ (1, per_width)
    order = np.argsort(read, kind="stable")
    return Ruler(per_width, read[order], rising(openings[order]))


def rising(values: Doubles) -> Doubles:
    """The curve next to `values` that never falls (pooling adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, size = value, 1
        while pools and pools[-1][0] >= mean:
            before, more = pools.pop()
            mean, size = (mean * size + before * more) / (size + more), size + more
        pools.append((mean, size))
    return np.repeat([mean for mean, _ in pools], [size for _, size in pools])


def ring_around(matte: npt.NDArray[np.float32], points: Doubles) -> npt.NDArray[np.bool_]:
    """What lies close beside the head and is not the person: there a halo would show."""
    face = float(np.linalg.norm(points[landmarks.LEFT_EDGE, :2] - points[landmarks.RIGHT_EDGE, :2]))
    person = (matte > 0.3).astype(np.uint8)
    away = cv2.distanceTransform(1 - person, cv2.DIST_L2, 5) / face
    above_chin = np.arange(matte.shape[0])[:, None] < points[landmarks.CHIN, 1]
    return np.asarray((away > 0.03) & (away < 0.20) & above_chin)


def person_reader() -> Callable[[npt.NDArray[np.uint8], Doubles], Doubles] | None:
    """dlib's description of a face, where dlib is installed."""
    try:
        import dlib
        import face_recognition_models as models
    except ImportError:
        return None
    shape = dlib.shape_predictor(models.pose_predictor_five_point_model_location())
    describe = dlib.face_recognition_model_v1(models.face_recognition_model_location())

    def read(picture: npt.NDArray[np.uint8], points: Doubles) -> Doubles:
        low, high = points[landmarks.OVAL, :2].min(axis=0), points[landmarks.OVAL, :2].max(axis=0)
        rgb = np.ascontiguousarray(picture[..., ::-1])
        box = dlib.rectangle(int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        return np.array(describe.compute_face_descriptor(rgb, shape(rgb, box)))

    return read


def cut_eye(luma: npt.NDArray[np.float32], corners: Doubles) -> Doubles:
    """The picture of one eye, turned level, without its mean and of length 1."""
    width, height = _EYE
    start, stop = corners
    along = (stop - start) / width
    down = np.array([-along[1], along[0]])
    grid = np.stack([along, down, start - down * height / 2], axis=1)
    patch = cv2.warpAffine(luma, grid, _EYE, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP).reshape(-1)
    centred = patch.astype(np.float64) - patch.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6))


def measure(
    film: Path,
    audio: Path | None = None,
    reader: FaceReader | None = None,
    text: str | None = None,
    phones: Path | None = None,
    portrait: Path | None = None,
) -> Figures:
    """All figures of one film.  Raises InputError for files that cannot be read."""
    reader = reader or FaceReader()
    seen, rate = watch(film, reader, closely=text is not None or phones is not None)
    sound = decode_sound(audio or film)
    fps, frames = float(rate), len(seen.points)
    poses = control_poses(sound, rate, frames)
    aperture = apertures(seen.points)
    energy_r, energy_lag = best_lag(aperture, loudness(sound, fps, frames), fps)
    asked = np.array([wanted_opening(pose) for pose in poses])
    curve_r, curve_lag = best_lag(aperture, asked, fps)
    wide = float(np.percentile(aperture, 95))
    to_close = spans(np.array([pose.close > 0.6 and ease(0.15, 0.5, pose.talk) > 0.9 for pose in poses]))
    closed = aperture < max(_CLOSED_SHARE * wide, float(np.percentile(aperture, 5)) + 0.02)
    ruler = make_ruler(_read_picture(portrait), seen.size, reader) if portrait is not None else None
    place, roll, face = head(seen.points)
    return Figures(
        fps=fps,
        seconds=frames / fps,
        energy_r=energy_r,
        energy_lag_ms=energy_lag,
        curve_r=curve_r,
        curve_lag_ms=curve_lag,
        aperture_p95=wide,
        aperture_rest=float(np.percentile(aperture, 5)),
        closures=len(to_close),
        closures_seen=sum(bool(closed[max(0, first - 1) : stop + 1].any()) for first, stop in to_close),
        blinks_per_minute=60 * fps * count_blinks(seen.eyes, fps) / frames,
        head_shift=float(np.linalg.norm(place.std(axis=0))) / face,
        head_roll=float(roll.std()),
        head_step=float(np.linalg.norm(np.diff(place, axis=0), axis=1).max()) / face,
        identity_drift=drift(seen.points, fps),
        # The second difference leaves out what changes steadily, as a moving head does.
        flicker=float(np.abs(np.diff(seen.light, 2)).mean()) if frames > 2 else 0.0,
        beside=seen.beside,
        identity=seen.identity,
        **against_phones(seen, closed, fps, _phones_of(sound, text, phones), ruler),
    )


def _read_picture(path: Path) -> Picture:
    picture = cv2.imread(str(path))
    if picture is None:
        raise InputError(f"cannot read the portrait {path}; it must be a picture, as a JPEG or a PNG")
    return np.asarray(picture, np.uint8)


def _phones_of(sound: HeldSound, text: str | None, phones: Path | None) -> tuple[Segment, ...]:
    if phones is not None:
        return aligning.read_phones(phones)
    return aligning.align(sound.read(0, len(sound)), text) if text is not None else ()


def against_phones(
    seen: Seen,
    closed: npt.NDArray[np.bool_],
    fps: float,
    segments: tuple[Segment, ...],
    ruler: Ruler | None,
) -> dict[str, Any]:
    """What the lips do at the phones that are said; nothing without phones."""
    if not segments:
        return {}
    frames = len(closed)
    middles = (np.arange(frames) + 0.5) / fps
    curves = draw_curves(segments, round(segments[-1].stop * RATE) + RATE)
    opened = np.interp(middles * RATE - 0.5, np.arange(len(curves)), curves[:, 0])
    r, lag = best_lag(seen.lips[:, 0], opened, fps)
    corners = seen.points[:, [landmarks.RIGHT_CORNER, landmarks.LEFT_CORNER]]
    width = np.linalg.norm(corners[:, 0] - corners[:, 1], axis=1)
    said, shut, spread, rounded = 0, 0, [], []
    for segment in segments:
        known = letters(segment.phone)
        near = (middles > segment.start - _NEAR_SECONDS) & (middles < segment.stop + _NEAR_SECONDS)
        if known and known[0] in BILABIALS and near.any():
            said += 1
            shut += bool(closed[near].any())
        elif len(known) == 1 and known[0] in WIDE_VOWELS | ROUND_VOWELS and segment.stop * fps < frames:
            (rounded if known[0] in ROUND_VOWELS else spread).append(
                width[int((segment.start + segment.stop) / 2 * fps)]
            )
    told = float((np.array(spread)[:, None] > np.array(rounded)).mean()) if spread and rounded else None
    return {
        "phones_r": r,
        "phones_lag_ms": lag,
        "phones_even_r": None if ruler is None else best_lag(ruler(seen.lips), opened, fps)[0],
        "bilabials": said,
        "bilabials_seen": shut,
        "told_apart": told,
    }


def control_poses(sound: HeldSound, rate: Fraction, frames: int) -> list[Pose]:
    """What the preview engine would do to this sound."""
    network = SpeechNetwork()
    facts = film_facts.measure(sound, network)
    curves = SpeechCurves(network, sound, facts["speech_gain"])
    fps = rate.numerator, rate.denominator
    return list(Motion(curves, 0, fps, PreviewSettings(), SpeechRange.from_facts(facts)).poses(0, frames))


def wanted_opening(pose: Pose) -> float:
    """How far the lips should be apart, in any unit."""
    return pose.open * ease(0.15, 0.5, pose.talk) * (1 - pose.closing)


def apertures(points: Doubles) -> Doubles:
    """Gap of the lips in each frame, in half widths of the mouth (the film's median one)."""
    gap = points[:, landmarks.LOWER_LIP_CENTRE] - points[:, landmarks.UPPER_LIP_CENTRE]
    width = np.linalg.norm(points[:, landmarks.LEFT_CORNER] - points[:, landmarks.RIGHT_CORNER], axis=1)
    return np.linalg.norm(gap, axis=1) * np.sign(gap[:, 1]) / (float(np.median(width)) / 2)


def loudness(sound: HeldSound, fps: float, frames: int) -> Doubles:
    """Root mean square of the sound over 60 ms around each frame's middle."""
    half = int(0.03 * DRIVING_RATE)
    middles = ((np.arange(frames) + 0.5) / fps * DRIVING_RATE).astype(int)
    return np.array([np.sqrt(np.mean(sound.read(m - half, m + half).astype(np.float64) ** 2)) for m in middles])


def best_lag(picture: Doubles, cause: Doubles, fps: float) -> tuple[float, float]:
    """The largest correlation within 200 ms, and by how many milliseconds the picture comes after its cause."""
    times = np.arange(len(picture)) / fps
    inner = (times >= _LAG_SECONDS) & (times <= times[-1] - _LAG_SECONDS)
    if inner.sum() < 5:
        inner[:] = True
    if picture.std() == 0 or cause[inner].std() == 0:
        return 0.0, 0.0
    steps = range(-round(_LAG_SECONDS / _LAG_STEP), round(_LAG_SECONDS / _LAG_STEP) + 1)
    found = [
        (float(np.corrcoef(np.interp(times[inner] + step * _LAG_STEP, times, picture), cause[inner])[0, 1]), step)
        for step in steps
    ]
    r, step = max(found)
    return r, 1000 * step * _LAG_STEP


def spans(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Starts and stops of the stretches in which `flags` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def count_blinks(eyes: Doubles, fps: float) -> int:
    """Short stretches in which both eyes look unlike themselves.

    The mesh keeps the lids it has learned to expect, behind glasses above all, so the picture is asked instead.
    """
    usual = np.median(eyes, axis=0)
    usual /= np.maximum(np.linalg.norm(usual, axis=-1, keepdims=True), 1e-6)
    alike = (eyes * usual).sum(axis=-1).mean(axis=1)
    return sum(stop - start <= _LONGEST_BLINK_SECONDS * fps for start, stop in spans(alike < _ALIKE))


def head(points: Doubles) -> tuple[Doubles, Doubles, float]:
    """Place of the head [frames, 2] in pixels, its lean in degrees, and the face's width in pixels."""
    across = points[:, landmarks.LEFT_EYE_OUTER] - points[:, landmarks.RIGHT_EYE_OUTER]
    width = np.linalg.norm(points[:, landmarks.LEFT_EDGE] - points[:, landmarks.RIGHT_EDGE], axis=1)
    return points[:, _RIGID].mean(axis=1), np.degrees(np.arctan2(across[:, 1], across[:, 0])), float(np.median(width))


def drift(points: Doubles, fps: float) -> float:
    """Mean distance of the rigid landmarks from those of the first second, laid over them, in eye distances."""
    rigid = points[:, _RIGID]
    usual = rigid[: max(1, round(fps))].mean(axis=0)
    centred = usual - usual.mean(axis=0)
    errors = []
    for shape in rigid:
        here = shape - shape.mean(axis=0)
        # The turn and scale that lay `here` over `centred` best, as one complex number (Procrustes, 2-D).
        z, w = here @ (1, 1j), centred @ (1, 1j)
        errors.append(np.abs(z * (np.vdot(z, w) / np.vdot(z, z)) - w).mean())
    return float(np.mean(errors)) / float(np.linalg.norm(centred[3] - centred[0]))


def table(figures: Figures) -> str:
    """One line per figure."""
    width = max(len(name) for name, _ in _LINES.values())
    values: dict[str, Any] = {field.name: getattr(figures, field.name) for field in fields(figures)}
    return "\n".join(
        f"{name:<{width}}  {form.format(values[key])}"
        for key, (name, form) in _LINES.items()
        if values[key] is not None
    )


def main() -> int:
    """Measure one film and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path)
    parser.add_argument("--audio", type=Path, help="the speech, if the film's own sound is not it")
    parser.add_argument("--text", help="the English words that are said, or a file of them")
    parser.add_argument("--phones", type=Path, help="a file of the phones that are said")
    parser.add_argument("--portrait", type=Path, help="the picture that the film was made of")
    chosen = parser.parse_args()
    text = chosen.text
    if text is not None and len(text) < 250 and Path(text).is_file():
        text = Path(text).read_text("utf-8")
    cv2.setNumThreads(1)
    try:
        figures = measure(chosen.film, chosen.audio, text=text, phones=chosen.phones, portrait=chosen.portrait)
        print(table(figures))
    except FarmError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
