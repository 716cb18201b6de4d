"""On a CUDA card: kernels equal their definitions, films resume bit-equal, 20 GB suffice, faults are told apart.

The engine has random weights at true size; loading it takes some 15 seconds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.torch]

from farm.errors import OutOfMemory  # noqa: E402
from workers.engines.flashtalk import colour, make_engine, ops, winograd  # noqa: E402
from workers.engines.flashtalk.linears import FP8, Quantised, round_rows  # noqa: E402

GPU = torch.device("cuda")
SIZE = {"width": 256, "height": 256}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def normal(*shape: int, dtype: Any = torch.bfloat16) -> Any:
    return torch.randn(shape, device=GPU, generator=torch.Generator(GPU).manual_seed(sum(shape))).to(dtype)


def error(got: Any, want: Any) -> float:
    if isinstance(got, Quantised):
        got, want = got.values.float() * got.scale, want.values.float() * want.scale
    return float((got.double() - want.double()).norm() / want.double().norm())


def without_kernels(work: Any, *arguments: Any) -> Any:
    """What the torch definition gives, on the same card."""
    kept, ops.kernels = ops.kernels, None
    try:
        return work(*arguments)
    finally:
        ops.kernels = kept


def defined(name: str, *arguments: Any) -> Any:
    return without_kernels(getattr(ops, name), *arguments)


@pytest.mark.parametrize("form", ["plain", "fp8", "int8"])
def test_row_kernels_equal_their_definitions(form: Any) -> None:
    x, y = normal(40, 5120), normal(41, 5120)[:40].contiguous()
    gate, mul, add = (normal(5120 + n, dtype=torch.float32)[:5120].contiguous() for n in range(3))
    left_out = normal(5120)
    for added in (y, None):
        got = ops.residual_norm(x.clone(), added, gate, mul, add, 1e-6, form, None, left_out)
        want = defined("residual_norm", x.clone(), added, gate, mul, add, 1e-6, form, None, left_out)
        assert error(got[0], want[0]) < 1e-3
        assert error(got[1], want[1]) < 1e-2
    if form != "plain":
        assert error(ops.quantise(x, form), round_rows(x, form)) < 1e-2  # ties round either way
        assert error(ops.gelu_rows(x, form), defined("gelu_rows", x, form)) < 1e-2


def test_attention_kernels_equal_their_definitions() -> None:
    qkv, gain = normal(40, 3 * 5120), normal(2, 5120, dtype=torch.float32)
    cos, sin = normal(40, 64, dtype=torch.float32), normal(40, 64, dtype=torch.float32)
    got, want = qkv.clone(), qkv.clone()
    ops.rms_rope(got, gain, cos, sin, 40, 1e-6)
    defined("rms_rope", want, gain, cos, sin, 40, 1e-6)
    assert error(got, want) < 2e-3
    factor = torch.tensor([3.0, 4.0], device=GPU)
    q, k, v, top = ops.kernels.rms_rope_fp8(qkv, gain, cos, sin, 1e-6, factor)
    assert q.dtype == FP8
    assert error(q.float() / 3, want[:, :5120]) < 0.04
    assert error(k.float() / 4, want[:, 5120:10240]) < 0.04
    assert error(v.float() * top / 448, qkv[:, 10240:]) < 0.04
    for count in (288, 352):  # a short prompt, and one that goes beyond the portrait's last tile
        rows, keys = normal(70, 5120), 0.1 * normal(count, 40, 128)
        values = normal(count, 40, 129)[..., 1:].contiguous()
        bias = torch.zeros(count, device=GPU)
        bias[count - 20], bias[count - 19 :] = 6.0, -1e30
        exact = defined("cross_attend", rows.float(), keys.float(), values.float(), bias, 257, 1e-6)
        assert error(ops.cross_attend(rows, keys, values, bias, 257, 1e-6), exact) < 5e-3
        limit = 2 * values.abs().amax().float().view(1)
        rounded = ops.cross_attend(rows, keys, values, bias, 257, 1e-6, limit)
        assert error(rounded.values.float() * rounded.scale, exact) < 0.04
    tokens, weight = normal(3, 32, 2 * 5120)[..., 5120:], normal(5120, 5121)[:, :5120].contiguous()
    for asked in ({"transposed": False, "factor": 0.1}, {"transposed": True, "turned": True}):
        want = without_kernels(partial(ops.fold, tokens.float(), weight.float(), 40, **asked))
        assert error(ops.fold(tokens, weight, 40, **asked), want) < 5e-3
        scale = want.abs().amax(2) / 448
        rounded = ops.fold(tokens, weight, 40, **asked, scale=scale)
        assert error(rounded.float() * scale[..., None], want) < 0.04
    scores, ties = normal(3, 10, 1280, dtype=torch.float32), normal(3, 1280, dtype=torch.float32)
    want = defined("softmax_groups", scores, ties, 32, torch.float32)
    assert error(ops.softmax_groups(scores, ties, 32, torch.float32), want) < 1e-5


def test_picture_kernels_equal_their_definitions() -> None:
    y, residual, bias = normal(4, 6, 5, 96), normal(4, 6, 5, 96), normal(96)
    gamma = normal(97, dtype=torch.float32)[:96].contiguous()
    for shape in ((6, 6, 5, 96), (4, 6, 5, 3, 96)):
        got, want = torch.zeros(shape, device=GPU).bfloat16(), torch.zeros(shape, device=GPU).bfloat16()
        ops.residual_rms_silu(y, bias, residual, gamma, got, True)
        defined("residual_rms_silu", y, bias, residual, gamma, want, True)
        assert error(got, want) < 5e-3
    assert error(ops.add_up(y, bias, residual), defined("add_up", y, bias, residual)) < 5e-3
    phases = normal(3, 4, 6, 4, 96)
    assert error(ops.shuffle_phases(phases, bias), defined("shuffle_phases", phases, bias)) < 5e-3
    taps, three = normal(81, 6 * 7 * 5, dtype=torch.float32), normal(3)
    want = defined("sum_taps", taps, (4, 7, 5), three)
    assert error(ops.sum_taps(taps, (4, 7, 5), three), want) < 1e-5


def test_tiled_convolutions_equal_their_definitions() -> None:
    gamma, bias = normal(97, dtype=torch.float32)[:96].contiguous(), normal(96)
    y, residual = normal(9, 6, 5, 96), normal(9, 6, 5, 97)[..., :96].contiguous()
    counts = (2, 2, 2, 2, 2, 3)
    planes = tuple(normal(t, 6, 5, 96 + n)[..., :96].contiguous().half() for n, t in enumerate(counts))
    products = winograd.Products(planes, 9)
    for source in (y, products):
        for beside in (residual, None):
            got, kept = winograd.spread(source, bias, beside, gamma, torch.bfloat16, True)
            want, wanted = without_kernels(winograd.spread, source, bias, beside, gamma, torch.bfloat16, True)
            assert error(got, want) < 2e-3
            assert error(kept, wanted) < 2e-3
    got, _ = winograd.spread(y, None, None, gamma, torch.bfloat16, False)
    assert error(got, without_kernels(winograd.spread, y, None, None, gamma, torch.bfloat16, False)[0]) < 2e-3
    got, want = (torch.zeros(11, 6, 5, 96, device=GPU).bfloat16() for _ in range(2))
    winograd.norm_into(products, bias, residual, gamma, got)
    without_kernels(winograd.norm_into, products, bias, residual, gamma, want)
    assert error(got, want) < 5e-3
    added = winograd.add_up(products, bias, residual, torch.bfloat16)
    assert error(added, without_kernels(winograd.add_up, products, bias, residual, torch.bfloat16)) < 2e-3


def test_colours_on_the_card_equal_those_on_the_cpu() -> None:
    frames = normal(3, 2, 40, 50, dtype=torch.float32).clamp(-1, 1)
    reference = colour.measure_colour(normal(3, 41, 50, dtype=torch.float32).clamp(-1, 1))
    got = colour.match_colour(frames, reference, 0.8)
    want = colour.match_colour(frames.cpu(), colour.ColourStatistics(*(x.cpu() for x in reference)), 0.8)
    assert float((got.cpu() - want).abs().max()) < 1e-3


@pytest.fixture(scope="module")
def lean(tmp_path_factory: Any) -> Any:
    """The leanest engine, under a cap of 20 GB on all that this process allocates."""
    folder = str(tmp_path_factory.mktemp("cache"))
    settings = {"weights": "random", "precision": "fp8", "residency": "lean", "memory_limit_gb": 20.0}
    engine = make_engine({**settings, "cache": folder})
    with torch.inference_mode():
        engine.load()
    return engine


def test_a_24_gb_card_suffices_and_a_resumed_film_is_the_film(lean: Any, film: Any) -> None:
    torch.cuda.reset_peak_memory_stats()
    request = film(width=448, height=768, total_frames=70)
    session = lean.begin(request, 0, None)
    first = session.step()
    carry = session.carry()
    rest = [session.step(), session.step()]
    assert [len(x) for x in (first, *rest)] == [28, 28, 14]
    assert len(carry) < 400_000
    assert torch.cuda.max_memory_reserved() < 20e9
    session.carry()
    lean._ahead = None
    resumed = lean.begin(request, 28, carry)
    assert all(np.array_equal(a, resumed.step()) for a in rest)


def test_a_chunk_begun_ahead_is_the_one_that_the_next_segment_renders(lean: Any, film: Any) -> None:
    request = film(**SIZE, total_frames=84)
    lean.renders_ahead = True
    session = lean.begin(request, 0, None)
    session.step()  # a film's first chunk alone: its frames are waited for
    assert session._ahead is None
    session.step()
    carry = session.carry()
    assert lean._ahead is not None
    taken_over = lean.begin(request, 56, carry)
    assert taken_over._ahead is not None
    following = taken_over.step()
    lean.renders_ahead = False
    lean._ahead = None
    again = lean.begin(request, 56, carry)
    assert again._ahead is None
    assert np.array_equal(following, again.step())


def test_a_film_that_does_not_fit_leaves_the_engine_usable(lean: Any, film: Any) -> None:
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_allocated() + 2e8) / torch.cuda.get_device_properties(GPU).total_memory
    )
    torch.cuda.empty_cache()
    with pytest.raises(OutOfMemory, match="the device is full"):
        lean.begin(film(width=512, height=512, total_frames=28), 0, None).step()
    torch.cuda.set_per_process_memory_fraction(20e9 / torch.cuda.get_device_properties(GPU).total_memory)
    assert lean.begin(film(**SIZE, total_frames=28), 0, None).step().shape == (28, 256, 256, 3)


def test_an_illegal_access_is_a_device_fault() -> None:
    code = (
        "import torch\n"
        "from farm.errors import DeviceFault\n"
        "from workers.engines.flashtalk.faults import named_faults\n"
        "try:\n"
        "    with named_faults():\n"
        "        torch.zeros(4, device='cuda')[torch.tensor([9], device='cuda')]\n"
        "        torch.cuda.synchronize()\n"
        "except DeviceFault as error:\n"
        "    print('told:', error)\n"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert "told: the device failed" in done.stdout, done.stderr
