"""SoulX-LiveAct through a stand-in checkout: blocks become steps, and a film goes on from memory, disk or a replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from farm.errors import ConfigError, EngineError, InputError
from farm.models import load_model
from workers.host.parent import Host
from workers.rendering import mismatch

from . import standin_liveact
from .conftest import FRAME_BYTES, StartHost, film, render
from .standin_liveact import liveact_settings

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

MODULE = "workers.engines.upstream.liveact"
STEP = 32
FRAMES = 3 * STEP + 9


@pytest.fixture(scope="module")
def shop(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standin_liveact.liveact_shop(tmp_path_factory.mktemp("liveact"))


def start(start_host: StartHost, shop: Path, **changes: Any) -> Host:
    return start_host(MODULE, liveact_settings(shop, **changes), PYTHONPATH=str(shop / "site"))


@pytest.fixture(scope="module")
def host(shop: Path, start_host: StartHost) -> Host:
    return start(start_host, shop)


@pytest.fixture(scope="module")
def whole(host: Host, material: Path) -> tuple[bytes, bytes]:
    return render(host, film(material, FRAMES), 0, FRAMES)


def test_a_worker_is_what_its_model_file_says(host: Host) -> None:
    assert host.loaded is not None
    assert mismatch(load_model("soulx-liveact-14b"), "quality", host.loaded) is None
    assert host.loaded.description["version"].startswith("upstream1-liveact-ac8579b-")


def test_a_film_has_its_exact_frames_whatever_its_length(
    host: Host, material: Path, whole: tuple[bytes, bytes]
) -> None:
    assert len(whole[0]) == FRAMES * FRAME_BYTES
    for frames in (1, 21, 22, 32, 33, 53, 64):
        assert len(render(host, film(material, frames), 0, frames)[0]) == frames * FRAME_BYTES


def test_one_seed_is_one_film_and_prompt_and_scale_change_it(
    host: Host, material: Path, whole: tuple[bytes, bytes]
) -> None:
    again = render(host, film(material, FRAMES), 0, FRAMES)[0]
    assert again == whole[0]
    edits = json.dumps({"[1, 1]": "she smiles"})
    for changes in (
        {"seed": 8},
        {"prompt": "a man"},
        {"settings": {"audio_cfg": 2.0}},
        {"settings": {"edit_prompt": edits}},
    ):
        other = render(host, film(material, FRAMES, **changes), 0, FRAMES)[0]
        assert other != whole[0], changes
        if "edit_prompt" in changes.get("settings", {}):  # type: ignore[operator]
            assert other[: 21 * FRAME_BYTES] == whole[0][: 21 * FRAME_BYTES]


def test_the_next_segment_goes_on_in_memory_and_the_encoders_are_loaded_once(
    host: Host, material: Path, whole: tuple[bytes, bytes]
) -> None:
    first, carry = render(host, film(material, FRAMES), 0, STEP)
    middle, second = render(host, film(material, FRAMES), STEP, STEP, carry)
    rest, end = render(host, film(material, FRAMES), 2 * STEP, FRAMES - 2 * STEP, second)
    assert first + middle + rest == whole[0]
    assert end == whole[1]
    assert len(carry) < 1000
    said = host.spec.log_file.read_text(encoding="utf-8")
    assert said.count("the picture tower is loaded") == 1


def test_without_a_file_a_film_goes_on_in_another_process_by_a_replay(
    host: Host, shop: Path, material: Path, start_host: StartHost, whole: tuple[bytes, bytes]
) -> None:
    other = start(start_host, shop)
    for steps in (1, 2, 3):
        cut = steps * STEP
        first, carry = render(host, film(material, FRAMES), 0, cut)
        rest, end = render(other, film(material, FRAMES), cut, FRAMES - cut, carry)
        assert first + rest == whole[0]
        assert end == whole[1]
    other.kill()


def test_from_its_file_a_film_goes_on_and_a_broken_file_is_made_up_for(
    shop: Path, material: Path, start_host: StartHost, whole: tuple[bytes, bytes], tmp_path: Path
) -> None:
    one = start(start_host, shop, carry="disk", carry_folder=str(tmp_path))
    first, carry = render(one, film(material, FRAMES), 0, STEP)
    second, carry = render(one, film(material, FRAMES), STEP, STEP, carry)
    one.kill()
    assert [file.name for file in sorted(tmp_path.rglob("*.pt"))] == ["step-000001.pt", "step-000002.pt"]
    other = start(start_host, shop, carry="disk", carry_folder=str(tmp_path))
    rest, _ = render(other, film(material, FRAMES), 2 * STEP, FRAMES - 2 * STEP, carry)
    assert first + second + rest == whole[0]
    (file,) = tmp_path.rglob("step-000002.pt")
    said = torch.load(file, weights_only=True)
    said["frames"][0][0, 0, 0] = 200 - said["frames"][0][0, 0, 0]
    torch.save(said, file)
    assert render(other, film(material, FRAMES), 2 * STEP, FRAMES - 2 * STEP, carry)[0] != rest, "the file was not read"
    file.write_bytes(b"half")
    assert render(other, film(material, FRAMES), 2 * STEP, FRAMES - 2 * STEP, carry)[0] == rest
    other.kill()


def test_a_segment_without_a_carry_starts_afresh(host: Host, material: Path, whole: tuple[bytes, bytes]) -> None:
    afresh, _ = render(host, film(material, FRAMES), STEP, FRAMES - STEP)
    assert len(afresh) == (FRAMES - STEP) * FRAME_BYTES
    assert afresh != whole[0][STEP * FRAME_BYTES :]


def test_a_wrong_carry_or_row_is_refused_and_the_engine_stays_warm(host: Host, material: Path) -> None:
    _, carry = render(host, film(material, FRAMES), 0, STEP)
    for error, sentence, changes, first, state in (
        (EngineError, "belongs to another film", {"seed": 9}, STEP, carry),
        (EngineError, "goes on at step 1, asked for was step 2", {}, 2 * STEP, carry),
        (EngineError, "the carry is damaged", {}, STEP, carry[:20]),
        (InputError, "has no setting 'wings'", {"settings": {"wings": 1}}, 0, None),
        (InputError, "edit_prompt must be a JSON object", {"settings": {"edit_prompt": "smile"}}, 0, None),
        (InputError, "renders 20, 24, 25 frames per second, not 30", {"fps": [30, 1]}, 0, None),
    ):
        with pytest.raises(error, match=sentence):
            render(host, film(material, FRAMES, **changes), first, STEP, state)
    assert len(render(host, film(material, 5), 0, 5)[0]) == 5 * FRAME_BYTES


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_lightvae": True}, "use_lightvae can only be false here: this checkout has it not; it is a fork's"),
        ({"sample_steps": 1}, "sample_steps can only be 3 here"),
        ({"ulysses_degree": 2}, "ulysses_degree is 2, and this worker's devices are 1; they decide"),
        ({"steam_audio": False}, "steam_audio can only be true here: each block hears its own part"),
        ({"fp8_gemm": True, "fp4_gemm": True}, "fp8_gemm and fp4_gemm exclude each other"),
        ({"block_offload": True}, "block_offload and fp8_gemm need a CUDA device"),
        ({}, r"SoulX-LiveAct needs lightx2v, which .* setup_vae.py"),
    ],
    ids=str,
)
def test_what_this_checkout_has_not_is_refused_with_the_reason(
    shop: Path, changes: dict[str, Any], sentence: str
) -> None:
    from workers.engines.upstream.liveact import make_engine

    with pytest.raises(ConfigError, match=sentence):
        make_engine(liveact_settings(shop, **changes)).load()


def test_omnirts_settings_are_taken_under_their_names(shop: Path) -> None:
    from workers.engines.upstream.liveact import make_engine

    flags = {"t5_cpu": "yes", "mean_memory": False, "rank0_t5_only": True, "steam_audio": "true", "ring_degree": 1}
    make_engine(liveact_settings(shop, platform="ascend_npu", condition_cache_dir="/tmp/c", **flags))
