"""Where the farm's own files are: settings and migrations, in a checkout or in an installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def shipped(name: str) -> Path:
    """The directory `name` ("configs" or "migrations") as shipped with this farm."""
    in_checkout = _CHECKOUT / name
    return in_checkout if in_checkout.is_dir() else _PACKAGE / "_installed" / name
