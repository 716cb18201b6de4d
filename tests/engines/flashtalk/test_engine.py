"""The engine on the contract: films, carries, settings, and what it says when something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from farm.errors import ConfigError, DeviceFault, EngineError, InputError, OutOfMemory  # noqa: E402
from workers.engines.flashtalk import make_engine  # noqa: E402
from workers.engines.flashtalk.faults import named_faults, require_finite  # noqa: E402

from .conftest import Speech  # noqa: E402


def load_tiny(tmp_path: Path, **settings: Any) -> Any:
    said = {"weights": "random", "architecture": "tiny", "device": "cpu", "cache": str(tmp_path / "c"), **settings}
    engine = make_engine(said)
    engine.load()
    return engine


def test_a_film_resumed_in_another_engine_is_the_film(tiny: Any, film: Any, tmp_path: Path) -> None:
    session = tiny.begin(film(), 0, None)
    first, carry, last = session.step(), session.carry(), session.step()
    assert (first.shape, last.shape) == ((28, 32, 32, 3), (17, 32, 32, 3))
    assert len(carry) < tiny.describe().carry_limit_bytes
    resumed = load_tiny(tmp_path).begin(film(), 28, carry)
    assert np.array_equal(resumed.step(), last)
    with pytest.raises(EngineError, match="film has ended"):
        session.step()


def test_a_segment_without_carry_starts_afresh_from_the_portrait(tiny: Any, film: Any) -> None:
    session = tiny.begin(film(settings={"steps": 1}), 28, None)
    assert session.step().shape == (17, 32, 32, 3)


def test_a_carry_fits_only_its_film_frame_and_engine(tiny: Any, film: Any) -> None:
    session = tiny.begin(film(settings={"steps": 1}, total_frames=84), 0, None)
    session.step()
    carry = session.carry()
    with pytest.raises(EngineError, match="another film"):
        tiny.begin(film(settings={"steps": 1}, total_frames=84, seed=8), 28, carry)
    with pytest.raises(EngineError, match="chunk 1, asked for was chunk 2"):
        tiny.begin(film(settings={"steps": 1}, total_frames=84), 56, carry)
    with pytest.raises(EngineError, match="damaged"):
        tiny.begin(film(settings={"steps": 1}, total_frames=84), 28, carry[:40])


def test_speech_and_seed_change_the_film(tiny: Any, film: Any) -> None:
    one = {"settings": {"steps": 1}}
    first = tiny.begin(film(**one), 0, None).step()
    assert np.array_equal(first, tiny.begin(film(**one), 0, None).step())
    assert not np.array_equal(first, tiny.begin(film(**one, seed=8), 0, None).step())
    assert not np.array_equal(first, tiny.begin(film(**one, audio=Speech(28_800, seed=1)), 0, None).step())


def test_what_a_job_may_not_ask_is_said_in_one_sentence(tiny: Any, film: Any) -> None:
    for changes, words in (
        ({"settings": {"steps": 0}}, "steps must be"),
        ({"settings": {"magic": 1}}, "no setting 'magic'"),
        ({"fps": (30, 1)}, "25 frames per second"),
        ({"width": 40}, "multiples of 16"),
        ({"width": 1280, "height": 1280}, "too large"),
        ({"portrait": Path("nowhere.png")}, "cannot read the portrait"),
    ):
        with pytest.raises(InputError, match=words):
            tiny.begin(film(**changes), 0, None)
    with pytest.raises(EngineError, match="cannot begin at frame 5"):
        tiny.begin(film(), 5, None)


def test_what_an_engine_cannot_be_loaded_with_is_a_config_error(tmp_path: Path) -> None:
    for settings, words in (
        ({"sped": 1}, "not loaded with 'sped'"),
        ({"weights": "random", "precision": "fp4"}, "precision must be one of"),
        ({}, "must name the folders"),
        ({"checkpoint": "a", "speech_checkpoint": str(tmp_path), "architecture": "tiny"}, "no checkpoint folder a"),
        ({"weights": "random", "device": "cpu"}, "needs a GPU"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_engine({"device": "cpu", **settings}).load()


def test_the_models_file_says_what_the_engine_describes(tiny: Any) -> None:
    import dataclasses

    from farm.models import load_model
    from workers.engines.flashtalk.settings import EngineSettings, JobSettings
    from workers.engines.upstream.flashtalk import KNOWN as UPSTREAM_KNOWS

    spec, said = load_model("soulx-flashtalk-14b"), tiny.describe()
    assert (spec.id, spec.frames.fps, spec.frames.chunk_frames) == (said.id, [25], said.chunk_frames)
    assert spec.frames.lookahead_samples == said.lookahead_samples
    assert spec.frames.carry_limit_bytes == said.carry_limit_bytes
    by_job = {name for name, setting in spec.settings.items() if setting.job}
    assert by_job == {field.name for field in dataclasses.fields(JobSettings)}
    ours = {field.name for field in dataclasses.fields(EngineSettings)}
    by_load = set(spec.settings) - by_job - {"engine"}
    assert ours <= by_load
    assert by_load - ours <= set(UPSTREAM_KNOWS)  # what only upstream's code takes
    for preset in spec.presets:
        JobSettings.from_mapping(spec.resolve(preset, {}))
        EngineSettings.from_mapping({"weights": "random", **spec.presets[preset].load})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), OutOfMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceFault),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceFault),
        (RuntimeError("shapes do not match"), RuntimeError),
    ],
)
def test_a_full_device_and_a_broken_one_are_told_apart(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind), named_faults():
        raise error


def test_pixels_that_are_not_numbers_fail_the_chunk_and_leave_the_engine_usable(tiny: Any, film: Any) -> None:
    with pytest.raises(EngineError, match="chunk 4 has pixels that are not numbers"):
        require_finite(False, 4)
    session = tiny.begin(film(settings={"steps": 1}), 0, None)
    with torch.inference_mode():
        session._film.condition[:] = float("nan")
    with pytest.raises(EngineError, match="not numbers"):
        session.step()
    tiny._films.clear()
    assert tiny.begin(film(settings={"steps": 1}), 0, None).step().shape == (28, 32, 32, 3)


def test_a_live_sessions_frames_are_those_of_the_film(tiny: Any, film: Any) -> None:
    sound = Speech(56 * 640)
    whole = tiny.begin(film(audio=sound, total_frames=56), 0, None)
    expected = np.concatenate([whole.step(), whole.step()])

    grows = Speech(0)
    session = tiny.begin(film(audio=grows, total_frames=10_000, live_frames=28), 0, None)
    made = []
    for heard in (28 * 640, 56 * 640):
        grows.samples = sound.samples[:heard]
        made.append(session.step())
    assert np.array_equal(np.concatenate(made), expected)
