"""SoulX-LiveAct on two cards through a stand-in checkout: two real processes render one film together."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from farm.errors import ConfigError, DeviceFault, EngineError, InputError
from farm.models import load_model
from workers.host.frames import read_frames
from workers.host.parent import Host, Progress
from workers.rendering import mismatch

from . import standin_liveact
from .conftest import FRAME_BYTES, StartHost, film, render
from .standin_liveact import liveact_settings

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

MODULE = "workers.engines.upstream.liveact"
STEP = 32
FRAMES = 3 * STEP + 9
UNSQUEEZED = 53  # frames of the first two blocks, before which no memory is squeezed


@pytest.fixture(scope="module")
def shop(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standin_liveact.liveact_shop(tmp_path_factory.mktemp("liveact pair"))


def start(start_host: StartHost, shop: Path, ranks: int = 2, **changes: Any) -> Host:
    environment = {"PYTHONPATH": str(shop / "site"), "SPOILED_RANK_FILE": str(shop / "spoiled")}
    return start_host(MODULE, liveact_settings(shop, **changes), ranks=ranks, **environment)


def ranks_of(host: Host) -> list[psutil.Process]:
    """Rank 0's process first."""
    assert host.pid is not None
    return sorted(psutil.Process(host.pid).children(), key=lambda process: int(process.environ()["RANK"]))


@pytest.fixture(scope="module")
def shared_pair(shop: Path, start_host: StartHost) -> Host:
    return start(start_host, shop)


@pytest.fixture
def pair(shared_pair: Host) -> Host:
    if not shared_pair.is_alive:
        shared_pair.start()
    return shared_pair


@pytest.fixture(scope="module")
def whole(shared_pair: Host, material: Path) -> tuple[bytes, bytes]:
    return render(shared_pair, film(material, FRAMES), 0, FRAMES)


@pytest.mark.slow
def test_until_the_memory_is_squeezed_two_cards_render_one_cards_film_and_say_that_theirs_is_another(
    pair: Host, shop: Path, material: Path, start_host: StartHost, whole: tuple[bytes, bytes]
) -> None:
    alone = start(start_host, shop, ranks=1)
    one, carry = render(alone, film(material, FRAMES), 0, STEP)
    one += render(alone, film(material, FRAMES), STEP, STEP, carry)[0]
    assert alone.loaded is not None and pair.loaded is not None
    version = alone.loaded.description["version"]
    alone.kill()
    count = UNSQUEEZED * FRAME_BYTES
    ours, theirs = (np.frombuffer(frames[:count], np.uint8).astype(int) for frames in (whole[0], one))
    assert np.abs(ours - theirs).max() <= 2
    assert ours.std() > 1
    assert pair.loaded.description["version"] == f"{version}-ranks2"
    assert pair.loaded.description["device"] == "2 x cpu"
    assert mismatch(load_model("soulx-liveact-14b"), "quality", pair.loaded) is None
    with pytest.raises(EngineError, match=f"made by engine {version}, this one is {version}-ranks2"):
        render(pair, film(material, FRAMES), STEP, STEP, carry)


@pytest.mark.slow
def test_a_group_renders_exact_frames_and_one_seed_is_one_film(
    pair: Host, material: Path, whole: tuple[bytes, bytes]
) -> None:
    assert len(whole[0]) == FRAMES * FRAME_BYTES
    for frames in (1, 22, 64):
        assert len(render(pair, film(material, frames), 0, frames)[0]) == frames * FRAME_BYTES
    first, carry = render(pair, film(material, FRAMES), 0, STEP)
    rest, end = render(pair, film(material, FRAMES), STEP, FRAMES - STEP, carry)  # in memory, on both
    assert (first + rest, end) == whole
    assert render(pair, film(material, FRAMES, seed=8), 0, FRAMES)[0] != whole[0]
    scaled = {"settings": {"audio_cfg": 2.0}}
    assert render(pair, film(material, FRAMES, **scaled), 0, FRAMES)[0] != whole[0]


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_group_and_a_replay_gives_the_film(
    pair: Host, material: Path, whole: tuple[bytes, bytes]
) -> None:
    first, carry = render(pair, film(material, FRAMES), 0, STEP)
    ranks, killed = ranks_of(pair), threading.Event()

    def kill(progress: Progress) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            ranks[1].kill()
        killed.set()

    with pytest.raises(DeviceFault, match="rank 1 of 2 was killed by SIGKILL, so all were ended"):
        read_frames(
            pair,
            film(material, FRAMES),
            first_frame=STEP,
            frames=FRAMES - STEP,
            carry=carry,
            take=lambda block: killed.wait(60),  # so that the film cannot end before
            on_progress=kill,
        )
    psutil.wait_procs(ranks, timeout=60)
    assert not any(rank.is_running() for rank in ranks)
    pair.start()
    rest, end = render(pair, film(material, FRAMES), STEP, FRAMES - STEP, carry)
    assert (first + rest, end) == whole


@pytest.mark.slow
def test_each_rank_writes_its_part_and_where_one_is_gone_both_denoise_again(
    shop: Path, material: Path, start_host: StartHost, whole: tuple[bytes, bytes], tmp_path: Path
) -> None:
    one = start(start_host, shop, carry="disk", carry_folder=str(tmp_path))
    first, carry = render(one, film(material, FRAMES), 0, STEP)
    second, carry = render(one, film(material, FRAMES), STEP, STEP, carry)
    one.kill()
    names = [f"step-00000{step}{rank}.pt" for step in (1, 2) for rank in ("", ".rank1")]
    assert [file.name for file in sorted(tmp_path.rglob("*.pt"))] == names
    other = start(start_host, shop, carry="disk", carry_folder=str(tmp_path))
    rest, _ = render(other, film(material, FRAMES), 2 * STEP, FRAMES - 2 * STEP, carry)
    assert first + second + rest == whole[0]
    for file in tmp_path.rglob("step-000002.pt"):
        said = torch.load(file, weights_only=True)
        said["frames"][0][0, 0, 0] = 200 - said["frames"][0][0, 0, 0]
        torch.save(said, file)
    assert render(other, film(material, FRAMES), 2 * STEP, FRAMES - 2 * STEP, carry)[0] != rest, "nothing was read"
    for file in tmp_path.rglob("step-000002.rank1.pt"):
        file.unlink()
    assert render(other, film(material, FRAMES), 2 * STEP, FRAMES - 2 * STEP, carry)[0] == rest
    other.kill()


@pytest.mark.slow
def test_what_rank_0_cannot_read_all_refuse_and_the_group_stays_warm(pair: Host, material: Path) -> None:
    ranks = [rank.pid for rank in ranks_of(pair)]
    _, carry = render(pair, film(material, FRAMES), 0, STEP)
    for error, sentence, changes, first, state in (
        (InputError, "cannot read the portrait", {"portrait": str(material / "none.png")}, 0, None),
        (InputError, "has no setting 'wings'", {"settings": {"wings": 1}}, 0, None),
        (EngineError, "belongs to another film", {"seed": 9}, STEP, carry),
        (EngineError, "20 and 24 frames per second need torchaudio|No module", {"fps": [24, 1]}, 0, None),
    ):
        with pytest.raises(error, match=sentence):
            render(pair, film(material, FRAMES, **changes), first, STEP, state)
    assert len(render(pair, film(material, 5), 0, 5)[0]) == 5 * FRAME_BYTES
    assert [rank.pid for rank in ranks_of(pair)] == ranks


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_pixels_that_one_rank_alone_finds_to_be_no_numbers_fail_the_film_and_leave_the_group_warm(
    pair: Host, shop: Path, material: Path, whole: tuple[bytes, bytes], rank: str
) -> None:
    ranks = [one.pid for one in ranks_of(pair)]
    spoiled = shop / "spoiled"
    spoiled.write_text(rank)
    try:
        with pytest.raises(EngineError, match=r"pixels that are not numbers|rank 1 could not decode"):
            render(pair, film(material, FRAMES), 0, FRAMES)
    finally:
        spoiled.unlink()
    assert render(pair, film(material, FRAMES), 0, FRAMES)[0] == whole[0]
    assert [one.pid for one in ranks_of(pair)] == ranks


@pytest.mark.parametrize(
    ("ranks", "changes", "sentence"),
    [
        (2, {"fp8_kv_cache": True}, "fp8_kv_cache needs a worker of one card: with two the checkout attends to"),
        (2, {"fp4_gemm": True, "block_offload": True}, "fp4_gemm with block_offload needs a worker of one card"),
        (2, {"nproc_per_node": 4}, 'nproc_per_node is 4, and this worker\'s devices are 2; they decide: .*"cuda:0,1"'),
        (1, {"ulysses_degree": 2}, "ulysses_degree is 2, and this worker's devices are 1"),
        (2, {"ring_degree": 2}, "ring_degree can only be 1 here: the checkout's attention is cut by heads alone"),
        (2, {"num_processes": "two"}, "num_processes must be a whole number of cards, not 'two'"),
    ],
    ids=str,
)
def test_what_two_cards_cannot_do_is_refused_before_anything_is_loaded(
    shop: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, changes: dict[str, Any], sentence: str
) -> None:
    from workers.engines.upstream.liveact import make_engine

    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(ConfigError, match=sentence):
        make_engine(liveact_settings(shop, **changes))


@pytest.mark.parametrize(
    ("heads", "cards", "sentence"),
    [
        (40, 4, "with 1 or 2 cards, not with 4"),
        (40, 3, "not with 3"),
        (5, 2, "5 attention heads, which 2 cards cannot"),
    ],
)
def test_a_number_of_cards_that_the_checkout_cannot_use_is_refused(heads: int, cards: int, sentence: str) -> None:
    from workers.engines.upstream.liveact_pair import refuse_cards

    with pytest.raises(ConfigError, match=sentence):
        refuse_cards(heads, cards)
    for fitting in (1, 2):
        refuse_cards(40, fitting)


def test_omnirts_numbers_of_cards_are_taken_where_they_are_the_workers(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.engines.upstream.liveact import make_engine

    monkeypatch.setenv("WORLD_SIZE", "2")
    make_engine(
        liveact_settings(shop, nproc_per_node=2, num_processes="2", sequence_parallel_degree=2, ulysses_degree=2)
    )
