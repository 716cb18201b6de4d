"""The transformer's and the autoencoder's small operations, each as plain torch; on CUDA the fused kernel runs instead.

The torch versions are the definition: tests compare the kernels with them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from workers.engines.flashtalk.linears import FP8, LARGEST, Activation, Form, Quantised, round_rows

try:
    from workers.engines.flashtalk import kernels
except ImportError:  # no Triton: CPU builds and NPUs
    kernels = None  # type: ignore[assignment]


def fused(x: torch.Tensor) -> bool:
    """Whether the fused kernels can run on this tensor."""
    return kernels is not None and x.is_cuda


def quantise(x: Activation, form: Form) -> Activation:
    """What a layer of `form` takes, from rows [N, K] that may be fp8 already."""
    if isinstance(x, Quantised):
        if form == "fp8":
            return x
        x = (x.values.float() * x.scale).to(torch.bfloat16)
    if form == "plain":
        return x
    return kernels.quantise(x, form) if fused(x) else round_rows(x, form)


def residual_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor | None,
    mul: torch.Tensor,
    add: torch.Tensor,
    eps: float,
    form: Form,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Activation]:
    """x + bias + y * gate, and its layer norm times `mul` plus `add` (float32 [D]) in the next layer's form.

    `x` may be overwritten; without `y` it is left as it is, and `bias` [D] counts for the norm alone.  `bias` is what
    the products in x and y left out.  `dtype` asks for a plain result of another type than x's.
    """
    if fused(x):
        return kernels.residual_norm(x, y, gate, mul, add, eps, form, dtype, bias)
    total = x.float() if bias is None else x.float() + bias.float()
    if y is not None:
        x = (total + (y.float() if gate is None else y.float() * gate)).to(x.dtype)
        total = x.float()
    h = F.layer_norm(total, x.shape[-1:], eps=eps) * mul + add
    return x, h.to(dtype or x.dtype) if form == "plain" else round_rows(h, form)


def rms_rope(
    qkv: torch.Tensor, gain: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, eps: float
) -> None:
    """Normalise queries and keys over the full width and rotate adjacent pairs, in place.

    qkv [N, 3 * D]; gain float32 [2, D] of queries and keys; cos and sin float32 [N, D / heads / 2].
    """
    if fused(qkv):
        kernels.rms_rope(qkv, gain, cos, sin, eps)
        return
    n, d = qkv.shape[0], qkv.shape[1] // 3
    for part in (0, 1):
        x = qkv[:, part * d : (part + 1) * d].float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain[part]
        even, odd = x.view(n, heads, -1, 2).unbind(-1)
        c, s = cos[:, None], sin[:, None]
        turned = torch.stack([even * c - odd * s, even * s + odd * c], dim=-1)
        qkv[:, part * d : (part + 1) * d] = turned.reshape(n, d).to(qkv.dtype)


def gelu_rows(x: torch.Tensor, form: Form) -> Activation:
    """GELU(tanh) of rows, in the next layer's form."""
    if form != "plain" and fused(x):
        return kernels.gelu_quantise(x, form)
    y = F.gelu(x.float(), approximate="tanh")
    return y.to(x.dtype) if form == "plain" else round_rows(y, form)


def cross_attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    image_tokens: int,
    eps: float,
    limit: torch.Tensor | None = None,
) -> Activation:
    """Attention to the image's and the text's tokens, two softmaxes whose results are added, [N, D].

    q [N, D] is not normalised yet: its gain and the softmax scale are already in `keys` [L, heads, head_dim], image
    tokens first; the kernel wants 257 of these and L a multiple of 32.  bias float32 [L] is added to the
    scores; it counts how often a token stands for equal ones.  `limit` float32 [1] is a number that no result exceeds;
    given it, the result is fp8.
    """
    if fused(q):
        return kernels.cross_attend(q, keys, values, bias, image_tokens, eps, limit)
    n, d = q.shape
    heads = keys.shape[1]
    x = (q.float() * torch.rsqrt(q.float().pow(2).mean(-1, keepdim=True) + eps)).to(q.dtype)
    x = x.view(1, n, heads, -1).transpose(1, 2)
    out = torch.zeros_like(x)
    for part in (slice(0, image_tokens), slice(image_tokens, None)):
        k, v = keys[None, part].transpose(1, 2), values[None, part].transpose(1, 2)
        mask = bias[part].to(q.dtype).view(1, 1, 1, -1)
        out = out + F.scaled_dot_product_attention(x, k, v, attn_mask=mask, scale=1.0)
    out = out.transpose(1, 2).reshape(n, d)
    if limit is None:
        return out
    scale = (limit / LARGEST["fp8"]).expand(n, 1)
    return Quantised((out.float() / scale).to(FP8), scale.contiguous())


def fold(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    heads: int,
    *,
    transposed: bool,
    turned: bool = False,
    factor: float = 1.0,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each head's part of tokens [F, T, H * size] times its rows of a weight [H * size, D] and `factor`, [F, H * T, D].

    `transposed` takes the head's columns of a weight [D, H * size] instead; `turned` gives [F, D, H * T].  `scale`
    float32 [F, rows of the result] divides each row, and the result is fp8.
    """
    if fused(tokens):
        return kernels.fold(tokens, weight, heads, transposed, turned, factor, scale)
    rows = weight.t() if transposed else weight
    parts = tokens.unflatten(2, (heads, -1)).transpose(1, 2)  # [F, H, T, size]
    folded = torch.matmul(parts, rows.reshape(heads, parts.shape[3], -1)).flatten(1, 2) * factor
    folded = folded.transpose(1, 2).contiguous() if turned else folded
    if scale is None:
        return folded
    return (folded.float() / scale[..., None]).clamp(-LARGEST["fp8"], LARGEST["fp8"]).to(FP8)


def softmax_groups(scores: torch.Tensor, bias: torch.Tensor, group: int, dtype: torch.dtype) -> torch.Tensor:
    """Softmax of scores [F, S, G * group] + bias [F, G * group] within each group; in fp8 it is times 448."""
    if fused(scores):
        return kernels.softmax_groups(scores, bias, group, dtype)
    f, s, width = scores.shape
    grouped = (scores + bias[:, None]).view(f, s, width // group, group)
    shares = grouped.float().softmax(dim=-1).view(f, s, width)
    return (shares * LARGEST["fp8"] if dtype == FP8 else shares).to(dtype)


def residual_rms_silu(
    y: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    gamma: torch.Tensor,
    room: torch.Tensor,
    keep: bool,
) -> torch.Tensor | None:
    """SiLU of the channel norm of (residual + y + bias) into a convolution's input; the sum itself too where `keep`.

    y and residual are [T, H, W, C]; the norm divides by the length of the channel vector and multiplies by
    sqrt(C) * gamma, which `gamma` (float32 [C]) already holds.  `room` is either [2 + T, H, W, C], whose last T frames
    are written, or [T, H, W, 3, C], where frame t becomes the last of three at t, the middle one at t + 1 and the first
    one at t + 2, as far as those are there.
    """
    if fused(y):
        return kernels.residual_rms_silu(y, bias, residual, gamma, room, keep)
    x = y if bias is None else y + bias
    if residual is not None:
        x = residual + x
    h = F.silu(F.normalize(x.float(), dim=-1) * gamma).to(room.dtype)
    if room.dim() == 4:
        room[2:] = h
    else:
        for back in range(3):
            room[back:, :, :, 2 - back] = h[: h.shape[0] - back]
    return x if keep else None


def add_up(y: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """residual + y + bias, [..., C]."""
    if fused(y):
        return kernels.add_up(y, bias, residual)
    x = y + bias
    return x if residual is None else residual + x


def shuffle_phases(y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[T, H + 1, W + 1, 4, C] of four phases (row, column) as pixels [T, 2 * H, 2 * W, C], plus bias [C].

    Pixel (2 i + a, 2 j + b) is phase (a, b) at (i + a, j + b).
    """
    t, rows, columns, _, c = y.shape
    h, w = rows - 1, columns - 1
    if fused(y):
        return kernels.shuffle_phases(y, bias)
    out = y.new_empty(t, h, 2, w, 2, c)
    for a in (0, 1):
        for b in (0, 1):
            out[:, :, a, :, b] = y[:, a : a + h, b : b + w, 2 * a + b] + bias
    return out.view(t, 2 * h, 2 * w, c)


def sum_taps(products: torch.Tensor, shape: tuple[int, int, int], bias: torch.Tensor) -> torch.Tensor:
    """A causal 3x3x3 convolution to few channels from its products: float32 [27 * O, (T + 2) * H * W] to [O, T, H, W].

    Row (dt, dh, dw, o) holds each input pixel times that tap's weights; shape is (T, H, W) of the result.
    """
    t, h, w = shape
    outs = bias.numel()
    if fused(products):
        return kernels.sum_taps(products, shape, bias)
    taps = F.pad(products.view(3, 3, 3, outs, t + 2, h, w), (1, 1, 1, 1))
    total = bias.float().view(-1, 1, 1, 1).expand(outs, t, h, w).clone()
    for dt in range(3):
        for dh in range(3):
            for dw in range(3):
                total += taps[dt, dh, dw, :, dt : dt + t, dh : dh + h, dw : dw + w]
    return total


__all__ = [
    "Quantised",
    "add_up",
    "cross_attend",
    "fold",
    "fused",
    "gelu_rows",
    "quantise",
    "residual_norm",
    "residual_rms_silu",
    "rms_rope",
    "shuffle_phases",
    "softmax_groups",
    "sum_taps",
]
