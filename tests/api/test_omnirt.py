"""OmniRT's contract for audio2video; the numbers are the cases of docs/compatibility.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import farm
from farm.errors import InputError
from farm.omnirt import DEPLOYMENT_KEYS, GenerateRequest, read_request
from farm.omnirt_records import RunReport
from tests.farm_process import ROOT

PORTRAIT = str(ROOT / "examples/portraits/astronaut.jpg")

# OmniRT's RunReport, schema 1.0.0, in its order.
REPORT_KEYS = (
    "run_id task model backend job_id trace_id worker_id enqueued_at_ms queue_wait_ms execution_mode timings memory"
    " backend_timeline config_resolved artifacts error latent_stats cache_hits device_placement batch_size"
    " batch_group_id stream_events schema_version"
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def request(speech: Path, **config: Any) -> GenerateRequest:
    return farm.audio2video(model="preview", image=PORTRAIT, audio=str(speech), **config)


def test_case_11_the_builder_sorts_inputs_from_config() -> None:
    made = farm.audio2video(
        model="soulx-flashtalk-14b",
        image="face.png",
        audio="voice.wav",
        prompt="talking portrait",
        repo_path="/r",
        seed=1,
    )
    assert made.task == "audio2video"
    assert made.inputs == {"image": "face.png", "audio": "voice.wav", "prompt": "talking portrait"}
    assert made.config == {"repo_path": "/r", "seed": 1}
    assert "prompt" not in farm.audio2video(model="m", image="i", audio="a", prompt="").inputs


def test_case_12_validation_collects_every_issue(speech: Path) -> None:
    wrong = farm.audio2video(model="preview", image=PORTRAIT, audio="/no/voice.wav", preset="opera", wings=2)
    checked = farm.validate(wrong)
    assert not checked.ok
    assert checked.errors == [
        f"Unknown preset 'opera'. Available presets: [{', '.join(['natural', 'calm', 'lively', 'still'])}]",
        "Input audio does not exist locally: /no/voice.wav",
        checked.errors[2],
    ]
    assert checked.errors[2].startswith("Unsupported config keys for model 'preview': ['wings']. Supported: [")
    assert farm.validate({"task": "text2image", "model": "preview"}).errors == [
        "Model 'preview' supports tasks [audio2video], got 'text2image'."
    ]
    assert farm.validate({"task": "audio2video", "model": "previw"}).errors == [
        "Unknown model 'previw'. Nearby models: preview."
    ]


def test_defaults_and_presets_are_resolved_the_same_everywhere(speech: Path) -> None:
    checked = farm.validate(request(speech, preset="calm", blink_rate=3))
    assert checked.ok
    assert checked.resolved_config["head_motion"] == 0.5  # the preset's
    assert checked.resolved_config["blink_rate"] == 3  # the request's wins
    assert checked.resolved_config["fps"] == 25
    for preset in ("fast", "balanced", "quality", "low-vram"):  # OmniRT's own are accepted and change nothing
        assert farm.validate(request(speech, preset=preset)).ok


@pytest.mark.parametrize("key", sorted(DEPLOYMENT_KEYS))
def test_what_belongs_to_the_installation_is_refused(speech: Path, key: str) -> None:
    (said,) = farm.validate(request(speech, **{key: "x"})).errors
    assert said == f"Config keys ['{key}'] belong to the installation; they stand in workers.toml, not in a request."


def test_fixed_keys_are_accepted_with_the_one_value_that_holds(speech: Path) -> None:
    assert farm.validate(request(speech, audio_encode_mode="stream", max_chunks=0)).ok
    assert farm.validate(request(speech, audio_encode_mode="once")).errors == [
        "Config key 'audio_encode_mode' can only be 'stream' here."
    ]


def test_a_request_is_read_from_an_object_a_mapping_and_a_file(speech: Path, tmp_path: Path) -> None:
    body = {"task": "audio2video", "model": "preview", "inputs": {"image": PORTRAIT}, "config": {"seed": 1}}
    path = tmp_path / "request.json"
    path.write_text(json.dumps(body), encoding="utf-8")
    assert read_request(path) == read_request(body) == read_request(read_request(body))
    with pytest.raises(InputError, match="the request has no 'model'"):
        read_request({"task": "audio2video"})
    with pytest.raises(InputError, match="Request validation failed:\n- Missing required input 'audio'"):
        farm.generate(body)


def test_generate_without_a_farm_renders_here_and_reports_in_schema_1_0_0(speech: Path, tmp_path: Path) -> None:
    result = farm.generate(request(speech, seed=11, size="256*256", preset="still"))
    (output,) = result.outputs
    path = Path(output.path)
    assert path.parent == tmp_path / "outputs"
    assert path.name.startswith("preview-11-")
    assert (output.kind, output.mime, output.num_frames, output.transport) == ("video", "video/mp4", 50, "path")
    report = result.to_dict()["metadata"]
    assert list(report) == REPORT_KEYS.split()
    assert report["schema_version"] == "1.0.0"
    assert report["config_resolved"]["head_motion"] == 0.0
    assert not [v for v in report["config_resolved"].values() if isinstance(v, str) and v.startswith("/")]
    assert set(report["timings"]) >= {"prepare_conditions_ms", "denoise_loop_ms", "export_ms", "chunk_count"}
    assert isinstance(result.metadata, RunReport)
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
