"""Settings: configs/farm.toml, then $FARM_HOME/farm.toml, then FARM_* variables, the later ones winning."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from farm.errors import ConfigError
from farm.logs import LogFormat
from farm.paths import shipped
from farm.retry import RetryPolicy

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")  # of a worker or a nightly file: part of file names and tags
Scheduling = Literal["normal", "batch", "idle"]
_SOCKET_PATH_LIMIT = 100  # bytes; a Unix socket's path may have 107


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LeaseSettings(_Section):
    ttl_seconds: float = Field(gt=0)
    beat_seconds: float = Field(gt=0)
    poll_seconds: float = Field(gt=0)
    sweep_seconds: float = Field(gt=0)
    ring_again_seconds: float = Field(gt=0)


class RetrySettings(_Section):
    max_errors: int = Field(ge=1)
    max_losses: int = Field(ge=1)
    base_delay_seconds: float = Field(ge=0)
    max_delay_seconds: float = Field(ge=0)

    def policy(self) -> RetryPolicy:
        return RetryPolicy(self.max_errors, self.max_losses, self.base_delay_seconds, self.max_delay_seconds)


class SegmentSettings(_Section):
    seconds: float = Field(gt=0, le=3600)
    first_seconds: float = Field(gt=0, le=3600)
    reuse: bool
    keep_gb: float = Field(ge=0)


class HostSettings(_Section):
    load_timeout_seconds: float = Field(gt=0)
    stuck_factor: float = Field(ge=2)
    stuck_floor_seconds: float = Field(gt=0)
    rank_silence_seconds: float = Field(ge=1)
    stop_seconds: float = Field(gt=0)
    restart_delay_seconds: float = Field(ge=0)
    restart_delay_max_seconds: float = Field(ge=0)


class RoomSettings(_Section):
    min_free_disk_gb: float = Field(ge=0)
    min_free_memory_gb: float = Field(ge=0)


class FilmSettings(_Section):
    codec: Literal["libx264", "h264_nvenc"]
    crf: int = Field(ge=0, le=51)
    encoder_preset: str
    audio_bitrate: int = Field(ge=32_000, le=512_000)


class LimitSettings(_Section):
    audio_hours: float = Field(gt=0)
    audio_file_gb: float = Field(gt=0)
    portrait_file_mb: float = Field(gt=0)
    step_seconds: float = Field(gt=0)
    step_seconds_per_audio_hour: float = Field(ge=0)

    def step_timeout(self, audio_seconds: float) -> float:
        """Longest time that prepare or assemble may take for this much audio."""
        return self.step_seconds + self.step_seconds_per_audio_hour * audio_seconds / 3600.0


class RateSettings(_Section):
    currency: str
    per_device_hour: dict[str, Annotated[float, Field(ge=0)]]  # by kind of device: cpu, cuda, npu


class ServerSettings(_Section):
    host: str
    port: int = Field(ge=0, le=65535)
    open: bool
    upload_gb: float = Field(gt=0)
    batch_file_mb: float = Field(gt=0, le=256)
    requests_per_second: float = Field(gt=0)
    niceness: int = Field(ge=0, le=19)
    scheduling: Scheduling


class StoreSettings(_Section):
    url: str
    endpoint: str
    region: str
    access_key: str
    secret_key: SecretStr
    cache_gb: float = Field(ge=0)
    patience_seconds: float = Field(ge=0)

    @field_validator("url")
    @classmethod
    def _names_a_bucket(cls, url: str) -> str:
        if url and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?", url):
            raise ValueError("must be empty, s3://bucket or s3://bucket/prefix")
        return url

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, endpoint: str) -> str:
        if endpoint and not re.fullmatch(r"https?://[^\s@/]+/?", endpoint):
            raise ValueError("must be empty or an address such as https://s3.example.org, without keys or a path")
        return endpoint

    @property
    def bucket(self) -> str:
        return self.url.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """What every key begins with: empty, or ends with a slash."""
        words = self.url.removeprefix("s3://").partition("/")[2].strip("/")
        return f"{words}/" if words else ""


class LiveSettings(_Section):
    sessions: int = Field(ge=0)
    wait_seconds: float = Field(gt=0)
    idle_seconds: float = Field(gt=0)
    session_minutes: float = Field(gt=0)
    message_mb: float = Field(gt=0, le=256)
    jpeg_quality: int = Field(ge=1, le=100)


class Settings(BaseSettings):
    """All settings of one farm.  Frozen; every part of the farm is handed the same one."""

    model_config = SettingsConfigDict(
        env_prefix="FARM_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Path = Field(default_factory=lambda: default_home())
    ledger_url: str
    redis_url: str
    output_dir: str
    input_roots: list[Path]
    output_roots: list[Path]
    default_model: str
    log_format: LogFormat
    lease: LeaseSettings
    retry: RetrySettings
    segments: SegmentSettings
    host: HostSettings
    room: RoomSettings
    film: FilmSettings
    limits: LimitSettings
    rates: RateSettings
    server: ServerSettings
    store: StoreSettings
    live: LiveSettings

    @field_validator("redis_url")
    @classmethod
    def _is_of_redis(cls, url: str) -> str:
        if url and not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must be empty or an address that begins with redis://, rediss:// or unix://")
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = [path for path in settings_files() if path.is_file()]
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=files, deep_merge=True)

    @property
    def ledger(self) -> str:
        """Where the ledger is, as a URL."""
        return self.ledger_url or f"sqlite:///{self.home / 'ledger.db'}"

    @property
    def redis_is_private(self) -> bool:
        return not self.redis_url

    @property
    def redis_socket(self) -> Path:
        """Where the private Redis listens.  A home with a long path gets a short one of its own."""
        return self._socket("redis", "redis.sock")

    @property
    def redis_was_not_started(self) -> bool:
        """Whether the private Redis is simply not there, as before the first `farm up` and after `farm down`."""
        return self.redis_is_private and not self.redis_socket.exists()

    def live_socket(self, worker: str) -> Path:
        """Where a worker is asked for its warm host; `worker` is its full name."""
        return self._socket("live", f"{hashlib.sha256(worker.encode()).hexdigest()[:12]}.sock")

    def _socket(self, folder: str, name: str) -> Path:
        in_home = self.home / folder / name
        if len(os.fsencode(in_home)) <= _SOCKET_PATH_LIMIT:
            return in_home
        short = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"farm-{os.getuid()}-{short}" / name

    @property
    def redis(self) -> str:
        """Where doorbells go, as redis-py understands it."""
        return self.redis_url or f"unix://{self.redis_socket}?db=0"

    @property
    def artifacts_dir(self) -> Path:
        return self.home / "artifacts"

    @property
    def logs_dir(self) -> Path:
        return self.home / "logs"

    @property
    def run_dir(self) -> Path:
        """Process ids of what `farm up` started."""
        return self.home / "run"


def default_home() -> Path:
    """$XDG_DATA_HOME/farm, normally ~/.local/share/farm."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "farm"


def home_from_environment() -> Path:
    home = os.environ.get("FARM_HOME")
    return (Path(home) if home else default_home()).expanduser().absolute()


def settings_files() -> list[Path]:
    """The files that are read, the later ones winning."""
    return [shipped("configs") / "farm.toml", home_from_environment() / "farm.toml"]


def load_settings(**overrides: Any) -> Settings:
    """Read all settings.  Raises ConfigError naming file and key."""
    for path in settings_files():
        read_toml(path)  # a syntax error is told with its file's name
    try:
        return Settings(home=home_from_environment(), **overrides)
    except SettingsError as error:  # a list or table that is no JSON; the only way to tell which is its message
        field = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), "")
        example = "; a list of folders is '[\"/inputs\"]'" if field.endswith("_roots") else ""
        raise ConfigError(f"variable FARM_{field.upper()}: {field}: must be JSON{example}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key, sentence = first_problem(error)
        got = "" if _may_be_secret(first["loc"]) else f" (got {first.get('input')!r})"
        raise ConfigError(f"{_where(first['loc'])}: {key or 'settings'}: {sentence}{got}") from None


def _may_be_secret(loc: tuple[Any, ...]) -> bool:
    """An address with a password in it; also a secret's name with a slip in it, and a whole section that holds one."""
    if loc in (("redis_url",), ("ledger_url",)):
        return True
    return loc[:1] == ("store",) and loc[1:] not in (("url",), ("region",), ("cache_gb",), ("patience_seconds",))


def _where(loc: tuple[Any, ...]) -> str:
    """Which source a wrong key most likely came from."""
    variable = "FARM_" + "__".join(str(part).upper() for part in loc)
    if variable in os.environ:
        return f"variable {variable}"
    home_file = settings_files()[-1]
    if home_file.is_file():
        table: Any = read_toml(home_file)
        for part in loc:
            if not isinstance(table, dict) or part not in table:
                break
            table = table[part]
        else:
            return str(home_file)
    return "settings"


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The key of what is wrong first, with dots, empty for the whole file; and what is wrong with it."""
    first = error.errors()[0]
    ours = {"extra_forbidden": "there is no such key", "missing": "is missing"}
    return ".".join(map(str, first["loc"])), ours.get(first["type"], first["msg"].removeprefix("Value error, "))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a table; empty if there is none.  Raises ConfigError naming the file."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
