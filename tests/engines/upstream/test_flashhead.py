"""SoulX-FlashHead through a stand-in checkout: a real child process imports it, loads once and renders warm."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from farm.errors import EngineError, InputError
from farm.models import load_model
from workers.host.parent import Host
from workers.rendering import mismatch

from .conftest import FRAME_BYTES, StartHost, film, flashhead_settings, render

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

MODULE = "workers.engines.upstream.flashhead"
CHUNK = {"pro": 28, "lite": 24}


@pytest.fixture(scope="module", params=["pro", "lite"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def host(variant: str, material: Path, start_host: StartHost) -> Host:
    return start_host(MODULE, flashhead_settings(material, model_type=variant))


def test_a_worker_of_each_preset_is_what_its_model_file_says(host: Host, variant: str) -> None:
    assert host.loaded is not None
    assert host.loaded.description["chunk_frames"] == CHUNK[variant]
    assert mismatch(load_model("soulx-flashhead-1.3b"), variant, host.loaded) is None
    other = {"pro": "lite", "lite": "pro"}[variant]
    assert "frames.chunk_frames" in str(mismatch(load_model("soulx-flashhead-1.3b"), other, host.loaded))


def test_two_films_are_rendered_warm_each_with_its_exact_frames(host: Host, variant: str, material: Path) -> None:
    pid, chunk = host.pid, CHUNK[variant]
    for frames, seed in ((2 * chunk + 5, 7), (chunk - 1, 8)):
        pixels, carry = render(host, film(material, frames, seed=seed), 0, frames)
        assert len(pixels) == frames * FRAME_BYTES
        assert carry is not None
    assert host.pid == pid
    assert "[generate]" not in host.spec.log_file.read_text(encoding="utf-8")


def test_the_seed_reaches_the_model_and_one_seed_is_one_film(host: Host, variant: str, material: Path) -> None:
    chunk = CHUNK[variant]
    first, _ = render(host, film(material, chunk), 0, chunk)
    other, _ = render(host, film(material, chunk, seed=8), 0, chunk)
    again, _ = render(host, film(material, chunk), 0, chunk)
    assert first == again != other


def test_a_film_that_goes_on_in_another_process_is_the_film(
    host: Host, variant: str, material: Path, start_host: StartHost
) -> None:
    chunk, frames = CHUNK[variant], 2 * CHUNK[variant] + 3
    whole, end = render(host, film(material, frames), 0, frames)
    first, carry = render(host, film(material, frames), 0, chunk)
    settings = flashhead_settings(material, model_type=variant)
    second = start_host(MODULE, settings)
    rest, last = render(second, film(material, frames), chunk, frames - chunk, carry)
    second.kill()
    assert first + rest == whole
    assert last == end
    assert len(carry) < 1_000_000


def test_a_carry_of_another_film_or_frame_is_refused_and_the_engine_stays_warm(
    host: Host, variant: str, material: Path
) -> None:
    chunk = CHUNK[variant]
    _, carry = render(host, film(material, 3 * chunk), 0, chunk)
    with pytest.raises(EngineError, match="belongs to another film"):
        render(host, film(material, 3 * chunk, seed=9), chunk, chunk, carry)
    with pytest.raises(EngineError, match="goes on at chunk 1, asked for was chunk 2"):
        render(host, film(material, 3 * chunk), 2 * chunk, chunk, carry)
    with pytest.raises(EngineError, match="the carry is damaged"):
        render(host, film(material, 3 * chunk), chunk, chunk, carry[:-5])
    assert len(render(host, film(material, chunk), 0, chunk)[0]) == chunk * FRAME_BYTES


def test_what_a_row_asks_of_it_is_checked_in_one_sentence(host: Host, variant: str, material: Path) -> None:
    chunk = CHUNK[variant]
    for changes, sentence in (
        ({"settings": {"wings": 2}}, "SoulX-FlashHead has no setting 'wings'"),
        ({"settings": {"steps": 1}}, "steps must be a whole number from 2 to 50, not 1"),
        ({"settings": {"use_face_crop": True}}, "use_face_crop needs mediapipe"),
        ({"width": 72}, "cannot render 72x64: both sides must be multiples of"),
        ({"fps": [30, 1]}, "renders 25 frames per second, not 30/1"),
        ({"portrait": str(material / "speech.f32")}, "cannot be read as a picture"),
    ):
        with pytest.raises(InputError, match=sentence):
            render(host, film(material, chunk, **changes), 0, chunk)
    assert host.is_alive


def test_the_checkout_stays_as_it_was(host: Host, material: Path) -> None:
    folder = material / "SoulX FlashHead 检出"
    assert not list(folder.rglob("__pycache__"))
    assert not [path for path in folder.rglob("*") if path.suffix not in (".py", ".yaml", "") and path.is_file()]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"latent_carry": "on"}, "latent_carry can only be false here: this checkout always takes"),
        ({"nproc_per_node": 4}, "nproc_per_node can only be 1 here: one worker has one card"),
        ({"visible_devices": "2,3"}, "visible_devices can only be '' here: write devices ="),
        ({"audio_encode_mode": "once"}, "audio_encode_mode can only be 'stream' here"),
        ({"model_type": "pretrained"}, "model_type must be one of 'pro', 'lite', not 'pretrained'"),
        ({"wings": 1}, "is not loaded with 'wings'; it knows"),
        ({"kernel": "fa2"}, "kernel is 'fa2', which runs on a CUDA device only"),
        ({"repo_path": "/no/such"}, "repo_path: there is no folder /no/such; it is a checkout of"),
    ],
    ids=str,
)
def test_a_setting_that_this_checkout_has_not_is_refused_with_the_reason(
    material: Path, changes: dict[str, Any], sentence: str
) -> None:
    from farm.errors import ConfigError
    from workers.engines.upstream.flashhead import make_engine

    with pytest.raises(ConfigError, match=sentence):
        make_engine(flashhead_settings(material, **changes)).load()


def test_omnirts_settings_are_taken_under_their_names(material: Path) -> None:
    from workers.engines.upstream.flashhead import make_engine

    given = flashhead_settings(material)
    given["model_path"] = given.pop("ckpt_dir")
    neutral = {"launcher": "python", "nproc_per_node": 1, "audio_encode_mode": "stream", "latent_carry": "false"}
    fork = {"npu_fusion_attention": "1", "vae_2d_split": "off", "profile": "true", "max_chunks": 0}
    make_engine({**given, **neutral, **fork})


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("SoulX FlashHead 检出/flash_head/utils/utils.py", "is no checkout of SoulX-FlashHead: it has no flash_head/"),
        ("weights/Model_Pro/config.json", "weights/Model_Pro/config.json is missing: fetch the model again"),
        ("weights/Model_Pro/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors is missing"),
        ("weights/VAE_Wan/Wan2.1_VAE.pth", "VAE_Wan/Wan2.1_VAE.pth is missing"),
        ("wav2vec/model.safetensors", "neither model.safetensors nor pytorch_model.bin: fetch the speech encoder"),
    ],
)
def test_a_missing_file_is_named_before_anything_is_loaded(
    material: Path, tmp_path: Path, gone: str, sentence: str
) -> None:
    from farm.errors import ConfigError
    from workers.engines.upstream.flashhead import make_engine

    shutil.copytree(material, tmp_path / "m")
    (tmp_path / "m" / gone).unlink()
    with pytest.raises(ConfigError, match=sentence):
        make_engine(flashhead_settings(tmp_path / "m")).load()


def test_a_cut_shard_and_changed_parameters_are_told(material: Path, tmp_path: Path) -> None:
    from farm.errors import ConfigError
    from workers.engines.upstream.flashhead import make_engine

    shutil.copytree(material, tmp_path / "m")
    shard = tmp_path / "m/weights/Model_Pro/diffusion_pytorch_model.safetensors"
    os.truncate(shard, shard.stat().st_size - 4)
    with pytest.raises(ConfigError, match="is truncated: it has"):
        make_engine(flashhead_settings(tmp_path / "m")).load()
    yaml = tmp_path / "m/SoulX FlashHead 检出/flash_head/configs/infer_params.yaml"
    yaml.write_text("frame_num: 29\n")
    with pytest.raises(ConfigError, match="frame_num is 29, this engine renders with 33"):
        make_engine(flashhead_settings(tmp_path / "m", model_type="lite")).load()
