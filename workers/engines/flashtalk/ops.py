"""The transformer's and the autoencoder's small operations, each as plain torch; on CUDA the fused kernel runs instead.

The torch versions are the definition: tests compare the kernels with them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from workers.engines.flashtalk.linears import Activation, Form, Quantised, round_rows

try:
    from workers.engines.flashtalk import kernels
except ImportError:  # no Triton: CPU builds and NPUs
    kernels = None  # type: ignore[assignment]


def fused(x: torch.Tensor) -> bool:
    """Whether the fused kernels can run on this tensor."""
    return kernels is not None and x.is_cuda


def quantise(x: torch.Tensor, form: Form) -> Activation:
    """What a layer of `form` takes, from rows [N, K]."""
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
) -> tuple[torch.Tensor, Activation]:
    """x + y * gate, and its layer norm times `mul` plus `add` (float32 [D]) in the next layer's form.

    `x` may be overwritten.  `dtype` asks for a plain result of another type than x's.
    """
    if fused(x):
        return kernels.residual_norm(x, y, gate, mul, add, eps, form, dtype)
    if y is not None:
        x = (x.float() + (y.float() if gate is None else y.float() * gate)).to(x.dtype)
    h = F.layer_norm(x.float(), x.shape[-1:], eps=eps) * mul + add
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
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, image_tokens: int, eps: float
) -> torch.Tensor:
    """Attention to the image's and the text's tokens, two softmaxes whose results are added, [N, D].

    q [N, D] is not normalised yet: its gain and the softmax scale are already in `keys` [L, heads, head_dim], image
    tokens first.  bias float32 [L] is added to the scores; it counts how often a token stands for equal ones.
    """
    if fused(q):
        return kernels.cross_attend(q, keys, values, bias, image_tokens, eps)
    n, d = q.shape
    heads = keys.shape[1]
    x = (q.float() * torch.rsqrt(q.float().pow(2).mean(-1, keepdim=True) + eps)).to(q.dtype)
    x = x.view(1, n, heads, -1).transpose(1, 2)
    out = torch.zeros_like(x)
    for part in (slice(0, image_tokens), slice(image_tokens, None)):
        k, v = keys[None, part].transpose(1, 2), values[None, part].transpose(1, 2)
        mask = bias[part].to(q.dtype).view(1, 1, 1, -1)
        out = out + F.scaled_dot_product_attention(x, k, v, attn_mask=mask, scale=1.0)
    return out.transpose(1, 2).reshape(n, d)


def softmax_groups(scores: torch.Tensor, bias: torch.Tensor, group: int, dtype: torch.dtype) -> torch.Tensor:
    """Softmax of float32 scores [F, S, G * group] + bias [F, G * group] within each group."""
    if fused(scores):
        return kernels.softmax_groups(scores, bias, group, dtype)
    f, s, width = scores.shape
    grouped = (scores + bias[:, None]).view(f, s, width // group, group)
    return grouped.softmax(dim=-1).view(f, s, width).to(dtype)


def residual_rms_silu(
    y: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    gamma: torch.Tensor,
    out: torch.Tensor,
    keep: bool,
) -> torch.Tensor | None:
    """SiLU of the channel norm of (residual + y + bias) into `out`; the sum itself too where `keep`.

    y, residual and out are [..., C]; the norm divides by the length of the channel vector and multiplies by
    sqrt(C) * gamma, which `gamma` (float32 [C]) already holds.
    """
    if fused(y):
        return kernels.residual_rms_silu(y, bias, residual, gamma, out, keep)
    x = y if bias is None else y + bias
    if residual is not None:
        x = residual + x
    out.copy_(F.silu(F.normalize(x.float(), dim=-1) * gamma).to(out.dtype))
    return x if keep else None


__all__ = [
    "Quantised",
    "cross_attend",
    "fused",
    "gelu_rows",
    "quantise",
    "residual_norm",
    "residual_rms_silu",
    "rms_rope",
    "softmax_groups",
]
