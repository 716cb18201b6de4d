"""The farm's autoencoder and colour match behind the names that a checkout's pipeline calls."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from farm.errors import ConfigError  # noqa: E402
from workers.engines.flashtalk.colour import measure_colour  # noqa: E402
from workers.engines.flashtalk.geometry import TINY_VAE  # noqa: E402
from workers.engines.flashtalk.inventory import vae_tensors  # noqa: E402
from workers.engines.flashtalk.sources import RandomSource  # noqa: E402
from workers.engines.upstream.own_parts import WanPictures, match_colours, pay  # noqa: E402
from workers.engines.upstream.platforms import Platform  # noqa: E402

CPU = Platform("cpu")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    shapes = vae_tensors(TINY_VAE)
    source = RandomSource(shapes, torch.device("cpu"))
    torch.save({name: source.take(name, torch.float32) for name in shapes}, tmp_path / "vae.pth")
    return tmp_path / "vae.pth"


def test_pictures_and_latents_have_the_shapes_that_a_pipeline_expects(weights: Path) -> None:
    pictures = WanPictures(weights, CPU, TINY_VAE)
    latents = pictures.encode(torch.rand(1, 3, 9, 32, 48) * 2 - 1)
    assert latents.shape == (16, 3, 4, 6)
    frames = pictures.decode(latents)
    assert frames.shape == (1, 3, 9, 32, 48)
    assert frames.dtype == torch.float32
    assert frames.abs().max() <= 1


def test_weights_without_a_tensor_are_named(weights: Path) -> None:
    tensors = torch.load(weights, weights_only=True)
    tensors.pop("decoder.conv1.weight")
    torch.save(tensors, weights)
    with pytest.raises(ConfigError, match=r"vae\.pth.*decoder\.conv1\.weight"):
        WanPictures(weights, CPU, TINY_VAE)


def test_frames_get_the_colours_of_the_portrait_and_keep_their_type() -> None:
    torch.manual_seed(0)
    frames = torch.rand(1, 3, 4, 24, 24) * 0.6 - 0.3
    portrait = torch.rand(1, 3, 1, 24, 24) * 0.5 - 0.1
    wanted = measure_colour(portrait[0, :, 0])
    for frame in match_colours(frames, portrait, 1.0)[0].unbind(1):
        found = measure_colour(frame)
        assert torch.allclose(found.mean, wanted.mean, atol=0.5)
        assert torch.allclose(found.deviation, wanted.deviation, atol=0.5)
    assert match_colours(frames.bfloat16(), portrait.bfloat16(), 0.5).dtype == torch.bfloat16


def test_a_cpu_keeps_the_checkouts_own_parts() -> None:
    assert not pay(CPU)
