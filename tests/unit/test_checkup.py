"""What `farm doctor` says of a model's surroundings: one case of the guides' troubleshooting each.

The model's interpreter is a script that answers as one in that state answers; a real one is asked once.
"""

from __future__ import annotations

import json
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from farm.checkup import Finding, examine_material, examine_worker
from farm.models import load_model
from farm.roster import WorkerSpec

HEALTHY: dict[str, Any] = {
    "python": "3.10.13",
    "encoding": "utf-8",
    "packages": {"numpy": "2.2", "torch": "2.7.1+cu128", "flash_attn": "2.8.0"},
    "broken": {},
    "cuda_build": "12.8",
    "cuda": True,
    "capability": 8,
    "memory_gb": 85.0,
    "npu": False,
    "cann": "",
    "unreadable": [],
}
NPU = {**HEALTHY, "packages": {"numpy": "2.2", "torch": "2.7.1"}, "cuda": False, "cann": "/usr/local/Ascend/latest"}

Examine = Callable[..., list[Finding]]


@pytest.fixture
def examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """`examine(said, devices=…, settings=…)`: the findings about a worker whose interpreter says that."""
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))

    def of(said: dict[str, Any] | str = HEALTHY, **changes: Any) -> list[Finding]:
        python = tmp_path / "python"
        words = said if isinstance(said, str) else f"cat <<'E'\nnoise\n{json.dumps(said)}\nE"
        python.write_text(f"#!/bin/bash\n{words}\n")
        python.chmod(0o755)
        values = {"name": "gpu0", "model": "soulx-flashhead-1.3b", "devices": "cuda:0", **changes}
        values.setdefault("python_executable", str(python))
        return list(examine_worker(WorkerSpec(**values)))

    return of


def only(findings: list[Finding], words: str) -> Finding:
    found = [f for f in findings if words in f.found]
    assert len(found) == 1, [f"{f.verdict}: {f.found}" for f in findings]
    return found[0]


def test_a_card_that_is_too_small_is_told_with_other_presets(examine: Examine) -> None:
    small = examine({**HEALTHY, "memory_gb": 25.4}, model="soulx-flashtalk-14b")
    finding = only(small, "the card has 25 GB and soulx-flashtalk-14b needs about 80 GB")
    assert (finding.verdict, "try the preset balanced or fast or low-vram" in finding.advice) == ("mind", True)
    lean = examine({**HEALTHY, "memory_gb": 25.4}, model="soulx-flashtalk-14b", preset="low-vram")
    assert not [f for f in lean if "the card has" in f.found]


def test_files_that_are_missing_or_not_set_are_named_with_the_command(examine: Examine, tmp_path: Path) -> None:
    unset = only(examine(), "ckpt_dir is not set")
    assert unset.advice.startswith("farm models pull soulx-flashhead-1.3b fetches it")
    folder = tmp_path / "SoulX-FlashHead-1_3B"
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(b"\0" * 20)
    gone = {"ckpt_dir": str(folder), "wav2vec_dir": str(tmp_path / "none")}
    findings = examine(settings=gone)
    assert "w.safetensors: it is cut off" in only(findings, "w.safetensors").found
    assert only(findings, "the folder is missing").advice == (
        f"farm models pull soulx-flashhead-1.3b --into {tmp_path} mends it"
    )


def test_a_torch_for_the_processor_and_one_for_another_driver_are_told_apart(examine: Examine) -> None:
    packages = {**HEALTHY["packages"], "torch": "2.7.1+cpu"}
    plain = only(
        examine({**HEALTHY, "packages": packages, "cuda": False, "cuda_build": None}), "is a build for the CPU"
    )
    other = only(examine({**HEALTHY, "cuda": False}), "was built for CUDA 12.8 and sees no card of cuda:0")
    assert plain.verdict == other.verdict == "wrong"
    assert "nvidia-smi shows it" in plain.advice


def test_a_missing_torch_or_numpy_is_told_with_what_to_type(examine: Examine) -> None:
    bare = only(examine({**HEALTHY, "packages": {"numpy": "2.2"}}), "has no torch")
    assert "-m pip install torch" in bare.advice
    none = only(examine({**HEALTHY, "packages": {}}), "has no numpy, which every host needs")
    assert none.advice.endswith("-m pip install numpy")


def test_a_flash_attn_for_another_torch_is_told(examine: Examine) -> None:
    broken = {"flash_attn": "undefined symbol: _ZN3c105ErrorC2E"}
    packages = {"numpy": "2.2", "torch": "2.7.1+cu128"}
    finding = only(examine({**HEALTHY, "packages": packages, "broken": broken}), "flash_attn is installed and cannot")
    assert finding.verdict == "wrong"
    assert finding.advice == (
        "it was built for another torch: install the flash_attn that was built for torch 2.7.1+cu128"
    )
    without = only(examine({**HEALTHY, "packages": packages}), "flash-attn is not installed; torch's own kernels")
    assert without.verdict == "well"


def test_sage_on_a_hopper_card_is_told(examine: Examine) -> None:
    packages = {**HEALTHY["packages"], "sageattention": "2.2.0"}
    finding = only(
        examine({**HEALTHY, "packages": packages, "capability": 9}), "its kernel for Hopper cards gives noise"
    )
    assert "kernel at auto" in finding.advice


def test_settings_that_make_films_drift_are_told(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = tmp_path / "repo" / "flash_head" / "configs"
    configs.mkdir(parents=True)
    (configs / "infer_params.yaml").write_text("frame_num: 33\ncolor_correction_strength: 0.0 # off\n")
    monkeypatch.setenv("FLASHTALK_COLOR_CORRECTION_STRENGTH", "0")
    settings = {"repo_path": str(tmp_path / "repo"), "latent_carry": True}
    findings = examine(settings=settings, environment={"FLASHHEAD_LATENT_CARRY": "1"})
    drift = only(findings, "color_correction_strength 0.0, where upstream has 1.0: long films drift")
    assert drift.verdict == "mind"
    assert "colour_match" in only(findings, "FLASHTALK_COLOR_CORRECTION_STRENGTH is set").advice
    assert "keeps colours from drifting" in only(findings, "FLASHHEAD_LATENT_CARRY is set").advice


def test_settings_that_the_engine_would_refuse_are_told_before_it_is_loaded(examine: Examine) -> None:
    findings = examine(settings={"model_type": "large", "steps": 2})
    assert "model_type must be one of pro, lite" in only(findings, "model_type must be").found
    assert only(findings, "steps is chosen by each row").advice == "take it out of workers.toml"


def test_cann_that_is_not_loaded_is_told_with_its_script(examine: Examine, tmp_path: Path) -> None:
    finding = only(examine({**NPU, "cann": ""}, devices="npu:0"), "CANN is not loaded")
    assert (finding.verdict, "env_script =" in finding.advice) == ("wrong", True)
    assert "torch-npu is not installed beside torch 2.7.1" in only(examine(NPU, devices="npu:0"), "torch-npu").found
    packages = {**NPU["packages"], "torch_npu": "2.7.1"}
    assert only(examine({**NPU, "packages": packages}, devices="npu:0"), "sees no NPU of npu:0").verdict == "wrong"
    assert not [f for f in examine({**NPU, "packages": packages, "npu": True}, devices="npu:0") if f.what[:3] == "npu"]
    missing = examine(NPU, devices="npu:0", env_script=str(tmp_path / "set_env.sh"))
    assert only(missing, "env_script").found.endswith("set_env.sh does not exist")
    script = tmp_path / "broken.sh"
    script.write_text("echo 'no such toolkit' >&2\nexit 4\n")
    assert "ended with 4: no such toolkit" in only(examine(NPU, devices="npu:0", env_script=str(script)), "ended").found


def test_paths_with_spaces_and_chinese_letters_are_told_and_tried(examine: Examine, tmp_path: Path) -> None:
    place = tmp_path / "my models 模型"
    place.mkdir()
    settings = {"repo_path": str(place), "ckpt_dir": "/no/such 检查点"}
    findings = examine(settings=settings, python_executable=sys.executable)
    assert "set cache to a plain path" in only(findings, "repo_path has spaces or letters").advice
    assert not [f for f in findings if f"it does not find {place}" in f.found]
    assert only(findings, "it does not find /no/such 检查点").verdict == "wrong"
    latin = only(examine({**HEALTHY, "encoding": "iso8859-1"}), "it reads file names as iso8859-1")
    assert 'PYTHONUTF8 = "1"' in latin.advice


def test_an_interpreter_that_does_not_answer_is_told(examine: Examine) -> None:
    assert (
        "ended with 3: cannot open shared object"
        in only(examine("echo 'cannot open shared object' >&2; exit 3"), "ended with 3").found
    )
    assert only(examine("echo hello"), "is no Python that answers").advice == "mend python_executable"
    assert only(examine(python_executable="/no/python"), "/no/python").verdict == "wrong"


def write_sound(path: Path, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\0\1" * rate)
    return path


def test_a_recording_below_the_models_rate_is_told(tmp_path: Path) -> None:
    model = load_model("preview")
    (telephone,) = examine_material(write_sound(tmp_path / "call.wav", 8000), model)
    assert (telephone.verdict, "8000 Hz, 1 channel, 1.0 s: models listen at 16000 Hz" in telephone.found) == (
        "mind",
        True,
    )
    (good,) = examine_material(write_sound(tmp_path / "studio.wav", 48000), model)
    assert (good.verdict, "the farm converts it itself" in good.found) == ("well", True)


@pytest.mark.parametrize(
    ("size", "verdict", "words"),
    [
        ((512, 512), "well", "512x512 px suits a film of 512x512"),
        ((150, 900), "wrong", "150x900 px is small for a film of 512x512"),
        ((800, 1600), "mind", "keeps only 50 % of it, cut around the middle"),
    ],
)
def test_a_photo_that_does_not_suit_the_film_is_told(
    tmp_path: Path, size: tuple[int, int], verdict: str, words: str
) -> None:
    Image.new("RGB", size).save(tmp_path / "photo.png")
    (finding,) = examine_material(tmp_path / "photo.png", load_model("soulx-flashhead-1.3b"))
    assert (finding.verdict, words in finding.found) == (verdict, True), finding


def test_what_is_neither_photo_nor_recording_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (finding,) = examine_material(tmp_path / "notes.txt", load_model("preview"))
    assert (finding.verdict, finding.advice) == ("wrong", "give a photo or a recording")
