"""winograd.py's passes on a CUDA card, one launch each.

A program takes some pixels through all frames of the chunk: the two frames that neighbouring tiles share stay in
registers, so every frame is read and normalised once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from workers.engines.flashtalk.winograd import Products, tiles_of

ELEMENTS = 1024  # of one frame that a program holds
NOWHERE, ROOM, TILES = 0, 1, 2


@triton.jit
def _finish(
    x,
    frame,
    frames,
    step,
    place,
    mask,
    bias,
    gamma,
    residual_ptr,
    sum_ptr,
    out_ptr,
    HAS_RESIDUAL: tl.constexpr,
    KEEP: tl.constexpr,
    DESTINATION: tl.constexpr,
):
    """One frame's sum, kept if wanted, and its norm's SiLU; zeros after the last frame."""
    there = mask & (frame < frames)
    at = frame * step + place
    x += bias
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + at, there, 0.0).to(tl.float32)
    if KEEP:
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, rounded, there)
        x = rounded.to(tl.float32)
    h = x
    if DESTINATION > 0:
        length = tl.sqrt(tl.sum(tl.where(mask, x * x, 0.0), axis=1))
        h = x / tl.maximum(length, 1e-12)[:, None] * gamma
        h = tl.where(there, h * tl.sigmoid(h), 0.0)
    if DESTINATION == 1:
        tl.store(out_ptr + at + 2 * step, h.to(out_ptr.dtype.element_ty), there)
    return h


@triton.jit
def _convert(
    y0_ptr,
    y1_ptr,
    y2_ptr,
    y3_ptr,
    y4_ptr,
    y5_ptr,
    bias_ptr,
    residual_ptr,
    gamma_ptr,
    sum_ptr,
    out_ptr,
    frames,
    tiles,
    pixels,
    WIDTH: tl.constexpr,
    PRODUCTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    KEEP: tl.constexpr,
    DESTINATION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c = tl.arange(0, BLOCK)
    mask = (r < pixels)[:, None] & (c < WIDTH)[None, :]
    place = r[:, None] * WIDTH + c[None, :]
    step = pixels.to(tl.int64) * WIDTH
    bias = tl.zeros((1, BLOCK), tl.float32)
    gamma = tl.zeros((1, BLOCK), tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + c, c < WIDTH, 0.0).to(tl.float32)[None, :]
    if DESTINATION > 0:
        gamma += tl.load(gamma_ptr + c, c < WIDTH, 0.0)[None, :]
    d0 = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    if PRODUCTS:
        x1 = tl.load(y5_ptr + tiles * step + place, mask, 0.0).to(tl.float32)
    else:
        x1 = tl.load(y0_ptr + place, mask, 0.0).to(tl.float32)
    d1 = _finish(
        x1, 0, frames, step, place, mask, bias, gamma,
        residual_ptr, sum_ptr, out_ptr, HAS_RESIDUAL, KEEP, DESTINATION,
    )  # fmt: skip
    if DESTINATION == 2:
        tl.store(out_ptr + 6 * tiles * step + place, d1.to(out_ptr.dtype.element_ty), mask)
    for tile in range(tiles):
        first = 4 * tile + 1
        if PRODUCTS:
            at = tile * step + place
            p0 = tl.load(y0_ptr + at, mask, 0.0).to(tl.float32)
            p1 = tl.load(y1_ptr + at, mask, 0.0).to(tl.float32)
            p2 = tl.load(y2_ptr + at, mask, 0.0).to(tl.float32)
            p3 = tl.load(y3_ptr + at, mask, 0.0).to(tl.float32)
            p4 = tl.load(y4_ptr + at, mask, 0.0).to(tl.float32)
            p5 = tl.load(y5_ptr + at, mask, 0.0).to(tl.float32)
            x2 = p0 + (p1 + p2) + (p3 + p4)
            x3 = (p1 - p2) + 2 * (p3 - p4)
            x4 = (p1 + p2) + 4 * (p3 + p4)
            x5 = (p1 - p2) + 8 * (p3 - p4) + p5
        else:
            at = first * step + place
            x2 = tl.load(y0_ptr + at, mask & (first < frames), 0.0).to(tl.float32)
            x3 = tl.load(y0_ptr + at + step, mask & (first + 1 < frames), 0.0).to(tl.float32)
            x4 = tl.load(y0_ptr + at + 2 * step, mask & (first + 2 < frames), 0.0).to(tl.float32)
            x5 = tl.load(y0_ptr + at + 3 * step, mask & (first + 3 < frames), 0.0).to(tl.float32)
        d2 = _finish(
            x2, first, frames, step, place, mask, bias, gamma,
            residual_ptr, sum_ptr, out_ptr, HAS_RESIDUAL, KEEP, DESTINATION,
        )  # fmt: skip
        d3 = _finish(
            x3, first + 1, frames, step, place, mask, bias, gamma,
            residual_ptr, sum_ptr, out_ptr, HAS_RESIDUAL, KEEP, DESTINATION,
        )  # fmt: skip
        d4 = _finish(
            x4, first + 2, frames, step, place, mask, bias, gamma,
            residual_ptr, sum_ptr, out_ptr, HAS_RESIDUAL, KEEP, DESTINATION,
        )  # fmt: skip
        d5 = _finish(
            x5, first + 3, frames, step, place, mask, bias, gamma,
            residual_ptr, sum_ptr, out_ptr, HAS_RESIDUAL, KEEP, DESTINATION,
        )  # fmt: skip
        if DESTINATION == 2:
            out = out_ptr + tile * step + place
            plane = tiles * step
            kind = out_ptr.dtype.element_ty
            tl.store(out, (4 * d0 - 5 * d2 + d4).to(kind), mask)
            tl.store(out + plane, (d3 + d4 - 4 * (d1 + d2)).to(kind), mask)
            tl.store(out + 2 * plane, (d4 - d3 + 4 * (d1 - d2)).to(kind), mask)
            tl.store(out + 3 * plane, (d4 - d2 + 2 * (d3 - d1)).to(kind), mask)
            tl.store(out + 4 * plane, (d4 - d2 + 2 * (d1 - d3)).to(kind), mask)
            tl.store(out + 5 * plane, (4 * d1 - 5 * d3 + d5).to(kind), mask)
            d0 = d4
            d1 = d5


def convert(y, bias, residual, gamma, dtype, keep, out, tiled=False):
    """Frames or products to a room [2 + T, H, W, C], to what winograd.spread gives or, without `out`, to their sum."""
    frames, rows, columns, width = y.shape
    products = isinstance(y, Products)
    planes = y.planes if products else (y,) * 6
    some = planes[0]
    kept = torch.empty((frames, rows, columns, width), dtype=dtype, device=some.device) if keep else None
    destination = NOWHERE if out is None else TILES if tiled else ROOM
    block = triton.next_power_of_2(width)
    block_rows = max(1, ELEMENTS // block)
    pixels = rows * columns
    _convert[(triton.cdiv(pixels, block_rows),)](
        *planes,
        bias if bias is not None else some,
        residual if residual is not None else some,
        gamma if gamma is not None else some,
        kept if kept is not None else some,
        out if out is not None else some,
        frames,
        tiles_of(frames),
        pixels,
        width,
        products,
        bias is not None,
        residual is not None,
        keep,
        destination,
        block_rows,
        block,
        num_warps=4,
    )
    return kept
