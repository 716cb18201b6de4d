"""The one seam for full self-attention: flash-attn where importable, a torch-npu kernel, or a torch backend.

Which of torch's backends is fastest depends on card and version, so it is tried once and the answer is kept on disk:
a later process must not choose another one, because a resumed film has to be the film.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from farm.errors import ConfigError

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
WORTH = 0.97  # another backend must take less than this share of the time to be preferred over the one before it


def attention(name: str) -> Attend:
    """Full attention of q, k, v [N, heads, head_dim] to [N, heads * head_dim] by the backend of that name."""
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
    if name == "fp8":
        from workers.engines.flashtalk.attention_fp8 import attend_fp8

        return attend_fp8
    if name not in BACKENDS:
        raise ConfigError(
            f"attention is {name!r}: it must be auto, fp8, flash-attn, npu or one of {', '.join(BACKENDS)}"
        )
    backend = BACKENDS[name]

    def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)))
        return out[0].transpose(0, 1).flatten(1)

    return by_torch


def candidates(device: torch.device) -> list[str]:
    """Backends to try on this device, the preferred first."""
    if device.type == "npu":
        return ["npu"]
    if device.type != "cuda":
        return ["math" if device.type != "cpu" else "flash"]
    names = ["cudnn", "flash", "efficient"]
    if importlib.util.find_spec("flash_attn") is not None:
        names.insert(1, "flash-attn")
    return names


def choose_attention(
    device: torch.device, dtype: torch.dtype, tokens: int, heads: int, head_dim: int, cache: Path | None
) -> tuple[str, dict[str, float]]:
    """The fastest backend that works here and the milliseconds of each that was tried (empty when remembered)."""
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
            attend = attention(name)
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
