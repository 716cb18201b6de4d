"""What is behind the person: a fine matte, and the background filled in where the person stands."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from workers.engines.preview.framing import FramedPortrait
from workers.engines.preview.shaping import Floats, Pixels, smoothstep

_RING = 110  # the ring is one part in this many of the picture's shorter side
_REACH = 4  # rings


@dataclass(frozen=True)
class Backdrop:
    """The still part of the picture."""

    cover: Floats  # [height, width], how much of each pixel is the person, 0..1
    plate: Pixels  # [height, width, 3], the picture without the person


def measure_backdrop(portrait: FramedPortrait) -> Backdrop | None:
    """None when the model finds no person or leaves no background: then the whole picture moves with the head."""
    image, matte = portrait.image, portrait.matte
    if matte.mean() <= 0.08:
        return None
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
    radius = max(3, min(image.shape[:2]) // 100)
    cover = smoothstep(0.22, 0.80, _guided(grey, matte, radius, 1e-4)).astype(np.float32)
    # Wisps of hair that the matte misses belong to neither layer: the plate forgets a ring around the person.
    ring = max(2, min(image.shape[:2]) // _RING)
    person = cv2.dilate(
        (cover > 0.03).astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * ring + 1,) * 2)
    )
    if (person == 0).mean() <= 0.02:
        return None
    filled = np.clip(_fill(image, person == 0), 0, 255).astype(np.uint8)
    # Lines of the background go on behind the person's edge, as far as the head's motion uncovers it.
    reach = 2 * _REACH * ring + 1
    deep = cv2.erode(person, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    filled = np.where(person[..., None] > 0, filled, image)
    edge = cv2.inpaint(filled, person - deep, 3, cv2.INPAINT_TELEA)
    return Backdrop(cover, edge)


def _guided(guide: Floats, matte: Floats, radius: int, smoothness: float) -> Floats:
    """The matte with its edges moved to the guide's edges (He, Sun, Tang: Guided Image Filtering, 2010)."""

    def mean(values: Floats) -> Floats:
        return cv2.blur(values, (2 * radius + 1, 2 * radius + 1))

    mean_guide, mean_matte = mean(guide), mean(matte)
    slope = (mean(guide * matte) - mean_guide * mean_matte) / (mean(guide * guide) - mean_guide**2 + smoothness)
    return mean(slope) * guide + mean(mean_matte - slope * mean_guide)


def _fill(image: Pixels, known: npt.NDArray[np.bool_]) -> Floats:
    """Unknown pixels filled from ever coarser versions of the known ones (push and pull)."""
    weight = known.astype(np.float32)
    colour = image.astype(np.float32) * weight[..., None]
    levels = []
    while min(colour.shape[:2]) > 2:
        levels.append((colour, weight))
        smaller = (colour.shape[1] + 1) // 2, (colour.shape[0] + 1) // 2
        colour = cv2.resize(colour, smaller, interpolation=cv2.INTER_AREA)
        weight = cv2.resize(weight, smaller, interpolation=cv2.INTER_AREA)
    for finer, finer_weight in reversed(levels):
        coarse = colour / np.maximum(weight, 1e-4)[..., None]
        coarse = cv2.resize(coarse, (finer.shape[1], finer.shape[0]), interpolation=cv2.INTER_LINEAR)
        share = np.clip(finer_weight, 0, 1)[..., None]
        colour = finer / np.maximum(finer_weight, 1e-4)[..., None] * share + coarse * (1 - share)
        weight = np.ones(colour.shape[:2], np.float32)
    return colour
