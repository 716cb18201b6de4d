"""SoulX-FlashTalk with `engine = "upstream"`, through a stand-in checkout in a real child process."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import pytest

from farm.errors import ConfigError, InputError
from farm.models import load_model
from workers.host.parent import Host
from workers.rendering import mismatch

from .conftest import FRAME_BYTES, StartHost, film, render
from .standin import FLASHHEAD_PIPELINE, write, write_speech

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

MODULE = "workers.engines.flashtalk"
STEP = 28
MODULES = "flash_talk.infinite_talk.modules.multitalk_model"
# The same small film as FlashHead's, by FlashTalk's entry points: it hands out new frames only, and reads a prompt.
PIPELINE = (
    FLASHHEAD_PIPELINE.replace("flash_head.src.modules.flash_head_model", MODULES)
    .replace("from flash_head.utils.facecrop import process_image\n", "")
    .replace("class FlashHeadPipeline", "class FlashTalkPipeline")
    .replace(
        'def __init__(self, checkpoint_dir, model_type, wav2vec_dir, device="cuda", param_dtype=torch.bfloat16,\n'
        "                 use_usp=False, num_timesteps=1000, use_timestep_transform=True):",
        'def __init__(self, config, checkpoint_dir, wav2vec_dir, device="cuda", use_usp=False, cpu_offload=False):\n'
        '        model_type, param_dtype = "pro", config.param_dtype',
    )
    .replace("prepare_params(self, cond_image_path_or_dir,", "prepare_params(self, input_prompt, cond_image,")
    .replace("color_correction_strength=0.0, use_face_crop=False)", "color_correction_strength=0.0)")
    .replace("Image.open(cond_image_path_or_dir)", "Image.open(cond_image)")
    .replace(
        "        self.strength =", "        self.latent_motion_frames += len(input_prompt)\n        self.strength ="
    )
    .replace("noise.view(1, 4, 8)", "noise.view(1, 4, 2, 4)")
    .replace(", num_heads=2", "")
    .replace("return frames.permute", "return frames[self.motion:].permute")
)
TRANSFORMER = """
from xfuser.core.long_ctx_attention import xFuserLongContextAttention
from flash_talk.infinite_talk.modules.multitalk_attention import hear
from flash_talk.wan.modules import t5

def flash_attention(q, k, v, k_lens=None):
    raise AssertionError("the engine puts its own attention here")

def attend(q, k, v):
    return flash_attention(q, k, v, k_lens=None) + hear(q, k, v)
"""
# Two packages that upstream asks for in releases which few torches have.
SPEECH_ATTENTION = """
import xformers.ops

def hear(q, k, v):
    return xformers.ops.memory_efficient_attention(q, k, v, attn_bias=None, op=None)
"""
TEXT = """
from optimum.quanto import quantize, freeze, qint8, requantize
"""
CONFIG = """
import types, torch
multitalk_14B = types.SimpleNamespace(param_dtype=torch.bfloat16, t5_dtype=torch.bfloat16, clip_dtype=torch.float16)
"""


def write_checkpoint(folder: Path) -> Path:
    """Every tensor that the inventory asks for, of a small model, all zeros."""
    from workers.engines.flashtalk.checkpoint import CONFIG_KEYS, IMAGE_FILE, TEXT_FILE, VAE_FILE
    from workers.engines.flashtalk.geometry import TINY_DIT
    from workers.engines.flashtalk.inventory import dit_tensors

    said = asdict(TINY_DIT)
    write(folder, {"config.json": json.dumps({theirs: said[ours] for theirs, ours in CONFIG_KEYS.items()})})
    write(folder, {f"{name}/tokenizer_config.json": "{}" for name in ("google/umt5-xxl", "xlm-roberta-large")})
    header, end = {}, 0
    for name, shape in dit_tensors(TINY_DIT).items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    words = json.dumps(header).encode()
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(words)) + words)
        file.truncate(8 + len(words) + end)
    for name in (VAE_FILE, TEXT_FILE, IMAGE_FILE):
        (folder / name).write_bytes(b"\x80\x02 an old pickle")
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("flashtalk")
    write(
        folder / "SoulX-FlashTalk",
        {
            "flash_talk/src/pipeline/flash_talk_pipeline.py": PIPELINE,
            "flash_talk/infinite_talk/modules/multitalk_model.py": TRANSFORMER,
            "flash_talk/infinite_talk/utils/multitalk_utils.py": "",
            "flash_talk/infinite_talk/configs/__init__.py": CONFIG,
            "flash_talk/infinite_talk/modules/multitalk_attention.py": SPEECH_ATTENTION,
            "flash_talk/wan/modules/clip.py": "",
            "flash_talk/wan/modules/t5.py": TEXT,
        },
    )
    return {
        "engine": "upstream",
        "repo_path": str(folder / "SoulX-FlashTalk"),
        "checkpoint": str(write_checkpoint(folder / "weights")),
        "speech_checkpoint": str(write_speech(folder / "wav2vec")),
        "device": "cpu",
        "precision": "bf16",
        "residency": "full",
    }


@pytest.fixture(scope="module")
def host(settings: dict[str, Any], start_host: StartHost) -> Host:
    return start_host(MODULE, settings)


JOB = {"steps": 4, "attention": "exact", "colour_match": 1.0, "noise": "keyed"}  # as the model file resolves them


def test_the_same_model_is_rendered_by_upstreams_code(host: Host) -> None:
    assert host.loaded is not None
    assert mismatch(load_model("soulx-flashtalk-14b"), "quality", host.loaded) is None
    assert host.loaded.description["version"].startswith("upstream3-flashtalk-unknown-")
    assert "is no git checkout" in host.loaded.report["notes"][0]


def test_a_film_has_its_exact_frames_and_goes_on_in_another_process(
    host: Host, settings: dict[str, Any], start_host: StartHost, material: Path
) -> None:
    frames = 2 * STEP + 3
    told = film(material, frames, settings=JOB, prompt="a man talks")
    whole, end = render(host, told, 0, frames)
    assert len(whole) == frames * FRAME_BYTES
    first, carry = render(host, told, 0, STEP)
    other = start_host(MODULE, settings)
    rest, last = render(other, told, STEP, frames - STEP, carry)
    other.kill()
    assert (first + rest == whole, last == end) == (True, True)
    assert render(host, {**told, "prompt": "a woman walks"}, 0, STEP)[0] != first
    assert render(host, {**told, "seed": 1}, 0, STEP)[0] != first


def test_neither_xformers_nor_optimum_has_to_be_installed(settings: dict[str, Any]) -> None:
    from workers.engines.upstream.checkout import check_checkout, needed_packages
    from workers.engines.upstream.flashtalk import LAYOUT, PIPELINE

    needed = needed_packages(check_checkout(Path(settings["repo_path"]), LAYOUT), [PIPELINE])
    assert needed == {"PIL", "torch"}


def test_the_picture_towers_tokenizer_is_missed_before_anything_is_loaded(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    from workers.engines.flashtalk import make_engine

    folder = write_checkpoint(tmp_path)
    shutil.rmtree(folder / "xlm-roberta-large")
    with pytest.raises(ConfigError, match=r"the tokenizer's folder .*xlm-roberta-large is missing"):
        make_engine({**settings, "checkpoint": str(folder)}).load()


def test_a_row_that_asks_for_our_own_kernels_is_refused(host: Host, material: Path) -> None:
    with pytest.raises(InputError, match="attention = fp8 belongs to the farm's own engine"):
        render(host, film(material, STEP, settings={**JOB, "attention": "fp8"}), 0, STEP)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "fp8"}, "precision can only be 'bf16' here: upstream's code has no such weights"),
        ({"t5_quant": "int8"}, "t5_quant can only be '' here"),
        ({"nproc_per_node": 8}, "nproc_per_node can only be 1 here"),
        ({"engine": "theirs"}, "engine must be own or upstream, not 'theirs'"),
    ],
    ids=str,
)
def test_what_upstream_has_not_is_refused_with_what_has_it(
    settings: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    from workers.engines.flashtalk import make_engine

    with pytest.raises(ConfigError, match=sentence):
        make_engine({**settings, **changes})
