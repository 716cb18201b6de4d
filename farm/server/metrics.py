"""Prometheus metrics, read from the ledger when they are asked for, so that they survive every restart."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TypeVar

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from farm.config import Settings
from farm.ledger import Ledger, overview, read
from farm.ledger.estimate import queue_work
from farm.ledger.overview import Histogram
from farm.ledger.presence import is_alive
from farm.server.access import Reader
from farm.server.context import Here, problems

V = TypeVar("V")
Labels = TypeVar("Labels", bound=tuple[str, ...])
router = APIRouter(tags=["farm"])

BOUNDS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 43200.0)
KEEP_SECONDS = 5.0  # several scrapers cost the ledger no more than one
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class FarmCollector(Collector):
    """Turns the ledger's figures into metric families."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings

    def describe(self) -> Iterable[Metric]:
        return ()  # known only when the ledger is read

    def collect(self) -> Iterable[Metric]:
        figures = overview.figures(self._ledger, BOUNDS)
        yield _gauge("farm_jobs", "Jobs by model and state", ["model", "state"], figures.jobs)
        yield _gauge("farm_queue_depth", "Segments that wait for a worker", ["queue"], _one(figures.queued))
        yield from self._work()
        yield _counter("farm_attempts", "Attempts that ended", ["kind", "outcome", "failure"], figures.attempts)
        expired = sum(n for (_, outcome, _), n in figures.attempts.items() if outcome == "expire")
        yield _counter("farm_leases_expired", "Leases whose worker vanished", [], {(): expired})
        yield _counter(
            "farm_device_seconds", "Seconds that devices rendered", ["model", "device"], figures.device_seconds
        )
        yield _counter("farm_frames", "Frames published", ["model"], _one(figures.frames))
        yield _counter("farm_film_seconds", "Seconds of film published", ["model"], _one(figures.film_seconds))
        yield _gauge(
            "farm_render_frames_per_second", "Frames per device-second, whole history", ["model"], _one(figures.speeds)
        )
        yield _histogram("farm_queue_wait_seconds", "From submit to first attempt", [], {(): figures.waits})
        yield _histogram(
            "farm_segment_seconds", "One published segment, begin to end", ["model"], _one(figures.renders)
        )
        yield from self._workers()
        usage = shutil.disk_usage(self._settings.home)
        yield _gauge("farm_disk_free_bytes", "Free room where the farm keeps its files", [], {(): usage.free})
        yield from _omnirt(figures)

    def _work(self) -> Iterable[Metric]:
        work = queue_work(self._ledger)
        names = ["queue", "model"]
        yield _gauge(
            "farm_queue_seconds",
            "What one worker would take for the films that are not rendered yet; absent for a model without history",
            names,
            {(w.queue, w.model): w.seconds for w in work if w.seconds is not None},
        )
        yield _gauge(
            "farm_queue_film_seconds",
            "Length of film that is not rendered yet",
            names,
            {(w.queue, w.model): w.film_seconds for w in work},
        )

    def _workers(self) -> Iterable[Metric]:
        now = self._ledger.now()
        up, restarts, memory, silent = {}, {}, {}, {}
        for worker in read.workers(self._ledger):
            label = (worker.name, worker.queue, worker.device)
            up[(*label, worker.state.value)] = int(is_alive(worker, now))
            restarts[label] = worker.host_restarts
            silent[label] = round(max(0.0, now - worker.beat_at), 1)
            for key, value in worker.info.items():
                if "memory" in key and isinstance(value, int | float):
                    memory[(*label, key)] = value
        names = ["worker", "queue", "device"]
        yield _gauge("farm_worker_up", "Whether a worker beats", [*names, "state"], up)
        yield _gauge("farm_worker_silent_seconds", "Since its last beat", names, silent)
        yield _gauge("farm_host_restarts", "Hosts that were replaced since the worker began", names, restarts)
        yield _gauge("farm_worker_memory", "What the worker says of its memory", [*names, "what"], memory)


def _omnirt(figures: overview.Figures) -> Iterable[Metric]:
    """The names that dashboards made for OmniRT look for."""
    words = {"preparing": "running", "rendering": "running", "assembling": "running"}
    jobs: dict[tuple[str, ...], float] = {}
    for (model, state), count in figures.jobs.items():
        key = ("audio2video", model, "persistent_worker", words.get(state, state))
        jobs[key] = jobs.get(key, 0) + count
    yield _gauge("omnirt_jobs", "Jobs, by OmniRT's states", ["task", "model", "execution_mode", "state"], jobs)
    yield _gauge("omnirt_queue_depth", "Segments that wait", ["priority"], {("default",): sum(figures.queued.values())})
    stages = {("render", model): histogram for model, histogram in figures.renders.items()}
    yield _histogram("omnirt_stage_duration_seconds", "One published segment", ["stage", "model"], stages)


def _one(values: Mapping[str, V]) -> dict[tuple[str], V]:
    return {(name,): value for name, value in values.items()}


def _gauge(name: str, text: str, labels: list[str], values: Mapping[Labels, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def _counter(name: str, text: str, labels: list[str], values: Mapping[Labels, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def _histogram(name: str, text: str, labels: list[str], values: Mapping[Labels, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for label, histogram in values.items():
        bounds = ["+Inf" if math.isinf(b) else str(b) for b in (*BOUNDS, math.inf)]
        family.add_metric(label, list(zip(bounds, histogram.counts, strict=True)), histogram.total)
    return family


class Scrapes:
    """The newest text, made anew when it is old."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(FarmCollector(ledger, settings))
        self._lock = threading.Lock()
        self._text = b""
        self._until = 0.0

    def text(self) -> bytes:
        with self._lock:
            if time.monotonic() > self._until:
                self._text = generate_latest(self._registry)
                self._until = time.monotonic() + KEEP_SECONDS
            return self._text


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems() | {200: {"content": {"text/plain": {}}, "description": "Prometheus text"}},
)
def metrics(caller: Reader, here: Here) -> Response:
    """Prometheus metrics of the whole farm."""
    return Response(here.scrapes.text(), media_type=CONTENT_TYPE)
