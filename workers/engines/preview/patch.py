"""A drawn piece of the picture, laid over it after the photo was moved."""

from __future__ import annotations

from dataclasses import dataclass

from workers.engines.preview.shaping import Floats


@dataclass(frozen=True)
class Patch:
    """A piece of a local grid."""

    row: int  # of its first row in the local grid
    column: int
    colour: Floats  # [rows, columns, 3], BGR 0..255
    cover: Floats  # [rows, columns], 0..1
