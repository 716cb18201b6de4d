"""The frame plan: which frames a film has and which segment owns them.  Integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from farm.states import Continuity


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """Frames [first_frame, first_frame + frames) of one film."""

    first_frame: int
    frames: int
    needs_carry: bool  # starts from the state that the segment before it left


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
    continuity: Continuity = Continuity.CARRY,
    pauses: Sequence[tuple[int, int]] = (),
) -> list[PlannedSegment]:
    """Cut [0, total_frames) into segments of whole chunks; only the film's last chunk may be partial.

    The first segment is short, for an early look.  A last segment shorter than half of the others joins the one before
    it.  With carry continuity the segments are a chain.  With parallel continuity each starts afresh, and cuts move to
    the chunk boundary nearest to a pause in the speech when one lies within a quarter segment; `pauses` are frame
    ranges [start, stop).
    """
    if total_frames <= 0:
        raise ValueError("a film has at least one frame")
    per_chunk = chunk_frames * fps[1] / fps[0]  # seconds

    def whole_chunks(seconds: float) -> int:
        return max(1, round(seconds / per_chunk)) * chunk_frames

    usual, first = whole_chunks(segment_seconds), whole_chunks(min(first_seconds, segment_seconds))
    cuts = [0]
    while True:
        step = first if len(cuts) == 1 else usual
        cut = cuts[-1] + step
        if continuity is Continuity.PARALLEL:
            cut = _nearest_pause(cut, cuts[-1], usual // 4, chunk_frames, pauses)
        if total_frames - cut < usual // 2 and (len(cuts) > 1 or total_frames - cut < chunk_frames):
            break
        if cut >= total_frames:
            break
        cuts.append(cut)
    cuts.append(total_frames)
    chained = continuity is Continuity.CARRY
    return [PlannedSegment(start, stop - start, needs_carry=chained and start > 0) for start, stop in pairwise(cuts)]


def _nearest_pause(cut: int, previous: int, reach: int, chunk_frames: int, pauses: Sequence[tuple[int, int]]) -> int:
    """The chunk boundary inside a pause that lies nearest to `cut`, or `cut` when none is in reach."""
    best = cut
    best_distance = reach + 1
    for start, stop in pauses:
        middle = (start + stop) // 2
        boundary = round(middle / chunk_frames) * chunk_frames
        if start <= boundary < stop and boundary > previous and abs(boundary - cut) < best_distance:
            best, best_distance = boundary, abs(boundary - cut)
    return best
