"""The few-step sampler: sigmas, and the walk from noise to one chunk's latents."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from workers.engines.flashtalk.noise import Noise

SHIFT = 5.0


def sigmas(steps: int) -> list[float]:
    """Noise levels from 1 to 0, one more than there are steps: shift * u / (1 + (shift - 1) * u)."""
    if steps in (2, 4):
        u = [1 - i / steps for i in range(steps)]
    else:
        u = [(1000 + (1 - 1000) * i / (steps - 1)) / 1000 if steps > 1 else 1.0 for i in range(steps)]
    return [SHIFT * v / (1 + (SHIFT - 1) * v) for v in (*u, 0.0)]


def sample(
    velocity: Callable[[torch.Tensor, int], torch.Tensor],
    levels: list[float],
    motion: torch.Tensor,
    noise: Noise,
    chunk: int,
    shape: tuple[int, int, int, int],
) -> torch.Tensor:
    """One chunk's latents, float32 [16, frames, rows, columns].

    `velocity(latents, step)` is the transformer; `motion` [16, 1 or 2, rows, columns] stands in front before and
    after each step, because it is known.
    """
    known = motion.shape[1]
    x = noise.draw(chunk, 0, shape).float()
    x[:, :known] = motion
    for step, (sigma, following) in enumerate(itertools.pairwise(levels)):
        x = x - sigma * velocity(x, step)
        if following:
            x = (1 - following) * x + following * noise.draw(chunk, step + 1, shape)
        x[:, :known] = motion
    noise.finish(chunk, shape)
    return x
