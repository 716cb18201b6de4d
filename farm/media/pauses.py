"""Find the pauses in speech at places that only the sound around them decides.

A pause must be found at the same sample of the same words wherever these stand in a recording, so nothing here looks
at a fixed grid, at the whole recording or at a state carried along: levels are sums of integers over windows around
each sample, and what is quiet is judged against the seconds around it.  Memory is constant, whatever the length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from farm.media.sound import NativeSound

Samples = npt.NDArray[np.int16]
Sound = Samples | NativeSound

_QUIET_SECONDS = 0.3  # what a pause must last at least, nearly
_AROUND_SECONDS = 1.5  # to either side: no quieter place lies nearer, and the loudness that quiet is judged against
_QUIETER = 16  # 12 dB in power
_HOPS = 100  # of 10 ms to either side, as far as a pause's length is followed
_BLOCK_SECONDS = 30


@dataclass(frozen=True, slots=True, order=True)
class Pause:
    """A quiet place.  They compare by how good a place they are to cut at."""

    length: int  # samples without speech, in steps of 10 ms, at most two seconds
    mark: int  # 64 bits of a hash of the sound around it, to choose between pauses of equal length
    at: int  # sample in its middle


def find_pauses(sound: Sound, rate: int) -> list[Pause]:
    """The pauses of `sound`, mono int16 [n] at `rate` Hz, in order; at most one in 1.5 seconds."""
    found = {pause.at: pause for at in _quietest(sound, rate) if (pause := _measure(sound, rate, at)) is not None}
    return [found[at] for at in sorted(found)]


def _quietest(sound: Sound, rate: int) -> Iterator[int]:
    """Samples around which it is quieter than around any other within _AROUND_SECONDS; of equals the first."""
    half, around, block = int(_QUIET_SECONDS * rate / 2), int(_AROUND_SECONDS * rate), _BLOCK_SECONDS * rate
    for start in range(0, len(sound), block):
        count = min(block, len(sound) - start)
        powers = _powers(sound, start - around - half, start + count + around + half)
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(powers)])
        level = sums[2 * half :] - sums[: -2 * half]  # [i] is around sample start - around + i
        least = _running_minimum(level, around)
        here = level[around : around + count]
        places = np.flatnonzero((here < least[:count]) & (here <= least[around + 1 : around + 1 + count]))
        yield from (start + int(place) for place in places)


def _running_minimum(values: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """[i] = min(values[i : i + width]), by prefix and suffix minima of blocks (van Herk 1992; Gil, Werman 1993)."""
    count = len(values) - width + 1
    padded = np.pad(values, (0, -len(values) % width), mode="edge").reshape(-1, width)
    forward = np.minimum.accumulate(padded, axis=1).ravel()
    backward = np.minimum.accumulate(padded[:, ::-1], axis=1)[:, ::-1].ravel()
    return np.minimum(backward[:count], forward[width - 1 : width - 1 + count])


def _measure(sound: Sound, rate: int, at: int) -> Pause | None:
    """The pause around `at`; None when it is hardly quieter there than around it."""
    half, around, hop = int(_QUIET_SECONDS * rate / 2), int(_AROUND_SECONDS * rate), rate // 100
    loud = int(_powers(sound, at - around, at + around).sum())
    inside = int(_powers(sound, at - half, at + half).sum())
    if inside * _QUIETER * around > loud * half:
        return None
    hops = _powers(sound, at - _HOPS * hop, at + _HOPS * hop).reshape(-1, hop).sum(axis=1)
    speaks = hops * (_QUIETER * 2 * around) > loud * hop
    before, after = speaks[:_HOPS][::-1], speaks[_HOPS:]
    left = int(before.argmax()) if before.any() else _HOPS
    right = int(after.argmax()) if after.any() else _HOPS
    middle = at + (right - left) * hop // 2
    content = _read(sound, middle - rate, middle + rate).astype("<i2").tobytes()
    mark = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    return Pause((left + right) * hop, mark, middle)


def _powers(sound: Sound, start: int, stop: int) -> npt.NDArray[np.int64]:
    return np.square(_read(sound, start, stop).astype(np.int64))


def _read(sound: Sound, start: int, stop: int) -> Samples:
    """Samples [start, stop), silence outside of the recording."""
    read = np.zeros(stop - start, np.int16)
    first, last = max(start, 0), min(stop, len(sound))
    if first < last:
        read[first - start : last - start] = sound[first:last]
    return read
