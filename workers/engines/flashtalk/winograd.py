"""Causal convolutions of the autoencoder with half of the multiplications.

A 3x3x3 convolution over frames is a short convolution in time of 3x3 convolutions in space.  Winograd's algorithm
F(4, 3) makes four frames of a result from six transformed frames, one 3x3 convolution each, where the plain way needs
twelve.  The matrices are those of Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016),
section 4.3.

A sequence has 1 + 4n frames in most layers.  Before its first frame there is nothing, so that one takes the last tap
alone: one convolution, and the same weight as the last transformed frames have, with which it goes.

Transformed frames and products are half precision, not bfloat16: what enters a convolution here is normalised, so the
range suffices, and three more bits make up for what the transformation costs.  On random weights of the true size the
decoder's error against float32 is 1.26e-2 this way and 1.34e-2 the plain way in bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from workers.engines.flashtalk import ops

TILE = 4  # frames of a result
POINTS = 6  # frames that those depend on, and convolutions that they need
BEFORE = POINTS - TILE  # frames before the first of the result
TAPS = 3

# Lavin and Gray's B^T, G and A^T.
SPREAD = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
WEIGH = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
GATHER = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class Products(NamedTuple):
    """A convolution's result before the last transformation: six planes [tiles, H, W, C] for `frames` frames.

    The last plane has one more at its end: the first frame's result as it is.
    """

    planes: tuple[torch.Tensor, ...]
    frames: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of the frames, [T, H, W, C]."""
        _, rows, columns, channels = self.planes[0].shape
        return self.frames, rows, columns, channels


def tiles_of(frames: int) -> int:
    """Tiles of all frames but the first."""
    return -(-(frames - 1) // TILE)


def pays(frames: int) -> bool:
    """Whether a sequence of `frames` takes fewer convolutions in space this way."""
    return POINTS * tiles_of(frames) + 1 < TAPS * frames


def half_of(dtype: torch.dtype) -> torch.dtype:
    """The type of transformed frames beside activations of `dtype`."""
    return torch.float16 if dtype == torch.bfloat16 else dtype


def weigh(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """A convolution's weight, float32 [O, C, 3, 3, 3], as six weights [O, C, 3, 3]."""
    made = torch.einsum("jk,ockhw->jochw", torch.tensor(WEIGH, device=weight.device), weight)
    return tuple(w.to(half_of(dtype)).contiguous(memory_format=torch.channels_last) for w in made)


def spread(
    y: torch.Tensor | Products,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    gamma: torch.Tensor,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """SiLU of the channel norm of (residual + y + bias), transformed; the sum too where `keep`.

    That is [6 * tiles + 1, H, W, C]: six planes of `tiles` frames, and then the first frame as it is.  The norm is that
    of ops.residual_rms_silu; `dtype` is the activations'.
    """
    frames, rows, columns, channels = y.shape
    tiles = tiles_of(frames)
    like = y.planes[0] if isinstance(y, Products) else y
    out = torch.empty((POINTS * tiles + 1, rows, columns, channels), dtype=half_of(dtype), device=like.device)
    if ops.fused(like):
        return out, _kernels().convert(y, bias, residual, gamma, dtype, keep, out, True)
    x, kept = _add_up(y, bias, residual, dtype, keep)
    h = F.silu(F.normalize(x, dim=-1) * gamma)
    out[-1] = h[0]
    h = F.pad(h, (0, 0, 0, 0, 0, 0, BEFORE - 1, 1 + tiles * TILE - frames))
    seen = torch.stack([h[i : i + TILE * tiles : TILE][:tiles] for i in range(POINTS)])
    matrix = torch.tensor(SPREAD, dtype=torch.float32, device=like.device)
    out[:-1] = torch.einsum("jk,kthwc->jthwc", matrix, seen).flatten(0, 1)
    return out, kept


def convolve(tiles: torch.Tensor, weights: tuple[torch.Tensor, ...], padding: tuple[int, int], frames: int) -> Products:
    """The products of what `spread` gave with the weights of `weigh`."""
    count = tiles_of(frames)
    parts = tiles.permute(0, 3, 1, 2).split([count] * (POINTS - 1) + [count + 1])
    planes = (F.conv2d(part, weight, padding=padding) for part, weight in zip(parts, weights, strict=True))
    return Products(tuple(plane.permute(0, 2, 3, 1).contiguous() for plane in planes), frames)


def norm_into(
    y: Products,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    gamma: torch.Tensor,
    room: torch.Tensor,
) -> None:
    """ops.residual_rms_silu of products into a plain room [2 + T, H, W, C]."""
    if ops.fused(room):
        _kernels().convert(y, bias, residual, gamma, room.dtype, False, room)
        return
    x, _ = _add_up(y, bias, residual, room.dtype, False)
    room[BEFORE:] = F.silu(F.normalize(x, dim=-1) * gamma).to(room.dtype)


def add_up(y: Products, bias: torch.Tensor, residual: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """residual + y + bias, [T, H, W, C]."""
    if ops.fused(y.planes[0]):
        return _kernels().convert(y, bias, residual, None, dtype, True, None)
    return _add_up(y, bias, residual, dtype, True)[0].to(dtype)


def gather(y: Products) -> torch.Tensor:
    """The frames of products, float32 [T, H, W, C]."""
    first = y.planes[-1][-1:].float()
    planes = torch.stack([plane[: len(y.planes[0])] for plane in y.planes]).float()
    matrix = torch.tensor(GATHER, dtype=torch.float32, device=planes.device)
    later = torch.einsum("ij,jthwc->tihwc", matrix, planes).flatten(0, 1)
    return torch.cat([first, later])[: y.frames]


def _add_up(
    y: torch.Tensor | Products,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    x = gather(y) if isinstance(y, Products) else y.float()
    if bias is not None:
        x = x + bias.float()
    if residual is not None:
        x = x + residual.float()
    if not keep:
        return x, None
    kept = x.to(dtype)
    return kept.float(), kept


def _kernels():  # type: ignore[no-untyped-def]
    from workers.engines.flashtalk import winograd_kernels

    return winograd_kernels
