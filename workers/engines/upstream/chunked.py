"""The engine over a checkout whose pipeline renders 33 frames at a time: SoulX-FlashHead and SoulX-FlashTalk.

Upstream's own loop keeps a whole film in memory, drops or doubles frames at its end and loads the model for every film.
Here the pipeline object is built once.  A chunk hears the eight seconds that end with its last frame, and what the next
chunk needs of it, the motion latents and two generators, is the carry.

On a CUDA device the next chunk is begun before the one that was asked for is waited for, so that the device does not
stand still while sound is read, frames are copied and the encoder takes them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from farm.errors import ConfigError, EngineError, InputError
from workers.engines.contract import Description, FilmRequest, LoadReport
from workers.engines.flashtalk.conditioners import digest
from workers.engines.flashtalk.faults import named_faults, require_finite
from workers.engines.flashtalk.speech import gather_taps
from workers.engines.upstream.carry import CarryHead, pack, unpack
from workers.engines.upstream.platforms import Platform

FPS = 25
SAMPLE_RATE = 16_000
CHUNK_SPAN = 33  # frames that one chunk denoises, those that repeat the chunk before included
WINDOW_SAMPLES = 8 * SAMPLE_RATE
CARRY_LIMIT_BYTES = 1_000_000
KEPT_FILMS = 16  # prepared portraits, a few megabytes each
ADAPTER_VERSION = 3  # raised whenever the same film would get other pixels


class Model(Protocol):
    """What differs between the checkouts."""

    id: str
    chunk_frames: int  # new frames of one chunk
    side_step: int
    # Upstream draws where it names no generator.  Where it does not, a prepared portrait is the same for every seed.
    carries_global_random: bool

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

    attributes: Mapping[str, Any]  # what preparing gave the pipeline
    motion: torch.Tensor
    random: bytes


@dataclass
class Rendered:
    """A chunk that the device works on or has finished."""

    chunk: int
    frames: torch.Tensor  # uint8 [chunk_frames, H, W, 3] on the host, pinned where there is a CUDA device
    finite: torch.Tensor  # bool [] on the host
    motion: torch.Tensor  # the next chunk's motion latents
    motion_on_host: torch.Tensor
    generator: torch.Tensor  # its state behind this chunk
    random: bytes
    heard: str  # digest of the samples
    done: Any  # device event; None where this chunk was waited for


class ChunkedEngine:
    """One checkout's pipeline, kept warm."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.pipeline: Any = None
        self._built: dict[str, Any] = {}
        self._beginnings: OrderedDict[str, Beginning] = OrderedDict()
        self._current: ChunkedSession | None = None
        self._ahead: tuple[str, Rendered] | None = None  # digest of a carry, and the chunk begun behind it
        self.renders_ahead = False

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
            self._built = dict(vars(self.pipeline))
            self.platform = platform
            platform.give_back()  # FlashTalk's text encoder alone was in float32 first, 23 GB
            self.renders_ahead = platform.kind == "cuda"
            if self.renders_ahead:
                self._aside = torch.cuda.Stream()
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
        kept, self._ahead = self._ahead, None
        key = film_key(film, job)
        session = ChunkedSession(self, film, key, chunk)
        with named_faults():
            start = self._prepare(film, job)
            if carry is None:
                generator = self.pipeline.generator.manual_seed(film.seed).get_state()
                self._restore(start.motion.clone(), generator, start.random)
                self._current = session
                return session
            tensors, states = unpack(carry, CarryHead(self.version, key, chunk))
            ahead = kept[1] if kept is not None and kept[0] == digest(carry) else None
            if ahead is not None and ahead.heard == digest(self._window(film, chunk).tobytes()):
                session.ahead = ahead
                self._restore(ahead.motion, ahead.generator, ahead.random)
            else:
                generator = torch.frombuffer(bytearray(states["generator"]), dtype=torch.uint8)
                motion = tensors["motion"].to(self.platform.device)
                self._restore(motion, generator, states.get("random", start.random))
        self._current = session
        return session

    def _prepare(self, film: FilmRequest, job: Mapping[str, Any]) -> Beginning:
        """The film's state before its first chunk, of this film's portrait or made and remembered."""
        seeded = self._model.carries_global_random
        key = film_key(film, job, with_seed=seeded)
        known = self._beginnings.get(key)
        if known is None:
            vars(self.pipeline).clear()
            vars(self.pipeline).update(self._built)
            # Upstream's encoder for lite draws from the generator that nobody names: seeded, one seed is one film.
            torch.manual_seed(film.seed)
            self._model.prepare(self.pipeline, film, job)
            made = {
                name: value
                for name, value in vars(self.pipeline).items()
                if name not in self._built or self._built[name] is not value
            }
            random = self.platform.random_state() if seeded else b""
            known = Beginning(made, self.pipeline.latent_motion_frames.clone(), random)
            self._beginnings[key] = known
            while len(self._beginnings) > KEPT_FILMS:
                self._beginnings.popitem(last=False)
        else:
            vars(self.pipeline).clear()
            vars(self.pipeline).update({**self._built, **known.attributes})
        self._beginnings.move_to_end(key)
        return known

    def _restore(self, motion: torch.Tensor, generator: torch.Tensor, random: bytes) -> None:
        self.pipeline.latent_motion_frames = motion
        self.pipeline.generator.set_state(generator)
        if random:
            self.platform.restore_random(random)

    def _window(self, film: FilmRequest, chunk: int) -> np.ndarray:
        """The eight seconds that a chunk hears, float32 [128000]."""
        stop = self._model.chunk_frames * (SAMPLE_RATE // FPS) * (chunk + 1)
        return film.audio.read(stop - WINDOW_SAMPLES, stop)

    def require_current(self, session: ChunkedSession) -> None:
        """Raises EngineError when another segment was begun meanwhile, whose state stands in the pipeline."""
        if session is not self._current:
            raise EngineError("another segment was begun on this engine meanwhile")

    def start(self, film: FilmRequest, chunk: int) -> Rendered:
        """Begin the chunk that follows the pipeline's state; on a CUDA device this returns while it is rendered."""
        samples = self._window(film, chunk)
        with torch.no_grad():
            taps = self._hear(samples)
            pixels = self.pipeline.generate(taps)  # [3, frames, H, W] in [-1, 1]
            repeated = pixels.shape[1] - self._model.chunk_frames
            if repeated < 0:
                raise EngineError(
                    f"the checkout rendered {pixels.shape[1]} frames, fewer than a chunk's {self._model.chunk_frames}"
                )
            pixels = pixels[:, repeated:]
            finite = torch.isfinite(pixels).all()
            levels = (((pixels + 1) / 2).permute(1, 2, 3, 0).clip(0, 1) * 255).to(torch.uint8).contiguous()
            motion = self.pipeline.latent_motion_frames
            pinned = self.platform.kind == "cuda"
            on_host = [copy_out(tensor, pinned) for tensor in (levels, finite, motion)]
            done = None
            if pinned:
                done = torch.cuda.Event()
                done.record()
        random = self.platform.random_state() if self._model.carries_global_random else b""
        generator = self.pipeline.generator.get_state()
        frames, flag, state = on_host
        return Rendered(chunk, frames, flag, motion, state, generator, random, digest(samples.tobytes()), done)

    def _hear(self, samples: np.ndarray) -> torch.Tensor:
        """The chunk's features, on a stream of its own: they are copied and made beside the chunk before."""
        if self.platform.kind != "cuda":
            return self._encode_speech(samples).to(self.platform.device)
        main = torch.cuda.current_stream()
        with torch.cuda.stream(self._aside):
            taps = self._encode_speech(samples)
            taps.record_stream(main)
        main.wait_stream(self._aside)
        return taps

    def _encode_speech(self, samples: np.ndarray) -> torch.Tensor:
        features = self.pipeline.preprocess_audio(samples.astype(np.float64), sr=SAMPLE_RATE, fps=FPS)
        if features is None or features.shape[0] != WINDOW_SAMPLES * FPS // SAMPLE_RATE:
            raise EngineError("the checkout's speech encoder gave another number of features than this engine needs")
        return gather_taps(features)[None].contiguous()

    def leave_ahead(self, carry: bytes, rendered: Rendered | None) -> None:
        """Keep a chunk that was begun beyond a segment's end for whoever comes with this carry."""
        self._ahead = (digest(carry), rendered) if rendered is not None else None

    def state_now(self) -> tuple[torch.Tensor, torch.Tensor, bytes]:
        """Motion latents, the generator's state and the other generator's, as the pipeline stands."""
        random = self.platform.random_state() if self._model.carries_global_random else b""
        return self.pipeline.latent_motion_frames, self.pipeline.generator.get_state(), random

    @property
    def chunk_frames(self) -> int:
        return self._model.chunk_frames

    def _require_loaded(self) -> None:
        if self.pipeline is None:
            raise EngineError("the engine was not loaded")


class ChunkedSession:
    """One segment being rendered; on a CUDA device one chunk ahead of what was asked for."""

    def __init__(self, engine: ChunkedEngine, film: FilmRequest, key: str, chunk: int) -> None:
        self.ahead: Rendered | None = None
        self._film = film
        self._key = key
        self._engine = engine
        self._next = chunk
        self._chunks = math.ceil(film.total_frames / engine.chunk_frames)
        self._last: Rendered | None = None

    def step(self) -> np.ndarray:
        """The next chunk's frames, uint8 [n, H, W, 3]."""
        if self._next >= self._chunks:
            raise EngineError(f"the film has ended after {self._chunks} chunks")
        engine = self._engine
        engine.require_current(self)
        with named_faults():
            now, self.ahead = self.ahead or engine.start(self._film, self._next), None
            # A live session's next chunk has not been spoken yet.
            if engine.renders_ahead and not self._film.live_frames and self._next + 1 < self._chunks:
                self.ahead = engine.start(self._film, self._next + 1)
            if now.done is not None:
                now.done.synchronize()
        require_finite(bool(now.finite), now.chunk)
        self._last, self._next = now, now.chunk + 1
        count = min(len(now.frames), self._film.total_frames - now.chunk * engine.chunk_frames)
        return now.frames[:count].numpy()

    def carry(self) -> bytes:
        """The state at this chunk boundary."""
        engine, last = self._engine, self._last
        engine.require_current(self)
        if last is not None:
            motion, generator, random = last.motion_on_host, last.generator, last.random
        else:
            motion, generator, random = engine.state_now()
        with named_faults():
            states = {"generator": bytes(generator.cpu().numpy().tobytes())}
            if random:
                states["random"] = random
            packed = pack(CarryHead(engine.version, self._key, self._next), {"motion": motion}, states)
        engine.leave_ahead(packed, self.ahead)
        return packed


def copy_out(tensor: torch.Tensor, pinned: bool) -> torch.Tensor:
    """The tensor in the host's memory, of its own; pinned memory is filled while the caller goes on."""
    if not pinned:
        return tensor.to("cpu", copy=True)
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return held.copy_(tensor, non_blocking=True)


def film_key(film: FilmRequest, job: Mapping[str, Any], with_seed: bool = True) -> str:
    """Digest of everything but the sound that decides a film's pixels."""
    try:
        content = film.portrait.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the portrait {film.portrait}: {error.strerror}") from None
    said = json.dumps(
        [film.width, film.height, film.prompt, film.seed if with_seed else None, dict(job)], sort_keys=True
    )
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
