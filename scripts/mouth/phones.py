"""What each phone asks of the mouth, and the curves that a row of phones gives.

Phones are IPA.  The shapes are ours, after what textbooks of phonetics say of jaw and lips; they are targets of a
drawing, not measurements of a speaker.  A phone asks for a place in each curve and says how firmly: a p holds the lips
shut whatever stands beside it, a k lets the vowels decide.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Samples = npt.NDArray[np.float32]

RATE = 100  # values a second
_FINE = 5  # curves are drawn this much finer and then averaged
# Seconds of smoothing of open, wide, round, tuck, teeth, tongue.  Closures are not blended: lips touch or they do not.
_SOFT = (0.030, 0.045, 0.055, 0.022, 0.028, 0.028)
_CLOSURE_SOFT = 0.008
_TALK_SOFT = 0.015


@dataclass(frozen=True)
class Segment:
    """One phone of an utterance, or silence (phone None).  Seconds."""

    phone: str | None
    start: float
    stop: float


@dataclass(frozen=True)
class Utterance:
    """What was said: samples at 16 kHz and the phones in them."""

    voice: str
    samples: Samples
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Shape:
    """Place and firmness of open, wide, round, tuck, teeth, tongue; the share of its time that the lips are closed."""

    place: tuple[float, ...]
    firm: tuple[float, ...]
    closed: float = 0.0


def _vowel(opened: float, wide: float, rounded: float) -> Shape:
    return Shape((opened, wide, rounded, 0, 0, 0), (1, 0.9, 0.9, 0.6, 0.6, 0.5))


_SILENCE = Shape((0, 0.25, 0.1, 0, 0, 0), (1, 0.3, 0.3, 1, 0.6, 0.6))

_VOWELS = {
    "a": (1, 0.35, 0), "ɑ": (0.95, 0.1, 0.05), "ɐ": (0.8, 0.25, 0), "æ": (0.85, 0.6, 0), "ʌ": (0.65, 0.25, 0),
    "ɒ": (0.8, 0, 0.45), "ɔ": (0.65, 0, 0.6), "o": (0.5, 0, 0.8), "ɤ": (0.45, 0.2, 0.1), "ʊ": (0.3, 0.05, 0.65),
    "u": (0.2, 0, 1), "ɯ": (0.22, 0.35, 0.05), "ɵ": (0.35, 0, 0.6), "ø": (0.4, 0, 0.75), "œ": (0.55, 0, 0.6),
    "y": (0.18, 0, 0.95), "ʏ": (0.25, 0, 0.75), "i": (0.2, 1, 0), "ɪ": (0.3, 0.75, 0), "ɨ": (0.22, 0.5, 0),
    "e": (0.42, 0.8, 0), "ɛ": (0.58, 0.65, 0), "ə": (0.38, 0.3, 0.08), "ɜ": (0.45, 0.2, 0.2),
    "ɚ": (0.38, 0.15, 0.3), "ɝ": (0.42, 0.15, 0.3), "ɘ": (0.4, 0.35, 0.05), "ɶ": (0.8, 0.1, 0.3),
    "ᵻ": (0.27, 0.55, 0), "ʉ": (0.22, 0, 0.85),
}  # fmt: skip

_BILABIAL = (0, 0.25, 0.1, 0, 0, 0), (5, 0.15, 0.15, 1, 0.5, 0.5)
_CONSONANTS: list[tuple[str, Shape]] = [
    ("m", Shape(*_BILABIAL, closed=1.0)),
    ("b", Shape(*_BILABIAL, closed=0.88)),
    ("p", Shape(*_BILABIAL, closed=0.72)),  # the rest of it is the burst, and often a breath
    ("f v", Shape((0.1, 0.35, 0.05, 1, 0.3, 0), (3, 0.3, 0.4, 5, 1, 0.5))),
    ("ɱ", Shape((0.1, 0.3, 0.05, 0.8, 0.3, 0), (3, 0.3, 0.4, 3, 1, 0.5))),
    ("ʋ", Shape((0.15, 0.3, 0.2, 0.6, 0.2, 0), (2, 0.3, 0.4, 3, 1, 0.5))),
    ("ɸ β", Shape((0.08, 0.1, 0.4, 0.2, 0, 0), (3, 0.3, 0.5, 1, 1, 0.5))),
    ("w ʍ ɥ", Shape((0.12, 0, 1, 0, 0, 0), (2.5, 1, 3, 1, 1, 1))),
    ("s z ts dz ʦ ʣ", Shape((0.14, 0.58, 0.05, 0, 1, 0.1), (2.5, 0.5, 0.5, 1, 4, 0.5))),
    ("ɕ ʑ tɕ dʑ ʨ ʥ ç", Shape((0.16, 0.55, 0.2, 0, 0.9, 0.1), (2, 0.5, 0.6, 1, 3, 0.5))),
    ("ʃ ʒ tʃ dʒ ʧ ʤ ʂ ʐ tʂ dʐ", Shape((0.17, 0.15, 0.6, 0, 0.95, 0), (2.2, 0.6, 1.6, 1, 4, 0.5))),
    ("θ ð", Shape((0.2, 0.35, 0, 0, 0.5, 1), (1.6, 0.4, 0.5, 1, 2, 5))),
    ("t d ʈ ɖ ɾ", Shape((0.2, 0.35, 0.05, 0, 0.55, 0.5), (0.9, 0.2, 0.25, 0.8, 1.4, 1.5))),
    ("n ɳ ɲ ɴ", Shape((0.22, 0.35, 0.05, 0, 0.4, 0.5), (0.8, 0.2, 0.25, 0.8, 1, 1.5))),
    ("l ɭ ɬ ʎ ɫ", Shape((0.3, 0.35, 0.05, 0, 0.2, 0.8), (0.9, 0.25, 0.3, 0.8, 0.7, 2.2))),
    ("ɹ r ɻ ɽ ʀ ʁ", Shape((0.25, 0.1, 0.4, 0, 0.25, 0.2), (0.9, 0.3, 0.8, 0.8, 0.7, 0.7))),
    ("k ɡ ŋ x ɣ q χ c ɟ ʝ ɰ", Shape((0.28, 0.3, 0.1, 0, 0.15, 0), (0.55, 0.15, 0.2, 0.8, 0.5, 0.4))),
    ("j", Shape((0.2, 0.8, 0, 0, 0.35, 0), (1.2, 0.9, 0.5, 0.8, 0.7, 0.4))),
    ("h ɦ ʔ ħ ʕ", Shape((0.4, 0.3, 0.1, 0, 0, 0), (0.12, 0.1, 0.1, 0.6, 0.2, 0.2))),
]  # fmt: skip

_SHAPES = {vowel: _vowel(*place) for vowel, place in _VOWELS.items()}
_SHAPES |= {phone: shape for phones, shape in _CONSONANTS for phone in phones.split()}

BILABIALS = frozenset("pbm")
WIDE_VOWELS, ROUND_VOWELS = frozenset("ieɪɛ"), frozenset("uoʊɔyø")

# Phones that sound alike to a listener of any language, silence first.  Telling them apart is asked of the network in
# training only: what it must know for that, it then uses for the curves.
_KINDS = (
    "", "p", "b", "m ɱ", "f ɸ", "v ʋ β", "w ʍ ɥ", "t ʈ", "d ɖ ɾ", "n ɳ", "ɲ ŋ ɴ", "k q c", "ɡ ɟ ɰ", "s ts ʦ",
    "z dz ʣ", "ʃ tʃ ʧ ʂ tʂ ɕ tɕ ʨ ç", "ʒ dʒ ʤ ʐ dʐ ʑ dʑ ʥ ʝ", "θ", "ð", "l ɭ ɬ ʎ ɫ", "ɹ ɻ ɚ ɝ", "r ɽ ʀ ʁ",
    "x ɣ χ h ɦ ħ", "j", "a ɑ ɐ ɒ ɶ", "æ ɛ", "e", "i", "ɪ ɨ ᵻ ɘ ɯ", "ə ʌ ɜ ɤ", "ɔ", "o", "u ʊ ʉ", "y ʏ", "ø œ ɵ",
)  # fmt: skip
KINDS = len(_KINDS)
_KIND_OF = {phone: kind for kind, phones in enumerate(_KINDS) for phone in phones.split()}


def letters(phone: str | None) -> list[str]:
    """The known phones that one symbol of a synthesiser stands for; a diphthong or an affricate may be two."""
    if phone is None:
        return []
    plain = unicodedata.normalize("NFD", phone.replace("g", "ɡ"))
    plain = "".join(c for c in plain if unicodedata.category(c) not in ("Mn", "Lm", "Sk", "Nd", "Po", "Zs"))
    found, at = [], 0
    while at < len(plain):
        pair = plain[at : at + 2]
        size = 2 if len(pair) == 2 and pair in _SHAPES else 1
        if plain[at : at + size] in _SHAPES:
            found.append(plain[at : at + size])
        at += size
    return found


def draw_curves(segments: Iterable[Segment], count: int) -> npt.NDArray[np.float32]:
    """The eight curves [count, 8] in the order of articulation.Curve, RATE values a second."""
    fine = RATE * _FINE
    place, firm = np.zeros((count * _FINE, 6)), np.full((count * _FINE, 6), 0.02)
    closed, talk = np.zeros(count * _FINE), np.zeros(count * _FINE)
    for segment in segments:
        start, stop = round(segment.start * fine), min(count * _FINE, round(segment.stop * fine))
        known = letters(segment.phone)
        if stop <= start:
            continue
        if segment.phone is None:
            place[start:stop], firm[start:stop] = _SILENCE.place, _SILENCE.firm
            continue
        talk[start:stop] = 1
        edges = np.linspace(start, stop, len(known) + 1).round().astype(int)
        for phone, low, high in zip(known, edges, edges[1:], strict=False):
            shape = _SHAPES[phone]
            place[low:high], firm[low:high] = shape.place, shape.firm
            closed[low : low + round(shape.closed * (high - low))] = 1 if shape.closed else 0
    curves = np.zeros((count * _FINE, 8))
    for column, (source, seconds) in enumerate(zip((0, 1, 2, 4, 5, 6), _SOFT, strict=True)):
        weighted = _blur(place[:, column] * firm[:, column], seconds * fine)
        curves[:, source] = weighted / _blur(firm[:, column], seconds * fine)
    curves[:, 3] = _blur(closed, _CLOSURE_SOFT * fine)
    curves[:, 7] = _blur(talk, _TALK_SOFT * fine)
    return curves.reshape(count, _FINE, 8).mean(axis=1).astype(np.float32)


def draw_kinds(segments: Iterable[Segment], count: int) -> npt.NDArray[np.int64]:
    """Which kind of phone is heard at each value of the curves [count]; 0 in silence, -1 where it is not known."""
    kinds = np.zeros(count, np.int64)
    for segment in segments:
        known = letters(segment.phone)
        if segment.phone is None or not known:
            edges, found = [segment.start, segment.stop], [0 if segment.phone is None else -1]
        else:
            edges = list(np.linspace(segment.start, segment.stop, len(known) + 1))
            found = [_KIND_OF.get(phone, -1) for phone in known]
        for kind, low, high in zip(found, edges, edges[1:], strict=False):
            kinds[max(0, round(low * RATE)) : max(0, round(high * RATE))] = kind
    return kinds


def _blur(series: Doubles, sigma: float) -> Doubles:
    """Gaussian, its ends repeated."""
    half = round(4 * sigma)
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    return np.convolve(np.pad(series, half, mode="edge"), weights / weights.sum(), mode="valid")
