"""The architecture as a test: every framework has one door, and the two planes keep apart."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path.relative_to(ROOT)
    for package in ("farm", "workers", "migrations")
    for path in (ROOT / package).rglob("*.py")
    if "__pycache__" not in path.parts
)

# Who may import what.  A folder ends with a slash; everything else is a file.
DOORS = {
    "torch": ("workers/engines/",),
    "torch_npu": ("workers/engines/",),
    "transformers": ("workers/engines/",),
    "diffusers": ("workers/engines/",),
    "cv2": ("workers/engines/",),
    "sqlalchemy": ("farm/ledger/", "migrations/"),
    "alembic": ("farm/ledger/", "migrations/"),
    "psycopg": ("farm/ledger/", "migrations/"),
    "celery": ("farm/doorbell.py", "workers/app.py"),
    "kombu": ("farm/doorbell.py", "workers/app.py"),
    "flower": ("farm/flower.py",),
    "boto3": ("farm/object_store.py",),
    "botocore": ("farm/object_store.py",),
    "redis": ("farm/doorbell.py", "farm/redis_server.py", "workers/app.py"),
    "ffmpeg": ("farm/media/",),
    "av": ("farm/media/",),
    "imageio_ffmpeg": ("farm/media/",),
    "huggingface_hub": ("farm/hub.py",),
    "click": ("farm/cli/",),
    "rich": ("farm/cli/",),
    "fastapi": ("farm/server/",),
    "starlette": ("farm/server/",),
    "uvicorn": ("farm/server/",),
    "workers": ("workers/",),
}

# What a model's own interpreter can be expected to have besides the standard library.
CHILD_LIBRARIES = {"numpy"}
CHILD_ROOT = Path("workers/host/child.py")
RANK_ROOT = Path("workers/host/rank.py")  # and of the launcher, which it imports
ENGINES = Path("workers/engines")


@functools.cache
def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports anywhere, by its full name; for `from a import b` both a and a.b."""
    package = path.parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def file_of(module: str) -> Path | None:
    """The file of one of our own modules; None for a name inside a module or for somebody else's."""
    if module.split(".")[0] not in ("farm", "workers"):
        return None
    path = Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


@functools.cache
def loaded_by(start: Path) -> set[Path]:
    """Our own files that importing `start` brings in, packages' __init__ included."""
    reached: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        waiting += [found for module in imported_modules(path) if (found := file_of(module))]
        waiting += [parent / "__init__.py" for parent in path.parents if (ROOT / parent / "__init__.py").is_file()]
    return reached


def is_engine(path: Path) -> bool:
    return path.is_relative_to(ENGINES) and path.parent != ENGINES


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_each_framework_has_one_door(path: Path) -> None:
    trespasses = {
        name
        for module in imported_modules(path)
        if (name := module.split(".")[0]) in DOORS and not path.as_posix().startswith(DOORS[name])
    }
    assert not trespasses, f"{path} imports {', '.join(sorted(trespasses))}; see DOORS in {Path(__file__).name}"


@pytest.mark.parametrize("root", [CHILD_ROOT, RANK_ROOT], ids=str)
def test_the_host_child_loads_only_the_errors_and_its_engine(root: Path) -> None:
    farm_files = {path.as_posix() for path in loaded_by(root) if path.parts[0] == "farm"}
    assert farm_files <= {"farm/__init__.py", "farm/errors.py"}
    worker_files = {path for path in loaded_by(root) if path.parts[0] == "workers"}
    outside = {
        path.as_posix()
        for path in worker_files
        if not path.is_relative_to("workers/host") and not path.is_relative_to(ENGINES) and path.name != "__init__.py"
    }
    assert not outside, f"the host's child loads {', '.join(sorted(outside))}"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ENGINES)], ids=str)
def test_engines_know_nothing_of_the_farm_but_its_errors(path: Path) -> None:
    ours = {
        found.as_posix()
        for found in loaded_by(path)
        if not found.is_relative_to(ENGINES) and found.name != "__init__.py" and found != path
    }
    assert ours <= {"farm/errors.py"}, f"{path} loads {', '.join(sorted(ours))}"


@pytest.mark.parametrize("root", [CHILD_ROOT, RANK_ROOT], ids=str)
def test_the_host_child_needs_only_numpy_besides_the_standard_library(root: Path) -> None:
    needed = {
        module.split(".")[0]
        for path in loaded_by(root)
        if not is_engine(path)
        for module in imported_modules(path)
        if module
    }
    assert needed - set(sys.stdlib_module_names) - CHILD_LIBRARIES <= {"farm", "workers"}


@pytest.mark.parametrize(
    "path",
    sorted(loaded_by(CHILD_ROOT) | loaded_by(RANK_ROOT) | {p for p in SOURCES if p.is_relative_to(ENGINES)}),
    ids=str,
)
def test_child_code_is_valid_on_python_3_10(path: Path) -> None:
    ast.parse((ROOT / path).read_text(encoding="utf-8"), feature_version=(3, 10))
    newer = {"tomllib", "enum.StrEnum", "datetime.UTC", "typing.Self", "typing.assert_never", "contextlib.chdir"}
    assert not imported_modules(path) & newer
