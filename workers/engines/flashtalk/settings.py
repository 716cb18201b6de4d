"""What the engine is loaded with, and what a job may ask; configs/models/soulx-flashtalk-14b.toml says the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from farm.errors import ConfigError, InputError

LOADED = {
    "weights": ("official", "random"),
    "architecture": ("14b", "tiny"),
    "precision": ("bf16", "fp8", "int8"),
    "residency": ("full", "lean"),
    "latent_constants": ("exact", "upstream"),
    "decode": ("tiled", "plain"),
}
MODEL = "the FlashTalk model"


@dataclass(frozen=True)
class EngineSettings:
    """Fixed while the engine is loaded."""

    checkpoint: str = ""  # the folder SoulX-FlashTalk-14B
    speech_checkpoint: str = ""  # the folder chinese-wav2vec2-base
    cache: str = ""  # encodings and the attention trial; default $XDG_CACHE_HOME/talking-head-farm/flashtalk
    weights: str = "official"  # "random" makes weights from their names, for benches and tests
    architecture: str = "14b"
    precision: str = "bf16"  # of the blocks' products
    residency: str = "full"  # "lean" keeps a 24 GB card under 20 GB
    latent_constants: str = "exact"  # "upstream" rounds the latent space's constants to bf16
    decode: str = "tiled"  # on a GPU with half of the multiplications, in half precision; "plain" as upstream
    device: str = ""  # "cuda", "npu" or "cpu"; the first that is there by default
    memory_limit_gb: float = 0.0  # a cap on this process's device memory; 0 for none

    @staticmethod
    def from_mapping(settings: Mapping[str, Any]) -> EngineSettings:
        """Raises ConfigError naming a setting that is unknown or wrong."""
        known = {field.name for field in fields(EngineSettings)}
        for name in settings:
            if name not in known:
                raise ConfigError(f"{MODEL} is not loaded with {name!r}; it knows {', '.join(sorted(known))}")
        made = EngineSettings(**settings)
        for name, choices in LOADED.items():
            if getattr(made, name) not in choices:
                raise ConfigError(f"{MODEL}: {name} must be one of {', '.join(choices)}, not {getattr(made, name)!r}")
        if made.weights == "official" and not (made.checkpoint and made.speech_checkpoint):
            raise ConfigError(f"{MODEL}: checkpoint and speech_checkpoint must name the folders of the fetched weights")
        return made

    @property
    def cache_folder(self) -> Path:
        if self.cache:
            return Path(self.cache)
        root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Path(root) / "talking-head-farm" / "flashtalk"


@dataclass(frozen=True)
class JobSettings:
    """What one film may choose."""

    steps: int = 4
    attention: str = "exact"  # "fp8" is faster and slightly less exact
    colour_match: float = 1.0  # how far each frame's colours are moved onto the portrait's
    noise: str = "keyed"  # "upstream" draws on the device as upstream does, equal only on equal cards

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> JobSettings:
        """Raises InputError naming the setting."""
        known = {field.name for field in fields(JobSettings)}
        for name in values:
            if name not in known:
                raise InputError(f"{MODEL} has no setting {name!r}; it has {', '.join(sorted(known))}")
        made = JobSettings(**values)
        if isinstance(made.steps, bool) or made.steps != int(made.steps) or not 1 <= made.steps <= 16:
            raise InputError(f"steps must be a whole number from 1 to 16, not {made.steps!r}")
        if made.attention not in ("exact", "fp8"):
            raise InputError(f"attention must be exact or fp8, not {made.attention!r}")
        if not isinstance(made.colour_match, int | float) or not 0 <= made.colour_match <= 1:
            raise InputError(f"colour_match must be a number from 0 to 1, not {made.colour_match!r}")
        if made.noise not in ("keyed", "upstream"):
            raise InputError(f"noise must be keyed or upstream, not {made.noise!r}")
        return made
