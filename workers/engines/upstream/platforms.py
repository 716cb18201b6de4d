"""The device below a checkout's code, and its attention kernel.

Upstream's code speaks CUDA.  On an Ascend NPU torch-npu answers for it; the CPU is there for checks with tiny models.
Whichever it is, the engine above asks this module only.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from farm.errors import ConfigError
from workers.engines.ranks import local_rank

CUDA_KERNELS = {"fa3": "flash_attn_interface", "fa2": "flash_attn", "sage": "sageattention"}
KERNELS = ("auto", "npu", *CUDA_KERNELS, "cudnn", "sdpa")
CUDNN_KEYS = 1024  # of fewer, as speech and text have, torch's own choice is as fast and takes any number
_NAMES = {"ascend": "npu", "ascend_npu": "npu"}


class Platform:
    """One kind of device: `kind` is cuda, npu or cpu."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.device = "cpu" if kind == "cpu" else kind
        self.dtype = torch.float32 if kind == "cpu" else torch.bfloat16

    def environment(self) -> dict[str, str]:
        """What code for NPUs reads of its surroundings; upstream's own code reads none of it."""
        if self.kind != "npu":
            return {}
        return {"PLATFORM": "ascend_npu", "GPU_NUM": "1"}

    def begin(self, most_cards: int = 1) -> None:
        """Make the device answer to what upstream's code calls.  Raises ConfigError."""
        os.environ.update(self.environment())
        if world_size() > most_cards:
            raise ConfigError("this engine renders on one card: give its worker one device, and each card a worker")
        if world_size() == 1:
            # Left over from a launcher these would make the code believe in a group of processes.
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
                os.environ.pop(name, None)
        if self.kind == "npu":
            try:
                import torch_npu  # noqa: F401
                from torch_npu.contrib import transfer_to_npu  # noqa: F401  (torch.cuda means the NPU from here on)
            except ImportError as error:
                raise ConfigError(
                    f"torch-npu cannot be imported ({error}): install it beside torch {torch.__version__} and set"
                    " env_script to CANN's set_env.sh in workers.toml"
                ) from None
            torch.npu.set_device(own_index())  # type: ignore[attr-defined]
        elif self.kind == "cuda":
            torch.cuda.set_device(own_index())

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.kind != "cpu":
            torch.zeros(1, device=self.device).item()

    def give_back(self) -> None:
        """Let other processes have what torch holds of the device and does not use."""
        if self.kind != "cpu":
            torch.cuda.empty_cache()

    def memory_bytes(self) -> int:
        if self.kind == "cpu":
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return int(torch.cuda.memory_allocated())

    def name(self) -> str:
        return self.kind if self.kind == "cpu" else str(torch.cuda.get_device_name())

    def random_state(self) -> bytes:
        """The state of the generator that nothing names: what upstream draws from where it gives no generator."""
        state = torch.get_rng_state() if self.kind == "cpu" else torch.cuda.get_rng_state()
        return bytes(state.numpy().tobytes())

    def restore_random(self, state: bytes) -> None:
        held = torch.frombuffer(bytearray(state), dtype=torch.uint8)
        if self.kind == "cpu":
            torch.set_rng_state(held)
        else:
            torch.cuda.set_rng_state(held)


def world_size() -> int:
    """Processes that render one film with this one, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_index() -> int:
    """Which of the visible devices is this process's."""
    return local_rank() if world_size() > 1 else 0


def choose(values: Mapping[str, Any]) -> tuple[Platform, str]:
    """The device and the attention kernel that an engine's settings ask for.  Raises ConfigError."""
    platform = choose_platform(values["device"])
    if platform.kind == "cuda":
        torch.cuda.set_device(own_index())  # before a kernel is tried, which would take up room on the first card
    wanted = values["kernel"]
    if wanted == "auto" and platform.kind == "npu" and not values.get("npu_fusion_attention", True):
        wanted = "sdpa"
    return platform, choose_kernel(platform, wanted)


def choose_platform(wanted: str) -> Platform:
    """The device that was asked for, or the one that is there.  Raises ConfigError."""
    kind = _NAMES.get(wanted, wanted)
    if not kind:
        kind = "cuda" if torch.cuda.is_available() else "npu" if _has("torch_npu") else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        build = "is a build for the CPU" if torch.version.cuda is None else f"was built for CUDA {torch.version.cuda}"
        raise ConfigError(
            f"torch {torch.__version__} sees no CUDA device: it {build}; install torch for the driver's CUDA version,"
            " and see that nvidia-smi lists the card"
        )
    return Platform(kind)


def choose_kernel(platform: Platform, wanted: str) -> str:
    """The attention kernel for `wanted`.  Raises ConfigError for one that this interpreter lacks."""
    if wanted not in KERNELS:
        raise ConfigError(f"kernel is {wanted!r}: it must be one of {', '.join(KERNELS)}")
    if wanted == "npu" and platform.kind != "npu":
        raise ConfigError("kernel is 'npu', which runs on an NPU only")
    if wanted in (*CUDA_KERNELS, "cudnn") and platform.kind != "cuda":
        raise ConfigError(f"kernel is {wanted!r}, which runs on a CUDA device only")
    if wanted == "cudnn" and not _cudnn_attends():
        raise ConfigError("kernel is 'cudnn', which this card or this torch cannot run; leave auto")
    if wanted in CUDA_KERNELS:
        module = CUDA_KERNELS[wanted]
        if not _has(module):
            raise ConfigError(f"kernel is {wanted!r} and {module} cannot be imported; install it or leave auto")
        if wanted == "sage" and torch.cuda.get_device_capability()[0] == 9:
            raise ConfigError("kernel is 'sage', whose kernel for Hopper cards gives noise; use fa3, fa2 or sdpa")
        return wanted
    if wanted != "auto":
        return wanted
    if platform.kind == "npu":
        return "npu"
    if platform.kind == "cuda":
        if _has(CUDA_KERNELS["fa3"]):
            return "fa3"
        # On Hopper and later cards cuDNN's kernel is nearly twice as fast as FlashAttention 2, which torch's own is.
        if torch.cuda.get_device_capability()[0] >= 9 and _cudnn_attends():
            return "cudnn"
        return "fa2" if _has(CUDA_KERNELS["fa2"]) else "sdpa"
    return "sdpa"


def _cudnn_attends() -> bool:
    """Whether cuDNN's attention runs on this card and gives what torch's own gives."""
    try:
        q, k, v = (torch.randn(1, CUDNN_KEYS, 2, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        return torch.allclose(kernel("cudnn")(q, k, v), kernel("sdpa")(q, k, v), atol=0.03)
    except (RuntimeError, AttributeError):
        return False


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def kernel(name: str) -> Attend:
    """Full attention of q [B, L, heads, D] over k and v [B, M, heads, D], to [B, L, heads, D]."""
    if name == "npu":
        import torch_npu

        def on_npu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = torch_npu.npu_fusion_attention(q, k, v, q.shape[2], input_layout="BSND", scale=q.shape[3] ** -0.5)
            return out[0]

        return on_npu
    if name == "fa3":
        import flash_attn_interface

        def by_fa3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = flash_attn_interface.flash_attn_func(q, k, v)
            return out[0] if isinstance(out, tuple) else out

        return by_fa3
    if name == "fa2":
        import flash_attn

        return lambda q, k, v: flash_attn.flash_attn_func(q, k, v)
    if name == "sage":
        import sageattention

        return lambda q, k, v: sageattention.sageattn(q, k, v, tensor_layout="NHD")
    if name == "cudnn":
        # The operator itself, since torch's choice among its kernels is the process's and may change with a version.
        operator = torch.ops.aten._scaled_dot_product_cudnn_attention.default

        def by_cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            if k.shape[2] < CUDNN_KEYS:
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            return operator(q, k, v, None, False)[0].transpose(1, 2)

        return by_cudnn

    def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    return by_torch


class Altered:
    """Stands for a module, here for `torch` or `torch.cuda`, with some of its names replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self._module = module
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def do_not_wait(module: Any) -> None:
    """Let this module of a checkout not wait for the device, which upstream's pipelines do sixteen times a chunk.

    They do it for the times that they print.  torch's own function stays as it is: its compiler times kernels by it.
    """
    module.torch = Altered(torch, cuda=Altered(torch.cuda, synchronize=lambda *_: None))


def alike_options() -> dict[str, Any]:
    """Options of torch.compile with which it makes the same kernels in every process.

    By itself the compiler times some kernels on the device and takes the fastest, whose sums differ in the last bit: on
    an H200 each process that read the compiled model from the disk rendered other frames than the one before it.  The
    options go with each call, because dynamo puts `torch._inductor.config.deterministic` back behind every frame that
    it compiles (`preserve_global_state`, torch 2.11).
    """
    import torch._inductor.config

    known = torch._inductor.config.get_config_copy()  # type: ignore[attr-defined]
    if "deterministic" in known:  # torch 2.9
        return {"deterministic": True}
    once = {"triton.autotune_pointwise": False, "shape_padding": False, "dynamic_scale_rblock": False}
    return {name: value for name, value in once.items() if name in known}


def compile_alike(module: Any) -> None:
    """Let what this module of a checkout compiles be the same in every process, so that films go on equal.

    torch would also make a graph for any shape once it saw two, so that kernels depend on what was rendered before.
    """
    import torch._dynamo

    torch._dynamo.config.automatic_dynamic_shapes = False
    module.torch = Altered(module.torch, compile=functools.partial(torch.compile, options=alike_options()))


class KeptConstants:
    """Stands for `torch` in functions of a checkout: what `tensor` makes of the same numbers is made once."""

    def __init__(self) -> None:
        self._made: dict[Any, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def tensor(self, data: Any, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
        key = (repr(data), dtype, str(device))
        if key not in self._made:
            self._made[key] = torch.tensor(data, dtype=dtype, device=device)
        return self._made[key]


def keep_constants(module: Any, functions: Iterable[str]) -> None:
    """Let these functions of a checkout make their constants once; those that it lacks are left out.

    A constant that is made on the device anew for every chunk is copied there, and the copy waits for all work before
    it, so that the next chunk cannot be begun meanwhile.  The functions must not write into such a tensor.
    """
    kept = KeptConstants()
    for name in functions:
        given = getattr(module, name, None)
        if isinstance(given, types.FunctionType):
            around = {**given.__globals__, "torch": kept}
            setattr(module, name, types.FunctionType(given.__code__, around, name, given.__defaults__))


def export(values: Mapping[str, Any]) -> None:
    """Variables for forks of the checkout that read their settings there."""
    for name, value in values.items():
        os.environ[name] = ("1" if value else "0") if isinstance(value, bool) else str(value)


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
