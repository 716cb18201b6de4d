"""Fused Triton kernels: one pass over memory where plain torch makes several.

Each has its definition in ops.py.  Rows are read whole, reduced in float32 and written in the form that the next
matrix product takes, so no intermediate goes through device memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from workers.engines.flashtalk.linears import FP8, LARGEST, Form, Quantised

CODES = {"plain": 0, "fp8": 1, "int8": 2}
CROSS = (64, 32, 4, 3)  # rows, keys, warps and stages of cross_attend at head size 128, as measured on an H200
FOLD = (64, 128, 4, 1)  # rows, columns, warps and stages of fold


# Rows are read as two blocks that cover 5120 columns exactly; one block would have to be 8192 wide, and these passes
# are bound by arithmetic as much as by memory.


@triton.jit
def _store_row(h, other, c, d, base, mask, other_mask, out_ptr, scale_ptr, row, FORM: tl.constexpr, TOP: tl.constexpr):
    if FORM == 0:
        tl.store(out_ptr + base + c, h.to(out_ptr.dtype.element_ty), mask)
        tl.store(out_ptr + base + d, other.to(out_ptr.dtype.element_ty), other_mask)
    else:
        top = tl.max(tl.where(mask, tl.abs(h), 0.0), axis=0)
        top = tl.maximum(tl.maximum(top, tl.max(tl.where(other_mask, tl.abs(other), 0.0), axis=0)), 1e-12)
        tl.store(scale_ptr + row, top / TOP)
        h = h * (TOP / top)
        other = other * (TOP / top)
        if FORM == 2:
            h = tl.floor(h + 0.5)
            other = tl.floor(other + 0.5)
        tl.store(out_ptr + base + c, h.to(out_ptr.dtype.element_ty), mask)
        tl.store(out_ptr + base + d, other.to(out_ptr.dtype.element_ty), other_mask)


@triton.jit
def _add_rows(
    x_ptr,
    y_ptr,
    bias_ptr,
    gate_ptr,
    base,
    c,
    mask,
    HAS_Y: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GATE: tl.constexpr,
):
    x = tl.load(x_ptr + base + c, mask, 0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + c, mask, 0.0).to(tl.float32)
    if HAS_Y:
        y = tl.load(y_ptr + base + c, mask, 0.0).to(tl.float32)
        if HAS_GATE:
            y *= tl.load(gate_ptr + c, mask, 0.0)
        rounded = (x + y).to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + base + c, rounded, mask)
        x = rounded.to(tl.float32)
    return x


@triton.jit
def _residual_norm(
    x_ptr,
    y_ptr,
    bias_ptr,
    gate_ptr,
    mul_ptr,
    add_ptr,
    out_ptr,
    scale_ptr,
    width,
    eps,
    HAS_Y: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GATE: tl.constexpr,
    FORM: tl.constexpr,
    TOP: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = row * width
    c = tl.arange(0, FIRST)
    d = FIRST + tl.arange(0, SECOND)
    mask = c < width
    other_mask = d < width
    x = _add_rows(x_ptr, y_ptr, bias_ptr, gate_ptr, base, c, mask, HAS_Y, HAS_BIAS, HAS_GATE)
    z = _add_rows(x_ptr, y_ptr, bias_ptr, gate_ptr, base, d, other_mask, HAS_Y, HAS_BIAS, HAS_GATE)
    mean = (tl.sum(x, axis=0) + tl.sum(z, axis=0)) / width
    x = tl.where(mask, x - mean, 0.0)
    z = tl.where(other_mask, z - mean, 0.0)
    rstd = tl.rsqrt((tl.sum(x * x, axis=0) + tl.sum(z * z, axis=0)) / width + eps)
    x = x * rstd * tl.load(mul_ptr + c, mask, 0.0) + tl.load(add_ptr + c, mask, 0.0)
    z = z * rstd * tl.load(mul_ptr + d, other_mask, 0.0) + tl.load(add_ptr + d, other_mask, 0.0)
    _store_row(x, z, c, d, base, mask, other_mask, out_ptr, scale_ptr, row, FORM, TOP)


def _blocks(width: int) -> tuple[int, int]:
    """Two powers of two that cover a row: the largest that fits, and what is left."""
    first = 1 << (width.bit_length() - 1)
    return first, max(16, triton.next_power_of_2(width - first)) if width > first else 16


def _result(x: torch.Tensor, form: Form, dtype: torch.dtype | None) -> tuple[torch.Tensor, torch.Tensor]:
    if form == "plain":
        out = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
        return out, out
    out = torch.empty(x.shape, dtype=FP8 if form == "fp8" else torch.int8, device=x.device)
    return out, torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)


def _warps(form: Form) -> int:
    """Warps of a pass over rows of 5120, as measured on an H200: a plain one behind the product that it waits for."""
    return 4 if form == "plain" else 8


def residual_norm(x, y, gate, mul, add, eps, form, dtype=None, bias=None):
    """See ops.residual_norm; x is overwritten with the sum if there is a y."""
    n, width = x.shape
    out, scale = _result(x, form, dtype)
    first, second = _blocks(width)
    _residual_norm[(n,)](
        x,
        y if y is not None else x,
        bias if bias is not None else mul,
        gate if gate is not None else mul,
        mul,
        add,
        out,
        scale,
        width,
        eps,
        y is not None,
        bias is not None,
        gate is not None,
        CODES[form],
        LARGEST.get(form, 1.0),
        first,
        second,
        num_warps=_warps(form),
    )
    return x, out if form == "plain" else Quantised(out, scale)


@triton.jit
def _gelu(h):
    # tanh(u) = 2 sigmoid(2u) - 1, so 0.5 x (1 + tanh(u)) = x sigmoid(2u).
    return h * tl.sigmoid(1.5957691216057308 * (h + 0.044715 * h * h * h))


@triton.jit
def _quantise(
    x_ptr,
    out_ptr,
    scale_ptr,
    width,
    GELU: tl.constexpr,
    FORM: tl.constexpr,
    TOP: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = row * width
    c = tl.arange(0, FIRST)
    d = FIRST + tl.arange(0, SECOND)
    mask = c < width
    other_mask = d < width
    h = tl.load(x_ptr + base + c, mask, 0.0).to(tl.float32)
    z = tl.load(x_ptr + base + d, other_mask, 0.0).to(tl.float32)
    if GELU:
        h = _gelu(h)
        z = _gelu(z)
    _store_row(h, z, c, d, base, mask, other_mask, out_ptr, scale_ptr, row, FORM, TOP)


def quantise(x, form, gelu=False):
    """Rows to fp8 or int8, optionally through GELU(tanh)."""
    n, width = x.shape
    out, scale = _result(x, form, None)
    first, second = _blocks(width)
    warps = 8 if gelu else 4
    _quantise[(n,)](x, out, scale, width, gelu, CODES[form], LARGEST[form], first, second, num_warps=warps)
    return Quantised(out, scale)


def gelu_quantise(x, form):
    """See ops.gelu_rows."""
    return quantise(x, form, gelu=True)


@triton.jit
def _turn(x, cos_ptr, sin_ptr, row, first, HALF: tl.constexpr, BLOCK: tl.constexpr):
    even, odd = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
    pair = (first // 2 + tl.arange(0, BLOCK // 2)) % HALF
    cos = tl.load(cos_ptr + row * HALF + pair)
    sin = tl.load(sin_ptr + row * HALF + pair)
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))


@triton.jit
def _rms_rope(
    qkv_ptr,
    gain_ptr,
    cos_ptr,
    sin_ptr,
    width,
    stride,
    eps,
    HALF: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    c = tl.arange(0, FIRST)
    d = FIRST + tl.arange(0, SECOND)
    mask = c < width
    other_mask = d < width
    base = qkv_ptr + row * stride + part * width
    x = tl.load(base + c, mask, 0.0).to(tl.float32)
    z = tl.load(base + d, other_mask, 0.0).to(tl.float32)
    rstd = tl.rsqrt((tl.sum(x * x, axis=0) + tl.sum(z * z, axis=0)) / width + eps)
    x = x * rstd * tl.load(gain_ptr + part * width + c, mask, 0.0)
    z = z * rstd * tl.load(gain_ptr + part * width + d, other_mask, 0.0)
    x = _turn(x, cos_ptr, sin_ptr, row, 0, HALF, FIRST)
    z = _turn(z, cos_ptr, sin_ptr, row, FIRST, HALF, SECOND)
    tl.store(base + c, x.to(qkv_ptr.dtype.element_ty), mask)
    tl.store(base + d, z.to(qkv_ptr.dtype.element_ty), other_mask)


def rms_rope(qkv, gain, cos, sin, eps):
    """See ops.rms_rope."""
    width = qkv.shape[1] // 3
    grid = (qkv.shape[0], 2)
    _rms_rope[grid](qkv, gain, cos, sin, width, qkv.stride(0), eps, cos.shape[1], *_blocks(width), num_warps=4)


@triton.jit
def _row_rstd(x_ptr, out_ptr, width, eps, FIRST: tl.constexpr, SECOND: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, FIRST)
    d = FIRST + tl.arange(0, SECOND)
    x = tl.load(x_ptr + row * width + c, c < width, 0.0).to(tl.float32)
    z = tl.load(x_ptr + row * width + d, d < width, 0.0).to(tl.float32)
    tl.store(out_ptr + row, tl.rsqrt((tl.sum(x * x, axis=0) + tl.sum(z * z, axis=0)) / width + eps))


@triton.jit
def _scores(q, gain, k_tiles, bias_ptr, start, column, BN: tl.constexpr):
    """Scores in powers of two: rows of q times a tile of keys, with each row's factor and each key's bias."""
    bias = tl.load(bias_ptr + start + tl.arange(0, BN)) * 1.4426950408889634
    return tl.dot(q, tl.trans(k_tiles.load([start, column]))) * gain + bias[None, :]


@triton.jit
def _cross_attend(
    q_tiles,
    rstd_ptr,
    k_tiles,
    v_tiles,
    bias_ptr,
    out_tiles,
    limit_ptr,
    scale_ptr,
    n,
    image_tokens,
    all_tokens,
    LONG: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    TOP: tl.constexpr,
    HEAD: tl.constexpr,
    FIRST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    # FIRST keys are the image's alone.  The tile after them holds its last ones and the first of the text; what a long
    # prompt has beyond that is read twice, for the weights' sum and for the result.  Both softmaxes add into one
    # result, the text's weights in the measure of the image's.
    head = tl.program_id(0)
    column = head * HEAD
    first_row = tl.program_id(1) * BM
    rows = first_row + tl.arange(0, BM)
    inside = rows < n
    q = q_tiles.load([first_row, column])
    gain = (tl.load(rstd_ptr + rows, inside, 0.0) * 1.4426950408889634)[:, None]
    seen = (FIRST + tl.arange(0, BN) < image_tokens)[None, :]
    s_both = _scores(q, gain, k_tiles, bias_ptr, FIRST, column, BN)
    # Weights are taken against one of the image's keys, not against the largest: nothing has to be rescaled on the way,
    # and only a key 2^160 times as heavy as that one would be cut.
    top = tl.max(tl.where(seen, s_both, -1e38), axis=1) + 60.0
    weight = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, HEAD), tl.float32)
    for start in range(0, FIRST, BN):
        s = _scores(q, gain, k_tiles, bias_ptr, start, column, BN)
        p = tl.exp2(tl.minimum(s - top[:, None], 100.0))
        weight += tl.sum(p, axis=1)
        acc = tl.dot(p.to(q.dtype), v_tiles.load([start, column]), acc)
    top_read = tl.max(tl.where(seen, -1e38, s_both), axis=1)
    read = tl.zeros((BM,), tl.float32)
    if LONG:
        for start in range(FIRST + BN, all_tokens, BN):
            s = _scores(q, gain, k_tiles, bias_ptr, start, column, BN)
            new_top = tl.maximum(top_read, tl.max(s, axis=1))
            read = read * tl.exp2(top_read - new_top) + tl.sum(tl.exp2(s - new_top[:, None]), axis=1)
            top_read = new_top
    p = tl.exp2(s_both - tl.where(seen, top[:, None], top_read[:, None]))
    weight += tl.sum(tl.where(seen, p, 0.0), axis=1)
    read += tl.sum(tl.where(seen, 0.0, p), axis=1)
    ratio = (weight / read)[:, None]
    acc = tl.dot((p * tl.where(seen, 1.0, ratio)).to(q.dtype), v_tiles.load([FIRST, column]), acc)
    if LONG:
        for start in range(FIRST + BN, all_tokens, BN):
            s = _scores(q, gain, k_tiles, bias_ptr, start, column, BN)
            p = tl.exp2(s - top_read[:, None]) * ratio
            acc = tl.dot(p.to(q.dtype), v_tiles.load([start, column]), acc)
    factor = 1.0 / weight
    if HAS_LIMIT:
        limit = tl.load(limit_ptr)
        factor *= TOP / limit
        if head == 0:
            tl.store(scale_ptr + rows, tl.zeros((BM,), tl.float32) + limit / TOP, inside)
    out_tiles.store([first_row, column], (acc * factor[:, None]).to(out_tiles.dtype))


def cross_attend(q, keys, values, bias, image_tokens, eps, limit=None):
    """See ops.cross_attend."""
    n, width = q.shape
    heads, head = keys.shape[1], keys.shape[2]
    bm, bn, warps, stages = CROSS
    first = 1 << (image_tokens.bit_length() - 1)
    assert first < image_tokens < first + bn, "the kernel's tiles are cut for 257 image tokens"
    rstd = torch.empty(n, dtype=torch.float32, device=q.device)
    _row_rstd[(n,)](q, rstd, width, eps, *_blocks(width), num_warps=4)
    out, scale = _result(q, "plain" if limit is None else "fp8", None)
    _cross_attend[(heads, triton.cdiv(n, bm))](
        TensorDescriptor.from_tensor(q, [bm, head]),
        rstd,
        TensorDescriptor.from_tensor(keys.flatten(1), [bn, head]),
        TensorDescriptor.from_tensor(values.flatten(1), [bn, head]),
        bias,
        TensorDescriptor.from_tensor(out, [bm, head]),
        limit if limit is not None else rstd,
        scale,
        n,
        image_tokens,
        keys.shape[0],
        keys.shape[0] > first + bn,
        limit is not None,
        LARGEST["fp8"],
        head,
        first,
        bm,
        bn,
        num_warps=warps,
        num_stages=stages,
    )
    return out if limit is None else Quantised(out, scale)


@triton.jit
def _fold(
    t_ptr,
    w_ptr,
    scale_ptr,
    out_ptr,
    heads,
    rows,
    width,
    token_stride,
    row_stride,
    column_stride,
    factor,
    HAS_SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    TURNED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    head = tl.program_id(0)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    there = c < width
    i = head * HEAD + tl.arange(0, HEAD)
    w = tl.load(w_ptr + i[:, None] * row_stride + c[None, :] * column_stride, there[None, :], 0.0)
    for start in range(0, rows, BM):
        r = start + tl.arange(0, BM)
        inside = r < rows
        t = tl.load(t_ptr + r[:, None] * token_stride + i[None, :], inside[:, None], 0.0)
        o = tl.dot(t, w) * factor
        frame = (r // GROUP).to(tl.int64)
        place = head * GROUP + r % GROUP
        if TURNED:
            row = frame[None, :] * width + c[:, None]
            mask = inside[None, :] & there[:, None]
            o = tl.trans(o)
            out = row * (heads * GROUP) + place[None, :]
            if HAS_SCALE:
                o = o / tl.load(scale_ptr + row, mask, 1.0)
        else:
            row = frame * (heads * GROUP) + place
            mask = inside[:, None] & there[None, :]
            out = row[:, None] * width + c[None, :]
            if HAS_SCALE:
                o = o * (1.0 / tl.load(scale_ptr + row, inside, 1.0))[:, None]
        tl.store(out_ptr + out, o.to(out_ptr.dtype.element_ty), mask)


def fold(tokens, weight, heads, transposed, turned, factor, scale):
    """See ops.fold."""
    frames, group, _ = tokens.shape
    width = weight.shape[0] if transposed else weight.shape[1]
    strides = (weight.stride(1), weight.stride(0)) if transposed else (weight.stride(0), weight.stride(1))
    shape = (frames, width, heads * group) if turned else (frames, heads * group, width)
    out = torch.empty(shape, dtype=tokens.dtype if scale is None else FP8, device=tokens.device)
    assert tokens.stride(0) == group * tokens.stride(1), "tokens are rows of one product"
    bm, bn, warps, stages = FOLD
    _fold[(heads, triton.cdiv(width, bn))](
        tokens,
        weight,
        scale if scale is not None else tokens,
        out,
        heads,
        frames * group,
        width,
        tokens.stride(1),
        *strides,
        factor,
        scale is not None,
        group,
        tokens.shape[2] // heads,
        turned,
        bm,
        bn,
        num_warps=warps,
        num_stages=stages,
    )
    return out


@triton.jit
def _softmax_groups(s_ptr, bias_ptr, out_ptr, rows_per_frame, groups, factor, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    frame = row // rows_per_frame
    width = groups * GROUP
    g = tl.arange(0, BLOCK)
    c = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = (g < groups)[:, None]
    s = tl.load(s_ptr + row * width + c, mask, 0.0).to(tl.float32)
    s += tl.load(bias_ptr + frame * width + c, mask, 0.0)
    p = tl.exp(s - tl.max(s, axis=1)[:, None])
    p = p * (factor / tl.sum(p, axis=1))[:, None]
    tl.store(out_ptr + row * width + c, p.to(out_ptr.dtype.element_ty), mask)


def softmax_groups(scores, bias, group, dtype):
    """See ops.softmax_groups."""
    f, s, width = scores.shape
    out = torch.empty(scores.shape, dtype=dtype, device=scores.device)
    groups = width // group
    factor = LARGEST["fp8"] if dtype == FP8 else 1.0
    _softmax_groups[(f * s,)](scores, bias, out, s, groups, factor, group, triton.next_power_of_2(groups), num_warps=4)
    return out


@triton.jit
def _scale_product(p_ptr, rows_ptr, columns_ptr, bias_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = c < width
    p = tl.load(p_ptr + row * width + c, mask, 0).to(tl.float32)
    y = p * tl.load(rows_ptr + row) * tl.load(columns_ptr + c, mask, 0.0)
    y += tl.load(bias_ptr + c, mask, 0.0).to(tl.float32)
    tl.store(out_ptr + row * width + c, y.to(out_ptr.dtype.element_ty), mask)


def scale_product(product, rows, columns, bias):
    """An int32 product as (product * rows * columns + bias) in the bias's type."""
    n, width = product.shape
    out = torch.empty((n, width), dtype=bias.dtype, device=product.device)
    _scale_product[(n, triton.cdiv(width, 2048))](product, rows, columns, bias, out, width, 2048, num_warps=8)
    return out


@triton.jit
def _residual_rms_silu(
    y_ptr,
    bias_ptr,
    residual_ptr,
    gamma_ptr,
    sum_ptr,
    out_ptr,
    rows,
    plane,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    KEEP: tl.constexpr,
    STACKED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c = tl.arange(0, BLOCK)
    mask = (r < rows)[:, None] & (c < WIDTH)[None, :]
    place = r[:, None] * WIDTH + c[None, :]
    x = tl.load(y_ptr + place, mask, 0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + c, c < WIDTH, 0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + place, mask, 0.0).to(tl.float32)
    if KEEP:
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + place, rounded, mask)
        x = rounded.to(tl.float32)
    length = tl.sqrt(tl.sum(tl.where(mask, x * x, 0.0), axis=1))
    h = x / tl.maximum(length, 1e-12)[:, None] * tl.load(gamma_ptr + c, c < WIDTH, 0.0)[None, :]
    h = (h * tl.sigmoid(h)).to(out_ptr.dtype.element_ty)
    if STACKED:
        for back in tl.static_range(3):
            later = r + back * plane
            there = mask & (later < rows)[:, None]
            tl.store(out_ptr + later[:, None] * (3 * WIDTH) + (2 - back) * WIDTH + c[None, :], h, there)
    else:
        tl.store(out_ptr + place + 2 * plane * WIDTH, h, mask)


def residual_rms_silu(y, bias, residual, gamma, room, keep):
    """See ops.residual_rms_silu; all tensors are contiguous."""
    width = y.shape[-1]
    rows = y.numel() // width
    block = triton.next_power_of_2(width)
    block_rows = max(1, 4096 // block)
    kept = torch.empty_like(y) if keep else None
    _residual_rms_silu[(triton.cdiv(rows, block_rows),)](
        y,
        bias if bias is not None else gamma,
        residual if residual is not None else y,
        gamma,
        kept if kept is not None else y,
        room,
        rows,
        y.shape[1] * y.shape[2],
        width,
        bias is not None,
        residual is not None,
        keep,
        room.dim() == 5,
        block_rows,
        block,
        num_warps=4,
    )
    return kept


@triton.jit
def _add_up(y_ptr, bias_ptr, residual_ptr, out_ptr, count, width, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    x = tl.load(y_ptr + i, mask, 0.0).to(tl.float32) + tl.load(bias_ptr + i % width, mask, 0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + i, mask, 0.0).to(tl.float32)
    tl.store(out_ptr + i, x.to(out_ptr.dtype.element_ty), mask)


def add_up(y, bias, residual):
    """See ops.add_up."""
    out = torch.empty_like(y)
    grid = (triton.cdiv(y.numel(), 4096),)
    other = residual if residual is not None else y
    _add_up[grid](y, bias, other, out, y.numel(), y.shape[-1], residual is not None, 4096, num_warps=8)
    return out


@triton.jit
def _shuffle_phases(
    y_ptr, bias_ptr, out_ptr, rows, h, w, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c = tl.arange(0, BLOCK)
    mask = (r < rows)[:, None] & (c < WIDTH)[None, :]
    column = r % (2 * w)
    line = (r // (2 * w)) % (2 * h)
    frame = r // (4 * w * h)
    a = line % 2
    b = column % 2
    corner = (frame * (h + 1) + line // 2 + a) * (w + 1) + column // 2 + b
    source = (corner * 4 + 2 * a + b) * WIDTH
    x = tl.load(y_ptr + source[:, None] + c[None, :], mask, 0.0).to(tl.float32)
    x += tl.load(bias_ptr + c, c < WIDTH, 0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + r[:, None] * WIDTH + c[None, :], x.to(out_ptr.dtype.element_ty), mask)


def shuffle_phases(y, bias):
    """See ops.shuffle_phases."""
    t, rows, columns, _, width = y.shape
    h, w = rows - 1, columns - 1
    out = torch.empty((t, 2 * h, 2 * w, width), dtype=y.dtype, device=y.device)
    pixels = t * 4 * h * w
    block = triton.next_power_of_2(width)
    block_rows = max(1, 4096 // block)
    _shuffle_phases[(triton.cdiv(pixels, block_rows),)](
        y, bias, out, pixels, h, w, width, block_rows, block, num_warps=4
    )
    return out


@triton.jit
def _sum_taps(p_ptr, bias_ptr, out_ptr, pixels, stride, h, w, OUTS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < pixels
    column = i % w
    line = (i // w) % h
    plane = h * w
    for o in tl.static_range(OUTS):
        total = tl.zeros((BLOCK,), tl.float32) + tl.load(bias_ptr + o).to(tl.float32)
        for dt in tl.static_range(3):
            for dh in tl.static_range(3):
                for dw in tl.static_range(3):
                    y = line + dh - 1
                    x = column + dw - 1
                    mask = inside & (y >= 0) & (y < h) & (x >= 0) & (x < w)
                    tap = ((dt * 3 + dh) * 3 + dw) * OUTS + o
                    base = p_ptr + stride.to(tl.int64) * tap  # passes 2^31 at large sizes
                    total += tl.load(base + i + dt * plane + (dh - 1) * w + dw - 1, mask, 0.0)
        tl.store(out_ptr + pixels * o + i, total, inside)


def sum_taps(products, shape, bias):
    """See ops.sum_taps."""
    t, h, w = shape
    out = torch.empty((bias.numel(), t, h, w), dtype=torch.float32, device=products.device)
    pixels = t * h * w
    _sum_taps[(triton.cdiv(pixels, 1024),)](
        products, bias, out, pixels, products.shape[1], h, w, bias.numel(), 1024, num_warps=4
    )
    return out


@triton.jit
def _rms_rope_fp8(
    qkv_ptr,
    gain_ptr,
    cos_ptr,
    sin_ptr,
    factor_ptr,
    out_ptr,
    top_ptr,
    width,
    eps,
    part_stride,
    HALF: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    c = tl.arange(0, FIRST)
    d = FIRST + tl.arange(0, SECOND)
    mask = c < width
    other_mask = d < width
    base = qkv_ptr + row * 3 * width + part * width
    x = tl.load(base + c, mask, 0.0).to(tl.float32)
    z = tl.load(base + d, other_mask, 0.0).to(tl.float32)
    if part == 2:
        tl.store(top_ptr + row, tl.maximum(tl.max(tl.abs(x), axis=0), tl.max(tl.abs(z), axis=0)))
    else:
        rstd = tl.rsqrt((tl.sum(x * x, axis=0) + tl.sum(z * z, axis=0)) / width + eps) * tl.load(factor_ptr + part)
        x = x * rstd * tl.load(gain_ptr + part * width + c, mask, 0.0)
        z = z * rstd * tl.load(gain_ptr + part * width + d, other_mask, 0.0)
        out = out_ptr + part * part_stride + row * width
        tl.store(out + c, _turn(x, cos_ptr, sin_ptr, row, 0, HALF, FIRST).to(out_ptr.dtype.element_ty), mask)
        z = _turn(z, cos_ptr, sin_ptr, row, FIRST, HALF, SECOND)
        tl.store(out + d, z.to(out_ptr.dtype.element_ty), other_mask)


@triton.jit
def _round_values(qkv_ptr, top_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    mask = c < width
    x = tl.load(qkv_ptr + row * 3 * width + 2 * width + c, mask, 0.0).to(tl.float32)
    tl.store(out_ptr + row * width + c, (x * (448.0 / tl.load(top_ptr))).to(out_ptr.dtype.element_ty), mask)


def rms_rope_fp8(qkv, gain, cos, sin, eps, factor):
    """Queries and keys normalised, rotated and times `factor` [2], and values times 448 / top: fp8 [N, D], and top."""
    n = qkv.shape[0]
    width = qkv.shape[1] // 3
    out = torch.empty((3, n, width), dtype=FP8, device=qkv.device)
    tops = torch.empty((n,), dtype=torch.float32, device=qkv.device)
    block = triton.next_power_of_2(width)
    _rms_rope_fp8[(n, 3)](
        qkv, gain, cos, sin, factor, out, tops, width, eps, n * width, cos.shape[1], *_blocks(width), num_warps=4
    )
    top = tops.amax(dim=0, keepdim=True).clamp_(min=1e-12)
    _round_values[(n,)](qkv, top, out[2], width, block, num_warps=4)
    return out[0], out[1], out[2], top


@triton.jit
def _power(x, exponent):
    return tl.exp2(tl.log2(x) * exponent)


@triton.jit
def _to_lab(red, green, blue):
    r = tl.where(red > 0.04045, _power((tl.maximum(red, 0.0) + 0.055) / 1.055, 2.4), red / 12.92)
    g = tl.where(green > 0.04045, _power((tl.maximum(green, 0.0) + 0.055) / 1.055, 2.4), green / 12.92)
    b = tl.where(blue > 0.04045, _power((tl.maximum(blue, 0.0) + 0.055) / 1.055, 2.4), blue / 12.92)
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    x = tl.minimum(tl.maximum(x, 1e-8), 1.0)
    y = tl.minimum(tl.maximum(y, 1e-8), 1.0)
    z = tl.minimum(tl.maximum(z, 1e-8), 1.0)
    x = tl.where(x > 0.008856, _power(x, 1.0 / 3.0), (903.3 * x + 16.0) / 116.0)
    y = tl.where(y > 0.008856, _power(y, 1.0 / 3.0), (903.3 * y + 16.0) / 116.0)
    z = tl.where(z > 0.008856, _power(z, 1.0 / 3.0), (903.3 * z + 16.0) / 116.0)
    return 116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)


@triton.jit
def _to_gamma(x):
    bent = 1.055 * _power(tl.maximum(x, 1e-12), 1.0 / 2.4) - 0.055
    return tl.minimum(tl.maximum(tl.where(x > 0.0031308, bent, 12.92 * x), 0.0), 1.0)


@triton.jit
def _lab_parts(x_ptr, out_ptr, frames, plane, parts, BLOCK: tl.constexpr):
    frame = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    i = part * BLOCK + tl.arange(0, BLOCK)
    mask = i < plane
    base = x_ptr + frame * plane + i
    step = frames.to(tl.int64) * plane
    lab = _to_lab(
        (tl.load(base, mask, 0.0) + 1.0) / 2.0,
        (tl.load(base + step, mask, 0.0) + 1.0) / 2.0,
        (tl.load(base + 2 * step, mask, 0.0) + 1.0) / 2.0,
    )
    count = tl.sum(tl.where(mask, 1.0, 0.0), axis=0)
    place = out_ptr + (frame * parts + part) * 7
    tl.store(place, count)
    for n in tl.static_range(3):
        mean = tl.sum(tl.where(mask, lab[n], 0.0), axis=0) / count
        off = tl.where(mask, lab[n] - mean, 0.0)
        tl.store(place + 1 + n, mean)
        tl.store(place + 4 + n, tl.sum(off * off, axis=0))


def lab_statistics(frames):
    """Lab mean and population deviation of each frame, float32 [3, T] each, of frames [3, T, H, W] in [-1, 1]."""
    _, t, h, w = frames.shape
    parts = triton.cdiv(h * w, 4096)
    out = torch.empty((t, parts, 7), dtype=torch.float32, device=frames.device)
    _lab_parts[(t, parts)](frames, out, t, h * w, parts, 4096, num_warps=8)
    count, mean, spread = out.double().split((1, 3, 3), dim=2)
    whole = (mean * count).sum(1) / (h * w)
    variance = (spread + count * (mean - whole[:, None]) ** 2).sum(1) / (h * w)
    return whole.float().t().contiguous(), variance.sqrt().float().t().contiguous()


@triton.jit
def _match_lab(x_ptr, mean_ptr, ratio_ptr, wanted_ptr, out_ptr, strength, frames, plane, BLOCK: tl.constexpr):
    frame = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < plane
    step = frames.to(tl.int64) * plane
    place = frame * plane + i
    red = (tl.load(x_ptr + place, mask, 0.0) + 1.0) / 2.0
    green = (tl.load(x_ptr + step + place, mask, 0.0) + 1.0) / 2.0
    blue = (tl.load(x_ptr + 2 * step + place, mask, 0.0) + 1.0) / 2.0
    light, a, b = _to_lab(red, green, blue)
    light = (light - tl.load(mean_ptr + frame)) * tl.load(ratio_ptr + frame) + tl.load(wanted_ptr)
    a = (a - tl.load(mean_ptr + frames + frame)) * tl.load(ratio_ptr + frames + frame) + tl.load(wanted_ptr + 1)
    b = (b - tl.load(mean_ptr + 2 * frames + frame)) * tl.load(ratio_ptr + 2 * frames + frame)
    b += tl.load(wanted_ptr + 2)
    fy = (light + 16.0) / 116.0
    fx = a / 500.0 + fy
    fz = fy - b / 200.0
    x = 0.95047 * tl.where(fx * fx * fx > 0.008856, fx * fx * fx, (116.0 * fx - 16.0) / 903.3)
    y = tl.where(light > 903.3 * 0.008856, fy * fy * fy, light / 903.3)
    z = 1.08883 * tl.where(fz * fz * fz > 0.008856, fz * fz * fz, (116.0 * fz - 16.0) / 903.3)
    new_red = _to_gamma(3.2404542 * x - 1.5371385 * y - 0.4985314 * z)
    new_green = _to_gamma(-0.9692660 * x + 1.8760108 * y + 0.0415560 * z)
    new_blue = _to_gamma(0.0556434 * x - 0.2040259 * y + 1.0572252 * z)
    tl.store(out_ptr + place, (red + strength * (new_red - red)) * 2.0 - 1.0, mask)
    tl.store(out_ptr + step + place, (green + strength * (new_green - green)) * 2.0 - 1.0, mask)
    tl.store(out_ptr + 2 * step + place, (blue + strength * (new_blue - blue)) * 2.0 - 1.0, mask)


def match_lab(frames, mean, ratio, wanted, strength):
    """Each frame's Lab moved to (lab - mean) * ratio + wanted and back; see colour.match_colour."""
    _, t, h, w = frames.shape
    out = torch.empty_like(frames)
    grid = (t, triton.cdiv(h * w, 1024))
    _match_lab[grid](frames, mean, ratio, wanted, out, float(strength), t, h * w, 1024, num_warps=4)
    return out
