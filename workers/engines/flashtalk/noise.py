"""Noise of the sampler, drawn so that one seed gives one film on every card.

Each draw is keyed by (seed, chunk, draw) and made on the host by a counter-based generator, so nothing has to be
carried and any chunk can be rendered first.  `DeviceNoise` draws as upstream does, on the device and in sequence, and
is only equal between cards with the same number of multiprocessors.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch


class Noise(Protocol):
    """Standard normal draws in the order in which a chunk asks for them."""

    def draw(self, chunk: int, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw `index` of `chunk` on the device."""
        ...

    def finish(self, chunk: int, shape: tuple[int, ...]) -> None:
        """The chunk needs no more draws."""
        ...

    def state(self) -> bytes:
        """What a carry must hold to go on; empty for keyed noise."""
        ...

    def restore(self, state: bytes) -> None:
        """Go on from a carry."""
        ...


class KeyedNoise:
    """Float32 draws keyed by (seed, chunk, draw)."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._device = device

    def draw(self, chunk: int, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        drawn = keyed_normal(self._seed, chunk, index, shape)
        held = torch.from_numpy(drawn)
        if self._device.type == "cuda":
            held = held.pin_memory()
        return held.to(self._device, non_blocking=True)

    def finish(self, chunk: int, shape: tuple[int, ...]) -> None:
        pass

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        pass


def keyed_normal(seed: int, chunk: int, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that depend on nothing but their key."""
    key = np.random.SeedSequence([seed & 0xFFFFFFFFFFFFFFFF, chunk, index]).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)


class DeviceNoise:
    """Upstream's draws: one generator on the device, the first draw in the weights' type, the last one thrown away."""

    def __init__(self, seed: int, device: torch.device, first_dtype: torch.dtype) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device
        self._first_dtype = first_dtype

    def draw(self, chunk: int, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        dtype = self._first_dtype if index == 0 else torch.float32
        return torch.randn(shape, dtype=dtype, device=self._device, generator=self._generator)

    def finish(self, chunk: int, shape: tuple[int, ...]) -> None:
        torch.randn(shape, dtype=torch.float32, device=self._device, generator=self._generator)

    def state(self) -> bytes:
        return bytes(self._generator.get_state().numpy().tobytes())

    def restore(self, state: bytes) -> None:
        self._generator.set_state(torch.from_numpy(np.frombuffer(state, np.uint8).copy()))
