"""Colour match: each frame's Lab mean and spread are moved onto the portrait's.

Conversions are CIE Lab over BT.709 primaries and the D65 white with upstream's rounded constants.  Everything runs in
float32: upstream's bfloat16 costs more than one level of 255 on average.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from workers.engines.flashtalk import ops

EPSILON = 0.008856
KAPPA = 903.3
WHITE = (0.95047, 1.0, 1.08883)
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
TO_RGB = ((3.2404542, -1.5371385, -0.4985314), (-0.9692660, 1.8760108, 0.0415560), (0.0556434, -0.2040259, 1.0572252))


class ColourStatistics(NamedTuple):
    """Lab mean and population deviation of a picture, [3] each."""

    mean: torch.Tensor
    deviation: torch.Tensor


def _mix(planes: torch.Tensor, matrix: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """A 3x3 matrix over the first axis, written out so that no library may choose a rounded product."""
    r, g, b = planes.unbind(0)
    return torch.stack([m[0] * r + m[1] * g + m[2] * b for m in matrix])


def to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """sRGB in [0, 1], [3, ...], to Lab of the same shape."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mix(linear, TO_XYZ)
    white = torch.tensor(WHITE, device=rgb.device, dtype=rgb.dtype).view(3, *[1] * (rgb.dim() - 1))
    xyz = (xyz / white).clamp(1e-8, 1.0)
    f = torch.where(xyz > EPSILON, xyz ** (1 / 3), (KAPPA * xyz + 16) / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def from_lab(lab: torch.Tensor) -> torch.Tensor:
    """Lab [3, ...] to sRGB clamped to [0, 1]."""
    fy = (lab[0] + 16) / 116
    fx = lab[1] / 500 + fy
    fz = fy - lab[2] / 200
    x = torch.where(fx**3 > EPSILON, fx**3, (116 * fx - 16) / KAPPA)
    y = torch.where(lab[0] > KAPPA * EPSILON, fy**3, lab[0] / KAPPA)
    z = torch.where(fz**3 > EPSILON, fz**3, (116 * fz - 16) / KAPPA)
    linear = _mix(torch.stack([x * WHITE[0], y * WHITE[1], z * WHITE[2]]), TO_RGB)
    rgb = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=1e-12) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return rgb.clamp(0.0, 1.0)


def measure_colour(picture: torch.Tensor) -> ColourStatistics:
    """Statistics of a picture in [-1, 1], [3, H, W]."""
    lab = to_lab((picture.float() + 1) / 2)
    return ColourStatistics(lab.mean(dim=(1, 2)), lab.std(dim=(1, 2), unbiased=False))


def match_colour(frames: torch.Tensor, reference: ColourStatistics, strength: float) -> torch.Tensor:
    """Frames in [-1, 1], [3, T, H, W] float32, moved onto the reference by `strength` in [0, 1]."""
    if strength <= 0:
        return frames
    if ops.fused(frames):
        frames = frames.float().contiguous()
        mean, deviation = ops.kernels.lab_statistics(frames)
        deviation = torch.where(deviation < 1e-8, torch.ones_like(deviation), deviation)
        ratio = (reference.deviation.view(3, 1) / deviation).contiguous()
        return ops.kernels.match_lab(frames, mean, ratio, reference.mean.contiguous(), strength)
    rgb = (frames.float() + 1) / 2
    lab = to_lab(rgb)
    mean = lab.mean(dim=(2, 3), keepdim=True)
    deviation = lab.std(dim=(2, 3), keepdim=True, unbiased=False)
    deviation = torch.where(deviation < 1e-8, torch.ones_like(deviation), deviation)
    wanted = reference.deviation.view(3, 1, 1, 1)
    moved = from_lab((lab - mean) * (wanted / deviation) + reference.mean.view(3, 1, 1, 1))
    return ((1 - strength) * rgb + strength * moved) * 2 - 1


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """Frames in [-1, 1], [3, T, H, W], as rounded uint8 [T, H, W, 3]."""
    levels = ((frames.float() + 1) / 2).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
