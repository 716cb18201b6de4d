"""SoulX-LiveAct block by block: what a film keeps between blocks, and how a block becomes frames.

A film is a row of blocks: 21 frames, then 32 each.  A step of the engine yields 32 frames, so it ends 11 frames into a
block.  The transformer needs no pixels, only its memory of keys and values; a block is decoded by a thread on a stream
of its own while the next one is denoised.

At every step's end the state is: all blocks up to the one after next denoised, the last of them not yet decoded.  Its
largest part, the memory, has tens of gigabytes.  The carry names it: it lies on this machine's disk, or it is made
again by denoising the film's blocks anew, which gives the same, since nothing but portrait, sound and seed decides
it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from farm.errors import EngineError, InputError
from workers.engines.contract import DRIVING_RATE, Description, FilmRequest, LoadReport
from workers.engines.flashtalk.conditioners import EncodingCache, digest
from workers.engines.flashtalk.faults import named_faults, require_finite
from workers.engines.ranks import ALONE, join_ranks
from workers.engines.upstream.chunked import film_key
from workers.engines.upstream.liveact import JOB, LiveAct, read_job
from workers.engines.upstream.liveact_pair import (
    FIRST_LATENTS,
    LATENTS,
    MOST_CARDS,
    WHOLE,
    Halves,
    fit,
    from_first,
    part_of,
)
from workers.engines.upstream.platforms import alike_options, own_index

FPS = (20, 24, 25)
STEP_FRAMES = 32
FIRST_FRAMES = 21
WINDOW_FRAMES = 53  # of sound and picture that one block is conditioned on
HEARD_AHEAD = 2  # frames of sound behind a window that its last frames' features reach
SIGMAS = (1.0, 0.9375, 0.83333333, 0.0)
OVERLAP_LATENTS = 3  # latents of the block before that precede a block in the decoder, and the frames they give
OVERLAP_FRAMES = 9
# The 55 frames of sound of the block after next, seen from a step's end, at the lowest rate.
LOOKAHEAD_SAMPLES = 44_000
CARRY_LIMIT_BYTES = 100_000
MAGIC = b"LVA1"
KEPT_CARRIES = 2  # files of one film
DEFAULT_PROMPT = "A person is talking naturally with audio-driven facial motion."
ADAPTER_VERSION = 1
COMPILING_SECONDS = 300.0  # that one rank may wait for another in a collective while graphs are compiled
HEARD_LAYERS, HEARD_TAPS, HEARD_WIDTH = 12, 5, 768


def blocks_of(total_frames: int) -> int:
    """Blocks that hold a film's frames."""
    return 1 + max(0, math.ceil((total_frames - FIRST_FRAMES) / STEP_FRAMES))


@dataclass
class Film:
    """One film's fixed inputs on the device."""

    key: str
    request: FilmRequest
    job: dict[str, Any]
    prompts: dict[str, torch.Tensor]  # text rows [512, 4096] of each prompt
    seen: torch.Tensor  # [1, 257, 1280]
    condition: torch.Tensor  # [1, 20, 14, h, w]: mask and the portrait's latents

    def prompt_of(self, block: int) -> torch.Tensor:
        for first, last, prompt in self.job["edits"]:
            if first <= block <= last:
                return self.prompts[prompt]
        return self.prompts[self.request.prompt or DEFAULT_PROMPT]


@dataclass
class State:
    """A film between two blocks.  Rank 0 has the frames; those of rank 1 have no pixels."""

    denoised: int = 0  # blocks
    origin: int = 0  # the step that block 0 begins with: a segment that starts afresh is a film of its own
    generator: torch.Generator | None = None
    before: torch.Tensor | None = None  # latents of the last denoised block
    compressed: bool = False  # the memory was compressed already for the next block
    waiting: deque[Future[np.ndarray]] = field(default_factory=deque)  # blocks that are being decoded, in order
    frames: list[np.ndarray] = field(default_factory=list)  # decoded and not yet handed out

    def take_decoded(self, wanted: float = math.inf) -> None:
        """Wait for blocks until there are so many frames, or for all.  Raises what decoding raised."""
        while self.waiting and sum(map(len, self.frames)) < wanted:
            self.frames.append(self.waiting.popleft().result())


class LiveActEngine:
    """LiveAct on one card, or this process's share of it where two render a film together.

    Rank 0 hears, reads pictures, runs the encoders and answers; both denoise, and each decodes half of every picture.
    """

    def __init__(self, model: LiveAct) -> None:
        self._model = model
        self.transformer: Any = None
        self._film: Film | None = None
        self._current: LiveActSession | None = None
        self._left: tuple[str, State] | None = None  # digest of a carry, and the state that it names
        self._memory: dict[str, Any] = {}
        self._size = (0, 0)
        self.ranks, self._part = ALONE, WHOLE
        self._decoder = ThreadPoolExecutor(1, "decoder")

    def load(self) -> LoadReport:
        """Check everything that can be checked and build the parts.

        Raises ConfigError for what is missing or wrong, OutOfMemory and DeviceFault.
        """
        started = time.monotonic()
        model = self._model
        self.platform = model.choose_platform()
        notes = model.check()
        self.platform.begin(MOST_CARDS)
        compiled = model.values["compile"] and self.platform.kind == "cuda"
        with named_faults():
            place = torch.device(self.platform.device, own_index())
            # Each rank compiles its own graphs, and not all are done at once.
            self.ranks = join_ranks(place, COMPILING_SECONDS if compiled else 0)
            self._part = part_of(self.ranks)
            self.plain = model.build_transformer(self.platform, self.ranks)
            self.vae = model.build_vae(self.platform)
            self._halves = Halves(self.ranks)
            if self.ranks.is_first:
                self.encoder, self.extractor = model.build_speech(self.platform)
            self.transformer = torch.compile(self.plain, options=alike_options()) if compiled else self.plain
            if self.platform.kind == "cuda":
                self._stream = torch.cuda.Stream()
        if not self.ranks.is_alone:
            notes += (f"one of {self.ranks.size} ranks, memory of each",)
        return LoadReport(time.monotonic() - started, self.platform.memory_bytes(), notes)

    def describe(self) -> Description:
        """Known after `load`."""
        return Description(
            id=self._model.id,
            version=self.version,
            fps=(FPS[0], 1),
            chunk_frames=STEP_FRAMES,
            lookahead_samples=LOOKAHEAD_SAMPLES,
            pixel_format="rgb24",
            carry_limit_bytes=CARRY_LIMIT_BYTES,
            device=self.platform.name() if self.ranks.is_alone else f"{self.ranks.size} x {self.platform.name()}",
            limits={"fps": list(FPS), "side_step": 16},
        )

    @property
    def version(self) -> str:
        return f"upstream{ADAPTER_VERSION}-{self._model.version}"

    # -- films ------------------------------------------------------------------------------------------------------

    def begin(self, film: FilmRequest, first_frame: int, carry: bytes | None) -> LiveActSession:
        """See contract.Engine.begin."""
        if self.transformer is None:
            raise EngineError("the engine was not loaded")
        if film.fps[1] != 1 or film.fps[0] not in FPS:
            raise InputError(f"this model renders {', '.join(map(str, FPS))} frames per second, not {film.fps[0]}")
        if film.width % 16 or film.height % 16:
            raise InputError(f"this model cannot render {film.width}x{film.height}: sides are multiples of 16 pixels")
        if first_frame % STEP_FRAMES or not 0 <= first_frame < film.total_frames:
            raise EngineError(f"a segment cannot begin at frame {first_frame}: steps have {STEP_FRAMES} frames")
        job = read_job(film.settings)
        self._current = None
        with named_faults(), torch.no_grad():
            held = self._prepare(film, job)
            self._make_memory(film.width, film.height, job["audio_cfg"] > 1)
            session = LiveActSession(self, held, first_frame)
            if carry is not None:
                session.state = self._take_up(session, carry)
            else:
                session.state = self._fresh(film.seed, session.step_number)
            self._left = None
        self._current = session
        return session

    def _fresh(self, seed: int, origin: int) -> State:
        return State(origin=origin, generator=torch.Generator(device=self.platform.device).manual_seed(seed))

    def _prepare(self, film: FilmRequest, job: dict[str, Any]) -> Film:
        """Text, picture and condition from their caches, or made and kept; rank 0 does it and tells."""
        said, tensors = self.ranks.tell(lambda: self._encode(film, job))
        held, device = self._film, self.platform.device
        if tensors:
            prompts = {prompt: tensors[f"prompt {n}"].to(device) for n, prompt in enumerate(said["prompts"])}
            seen, condition = tensors["seen"].to(device), tensors["condition"].to(device)
            held = self._film = Film(said["key"], film, job, prompts, seen, condition)
        if held is None or held.key != said["key"]:
            raise EngineError("this rank does not hold the film that rank 0 holds")
        held.request = film
        return held

    def _encode(self, film: FilmRequest, job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The film's key, and what its encoders say unless it is the film that is held already."""
        key = film_key(film, {**JOB, **job})
        if self._film is not None and self._film.key == key:
            return {"key": key}, {}
        platform, model = self.platform, self._model
        content = digest(film.portrait.read_bytes(), f"{film.width}x{film.height}", model.recipe)
        picture = self._read_picture(film)
        prompts = sorted({film.prompt or DEFAULT_PROMPT, *(prompt for _, _, prompt in job["edits"])})
        tensors = {
            f"prompt {n}": self._fetch(
                "text", digest(prompt, model.recipe), lambda prompt=prompt: model.encode_prompt(prompt, platform)
            )
            for n, prompt in enumerate(prompts)
        }
        tensors["seen"] = self._fetch("pictures", content, lambda: model.see(picture, platform))
        latents = digest(content, model.autoencoder)
        tensors["condition"] = self._fetch("conditions", latents, lambda: self._condition(picture))
        return {"key": key, "prompts": prompts}, tensors

    def _fetch(self, kind: str, key: str, make: Any) -> torch.Tensor:
        if self._model.values["disable_condition_cache"] and kind != "text":
            return make()  # type: ignore[no-any-return]
        cache = EncodingCache(self._model.cache)
        return cache.fetch(kind, key, lambda: {"kept": make()})["kept"]

    def _read_picture(self, film: FilmRequest) -> torch.Tensor:
        """[1, 3, 1, H, W] in [-1, 1]: scaled to cover the film, cut in the middle."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(film.portrait) as opened:
                picture = opened.convert("RGB")
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise InputError(f"the portrait {film.portrait} cannot be read as a picture: {error}") from None
        scale = max(film.width / picture.width, film.height / picture.height)
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - film.width) // 2, (size[1] - film.height) // 2
        picture = picture.crop((left, top, left + film.width, top + film.height))
        planes = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
        return planes[None, :, None].to(self.platform.device, torch.bfloat16)

    def _condition(self, picture: torch.Tensor) -> torch.Tensor:
        """[1, 20, 14, h, w]: a mask that is one for the first latent, and the latents of the portrait before grey."""
        grey = picture.new_zeros(1, 3, WINDOW_FRAMES - 1, *picture.shape[-2:])
        latents = self.vae.encode(torch.cat([picture, grey], dim=2).to(self.platform.dtype))[None].to(torch.bfloat16)
        mask = latents.new_zeros(1, 4, *latents.shape[2:])
        mask[:, :, 0] = 1
        return torch.cat([mask, latents], dim=1)

    def _make_memory(self, width: int, height: int, with_silence: bool) -> None:
        """Keys and values of latent frames for each noise level and layer; a second set to render without sound."""
        values, config = self._model.values, self.plain.config
        frame = (width // 16) * (height // 16)
        sets = ("heard", "silent") if with_silence else ("heard",)
        if self._size == (width, height) and set(sets) <= set(self._memory):
            return
        self._memory, self._left = {}, None
        shape = (1, frame * self._part.slots, config.num_heads, config.dim // config.num_heads)
        device = "cpu" if values["offload_cache"] else self.platform.device
        kind = torch.float8_e4m3fn if values["fp8_kv_cache"] else torch.bfloat16

        def one() -> dict[str, Any]:
            made: dict[str, Any] = {name: torch.zeros(shape, dtype=kind, device=device) for name in ("k", "v")}
            for name in ("k_scale", "v_scale"):
                scaled = values["fp8_kv_cache"]
                made[name] = torch.ones((*shape[:3], 1), dtype=torch.float32, device=device) if scaled else None
            flags = ("mean_memory", "offload_cache", "fp8_kv_cache")
            return {**made, **{flag: bool(values[flag]) for flag in flags}}

        for name in sets:
            layers = range(config.num_layers)
            self._memory[name] = [{layer: one() for layer in layers} for _ in SIGMAS[:-1]]
        self._size, self._frame_tokens = (width, height), frame
        if not self.ranks.is_alone:
            fit(self.plain, frame)

    # -- blocks -----------------------------------------------------------------------------------------------------

    def denoise(self, film: Film, state: State) -> torch.Tensor:
        """The next block's latents [16, 6 or 8, h, w]; the memory goes on with it."""
        block = state.denoised
        first = block == 0
        count, start = (FIRST_LATENTS, 0) if first else (LATENTS, FIRST_LATENTS)
        request = film.request
        shape = (16, count, request.height // 8, request.width // 8)
        device = self.platform.device

        def noise() -> torch.Tensor:
            drawn = torch.randn(shape, dtype=torch.bfloat16, device=device, generator=state.generator)
            return from_first(self.ranks, drawn)

        heard = self._hear_together(request, STEP_FRAMES * (state.origin + max(0, block - 1)))
        said: dict[str, Any] = {
            "context": [film.prompt_of(block)],
            "clip_fea": film.seen,
            "ref_target_masks": torch.ones(3, *shape[2:], dtype=torch.bfloat16, device=device),
            "y": film.condition[:, :, start : start + count],
            "start_idx": start * self._frame_tokens,
            "end_idx": (start + count) * self._frame_tokens,
            "update_cache": block > 1 and not state.compressed,
        }
        scale = film.job["audio_cfg"]
        latents = noise()
        with torch.autocast(self.platform.device, dtype=torch.bfloat16):
            for level, (sigma, following) in enumerate(pairwise(SIGMAS)):
                at = torch.tensor([1000 * sigma], dtype=torch.float32, device=device)
                memory = self._memory["heard"][level]
                velocity = self.transformer(
                    [latents], t=at, kv_cache=memory, skip_audio=level == 0, audio=heard, **said
                )[0]
                if scale > 1 and level > 0:
                    silent = self.transformer(
                        [latents],
                        t=at,
                        kv_cache=self._memory["silent"][level],
                        audio=torch.zeros_like(heard),
                        **said,
                    )[0]
                    velocity = silent + scale * (velocity - silent)
                clean = latents - velocity * sigma
                # The last level's noise counts for nothing, and drawing it keeps the generator where upstream's is.
                latents = ((1 - following) * clean + noise() * following).to(torch.bfloat16)
        state.compressed = False
        state.denoised += 1
        return latents

    def _hear_together(self, request: FilmRequest, begin: int) -> torch.Tensor:
        """What rank 0 hears, on every rank."""
        heard: list[torch.Tensor] = []

        def hear() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
            heard.append(self._hear(request, begin))
            return {}, {}

        self.ranks.tell(hear)  # what it raises, all raise; the features themselves stay on the device
        shape = (1, WINDOW_FRAMES, HEARD_TAPS, HEARD_LAYERS, HEARD_WIDTH)
        mine = heard[0] if heard else torch.empty(shape, dtype=self.platform.dtype, device=self.platform.device)
        return from_first(self.ranks, mine)

    def _hear(self, request: FilmRequest, begin: int) -> torch.Tensor:
        """Features [1, 53, 5, 12, 768] of the sound of the window that begins with frame `begin`."""
        fps = request.fps[0]
        start, stop = (int(DRIVING_RATE * (frame / fps)) for frame in (begin, begin + WINDOW_FRAMES + HEARD_AHEAD))
        samples = torch.from_numpy(request.audio.read(start, stop))
        if fps != 25:
            samples = self._at_tempo(samples, 25 / fps)
        ready = self.extractor((samples * 3.0).numpy(), sampling_rate=DRIVING_RATE).input_values
        values = torch.from_numpy(np.asarray(ready).reshape(1, -1)).to(self.platform.device, self.encoder.dtype)
        features = self.encoder(values, seq_len=int(len(samples) / DRIVING_RATE * 25), output_hidden_states=True)
        stacked = torch.stack(features.hidden_states[1:], dim=1)[0].transpose(0, 1)
        reach = torch.arange(-2, 3)
        taps = (torch.arange(WINDOW_FRAMES)[:, None] + reach[None]).clamp(0, stacked.shape[0] - 1)
        return stacked[taps.to(stacked.device)][None]

    def _at_tempo(self, samples: torch.Tensor, rate: float) -> torch.Tensor:
        """The same voice, faster: the speech encoder makes 25 features a second, so that one comes to each frame."""
        import torchaudio

        effects = getattr(torchaudio, "sox_effects", None)
        if effects is None:
            raise EngineError(
                "20 and 24 frames per second need torchaudio 2.8 with sox, whose later releases left the effects out;"
                " install it in the model's interpreter, or render 25 frames per second"
            )
        faster, _ = effects.apply_effects_tensor(samples[None], DRIVING_RATE, [["tempo", f"{rate}"]])
        return faster[0]  # type: ignore[no-any-return]

    def decode(self, latents: torch.Tensor, before: torch.Tensor | None, block: int) -> Future[np.ndarray]:
        """A block's frames, uint8 [21 or 32, H, W, 3], made on another stream while the caller goes on."""
        event = None
        if self.platform.kind == "cuda":
            event = torch.cuda.Event()
            event.record()
        return self._decoder.submit(self._decode, latents, before, block, event)

    def _decode(self, latents: torch.Tensor, before: torch.Tensor | None, block: int, event: Any) -> np.ndarray:
        def ours() -> torch.Tensor:
            if event is None:
                return self._to_frames(latents, before, block)
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(event)
                frames = self._to_frames(latents, before, block)
                self._stream.synchronize()
                return frames

        with named_faults(), torch.no_grad():
            return self._halves.join(ours, latents).numpy()

    def _to_frames(self, latents: torch.Tensor, before: torch.Tensor | None, block: int) -> torch.Tensor:
        """This rank's part of a block's picture, uint8 [T, h, w, 3] on the host."""
        joined = latents if before is None else torch.cat([before[:, -OVERLAP_LATENTS:], latents], dim=1)
        pixels = self.vae.decode(self._halves.cut(joined).to(self.platform.dtype))[0].float()  # [3, T, h, w]
        pixels = self._halves.crop(pixels, joined)
        if before is not None:
            pixels = pixels[:, OVERLAP_FRAMES:]
        wanted = FIRST_FRAMES if before is None else STEP_FRAMES
        if pixels.shape[1] != wanted:
            raise EngineError(f"the decoder gave {pixels.shape[1]} frames where block {block} has {wanted}")
        require_finite(bool(torch.isfinite(pixels).all()), block)
        levels = ((pixels + 1) / 2).clip(0, 1).permute(1, 2, 3, 0) * 255
        return levels.round().to(torch.uint8).contiguous().cpu()

    def advance(self, film: Film, state: State, decodes: bool = True) -> None:
        """Denoise one more block and begin to decode it, which nobody waits for here: all ranks come to the end."""
        before = state.before
        latents = self.denoise(film, state)
        if decodes:
            state.waiting.append(self.decode(latents, before, state.denoised - 1))
        state.before = latents

    # -- the carry --------------------------------------------------------------------------------------------------

    def require_current(self, session: LiveActSession) -> None:
        """Raises EngineError when another segment was begun meanwhile, whose memory stands where this one's stood."""
        if session is not self._current:
            raise EngineError("another segment was begun on this engine meanwhile")

    def forget(self) -> None:
        """The state that the last carry names is about to go on."""
        self._left = None

    def take_carry(self, session: LiveActSession) -> bytes:
        """A few bytes that name the state; the state itself stays here, and on disk where the worker wants that."""
        self.require_current(session)
        state = session.state
        said = {"version": self.version, "film": session.film.key, "step": session.step_number}
        said |= {"origin": state.origin, "file": ""}
        if self._model.values["carry"] == "disk":
            with named_faults(), torch.no_grad():
                said["file"] = str(self._save(session))
        words = json.dumps(said).encode()
        carry = MAGIC + struct.pack("<I", len(words)) + words
        self._left = (hashlib.sha256(carry).hexdigest(), state)
        return carry

    def _take_up(self, session: LiveActSession, carry: bytes) -> State:
        """The state that a carry names: still here, on disk, or made again."""
        try:
            if carry[:4] != MAGIC:
                raise ValueError
            (length,) = struct.unpack("<I", carry[4:8])
            said = json.loads(carry[8 : 8 + length])
            version, film, step = said["version"], said["film"], said["step"]
            origin, file = int(said["origin"]), said["file"]
        except (ValueError, KeyError, TypeError, struct.error):
            raise EngineError("the carry is damaged: render this film from its beginning") from None
        if version != self.version:
            raise EngineError(f"the carry was made by engine {version}, this one is {self.version}")
        if film != session.film.key:
            raise EngineError("the carry belongs to another film or to other settings")
        if step != session.step_number:
            raise EngineError(f"the carry goes on at step {step}, asked for was step {session.step_number}")
        left = self._left
        if self.ranks.all_agree(left is not None and left[0] == hashlib.sha256(carry).hexdigest()):
            assert left is not None
            return left[1]
        if file:
            state = self._restore(self._own_file(Path(file)), origin)
            if self.ranks.all_agree(state is not None):
                assert state is not None
                return state
        return self._replay(session, origin)

    def _replay(self, session: LiveActSession, origin: int) -> State:
        """Denoise the film up to here once more; only the last blocks are decoded, whose frames are still wanted."""
        state = self._fresh(session.film.request.seed, origin)
        last = session.blocks_ahead(session.step_number - 1, origin)
        for block in range(last):
            self.advance(session.film, state, decodes=block >= last - 2)
        session.drop_given(state)
        return state

    def _folder(self, film: Film) -> Path:
        named = self._model.values["carry_folder"]
        return (Path(named).expanduser() if named else self._model.cache / "carries") / film.key

    def _own_file(self, file: Path) -> Path:
        """Where this rank's part of a state is; rank 0's is the one that the carry names."""
        return file if self.ranks.is_first else file.with_name(f"{file.stem}.rank{self.ranks.rank}{file.suffix}")

    def _save(self, session: LiveActSession) -> Path:
        """The memory and the frames that wait, as a file of this machine.  Returns rank 0's, which the carry names."""
        state, film = session.state, session.film
        state.take_decoded()
        slots = self._part.slots
        if state.denoised == 1:
            slots = self._part.first
        elif not any(self._model.values[name] for name in ("fp8_kv_cache", "offload_cache", "block_offload")):
            self._compress(state)
            slots = self._part.kept
        tokens = slots * self._frame_tokens
        memory = {
            f"{name}.{level}.{layer}.{part}": held[part][:, :tokens].contiguous().cpu()
            for name, levels in self._memory.items()
            if name == "heard" or film.job["audio_cfg"] > 1
            for level, layers in enumerate(levels)
            for layer, held in layers.items()
            for part in ("k", "v", "k_scale", "v_scale")
            if held[part] is not None
        }
        assert state.generator is not None and state.before is not None
        said = {
            "denoised": state.denoised,
            "compressed": state.compressed,
            "generator": state.generator.get_state().cpu(),
            "before": state.before.cpu(),
            "frames": [torch.from_numpy(frames) for frames in state.frames],
            "memory": memory,
        }
        folder = self._folder(film)
        folder.mkdir(parents=True, exist_ok=True)
        named = folder / f"step-{session.step_number:06d}.pt"
        final = self._own_file(named)
        staging = final.with_name(f"{final.name}.{os.getpid()}")
        torch.save(said, staging)
        staging.replace(final)
        ours = self._own_file(Path("step-??????.pt")).name
        for old in sorted(folder.glob(ours))[:-KEPT_CARRIES]:
            old.unlink(missing_ok=True)
        return named

    def _restore(self, path: Path, origin: int) -> State | None:
        """None when the file is gone, of another machine or broken: then the film is denoised again."""
        try:
            said = torch.load(path, map_location="cpu", weights_only=True)
            for key, value in said["memory"].items():
                name, level, layer, part = key.split(".")
                held = self._memory[name][int(level)][int(layer)][part]
                held[:, : value.shape[1]].copy_(value)
            state = self._fresh(0, origin)
            assert state.generator is not None
            state.generator.set_state(said["generator"])
            state.denoised, state.compressed = said["denoised"], said["compressed"]
            state.before = said["before"].to(self.platform.device)
            state.frames = [frames.numpy() for frames in said["frames"]]
            return state
        except Exception:  # whatever a missing or broken file leads the reader to; the film is made again instead
            return None

    def _compress(self, state: State) -> None:
        """What the transformer does to its memory as the next block begins, done now: less than half is left."""
        if state.compressed or state.denoised < 2:
            return
        mean = self._model.values["mean_memory"]
        for levels in self._memory.values():
            for layers in levels:
                for layer, held in layers.items():
                    attention = self.plain.blocks[layer].self_attn
                    for part in ("k", "v"):
                        squeeze = attention.kv_mean if mean else getattr(attention, f"{part}_compress")
                        self._part.make_room(held[part], squeeze, self._frame_tokens)
        state.compressed = True


class LiveActSession:
    """One segment being rendered."""

    def __init__(self, engine: LiveActEngine, film: Film, first_frame: int) -> None:
        self.film = film
        self.state = State()
        self.step_number = first_frame // STEP_FRAMES
        self._engine = engine
        self._total = film.request.total_frames

    def blocks_ahead(self, step: int, origin: int) -> int:
        """Blocks that are denoised when step `step` was handed out: one more than its frames need."""
        return min(step - origin + 3, blocks_of(self._total - STEP_FRAMES * origin))

    def drop_given(self, state: State) -> None:
        """Keep of the decoded blocks only the frames that no step has handed out yet."""
        state.take_decoded()
        behind = FIRST_FRAMES + STEP_FRAMES * (state.denoised - 1 - (self.step_number - state.origin))
        kept = np.concatenate(state.frames)
        state.frames = [kept[len(kept) - behind :]]

    def step(self) -> np.ndarray:
        """The next 32 frames, uint8 [n, H, W, 3]; fewer at the film's end.  Frames of rank 1 have no pixels."""
        first = self.step_number * STEP_FRAMES
        count = min(STEP_FRAMES, self._total - first)
        if count <= 0:
            raise EngineError(f"the film has ended after {self._total} frames")
        engine, state = self._engine, self.state
        engine.require_current(self)
        with named_faults(), torch.no_grad():
            engine.forget()
            while state.denoised < self.blocks_ahead(self.step_number, state.origin):
                engine.advance(self.film, state)
            state.take_decoded(count)
        ready = np.concatenate(state.frames)
        state.frames = [ready[count:]]
        self.step_number += 1
        return np.ascontiguousarray(ready[:count])

    def carry(self) -> bytes:
        """The state at this step's end, by name."""
        return self._engine.take_carry(self)
