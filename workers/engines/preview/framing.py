"""From a photo of any shape to the film's picture with the face in it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from farm.errors import InputError
from workers.engines.preview.covered import is_mouth_covered
from workers.engines.preview.drawn import is_drawn
from workers.engines.preview.face import Doubles, FaceReader, Mesh
from workers.engines.preview.landmarks import OVAL
from workers.engines.preview.settings import Framing
from workers.engines.preview.shaping import Floats, Pixels

_SMALL_FACE = 0.34  # of the picture's shorter side; a smaller face is moved close to
_WANTED_FACE = 0.40
_FACE_CENTRE = 0.46  # share of the picture's height above the face's centre
_HEAD_ROOM = (1.5, 1.55)  # least width and height of the picture in faces, or hair and chin would be cut


@dataclass(frozen=True)
class FramedPortrait:
    """The film's picture before anything moves."""

    image: Pixels  # [height, width, 3], BGR
    points: Doubles  # [468, 3] landmarks in its pixels, on a grid of 1/16
    matte: Floats  # [height, width], how much a pixel belongs to the person
    mouth_covered: bool = False  # by a mask, a hand, a cup or the like
    drawn: bool = False  # in lines and flat colours

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True)
class Crop:
    """A rectangle of the photo in its pixels; it may reach beyond the photo."""

    left: int
    top: int
    width: int
    height: int


def frame_portrait(photo: Pixels, width: int, height: int, framing: Framing, reader: FaceReader) -> FramedPortrait:
    """Cut the picture around the largest face.  Raises InputError when there is none."""
    mesh = read_largest_face(photo, reader)
    crop = choose_crop(mesh.points, photo.shape[1], photo.shape[0], width / height, framing)
    image = _cut(photo, crop, width, height)
    scale = np.array([width / crop.width, height / crop.height])
    points = np.concatenate(
        [(mesh.points[:, :2] - [crop.left, crop.top]) * scale, mesh.points[:, 2:] * scale.mean()], axis=1
    )
    # The grid of 1/16 hides last-bit differences between builds of OpenCV.
    points = np.round(reader.mesh_again(image, points).points * 16) / 16
    return FramedPortrait(
        image,
        points,
        reader.matte(image),
        mouth_covered=is_mouth_covered(photo, mesh.points, reader),
        drawn=is_drawn(photo, mesh.points),
    )


def read_largest_face(photo: Pixels, reader: FaceReader) -> Mesh:
    """Landmarks of the most prominent face that the mesh model agrees is one.  Raises InputError."""
    for face in reader.detect(photo):
        mesh = reader.mesh(photo, face)
        if mesh.presence > 0.5:
            return mesh
    raise InputError("no face was found in the portrait; use a photo that shows one face from the front")


def choose_crop(points: Doubles, photo_width: int, photo_height: int, aspect: float, framing: Framing) -> Crop:
    """The part of a photo that becomes the picture, `aspect` wide for a height of 1."""
    low, high = points[OVAL, :2].min(axis=0), points[OVAL, :2].max(axis=0)
    face = max(high[0] - low[0], 0.75 * (high[1] - low[1]))
    width = min(photo_width, photo_height * aspect)
    shorter = min(width, width / aspect)
    if framing == "auto" and face < _SMALL_FACE * shorter:
        width *= face / _WANTED_FACE / shorter
    width = max(width, _HEAD_ROOM[0] * face, _HEAD_ROOM[1] * (high[1] - low[1]) * aspect)
    columns, rows = round(width), round(width / aspect)
    centre = (low + high) / 2
    return Crop(
        _place(centre[0] - columns / 2, columns, photo_width),
        _place(centre[1] - rows * _FACE_CENTRE, rows, photo_height),
        columns,
        rows,
    )


def _place(wanted: float, length: int, available: int) -> int:
    """Start of a stretch of `length`, kept inside [0, available] or, if it is longer than that, around it."""
    low, high = min(0, available - length), max(0, available - length)
    return round(min(max(wanted, low), high))


def _cut(photo: Pixels, crop: Crop, width: int, height: int) -> Pixels:
    right, bottom = crop.left + crop.width, crop.top + crop.height
    inside = photo[max(0, crop.top) : bottom, max(0, crop.left) : right]
    margins = (
        max(0, -crop.top),
        max(0, bottom - photo.shape[0]),
        max(0, -crop.left),
        max(0, right - photo.shape[1]),
    )
    if any(margins):
        inside = _extend(inside, *margins)
    how = cv2.INTER_AREA if width < crop.width else cv2.INTER_LANCZOS4
    return cv2.resize(inside, (width, height), interpolation=how)


def _extend(image: Pixels, above: int, below: int, before: int, after: int) -> Pixels:
    """`image` with margins that mirror it and are blurred, so that no second person appears in them."""
    wide = cv2.copyMakeBorder(image, above, below, before, after, cv2.BORDER_REFLECT)
    known = np.zeros(wide.shape[:2], np.float32)
    known[above : above + image.shape[0], before : before + image.shape[1]] = 1
    reach = max(above, below, before, after)
    blurred = cv2.GaussianBlur(wide, (0, 0), max(2.0, 0.25 * reach))
    fade = max(1, round(0.02 * max(wide.shape[:2])))
    share = cv2.blur(cv2.erode(known, np.ones((fade, fade), np.uint8), borderValue=1), (fade, fade))[..., None]
    return np.rint(wide * share + blurred * (1 - share)).astype(np.uint8)
