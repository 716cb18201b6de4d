"""Rotary position tables: 64 pairs a head split over frames, rows and columns (22/21/21 at head size 128)."""

from __future__ import annotations

import torch

THETA = 10_000.0


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Rotated pairs of each axis: the frame axis takes what does not divide by three."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def rope_tables(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, float32 [tokens, head_dim / 2] each; angles are computed in float64."""
    angles = []
    for axis, (size, pairs) in enumerate(zip(grid, axis_pairs(head_dim), strict=True)):
        frequencies = THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle = torch.outer(torch.arange(size, dtype=torch.float64), frequencies)
        view = [1, 1, 1, pairs]
        view[axis] = size
        angles.append(angle.view(view).expand(*grid, pairs))
    table = torch.cat(angles, dim=-1).flatten(0, 2)
    return table.cos().float().to(device), table.sin().float().to(device)
