#!/usr/bin/env python3
"""Draw the pictures of docs/models/preview.md anew, with the weights and the renderer of this checkout.

    .venv/bin/python scripts/draw_preview.py [--into docs/pictures] [--voices FOLDER]

All portraits are in the public domain: the two examples and what this script makes of them.  It takes half a minute.
A sheet of mouths at the phones that are said is drawn from the example reading and from the voices of FOLDER, each a
recording with a file of its phones beside it, as scripts/mouth/reading_en.phones.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from farm.errors import FarmError  # noqa: E402
from scripts.measure_film import decode_sound  # noqa: E402
from scripts.mouth.aligning import read_phones  # noqa: E402
from scripts.mouth.phones import BILABIALS, ROUND_VOWELS, WIDE_VOWELS, Segment, letters  # noqa: E402
from workers.engines.contract import DRIVING_RATE, FilmRequest  # noqa: E402
from workers.engines.preview import landmarks, make_engine  # noqa: E402
from workers.engines.preview.face import FaceReader  # noqa: E402
from workers.engines.preview.film_facts import measure  # noqa: E402
from workers.engines.preview.framing import FramedPortrait, frame_portrait  # noqa: E402
from workers.engines.preview.motion import STILL, Pose  # noqa: E402
from workers.engines.preview.renderer import Renderer  # noqa: E402

Picture = npt.NDArray[np.uint8]

PORTRAITS, SPEECH = ROOT / "examples/portraits", ROOT / "examples/speech"
READING = SPEECH / "reading_en.flac", ROOT / "scripts/mouth/reading_en.phones"
_SPEAKS = replace(STILL, talk=1.0, level=0.8, rest_seconds=0.0, close=0.0)
POSES = {
    "at rest": STILL,
    "a": replace(_SPEAKS, open=1.0, level=1.0),
    "e": replace(_SPEAKS, open=0.35, wide=0.75, round=0.0, teeth=0.3),
    "o": replace(_SPEAKS, open=0.3, wide=0.1, round=0.8),
    "l": replace(_SPEAKS, open=0.45, tongue=0.8, teeth=0.2),
    "s": replace(_SPEAKS, open=0.1, teeth=1.0),
    "p b m": replace(_SPEAKS, close=1.0),
    "blink": replace(STILL, blink=1.0),
    "head at its most": replace(STILL, yaw=1.6, pitch=-1.0, roll=1.5, shift_x=1.2, body_x=1.3, breath=1.0),
}
_TILE = 150  # pixels
_SOUNDS = (("p b m", BILABIALS, 4), ("spread vowels", WIDE_VOWELS, 3), ("rounded vowels", ROUND_VOWELS, 3))
_PAUSE_SECONDS = 0.2
_INK = (30, 30, 30)
_MASK = [234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 347]
_MASK += [197, 118]


def draw_pose(renderer: Renderer, pose: Pose, side: int) -> Picture:
    """One frame, BGR."""
    frame = np.empty((side * 3 // 2, side), np.uint8)
    renderer.draw(pose, frame)
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_YUV2BGR_I420), np.uint8)


def cut(picture: Picture, centre: npt.NDArray[np.float64], reach: float, side: int) -> Picture:
    """A square around `centre` that reaches so far to every side, `side` pixels wide."""
    (x, y), scale = centre, side / (2 * reach)
    matrix = np.array([[scale, 0, scale * (reach - x)], [0, scale, scale * (reach - y)]])
    if scale < 1:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.4 / scale), np.uint8)
    found = cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.uint8)


def write(picture: Picture, text: str, x: int, y: int) -> None:
    """A short text into a picture."""
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)


def as_cartoon(photo: Picture) -> Picture:
    """Flat colours and ink."""
    scale = 640 / max(photo.shape[:2])
    picture = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        picture = cv2.bilateralFilter(picture, 9, 40, 9)
    grey = cv2.medianBlur(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), 5)
    ink = cv2.adaptiveThreshold(grey, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY, 15, 5)
    ink = cv2.GaussianBlur(ink, (0, 0), 0.7)[..., None] / 255.0
    flat = np.rint(picture / 28.0) * 28.0
    return np.asarray(np.clip(flat * ink + 25 * (1 - ink), 0, 255), np.uint8)


def portraits(reader: FaceReader) -> dict[str, Picture]:
    """The photos and what is made of them."""
    hopper, astronaut = (cv2.imread(str(PORTRAITS / name)) for name in ("grace_hopper.jpg", "astronaut.jpg"))
    masked = hopper.copy()
    points = reader.mesh(hopper, reader.detect(hopper)[0]).points
    cv2.fillPoly(masked, [points[_MASK, :2].astype(np.int32)], (190, 150, 90))
    framed = frame_portrait(hopper, 768, 768, "auto", reader)
    shouts = draw_pose(Renderer(framed, 1.6), replace(POSES["a"], teeth=0.6), 768)
    dark = 255 * (astronaut / 255.0) ** 2.0 * [0.55, 0.65, 0.8]
    return {
        "photo": astronaut,
        "photo, glasses": hopper,
        "drawn": as_cartoon(hopper),
        "drawn, grin": as_cartoon(astronaut),
        "painted": np.asarray(cv2.stylization(astronaut, sigma_s=40, sigma_r=0.35), np.uint8),
        "dark": np.clip(dark, 0, 255).astype(np.uint8),
        "photo of an open mouth": shouts,
        "mask: mouth stays": masked,
        "microphone: mouth stays": with_microphone(hopper, points),
    }


def with_microphone(photo: Picture, points: npt.NDArray[np.float64]) -> Picture:
    """A dark ball before the mouth, and what it is held by."""
    x, y = points[[landmarks.UPPER_LIP_CENTRE, landmarks.LOWER_LIP_CENTRE], :2].mean(axis=0)
    radius = 0.26 * float(np.linalg.norm(points[landmarks.LEFT_EDGE, :2] - points[landmarks.RIGHT_EDGE, :2]))
    row, column = np.mgrid[: photo.shape[0], : photo.shape[1]]
    across, down = (column - x) / radius, (row - y) / radius - 0.2
    ball = across**2 + down**2
    light = np.where(ball < 1, 0.6 + 0.8 * np.sqrt(np.clip(1 - ball, 0, 1)) * (1 - 0.5 * across), 0.7)
    held = (ball < 1) | ((np.abs(across - 0.2 * down) < 0.45) & (down > 0))
    cover = cv2.GaussianBlur(held.astype(np.float64), (0, 0), 0.02 * radius)[..., None]
    return np.asarray(np.clip(photo * (1 - cover) + 48 * light[..., None] * cover, 0, 255), np.uint8)


def mouth_of(portrait: FramedPortrait) -> tuple[npt.NDArray[np.float64], float]:
    """The middle of the mouth and half its width."""
    corners = portrait.points[[landmarks.RIGHT_CORNER, landmarks.LEFT_CORNER], :2]
    return corners.mean(axis=0), float(np.linalg.norm(corners[1] - corners[0])) / 2


def eyes_of(portrait: FramedPortrait) -> tuple[npt.NDArray[np.float64], float]:
    """The middle between the eyes and half the distance of their outer corners."""
    corners = portrait.points[[landmarks.RIGHT_EYE_OUTER, landmarks.LEFT_EYE_OUTER], :2]
    return corners.mean(axis=0), float(np.linalg.norm(corners[1] - corners[0])) / 2


def draw_faces(photos: dict[str, Picture], reader: FaceReader) -> Picture:
    """Every portrait in every pose."""
    head = np.full((22, _TILE * len(POSES), 3), 255, np.uint8)
    for k, name in enumerate(POSES):
        write(head, name, _TILE * k + 6, 16)
    rows = [head]
    for name, photo in photos.items():
        portrait = frame_portrait(photo, 512, 512, "auto", reader)
        renderer = Renderer(portrait, 1.0)
        centre, half = mouth_of(portrait)
        around = centre - [0, 1.3 * half]
        tiles = [cut(draw_pose(renderer, pose, 512), around, 3.6 * half, _TILE) for pose in POSES.values()]
        row = np.hstack(tiles)
        cv2.rectangle(row, (0, 0), (8 + int(7.6 * len(name)), 18), (255, 255, 255), -1)
        write(row, name, 4, 14)
        rows.append(row)
    return np.vstack(rows)


def draw_close(photos: dict[str, Picture], reader: FaceReader) -> Picture:
    """Close-ups of what is hardest: lids, tongue, teeth, a drawing's mouth, the head at more than its usual motion."""
    side, tile = 768, 300
    turned = replace(POSES["head at its most"], yaw=2.2, shift_x=1.6, body_x=1.8)
    rows = []
    for name in ("photo", "photo, glasses", "drawn"):
        portrait = frame_portrait(photos[name], side, side, "auto", reader)
        renderer = Renderer(portrait, 1.0)
        (mouth, half), (eyes, reach) = mouth_of(portrait), eyes_of(portrait)
        wanted: list[tuple[Pose, npt.NDArray[np.float64], float]] = [
            (POSES["a"], mouth, 1.7 * half),
            (POSES["l"], mouth, 1.7 * half),
            (replace(STILL, blink=0.5), eyes, 1.25 * reach),
            (POSES["blink"], eyes, 1.25 * reach),
            (turned, np.array([(side - 1) / 2] * 2), side / 2),
        ]
        rows.append(np.hstack([cut(draw_pose(renderer, pose, side), at, around, tile) for pose, at, around in wanted]))
    return np.vstack(rows)


def moments(segments: tuple[Segment, ...], seconds: float) -> dict[str, list[float]]:
    """When the sounds of the sheet are said and when nobody speaks: middles of the longest of each kind, in order."""
    within = [segment for segment in segments if segment.stop < seconds - 0.1]
    found = {}
    for name, phones, count in _SOUNDS:
        said = [s for s in within if len(letters(s.phone)) == 1 and letters(s.phone)[0] in phones]
        longest = sorted(said, key=lambda s: s.start - s.stop)[:count]
        found[name] = sorted((s.start + s.stop) / 2 for s in longest)
    silent = [s for s in within if s.phone is None and s.stop - s.start > _PAUSE_SECONDS and s.start > 0]
    found["pause"] = [(s.start + s.stop) / 2 for s in silent[:1]]
    return found


def draw_voices(voices: list[tuple[Path, Path]], faces: dict[str, Path], reader: FaceReader) -> Picture:
    """The mouths of each face at the phones of its voice; voices are given to the faces in turn."""
    tile, seconds = 112, 11.0
    counts = [(name, count) for name, _, count in _SOUNDS] + [("pause", 1)]
    head = np.full((22, tile * sum(count for _, count in counts), 3), 255, np.uint8)
    left = 0
    for name, count in counts:
        write(head, name, left + 6, 16)
        left += tile * count
    rows = [head]
    names = list(faces)
    for k, (speech, phones) in enumerate(voices):
        frames = film(faces[names[k % len(names)]], speech, seconds)
        points = reader.mesh(frames[0], reader.detect(frames[0])[0]).points
        corners = points[[landmarks.RIGHT_CORNER, landmarks.LEFT_CORNER], :2]
        mouth, half = corners.mean(axis=0), float(np.linalg.norm(corners[1] - corners[0])) / 2
        when = moments(read_phones(phones), len(frames) / 25)
        row = np.full((tile, head.shape[1], 3), 255, np.uint8)
        left = 0
        for name, count in counts:
            for place, moment in enumerate(when[name]):
                frame = frames[min(len(frames) - 1, int(moment * 25))]
                row[:, left + place * tile : left + (place + 1) * tile] = cut(frame, mouth, 1.7 * half, tile)
            left += tile * count
        name = speech.stem.replace("_", " ")
        cv2.rectangle(row, (0, tile - 17), (8 + int(7.6 * len(name)), tile), (255, 255, 255), -1)
        write(row, name, 4, tile - 5)
        rows.append(row)
    return np.vstack(rows)


def film(portrait: Path, speech: Path, seconds: float, side: int = 512) -> list[Picture]:
    """The frames of a film as the farm renders it, without the encoder."""
    sound = decode_sound(speech)
    frames = min(math.ceil(seconds * 25), len(sound) * 25 // DRIVING_RATE)
    engine = make_engine({})
    engine.load()
    session = engine.begin(
        FilmRequest(portrait, sound, frames, side, side, (25, 1), "", 7, {}, measure(sound)), 0, None
    )
    found: list[Picture] = []
    while len(found) < frames:
        found += [np.asarray(cv2.cvtColor(one, cv2.COLOR_YUV2BGR_I420), np.uint8) for one in session.step()]
    return found


def draw_film(frames: list[Picture], reader: FaceReader) -> Picture:
    """Six frames, then the mouth every fifth of a second."""
    points = reader.mesh(frames[0], reader.detect(frames[0])[0]).points
    corners = points[[landmarks.RIGHT_CORNER, landmarks.LEFT_CORNER], :2]
    mouth, half = corners.mean(axis=0), float(np.linalg.norm(corners[1] - corners[0])) / 2
    middle = np.array([(frames[0].shape[1] - 1) / 2] * 2)
    whole = [cut(frames[k], middle, middle[0] + 0.5, 200) for k in spread(12, 45, 6, len(frames))]
    close = [cut(frames[k], mouth, 1.9 * half, 120)[12:108] for k in spread(40, 5, 20, len(frames))]
    return np.vstack([np.hstack(whole), np.hstack(close[:10]), np.hstack(close[10:])])


def spread(first: int, step: int, count: int, frames: int) -> Iterable[int]:
    """Frame numbers, of a short film closer together."""
    last = min(first + step * (count - 1), frames - 1)
    return np.linspace(min(first, last), last, count).round().astype(int).tolist()


def main() -> int:
    """Draw all five pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "docs/pictures", help="the folder of the pictures")
    parser.add_argument("--voices", type=Path, help="a folder of recordings with their phones")
    chosen = parser.parse_args()
    spoken = sorted(chosen.voices.glob("*.phones")) if chosen.voices is not None else []
    voices = [READING, *((next(chosen.voices.glob(f"{one.stem}.[!p]*")), one) for one in spoken)]
    cv2.setNumThreads(1)
    chosen.into.mkdir(parents=True, exist_ok=True)
    try:
        reader = FaceReader()
        photos = portraits(reader)
        pictures = {
            "faces": draw_faces(photos, reader),
            "close": draw_close(photos, reader),
            "grace-hopper": draw_film(film(PORTRAITS / "grace_hopper.jpg", SPEECH / "greeting_ja.mp3", 11), reader),
            "astronaut": draw_film(film(PORTRAITS / "astronaut.jpg", READING[0], 11), reader),
        }
        with tempfile.TemporaryDirectory() as folder:
            drawing = Path(folder) / "drawn.png"
            cv2.imwrite(str(drawing), photos["drawn"])
            faces = {"photo": PORTRAITS / "astronaut.jpg", "drawn": drawing, "glasses": PORTRAITS / "grace_hopper.jpg"}
            pictures["voices"] = draw_voices(voices, faces, reader)
    except FarmError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    for name, picture in pictures.items():
        path = chosen.into / f"preview-{name}.jpg"
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 84])
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
