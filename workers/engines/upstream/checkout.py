"""A user's checkout of a model's code: looked at before anything is loaded, and then imported.

Which packages the code needs is read from the code itself, so that a missing one is named before minutes of loading.
Standard library only.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import ConfigError

# Packages whose name differs from the module's.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "flash_attn": "flash-attn",
    "optimum": "optimum-quanto",
}


@dataclass(frozen=True)
class Layout:
    """What a checkout must look like for its engine."""

    name: str  # as people call it, e.g. "SoulX-FlashHead"
    packages: tuple[str, ...]  # its own top-level modules
    files: tuple[str, ...]  # without which the engine cannot work
    commit: str  # that the engine was compared with
    # Modules that the code imports and one card does not need, with the names that it takes from them.
    stand_ins: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Checkout:
    folder: Path
    layout: Layout
    commit: str  # "" when the folder is no git checkout
    notes: tuple[str, ...]


def check_checkout(folder: Path, layout: Layout) -> Checkout:
    """Raises ConfigError naming the first file that is missing."""
    for name in layout.files:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} is no checkout of {layout.name}: it has no {name}; set repo_path")
    commit = read_commit(folder)
    notes: list[str] = []
    if not commit:
        notes.append(f"{layout.name} is no git checkout; this engine was compared with commit {layout.commit}")
    elif not commit.startswith(layout.commit):
        notes.append(f"{layout.name} is at commit {commit[:12]}; this engine was compared with {layout.commit}")
    return Checkout(folder, layout, commit, tuple(notes))


def read_commit(folder: Path) -> str:
    """The commit that is checked out, from git's own files; empty where they say none."""
    git = folder / ".git"
    try:
        if git.is_file():  # a worktree
            git = (folder / git.read_text(encoding="utf-8").partition("gitdir: ")[2].strip()).resolve()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        shared = git / "commondir"
        common = (git / shared.read_text(encoding="utf-8").strip()).resolve() if shared.is_file() else git
        for place in (git, common):
            if (place / name).is_file():
                return (place / name).read_text(encoding="utf-8").strip()
        for line in (common / "packed-refs").read_text(encoding="utf-8").splitlines():
            commit, _, ref = line.partition(" ")
            if ref == name:
                return commit
    except (OSError, UnicodeDecodeError):
        pass
    return ""


def check_imports(checkout: Checkout, modules: Iterable[str]) -> None:
    """Raises ConfigError naming every package that these modules of the checkout need and this interpreter lacks."""
    missing = sorted(name for name in needed_packages(checkout, modules) if not _can_import(name))
    if missing:
        wanted = " ".join(DISTRIBUTIONS.get(name, name) for name in missing)
        raise ConfigError(
            f"{checkout.layout.name} needs {', '.join(missing)}, which {sys.executable} cannot import;"
            f" install it there: {sys.executable} -m pip install {wanted}"
        )


def needed_packages(checkout: Checkout, modules: Iterable[str]) -> set[str]:
    """Top-level names that importing `modules` needs from elsewhere, where nothing catches their absence."""
    seen: set[str] = set()
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in seen or _is_stood_in(module, checkout.layout):
            continue
        seen.add(module)
        top = module.partition(".")[0]
        if top not in checkout.layout.packages:
            if top not in sys.stdlib_module_names:
                found.add(top)
            continue
        path = _file_of(checkout.folder, module)
        if path is None:
            continue
        waiting += _imports_of(path, module)
        waiting += [module.rpartition(".")[0]] if "." in module else []
    return found


def _imports_of(path: Path, module: str) -> list[str]:
    """Modules that a file imports when it is imported, those inside of a `try` left out."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as Python: {error}") from None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: list[str] = []
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found.append(base)
            found += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.If):
            waiting += [*node.body, *node.orelse]
        elif isinstance(node, ast.With):
            waiting += node.body
    return found


def _file_of(folder: Path, module: str) -> Path | None:
    place = folder.joinpath(*module.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def _is_stood_in(module: str, layout: Layout) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in layout.stand_ins)


def _can_import(name: str) -> bool:
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@contextmanager
def importing(checkout: Checkout) -> Iterator[None]:
    """The checkout on the module path and as the working folder, for as long as its modules are imported.

    The working folder goes back afterwards; the path stays, because the code imports more of itself while it runs.
    """
    before = Path.cwd()
    place = str(checkout.folder)
    if place not in sys.path:
        sys.path.insert(0, place)
    sys.dont_write_bytecode = True  # a user's checkout stays as it was
    for name, members in checkout.layout.stand_ins.items():
        if name not in sys.modules:
            sys.modules[name] = stand_in(name, members)
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


def stand_in(name: str, members: Iterable[str]) -> types.ModuleType:
    """A module of that name whose members say, when they are called, that this engine has no use for them."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{name} was stood in for: this engine does without it")

    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__path__ = []  # type: ignore[attr-defined]
    for member in members:
        setattr(made, member, refuse)
    return made


def import_from(checkout: Checkout, module: str) -> Any:
    """A module of the checkout.  Raises ConfigError when it cannot be imported."""
    with importing(checkout):
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"{checkout.layout.name}: {module} cannot be imported by {sys.executable}: {error}"
            ) from error
