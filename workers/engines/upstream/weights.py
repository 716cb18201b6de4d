"""Folders of weights, looked at before they are loaded: every file there, whole, and of the kind that it should be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from farm.errors import ConfigError
from workers.engines.flashtalk.checkpoint import check_torch_file, read_header

TRANSFORMER = "diffusion_pytorch_model"


def check_transformer(folder: Path, keys: Iterable[str]) -> list[Path]:
    """A folder as diffusers writes it.  Returns its shards.  Raises ConfigError naming what is missing."""
    config = read_json(folder / "config.json")
    missing = [key for key in keys if key not in config]
    if missing:
        raise ConfigError(
            f"{folder / 'config.json'} lacks {', '.join(missing)}: it is of another model; fetch it again"
        )
    index = folder / f"{TRANSFORMER}.safetensors.index.json"
    if index.is_file():
        named = sorted(set(read_json(index).get("weight_map", {}).values()))
        shards = [folder / name for name in named]
    else:
        shards = sorted(folder.glob(f"{TRANSFORMER}*.safetensors")) or [folder / f"{TRANSFORMER}.safetensors"]
    for shard in shards:
        if not shard.is_file():
            raise ConfigError(f"the checkpoint's file {shard} is missing: fetch the model again")
        read_header(shard)
    return shards


def check_speech(folder: Path) -> None:
    """A wav2vec 2.0 folder as transformers reads it.  Raises ConfigError."""
    for name in ("config.json", "preprocessor_config.json"):
        read_json(folder / name)
    if (folder / "model.safetensors").is_file():
        read_header(folder / "model.safetensors")
    elif (folder / "pytorch_model.bin").is_file():
        check_torch_file(folder / "pytorch_model.bin")
    else:
        raise ConfigError(
            f"{folder} has neither model.safetensors nor pytorch_model.bin: fetch the speech encoder again"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Raises ConfigError."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"the checkpoint's file {path} is missing: fetch the model again") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is not readable JSON ({error}): fetch it again") from None
    if not isinstance(said, dict):
        raise ConfigError(f"{path} holds no JSON object: fetch it again")
    return said


def fingerprint(paths: Iterable[Path]) -> str:
    """Eight letters that change with the files' names, sizes or beginnings; hashing gigabytes would take minutes."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:8]


__all__ = ["check_speech", "check_torch_file", "check_transformer", "fingerprint", "read_header", "read_json"]
