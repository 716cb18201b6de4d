"""What went wrong on the device: full, unusable, or only this chunk.

Full memory leaves the process healthy.  After an illegal access or a failed launch every later call fails too, so only
a new process helps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from farm.errors import DeviceFault, EngineError, FarmError, OutOfMemory

FULL = ("out of memory", "ALLOC_FAILED", "NPU out of memory")
BROKEN = (
    "CUDA error",
    "illegal memory access",
    "unspecified launch failure",
    "device-side assert",
    "EXECUTION_FAILED",
    "INTERNAL_ERROR",
    "NPU error",
    "HCCL",
    "NCCL error",
    "Timed out waiting",  # gloo: a rank did not come
    "Connection closed by peer",
    "Connection reset by peer",
    "Application timeout",
)


def name_fault(error: BaseException) -> FarmError | None:
    """The farm's error for one of the device's; None where the device is not to blame."""
    if isinstance(error, FarmError):
        return error
    words = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in words for sign in FULL)
    ):
        return OutOfMemory(f"the device is full: {words}")
    broken = type(error).__name__ in ("AcceleratorError", "DistBackendError", "DistNetworkError")
    if broken or (isinstance(error, RuntimeError) and any(sign in words for sign in BROKEN)):
        return DeviceFault(f"the device failed and this process cannot use it any more: {words}")
    return None


@contextmanager
def named_faults() -> Iterator[None]:
    """Errors of the device leave as OutOfMemory or DeviceFault; after the first the memory is handed back."""
    try:
        yield
    except Exception as error:
        fault = name_fault(error)
        if isinstance(fault, OutOfMemory) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if fault is None or fault is error:
            raise
        raise fault from error


def require_finite(finite: bool, chunk: int) -> None:
    """Raises EngineError when a chunk holds NaN or infinite pixels; the engine stays usable."""
    if not finite:
        raise EngineError(f"chunk {chunk} has pixels that are not numbers: the model failed on this input")
