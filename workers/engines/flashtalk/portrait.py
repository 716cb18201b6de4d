"""The portrait as the model sees it: covered, cropped in the middle, in [-1, 1]."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from farm.errors import InputError
from workers.engines.flashtalk.geometry import Geometry

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def read_portrait(path: Path, geometry: Geometry) -> np.ndarray:
    """uint8 [H, W, 3]: scaled to cover the film's size, then the middle is cut out.  Raises InputError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise InputError(f"the portrait {path} cannot be read as a picture: {error}") from None
    scale = max(geometry.height / picture.height, geometry.width / picture.width)
    size = (math.ceil(scale * picture.width), math.ceil(scale * picture.height))
    picture = picture.resize(size, resample=Image.Resampling.BILINEAR)
    top = round((size[1] - geometry.height) / 2)
    left = round((size[0] - geometry.width) / 2)
    return np.array(picture)[top : top + geometry.height, left : left + geometry.width].copy()


def to_signed(picture: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [H, W, 3] as [3, H, W] in [-1, 1], computed in `dtype` as upstream does."""
    planes = torch.from_numpy(picture).to(device).permute(2, 0, 1).to(dtype)
    return (planes / 255 - 0.5) * 2


def to_image_encoder(picture: torch.Tensor) -> torch.Tensor:
    """[3, H, W] in [-1, 1] stretched to the picture tower's square and normalised, float32 [1, 3, 224, 224]."""
    square = torch.nn.functional.interpolate(
        picture[None].float(), size=(224, 224), mode="bicubic", align_corners=False
    )
    mean = torch.tensor(IMAGE_MEAN, device=picture.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=picture.device).view(1, 3, 1, 1)
    return (square * 0.5 + 0.5 - mean) / std
