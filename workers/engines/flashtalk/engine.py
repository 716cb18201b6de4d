"""The engine: load once, begin a film anywhere, render it chunk by chunk.

While the caller takes one chunk's frames the device already renders the next, so copying, encoding and writing cost no
device time.  A segment that follows on the same engine takes over what was begun, if its carry is the one left behind.

Several ranks hold the same weights and go through the same code in step (workers/engines/ranks.py).  Rank 0 alone reads
the portrait and the speech, runs their encoders and the prompt's, and tells the others; each takes a share of every
chunk's tokens and rows.  What decides anything is rank 0's word, so that no two ranks can differ about what comes next.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from farm.errors import ConfigError, EngineError, InputError
from workers.engines.contract import Description, FilmRequest, LoadReport
from workers.engines.flashtalk import carry as carries
from workers.engines.flashtalk import colour, conditioners, portrait, speech
from workers.engines.flashtalk.attention import SelfAttention, attention, choose_attention
from workers.engines.flashtalk.checkpoint import Checkpoint, check_checkpoint
from workers.engines.flashtalk.conditioners import digest, fingerprint
from workers.engines.flashtalk.dit import Dit, FilmContext, Speech, tensors_of
from workers.engines.flashtalk.faults import named_faults, require_finite
from workers.engines.flashtalk.geometry import (
    CHUNK_SPAN,
    FPS,
    MOTION_FRAMES,
    NEW_FRAMES,
    TINY_DIT,
    TINY_VAE,
    DitConfig,
    Geometry,
    VaeConfig,
)
from workers.engines.flashtalk.inventory import dit_tensors, vae_tensors
from workers.engines.flashtalk.linears import form_for
from workers.engines.flashtalk.noise import DeviceNoise, KeyedNoise, Noise
from workers.engines.flashtalk.sampler import sample, sigmas
from workers.engines.flashtalk.settings import EngineSettings, JobSettings
from workers.engines.flashtalk.shares import SpreadAttention, TokenShare, refuse_film, refuse_group
from workers.engines.flashtalk.sources import FileSource, RandomSource, ShardSource, Source
from workers.engines.flashtalk.vae import Vae
from workers.engines.ranks import ALONE, join_ranks, local_rank

ENGINE_ID = "soulx-flashtalk-14b"
PIXELS_VERSION = 3  # raised whenever the same film would get other pixels
DEFAULT_SIZE = (448, 768)
DEFAULT_PROMPT = "A person is talking. Only the foreground characters are moving, the background remains static."
MAX_PIXELS = 1280 * 720
BYTES_PER_PIXEL = 90_000  # what a chunk's blocks and decode take at most beside weights and speech


@dataclass(frozen=True)
class Film:
    """One film's fixed inputs on the device."""

    key: str  # digest of everything that decides the pixels
    geometry: Geometry
    job: JobSettings
    condition: torch.Tensor  # [20, frames, rows, columns]: mask and the portrait's latents
    context: FilmContext
    reference: colour.ColourStatistics


@dataclass
class Rendered:
    """A chunk that the device works on or has finished."""

    chunk: int
    frames: torch.Tensor  # uint8 [28, H, W, 3] on the host, pinned where there is a device
    finite: torch.Tensor  # bool [] on the host
    motion: torch.Tensor  # the next chunk's motion latents
    noise: bytes
    window: str  # digest of the samples it heard
    done: Any  # device event, None on the CPU


class FlashTalkEngine:
    """SoulX-FlashTalk 14B on one device, or this process's share of it where several ranks render together."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self.ranks = ALONE
        self._checkpoint: Checkpoint | None = None
        self._films: dict[str, Film] = {}
        self._ahead: tuple[str, Rendered] | None = None
        self._loaded = False
        self._free_bytes = 0  # on the device, beside what is loaded
        self._lean = settings.residency == "lean"
        self.renders_ahead = not self._lean

    # -- loading ----------------------------------------------------------------------------------------------------

    def load(self) -> LoadReport:
        """Check the checkpoint, stream it to the device and render one chunk.

        Raises ConfigError for a missing or truncated file or a number of ranks that does not fit, OutOfMemory and
        DeviceFault.
        """
        started = time.monotonic()
        settings = self._settings
        self.device = _device(settings)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        if self.device.type == "cuda" and settings.memory_limit_gb:
            share = self._memory_limit() / torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(share, self.device)
        tiny = settings.architecture == "tiny"
        dit_config, vae_config = (TINY_DIT, TINY_VAE) if tiny else (DitConfig(), VaeConfig())
        weights: Source
        vae_weights: Source
        with named_faults(), torch.inference_mode():
            if settings.weights == "official":
                self._checkpoint = check_checkpoint(Path(settings.checkpoint), Path(settings.speech_checkpoint))
                dit_config = self._checkpoint.config
                weights = ShardSource(self._checkpoint, self.device)
                vae_weights = FileSource(self._checkpoint.vae_file, vae_tensors(vae_config), self.device)
            else:
                weights = RandomSource(dit_tensors(dit_config), self.device)
                vae_weights = RandomSource(vae_tensors(vae_config), self.device)
            refuse_group(dit_config, int(os.environ.get("WORLD_SIZE", "1")))
            self.ranks = join_ranks(self.device)
            form = form_for(settings.precision, self.device)
            self.dit = Dit(
                dit_config,
                weights,
                self.device,
                self.dtype,
                form,
                fold_speech=not self._lean,
                keep_context_weights=not self._lean,
            )
            rounding = settings.latent_constants == "upstream"
            self.vae = Vae(
                vae_config,
                vae_weights,
                self.device,
                self.dtype,
                upstream_rounding=rounding,
                stacked=() if self._lean else None,
                tiled=self.device.type == "cuda" and not self._lean and settings.decode == "tiled",
            )
            self.vae_part = 1 if self._lean else 0
            self.speech = self._load_speech(tiny)
            if self.device.type == "cuda":
                self._aside = torch.cuda.Stream(self.device)
            streamed = time.monotonic() - started
            notes = self._choose_attention()
            self._loaded = True
            warm = time.monotonic()
            if self.device.type != "cpu":
                self._warm_up()
        memory = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _own_memory()
        self._free_bytes = self._memory_limit() - memory
        notes += (f"weights {streamed:.1f} s", f"warm-up {time.monotonic() - warm:.1f} s")
        if not self.ranks.is_alone:
            notes += (f"one of {self.ranks.size} ranks, memory of each",)
        return LoadReport(time.monotonic() - started, memory, notes)

    def _memory_limit(self) -> int:
        """Bytes of the device that this process may use."""
        if self.device.type != "cuda":
            return 0
        total = torch.cuda.get_device_properties(self.device).total_memory
        limit = self._settings.memory_limit_gb
        return min(total, int(limit * 1e9)) if limit else total

    def describe(self) -> Description:
        """Known after `load`."""
        self._require_loaded()
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        if not self.ranks.is_alone:
            device = f"{self.ranks.size} x {device}"
        return Description(
            id=ENGINE_ID,
            version=self.version,
            fps=(FPS, 1),
            chunk_frames=NEW_FRAMES,
            lookahead_samples=0,
            pixel_format="rgb24",
            carry_limit_bytes=carries.LIMIT_BYTES,
            device=device,
            limits={"fps": [FPS], "side_step": 16, "max_pixels": MAX_PIXELS, "precision": self._settings.precision},
        )

    @property
    def version(self) -> str:
        """Changes whenever pixels change: engine, weights, precision, how they are held and among how many ranks."""
        s = self._settings
        weights = (
            digest(*sorted(map(str, self._checkpoint.shards.values())))[:8] if self._checkpoint else s.architecture
        )
        parts = (PIXELS_VERSION, s.weights, weights, s.precision, s.residency, s.latent_constants, s.decode, self.dtype)
        if not self.ranks.is_alone:  # sums in another order: a film is not continued by another number of ranks
            parts += (f"ranks{self.ranks.size}",)
        return "flashtalk-" + "-".join(str(part).removeprefix("torch.") for part in parts)

    def _load_speech(self, tiny: bool) -> speech.SpeechEncoder:
        if self._checkpoint is not None:
            return speech.Wav2Vec2Speech(self._checkpoint.audio_folder, self.device)
        if not tiny and self.device.type == "cuda":
            return speech.Wav2Vec2Speech(None, self.device)
        return speech.SyntheticSpeech(self.dit.config.audio_layers, self.dit.config.audio_dim, self.device)

    def _choose_attention(self) -> tuple[str, ...]:
        config = self.dit.config
        tokens = Geometry(DEFAULT_SIZE[1], DEFAULT_SIZE[0]).tokens
        cache = self._settings.cache_folder / "attention.json"
        heads = config.num_heads // self.ranks.size

        def choose() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
            name, times = choose_attention(self.device, self.dtype, tokens, heads, config.head_dim, cache)
            return {"name": name, "times": times}, {}

        chosen, _ = self.ranks.tell(choose)
        self.exact_attention = name = chosen["name"]
        tried = ", ".join(f"{n} {t:.2f} ms" for n, t in chosen["times"].items())
        return (f"attention {name}" + (f" ({tried})" if tried else ""),)

    def _warm_up(self) -> None:
        """One chunk of zeros, so that every kernel is compiled and every workspace is there."""
        geometry = Geometry(DEFAULT_SIZE[1], DEFAULT_SIZE[0])
        config = self.dit.config
        text = torch.zeros(8, config.text_dim, device=self.device)
        seen = torch.zeros(conditioners.IMAGE_TOKENS, config.image_dim, device=self.device)
        grey = torch.zeros(3, geometry.height, geometry.width, device=self.device)
        film = self._make_film("warm-up", geometry, JobSettings(steps=2), text, seen, grey, self._encode_picture(grey))
        taps = speech.gather_taps(self.speech(np.zeros(speech.WINDOW_SAMPLES, np.float32)))
        motion = film.condition[4:, :1]
        noise = KeyedNoise(0, self.device)
        for _ in range(2):  # the second with two motion latents, as every chunk but a film's first
            heard = [self.dit.hear(taps)]
            motion = self._denoise_and_decode(film, 0, heard, motion, noise, self.exact_attention)[2]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # -- films ------------------------------------------------------------------------------------------------------

    def begin(self, film: FilmRequest, first_frame: int, carry: bytes | None) -> FlashTalkSession:
        """See contract.Engine.begin."""
        self._require_loaded()
        if tuple(film.fps) != (FPS, 1):
            raise InputError(f"this model renders {FPS} frames per second, not {film.fps[0]}/{film.fps[1]}")
        if first_frame % NEW_FRAMES or not 0 <= first_frame < film.total_frames:
            raise EngineError(f"a segment cannot begin at frame {first_frame}: chunks have {NEW_FRAMES} frames")
        job = JobSettings.from_mapping(film.settings)
        geometry = Geometry(film.height, film.width)
        if film.height * film.width > MAX_PIXELS:
            raise InputError(f"a film of {film.width}x{film.height} is too large: at most {MAX_PIXELS} pixels")
        if not self.ranks.is_alone:
            refuse_film(geometry, self.ranks.size)
            if job.attention == "fp8":
                raise InputError("attention fp8 needs a worker of one card: choose exact for one of several")
        chunk = first_frame // NEW_FRAMES
        kept, self._ahead = self._ahead, None
        with named_faults(), torch.inference_mode():
            prepared = self._prepare(film, job, geometry)
            noise: Noise = (
                KeyedNoise(film.seed, self.device)
                if job.noise == "keyed"
                else DeviceNoise(film.seed, self.device, self.dtype)
            )
            chosen = "fp8" if job.attention == "fp8" else self.exact_attention
            motion = prepared.condition[4:, :1].to(self.dtype)
            if carry is not None:
                head, motion, state = carries.unpack(carry, self.version, prepared.key, chunk, self.dtype)
                chosen = head.attention
                motion = motion.to(self.device)
                if state:
                    noise.restore(state)
            ahead = kept[1] if carry is not None and kept and kept[0] == digest(carry) else None
            if ahead is not None:
                heard, _ = self.ranks.tell(lambda: ({"window": _window_digest(film, chunk)}, {}))
                if heard["window"] != ahead.window:
                    ahead = None
                elif ahead.noise:
                    noise.restore(ahead.noise)
        return FlashTalkSession(self, film, prepared, chunk, motion, noise, chosen, ahead)

    def leave_ahead(self, carry: bytes, rendered: Rendered | None) -> None:
        """Keep a chunk that was begun beyond a segment's end for whoever comes with this carry."""
        self._ahead = (digest(carry), rendered) if rendered is not None else None

    def _prepare(self, film: FilmRequest, job: JobSettings, geometry: Geometry) -> Film:
        prompt = conditioners.clean_prompt(film.prompt or DEFAULT_PROMPT)
        size = f"{geometry.width}x{geometry.height}"

        def read() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
            """The film's key, and what its encoders say unless this engine holds that film already."""
            try:
                content = film.portrait.read_bytes()
            except OSError as error:
                raise InputError(f"cannot read the portrait {film.portrait}: {error.strerror}") from None
            key = digest(content, prompt, size, str(film.seed), json.dumps(asdict(job), sort_keys=True))[:32]
            if key in self._films:
                return {"key": key}, {}
            signed = portrait.to_signed(portrait.read_portrait(film.portrait, geometry), self.device, self.dtype)
            return {"key": key}, {
                "text": self._encode_prompt(prompt),
                "seen": self._see(content, size, signed),
                "signed": signed.float(),
                "latents": self._latents(content, size, signed),
            }

        said, tensors = self.ranks.tell(read)
        key = said["key"]
        if not tensors:
            return self._films[key]
        made = self._make_film(
            key, geometry, job, tensors["text"], tensors["seen"], tensors["signed"].to(self.device), tensors["latents"]
        )
        self._films = {key: made}  # the next segment is most often of the same film
        return made

    def _make_film(
        self,
        key: str,
        geometry: Geometry,
        job: JobSettings,
        text: torch.Tensor,
        seen: torch.Tensor,
        signed: torch.Tensor,
        latents: torch.Tensor,
    ) -> Film:
        mask = torch.zeros(4, *latents.shape[1:], device=self.device, dtype=self.dtype)
        mask[:, 0] = 1
        condition = torch.cat([mask, latents.to(self.device, self.dtype)])
        context = self.dit.film_context(text, seen)
        return Film(key, geometry, job, condition, context, colour.measure_colour(signed))

    def _encode_prompt(self, prompt: str) -> torch.Tensor:
        config = self.dit.config
        if self._checkpoint is None:
            return conditioners.synthetic_rows(prompt, min(24, config.text_len), config.text_dim)
        there = self._checkpoint
        device = self._text_device()

        def make() -> dict[str, torch.Tensor]:
            rows = conditioners.encode_text(there.text_file, there.tokenizer_folder, prompt, config.text_len, device)
            return {"rows": rows}

        return self._cache.fetch("prompts", digest(prompt, fingerprint(there.text_file)), make)["rows"]

    def _text_device(self) -> torch.device:
        """Where prompts are encoded: the worker's text_devices, else the model's own device if there is room."""
        named = os.environ.get("TEXT_DEVICE", "")
        if named:
            return torch.device(named)
        return torch.device("cpu") if self._settings.residency == "lean" else self.device

    def _see(self, content: bytes, size: str, signed: torch.Tensor) -> torch.Tensor:
        if self._checkpoint is None:
            return conditioners.synthetic_rows(
                digest(content, size), conditioners.IMAGE_TOKENS, self.dit.config.image_dim
            )
        file = self._checkpoint.image_file
        device = torch.device("cpu") if self._settings.residency == "lean" else self.device
        made = self._cache.fetch(
            "portraits",
            digest(content, size, fingerprint(file)),
            lambda: {"seen": conditioners.encode_image(file, signed.to(device), device)},
        )
        return made["seen"]

    def _latents(self, content: bytes, size: str, signed: torch.Tensor) -> torch.Tensor:
        if self._checkpoint is None:
            return self._encode_picture(signed)
        key = digest(content, size, self.version, fingerprint(self._checkpoint.vae_file))
        return self._cache.fetch("latents", key, lambda: {"latents": self._encode_picture(signed)})["latents"]

    def _encode_picture(self, signed: torch.Tensor) -> torch.Tensor:
        """Latents [16, 9, rows, columns] of the portrait followed by grey frames."""
        frames = torch.zeros(3, CHUNK_SPAN, *signed.shape[1:], device=self.device, dtype=self.dtype)
        frames[:, 0] = signed
        return self.vae.encode(frames, self.vae_part)

    @property
    def _cache(self) -> conditioners.EncodingCache:
        return conditioners.EncodingCache(self._settings.cache_folder)

    # -- chunks -----------------------------------------------------------------------------------------------------

    def render(
        self,
        film: Film,
        request: FilmRequest,
        chunk: int,
        motion: torch.Tensor,
        noise: Noise,
        attention_name: str,
    ) -> Rendered:
        """Start one chunk; on a device this returns while it renders."""
        said, _ = self.ranks.tell(lambda: ({"window": _window_digest(request, chunk)}, {}))
        window = said["window"]
        heard = [self._hear(request, chunk)]
        frames, finite, following = self._denoise_and_decode(film, chunk, heard, motion, noise, attention_name)
        if not self.ranks.is_first:
            frames = frames[:, :0, :0]  # rank 0's are the ones that are written
        if self.device.type != "cuda":
            return Rendered(chunk, frames.cpu(), finite.cpu(), following, noise.state(), window, None)
        held = torch.empty(frames.shape, dtype=torch.uint8, pin_memory=True)
        flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        held.copy_(frames, non_blocking=True)
        flag.copy_(finite, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return Rendered(chunk, held, flag, following, noise.state(), window, done)

    def _hear(self, request: FilmRequest, chunk: int) -> Speech:
        """What the blocks hear in a chunk, on a stream of its own: small launches that fit beside the chunk before."""
        if self.device.type != "cuda":
            return self.dit.hear(self.ranks.spread(self._taps(request, chunk)))
        main = torch.cuda.current_stream(self.device)
        ahead = self._has_room_to_hear_ahead(request.width * request.height)
        with torch.cuda.stream(self._aside):
            taps = self._taps(request, chunk)
            if ahead:
                heard = self.dit.hear(taps)
                for tensor in tensors_of(heard):
                    tensor.record_stream(main)
            taps.record_stream(main)
        main.wait_stream(self._aside)
        return heard if ahead else self.dit.hear(self.ranks.spread(taps))

    def _taps(self, request: FilmRequest, chunk: int) -> torch.Tensor:
        """A chunk's speech features; on all ranks but the first only the room for them."""
        if self.ranks.is_first:
            return speech.gather_taps(self.speech(speech.read_window(request.audio, chunk))).contiguous()
        config = self.dit.config
        return torch.empty((CHUNK_SPAN, config.audio_window, config.audio_layers, config.audio_dim), device=self.device)

    def _has_room_to_hear_ahead(self, pixels: int) -> bool:
        """Whether two chunks' folded speech fit beside what else a film of that size needs; one card only."""
        if self._lean or not self.ranks.is_alone:
            return False
        return self._free_bytes > 2 * self.dit.speech_bytes + BYTES_PER_PIXEL * pixels

    def _denoise_and_decode(
        self,
        film: Film,
        chunk: int,
        heard: list[Speech],
        motion: torch.Tensor,
        noise: Noise,
        attention_name: str,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """uint8 frames [28, H, W, 3], whether all pixels are numbers, and the next motion latents.

        `heard` holds the chunk's speech and is emptied, because the decoder needs the room.
        """
        latents = self._denoise(film, chunk, heard.pop(), motion, noise, attention_name)
        if self._lean and self.device.type == "cuda":
            # What the blocks worked in is of no use to the decoder as it is cut, and there is no room for both.
            torch.cuda.empty_cache()
        frames = self.vae.decode(latents, self.vae_part, MOTION_FRAMES, self.ranks)
        frames = colour.match_colour(frames, film.reference, film.job.colour_match)
        finite = torch.isfinite(frames).all()
        following = self.vae.encode(frames[:, -MOTION_FRAMES:], self.vae_part, self.ranks)
        return colour.to_uint8(frames), finite, following

    def _denoise(
        self,
        film: Film,
        chunk: int,
        heard: Speech,
        motion: torch.Tensor,
        noise: Noise,
        attention_name: str,
    ) -> torch.Tensor:
        """The chunk's latents."""
        share = TokenShare(film.geometry, self.ranks)
        attend: SelfAttention = (
            attention(attention_name) if self.ranks.is_alone else SpreadAttention(attention_name, share)
        )
        levels = sigmas(film.job.steps)
        known = motion.shape[1]

        def velocity(latents: torch.Tensor, step: int) -> torch.Tensor:
            modulation = self.dit.modulation(levels[step])
            return self.dit.velocity(
                latents, film.condition, modulation, film.context, heard, film.geometry, attend, known, share
            )

        return sample(velocity, levels, motion, noise, chunk, film.geometry.latent_shape)

    def _require_loaded(self) -> None:
        if not self._loaded:
            raise EngineError("the FlashTalk engine was not loaded")


class FlashTalkSession:
    """One segment being rendered, one chunk ahead of what was asked for."""

    def __init__(
        self,
        engine: FlashTalkEngine,
        request: FilmRequest,
        film: Film,
        chunk: int,
        motion: torch.Tensor,
        noise: Noise,
        attention_name: str,
        ahead: Rendered | None,
    ) -> None:
        self._engine = engine
        self._request = request
        self._film = film
        self._next = chunk
        self._motion = motion
        self._noise = noise
        self._noise_state = noise.state()
        self._attention = attention_name
        self._chunks = math.ceil(request.total_frames / NEW_FRAMES)
        self._ahead = ahead
        self._has_begun = ahead is not None

    def step(self) -> np.ndarray:
        """The next chunk's frames, uint8 [n, H, W, 3]."""
        if self._next >= self._chunks:
            raise EngineError(f"the film has ended after {self._chunks} chunks")
        with named_faults(), torch.inference_mode():
            now = self._ahead or self._start(self._next, self._motion)
            self._ahead = None
            # A live session's next chunk has not been spoken yet.  And handing a chunk to the device takes nearly as
            # long as the device takes for it, for which a film's first frame does not wait.
            ahead = self._engine.renders_ahead and not self._request.live_frames and self._has_begun
            if now.done is not None and ahead and self._next + 1 < self._chunks:
                self._ahead = self._start(self._next + 1, now.motion)
            if now.done is not None:
                now.done.synchronize()
        require_finite(bool(now.finite), now.chunk)
        self._has_begun = True
        self._motion, self._noise_state = now.motion, now.noise
        self._next = now.chunk + 1
        count = min(NEW_FRAMES, self._request.total_frames - now.chunk * NEW_FRAMES)
        return now.frames[:count].numpy().copy()

    def carry(self) -> bytes:
        """The state at this chunk boundary."""
        head = carries.CarryHead(self._engine.version, self._film.key, self._next, self._attention)
        with named_faults():
            packed = carries.pack(head, self._motion, self._noise_state)
        self._engine.leave_ahead(packed, self._ahead)
        return packed

    def _start(self, chunk: int, motion: torch.Tensor) -> Rendered:
        return self._engine.render(self._film, self._request, chunk, motion, self._noise, self._attention)


def _device(settings: EngineSettings) -> torch.device:
    wanted = settings.device
    if not wanted:
        npu = getattr(torch, "npu", None)
        wanted = "cuda" if torch.cuda.is_available() else "npu" if npu is not None and npu.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("the FlashTalk model was told to use cuda, and torch sees no CUDA device")
    if wanted == "cpu" and settings.architecture != "tiny":
        raise ConfigError("the FlashTalk model needs a GPU or an NPU; the CPU only runs architecture tiny, for tests")
    if wanted == "cuda":
        torch.cuda.set_device(local_rank())
        return torch.device("cuda", local_rank())
    if wanted == "npu":
        torch.npu.set_device(local_rank())
        return torch.device("npu", local_rank())
    return torch.device(wanted)


def _window_digest(request: FilmRequest, chunk: int) -> str:
    """Tells one chunk's sound from another's."""
    return digest(speech.read_window(request.audio, chunk).tobytes())


def _own_memory() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
