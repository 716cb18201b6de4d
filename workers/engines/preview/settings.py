"""The settings that a job may give this engine; configs/models/preview.toml tells planning the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from farm.errors import InputError

Framing = Literal["auto", "whole"]

_RANGES = {
    "mouth": (0.3, 1.6),
    "head_motion": (0.0, 2.0),
    "expression": (0.0, 2.0),
    "blink_rate": (0.0, 40.0),
}


@dataclass(frozen=True)
class PreviewSettings:
    """How the person moves and how the photo is framed."""

    mouth: float = 1.0  # how far the mouth opens and the lips travel
    head_motion: float = 1.0  # sway, nods and breathing; 0 keeps the head still
    expression: float = 1.0  # brows and nods on stressed words
    blink_rate: float = 16.0  # blinks per minute; 0 for none
    framing: Framing = "auto"  # "auto" moves close to a small face, "whole" keeps as much of the photo as fits


def read_settings(values: Mapping[str, Any]) -> PreviewSettings:
    """`values` checked.  Raises InputError naming the setting, and ignores nothing."""
    known = {field.name for field in fields(PreviewSettings)}
    for name in values:
        if name not in known:
            raise InputError(f"the preview model has no setting {name!r}; it has {', '.join(sorted(known))}")
    read: dict[str, Any] = {}
    for name, (low, high) in _RANGES.items():
        if name in values:
            value = values[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise InputError(f"setting {name} must be a number from {low:g} to {high:g}, not {value!r}")
            read[name] = float(value)
    if "framing" in values:
        if values["framing"] not in ("auto", "whole"):
            raise InputError(f'setting framing must be "auto" or "whole", not {values["framing"]!r}')
        read["framing"] = cast(Framing, values["framing"])
    return PreviewSettings(**read)
