"""What a film will cost that is mostly known already: told at submit, before anything is rendered.

`prepare` decides; this looks at the sound in the same way and leaves out what only `prepare` measures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from farm.errors import FarmError
from farm.ledger import Ledger, read
from farm.ledger.estimate import pace
from farm.ledger.reuse import known_sounds
from farm.ledger.values import JobRequest
from farm.media.decode import decode_native
from farm.media.pauses import find_pauses
from farm.media.probe import probe_audio
from farm.media.sound import NativeSound
from farm.models import load_model
from farm.planning import choose_cuts, digest_of, stretches
from farm.states import Continuity

MOST_SECONDS = 1800.0  # of sound that one submission looks at; an hour takes about 15 seconds


@dataclass(frozen=True, slots=True)
class Forecast:
    """What rendering one request will most likely come to."""

    request: JobRequest
    reused: int  # segments
    rendered: int
    rendered_seconds: float  # of film
    takes_seconds: float | None  # until they are rendered, if nothing else waits; None when no speed is known

    def __str__(self) -> str:
        text = (
            f"{self.request.name}: {self.reused} of {self.reused + self.rendered} segments are known;"
            f" {self.rendered} to render, {self.rendered_seconds:.0f} s of film"
        )
        if not self.rendered or self.takes_seconds is None:
            return text
        return f"{text}, about {max(1.0, self.takes_seconds):.0f} s beside preparing and joining"


def forecast(ledger: Ledger, requests: Sequence[JobRequest], segment_seconds: float) -> Iterator[Forecast]:
    """For each parallel film of which something is known, as far as MOST_SECONDS of sound reach.

    A sound that cannot be decoded is passed over: `prepare` says what is wrong with it.
    """
    left = MOST_SECONDS
    for request in requests:
        if request.continuity is not Continuity.PARALLEL or request.audio_seconds > left:
            continue
        known = known_sounds(ledger, request)
        if not known:
            continue
        left -= request.audio_seconds
        try:
            yield _look(ledger, request, known, load_model(request.model).segment_seconds or segment_seconds)
        except (FarmError, OSError):
            continue


def _look(ledger: Ledger, request: JobRequest, known: set[str], segment_seconds: float) -> Forecast:
    rate = probe_audio(Path(request.audio)).sample_rate
    with tempfile.TemporaryDirectory(prefix="farm-forecast-") as scratch:
        native = Path(scratch) / "native.s16"
        decode_native(Path(request.audio), native, rate=rate, timeout_seconds=60.0)
        sound = NativeSound(native)
        cuts = choose_cuts(find_pauses(sound, rate), len(sound), round(segment_seconds * rate))
        parts = stretches(cuts, len(sound), rate, request.fps)
        new = [part for part in parts if digest_of(sound[part.start : part.stop], rate) not in known]
    frames = sum(part.frames for part in new)
    speed = pace(ledger, request.model)
    workers = len(read.workers_at_work(ledger, request.queue))
    takes = frames / (speed * max(1, min(workers, len(new)))) if speed else None
    seconds = frames * request.fps[1] / request.fps[0]
    return Forecast(request, len(parts) - len(new), len(new), seconds, takes)
