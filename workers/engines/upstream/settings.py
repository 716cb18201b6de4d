"""What an engine of a checkout is loaded with, under the names that OmniRT gave these settings.

A setting that this checkout knows is mapped.  One that it does not know is refused with the reason and what to do,
except with the value that means "leave it as it is".  Nothing is ignored in silence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import ConfigError


@dataclass(frozen=True)
class Text:
    default: str = ""

    def read(self, name: str, value: Any) -> str:
        return str(value)


@dataclass(frozen=True)
class Flag:
    default: bool

    def read(self, name: str, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off"):
            return False
        raise ValueError(f"{name} must be true or false, not {value!r}")


@dataclass(frozen=True)
class Choice:
    default: str
    choices: tuple[str, ...]

    def read(self, name: str, value: Any) -> str:
        if value not in self.choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, self.choices))}, not {value!r}")
        return str(value)


@dataclass(frozen=True)
class Number:
    default: float
    low: float
    high: float

    def read(self, name: str, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if isinstance(value, bool) or not self.low <= number <= self.high:
            raise ValueError(f"{name} must be a number from {self.low:g} to {self.high:g}, not {value!r}")
        return number


@dataclass(frozen=True)
class Only:
    """A setting of OmniRT that can have one value here; `why` says what is done instead."""

    value: Any
    why: str

    @property
    def default(self) -> Any:
        return self.value

    def read(self, name: str, value: Any) -> Any:
        plain = Flag(False).read(name, value) if isinstance(self.value, bool) else value
        if plain != self.value and str(plain) != str(self.value):
            raise ValueError(f"{name} can only be {_written(self.value)} here: {self.why}")
        return self.value


@dataclass(frozen=True)
class Cards:
    """A number of processes or cards that OmniRT starts.  0 where it is not said: the worker's devices decide."""

    default: int = 0

    def read(self, name: str, value: Any) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = 0
        if number < 1:
            raise ValueError(f"{name} must be a whole number of cards, not {value!r}")
        return number


Setting = Text | Flag | Choice | Number | Only | Cards

# Where OmniRT's deployment settings stand on a farm.  The engine never sees them from a worker that was set up rightly.
_LAUNCH: Mapping[str, Setting] = {
    "visible_devices": Only("", 'write devices = "cuda:0" or "npu:0" in the worker\'s table of workers.toml'),
    "python_executable": Only("", "write python_executable in the worker's table of workers.toml, beside settings"),
    "env_script": Only("", "write env_script in the worker's table of workers.toml, beside settings"),
    "ascend_env_script": Only("", "write env_script in the worker's table of workers.toml, beside settings"),
    "accelerate_executable": Only("", "a host is started by the farm alone"),
    "resident_target": Only("", "every worker of the farm is resident; there is no other process to name"),
    "resident_autostart": Only(False, "every worker of the farm is resident"),
    "output_dir": Only("", "each row of a batch names its output"),
    "launcher": Only("python", "a host is started by the farm alone"),
    "max_chunks": Only(0, "a film has as many chunks as its sound needs"),
    "audio_encode_mode": Only("stream", "once drops the film's last chunk and holds the whole recording in memory"),
    "seed": Only("", "each row of a batch has its seed"),
}
ONE_CARD = "one worker has one card with this model; two cards render twice as much as two workers"
LAUNCH: Mapping[str, Setting] = {
    **_LAUNCH,
    "nproc_per_node": Only(1, ONE_CARD),
    "num_processes": Only(1, ONE_CARD),
}
PLACES: Mapping[str, Setting] = {
    "repo_path": Text(),
    "ckpt_dir": Text(),
    "wav2vec_dir": Text(),
    "cache": Text(),
    "device": Choice("", ("", "cuda", "npu", "cpu", "ascend", "ascend_npu")),
}
ALIASES = {"model_path": "ckpt_dir", "platform": "device"}


def read_settings(model: str, known: Mapping[str, Setting], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting with its value.  Raises ConfigError with one sentence about the first that is wrong."""
    values = {name: setting.default for name, setting in known.items()}
    for written, value in given.items():
        name = ALIASES.get(written, written)
        if name not in known:
            shown = ", ".join(sorted(name for name, setting in known.items() if not isinstance(setting, Only)))
            raise ConfigError(f"{model} is not loaded with {written!r}; it knows {shown}")
        try:
            values[name] = known[name].read(written, value)
        except ValueError as error:
            raise ConfigError(f"{model}: {error}") from None
    return values


def folder_of(model: str, values: Mapping[str, Any], name: str, what: str) -> Path:
    """The folder that a setting names; relative ones lie in the checkout, as OmniRT has it.  Raises ConfigError."""
    written = values[name]
    if not written:
        raise ConfigError(f"{model}: {name} is not set; it is {what}")
    path = Path(written).expanduser()
    if not path.is_absolute() and name != "repo_path" and values.get("repo_path"):
        path = Path(values["repo_path"]).expanduser() / path
    if not path.is_dir():
        raise ConfigError(f"{model}: {name}: there is no folder {path}; it is {what}")
    return path.resolve()


def cache_folder(values: Mapping[str, Any], name: str) -> Path:
    """Where encodings and compiled kernels are kept."""
    if values["cache"]:
        return Path(values["cache"]).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "talking-head-farm" / name


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)
