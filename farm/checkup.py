"""What can be wrong around a model, each with one sentence of what to do: its interpreter, files, memory and settings.

`farm doctor` asks here for every worker that renders, and for a photo or a recording that somebody wonders about.
Nothing of a model is imported: its interpreter is asked in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.engine_files import find_engine_files
from farm.errors import FarmError
from farm.media.probe import probe_audio, probe_image
from farm.media.sound import RATE
from farm.models import ModelSpec
from farm.roster import WorkerSpec
from farm.weights import verify_folder

PROBE_SECONDS = 120.0
HEADROOM = 0.95  # of a card's memory that a model may need

# Asked of a model's interpreter.  It prints one JSON object; importing torch may take a minute on a cold disk.
PROBE = """
import importlib, importlib.util, json, os, sys
said = {"python": sys.version.split()[0], "encoding": sys.getfilesystemencoding(), "packages": {}, "broken": {}}
for name in json.loads(sys.argv[1]):
    if importlib.util.find_spec(name) is None:
        continue
    try:
        module = importlib.import_module(name)
        said["packages"][name] = str(getattr(module, "__version__", "?"))
    except BaseException as error:
        said["broken"][name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
torch = sys.modules.get("torch")
if torch is not None:
    said["cuda_build"] = torch.version.cuda
    said["cuda"] = bool(torch.cuda.is_available())
    if said["cuda"]:
        said["capability"] = torch.cuda.get_device_capability(0)[0]
        said["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    npu = getattr(torch, "npu", None)
    said["npu"] = bool(npu is not None and npu.is_available())
said["cann"] = os.environ.get("ASCEND_TOOLKIT_HOME") or os.environ.get("ASCEND_HOME_PATH") or ""
said["unreadable"] = [path for path in json.loads(sys.argv[2]) if not os.path.exists(path)]
print("\\n" + json.dumps(said))
"""
ASKED = ("numpy", "torch", "torch_npu", "flash_attn", "flash_attn_interface", "sageattention")

# Variables of OmniRT and of the Ascend forks that it drives.  People set them beside the farm and expect an effect.
FOREIGN = ("FLASHTALK_", "FLASHHEAD_", "LIVEACT_", "OMNIRT_")
INSTEAD = {
    "COLOR_CORRECTION_STRENGTH": "a row's setting colour_match",
    "SAMPLE_STEPS": "a row's setting steps",
    "LATENT_CARRY": "nothing: frames are always carried as pixels, which is what keeps colours from drifting",
    "FRAME_NUM": "nothing: a chunk has upstream's 33 frames",
    "MOTION_FRAMES_NUM": "nothing: a chunk repeats as many frames as upstream's, or faces drift",
    "CKPT_DIR": "the worker's setting ckpt_dir",
    "REPO_PATH": "the worker's setting repo_path",
    "WAV2VEC_DIR": "the worker's setting wav2vec_dir",
}
# What a checkout's own parameters say where nobody changed them.
UPSTREAMS = {"frame_num": 33, "color_correction_strength": 1.0, "motion_frames_latent_num": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    verdict: str  # "well", "mind" or "wrong"
    found: str
    advice: str = ""


def examine_engine_files(spec: WorkerSpec) -> Iterator[Finding]:
    """The small files that a worker's engine needs, which each user of a machine has in a folder of their own."""
    model = spec.load_model() if spec.renders else None
    if model is None or not model.engine_files:
        return
    what = f"files of {spec.name}"
    try:
        yield Finding(what, "well", str(find_engine_files(model)))
    except FarmError as error:
        yield Finding(what, "wrong", str(error).rpartition("; ")[0] or str(error), f"farm models pull {model.id}")


def examine_worker(spec: WorkerSpec) -> Iterator[Finding]:
    """Everything about one worker's model that can be seen without loading it."""
    if not spec.renders:
        return
    model = spec.load_model()
    yield from _settings(spec, model)
    yield from _files(spec, model)
    said = ask_interpreter(spec)
    if isinstance(said, Finding):
        yield said
        return
    yield from _interpreter(spec, model, said)


def ask_interpreter(spec: WorkerSpec) -> Mapping[str, Any] | Finding:
    """What the worker's interpreter says of itself, started as its host is: after the env script, with its devices."""
    what = f"python of {spec.name}"
    paths = [str(value) for value in spec.settings.values() if _is_path(value)]
    command = [spec.python, "-c", PROBE, json.dumps(ASKED), json.dumps(paths)]
    if spec.env_script:
        if not Path(spec.env_script).is_file():
            return Finding(what, "wrong", f"env_script {spec.env_script} does not exist", "mend env_script")
        command = ["bash", "-c", 'source "$0" >&2 && exec "$@"', spec.env_script, *command]
    environment = spec.device_set.environment() | spec.environment
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(what, "wrong", f"{spec.python}: {error}", "mend python_executable")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        advice = "mend env_script" if spec.env_script and "python" not in last.lower() else "mend python_executable"
        return Finding(what, "wrong", f"{spec.python} ended with {done.returncode}: {last}", advice)
    try:
        said: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return Finding(what, "wrong", f"{spec.python} is no Python that answers", "mend python_executable")
    return said


def _interpreter(spec: WorkerSpec, model: ModelSpec, said: Mapping[str, Any]) -> Iterator[Finding]:
    what, packages, broken = f"python of {spec.name}", said["packages"], said["broken"]
    install = f"{spec.python} -m pip install"
    kind = spec.device_set.kind
    if "numpy" not in packages:
        yield Finding(what, "wrong", f"{spec.python} has no numpy, which every host needs", f"{install} numpy")
        return
    shown = ", ".join(f"{name} {version}" for name, version in packages.items())
    yield Finding(what, "well", f"{said['python']} at {spec.python}; {shown}")
    if said["encoding"].lower().replace("-", "") != "utf8":
        yield Finding(
            what, "wrong", f"it reads file names as {said['encoding']}", 'set environment = { PYTHONUTF8 = "1" }'
        )
    for path in said["unreadable"]:
        yield Finding(what, "wrong", f"it does not find {path}", "check the path and who may read it")
    for name, reason in broken.items():
        yield Finding(
            what,
            "wrong",
            f"{name} is installed and cannot be imported: {reason}",
            f"it was built for another torch: install the {name} that was built for torch {packages.get('torch', '')}"
            if name != "torch"
            else f"install torch again: {install} --force-reinstall torch",
        )
    if kind == "cpu":
        return
    if "torch" not in packages:
        if "torch" not in broken:
            yield Finding(what, "wrong", f"{spec.python} has no torch", f"{install} torch, built for this machine")
        return
    if kind == "cuda":
        yield from _cuda(spec, model, said)
    else:
        yield from _npu(spec, said)


def _cuda(spec: WorkerSpec, model: ModelSpec, said: Mapping[str, Any]) -> Iterator[Finding]:
    what, packages = f"card of {spec.name}", said["packages"]
    if not said["cuda"]:
        if said["cuda_build"] is None:
            found = f"torch {packages['torch']} is a build for the CPU"
        else:
            build = f"torch {packages['torch']} was built for CUDA {said['cuda_build']}"
            found = f"{build} and sees no card of {spec.devices}"
        advice = "install the torch whose CUDA the driver knows: nvidia-smi shows it at the top right"
        yield Finding(what, "wrong", found, advice)
        return
    preset = model.preset(spec.preset or model.default_preset)
    needed = spec.settings.get("memory_limit_gb") or model.memory_gb
    if said["memory_gb"] * HEADROOM < needed and "lean" not in (
        preset.load.get("residency"),
        spec.settings.get("residency"),
    ):
        others = [name for name, other in model.presets.items() if other.load != preset.load]
        advice = f"try the preset {' or '.join(others)}" if others else "give it a larger card"
        found = f"the card has {said['memory_gb']:.0f} GB and {model.id} needs about {needed:g} GB"
        yield Finding(what, "mind", found, f"{advice}; a film that does not fit fails with `the device is full`")
    if "sageattention" in packages and said["capability"] == 9:
        yield Finding(
            what,
            "mind",
            "SageAttention is installed and its kernel for Hopper cards gives noise",
            "leave the setting kernel at auto, which does not take it, or uninstall it",
        )
    if not {"flash_attn", "flash_attn_interface"} & set(packages) and not spec.settings.get("kernel"):
        found = "flash-attn is not installed; torch's own kernels are used"
        advice = "a wheel of flash-attn that was built for this torch and Python may be faster"
        yield Finding(what, "well", found, advice)


def _npu(spec: WorkerSpec, said: Mapping[str, Any]) -> Iterator[Finding]:
    what, packages = f"npu of {spec.name}", said["packages"]
    if not said["cann"]:
        yield Finding(
            what,
            "wrong",
            "CANN is not loaded: ASCEND_TOOLKIT_HOME is not set",
            'set env_script = "/usr/local/Ascend/ascend-toolkit/set_env.sh" in the worker\'s table',
        )
        return
    if "torch_npu" not in packages:
        if "torch_npu" not in said["broken"]:
            version = packages["torch"].partition("+")[0]
            advice = f"{spec.python} -m pip install torch-npu of the same version"
            yield Finding(what, "wrong", f"torch-npu is not installed beside torch {version}", advice)
        return
    if not said["npu"]:
        yield Finding(
            what, "wrong", f"torch-npu sees no NPU of {spec.devices}", "check the driver and its firmware: npu-smi info"
        )


def _settings(spec: WorkerSpec, model: ModelSpec) -> Iterator[Finding]:
    """Settings that the engine would refuse, and variables that change nothing although people expect it."""
    what = f"settings of {spec.name}"
    for name, value in spec.settings.items():
        known = model.settings.get(name)
        if known is not None and not known.job:
            try:
                known.read(name, value)
            except FarmError as error:
                yield Finding(what, "wrong", str(error), "mend it in workers.toml")
        elif known is not None:
            yield Finding(what, "wrong", f"{name} is chosen by each row", "take it out of workers.toml")
    for name in sorted({*spec.environment, *os.environ}):
        if not name.startswith(FOREIGN):
            continue
        tail = name.partition("_")[2]
        instead = next(
            (word for key, word in INSTEAD.items() if tail.endswith(key)), "`farm models show` lists them all"
        )
        yield Finding(what, "mind", f"{name} is set and the farm does not read it", f"instead: {instead}")
    repo = spec.settings.get("repo_path")
    if repo and Path(str(repo)).is_dir():
        yield from _drift(what, Path(str(repo)))


def _drift(what: str, repo: Path) -> Iterator[Finding]:
    """Upstream's own parameters, where somebody changed those that keep faces and colours from drifting."""
    for path in sorted(repo.glob("*/configs/infer_params.yaml")):
        said = dict(
            line.split("#")[0].split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line
        )
        for name, wanted in UPSTREAMS.items():
            value = said.get(name, "").strip()
            if value and value != str(wanted):
                yield Finding(
                    what,
                    "mind",
                    f"{path} has {name} {value}, where upstream has {wanted}: long films drift",
                    "restore the file; the farm passes its own values",
                )


def _files(spec: WorkerSpec, model: ModelSpec) -> Iterator[Finding]:
    """The folders that the worker's settings name: there, and each file whole by its size and header."""
    if spec.settings.get("weights") == "random":
        return
    what = f"files of {spec.name}"
    for repository in model.source.repositories:
        written = spec.settings.get(repository.setting)
        if not written:
            advice = f"farm models pull {model.id} fetches it and prints the line for workers.toml"
            yield Finding(what, "wrong", f"{repository.setting} is not set", advice)
            continue
        folder = Path(str(written)).expanduser()
        wrong = [c for c in verify_folder(repository, folder, reads_everything=False) if c.verdict == "wrong"]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            advice = f"farm models pull {model.id} --into {folder.parent} mends it"
            yield Finding(what, "wrong", f"{wrong[0].path}: {wrong[0].found}{more}", advice)
        else:
            yield Finding(what, "well", f"{folder} is whole by sizes and headers")
    for name, value in spec.settings.items():
        if _is_path(value) and not _is_plain(str(value)):
            found = (
                f"{name} has spaces or letters beyond ASCII: the farm passes it whole, a compiler below torch may not"
            )
            yield Finding(what, "well", found, "if compiling fails, set cache to a plain path")


def examine_material(path: Path, model: ModelSpec) -> Iterator[Finding]:
    """A photo or a recording, before a film is made of it."""
    try:
        picture = probe_image(path)
    except FarmError as no_picture:
        try:
            sound = probe_audio(path)
        except FarmError as no_sound:
            words = no_sound if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp") else no_picture
            yield Finding(str(path), "wrong", str(words), "give a photo or a recording")
            return
        yield from _sound(path, sound.sample_rate, sound.channels, sound.duration_seconds)
        return
    yield from _picture(path, picture.width, picture.height, model)


def _picture(path: Path, width: int, height: int, model: ModelSpec) -> Iterator[Finding]:
    film = model.size.default
    shown = f"{width}x{height} px"
    least = min(film)
    if min(width, height) < least // 2:
        yield Finding(
            str(path), "wrong", f"{shown} is small for a film of {film[0]}x{film[1]}", "use a larger or sharper photo"
        )
        return
    kept = min(width * film[1], height * film[0]) / max(width * film[1], height * film[0])
    if kept < 0.75:
        found = f"{shown}: a film of {film[0]}x{film[1]} keeps only {100 * kept:.0f} % of it, cut around the middle"
        yield Finding(str(path), "mind", found, "crop it to the film's shape with the head in the middle")
    else:
        found = f"{shown} suits a film of {film[0]}x{film[1]}"
        yield Finding(str(path), "well", found, "whether its face suits is said when the job is prepared")


def _sound(path: Path, rate: int, channels: int, seconds: float) -> Iterator[Finding]:
    shown = f"{rate} Hz, {channels} channel{'s' if channels > 1 else ''}, {seconds:.1f} s"
    if rate < RATE:
        found = f"{shown}: models listen at {RATE} Hz, and what a lower rate left out cannot be won back"
        yield Finding(str(path), "mind", found, f"record at {RATE} Hz or more; converting this file does not help")
    else:
        yield Finding(str(path), "well", f"{shown}; the farm converts it itself")


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("/", "~")) and len(value) > 1


def _is_plain(path: str) -> bool:
    return path.isascii() and " " not in path
