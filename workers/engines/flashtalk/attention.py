"""The one seam for full self-attention, from the query-key-value product to what the output product takes.

Exact attention runs by flash-attn where importable, a torch-npu kernel, or a torch backend.  Which of torch's backends
is fastest depends on card and version, so it is tried once and the answer is kept on disk: a later process must not
choose another one, because a resumed film has to be the film.  `fp8` rounds what is multiplied; it is asked for by
name.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from farm.errors import ConfigError
from workers.engines.flashtalk import ops
from workers.engines.flashtalk.linears import Activation

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
WORTH = 0.97  # another backend must take less than this share of the time to be preferred over the one before it


class SelfAttention(Protocol):
    """Normalises and rotates queries and keys, then lets every token attend to all."""

    def __call__(
        self,
        qkv: torch.Tensor,
        gain: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        heads: int,
        eps: float,
        skipped: int,
    ) -> Activation:
        """[N - skipped, D] from qkv [N, 3 * D], which may be overwritten; the first `skipped` queries are left out."""
        ...


class Exact:
    """Attention in the tensors' own type by one of the exact backends."""

    def __init__(self, name: str) -> None:
        self._attend = exact_backend(name)

    def __call__(
        self,
        qkv: torch.Tensor,
        gain: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        heads: int,
        eps: float,
        skipped: int,
    ) -> Activation:
        ops.rms_rope(qkv, gain, cos, sin, heads, eps)
        q, k, v = qkv.view(qkv.shape[0], 3, heads, -1).unbind(1)
        return self._attend(q[skipped:], k, v)


def attention(name: str) -> SelfAttention:
    """Self-attention by the backend of that name.  Raises ConfigError."""
    if name == "fp8":
        from workers.engines.flashtalk.attention_fp8 import Fp8

        return Fp8()
    return Exact(name)


def exact_backend(name: str) -> Attend:
    """Attention of q, k, v [N, heads, head_dim] to [N, heads * head_dim].  Raises ConfigError."""
    if name == "flash-attn":
        from flash_attn import flash_attn_func

        return lambda q, k, v: flash_attn_func(q[None], k[None], v[None])[0].flatten(1)
    if name == "npu":
        import torch_npu

        def on_npu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = torch_npu.npu_fusion_attention(
                q[None], k[None], v[None], q.shape[1], input_layout="BSND", scale=q.shape[2] ** -0.5
            )
            return out[0][0].flatten(1)

        return on_npu
    if name not in BACKENDS:
        known = ", ".join(("fp8", "flash-attn", "npu", *BACKENDS))
        raise ConfigError(f"attention is {name!r}: it must be one of {known}")
    backend = BACKENDS[name]

    def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)))
        return out[0].transpose(0, 1).flatten(1)

    return by_torch


def candidates(device: torch.device) -> list[str]:
    """Exact backends to try on this device, the preferred first."""
    if device.type == "npu":
        return ["npu"]
    if device.type != "cuda":
        return ["flash" if device.type == "cpu" else "math"]
    names = ["cudnn", "flash", "efficient"]
    if importlib.util.find_spec("flash_attn") is not None:
        names.insert(1, "flash-attn")
    return names


def choose_attention(
    device: torch.device, dtype: torch.dtype, tokens: int, heads: int, head_dim: int, cache: Path | None
) -> tuple[str, dict[str, float]]:
    """The fastest exact backend that works here, and the milliseconds of each that was tried (none if remembered)."""
    names = candidates(device)
    if len(names) == 1:
        return names[0], {}
    key = f"{torch.cuda.get_device_name(device)}|{torch.__version__}|{dtype}|{tokens}|{heads}|{head_dim}"
    remembered = _read(cache)
    if key in remembered:
        return remembered[key], {}
    shape = (tokens, heads, head_dim)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    times: dict[str, float] = {}
    for name in names:
        try:
            attend = exact_backend(name)
            for _ in range(2):
                attend(q, k, v)
            times[name] = min(_milliseconds(attend, q, k, v) for _ in range(5))
        except (RuntimeError, ImportError):
            continue
    if not times:
        return "math", {}
    best = ""
    for name in names:
        if name in times and (not best or times[name] < WORTH * times[best]):
            best = name
    _remember(cache, key, best)
    return best, times


def _milliseconds(attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    attend(q, k, v)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _read(cache: Path | None) -> dict[str, str]:
    try:
        return dict(json.loads(cache.read_text(encoding="utf-8"))) if cache else {}
    except (OSError, ValueError):
        return {}


def _remember(cache: Path | None, key: str, name: str) -> None:
    if cache is None:
        return
    cache.parent.mkdir(parents=True, exist_ok=True)
    staging = cache.with_name(f"{cache.name}.{os.getpid()}")
    staging.write_text(json.dumps({**_read(cache), key: name}, indent=1), encoding="utf-8")
    staging.replace(cache)
