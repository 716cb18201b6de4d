"""Speech to the mouth's eight curves, 100 values a second, by our own small networks.

Two temporal convolution nets of 353 thousand parameters together, trained by us on synthesised speech with exact phone
timings, are asked about the voice as it is and as two other throats would have it.  Their input is 40 log-mels, their
context 170 ms on either side.

The curves are computed in blocks that stand at fixed places of the film and always have the same shape, so a value
never depends on where a render started.  They are handed out as integers: sums of them are exact in any order.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from workers.engines.contract import DRIVING_RATE, DrivingAudio
from workers.engines.preview import mel

WEIGHTS = Path(__file__).parent / "speech_network.npz"
RATE = DRIVING_RATE // mel.HOP  # curve values per second; value t is centred on second (t + 0.5) / RATE
UNIT = 512  # an integer of UNIT means 1.0
FUTURE = 16  # curve values after a frame's centre that motion may look at
_BLOCK = RATE  # values
_DILATIONS = (1, 2, 4, 8)
_REACH = 2 + sum(_DILATIONS)  # features of context on either side
_THROATS = (0.94, 1.0, 1.06)  # the voice is heard with its spectrum this many times as high
_KEPT_BLOCKS = 16

Curves = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


class Curve(IntEnum):
    """Columns of the curves."""

    OPEN = 0  # jaw
    WIDE = 1  # lip corners apart
    ROUND = 2  # lips pushed forward
    CLOSE = 3  # lips pressed together: p, b, m
    TUCK = 4  # lower lip under the teeth: f, v
    TEETH = 5  # teeth near each other: s, z, sh
    TONGUE = 6  # tongue up: l, n, t, d
    TALK = 7  # somebody speaks
    LEVEL = 8  # log energy, not from the network


class SpeechNetwork:
    """The weights, in double precision: one network or several, which are asked together."""

    def __init__(self, path: Path = WEIGHTS) -> None:
        content = path.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        members: dict[str, dict[str, Doubles]] = {}
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            for name in stored.files:
                number, _, short = name.rpartition("/")
                members.setdefault(number, {})[short] = stored[name].astype(np.float64)
        self._members = [_Member(members[number]) for number in sorted(members)]
        self._throats = [mel.throat(factor) for factor in _THROATS]

    def __call__(self, log_mels: Doubles) -> Doubles:
        """Log-mels [n + 2 * reach, 40] to curves [n, 8]; all but the closures are unbounded.

        The mean of what each network says of the voice as it is and as larger and smaller speakers would have it:
        where they differ they are unsure, and what one of them alone takes for a closure is none.
        """
        heard = [mel.product(log_mels, throat) for throat in self._throats]
        said = [member(voice) for member in self._members for voice in heard]
        curves = sum(said[1:], start=said[0]) / len(said)
        # Of a closure the networks say how sure they are, as a logit.
        curves[:, Curve.CLOSE] = 1.0 / (1.0 + np.exp(-np.clip(curves[:, Curve.CLOSE], -30.0, 30.0)))
        return curves


class _Member:
    """One network."""

    def __init__(self, weights: dict[str, Doubles]) -> None:
        self._mean, self._deviation = weights["mu"], weights["sd"]
        self._first = _taps_first(weights["iw"]), weights["ib"]
        self._middle = [(_taps_first(weights[f"w{k}"]), weights[f"b{k}"]) for k in range(len(_DILATIONS))]
        self._last = np.ascontiguousarray(weights["ow"].T), weights["ob"]

    def __call__(self, log_mels: Doubles) -> Doubles:
        """Log-mels [n + 2 * reach, 40] to curves [n, 8]; the closure is a logit."""
        taps, bias = self._first
        x = (log_mels - self._mean) / self._deviation
        n = len(x) - len(taps) + 1
        x = np.maximum(sum(mel.product(x[k : k + n], tap) for k, tap in enumerate(taps)) + bias, 0.0)
        for dilation, (taps, bias) in zip(_DILATIONS, self._middle, strict=True):
            n = len(x) - 2 * dilation
            convolved = sum(mel.product(x[k * dilation : k * dilation + n], tap) for k, tap in enumerate(taps)) + bias
            x = x[dilation:-dilation] + np.maximum(convolved, 0.0)
        out, bias = self._last
        return mel.product(x, out) + bias


def _taps_first(weights: Doubles) -> Doubles:
    """Convolution weights [out, in, taps] as [taps, in, out]."""
    return np.ascontiguousarray(weights.transpose(2, 1, 0))


class SpeechCurves:
    """The curves of one film, computed on demand from windows of its audio."""

    def __init__(self, network: SpeechNetwork, audio: DrivingAudio, speech_gain: float) -> None:
        self._network = network
        self._audio = audio
        self._gain = speech_gain
        self._blocks: OrderedDict[int, Curves] = OrderedDict()

    def window(self, start: int, stop: int) -> Curves:
        """Values [start, stop) of every curve, int64 [stop - start, 9] in units of 1 / UNIT; any integers are valid."""
        first, last = (start - FUTURE) // _BLOCK, (stop - 1 - FUTURE) // _BLOCK
        joined = np.concatenate([self._block(b) for b in range(first, last + 1)])
        offset = first * _BLOCK + FUTURE
        return joined[start - offset : stop - offset]

    def _block(self, index: int) -> Curves:
        """Values [index * _BLOCK + FUTURE, ... + _BLOCK).

        The shift by FUTURE lets all frames of one second be made from blocks up to that second's own.
        """
        found = self._blocks.get(index)
        if found is None:
            # A live session hears the rest of a block later.  A value depends on the samples around it alone, so
            # those that can be known are right already; the others are computed again.
            is_whole = self._samples(index * _BLOCK + FUTURE)[1] <= len(self._audio)
            found = self._compute(index * _BLOCK + FUTURE)
            if is_whole:
                self._blocks[index] = found
            if len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return found

    def _samples(self, first_value: int) -> tuple[int, int]:
        """The samples [start, stop) that a block is made from."""
        start = (first_value - _REACH) * mel.HOP - mel.LEAD
        return start, start + mel.samples_for(_BLOCK + 2 * _REACH)

    def _compute(self, first_value: int) -> Curves:
        samples = np.nan_to_num(self._audio.read(*self._samples(first_value)))
        log_mels, energies = mel.features(samples, self._gain)
        mouth = np.clip(self._network(log_mels), 0.0, 1.0)
        level = energies[_REACH:-_REACH, None]
        return np.rint(np.concatenate([mouth, level], axis=1) * UNIT).astype(np.int64)


def lookahead_samples() -> int:
    """Driving samples after a chunk's last frame that its curves are made from."""
    return (FUTURE + _REACH) * mel.HOP + mel.WINDOW - mel.LEAD - mel.HOP
