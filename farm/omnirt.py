"""The contract of OmniRT's audio2video task over this farm: its requests, their checks, and `generate`.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farm.config import load_settings
from farm.errors import EngineError, FarmError, InputError
from farm.ledger import overview, read
from farm.ledger.intake import PREPARE_QUEUE
from farm.models import ModelSpec, load_model, model_files
from farm.omnirt_records import BACKENDS, TASK, GenerateResult, result_of
from farm.states import ArtifactKind, JobState
from farm.store import deliver, open_store

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

    def result(
        backend: str = "", inputs: dict[str, Any] | None = None, config: dict[str, Any] | None = None
    ) -> ValidationResult:
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


def _check_inputs(spec: ModelSpec, inputs: Mapping[str, Any], say: Callable[[str], None]) -> None:
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


def _check_config(
    spec: ModelSpec, preset: str, config: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
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


def _check_backend(spec: ModelSpec, backend: str, say: Callable[[str], None]) -> str:
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
