"""Bringing a worker's engine to life: what its host is started with, and when a load that failed is tried again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from farm.config import Settings
from farm.devices import parse_devices
from farm.errors import ConfigError, FarmError
from farm.ledger import Ledger, live
from farm.ledger.values import Lease
from farm.retry import backoff
from farm.roster import WorkerSpec
from farm.states import WorkerState
from farm.store import Store
from workers.heart import Heart
from workers.host.parent import HostSpec
from workers.rendering import Renderer

log = logging.getLogger(__name__)

SICK_AFTER_LOADS = 3  # a worker whose engine failed to load this often in a row is sick


def make_renderer(
    ledger: Ledger, settings: Settings, spec: WorkerSpec, store: Store, on_progress: Callable[[Lease, int], None]
) -> Renderer:
    """The renderer of one worker as configured; its host is not started yet."""
    model = spec.load_model()
    preset = model.preset(spec.preset or model.default_preset)
    host = settings.host
    return Renderer(
        ledger,
        store,
        HostSpec(
            engine_module=model.engine,
            engine_settings={**preset.load, **spec.settings},
            devices=spec.device_set,
            log_file=settings.logs_dir / f"{spec.name}.host.log",
            python=spec.python,
            env_script=spec.env_script,
            environment=spec.environment,
            load_timeout_seconds=host.load_timeout_seconds,
            stuck_factor=host.stuck_factor,
            stuck_floor_seconds=host.stuck_floor_seconds,
            ranks=spec.world_size,
            silence_seconds=host.rank_silence_seconds,
            text_device=parse_devices(spec.text_device) if spec.text_device else None,
            holder=f"worker {spec.name} of the farm in {settings.home}",
            shares_cards=spec.share_card,
        ),
        model,
        host.stop_seconds,
        on_progress,
        spec.preset,
    )


class Loader:
    """Loads a worker's engine, and after a failure again, each time after a longer pause."""

    def __init__(self, name: str, renderer: Renderer, heart: Heart, settings: Settings) -> None:
        self.again_at = 0.0  # by the monotonic clock: when the next try may be made
        self._name = name
        self._renderer = renderer
        self._heart = heart
        self._settings = settings.host
        self._failures = 0

    def warm_up(self, give_up: threading.Event, live_address: str | None) -> bool:
        """Whether the engine is warm now; the worker's row says why not, and tells of the host when it is.

        `live_address` is where the worker takes live sessions.  `give_up` ends a load that runs.
        """
        if time.monotonic() < self.again_at:
            return False
        self._heart.say(WorkerState.LOADING)
        try:
            loaded = self._renderer.warm_up(give_up)
        except FarmError as error:
            self._failures += 1
            longest = self._settings.restart_delay_max_seconds
            pause = backoff(self._failures, self._settings.restart_delay_seconds, longest)
            self.again_at = time.monotonic() + (longest if isinstance(error, ConfigError) else pause)
            log.error("%s: the engine could not be loaded: %s", self._name, error)
            state = WorkerState.SICK if self._failures >= SICK_AFTER_LOADS else WorkerState.LOADING
            self._heart.say(state, f"the engine could not be loaded: {error}")
            return False
        self._failures = 0
        report, engine = loaded.report, loaded.description
        log.info(
            "%s: %s %s is warm on %s after %.1f s, %.2f GB",
            self._name,
            engine["id"],
            engine["version"],
            engine["device"],
            report["seconds"],
            report["memory_bytes"] / 1e9,
        )
        self._heart.note_host(
            self._renderer.host.pid,
            self._renderer.restarts,
            {
                "engine": engine["id"],
                "version": engine["version"],
                "device": engine["device"],
                "memory_bytes": report["memory_bytes"],
                "load_seconds": report["seconds"],
                "python": loaded.python,
                **({live.ADDRESS: live_address} if live_address is not None else {}),
            },
        )
        self._heart.say(WorkerState.IDLE)
        return True
