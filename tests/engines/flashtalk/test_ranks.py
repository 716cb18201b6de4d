"""Several ranks render the film that one renders, to float32's rounding, and refuse what they cannot share."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from farm.errors import ConfigError, InputError  # noqa: E402
from workers.engines.flashtalk.geometry import TINY_DIT, DitConfig, Geometry  # noqa: E402
from workers.engines.flashtalk.shares import RowShare, TokenShare, refuse_film, refuse_group  # noqa: E402
from workers.engines.ranks import Ranks  # noqa: E402
from workers.host.group import free_port, rank_environment  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
FLOATS = ("velocity", "decoded", "decoded in parts", "decoded in tiles", "encoded", "carry 0", "carry 1", "carry 2")
TOLERANCE = 1e-5  # relative


def render_in_step(folder: Path, ranks: int, size: tuple[int, int], fault: str = "") -> list[dict[str, Any]]:
    """What each rank of a group made."""
    from PIL import Image

    portrait = folder / "portrait.png"
    pixels = np.random.Generator(np.random.Philox(key=3)).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(portrait)
    port, out = free_port(), folder / f"out{ranks}"
    base = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    argv = [
        sys.executable,
        "-m",
        "tests.engines.flashtalk.render_in_step",
        out,
        portrait,
        *map(str, size),
        *[fault][: len(fault)],
    ]
    processes = [
        subprocess.Popen(argv, cwd=ROOT, env=rank_environment(base, rank, ranks, port), stderr=subprocess.PIPE)
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=250)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(said)
    return [dict(np.load(f"{out}.{rank}.npz")) for rank in range(ranks)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one rank makes of a size; rendered once."""
    return cache(lambda size: render_in_step(tmp_path_factory.mktemp("one"), 1, size)[0])


def relative(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "size"),
    [
        (2, (48, 48)),  # 9 places of a frame among 2 ranks: one is filled up
        (4, (48, 48)),  # 6 rows of latents among 4: two have more than the others
        (2, (64, 48)),
        (4, (32, 32)),  # one row of latents each
    ],
)
def test_a_group_renders_a_chunk_and_a_chain_of_carries_as_one_rank_does(
    tmp_path: Path, alone: Any, ranks: int, size: tuple[int, int]
) -> None:
    one, group = alone(size), render_in_step(tmp_path, ranks, size)
    first = group[0]
    assert {
        name: relative(one[name], first[name]) for name in FLOATS if relative(one[name], first[name]) > TOLERANCE
    } == {}
    assert relative(first["whole"], first["encoded"]) <= TOLERANCE
    levels = np.abs(one["frames"].astype(int) - first["frames"].astype(int))
    assert levels.max() <= 1  # a pixel on the edge between two levels may be rounded to either
    assert (levels > 0).mean() < 1e-3
    for other in group[1:]:
        assert other["frames"].size == 0  # nobody copies frames that rank 0 writes
        assert all(np.array_equal(first[f"carry {n}"], other[f"carry {n}"]) for n in range(3))
    assert (str(one["version"]), str(first["version"])) == (str(one["version"]), f"{one['version']}-ranks{ranks}")


@pytest.mark.slow
def test_what_is_no_number_on_one_rank_is_refused_by_all_of_them(tmp_path: Path, alone: Any) -> None:
    group = render_in_step(tmp_path, 2, (48, 48), "nan")
    assert [str(rank["said"])[:40] for rank in group] == ["chunk 0 has pixels that are not numbers:"] * 2
    assert relative(alone((48, 48))["carry 2"], group[0]["carry 2"]) <= TOLERANCE  # and they go on in step


def test_tokens_are_shared_by_place_and_come_together_again() -> None:
    geometry = Geometry(48, 48)
    tokens = torch.arange(9 * 9 * 2.0).view(9, 9, 2)
    shares = [TokenShare(geometry, Ranks(rank, 4)) for rank in range(4)]
    parts = [share.cut(tokens) for share in shares]
    assert {tuple(part.shape) for part in parts} == {(27, 2)}
    together = torch.cat(parts)
    assert torch.equal(together[shares[0].real_keys(tokens.device)].sort(dim=0)[0], tokens.flatten(0, 1))
    assert TokenShare(Geometry(32, 32), Ranks(1, 4)).real_keys(tokens.device) is None


def test_rows_of_latents_are_shared_as_evenly_as_they_can_be() -> None:
    picture = torch.arange(7 * 8.0).view(1, 56)
    parts = [RowShare(7, Ranks(rank, 3)).cut(picture, 1, 8) for rank in range(3)]
    assert [part.shape[1] for part in parts] == [24, 16, 16]
    assert torch.equal(torch.cat(parts, 1), picture)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 8])
def test_the_models_file_names_the_groups_that_fit(size: int) -> None:
    from farm.models import load_model

    refuse_group(DitConfig(), size)
    assert size in load_model("soulx-flashtalk-14b").ranks
    refuse_film(Geometry(768, 448), size)


@pytest.mark.parametrize("size", [3, 6, 7])
def test_a_group_that_cannot_share_the_heads_is_refused_in_a_sentence(size: int) -> None:
    with pytest.raises(
        ConfigError, match=f"40 attention heads, which {size} ranks cannot share: give it 1, 2, 4, 5, 8"
    ):
        refuse_group(DitConfig(), size)
    with pytest.raises(ConfigError, match="4 attention heads, which 3 ranks cannot share: give it 1, 2, 4 cards"):
        refuse_group(TINY_DIT, 3)


def test_a_film_too_small_for_its_group_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="a film of 16x16 is too small for a worker of 4 cards"):
        refuse_film(Geometry(16, 16), 4)
