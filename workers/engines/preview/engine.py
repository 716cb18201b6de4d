"""The preview engine: load once, render any stretch of any film."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import sys
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

from farm.errors import EngineError, InputError, OutOfMemory
from workers.engines.contract import Description, FilmRequest, LoadReport
from workers.engines.preview import articulation, film_facts
from workers.engines.preview.articulation import SpeechCurves, SpeechNetwork
from workers.engines.preview.face import FaceReader
from workers.engines.preview.film_facts import SpeechRange
from workers.engines.preview.framing import frame_portrait
from workers.engines.preview.motion import Motion
from workers.engines.preview.renderer import Renderer
from workers.engines.preview.settings import PreviewSettings, follow_prompt, read_settings
from workers.engines.preview.shaping import Pixels

ENGINE_ID = "preview"
RENDERER_VERSION = 7  # raised whenever the same film would get other pixels
ACCEPTED_FPS = (24, 25, 30, 50)
DEFAULT_FPS = 25
SIDES = (256, 1920)
CARRY_LIMIT_BYTES = 1024
COLOR = {"matrix": "bt709", "range": "tv"}  # of the yuv420p frames, see colour.py
_KEPT_PORTRAITS = 2


class PreviewEngine:
    """The face models and the speech network, loaded; films share them."""

    def __init__(self, threads: int = 0) -> None:
        """`threads` draw frames at once; 0 takes one per core that this process may use, at most 8."""
        self._threads = threads if threads > 0 else min(8, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="frame")
        self._reader: FaceReader | None = None
        self._network: SpeechNetwork | None = None
        self._renderers: OrderedDict[tuple[object, ...], Renderer] = OrderedDict()

    def load(self) -> LoadReport:
        """Read the models and run each once.  Raises ConfigError when the face models are missing."""
        started = time.monotonic()
        # Whole frames run beside each other; threads inside OpenCV's small steps would only wait for each other.
        cv2.setNumThreads(1)
        reader, network = FaceReader(), SpeechNetwork()
        reader.warm_up()
        self._reader, self._network = reader, network
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return LoadReport(
            seconds=time.monotonic() - started, memory_bytes=peak * (1 if sys.platform == "darwin" else 1024)
        )

    def describe(self) -> Description:
        """For the default frame rate; a chunk is one second at every rate."""
        _, network = self._loaded()
        return Description(
            id=ENGINE_ID,
            version=_version(network),
            fps=(DEFAULT_FPS, 1),
            chunk_frames=DEFAULT_FPS,
            lookahead_samples=articulation.lookahead_samples(),
            pixel_format="yuv420p",
            carry_limit_bytes=CARRY_LIMIT_BYTES,
            device="cpu",
            limits={
                "fps": list(ACCEPTED_FPS),
                "chunk_frames": {str(fps): fps for fps in ACCEPTED_FPS},
                "sides": list(SIDES),
                "color": COLOR,
            },
        )

    def begin(self, film: FilmRequest, first_frame: int, carry: bytes | None) -> PreviewSession:
        """Start anywhere; frames do not depend on where.  Raises InputError and EngineError."""
        reader, network = self._loaded()
        settings = follow_prompt(read_settings(film.settings), film.prompt)
        numerator, denominator = film.fps
        if denominator != 1 or numerator not in ACCEPTED_FPS:
            accepted = ", ".join(map(str, ACCEPTED_FPS))
            raise InputError(f"the preview model renders {accepted} frames per second, not {numerator}/{denominator}")
        for name, side in (("width", film.width), ("height", film.height)):
            if side % 2 or not SIDES[0] <= side <= SIDES[1]:
                raise InputError(f"{name} must be an even number from {SIDES[0]} to {SIDES[1]}, not {side}")
        if first_frame % numerator or not 0 <= first_frame < film.total_frames:
            raise EngineError(f"a segment cannot begin at frame {first_frame}: chunks have {numerator} frames")

        measured = {"speech_gain", "speech_range"} <= set(film.facts)
        facts = film.facts if measured else film_facts.measure(film.audio, network)
        gain, speech_range = float(facts["speech_gain"]), SpeechRange.from_facts(facts)
        tag = {"engine": ENGINE_ID, "version": _version(network), "film": _digest(film, gain, speech_range)}
        if carry is not None:
            _check_carry(carry, {**tag, "frame": first_frame})
        try:
            renderer = self._renderer(film, settings, reader)
        except MemoryError:
            raise OutOfMemory(f"not enough memory for a picture of {film.width}x{film.height}") from None
        except cv2.error as error:
            raise EngineError(f"the portrait could not be read: {error.err}") from error
        curves = SpeechCurves(network, film.audio, gain)
        motion = Motion(curves, film.seed, film.fps, settings, speech_range, film.total_frames, film.joined)
        return PreviewSession(renderer, motion, film, first_frame, tag, self._pool)

    def _loaded(self) -> tuple[FaceReader, SpeechNetwork]:
        if self._reader is None or self._network is None:
            raise EngineError("the preview engine was not loaded")
        return self._reader, self._network

    def _renderer(self, film: FilmRequest, settings: PreviewSettings, reader: FaceReader) -> Renderer:
        """The portrait, measured and ready to move; kept, since the next segment is most often of the same film."""
        try:
            content = film.portrait.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the portrait {film.portrait}: {error.strerror}") from None
        key = (hashlib.sha256(content).digest(), film.width, film.height, settings.framing, settings.mouth)
        renderer = self._renderers.get(key)
        if renderer is None:
            photo = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            if photo is None:
                raise InputError(f"the portrait {film.portrait} is not a picture that can be read")
            portrait = frame_portrait(photo, film.width, film.height, settings.framing, reader)
            renderer = self._renderers[key] = Renderer(portrait, settings.mouth)
            if len(self._renderers) > _KEPT_PORTRAITS:
                self._renderers.popitem(last=False)
        return renderer


class PreviewSession:
    """One segment being rendered."""

    def __init__(
        self,
        renderer: Renderer,
        motion: Motion,
        film: FilmRequest,
        first_frame: int,
        tag: dict[str, str],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._renderer = renderer
        self._motion = motion
        self._total = film.total_frames
        self._chunk = film.live_frames or film.fps[0]
        self._next = first_frame
        self._tag = tag
        self._pool = pool
        self._frame_shape = film.height * 3 // 2, film.width

    def step(self) -> Pixels:
        """The next chunk, uint8 [n, height * 3 / 2, width], planes Y, U, V.  Raises EngineError after the end."""
        count = min(self._chunk, self._total - self._next)
        if count <= 0:
            raise EngineError("the film has no more frames")
        try:
            # A new array each time costs little and leaves the caller free to write the last ones when it can.
            frames = np.empty((count, *self._frame_shape), np.uint8)
            drawn = self._pool.map(self._renderer.draw, self._motion.poses(self._next, count), frames)
            for _ in drawn:
                pass  # waiting for each raises what went wrong in it
        except MemoryError:
            raise OutOfMemory("not enough memory to render a frame") from None
        except cv2.error as error:
            raise EngineError(f"a frame could not be drawn: {error.err}") from error
        self._next += count
        return frames

    def carry(self) -> bytes:
        """Only a tag: what the film is and where it stopped.  Frames need no state."""
        return json.dumps({**self._tag, "frame": self._next}, sort_keys=True).encode()


def _version(network: SpeechNetwork) -> str:
    """Pixels depend on the renderer, on the speech network and on OpenCV."""
    return f"{RENDERER_VERSION}.{network.digest[:8]}.cv{cv2.__version__}"


def _digest(film: FilmRequest, gain: float, speech_range: SpeechRange) -> str:
    """Of everything that decides the pixels, except the media themselves."""
    settings = dict(sorted(film.settings.items()))
    parts = [film.width, film.height, list(film.fps), film.seed, film.total_frames, settings, gain]
    parts.append(dataclasses.asdict(speech_range))
    if film.prompt:
        parts.append(film.prompt)
    if film.joined:
        parts.append("joined")
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def _check_carry(carry: bytes, expected: dict[str, Any]) -> None:
    try:
        found = json.loads(carry)
    except ValueError:
        raise EngineError("the carry is not one of the preview engine's") from None
    if not isinstance(found, dict):
        raise EngineError("the carry is not one of the preview engine's")
    for key, value in expected.items():
        if found.get(key) != value:
            raise EngineError(f"the carry belongs to another {key}: {found.get(key)!r} is not {value!r}")
