"""The fenced blocks of a document, and what it says of those that cannot be run here.

A comment right above a block, such as `<!-- not run: needs root -->`, takes the block out; one that names a command,
such as ``<!-- not run `git pull`: it would change this checkout -->``, only the lines that begin with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARKS = re.compile(r"(?:^<!-- not run.*?-->\n)+\Z", re.MULTILINE)
_MARK = re.compile(r"<!-- not run(?: `(?P<command>[^`]+)`)?: (?P<reason>.{5,}?) -->")


@dataclass(frozen=True)
class Block:
    document: str
    line: int  # of the fence, counted from 1
    kind: str  # what stands behind the fence: sh, python, toml
    text: str
    marks: Mapping[str, str]  # beginnings of lines that are not run, with the reason; "" is the whole block

    @property
    def where(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def is_run(self) -> bool:
        return "" not in self.marks

    def commands(self) -> list[str]:
        """The lines of a shell block that are run, without comments; of a session only what was typed."""
        lines = self.text.splitlines()
        if self.kind == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        bare = [re.sub(r"(^|\s+)#.*", "", line) for line in lines]
        left_out = tuple(self.marks)
        return [line for line in bare if line and not (left_out and line.startswith(left_out))]


def blocks_of(root: Path, document: str, more_marks: Mapping[str, str]) -> list[Block]:
    """Every fenced block of a document.  `more_marks` are those of lines wherever they stand in it."""
    text = (root / document).read_text(encoding="utf-8")
    found: list[Block] = []
    for fence in _FENCE.finditer(text):
        marks = dict(more_marks)
        above = _MARKS.search(text[: fence.start()])
        for line in above[0].splitlines() if above else []:
            mark = _MARK.fullmatch(line)
            assert mark, f"{document}: {line} does not say what is not run and why"
            marks[mark["command"] or ""] = mark["reason"]
        used = {
            beginning: reason
            for beginning, reason in marks.items()
            if not beginning or any(line.removeprefix("$ ").startswith(beginning) for line in fence[2].splitlines())
        }
        found.append(Block(document, text[: fence.start()].count("\n") + 1, fence[1], fence[2], used))
    return found
