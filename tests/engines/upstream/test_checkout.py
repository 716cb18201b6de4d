"""What is seen of a checkout without importing it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from farm.errors import ConfigError
from workers.engines.upstream.checkout import Layout, check_checkout, check_imports, needed_packages, read_commit

from .standin import write

LAYOUT = Layout("SoulX-Test", ("code",), ("code/a.py",), "abc1234", {"xfuser": ("f",), "code.faces": ()})
HASH = "abc1234" + "0" * 33


FILES = {
    "code/a.py": """
import os, torch.nn
from .b import x
from code import c
import code.faces
import xfuser.y
""",
    "code/b.py": """
import einops
try:
    import flash_attn
except ImportError:
    pass
if 1:
    import cv2
""",
    "code/c.py": """
def later():
    import sage
import code.a
""",
    "code/faces.py": "import mediapipe",
}


def make(folder: Path, **files: str) -> Path:
    return write(folder, {**FILES, **files})


def test_what_a_checkout_needs_is_read_from_its_own_imports(tmp_path: Path) -> None:
    checkout = check_checkout(make(tmp_path), LAYOUT)
    assert needed_packages(checkout, ["code.a"]) == {"torch", "einops", "cv2"}


def test_a_missing_package_is_named_with_what_to_install(tmp_path: Path) -> None:
    make(tmp_path, **{"code/a.py": "import cv2_of_nowhere, PIL, yaml_of_nowhere\n"})
    with pytest.raises(ConfigError) as caught:
        check_imports(check_checkout(tmp_path, LAYOUT), ["code.a"])
    assert str(caught.value) == (
        f"SoulX-Test needs cv2_of_nowhere, yaml_of_nowhere, which {sys.executable} cannot import; install it there:"
        f" {sys.executable} -m pip install cv2_of_nowhere yaml_of_nowhere"
    )


def test_another_commit_is_noted_and_not_refused(tmp_path: Path) -> None:
    make(tmp_path)
    assert check_checkout(tmp_path, LAYOUT).notes == (
        "SoulX-Test is no git checkout; this engine was compared with commit abc1234",
    )
    write(tmp_path, {".git/HEAD": "ref: refs/heads/main\n", ".git/refs/heads/main": "9" * 40 + "\n"})
    assert check_checkout(tmp_path, LAYOUT).notes == (
        "SoulX-Test is at commit 999999999999; this engine was compared with abc1234",
    )
    write(tmp_path, {".git/HEAD": HASH})
    assert check_checkout(tmp_path, LAYOUT).notes == ()


def test_the_commit_is_read_from_a_branch_packed_refs_and_a_worktree(tmp_path: Path) -> None:
    main = write(
        tmp_path / "main",
        {".git/HEAD": "ref: refs/heads/x\n", ".git/packed-refs": f"# pack-refs with: peeled\n{HASH} refs/heads/x\n"},
    )
    assert read_commit(main) == HASH
    write(main, {".git/worktrees/w/HEAD": "ref: refs/heads/x\n", ".git/worktrees/w/commondir": "../..\n"})
    tree = write(tmp_path / "tree", {".git": f"gitdir: {main}/.git/worktrees/w\n"})
    assert read_commit(tree) == HASH
    assert read_commit(tmp_path) == ""


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no checkout of SoulX-Test: it has no code/a.py; set repo_path"):
        check_checkout(tmp_path, LAYOUT)
