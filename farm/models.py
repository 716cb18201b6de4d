"""What planning must know of each model: configs/models/<id>.toml, read by both sides of the farm."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from reprlib import repr as shorten
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from farm.config import first_problem, home_from_environment, read_toml
from farm.errors import ConfigError, InputError
from farm.paths import shipped


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FrameSpec(_Table):
    fps: list[int]
    default_fps: int
    chunk_frames: int | dict[str, int]  # one number, or one per fps
    lookahead_samples: int
    carry_limit_bytes: int

    @model_validator(mode="after")
    def _every_rate_has_a_chunk(self) -> FrameSpec:
        if self.default_fps not in self.fps:
            raise ValueError(f"default_fps {self.default_fps} is not among fps")
        if isinstance(self.chunk_frames, dict) and set(self.chunk_frames) != {str(fps) for fps in self.fps}:
            raise ValueError("chunk_frames must name every one of fps and nothing else")
        return self

    def chunk(self, fps: tuple[int, int]) -> int:
        """Frames of one step at this rate."""
        if isinstance(self.chunk_frames, int):
            return self.chunk_frames
        return self.chunk_frames[str(fps[0])]


class SizeSpec(_Table):
    min: int = 16
    max: int = 4096
    step: int = 2
    default: tuple[int, int]  # width, height
    choices: list[tuple[int, int]] = []  # when only these are possible


_DECIMAL_COMMA = re.compile(r"^(\s*-?\d+),(\d+\s*)$")  # as many countries' spreadsheets write it


class NumberSpec(_Table):
    type: Literal["float", "int"]
    default: float
    min: float
    max: float
    help: str
    job: bool = True  # False: fixed when the engine is loaded, so only configs/workers.toml may set it

    def read(self, name: str, value: Any) -> float | int:
        try:
            number = float(_DECIMAL_COMMA.sub(r"\1.\2", value) if isinstance(value, str) else value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or not self.min <= number <= self.max:
            raise InputError(f"{name} must be a number from {self.min:g} to {self.max:g}, not {shorten(value)}")
        if self.type == "int":
            if number != int(number):
                raise InputError(f"{name} must be a whole number, not {shorten(value)}")
            return int(number)
        return number


class ChoiceSpec(_Table):
    type: Literal["choice"]
    default: str
    choices: list[str]
    help: str
    job: bool = True

    def read(self, name: str, value: Any) -> str:
        if value not in self.choices:
            raise InputError(f"{name} must be one of {', '.join(self.choices)}, not {shorten(value)}")
        return str(value)


class FlagSpec(_Table):
    type: Literal["bool"]
    default: bool
    help: str
    job: bool = True

    def read(self, name: str, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in ("true", "yes", "on", "1"):
            return True
        if word in ("false", "no", "off", "0"):
            return False
        raise InputError(f"{name} must be true or false, not {shorten(value)}")


class TextSpec(_Table):
    type: Literal["text"]
    default: str
    help: str
    job: bool = True

    def read(self, name: str, value: Any) -> str:
        return str(value)


SettingSpec = Annotated[NumberSpec | ChoiceSpec | FlagSpec | TextSpec, Field(discriminator="type")]


class PresetSpec(_Table):
    help: str
    settings: dict[str, Any] = {}
    queue: str = ""  # set when the preset needs an engine that was loaded differently
    load: dict[str, Any] = {}  # what that engine is loaded with
    chunk_frames: int | None = None  # frames of one step, where that engine's steps differ from frames.chunk_frames


class PortraitLimits(_Table):
    """What a portrait must be for this model; what is not set is the portrait check's own.  Pixels and degrees."""

    needs_face: bool = True
    min_face_px: float | None = None
    max_yaw_degrees: float | None = None
    max_pitch_degrees: float | None = None
    max_roll_degrees: float | None = None


class LiveSpec(_Table):
    """How a model serves a live session; a model without this table serves none."""

    slice_frames: int = Field(ge=1)  # frames of one message of sound, and of one step of the engine
    motion_frames: int = Field(default=0, ge=0)  # frames of the slice before that the model repeats; told to clients
    facts: dict[str, Any] = {}  # in place of what `prepare` measures over a whole recording


class RepositorySpec(_Table):
    """One folder of weights, as a hub has it."""

    setting: str  # of the engine that names this folder
    hub: str  # owner/name, the same on every hub
    folder: str  # below the models' home
    licence: str
    gigabytes: float
    accept: bool = False  # its licence must be accepted by the person who fetches it
    files: list[str] = []  # patterns; every file where there is none


class SourceSpec(_Table):
    repositories: list[RepositorySpec] = []
    checkout: str = ""  # where the model's own code is had, for engines that use it
    checkout_licence: str = ""


class ModelSpec(_Table):
    id: str
    name: str
    summary: str
    licence: str
    engine: str  # module with make_engine(settings)
    measure: str = ""  # module with measure(audio): what `prepare` learns of the whole audio for the engine
    engine_files: str = ""  # module that finds and fetches small files which the engine needs and no hub has
    queue: str
    device_kinds: list[str]
    ranks: list[int] = [1]  # how many cards can render one film together, as a group of processes
    memory_gb: float
    default_preset: str
    prompt: bool = False
    default_prompt: str = ""
    segment_seconds: float | None = None
    frames: FrameSpec
    size: SizeSpec
    portrait: PortraitLimits = PortraitLimits()
    live: LiveSpec | None = None
    settings: dict[str, SettingSpec] = {}
    presets: dict[str, PresetSpec]
    source: SourceSpec = SourceSpec()  # where weights come from, for `farm models pull`

    @model_validator(mode="after")
    def _presets_use_known_settings(self) -> ModelSpec:
        if self.default_preset not in self.presets:
            raise ValueError(f"default_preset {self.default_preset!r} is not among the presets")
        try:
            for key, spec in self.settings.items():
                spec.read(key, spec.default)
            for name, preset in self.presets.items():
                for key, value in preset.settings.items():
                    if key not in self.settings:
                        raise ValueError(f"preset {name} sets {key!r}, which is no setting of this model")
                    self.settings[key].read(key, value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _presets_of_one_queue_have_one_chunk(self) -> ModelSpec:
        chunks: dict[str, int | None] = {}
        for name, preset in self.presets.items():
            if chunks.setdefault(preset.queue or self.queue, preset.chunk_frames) != preset.chunk_frames:
                raise ValueError(f"preset {name} shares a queue with one of another chunk_frames")
        return self

    def preset(self, name: str) -> PresetSpec:
        """Raises InputError."""
        try:
            return self.presets[name]
        except KeyError:
            raise InputError(f"model {self.id} has no preset {name!r}; it has {', '.join(self.presets)}") from None

    def queue_for(self, preset: str) -> str:
        """The queue whose workers can render a job of this preset."""
        return self.preset(preset).queue or self.queue

    def chunk(self, preset: str, fps: tuple[int, int]) -> int:
        """Frames of one step of the engine that renders this preset.  Raises InputError."""
        return self.preset(preset).chunk_frames or self.frames.chunk(fps)

    def resolve(self, preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting of a job: defaults, the preset's values over them, the row's over those.  Raises InputError."""
        resolved = {name: spec.read(name, spec.default) for name, spec in self.settings.items() if spec.job}
        chosen = self.preset(preset)
        resolved.update({k: self.settings[k].read(k, v) for k, v in chosen.settings.items() if self.settings[k].job})
        for name, value in given.items():
            spec = self.settings.get(name)
            if spec is None or not spec.job:
                known = ", ".join(n for n, s in self.settings.items() if s.job)
                raise InputError(f"model {self.id} has no setting {name!r}; a row may set {known or 'none'}")
            resolved[name] = spec.read(name, value)
        return resolved

    def read_size(self, text: str | int | None) -> tuple[int, int]:
        """`512x768` or `512` as (width, height) in pixels; the default for nothing.  Raises InputError."""
        if text in (None, ""):
            return self.size.default
        width_text, _, height_text = str(text).lower().replace("×", "x").partition("x")
        try:
            width = int(width_text)
            height = int(height_text) if height_text else width
        except ValueError:
            raise InputError(f"size {shorten(text)} is not WIDTHxHEIGHT in pixels, such as 512x512") from None
        size, spec = (width, height), self.size
        if spec.choices:
            if size not in spec.choices:
                shown = ", ".join(f"{w}x{h}" for w, h in spec.choices)
                raise InputError(f"model {self.id} cannot render {width}x{height}; it renders {shown}")
        elif any(not spec.min <= side <= spec.max or side % spec.step for side in size):
            raise InputError(
                f"model {self.id} cannot render {width}x{height}; each side is from {spec.min} to {spec.max} pixels"
                f" and a multiple of {spec.step}"
            )
        return size

    def read_fps(self, text: str | int | None) -> tuple[int, int]:
        """Frames per second as (numerator, denominator).  Raises InputError."""
        if text in (None, ""):
            return (self.frames.default_fps, 1)
        try:
            fps = int(str(text))
        except ValueError:
            fps = -1
        if fps not in self.frames.fps:
            shown = ", ".join(str(f) for f in self.frames.fps)
            raise InputError(f"model {self.id} cannot render {text} frames per second; it renders {shown}")
        return (fps, 1)


def model_files() -> dict[str, Path]:
    """Every model that this farm knows: those it ships, and those in $FARM_HOME/models, which win."""
    found: dict[str, Path] = {}
    for directory in (shipped("configs") / "models", home_from_environment() / "models"):
        for path in sorted(directory.glob("*.toml")):
            found[path.stem] = path
    return found


@lru_cache(maxsize=64)
def _load(path: Path, mtime_ns: int) -> ModelSpec:
    try:
        spec = ModelSpec.model_validate(read_toml(path))
    except ValidationError as error:
        key, sentence = first_problem(error)
        raise ConfigError(f"{path}: {key or 'model'}: {sentence}") from None
    if spec.id != path.stem:
        raise ConfigError(f"{path}: id: {spec.id!r} must be the file's name")
    return spec


def load_model(model_id: str) -> ModelSpec:
    """Raises InputError for an unknown model, ConfigError for a wrong file."""
    files = model_files()
    if model_id not in files:
        raise InputError(f"there is no model {model_id!r}; this farm knows {', '.join(files) or 'none'}")
    path = files[model_id]
    return _load(path, path.stat().st_mtime_ns)


def all_models() -> list[ModelSpec]:
    return [load_model(model_id) for model_id in model_files()]
