"""ARCHITECTURE.md draws which package imports which; the drawing is compared with the imports."""

from __future__ import annotations

import re
from pathlib import Path

from test_imports import ROOT, SOURCES, imported_modules

PACKAGES = (
    "farm.cli",
    "farm.server",
    "farm.ledger",
    "farm.media",
    "workers.host",
    "workers.engines",
    "farm",
    "workers",
)
LOWEST = {"farm.errors", "farm.states", "farm.paths"}  # everybody may read these; drawing them would hide the rest
EDGE = re.compile(r"^\s*(?P<from>[a-z_.]+) --> (?P<to>[a-z_.]+)$", re.M)


def package_of(module: str) -> str | None:
    return next((p for p in PACKAGES if module == p or module.startswith(p + ".")), None)


def real_edges() -> set[tuple[str, str]]:
    edges: set[tuple[str, str]] = set()
    for path in SOURCES:
        here = package_of(".".join(path.with_suffix("").parts))
        if here is None:
            continue
        for module in imported_modules(path):
            there = package_of(module)
            if there is None or there == here or any(module == m or module.startswith(m + ".") for m in LOWEST):
                continue
            if module in ("farm", "workers") or (there == "farm" and module.count(".") > 1 and module != "farm"):
                continue  # `from farm import x` names x as well; names inside a module count once
            edges.add((here, there))
    return edges


def test_the_drawing_of_the_packages_is_true() -> None:
    text = (ROOT / Path("ARCHITECTURE.md")).read_text(encoding="utf-8")
    block = text.split("```mermaid\nflowchart", 1)[1].split("```", 1)[0]
    drawn = {(m["from"], m["to"]) for m in EDGE.finditer(block)}
    real = real_edges()
    lines = "\n".join(f"    {a} --> {b}" for a, b in sorted(real))
    assert drawn == real, f"draw these edges:\n{lines}"
