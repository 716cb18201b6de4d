"""Each stage keeps what a run beside upstream gave; golden.json is written by scripts/parity_flashtalk.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from workers.engines.flashtalk import colour, inventory, noise, ops, sampler, speech  # noqa: E402
from workers.engines.flashtalk.attention import attention  # noqa: E402
from workers.engines.flashtalk.dit import Dit  # noqa: E402
from workers.engines.flashtalk.geometry import TINY_DIT, TINY_VAE, DitConfig, Geometry, VaeConfig  # noqa: E402
from workers.engines.flashtalk.linears import Linear, round_rows  # noqa: E402
from workers.engines.flashtalk.rope import axis_pairs  # noqa: E402
from workers.engines.flashtalk.sources import RandomSource  # noqa: E402
from workers.engines.flashtalk.vae import Vae  # noqa: E402

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Any:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    """The parity script's inputs, drawn in its order."""
    draw = np.random.Generator(np.random.Philox(key=5))

    def normal(*shape: int) -> Any:
        return torch.from_numpy(draw.standard_normal(shape, dtype=np.float32))

    picture = normal(3, 64, 48).clamp(-1, 1)
    text, seen, taps = normal(7, 4096), normal(257, 1280), normal(33, 5, 12, 768)
    latents, condition = normal(16, 9, 8, 6), normal(20, 9, 8, 6)
    return {"picture": picture, "text": text, "seen": seen, "taps": taps, "latents": latents, "condition": condition}


@pytest.fixture(scope="module")
def vae() -> Vae:
    source = RandomSource(inventory.vae_tensors(TINY_VAE), CPU)
    return Vae(TINY_VAE, source, CPU, torch.float32, upstream_rounding=False)


def build_dit(form: Any = "plain", *, fold_speech: bool = True) -> Dit:
    source = RandomSource(inventory.dit_tensors(TINY_DIT), CPU)
    return Dit(TINY_DIT, source, CPU, torch.float32, form, fold_speech=fold_speech, keep_context_weights=False)


def run_dit(dit: Dit, inputs: dict[str, Any], known: int = 0) -> Any:
    film, heard = dit.film_context(inputs["text"], inputs["seen"]), dit.hear(inputs["taps"])
    geometry, modulation = Geometry(64, 48), dit.modulation(1 / 1.2)
    exact = attention("math")
    return dit.velocity(inputs["latents"], inputs["condition"], modulation, film, heard, geometry, exact, known)


def assert_golden(x: Any, kept: dict[str, Any]) -> None:
    flat = x.double().flatten()
    assert list(x.shape) == kept["shape"]
    assert flat.norm().item() == pytest.approx(kept["l2"], rel=1e-4)
    assert flat.std(unbiased=False).item() == pytest.approx(kept["std"], rel=1e-4)
    picks = torch.linspace(0, flat.numel() - 1, 7).long()
    assert flat[picks].tolist() == pytest.approx(kept["samples"], abs=2e-4)


def test_the_inventory_counts_the_published_parameters() -> None:
    dit, vae = inventory.dit_tensors(DitConfig()), inventory.vae_tensors(VaeConfig())
    assert (len(dit), inventory.count_parameters(dit)) == (1633, 18_882_046_784)
    assert (len(vae), inventory.count_parameters(vae)) == (194, 126_892_531)


def test_the_transformer_gives_upstreams_velocity(inputs: dict[str, Any]) -> None:
    dit = build_dit()
    assert_golden(run_dit(dit, inputs), GOLDEN["dit"])
    assert_golden(dit.speech_tokens(inputs["taps"]), GOLDEN["speech"])


def test_folded_speech_and_the_trimmed_last_block_change_nothing(inputs: dict[str, Any]) -> None:
    plain = run_dit(build_dit(fold_speech=False), inputs)
    trimmed = run_dit(build_dit(), inputs, known=2)
    assert torch.allclose(trimmed[:, 2:], plain[:, 2:], atol=1e-4)
    assert not trimmed[:, :2].any()


@pytest.mark.parametrize(("form", "limit"), [("fp8", 0.08), ("int8", 0.03)])
def test_rounded_products_stay_close(form: Any, limit: float, inputs: dict[str, Any]) -> None:
    exact, rounded = run_dit(build_dit(), inputs), run_dit(build_dit(form), inputs)
    assert 0 < (rounded - exact).norm() / exact.norm() < limit


def test_the_autoencoder_gives_upstreams_latents_and_frames(inputs: dict[str, Any], vae: Vae) -> None:
    frames = torch.cat([inputs["picture"][:, None], torch.zeros(3, 32, 64, 48)], dim=1)
    assert_golden(vae.encode(frames), GOLDEN["encode"])
    video = vae.decode(inputs["latents"])
    assert_golden(video, GOLDEN["decode"])
    matched = colour.match_colour(video, colour.measure_colour(inputs["picture"]), 1.0)
    assert_golden(matched, GOLDEN["colour"])


def test_decoding_and_encoding_in_parts_equals_the_whole(vae: Vae) -> None:
    latents = torch.from_numpy(noise.keyed_normal(1, 0, 0, (16, 5, 3, 2)))
    whole = vae.decode(latents)
    assert torch.allclose(vae.decode(latents, 1), whole, atol=1e-5)
    assert torch.allclose(vae.decode(latents, 2), whole, atol=1e-5)
    assert torch.allclose(vae.encode(whole, 1), vae.encode(whole), atol=1e-5)


def test_stacked_planes_give_the_same_frames(vae: Vae) -> None:
    source = RandomSource(inventory.vae_tensors(TINY_VAE), CPU)
    stacked = Vae(TINY_VAE, source, CPU, torch.float32, upstream_rounding=False, stacked=(8, 32))
    latents = torch.from_numpy(noise.keyed_normal(1, 0, 0, (16, 4, 3, 2)))
    whole = vae.decode(latents)
    assert torch.allclose(stacked.decode(latents), whole, atol=1e-5)
    assert torch.allclose(stacked.decode(latents, 1, 5), whole[:, 5:], atol=1e-5)
    assert torch.allclose(stacked.encode(whole, 1), vae.encode(whole), atol=1e-5)


@pytest.mark.parametrize("latents", [1, 3, 4])
def test_half_of_the_multiplications_give_the_same_frames(vae: Vae, latents: int) -> None:
    source = RandomSource(inventory.vae_tensors(TINY_VAE), CPU)
    tiled = Vae(TINY_VAE, source, CPU, torch.float32, upstream_rounding=False, tiled=True)
    drawn = torch.from_numpy(noise.keyed_normal(1, 0, 0, (16, latents, 3, 2)))
    whole = vae.decode(drawn)
    assert torch.allclose(tiled.decode(drawn), whole, atol=3e-5)
    assert torch.allclose(tiled.decode(drawn, 1), whole, atol=1e-5)
    assert torch.allclose(tiled.encode(whole), vae.encode(whole), atol=3e-5)
    assert torch.allclose(tiled.encode(whole, 1), vae.encode(whole), atol=1e-5)


def test_sigmas_are_upstreams() -> None:
    assert sampler.sigmas(4) == pytest.approx([1.0, 0.9375, 5 / 6, 0.625, 0.0])
    assert sampler.sigmas(2) == pytest.approx([1.0, 5 / 6, 0.0])


def test_rotary_pairs_split_22_21_21() -> None:
    assert axis_pairs(128) == (22, 21, 21)


def test_noise_depends_on_each_part_of_its_key() -> None:
    one = noise.keyed_normal(9999, 3, 1, (4, 5))
    assert np.array_equal(one, noise.keyed_normal(9999, 3, 1, (4, 5)))
    for other in ((9998, 3, 1), (9999, 4, 1), (9999, 3, 2)):
        assert not np.array_equal(one, noise.keyed_normal(*other, (4, 5)))


def test_upstream_noise_goes_on_from_its_state() -> None:
    first = noise.DeviceNoise(5, CPU, torch.float32)
    first.draw(0, 0, (3, 4))
    state = first.state()
    second = noise.DeviceNoise(5, CPU, torch.float32)
    second.restore(state)
    assert torch.equal(first.draw(0, 1, (3, 4)), second.draw(0, 1, (3, 4)))


def test_a_matched_frame_has_the_portraits_colour_statistics() -> None:
    frames = torch.from_numpy(noise.keyed_normal(2, 0, 0, (3, 2, 16, 16))).mul(0.2).sub(0.3)
    reference = colour.measure_colour(torch.from_numpy(noise.keyed_normal(3, 0, 0, (3, 16, 16))).mul(0.15))
    matched = colour.match_colour(frames, reference, 1.0)
    for t in range(2):
        got = colour.measure_colour(matched[:, t])
        assert torch.allclose(got.mean, reference.mean, atol=0.5)
        assert torch.allclose(got.deviation, reference.deviation, rtol=0.05)


def test_lab_goes_there_and_back() -> None:
    rgb = torch.from_numpy(noise.keyed_normal(4, 0, 0, (3, 50))).sigmoid()
    assert torch.allclose(colour.from_lab(colour.to_lab(rgb)), rgb, atol=2e-4)


def test_the_last_chunk_hears_zeros_after_the_end() -> None:
    from .conftest import Speech

    audio = Speech(30_000)
    window = speech.read_window(audio, 1)
    assert window.shape == (128_000,)
    assert np.array_equal(window[-35_840 : -35_840 + 30_000], audio.samples)
    assert not window[-5_840:].any()


def test_taps_repeat_the_last_feature_at_the_edge() -> None:
    features = torch.arange(200.0).view(200, 1, 1)
    taps = speech.gather_taps(features)[..., 0, 0]
    assert taps[0].tolist() == [165, 166, 167, 168, 169]
    assert taps[-1].tolist() == [197, 198, 199, 199, 199]


def test_an_int8_layer_equals_its_rounded_factors() -> None:
    draw = noise.keyed_normal(6, 0, 0, (64, 32))
    weight, bias = torch.from_numpy(draw[:24]), torch.zeros(24)
    x = round_rows(torch.from_numpy(draw[24:56]), "int8")
    expected = (x.values.float() * x.scale) @ torch.from_numpy(draw[:24]).t()
    got = Linear(weight, bias, "int8")(x)
    assert (got - expected).norm() / expected.norm() < 0.02


def test_cross_attention_counts_a_key_as_often_as_its_bias_says() -> None:
    q, k, v = (torch.from_numpy(noise.keyed_normal(s, 0, 0, (9, 8))) for s in (1, 2, 3))
    keys, values = k.view(9, 2, 4), v.view(9, 2, 4)
    repeated = [0, 1, 2, 3, 4, 5, 5, 5]
    bias = torch.zeros(6)
    bias[5] = np.log(3)
    short = ops.cross_attend(q, keys[:6], values[:6], bias, 2, 1e-6)
    long = ops.cross_attend(q, keys[repeated], values[repeated], torch.zeros(8), 2, 1e-6)
    assert torch.allclose(short, long, atol=1e-5)
