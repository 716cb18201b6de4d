"""A picture's part seen along its own axes, for example along the line of the lips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from workers.engines.preview.face import Doubles
from workers.engines.preview.shaping import Floats


@dataclass(frozen=True)
class Axes:
    """Local coordinates: u along a line, v across it and down, in pixels of the picture."""

    origin: Doubles  # [2], in the picture
    turn: Doubles  # [2, 2], picture to local

    @classmethod
    def along(cls, start: Doubles, stop: Doubles, origin: Doubles) -> Axes:
        """Axes whose u runs from `start` to `stop`."""
        dx, dy = stop - start
        angle = math.atan2(dy, dx)
        return cls(
            origin, np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], np.float64)
        )

    def to_local(self, points: Doubles) -> Doubles:
        """Points [n, 2] of the picture in local coordinates."""
        return (points - self.origin) @ self.turn.T

    def picture_grid(self, u: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Where the local grid v x u lies in the picture: x and y, float32 [len(v), len(u)]."""
        across, down = np.meshgrid(u, v)
        places = np.stack([across, down], axis=-1) @ self.turn + self.origin
        return places[..., 0].astype(np.float32), places[..., 1].astype(np.float32)

    def local_maps(self, x: Floats, y: Floats, u0: float, v0: float) -> tuple[Floats, Floats]:
        """Picture coordinates as indices into a local grid that starts at (u0, v0)."""
        cos, sin = np.float32(self.turn[0, 0]), np.float32(self.turn[0, 1])
        left, top = np.float32(self.origin[0]), np.float32(self.origin[1])
        dx, dy = x - left, y - top
        return cos * dx + sin * dy - np.float32(u0), cos * dy - sin * dx - np.float32(v0)

    def region(
        self,
        u0: float,
        v0: float,
        width: float,
        height: float,
        margin: int,
        size: tuple[int, int],
        moved: tuple[float, float] = (0.0, 0.0),
    ) -> tuple[slice, slice]:
        """Rows and columns of a picture of `size` (width, height) that hold a local rectangle and a margin.

        `moved` is by how many pixels, to the right and down, the picture has moved there.
        """
        corners = np.array([[u0, v0], [u0 + width, v0], [u0, v0 + height], [u0 + width, v0 + height]], np.float64)
        places = corners @ self.turn + self.origin + moved
        left, top = np.floor(places.min(axis=0)).astype(int) - margin
        right, bottom = np.ceil(places.max(axis=0)).astype(int) + margin
        columns = slice(min(max(0, int(left)), size[0]), min(max(0, int(right)), size[0]))
        return slice(min(max(0, int(top)), size[1]), min(max(0, int(bottom)), size[1])), columns
