"""Synthesised speech whose phones are known to the sample, and the texts that are spoken.

Debian's packages are used as they are: espeak-ng, flite, festival with its voices, fortunes-* for texts.  Voices whose
licence asks nothing of what is made with them are heard in training; those under the GPL or LGPL only test the network.
THIRD_PARTY.md lists them all.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import subprocess
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly

from scripts.mouth.arpabet import ARPABET
from scripts.mouth.phones import Samples, Segment, Utterance
from workers.engines.contract import DRIVING_RATE

FORTUNES = Path("/usr/share/games/fortunes")
_ENGLISH = ("fortunes", "literature", "wisdom", "love", "people", "science", "food", "work", "politics")


def read_texts(language: str) -> list[str]:
    """Sentences of a language from the installed fortunes, or our own where Debian has none."""
    if language in _OWN_TEXTS:
        return re.split(r"(?<=\.) ", _OWN_TEXTS[language])
    if language == "en":
        files = [FORTUNES / name for name in _ENGLISH]
    elif language == "zh":
        files = [FORTUNES / name for name in ("tang300", "song100", "chinese")]
    elif language == "pt":
        files = [FORTUNES / "brasil"]
    else:
        files = sorted(path for path in (FORTUNES / language).iterdir() if path.suffix in ("", ".fortunes"))
        files = [path for path in files if path.is_file()]
    sentences = []
    for path in files:
        for fortune in re.split(r"\n%+\n", path.read_text("utf-8", "ignore")):
            plain = re.sub(r"\x1b\[[0-9;]*m|[\x08_*<>{}\[\]|\\/=#~^`+@\"]", "", re.sub(r"\s+", " ", fortune)).strip()
            sentences += re.split(r"(?<=[.!?。！？;])\s*", plain)
    return [sentence for sentence in sentences if 15 < len(sentence.encode()) < 220]


_OWN_TEXTS = {
    "fi": "Pieni punainen mökki on metsän reunassa. Äiti keittää perunoita ja pappa lämmittää saunaa. "
    "Huomenna aamulla me lähdemme veneellä saareen. Bussi pysähtyi pimeän talon eteen. "
    "Missä olet ollut koko päivän, kysyi poika. Syksyllä puut muuttuvat keltaisiksi ja punaisiksi. "
    "Voimme ostaa leipää, maitoa ja omenoita torilta. Hän puhui hitaasti ja painoi jokaisen sanan mieleensä. "
    "Ulkona sataa vettä, mutta me emme välitä siitä. Kuu nousi hiljaa mustan meren ylle.",
    "ca": "Bon dia, avui parlem de la pluja i del vent. La meva mare prepara pa amb tomàquet. "
    "El poble petit és a prop de la platja. Demà al matí pujarem a la muntanya amb el tren. "
    "Han obert una botiga nova al mig de la plaça. Quan plou, els nens miren per la finestra. "
    "Volem comprar pomes, peres i una mica de formatge. Ningú no sabia per què el vaixell no tornava. "
    "El mestre va explicar el problema amb molta paciència. A la tardor les fulles cauen a poc a poc.",
}


def to_driving_rate(samples: Samples, rate: int) -> Samples:
    """Resampled to DRIVING_RATE."""
    common = gcd(rate, DRIVING_RATE)
    return np.asarray(resample_poly(samples, DRIVING_RATE // common, rate // common), np.float32)


def _read_wave(path: Path) -> tuple[Samples, int]:
    with wave.open(str(path)) as sound:
        pcm = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        return pcm.astype(np.float32) / 32768, sound.getframerate()


class Espeak:
    """espeak-ng by its library, which tells when each phone begins (Klatt and formant synthesis, no recordings)."""

    LANGUAGES: ClassVar = {
        "en": (("en-us", "en-gb", "en-gb-x-rp", "en-029"), 3), "zh": (("cmn", "yue"), 3), "es": (("es", "es-419"), 1),
        "de": (("de",), 1), "pt": (("pt-br", "pt"), 1),
    }  # fmt: skip
    _VARIANTS = (
        "", "+f1", "+f2", "+f3", "+f4", "+f5", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+klatt", "+klatt2",
        "+klatt3", "+croak", "+steph", "+anika", "+belinda", "+michael", "+max", "+Annie",
    )  # fmt: skip

    class _Event(ctypes.Structure):
        """espeak_EVENT of speak_lib.h."""

        _fields_ = [
            ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int),
            ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
            ("user_data", ctypes.c_void_p), ("phone", ctypes.c_char * 8),
        ]  # fmt: skip

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._rate = self._library.espeak_Initialize(2, 0, None, 3)  # synchronous; phone events, in IPA
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(self._Event))
        self._callback = kind(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)
        self._pcm: list[npt.NDArray[np.int16]] = []
        self._begins: list[tuple[float, str]] = []

    def _collect(self, pcm: Any, count: int, events: Any) -> int:
        if count > 0:
            self._pcm.append(np.ctypeslib.as_array(pcm, (count,)).copy())
        k = 0
        while events[k].type:
            if events[k].type == 7:
                self._begins.append((events[k].audio_position / 1000, events[k].phone.decode("utf-8", "ignore")))
            k += 1
        return 0

    def say(self, chance: random.Random, texts: dict[str, list[str]]) -> Utterance:
        """Any language, any variant of its voice, any rate and pitch."""
        language = chance.choices(list(self.LANGUAGES), [weight for _, weight in self.LANGUAGES.values()])[0]
        voice = chance.choice(self.LANGUAGES[language][0]) + chance.choice(self._VARIANTS)
        self._library.espeak_SetVoiceByName(voice.encode())
        for parameter, value in (
            (1, chance.randint(130, 230)),
            (3, chance.randint(15, 85)),
            (4, chance.randint(20, 80)),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pcm, self._begins = [], []
        text = chance.choice(texts[language]).encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, 1, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._pcm).astype(np.float32) / 32768
        ends = [begin for begin, _ in self._begins[1:]] + [len(samples) / self._rate]
        segments = tuple(
            Segment(phone if phone.strip("_: ") else None, begin, end)
            for (begin, phone), end in zip(self._begins, ends, strict=True)
            if not phone.startswith("(")
        )
        return Utterance(f"espeak {voice}", to_driving_rate(samples, self._rate), segments)


_SILENT = {"pau", "h#", "sil", "brth", "ssil", "#", "##", "_", "<p:>", "sp", ""}
_ITALIAN = {
    "a1": "a", "e1": "e", "E1": "ɛ", "i1": "i", "o1": "o", "O1": "ɔ", "u1": "u", "E": "ɛ", "O": "ɔ", "S": "ʃ",
    "Z": "ʒ", "tS": "tʃ", "dZ": "dʒ", "LL": "ʎ", "L": "ʎ", "JJ": "ɲ", "J": "ɲ", "ng": "ŋ", "nf": "ɱ", "@": "ə",
}  # fmt: skip
_RUSSIAN = {
    "ii": "i", "aa": "a", "ae": "ə", "oo": "o", "ee": "e", "uu": "u", "y": "ɨ", "yy": "ɨ", "ur": "ə", "ay": "ə",
    "ey": "ə", "oy": "ə", "er": "e", "sh": "ʃ", "zh": "ʒ", "ch": "tɕ", "sch": "ɕ", "c": "ts", "h": "x", "hh": "x",
    **{letter * 2: letter for letter in "lntdszpmfvkgrbh"},
}  # fmt: skip
_CZECH = {
    "c": "ts", "c~": "tʃ", "ch": "x", "d~": "ɟ", "t~": "c", "n~": "ɲ", "r~": "ʒ", "s~": "ʃ", "z~": "ʒ", "dz~": "dʒ",
    "h": "ɦ", "e": "ɛ", "e:": "ɛ",
}  # fmt: skip
_FINNISH = {"a": "ɑ", "a:": "ɑ", "@": "æ", "@:": "æ", "{": "æ", "{:": "æ", "7": "ø", "7:": "ø", "2": "ø", "N": "ŋ"}
_CATALAN = {
    "O1": "ɔ", "E1": "ɛ", "ax": "ə", "rr": "r", "S": "ʃ", "Z": "ʒ", "L": "ʎ", "ny": "ɲ", "ng": "ŋ", "tS": "tʃ",
    "dZ": "dʒ", "ts": "ts", "dz": "dz", "w": "w", "uw": "w", "y": "j", "D": "ð", "B": "β", "G": "ɣ",
    **{f"{vowel}1": vowel for vowel in "aiou"}, "e1": "e",
}  # fmt: skip


@dataclass(frozen=True)
class FestivalVoice:
    """One voice of festival, the language it speaks, how its script is encoded, and its phones in IPA."""

    name: str
    language: str
    encoding: str
    phones: dict[str, str]


KEPT_FROM_TRAINING = (
    FestivalVoice("lp_diphone", "it", "latin1", _ITALIAN),
    FestivalVoice("pc_diphone", "it", "latin1", _ITALIAN),
    FestivalVoice("msu_ru_nsh_clunits", "ru", "utf-8", _RUSSIAN),
    FestivalVoice("czech_dita", "cs", "iso8859-2", _CZECH),
    FestivalVoice("czech_machac", "cs", "iso8859-2", _CZECH),
    FestivalVoice("suo_fi_lj_diphone", "fi", "latin1", _FINNISH),
    FestivalVoice("upc_ca_ona_hts", "ca", "latin1", _CATALAN),
)
TRAINED_ON = (
    FestivalVoice("kal_diphone", "en", "latin1", ARPABET),
    FestivalVoice("ked_diphone", "en", "latin1", ARPABET),
    FestivalVoice("cmu_us_slt_arctic_hts", "en", "latin1", ARPABET),
)


def say_with_festival(voice: FestivalVoice, text: str, stretch: float) -> Utterance:
    """One sentence; festival writes the end of each phone beside the sound."""
    with tempfile.TemporaryDirectory() as folder:
        script, sound, phones = (Path(folder) / name for name in ("say.scm", "said.wav", "said.seg"))
        plain = text.replace("\\", "").replace('"', "")
        script.write_text(
            f"(voice_{voice.name})(Parameter.set 'Duration_Stretch {stretch:.2f})"
            f'(set! said (utt.synth (Utterance Text "{plain}")))'
            f'(utt.save.wave said "{sound}")(utt.save.segs said "{phones}")',
            voice.encoding,
            "ignore",
        )
        subprocess.run(["festival", "-b", script], capture_output=True, timeout=120, check=True)
        samples, rate = _read_wave(sound)
        rows = phones.read_text("latin1").split("#\n", 1)[1].split("\n")
    segments, begin = [], 0.0
    for row in filter(None, map(str.split, rows)):
        end, phone = float(row[0]), row[-1] if len(row) > 2 else ""
        segments.append(Segment(None if phone in _SILENT else voice.phones.get(phone, phone), begin, end))
        begin = end
    return Utterance(f"festival {voice.name}", to_driving_rate(samples, rate), tuple(segments))


def say_with_flite(name: str, text: str, stretch: float) -> Utterance:
    """One English sentence; flite prints the end of each phone."""
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "said.wav"
        argv = ["flite", "-voice", name, "--setf", f"duration_stretch={stretch:.2f}", "-psdur", "-t", text, "-o", sound]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        samples, rate = _read_wave(sound)
    segments, begin = [], 0.0
    for word in done.stdout.split():
        phone, end = word.rsplit(":", 1)
        phone = re.sub(r"\d", "", phone)
        segments.append(Segment(None if phone in _SILENT else ARPABET.get(phone, phone), begin, float(end)))
        begin = float(end)
    return Utterance(f"flite {name}", to_driving_rate(samples, rate), tuple(segments))


_SHARES = {"espeak": 0.42, "slt": 0.10, "awb": 0.12, "rms": 0.14, "kal16": 0.04} | {
    "kal_diphone": 0.04, "ked_diphone": 0.07, "cmu_us_slt_arctic_hts": 0.07,
}  # fmt: skip


def speak_for_training(seed: int, seconds: float) -> Iterator[Utterance]:
    """Utterances of the training voices, `seconds` of them together."""
    chance = random.Random(seed)
    texts = {language: read_texts(language) for language in Espeak.LANGUAGES}
    espeak = Espeak()
    festival = {voice.name: voice for voice in TRAINED_ON}
    while seconds > 0:
        name = chance.choices(list(_SHARES), list(_SHARES.values()))[0]
        try:
            if name == "espeak":
                said = espeak.say(chance, texts)
            elif name in festival:
                said = say_with_festival(festival[name], chance.choice(texts["en"]), chance.uniform(0.85, 1.25))
            else:
                said = say_with_flite(name, chance.choice(texts["en"]), chance.uniform(0.8, 1.35))
        except (subprocess.SubprocessError, OSError, ValueError, wave.Error, IndexError, EOFError):
            continue  # a few sentences have signs that a synthesiser cannot say
        if len(said.samples) > DRIVING_RATE and said.segments:
            seconds -= len(said.samples) / DRIVING_RATE
            yield said


def speak_for_test(seed: int, sentences: int) -> Iterator[Utterance]:
    """`sentences` of each voice kept from training."""
    for voice in KEPT_FROM_TRAINING:
        chance = random.Random(f"{seed}:{voice.name}")
        texts = read_texts(voice.language)
        chance.shuffle(texts)
        left = sentences
        for text in texts:
            if not left:
                break
            try:
                said = say_with_festival(voice, text, 1.0)
            except (subprocess.SubprocessError, OSError, ValueError, wave.Error, IndexError, EOFError):
                continue
            if len(said.samples) > DRIVING_RATE and said.segments:
                left -= 1
                yield said


def is_installed() -> bool:
    """Whether this machine has what speaks."""
    return all(os.access(f"/usr/bin/{program}", os.X_OK) for program in ("flite", "festival", "espeak-ng"))
