"""Where each phone of a known English text lies in a recording, by pocketsphinx and its own models.

Checked on the example reading: at 27 of its 29 p, b and m the level of the sound dips between the phone's ends.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from farm.errors import ConfigError, InputError
from scripts.mouth.arpabet import ARPABET
from scripts.mouth.phones import Segment
from workers.engines.contract import DRIVING_RATE

_TICK = 0.01  # seconds of the aligner's frames


def read_phones(path: Path) -> tuple[Segment, ...]:
    """Segments of a file with a line of start, stop and phone, ARPABET or IPA, for each; no phone is silence."""
    rows = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    return tuple(Segment(ARPABET.get(phone, phone) or None, float(a), float(b)) for a, b, phone in rows)


def align(samples: npt.NDArray[np.float32], text: str) -> tuple[Segment, ...]:
    """Phones of `samples` at DRIVING_RATE.  Raises ConfigError without pocketsphinx, InputError when it fails."""
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise ConfigError("--text needs the package pocketsphinx; install it or leave --text out") from None
    decoder = Decoder(samprate=DRIVING_RATE, bestpath=False, loglevel="FATAL")
    words = re.sub(r"[^a-z' ]+", " ", text.lower()).split()
    unknown = sorted({word for word in words if decoder.lookup_word(word) is None})
    if unknown:
        raise InputError(f"the aligner's dictionary lacks {', '.join(unknown)}; write these words otherwise")
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    decoder.set_align_text(" ".join(words))
    for level in ("words", "phones"):
        if level == "phones":
            decoder.set_alignment()
        decoder.start_utt()
        decoder.process_raw(pcm, full_utt=True)
        decoder.end_utt()
        # Asked for its words while it looks for phones, pocketsphinx 5.1 dies.
        if level == "words" and decoder.hyp() is None:
            raise InputError("the text does not fit the recording")
    found = [phone for word in decoder.get_alignment() for phone in word]
    return tuple(
        Segment(ARPABET.get(phone.name.lower()), phone.start * _TICK, (phone.start + phone.duration) * _TICK)
        for phone in found
    )
