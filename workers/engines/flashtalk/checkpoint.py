"""The official checkpoint directory: checked before anything is loaded, then streamed tensor by tensor.

A safetensors file is 8 bytes of header length, a JSON header and raw data; reading the headers alone proves every name,
shape and file length in milliseconds, so a truncated shard is named before a byte of weights is copied.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from farm.errors import ConfigError
from workers.engines.flashtalk.geometry import DitConfig
from workers.engines.flashtalk.inventory import Shapes, dit_tensors

VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
IMAGE_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
CONFIG_KEYS = {
    "dim": "dim",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "in_dim": "in_dim",
    "out_dim": "out_dim",
    "num_heads": "num_heads",
    "num_layers": "num_layers",
    "eps": "eps",
    "text_len": "text_len",
    "audio_window": "audio_window",
    "intermediate_dim": "intermediate_dim",
    "output_dim": "output_dim",
    "context_tokens": "context_tokens",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: where each tensor of the transformer lies, and the files of the other models."""

    folder: Path
    audio_folder: Path
    config: DitConfig
    shards: dict[str, Path]  # tensor name -> safetensors file

    @property
    def vae_file(self) -> Path:
        return self.folder / VAE_FILE

    @property
    def text_file(self) -> Path:
        return self.folder / TEXT_FILE

    @property
    def image_file(self) -> Path:
        return self.folder / IMAGE_FILE

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / TOKENIZER_FOLDER


def check_checkpoint(folder: Path, audio_folder: Path) -> Checkpoint:
    """Prove that both folders hold everything the engine reads.  Raises ConfigError naming the file or tensor."""
    for place in (folder, audio_folder):
        if not place.is_dir():
            raise ConfigError(f"there is no checkpoint folder {place}: fetch the model and set its path")
    for name in (VAE_FILE, TEXT_FILE, IMAGE_FILE):
        check_torch_file(folder / name)
    if not (folder / TOKENIZER_FOLDER / "tokenizer_config.json").is_file():
        raise ConfigError(f"the tokenizer {folder / TOKENIZER_FOLDER} is missing or has no tokenizer_config.json")
    for name in ("config.json", "preprocessor_config.json"):
        if not (audio_folder / name).is_file():
            raise ConfigError(f"the speech encoder's file {audio_folder / name} is missing")
    if not any((audio_folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        raise ConfigError(f"{audio_folder} has neither model.safetensors nor pytorch_model.bin")
    config = read_config(folder / "config.json")
    shards = _find_shards(folder)
    found: Shapes = {}
    where: dict[str, Path] = {}
    for shard in shards:
        for name, shape in read_header(shard).items():
            if name in found:
                raise ConfigError(f"the tensor {name} stands in both {where[name].name} and {shard.name}")
            found[name] = shape
            where[name] = shard
    compare_tensors(found, dit_tensors(config), folder)
    return Checkpoint(folder, audio_folder, config, where)


def read_config(path: Path) -> DitConfig:
    """The transformer's shape from its config.json; what the file does not say is the 14B model's."""
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"the checkpoint has no {path}") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable JSON: {error}") from None
    if said.get("model_type", "i2v") != "i2v":
        raise ConfigError(f"{path}: model_type is {said['model_type']!r}, this engine renders 'i2v' only")
    return replace(DitConfig(), **{ours: said[theirs] for theirs, ours in CONFIG_KEYS.items() if theirs in said})


def read_header(path: Path) -> Shapes:
    """Names and shapes in a safetensors file.  Raises ConfigError when the file is shorter than its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise ConfigError(f"{path} is truncated or not a safetensors file: fetch it again")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise ConfigError(f"{path} has an unreadable header: fetch it again") from None
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise ConfigError(f"{path} is truncated: it has {size} bytes and needs {8 + length + end}; fetch it again")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def compare_tensors(found: Shapes, expected: Shapes, place: Path) -> None:
    """Every name and shape must match, none may be left over."""
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise ConfigError(f"{place} lacks {len(missing)} tensors, the first is {missing[0]}")
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise ConfigError(f"{place} holds {len(extra)} tensors that this model does not have, the first is {extra[0]}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ConfigError(f"{place}: the tensor {name} has shape {found[name]}, expected {shape}")


def _find_shards(folder: Path) -> list[Path]:
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [folder / name for name in names]
    else:
        shards = [folder / "diffusion_pytorch_model.safetensors"]
    for shard in shards:
        if not shard.is_file():
            raise ConfigError(f"the checkpoint's shard {shard} is missing: fetch it again")
    return shards


def check_torch_file(path: Path) -> None:
    """A .pth written by torch is a zip; its directory stands at the end, so a truncated file has none."""
    import zipfile

    if not path.is_file():
        raise ConfigError(f"the checkpoint's file {path} is missing")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(2)
        if start == b"PK":
            raise ConfigError(f"{path} is truncated: fetch it again")
        if start[:1] != b"\x80":
            raise ConfigError(f"{path} is not a file of weights: fetch it again")
