"""The engine over a pipeline of 33 frames, with a pipeline of ours: what is begun ahead changes no frame."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from farm.errors import EngineError, InputError  # noqa: E402
from workers.engines.contract import FilmRequest  # noqa: E402
from workers.engines.upstream import platforms  # noqa: E402
from workers.engines.upstream.chunked import KEPT_FILMS, ChunkedEngine  # noqa: E402

CHUNK, SIDE = 28, 32


class Pipeline:
    """Draws from both generators, and its next chunk follows from the one before."""

    def __init__(self, draws_unnamed: bool) -> None:
        self.draws_unnamed = draws_unnamed
        self.device = "cpu"

    def prepare(self, path: Path, seed: int, strength: float) -> None:
        self.picture = torch.tensor(np.array(Image.open(path).resize((SIDE, SIDE)))).float() / 127.5 - 1
        self.generator = torch.Generator().manual_seed(seed)
        self.strength = strength
        self.latent_motion_frames = torch.ones(4, 1) + (torch.randn(4, 1) if self.draws_unnamed else 0)

    def preprocess_audio(self, samples: np.ndarray, sr: int, fps: int) -> torch.Tensor:
        return torch.from_numpy(samples).view(-1, sr // fps).abs().mean(1).float().view(-1, 1, 1).expand(-1, 12, 768)

    def generate(self, taps: torch.Tensor) -> torch.Tensor:
        level = self.latent_motion_frames.mean() * 0.1 + torch.randn(33, generator=self.generator) * 0.01
        frames = self.picture[None] * self.strength * 0.1 + (level + taps[0, :, 2, 0, 0]).view(-1, 1, 1, 1)
        unnamed = torch.randn(4, 2) if self.draws_unnamed else 0
        self.latent_motion_frames = frames.mean() + torch.randn(4, 2, generator=self.generator) + unnamed
        return frames.permute(3, 0, 1, 2).contiguous()


class Model:
    """The least that an engine of this kind needs; writes down each portrait that it prepares."""

    id = "small"
    chunk_frames = CHUNK
    side_step = 16
    version = "1"

    def __init__(self, carries_global_random: bool) -> None:
        self.carries_global_random = carries_global_random
        self.prepared: list[str] = []

    def check(self) -> tuple[str, ...]:
        return ()

    def choose_platform(self) -> platforms.Platform:
        platform = platforms.Platform("cpu")
        platform.begin = lambda: None  # type: ignore[method-assign]  (it would change this process)
        return platform

    def build(self, platform: platforms.Platform) -> Pipeline:
        return Pipeline(self.carries_global_random)

    def read_job(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"strength": 1.0, **settings}

    def prepare(self, pipeline: Pipeline, film: FilmRequest, job: Mapping[str, Any]) -> None:
        if film.portrait.stat().st_size < 20:
            raise InputError("no picture")
        self.prepared.append(film.portrait.name)
        pipeline.prepare(film.portrait, film.seed, job["strength"])


class Sound:
    def __init__(self, gain: float) -> None:
        self._samples = (gain * np.random.default_rng(2).standard_normal(16_000 * 10)).astype(np.float32)

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, start: int, stop: int) -> np.ndarray:
        held = self._samples[max(start, 0) : max(stop, 0)]
        before = max(0, -start)
        return np.pad(held, (before, stop - start - before - len(held)))


@pytest.fixture(params=[False, True], ids=["named", "unnamed"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


def engine_of(model: Model, ahead: bool) -> ChunkedEngine:
    engine = ChunkedEngine(model)
    engine.load()
    engine.renders_ahead = ahead  # as on a CUDA device
    return engine


@pytest.fixture
def request_film(tmp_path: Path) -> Any:
    def make(frames: int, *, portrait: str = "a.png", seed: int = 7, gain: float = 0.1, **settings: Any) -> FilmRequest:
        path = tmp_path / portrait
        if not path.exists():
            draw = np.random.default_rng(len(list(tmp_path.iterdir())))
            Image.fromarray(draw.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(path)
        return FilmRequest(path, Sound(gain), frames, SIDE, SIDE, (25, 1), "", seed, settings, {})

    return make


def render(
    engine: ChunkedEngine, film: FilmRequest, first: int = 0, carry: bytes | None = None, chunks: int = 9
) -> Any:
    """Frames of up to `chunks` chunks, and the carry behind them."""
    session = engine.begin(film, first, carry)
    todo = min(chunks, -(-(film.total_frames - first) // CHUNK))
    return np.concatenate([session.step() for _ in range(todo)]), session.carry()


def test_a_chunk_begun_ahead_changes_neither_frames_nor_carries(model: Model, request_film: Any) -> None:
    film = request_film(4 * CHUNK + 3)
    plain, plain_end = render(engine_of(model, ahead=False), film)
    ahead, ahead_end = render(engine_of(model, ahead=True), film)
    assert len(plain) == 4 * CHUNK + 3
    assert np.array_equal(plain, ahead)
    assert plain_end == ahead_end


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same process", "another process"])
def test_a_segment_goes_on_with_the_chunk_that_was_begun_behind_it(
    model: Model, request_film: Any, elsewhere: bool
) -> None:
    film = request_film(4 * CHUNK)
    engine = engine_of(model, ahead=True)
    whole, end = render(engine, film)
    first, carry = render(engine, film, chunks=2)
    calls: list[int] = []
    other = engine_of(model, ahead=True) if elsewhere else engine
    generate = other.pipeline.generate
    other._built["generate"] = lambda taps: calls.append(1) or generate(taps)
    rest, last = render(other, film, 2 * CHUNK, carry)
    assert np.array_equal(whole, np.concatenate([first, rest]))
    assert last == end
    assert len(calls) == (2 if elsewhere else 1)  # here the third chunk was on its way already


def test_a_chunk_begun_ahead_is_not_taken_for_other_sound_or_another_film(model: Model, request_film: Any) -> None:
    film, louder = request_film(4 * CHUNK), request_film(4 * CHUNK, gain=0.3)
    engine, plain = engine_of(model, ahead=True), engine_of(model, ahead=False)
    _, carry = render(engine, film, chunks=2)
    with_other_sound, _ = render(engine, louder, 2 * CHUNK, carry)
    assert np.array_equal(with_other_sound, render(plain, louder, 2 * CHUNK, carry)[0])
    _, carry = render(engine, film, chunks=2)
    with pytest.raises(EngineError, match="belongs to another film"):
        engine.begin(request_film(4 * CHUNK, seed=8), 2 * CHUNK, carry)


def test_a_portrait_is_prepared_once_and_each_film_keeps_its_own_settings(model: Model, request_film: Any) -> None:
    engine = engine_of(model, ahead=True)
    films = [
        request_film(CHUNK),
        request_film(CHUNK, portrait="b.png"),
        request_film(CHUNK, strength=0.5),
        request_film(CHUNK, seed=8),
    ]
    once = [render(engine, film) for film in films]
    prepared = len(model.prepared)
    # Where upstream draws from the generator that it does not name, a portrait's encoding depends on the seed.
    assert prepared == (4 if model.carries_global_random else 3)
    for film, (frames, end) in zip(reversed(films), reversed(once), strict=True):
        again, again_end = render(engine, film)
        assert np.array_equal(frames, again)
        assert end == again_end
    assert len(model.prepared) == prepared
    assert len({frames.tobytes() for frames, _ in once}) == 4


def test_only_the_last_portraits_are_kept_and_a_bad_one_leaves_the_engine_warm(
    model: Model, request_film: Any, tmp_path: Path
) -> None:
    engine = engine_of(model, ahead=False)
    frames, _ = render(engine, request_film(CHUNK))
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match="no picture"):
        engine.begin(request_film(CHUNK, portrait="bad.png"), 0, None)
    for number in range(KEPT_FILMS):
        engine.begin(request_film(CHUNK, portrait=f"{number}.png"), 0, None)
    assert np.array_equal(frames, render(engine, request_film(CHUNK))[0])
    assert model.prepared.count("a.png") == 2


def test_constants_of_a_checkout_are_made_once_with_equal_results() -> None:
    written = types.ModuleType("colours")
    exec(
        "import torch\n"
        "def weigh(x, scale=2.0):\n"
        "    return x @ torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=x.dtype, device=x.device) * scale\n"
        "def whiten(x):\n"
        "    return torch.clamp(weigh(x), 0, 1)\n",
        written.__dict__,
    )
    x = torch.rand(3, 2)
    plain = written.whiten(x)
    platforms.keep_constants(written, ("weigh", "absent"))
    assert torch.equal(written.whiten(x), plain)
    held = written.weigh.__globals__["torch"]
    assert held.tensor([1.0], dtype=torch.float32) is held.tensor([1.0], dtype=torch.float32)
    assert held.tensor([1.0], dtype=torch.float32) is not held.tensor([1.0], dtype=torch.float64)
    assert written.torch is torch
