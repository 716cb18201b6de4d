"""The frame plan: which frames a film has and which segment owns them.  Integers only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Protocol

SPARE_FRAMES = 2  # so many more than whole frames of its sound; the end of a film may need both


@dataclass(frozen=True, slots=True)
class Part:
    """What a segment of a parallel film is rendered from: its own sound, as a film of its own.

    It has a frame or two more than the film takes of it: how many frames lie between two cuts depends on where the cuts
    fall between frames of the film, and what is rendered must not.
    """

    first_sample: int  # of the driving sound
    samples: int
    frames: int  # rendered; the film takes the first of them
    seed: int
    facts: Mapping[str, Any] = field(default_factory=dict)  # measured over this part's sound
    sound: str = ""  # hash of the recording's own samples that it was made from

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Part:
        """The inverse of `as_json`."""
        return cls(**values)


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """Frames [first_frame, first_frame + frames) of one film."""

    first_frame: int
    frames: int
    needs_carry: bool  # starts from the state that the segment before it left
    part: Part | None = None  # in a parallel film
    content_key: str | None = None  # hash of everything that decides its pixels; None: it is never used again


def frame_count(samples: int, rate: int, fps: tuple[int, int]) -> int:
    """Frames of a film: ceil(samples * fps / rate), so that the last sample is heard over a picture."""
    num, den = fps
    return -(-samples * num // (rate * den))


def plan_segments(
    total_frames: int,
    *,
    chunk_frames: int,
    fps: tuple[int, int],
    segment_seconds: float,
    first_seconds: float,
) -> list[PlannedSegment]:
    """Cut [0, total_frames) into a chain of segments of whole chunks; only the film's last chunk may be partial.

    The first segment is short, for an early look.  A last segment shorter than half of the others joins the one before
    it.
    """
    if total_frames <= 0:
        raise ValueError("a film has at least one frame")
    per_chunk = chunk_frames * fps[1] / fps[0]  # seconds

    def whole_chunks(seconds: float) -> int:
        return max(1, round(seconds / per_chunk)) * chunk_frames

    usual, first = whole_chunks(segment_seconds), whole_chunks(min(first_seconds, segment_seconds))
    cuts = [0]
    while True:
        cut = cuts[-1] + (first if len(cuts) == 1 else usual)
        if total_frames - cut < usual // 2 and (len(cuts) > 1 or total_frames - cut < chunk_frames):
            break
        if cut >= total_frames:
            break
        cuts.append(cut)
    cuts.append(total_frames)
    return [PlannedSegment(start, stop - start, needs_carry=start > 0) for start, stop in pairwise(cuts)]


class Place(Protocol):
    """Somewhere that a film may be cut.  Better places are greater; see farm/media/pauses.py."""

    @property
    def at(self) -> int: ...
    def __lt__(self, other: Any, /) -> bool: ...


def choose_cuts(places: Sequence[Place], total: int, usual: int) -> list[int]:
    """Where to cut [0, total), in samples, into stretches of about `usual` samples: the inner cuts, in order.

    A place is a cut when no better one lies within half of `usual`.  So whether it is one depends on its surroundings
    alone, and an insertion changes the cuts beside it and no others (content-defined chunking by local maxima;
    Bjorner, Blass, Gurevich 2010).  A stretch of more than twice `usual` is cut at the best place inside it; one
    without places every `usual` samples from its beginning.  No stretch is shorter than a quarter of `usual`.
    """
    reach = max(2, usual // 2)
    fit = sorted((p for p in places if reach // 2 <= p.at <= total - reach // 2), key=lambda place: place.at)
    cuts = [0, *(fit[n].at for n in range(len(fit)) if _is_best(fit, n, reach)), total]
    every: list[int] = []
    for start, stop in pairwise(cuts):
        inside = [p for p in fit if start + reach // 2 <= p.at <= stop - reach // 2]
        every += [*_divide(inside, start, stop, reach), stop]
    return every[:-1]


def _is_best(fit: Sequence[Place], number: int, reach: int) -> bool:
    """Whether no place within `reach` of this one is better; of equals the first counts as better."""
    mine = fit[number]
    for step in (-1, 1):
        other = number + step
        while 0 <= other < len(fit) and abs(fit[other].at - mine.at) <= reach:
            if mine < fit[other] if step > 0 else not fit[other] < mine:
                return False
            other += step
    return True


def _divide(inside: Sequence[Place], start: int, stop: int, reach: int) -> list[int]:
    """Cuts of a stretch that is too long."""
    if stop - start <= 4 * reach:
        return []
    if not inside:
        return list(range(start + 2 * reach, stop - reach, 2 * reach))
    best = inside[0]
    for place in inside[1:]:
        if best < place:
            best = place
    left = [p for p in inside if p.at <= best.at - reach // 2]
    right = [p for p in inside if p.at >= best.at + reach // 2]
    return [*_divide(left, start, best.at, reach), best.at, *_divide(right, best.at, stop, reach)]


def digest_of(samples: Any, rate: int) -> str:
    """Hash of a stretch of a recording: `samples` are mono int16 little endian at `rate` Hz."""
    return hashlib.sha256(f"{rate}:".encode() + samples.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Sound [start, stop) of a parallel film, the frames that the film takes of it and those that are rendered."""

    start: int
    stop: int
    first_frame: int
    frames: int
    rendered: int


def stretches(cuts: Sequence[int], samples: int, rate: int, fps: tuple[int, int]) -> list[Stretch]:
    """What each segment of a parallel film owns, for cuts of its sound of `samples` samples at `rate` Hz.

    Each stretch's frames count from its own first sample.  It takes its place in the film at the nearest frame, so
    picture and sound are apart by half a frame at most, at every length.
    """
    num, den = fps
    total = frame_count(samples, rate, fps)

    def nearest(sample: int) -> int:
        return min(total, (2 * sample * num + rate * den) // (2 * rate * den))

    found = []
    for start, stop in pairwise([0, *cuts, samples]):
        first, last = nearest(start), total if stop == samples else nearest(stop)
        rendered = (stop - start) * num // (rate * den) + SPARE_FRAMES
        if last > first:
            found.append(Stretch(start, stop, first, last - first, rendered))
    return found
