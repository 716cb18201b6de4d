"""The engine over a checkout whose pipeline renders 33 frames at a time: SoulX-FlashHead and SoulX-FlashTalk.

Upstream's own loop keeps a whole film in memory, drops or doubles frames at its end and loads the model for every film.
Here the pipeline object is built once.  A chunk hears the eight seconds that end with its last frame, and what the next
chunk needs of it, the motion latents and two generators, is the carry.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from farm.errors import ConfigError, EngineError, InputError
from workers.engines.contract import Description, FilmRequest, LoadReport
from workers.engines.flashtalk.faults import named_faults, require_finite
from workers.engines.flashtalk.speech import gather_taps
from workers.engines.upstream.carry import CarryHead, pack, unpack
from workers.engines.upstream.platforms import Platform

FPS = 25
SAMPLE_RATE = 16_000
CHUNK_SPAN = 33  # frames that one chunk denoises, those that repeat the chunk before included
WINDOW_SAMPLES = 8 * SAMPLE_RATE
CARRY_LIMIT_BYTES = 1_000_000
ADAPTER_VERSION = 1  # raised whenever the same film would get other pixels


class Model(Protocol):
    """What differs between the checkouts."""

    id: str
    chunk_frames: int  # new frames of one chunk
    side_step: int
    carries_global_random: bool  # upstream draws where it names no generator

    def check(self) -> tuple[str, ...]:
        """Look at checkout, packages and checkpoint.  Returns notes.  Raises ConfigError."""
        ...

    def choose_platform(self) -> Platform:
        """Raises ConfigError."""
        ...

    def build(self, platform: Platform) -> Any:
        """Upstream's pipeline object with its weights on the device."""
        ...

    def read_job(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a film may choose.  Raises InputError."""
        ...

    def prepare(self, pipeline: Any, film: FilmRequest, job: Mapping[str, Any]) -> None:
        """Give the pipeline a film's portrait, size and seed.  Raises InputError."""
        ...

    @property
    def version(self) -> str:
        """Of checkout, weights and everything else that decides pixels."""
        ...


@dataclass(frozen=True)
class Beginning:
    """A film's state before its first chunk."""

    motion: torch.Tensor
    generator: torch.Tensor
    random: bytes


class ChunkedEngine:
    """One checkout's pipeline, kept warm."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.pipeline: Any = None
        self._film = ""
        self._beginning: Beginning | None = None
        self._current: ChunkedSession | None = None

    def load(self) -> LoadReport:
        """Check everything that can be checked, build the pipeline and render two chunks.

        Raises ConfigError for what is missing or wrong, OutOfMemory and DeviceFault.
        """
        started = time.monotonic()
        platform = self._model.choose_platform()
        notes = self._model.check()
        platform.begin()
        with named_faults():
            self.pipeline = self._model.build(platform)
            self.platform = platform
            built = time.monotonic() - started
            if platform.kind != "cpu":
                self._warm_up()
        notes += (f"weights {built:.1f} s", f"warm-up {time.monotonic() - started - built:.1f} s")
        return LoadReport(time.monotonic() - started, platform.memory_bytes(), notes)

    def _warm_up(self) -> None:
        """Two chunks of silence: the first has one motion latent and the second two, which compile apart."""
        import tempfile

        from PIL import Image

        class Silence:
            def __len__(self) -> int:
                return WINDOW_SAMPLES

            def read(self, start: int, stop: int) -> np.ndarray:
                return np.zeros(stop - start, np.float32)

        with tempfile.TemporaryDirectory() as folder:
            grey = Path(folder) / "grey.png"
            side = 512
            Image.new("RGB", (side, side), (128, 128, 128)).save(grey)
            frames = 2 * self._model.chunk_frames
            film = FilmRequest(grey, Silence(), frames, *self.warm_size, (FPS, 1), "", 0, {}, {})
            session = self.begin(film, 0, None)
            session.step()
            session.step()

    @property
    def warm_size(self) -> tuple[int, int]:
        return getattr(self._model, "default_size", (512, 512))

    def describe(self) -> Description:
        """Known after `load`."""
        self._require_loaded()
        return Description(
            id=self._model.id,
            version=self.version,
            fps=(FPS, 1),
            chunk_frames=self._model.chunk_frames,
            lookahead_samples=0,
            pixel_format="rgb24",
            carry_limit_bytes=CARRY_LIMIT_BYTES,
            device=self.platform.name(),
            limits={"fps": [FPS], "side_step": self._model.side_step},
        )

    @property
    def version(self) -> str:
        dtype = str(self.platform.dtype).removeprefix("torch.")
        return f"upstream{ADAPTER_VERSION}-{self._model.version}-{dtype}"

    def begin(self, film: FilmRequest, first_frame: int, carry: bytes | None) -> ChunkedSession:
        """See contract.Engine.begin."""
        self._require_loaded()
        model = self._model
        if tuple(film.fps) != (FPS, 1):
            raise InputError(f"this model renders {FPS} frames per second, not {film.fps[0]}/{film.fps[1]}")
        if film.width % model.side_step or film.height % model.side_step:
            raise InputError(
                f"this model cannot render {film.width}x{film.height}: both sides must be multiples of"
                f" {model.side_step} pixels"
            )
        if first_frame % model.chunk_frames or not 0 <= first_frame < film.total_frames:
            raise EngineError(f"a segment cannot begin at frame {first_frame}: chunks have {model.chunk_frames} frames")
        job = model.read_job(film.settings)
        chunk = first_frame // model.chunk_frames
        self._current = None
        key = film_key(film, job)
        with named_faults():
            start = self._prepare(film, job, key)
            head = CarryHead(self.version, key, chunk)
            if carry is None:
                self._restore(start.motion.clone(), start.generator, start.random)
            else:
                tensors, states = unpack(carry, head)
                generator = torch.frombuffer(bytearray(states["generator"]), dtype=torch.uint8)
                motion = tensors["motion"].to(self.platform.device)
                self._restore(motion, generator, states.get("random", start.random))
        self._current = ChunkedSession(self, film, key, chunk)
        return self._current

    def _prepare(self, film: FilmRequest, job: Mapping[str, Any], key: str) -> Beginning:
        """The film's state before its first chunk; remembered, because the next segment is most often of this film."""
        if self._beginning is not None and self._film == key:
            return self._beginning
        self._film, self._beginning = "", None
        # Upstream's encoder for lite draws from the generator that nobody names: seeded, one seed is one film.
        torch.manual_seed(film.seed)
        self._model.prepare(self.pipeline, film, job)
        self._beginning = Beginning(
            self.pipeline.latent_motion_frames.clone(), self.pipeline.generator.get_state(), self._random_state()
        )
        self._film = key
        return self._beginning

    def _random_state(self) -> bytes:
        return self.platform.random_state() if self._model.carries_global_random else b""

    def _restore(self, motion: torch.Tensor, generator: torch.Tensor, random: bytes) -> None:
        self.pipeline.latent_motion_frames = motion
        self.pipeline.generator.set_state(generator)
        if random:
            self.platform.restore_random(random)

    def render(self, session: ChunkedSession, chunk: int) -> np.ndarray:
        """The next chunk's new frames, uint8 [chunk_frames, H, W, 3]."""
        if session is not self._current:
            raise EngineError("another segment was begun on this engine meanwhile")
        stop = self._model.chunk_frames * (SAMPLE_RATE // FPS) * (chunk + 1)
        heard = session.film.audio.read(stop - WINDOW_SAMPLES, stop).astype(np.float64)
        with named_faults(), torch.no_grad():
            features = self.pipeline.preprocess_audio(heard, sr=SAMPLE_RATE, fps=FPS)
            if features is None or features.shape[0] != WINDOW_SAMPLES * FPS // SAMPLE_RATE:
                raise EngineError(
                    "the checkout's speech encoder gave another number of features than this engine needs"
                )
            taps = gather_taps(features)[None].contiguous()
            pixels = self.pipeline.generate(taps.to(self.platform.device))  # [3, frames, H, W] in [-1, 1]
            repeated = pixels.shape[1] - self._model.chunk_frames
            if repeated < 0:
                raise EngineError(
                    f"the checkout rendered {pixels.shape[1]} frames, fewer than a chunk's {self._model.chunk_frames}"
                )
            pixels = pixels[:, repeated:]
            require_finite(bool(torch.isfinite(pixels).all()), chunk)
            levels = (((pixels + 1) / 2).permute(1, 2, 3, 0).clip(0, 1) * 255).to(torch.uint8).contiguous()
            return levels.cpu().numpy()

    def take_carry(self, session: ChunkedSession, chunk: int) -> bytes:
        if session is not self._current:
            raise EngineError("another segment was begun on this engine meanwhile")
        with named_faults():
            states = {"generator": bytes(self.pipeline.generator.get_state().cpu().numpy().tobytes())}
            if self._model.carries_global_random:
                states["random"] = self.platform.random_state()
            head = CarryHead(self.version, session.key, chunk)
            return pack(head, {"motion": self.pipeline.latent_motion_frames}, states)

    @property
    def chunk_frames(self) -> int:
        return self._model.chunk_frames

    def _require_loaded(self) -> None:
        if self.pipeline is None:
            raise EngineError("the engine was not loaded")


class ChunkedSession:
    """One segment being rendered."""

    def __init__(self, engine: ChunkedEngine, film: FilmRequest, key: str, chunk: int) -> None:
        self.film = film
        self.key = key
        self._engine = engine
        self._next = chunk
        self._chunks = math.ceil(film.total_frames / engine.chunk_frames)

    def step(self) -> np.ndarray:
        """The next chunk's frames, uint8 [n, H, W, 3]."""
        if self._next >= self._chunks:
            raise EngineError(f"the film has ended after {self._chunks} chunks")
        frames = self._engine.render(self, self._next)
        count = min(len(frames), self.film.total_frames - self._next * self._engine.chunk_frames)
        self._next += 1
        return np.ascontiguousarray(frames[:count])

    def carry(self) -> bytes:
        """The state at this chunk boundary."""
        return self._engine.take_carry(self, self._next)


def film_key(film: FilmRequest, job: Mapping[str, Any]) -> str:
    """Digest of everything but the sound that decides a film's pixels."""
    try:
        content = film.portrait.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the portrait {film.portrait}: {error.strerror}") from None
    said = json.dumps([film.width, film.height, film.prompt, film.seed, dict(job)], sort_keys=True)
    return hashlib.sha256(hashlib.sha256(content).digest() + said.encode()).hexdigest()[:32]


def read_job(settings: Mapping[str, Any], known: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A job's settings over their defaults.  Raises InputError."""
    for name in settings:
        if name not in known:
            raise InputError(f"{model} has no setting {name!r}; it has {', '.join(sorted(known))}")
    job = {**known, **settings}
    steps, match = job["steps"], job["colour_match"]
    if isinstance(steps, bool) or not isinstance(steps, int | float) or steps != int(steps) or not 2 <= steps <= 50:
        raise InputError(f"steps must be a whole number from 2 to 50, not {steps!r}")
    if isinstance(match, bool) or not isinstance(match, int | float) or not 0 <= match <= 1:
        raise InputError(f"colour_match must be a number from 0 to 1, not {match!r}")
    return job


def compare_parameters(path: Path, expected: Mapping[str, float]) -> None:
    """Raises ConfigError when the checkout's own parameters say something that this engine does not render by."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        name, colon, value = line.partition(":")
        if not colon or name.strip() not in expected:
            continue
        try:
            found = float(value.split("#")[0])
        except ValueError:
            continue
        if found != expected[name.strip()]:
            raise ConfigError(
                f"{path}: {name.strip()} is {found:g}, this engine renders with {expected[name.strip()]:g}; restore the"
                " file as upstream has it"
            )
