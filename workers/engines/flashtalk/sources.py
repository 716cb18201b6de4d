"""Where weights come from: the checkpoint, or a rule that makes them from their names.

A source hands out single tensors on the device, so nothing larger than one tensor is ever held twice.
"""

from __future__ import annotations

import pickle
import zlib
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from farm.errors import ConfigError
from workers.engines.flashtalk.checkpoint import Checkpoint, compare_tensors
from workers.engines.flashtalk.inventory import Shapes

LARGE = 1 << 22  # numbers; above this a random tensor is drawn on the device


class Source(Protocol):
    """Hands out a model's tensors by their checkpoint names."""

    def take(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The tensor on the source's device in `dtype`."""
        ...


class ShardSource:
    """The transformer's tensors, straight from the memory-mapped safetensors shards to the device."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._shards = checkpoint.shards
        self._device = device
        self._open: dict[Path, object] = {}

    def take(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        from safetensors import safe_open

        path = self._shards[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt", device="cpu")
        tensor: torch.Tensor = self._open[path].get_tensor(name)  # type: ignore[attr-defined]
        return tensor.to(self._device, dtype)


class FileSource:
    """The tensors of one .pth file, memory-mapped; checked against the names and shapes that the model needs."""

    def __init__(self, path: Path, expected: Shapes, device: torch.device) -> None:
        self._tensors = read_torch_file(path)
        compare_tensors({name: tuple(t.shape) for name, t in self._tensors.items()}, expected, path)
        self._device = device

    def take(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        return self._tensors[name].to(self._device, dtype)


def read_torch_file(path: Path) -> dict[str, torch.Tensor]:
    """A .pth file's tensors by name, memory-mapped where its format allows.  Raises ConfigError."""
    try:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of the format before torch 1.6 cannot be mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path} cannot be read as weights: {error}") from None
    if not isinstance(tensors, dict):
        raise ConfigError(f"{path} holds no table of tensors")
    return tensors


class RandomSource:
    """Weights made from each tensor's name, for tests and benches: the same on every machine up to LARGE numbers.

    Matrices are scaled by the root of their fan-in, so that activations keep their size through all layers.
    """

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        self._shapes = shapes
        self._device = device

    def take(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        shape = self._shapes[name]
        key = zlib.crc32(name.encode())
        if prod(shape) > LARGE and self._device.type != "cpu":
            generator = torch.Generator(self._device).manual_seed(key)
            r = torch.randn(shape, device=self._device, dtype=torch.float32, generator=generator)
        else:
            drawn = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)
            r = torch.from_numpy(drawn).to(self._device)
        if name.endswith("modulation"):
            r = 0.3 * r
        elif name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
            r = 1 + 0.1 * r
        elif len(shape) >= 2:
            r = r / prod(shape[1:]) ** 0.5
        else:
            r = 0.05 * r
        return r.to(dtype)
