"""Is this photo fit to talk?  Looked at once by `prepare`, for every model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from farm.errors import InputError
from workers.engines.preview import landmarks
from workers.engines.preview.covered import DOUBTFUL, SURE, is_cloth, look_for_mouth
from workers.engines.preview.face import Detection, Doubles, FaceReader, Mesh
from workers.engines.preview.shaping import Pixels, luminance

_LEVEL_PITCH = 4.0  # degrees that the mesh reports for a face looking straight into the camera
_SHARPNESS_SIDE = 128
_SURE = 0.7  # the detector's score of an upright face is above this
_TURNS = {cv2.ROTATE_90_CLOCKWISE: 90, cv2.ROTATE_180: 180, cv2.ROTATE_90_COUNTERCLOCKWISE: 270}


@dataclass(frozen=True)
class PortraitFacts:
    """What was seen.  Lengths in pixels of the photo, angles in degrees."""

    width: int
    height: int
    faces: int
    box: tuple[float, float, float, float] | None = None  # left, top, width, height of the chosen face
    score: float = 0.0  # the detector's, 0..1
    face_width: float = 0.0
    yaw: float = 0.0  # positive when the person turns to the picture's right
    pitch: float = 0.0  # positive when the person looks down
    roll: float = 0.0  # positive when the head leans to the picture's right
    mouth_open: float = 0.0  # gap of the lips in mouth widths
    eyes_open: float = 0.0  # gap of the lids in eye widths, of the more closed eye
    brightness: float = 0.0  # mean luma of the face, 0..255
    sharpness: float = 0.0  # spread of the Laplacian of the face at 128 px; under about 3 looks blurred
    inside: float = 1.0  # share of the face's box that lies inside the photo
    mouth_covered: bool = False  # by a mask, a hand, a cup or the like
    mouth_doubt: float = 0.0  # how much speaks for that; see covered.MouthSigns
    turned_by: int = 0  # degrees clockwise that would bring a face that lies on its side upright

    def as_json(self) -> dict[str, Any]:
        """For the job's facts."""
        return asdict(self)


@dataclass(frozen=True)
class PortraitRules:
    """Limits of one model; the [portrait] table of its file in configs/models may change them."""

    needs_face: bool = True  # False for models that animate anything
    min_face_px: float = 60.0  # pixels
    max_yaw_degrees: float = 45.0
    max_pitch_degrees: float = 40.0
    max_roll_degrees: float = 40.0
    least_inside: float = 0.75
    noted_yaw_degrees: float = 28.0
    small_share: float = 0.18  # of the photo's shorter side
    dark: float = 50.0
    blurred: float = 3.0
    closed_eyes: float = 0.12

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> PortraitRules:
        """These rules with the limits that `values` names replaced; what it names besides is none of ours."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def look(image_path: Path, reader: FaceReader | None = None) -> PortraitFacts:
    """Look at an upright 8-bit picture, as `workers.portrait.normalise` writes it.

    Raises InputError when it cannot be read and ConfigError when the face models are missing.
    """
    try:
        photo = cv2.imdecode(np.frombuffer(image_path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except OSError as error:
        raise InputError(f"cannot read the portrait {image_path}: {error.strerror}") from None
    except cv2.error:
        photo = None
    if photo is None:
        raise InputError(f"the portrait {image_path} is not a picture that can be read")
    reader = reader or FaceReader()
    height, width = photo.shape[:2]
    faces = _faces(photo, reader)
    score = faces[0][0].score if faces else 0.0
    if score < _SURE:  # a face upside down is sometimes taken for an upright one, with a low score
        for turn, degrees in _TURNS.items():
            turned = _faces(cv2.rotate(photo, turn), reader)
            if turned and turned[0][0].score > max(score + 0.15, _SURE):
                return PortraitFacts(width, height, 0, turned_by=degrees)
    return _describe(photo, reader, len(faces), *faces[0]) if faces else PortraitFacts(width, height, 0)


def check(facts: PortraitFacts, rules: PortraitRules | None = None) -> list[str]:
    """Notes for the report.  Raises InputError with one sentence when no model could do well with this photo."""
    rules = rules or PortraitRules()
    if not facts.faces and not rules.needs_face:
        return ["no face was found in the portrait"]
    if facts.turned_by:
        raise InputError(f"the portrait is not upright; turn it {facts.turned_by} degrees clockwise")
    if not facts.faces:
        raise InputError("no face was found in the portrait; use a photo that shows one face from the front")
    if facts.face_width < rules.min_face_px:
        raise InputError(
            f"the face in the portrait is only {facts.face_width:.0f} px wide; "
            f"use a photo in which it is at least {rules.min_face_px:.0f} px wide"
        )
    if facts.inside < rules.least_inside:
        raise InputError("a part of the face is outside the portrait; use a photo that shows the whole face")
    if abs(facts.yaw) > rules.max_yaw_degrees:
        raise InputError(
            f"the portrait shows the face from the side (turned by about {abs(facts.yaw):.0f} degrees); "
            "use a photo taken from the front"
        )
    if abs(facts.pitch) > rules.max_pitch_degrees:
        way = "down" if facts.pitch > 0 else "up"
        raise InputError(f"the face in the portrait looks too far {way}; use a photo that looks into the camera")

    if abs(facts.roll) > rules.max_roll_degrees:
        raise InputError("the head in the portrait lies on its side; turn the photo upright")

    notes = []
    if facts.faces > 1:
        notes.append(f"the portrait shows {facts.faces} faces; the largest one talks")
    if facts.inside < 0.97:
        notes.append("the face reaches beyond the edge of the portrait; a photo of the whole head looks better")
    if facts.face_width < rules.small_share * min(facts.width, facts.height):
        notes.append("the face is small in the portrait; the film is cropped close to it")
    if abs(facts.yaw) > rules.noted_yaw_degrees:
        notes.append(f"the face is turned by about {abs(facts.yaw):.0f} degrees; a frontal photo looks better")
    if facts.brightness < rules.dark:
        notes.append("the face is dark; a brighter photo looks better")
    if facts.sharpness < rules.blurred:
        notes.append("the face is blurred; a sharper photo looks better")
    if facts.mouth_covered:
        notes.append("the mouth is covered in the portrait; a photo that shows the mouth looks better")
    elif facts.mouth_doubt > DOUBTFUL:
        notes.append("something may hide the mouth in the portrait; if so, a photo that shows the mouth looks better")
    if facts.eyes_open < rules.closed_eyes:
        notes.append("the eyes seem closed in the portrait and will stay so")
    return notes


def _faces(photo: Pixels, reader: FaceReader) -> list[tuple[Detection, Mesh]]:
    """Detections that the mesh model agrees are faces, the most prominent first."""
    meshes = ((face, reader.mesh(photo, face)) for face in reader.detect(photo))
    return [(face, mesh) for face, mesh in meshes if mesh.presence > 0.5]


def _describe(photo: Pixels, reader: FaceReader, count: int, face: Detection, mesh: Mesh) -> PortraitFacts:
    height, width = photo.shape[:2]
    points = mesh.points
    left, top = points[landmarks.OVAL, :2].min(axis=0)
    right, bottom = points[landmarks.OVAL, :2].max(axis=0)
    yaw, pitch, roll = _angles(points)
    mouth = np.linalg.norm(points[landmarks.LEFT_CORNER] - points[landmarks.RIGHT_CORNER])
    gap = np.linalg.norm(points[landmarks.LOWER_LIP_CENTRE, :2] - points[landmarks.UPPER_LIP_CENTRE, :2])
    doubt = look_for_mouth(photo, points, reader).doubt
    brightness, sharpness = _light(photo, (left, top, right, bottom))
    return PortraitFacts(
        width=width,
        height=height,
        faces=count,
        box=(round(float(left), 1), round(float(top), 1), round(float(right - left), 1), round(float(bottom - top), 1)),
        score=round(face.score, 3),
        face_width=round(float(max(right - left, 0.75 * (bottom - top))), 1),
        yaw=round(yaw, 1),
        pitch=round(pitch, 1),
        roll=round(roll, 1),
        mouth_open=round(float(gap / max(mouth, 1.0)), 3),
        mouth_covered=is_cloth(photo, points) or doubt > SURE,
        mouth_doubt=round(doubt, 2),
        eyes_open=round(_eyes_gap(points), 3),
        brightness=round(brightness, 1),
        sharpness=round(sharpness, 2),
        inside=round(_share_inside((left, top, right, bottom), width, height), 3),
    )


def _angles(points: Doubles) -> tuple[float, float, float]:
    """Yaw, pitch and roll from the mesh's depth.  Good to a few degrees, which is enough to tell a profile."""
    across = points[landmarks.LEFT_EDGE] - points[landmarks.RIGHT_EDGE]
    down = points[landmarks.CHIN] - points[landmarks.FOREHEAD]
    eyes = points[landmarks.LEFT_EYE_OUTER] - points[landmarks.RIGHT_EYE_OUTER]
    yaw = math.degrees(math.atan2(across[2], math.hypot(across[0], across[1])))
    pitch = math.degrees(math.atan2(down[2], math.hypot(down[0], down[1]))) - _LEVEL_PITCH
    return yaw, pitch, math.degrees(math.atan2(eyes[1], eyes[0]))


def _share_inside(box: tuple[float, float, float, float], width: int, height: int) -> float:
    left, top, right, bottom = box
    across = (min(right, width) - max(left, 0)) / max(right - left, 1.0)
    down = (min(bottom, height) - max(top, 0)) / max(bottom - top, 1.0)
    return float(max(across, 0.0) * max(down, 0.0))


def _eyes_gap(points: Doubles) -> float:
    """Gap of the lids in eye widths, of the more closed eye."""
    gaps = []
    for upper, lower in (
        (landmarks.RIGHT_UPPER_LID, landmarks.RIGHT_LOWER_LID),
        (landmarks.LEFT_UPPER_LID, landmarks.LEFT_LOWER_LID),
    ):
        middle = len(upper) // 2
        width = float(np.linalg.norm(points[upper[-1], :2] - points[upper[0], :2]))
        gaps.append(float(np.linalg.norm(points[upper[middle], :2] - points[lower[middle], :2])) / max(width, 1.0))
    return min(gaps)


def _light(photo: Pixels, box: tuple[float, float, float, float]) -> tuple[float, float]:
    """Mean luma of the face and the spread of its Laplacian at a fixed size."""
    left, top, right, bottom = (max(0, int(edge)) for edge in box)
    face = photo[top : max(bottom, top + 1), left : max(right, left + 1)]
    if not face.size:
        return 0.0, 0.0
    grey = luminance(cv2.resize(face, (_SHARPNESS_SIDE, _SHARPNESS_SIDE), interpolation=cv2.INTER_AREA))
    return float(grey.mean()), float(cv2.Laplacian(grey, cv2.CV_32F).std())
