"""The official directory is proven complete before anything is loaded, and a known prompt loads no encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.torch

from farm.errors import ConfigError  # noqa: E402
from workers.engines.flashtalk import checkpoint as checkpoints  # noqa: E402
from workers.engines.flashtalk import conditioners  # noqa: E402
from workers.engines.flashtalk.geometry import TINY_DIT, TINY_VAE  # noqa: E402
from workers.engines.flashtalk.inventory import dit_tensors, vae_tensors  # noqa: E402
from workers.engines.flashtalk.sources import FileSource, RandomSource, ShardSource  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> tuple[Path, Path]:
    """A tiny checkpoint in two shards, as save_pretrained lays it out, and a speech encoder's folder."""
    folder, speech = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("speech")
    source = RandomSource(dit_tensors(TINY_DIT), CPU)
    names = list(dit_tensors(TINY_DIT))
    shards = {"diffusion_pytorch_model-00001-of-00002.safetensors": names[:80]}
    shards["diffusion_pytorch_model-00002-of-00002.safetensors"] = names[80:]
    for name, held in shards.items():
        safetensors.save_file({n: source.take(n, torch.bfloat16) for n in held}, folder / name)
    weight_map = {n: name for name, held in shards.items() for n in held}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    said = {theirs: getattr(TINY_DIT, ours) for theirs, ours in checkpoints.CONFIG_KEYS.items()}
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "model_type": "i2v", **said}))
    vae = RandomSource(vae_tensors(TINY_VAE), CPU)
    torch.save({n: vae.take(n, torch.float32) for n in vae_tensors(TINY_VAE)}, folder / checkpoints.VAE_FILE)
    for name in (checkpoints.TEXT_FILE, checkpoints.IMAGE_FILE):
        torch.save({"x": torch.zeros(1)}, folder / name)
    (folder / checkpoints.TOKENIZER_FOLDER).mkdir(parents=True)
    (folder / checkpoints.TOKENIZER_FOLDER / "tokenizer_config.json").write_text("{}")
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (speech / name).write_text("{}")
    return folder, speech


@pytest.fixture
def copied(written: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(written[0], folder)
    return folder, written[1]


def test_a_whole_checkpoint_gives_its_tensors_unchanged(written: tuple[Path, Path]) -> None:
    found = checkpoints.check_checkpoint(*written)
    assert found.config == TINY_DIT
    taken = ShardSource(found, CPU).take("blocks.2.ffn.0.weight", torch.bfloat16)
    assert torch.equal(taken, RandomSource(dit_tensors(TINY_DIT), CPU).take("blocks.2.ffn.0.weight", torch.bfloat16))
    FileSource(found.vae_file, vae_tensors(TINY_VAE), CPU)


def test_a_truncated_shard_is_named(copied: tuple[Path, Path]) -> None:
    shard = copied[0] / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"00002-of-00002\.safetensors is truncated"):
        checkpoints.check_checkpoint(*copied)


def test_a_missing_file_is_named(copied: tuple[Path, Path]) -> None:
    for name in (checkpoints.VAE_FILE, "config.json", "diffusion_pytorch_model-00001-of-00002.safetensors"):
        kept = (copied[0] / name).read_bytes()
        (copied[0] / name).unlink()
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
            checkpoints.check_checkpoint(*copied)
        (copied[0] / name).write_bytes(kept)


def test_a_truncated_pth_is_named(copied: tuple[Path, Path]) -> None:
    path = copied[0] / checkpoints.VAE_FILE
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ConfigError, match=r"Wan2\.1_VAE\.pth is truncated"):
        checkpoints.check_checkpoint(*copied)


def test_wrong_missing_and_extra_tensors_are_named(tmp_path: Path) -> None:
    good = {"a.weight": (2, 3), "b": (1,)}
    for found, words in (
        ({"a.weight": (2, 3)}, "lacks 1 tensors, the first is b"),
        ({**good, "c": (1,)}, "does not have, the first is c"),
        ({**good, "b": (2,)}, r"b has shape \(2,\), expected \(1,\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            checkpoints.compare_tensors(found, good, tmp_path)


def test_a_known_prompt_is_read_from_disk(tmp_path: Path) -> None:
    cache, calls = conditioners.EncodingCache(tmp_path), []

    def make() -> dict[str, Any]:
        calls.append(1)
        return {"rows": torch.ones(2, 3)}

    key = conditioners.digest("a prompt")
    assert torch.equal(cache.fetch("prompts", key, make)["rows"], cache.fetch("prompts", key, make)["rows"])
    assert len(calls) == 1
    (tmp_path / "prompts" / f"{key}.pt").write_bytes(b"broken")
    cache.fetch("prompts", key, make)
    assert len(calls) == 2


def test_digests_do_not_run_into_each_other() -> None:
    assert conditioners.digest("ab", "c") != conditioners.digest("a", "bc")


def test_prompts_are_cleaned_as_the_encoder_was_trained() -> None:
    assert conditioners.clean_prompt(" A  man &amp;amp; a\n dog ") == "A man & a dog"
