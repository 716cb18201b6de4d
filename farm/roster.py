"""Which workers this machine has: configs/workers.toml, or $FARM_HOME/workers.toml instead."""

from __future__ import annotations

import getpass
import itertools
import os
import socket
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm.cards import same_cards
from farm.config import NAME, first_problem, home_from_environment, read_toml
from farm.devices import DeviceSet, parse_devices
from farm.errors import ConfigError, InputError, NotFound
from farm.ledger.intake import PREPARE_QUEUE
from farm.models import ModelSpec, load_model
from farm.paths import shipped


class WorkerSpec(BaseModel):
    """One worker as configured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    model: str = ""
    preset: str = ""
    devices: str = "cpu"
    python_executable: str = ""
    env_script: str = ""
    text_device: str = ""
    ranks: int = Field(default=0, ge=0, le=64)
    share_card: bool = False
    environment: dict[str, str] = {}
    settings: dict[str, Any] = {}
    enabled: bool = True

    @property
    def renders(self) -> bool:
        """Whether it keeps an engine; otherwise it prepares and assembles."""
        return bool(self.model)

    @property
    def device_set(self) -> DeviceSet:
        return parse_devices(self.devices)

    @property
    def device_sets(self) -> list[DeviceSet]:
        """Every device that its host can see."""
        return [self.device_set, *([parse_devices(self.text_device)] if self.text_device else [])]

    @property
    def world_size(self) -> int:
        """Processes that render together in its host."""
        return self.ranks or self.device_set.ranks

    @property
    def python(self) -> str:
        return self.python_executable or sys.executable

    @property
    def full_name(self) -> str:
        """Its name in the ledger and in Celery: unique over all machines of the farm."""
        return f"{self.name}@{machine_name()}"

    def load_model(self) -> ModelSpec:
        return load_model(self.model)

    @property
    def queue(self) -> str:
        if not self.renders:
            return PREPARE_QUEUE
        model = self.load_model()
        return model.queue_for(self.preset or model.default_preset)


def machine_name() -> str:
    """This machine among those of the farm."""
    return os.environ.get("FARM_MACHINE") or socket.gethostname()


def user_name() -> str:
    """Who works here: the owner of jobs for which nobody is named.  A number where the user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def roster_file() -> Path:
    own = home_from_environment() / "workers.toml"
    return own if own.is_file() else shipped("configs") / "workers.toml"


def load_roster() -> list[WorkerSpec]:
    """Every enabled worker of this machine.  Raises ConfigError naming file and key."""
    path = roster_file()
    tables = read_toml(path).get("workers", {})
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{path}: workers: there is no [workers.NAME] table")
    specs: list[WorkerSpec] = []
    for name, table in tables.items():
        where = f"{path}: workers.{name}"
        if not NAME.fullmatch(name):
            raise ConfigError(f"{where}: a worker's name has letters, digits, '.', '_' and '-' only")
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: must be a table")
        if "name" in table:
            raise ConfigError(f"{where}: name: the table's heading is the name")
        try:
            spec = WorkerSpec(name=name, **table)
        except ValidationError as error:
            key, sentence = first_problem(error)
            raise ConfigError(f"{where}.{key}: {sentence}") from None
        if spec.enabled:
            _check(spec, where)
            specs.append(spec)
    for one, other in itertools.combinations(specs, 2):
        if one.share_card and other.share_card:
            continue
        for ours, theirs in itertools.product(one.device_sets, other.device_sets):
            if same_cards(ours, theirs):
                raise ConfigError(
                    f"{path}: workers {one.name} and {other.name} both claim {ours} / {theirs};"
                    " a device belongs to one worker, or to several that all have share_card = true"
                )
    return specs


def _check(spec: WorkerSpec, where: str) -> None:
    try:
        devices = spec.device_set
        if not spec.renders:
            return
        model = spec.load_model()
        model.preset(spec.preset or model.default_preset)
    except (InputError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from None
    if devices.kind not in model.device_kinds:
        raise ConfigError(
            f"{where}: devices: {model.id} renders on {', '.join(model.device_kinds)}, not on {devices.kind}"
        )
    if spec.ranks > 1 and devices.ids and spec.ranks != devices.ranks:
        raise ConfigError(f"{where}: ranks: {spec.ranks} processes cannot share {devices}: give each one card")
    if spec.world_size not in model.ranks:
        known = ", ".join(map(str, model.ranks))
        raise ConfigError(
            f"{where}: {model.id} renders a film with {known} {'card' if known == '1' else 'cards'},"
            f" not with {spec.world_size}" + ("; ranks = 1 shows all of them to one process" if devices.ids else "")
        )
    if spec.text_device:
        _check_text_device(spec, where)


def _check_text_device(spec: WorkerSpec, where: str) -> None:
    try:
        text = parse_devices(spec.text_device)
    except ConfigError as error:
        raise ConfigError(f"{where}: text_device: {error}") from None
    if text.kind not in ("cpu", spec.device_set.kind) or len(text.ids) > 1:
        raise ConfigError(f"{where}: text_device: must be cpu or one {spec.device_set.kind} card, not {text}")
    if same_cards(text, spec.device_set):
        raise ConfigError(f"{where}: text_device: {text} is one of its devices already; leave text_device out")


def find_worker(name: str) -> WorkerSpec:
    """The configured worker `name`.  Raises NotFound."""
    specs = load_roster()
    for spec in specs:
        if name in (spec.name, spec.full_name):
            return spec
    raise NotFound(f"{roster_file()} names no worker {name!r}; it has {', '.join(s.name for s in specs)}")
