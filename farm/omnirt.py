"""The contract of OmniRT's audio2video task: its requests, checks, results and reports, over this farm.

Programs that were written for OmniRT's `generate(audio2video(...))` and for its HTTP API find the same envelope, the
same messages and the same report here; docs/compatibility.md lists every deliberate difference.  The chief one: what
belongs to the installation (checkouts, weights, interpreters, devices) stands in workers.toml and is refused in a
request.
"""

from __future__ import annotations

import difflib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from farm.config import load_settings
from farm.errors import EngineError, FarmError, InputError
from farm.ledger import Ledger, overview, read
from farm.ledger.intake import PREPARE_QUEUE
from farm.ledger.values import Attempt, Job, LedgerEvent, Segment
from farm.models import ModelSpec, load_model, model_files
from farm.states import ArtifactKind, JobState, SegmentKind
from farm.store import deliver, open_store

SCHEMA_VERSION = "1.0.0"
TASK = "audio2video"
BACKENDS: Mapping[str, str] = {"cuda": "cuda", "ascend": "npu", "cpu-stub": "cpu"}  # OmniRT's word: ours
PRESETS = ("fast", "balanced", "quality", "low-vram")  # OmniRT's, without effect there for this task

# Set once for each worker, never by a request: a request that names programs and folders could run anything.
_OPERATORS = """
    accelerate_executable accelerator ascend_env_script block_offload ckpt_dir condition_cache_dir cpu_offload device
    disable_condition_cache env_script force_text_cache fp8_kv_cache latent_carry launcher model_path
    npu_fusion_attention nproc_per_node num_processes offload_cache platform prepare_text_cache python_executable
    rank0_t5_only repo_path resident_autostart resident_target ring_degree sequence_parallel_degree t5_cpu t5_quant
    t5_quant_dir text_cache_device text_cache_visible_devices ulysses_degree use_cache_vae use_lightvae vae_2d_split
    vae_path visible_devices wan_quant wan_quant_exclude wan_quant_include wav2vec_dir
"""
DEPLOYMENT_KEYS = frozenset(_OPERATORS.split())
# Accepted because clients send them, and only with the value that this farm always works by.
FIXED_KEYS: Mapping[str, Any] = {"audio_encode_mode": "stream", "max_chunks": 0}
COMMON_KEYS = ("fps", "output_dir", "preset", "seed", "size")
RENAMED: Mapping[str, str] = {"sample_steps": "steps"}


@dataclass(frozen=True)
class GenerateRequest:
    """OmniRT's envelope."""

    task: str
    model: str
    backend: str = "auto"
    inputs: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    adapters: Sequence[Any] | None = None


@dataclass(frozen=True)
class ValidationResult:
    """What is wrong with a request, all of it at once."""

    ok: bool
    request: GenerateRequest
    resolved_backend: str
    resolved_inputs: dict[str, Any]
    resolved_config: dict[str, Any]
    model: str
    issues: list[dict[str, str]]

    @property
    def errors(self) -> list[str]:
        return [issue["message"] for issue in self.issues if issue["level"] == "error"]


@dataclass(frozen=True)
class OutputArtifact:
    """OmniRT's Artifact: one file that a run made."""

    kind: str
    path: str
    mime: str
    width: int
    height: int
    num_frames: int | None
    transport: str = "path"
    data_b64: str | None = None


@dataclass(frozen=True)
class RunReport:
    """OmniRT's report of a run, schema 1.0.0.  Times are milliseconds."""

    run_id: str
    task: str
    model: str
    backend: str
    job_id: str | None = None
    trace_id: str | None = None
    worker_id: str | None = None
    enqueued_at_ms: int | None = None
    queue_wait_ms: int | None = None
    execution_mode: str | None = "persistent_worker"
    timings: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    backend_timeline: list[Any] = field(default_factory=list)
    config_resolved: dict[str, Any] = field(default_factory=dict)
    artifacts: list[OutputArtifact] = field(default_factory=list)
    error: str | None = None
    latent_stats: dict[str, Any] | None = None
    cache_hits: list[str] = field(default_factory=list)
    device_placement: dict[str, str] = field(default_factory=dict)
    batch_size: int = 1
    batch_group_id: str | None = None
    stream_events: list[dict[str, Any]] = field(default_factory=list)
    schema_version: str = SCHEMA_VERSION


@dataclass(frozen=True)
class GenerateResult:
    outputs: list[OutputArtifact]
    metadata: RunReport

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _repr_html_(self) -> str:
        from farm.notebook import film_html

        return film_html(Path(self.outputs[0].path))


def audio2video(
    *,
    model: str,
    image: str | Path,
    audio: str | Path,
    prompt: str | None = None,
    backend: str = "auto",
    adapters: Sequence[Any] | None = None,
    **config: Any,
) -> GenerateRequest:
    """A request for one film.  Every other keyword is a config key; an empty prompt is left out."""
    inputs = {"image": str(image), "audio": str(audio)} | ({"prompt": prompt} if prompt else {})
    return GenerateRequest(TASK, model, backend, inputs, config, adapters)


def read_request(source: GenerateRequest | Mapping[str, Any] | str | Path) -> GenerateRequest:
    """A request object, a mapping, or a JSON file that holds one.  Raises InputError."""
    if isinstance(source, GenerateRequest):
        return source
    if isinstance(source, str | Path):
        try:
            source = json.loads(Path(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{source} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{source} is no JSON: {error}") from None
        if not isinstance(source, Mapping):
            raise InputError("a request is a JSON object with task, model, inputs and config")
    missing = [key for key in ("task", "model") if not source.get(key)]
    if missing:
        raise InputError(f"the request has no {missing[0]!r}")
    return GenerateRequest(
        task=str(source["task"]),
        model=str(source["model"]),
        backend=str(source.get("backend") or "auto"),
        inputs=dict(source.get("inputs") or {}),
        config=dict(source.get("config") or {}),
        adapters=source.get("adapters"),
    )


def validate(source: GenerateRequest | Mapping[str, Any] | str | Path) -> ValidationResult:
    """Check a request as OmniRT does, without rendering; the texts of the messages are OmniRT's where it has one."""
    request = read_request(source)
    issues: list[dict[str, str]] = []

    def say(message: str, level: str = "error") -> None:
        issues.append({"level": level, "message": message})

    def result(backend: str = "", inputs: Any = None, config: Any = None) -> ValidationResult:
        ok = not any(issue["level"] == "error" for issue in issues)
        return ValidationResult(ok, request, backend, inputs or {}, config or {}, request.model, issues)

    known = model_files()
    if request.model not in known:
        near = difflib.get_close_matches(request.model, known, n=3)
        say(f"Unknown model '{request.model}'." + (f" Nearby models: {', '.join(near)}." if near else ""))
        return result()
    if request.task != TASK:
        say(f"Model '{request.model}' supports tasks [{TASK}], got '{request.task}'.")
        return result()
    spec = load_model(request.model)
    preset, note = _preset(spec, request.config.get("preset"))
    if note is not None:
        say(note, "error" if preset is None else "warning")
    config = {k: v for k, v in request.config.items() if k != "preset"}
    inputs = dict(request.inputs)
    _check_inputs(spec, inputs, say)
    cells = _check_config(spec, preset or spec.default_preset, config, say)
    if request.adapters:
        say(f"Model '{spec.id}' does not currently declare adapter support.")
    return result(_check_backend(spec, request.backend, say), inputs, cells)


def _preset(spec: ModelSpec, given: Any) -> tuple[str | None, str | None]:
    """The model's preset and what is to be said about it; no preset means that the given one is unknown."""
    if given is None:
        return spec.default_preset, None
    if given in spec.presets:
        return str(given), f"Applied preset '{given}'. Explicit config values still win over preset defaults."
    if given in PRESETS:
        return spec.default_preset, f"Preset '{given}' is '{spec.default_preset}' for model '{spec.id}'."
    return None, f"Unknown preset {given!r}. Available presets: [{', '.join(spec.presets)}]"


def _check_inputs(spec: ModelSpec, inputs: Mapping[str, Any], say: Any) -> None:
    supported = ["audio", "image"] + (["prompt"] if spec.prompt else [])
    unknown = sorted(set(inputs) - set(supported))
    if unknown:
        say(f"Unsupported inputs for model '{spec.id}': {unknown}. Supported: [{', '.join(supported)}]")
    for name in ("image", "audio"):
        value = inputs.get(name)
        if not value:
            say(f"Missing required input '{name}' for model '{spec.id}'.")
        elif not isinstance(value, str):
            say(f"Input {name} must be a path, not {type(value).__name__}.")
        elif not _exists(value):
            say(f"Input {name} does not exist locally: {value}")


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _check_config(spec: ModelSpec, preset: str, config: Mapping[str, Any], say: Any) -> dict[str, Any]:
    """The config with its defaults, in the farm's words."""
    renamed = {old: new for old, new in RENAMED.items() if new in spec.settings and spec.settings[new].job}
    job_settings = [name for name, setting in spec.settings.items() if setting.job]
    supported = sorted({*COMMON_KEYS, *FIXED_KEYS, *job_settings, *renamed})
    operators = sorted(set(config) & DEPLOYMENT_KEYS - set(job_settings))
    if operators:
        say(f"Config keys {operators} belong to the installation; they stand in workers.toml, not in a request.")
    unknown = sorted(set(config) - set(supported) - DEPLOYMENT_KEYS)
    if unknown:
        say(f"Unsupported config keys for model '{spec.id}': {unknown}. Supported: {supported}")
    for key, only in FIXED_KEYS.items():
        if key in config and config[key] != only:
            say(f"Config key '{key}' can only be {only!r} here.")
    cells: dict[str, Any] = {"preset": preset}
    given = {renamed.get(k, k): v for k, v in config.items() if renamed.get(k, k) in job_settings}
    try:
        cells |= spec.resolve(preset, given)
    except InputError as error:
        say(str(error))
    try:
        fps = spec.read_fps(_text(config.get("fps")))
        width, height = spec.read_size((_text(config.get("size")) or "").replace("*", "x"))
        cells |= {"fps": fps[0], "size": f"{width}x{height}"}
    except InputError as error:
        say(str(error))
    for key in ("seed", "output_dir"):
        if config.get(key) is not None:
            cells[key] = config[key]
    seed = cells.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31):
        say(f"seed must be a whole number from 0 to {2**31 - 1}, not {seed!r}")
    return cells


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _check_backend(spec: ModelSpec, backend: str, say: Any) -> str:
    ours = {kind: word for word, kind in BACKENDS.items()}
    if backend == "auto":
        return ours.get(spec.device_kinds[0], spec.device_kinds[0])
    if backend not in BACKENDS:
        say(f"Unsupported backend: {backend}")
    elif BACKENDS[backend] not in spec.device_kinds:
        say(f"Model '{spec.id}' renders on {', '.join(spec.device_kinds)}, not on {BACKENDS[backend]}.")
    return backend


def to_cells(request: GenerateRequest, checked: ValidationResult, output: Path) -> dict[str, Any]:
    """The request as one row of a batch.  Raises InputError holding every error of the check."""
    if not checked.ok:
        raise InputError("Request validation failed:\n" + "\n".join(f"- {message}" for message in checked.errors))
    cells = {k: v for k, v in checked.resolved_config.items() if k != "output_dir"}
    cells |= {"portrait": request.inputs["image"], "audio": request.inputs["audio"], "model": request.model}
    if request.inputs.get("prompt"):
        cells["prompt"] = request.inputs["prompt"]
    return cells | {"output": str(output), "name": output.stem}


def output_name(request: GenerateRequest, checked: ValidationResult) -> str:
    """OmniRT's name of a film, with a few random letters so that two requests of one millisecond differ."""
    seed = checked.resolved_config.get("seed", "auto")
    return f"{request.model}-{seed}-{time.time_ns() // 1_000_000}-{uuid.uuid4().hex[:6]}.mp4"


def generate(source: GenerateRequest | Mapping[str, Any] | str | Path) -> GenerateResult:
    """Render one film and wait for it.

    A farm whose workers can take it renders it; without one it is rendered here and now, as `farm.render` does.  Raises
    InputError with every problem of the request, EngineError when the model failed.
    """
    from farm.api import Farm
    from farm.solo import render_one

    request = read_request(source)
    checked = validate(request)
    folder = Path(str(checked.resolved_config.get("output_dir") or "outputs")).expanduser().absolute()
    cells = to_cells(request, checked, folder / output_name(request, checked))
    spec = load_model(request.model)
    with Farm(load_settings()) as farm:
        queues = (PREPARE_QUEUE, spec.queue_for(str(cells["preset"])))
        if all(overview.queue_has_worker(farm.ledger, queue) for queue in queues):
            (job,) = farm.submit([cells]).wait(check=False)
            value = job.value
            if value.state is not JobState.SUCCEEDED:
                raise (InputError if value.failure == "input" else EngineError)(value.reason or value.state)
            film = read.artifact(farm.ledger, value.id, ArtifactKind.FILM)
            path = deliver(open_store(farm.settings), film, Path(value.output), overwrite=True)
            return result_of(farm.ledger, value, path)
    found: list[GenerateResult] = []
    wanted = {k: cells.pop(k) for k in ("portrait", "audio", "output")}
    cells.pop("name")
    render_one(
        wanted["portrait"],
        wanted["audio"],
        wanted["output"],
        on_film=lambda ledger, job_id: found.append(result_of(ledger, read.job(ledger, job_id))),
        **cells,
    )
    return found[0]


# A job of the ledger in OmniRT's words


def job_state(job: Job) -> str:
    """queued, running, succeeded, failed or cancelled."""
    if job.state in (JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
        return job.state.value
    return "running"


def trace_id(job: Job) -> str:
    """32 hexadecimal digits that belong to this job alone."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{job.key}:{job.id}").hex


def outputs_of(ledger: Ledger, job: Job, path: Path | None = None) -> list[OutputArtifact]:
    films = read.artifacts(ledger, job.id, ArtifactKind.FILM)
    return [
        OutputArtifact(
            "video", str(path or film.path), "video/mp4", job.width, job.height, int(film.facts.get("frames", 0))
        )
        for film in films[-1:]
    ]


def result_of(ledger: Ledger, job: Job, path: Path | None = None) -> GenerateResult:
    """The result of a job that succeeded; `path` is where its film lies on this machine, if not at its place."""
    outputs = outputs_of(ledger, job, path)
    segments, attempts = read.segments(ledger, job.id), read.attempts(ledger, job.id)
    renders = rendering(attempts, segments)
    report = RunReport(
        run_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"run:{job.key}:{job.id}")),
        task=TASK,
        model=job.model,
        backend=backend_of(renders),
        job_id=str(job.id),
        trace_id=trace_id(job),
        worker_id=renders[-1].worker if renders else None,
        enqueued_at_ms=_ms(job.created_at),
        queue_wait_ms=None if job.started_at is None else _ms(job.started_at) - _ms(job.created_at),
        timings=_timings(segments, attempts),
        config_resolved=config_of(job),
        artifacts=outputs,
        error=job.reason,
        device_placement={a.worker: a.device for a in renders},
        stream_events=stream_events(read.events(ledger, job_id=job.id, limit=10_000), segments, before_end=True),
    )
    return GenerateResult(outputs, report)


def config_of(job: Job) -> dict[str, Any]:
    """Everything that decided the film's pixels; no path of this machine."""
    return {
        **job.settings,
        "preset": job.preset,
        "seed": job.seed,
        "fps": job.fps[0],
        "size": f"{job.width}x{job.height}",
    }


def rendering(attempts: Sequence[Attempt], segments: Sequence[Segment]) -> list[Attempt]:
    """The attempts that used a device."""
    renders = {segment.id for segment in segments if segment.kind is SegmentKind.RENDER}
    return [attempt for attempt in attempts if attempt.segment_id in renders]


def backend_of(renders: Sequence[Attempt]) -> str:
    """OmniRT's word for the devices that rendered."""
    words = {kind: word for word, kind in BACKENDS.items()}
    return words.get(renders[-1].device.split(":")[0], "auto") if renders else "auto"


def _timings(segments: Sequence[Segment], attempts: Sequence[Attempt]) -> dict[str, float]:
    """Of the attempts that published; several workers at once add up."""
    kinds = {segment.id: segment.kind for segment in segments}
    spent = dict.fromkeys(SegmentKind, 0.0)
    for attempt in attempts:
        if attempt.outcome == "succeed" and attempt.ended_at is not None:
            spent[kinds[attempt.segment_id]] += (attempt.ended_at - attempt.started_at) * 1000.0
    return {
        "prepare_conditions_ms": round(spent[SegmentKind.PREPARE], 3),
        "denoise_loop_ms": round(spent[SegmentKind.RENDER], 3),
        "export_ms": round(spent[SegmentKind.ASSEMBLE], 3),
        "chunk_count": float(sum(kind is SegmentKind.RENDER for kind in kinds.values())),
    }


def _ms(instant: float) -> int:
    return round(instant * 1000.0)


_ENDS: Mapping[str, str] = {
    "job_succeeded": "job_finished",
    "job_failed": "job_failed",
    "job_cancelled": "job_cancelled",
}
ENDS = frozenset(_ENDS.values())
_STAGES: Mapping[str, str] = {
    "lease": "stage_start",
    "succeed": "stage_end",
    "retry": "stage_error",
    "expire": "stage_error",
    "fail": "stage_error",
    "interrupt": "stage_error",
}
_OWN = frozenset({"pause", "resume", "priority", "deadline", "requeue"})


def stream_events(
    history: Sequence[LedgerEvent], segments: Sequence[Segment], *, before_end: bool = False
) -> list[dict[str, Any]]:
    """The job's history as OmniRT tells it; `before_end` leaves out the event that ended the job."""
    by_id = {segment.id: segment for segment in segments}
    told = [event for line in history for event in told_of(line, by_id)]
    return [event for event in told if not (before_end and event["event"] in ENDS)]


def told_of(line: LedgerEvent, segments: Mapping[int, Segment]) -> list[dict[str, Any]]:
    """One line of the ledger's history as OmniRT tells it; nothing for what only the ledger cares about."""
    segment = segments.get(line.segment_id or 0)
    if line.event == "submit":
        return [_event("job_enqueued", "job", line, {})]
    if line.event in _ENDS:
        return [_event(_ENDS[line.event], "job", line, {"error": line.detail} if line.detail else {})]
    if line.event in _STAGES and segment is not None:
        data: dict[str, Any] = {"segment": segment.number, "attempt": line.attempt, "worker": line.worker}
        name = _STAGES[line.event]
        if name == "stage_error" and line.detail:
            data["error"] = line.detail
        begins = line.event == "lease" and segment.kind is SegmentKind.PREPARE and line.attempt == 1
        started = [_event("job_started", "job", line, {})] if begins else []
        return [*started, _event(name, segment.kind.value, line, data)]
    if line.event in _OWN:
        return [_event(line.event, "job", line, {"detail": line.detail} if line.detail else {})]
    return []


def _event(name: str, stage: str, line: LedgerEvent, data: dict[str, Any]) -> dict[str, Any]:
    return {"event": name, "stage": stage, "timestamp_ms": _ms(line.at), "data": data, "id": line.id}


def job_record(ledger: Ledger, job: Job) -> dict[str, Any]:
    """OmniRT's JobRecord, with `result` once the job succeeded."""
    segments, attempts = read.segments(ledger, job.id), read.attempts(ledger, job.id)
    renders = rendering(attempts, segments)
    record: dict[str, Any] = {
        "id": str(job.id),
        "state": job_state(job),
        "backend": backend_of(renders),
        "request": {
            "task": TASK,
            "model": job.model,
            "backend": "auto",
            "inputs": {"image": job.portrait, "audio": job.audio} | ({"prompt": job.prompt} if job.prompt else {}),
            "config": config_of(job),
            "adapters": None,
        },
        "error": job.reason if job.state is JobState.FAILED else None,
        "trace_id": trace_id(job),
        "worker_id": (renders or attempts)[-1].worker if attempts else None,
        "enqueued_at_ms": _ms(job.created_at),
        "started_at_ms": None if job.started_at is None else _ms(job.started_at),
        "finished_at_ms": None if job.finished_at is None else _ms(job.finished_at),
        "execution_mode": "persistent_worker",
        "events": stream_events(read.events(ledger, job_id=job.id, limit=2000), segments),
    }
    if job.state is JobState.SUCCEEDED:
        record["result"] = result_of(ledger, job).to_dict()
    return record


def model_entries() -> list[dict[str, Any]]:
    """What `GET /v1/models` lists: OmniRT's keys, then what a page needs to offer the model.

    A model whose file is wrong is left out; `farm doctor` says what is wrong with it.
    """
    entries: list[dict[str, Any]] = []
    for model_id in sorted(model_files()):
        try:
            spec = load_model(model_id)
        except FarmError:
            continue
        first = spec.device_kinds[0]
        entries.append(
            {
                "id": spec.id,
                "object": "model",
                "created": 0,
                "owned_by": "farm",
                "task": TASK,
                "status": "public/stable",
                "tier": "core",
                "maturity": "stable",
                "default_backend": {kind: word for word, kind in BACKENDS.items()}.get(first, first),
                "summary": spec.summary,
                "name": spec.name,
                "queue": spec.queue,
                "inputs": ["image", "audio", *(["prompt"] if spec.prompt else [])],
                "presets": {name: preset.help for name, preset in spec.presets.items()},
                "default_preset": spec.default_preset,
                "fps": spec.frames.fps,
                "default_fps": spec.frames.default_fps,
                "size": {"default": list(spec.size.default), "choices": [list(c) for c in spec.size.choices]},
                "settings": {
                    name: setting.model_dump(mode="json") for name, setting in spec.settings.items() if setting.job
                },
            }
        )
    return entries
