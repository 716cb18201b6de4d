"""The settings that a job may give this engine; configs/models/preview.toml tells planning the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

from farm.errors import InputError

Framing = Literal["auto", "whole"]

_RANGES = {
    "mouth": (0.3, 1.6),
    "head_motion": (0.0, 2.0),
    "expression": (0.0, 2.0),
    "blink_rate": (0.0, 40.0),
}


# Words of a prompt that say how somebody talks, and what they multiply.  All other words are for other models.
_MANNERS: tuple[tuple[tuple[str, ...], dict[str, float]], ...] = (
    (
        ("still", "motionless", "immobile", "不动", "静止"),
        {"head_motion": 0.0, "expression": 0.0},
    ),
    (
        ("calm", "calmly", "quiet", "gentle", "relaxed", "serious", "solemn", "平静", "沉稳", "温和", "严肃"),
        {"head_motion": 0.55, "expression": 0.6, "mouth": 0.95, "blink_rate": 0.9},
    ),
    (
        ("lively", "energetic", "excited", "enthusiastic", "cheerful", "passionate", "活泼", "热情", "激动", "兴奋"),
        {"head_motion": 1.4, "expression": 1.5, "mouth": 1.08, "blink_rate": 1.1},
    ),
)


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


def follow_prompt(settings: PreviewSettings, prompt: str) -> PreviewSettings:
    """`settings` as a prompt's words ask for: still, calm or lively; the first manner that is named counts."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    for names, factors in _MANNERS:
        if any(name in words if name.isascii() else name in prompt for name in names):
            changed = {}
            for name, factor in factors.items():
                low, high = _RANGES[name]
                changed[name] = min(high, max(low, getattr(settings, name) * factor))
            return replace(settings, **changed)
    return settings
