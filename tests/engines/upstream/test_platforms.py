"""The device below a checkout's code: CUDA's and an NPU's kernels behind one seam."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from farm.errors import ConfigError  # noqa: E402
from workers.engines.upstream import platforms  # noqa: E402
from workers.engines.upstream.flashhead import use_kernel  # noqa: E402

NAMES = ("PLATFORM", "GPU_NUM", "RANK", "WORLD_SIZE", "LOCAL_RANK")


class FakeNpu(types.ModuleType):
    """torch-npu as far as the engine calls it; writes down what it was asked."""

    def __init__(self) -> None:
        super().__init__("torch_npu")
        self.__path__ = []  # type: ignore[attr-defined]
        self.asked: list[Any] = []

    def npu_fusion_attention(self, q: Any, k: Any, v: Any, heads: int, **how: Any) -> tuple[Any, ...]:
        self.asked.append((tuple(q.shape), heads, how))
        out = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        return (out.transpose(1, 2), None, None)


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> FakeNpu:
    fake = FakeNpu()
    monkeypatch.setitem(sys.modules, "torch_npu", fake)
    return fake


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    kept = torch.cuda.synchronize
    yield
    assert torch.cuda.synchronize is kept  # torch's compiler times kernels by it


def test_the_fused_kernel_of_an_npu_stands_where_cudas_stands(npu: FakeNpu) -> None:
    q, k, v = (torch.randn(2, n, 3, 8) for n in (5, 7, 7))
    fused = platforms.kernel("npu")(q, k, v)
    assert npu.asked == [((2, 5, 3, 8), 3, {"input_layout": "BSND", "scale": 8**-0.5})]
    assert torch.allclose(fused, platforms.kernel("sdpa")(q, k, v), atol=1e-6)
    module = types.SimpleNamespace()
    use_kernel(module, "npu")
    out = module.flash_attention(q.flatten(2), k.flatten(2), v.flatten(2), num_heads=3)
    assert torch.equal(out, fused.flatten(2))


def test_an_npu_is_told_to_the_code_by_its_variables_in_order(npu: FakeNpu, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    contrib = types.ModuleType("torch_npu.contrib")
    contrib.__getattr__ = lambda name: order.append(name)  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "torch_npu.contrib", contrib)
    fake = types.SimpleNamespace(set_device=lambda index: order.append(f"set_device {index}"))
    monkeypatch.setattr(torch, "npu", fake, raising=False)
    monkeypatch.setenv("RANK", "0")
    platform = platforms.choose_platform("ascend_npu")
    platform.begin()
    once = dict.fromkeys(name for name in order if not name.startswith("__"))  # an import may look twice
    assert list(once) == ["transfer_to_npu", "set_device 0"]
    assert {name: os.environ.get(name) for name in NAMES} == {
        "PLATFORM": "ascend_npu",
        "GPU_NUM": "1",
        "RANK": None,
        "WORLD_SIZE": None,
        "LOCAL_RANK": None,
    }


def test_without_torch_npu_the_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    with pytest.raises(ConfigError, match=r"torch-npu cannot be imported .* set_env.sh in workers.toml"):
        platforms.choose_platform("npu").begin()


def test_a_group_of_ranks_is_refused_where_one_card_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="this engine renders on one card"):
        platforms.choose_platform("cpu").begin()


@pytest.mark.parametrize(
    ("kind", "wanted", "kernel"),
    [("npu", "auto", "npu"), ("npu", "sdpa", "sdpa"), ("cpu", "auto", "sdpa"), ("cpu", "sdpa", "sdpa")],
)
def test_auto_takes_the_devices_own_kernel(kind: str, wanted: str, kernel: str) -> None:
    assert platforms.choose_kernel(platforms.Platform(kind), wanted) == kernel


@pytest.mark.parametrize(
    ("kind", "wanted", "sentence"),
    [
        ("cpu", "npu", "kernel is 'npu', which runs on an NPU only"),
        ("npu", "fa2", "kernel is 'fa2', which runs on a CUDA device only"),
        ("cuda", "fa3", "flash_attn_interface cannot be imported; install it or leave auto"),
        ("cpu", "magic", "kernel is 'magic': it must be one of auto, npu"),
    ],
)
def test_a_kernel_that_is_not_there_is_refused(kind: str, wanted: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        platforms.choose_kernel(platforms.Platform(kind), wanted)


def test_a_torch_without_cuda_is_told_from_a_driver_that_does_not_fit(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match=r"sees no CUDA device: it (is a build for the CPU|was built for CUDA)"):
        platforms.choose_platform("cuda")


def test_a_pipeline_does_not_wait_and_torch_itself_still_does() -> None:
    module = types.ModuleType("pipeline")
    exec("import torch\ndef generate():\n    torch.cuda.synchronize()\n    return torch.ones(2)\n", module.__dict__)
    kept = torch.cuda.synchronize
    platforms.do_not_wait(module)
    assert torch.equal(module.generate(), torch.ones(2))
    assert module.torch.cuda.is_available is torch.cuda.is_available
    assert torch.cuda.synchronize is kept


def test_the_speech_encoders_layers_are_given_whichever_transformers_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from transformers import Wav2Vec2Config
    from transformers.models.wav2vec2 import modeling_wav2vec2

    from workers.engines.upstream.speech import give_hidden_states

    kind = modeling_wav2vec2.Wav2Vec2Encoder
    monkeypatch.setattr(kind, "forward", kind.forward)  # put back afterwards
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = kind(Wav2Vec2Config(**sizes, num_conv_pos_embedding_groups=4)).eval()
    heard = torch.randn(1, 9, 16)
    with torch.no_grad():
        plain = encoder(heard)[0]
        give_hidden_states()
        said = encoder(heard, attention_mask=None, output_hidden_states=True, return_dict=True)
        assert not give_hidden_states()
    assert len(said.hidden_states) == 4
    assert torch.equal(said[0], plain)
    assert torch.equal(said.hidden_states[-1], plain)
    assert not torch.equal(said.hidden_states[1], said.hidden_states[2])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, where its compiler is imported
def test_every_graph_that_a_checkout_compiles_is_told_to_be_the_same_in_every_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch._dynamo
    import torch._inductor.compile_fx
    import torch._inductor.config as settings

    told: list[bool] = []

    def compile_nothing(graph: Any, inputs: Any, config_patches: Any = None, **_: Any) -> Any:
        with settings.patch(config_patches or {}):  # type: ignore[attr-defined]
            told.append(settings.deterministic)
        return graph.forward

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", compile_nothing)
    monkeypatch.setattr(torch._dynamo.config, "automatic_dynamic_shapes", True)
    checkout = types.ModuleType("checkout")
    checkout.torch = torch  # type: ignore[attr-defined]
    platforms.compile_alike(checkout)
    double = checkout.torch.compile(lambda numbers: numbers * 2)  # type: ignore[attr-defined]
    half = checkout.torch.compile(lambda numbers: numbers / 2)  # type: ignore[attr-defined]
    try:
        for length in (3, 4, 5):
            assert torch.equal(half(double(torch.ones(length))), torch.ones(length))
    finally:
        torch._dynamo.reset()
    # Three lengths are three graphs of each function, and what was compiled before does not end the mode.
    assert told == [True] * 6
