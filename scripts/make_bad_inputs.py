#!/usr/bin/env python3
"""Make files that a farm must survive, and a batch file that names them all, each with the sentence it must get.

    scripts/make_bad_inputs.py /tmp/bad && farm submit /tmp/bad/bad.jsonl --skip-bad --wait
    scripts/make_bad_inputs.py /tmp/bad --table docs/bad-input.md

Writes `bad.jsonl`, one row for each case, and `cases.json`: for each row where it must end (`submit`, `prepare` or
`film`) and what must be said about it: the reason of a refusal, or a note in the film's report.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from farm.media.binary import find_ffmpeg  # noqa: E402

FACE = ROOT / "examples/portraits/astronaut.jpg"
SPEECH = ROOT / "examples/speech/reading_en.flac"
SECRET = "not to be read by anyone"
UNREADABLE = "is not a sound file that can be read"
NO_SOUND_FORMAT = "is a playlist or another format that is not taken as sound"
NO_PICTURE = "is not a picture that can be read"
DAMAGED = "is damaged"


@dataclass(frozen=True)
class Case:
    """One row and what must come of it."""

    name: str
    row: dict[str, Any]
    ends: str  # "submit", "prepare" or "film"
    says: str  # part of the sentence; empty for a film that nothing is noted about


class Corpus:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: list[Case] = []
        self.dice = random.Random(7)
        folder.mkdir(parents=True, exist_ok=True)
        self.face = folder / "face.jpg"
        shutil.copy(FACE, self.face)
        self.speech = self.ffmpeg("speech.wav", "-i", SPEECH, "-t", "0.6", "-ar", "16000", "-ac", "1")

    def ffmpeg(self, name: str, *arguments: str | Path) -> Path:
        target = self.folder / name
        subprocess.run([find_ffmpeg(), "-v", "error", "-y", *arguments, target], check=True)
        return target

    def write(self, name: str, data: bytes) -> Path:
        target = self.folder / name
        target.write_bytes(data)
        return target

    def audio(self, name: str, path: Path | str, ends: str, says: str = "", **cells: Any) -> None:
        row = {"portrait": str(self.face), "audio": str(path)}
        if ends == "film":
            row |= {"model": "pattern", "size": "64x64"}  # the sound is what this is about
        self.cases.append(Case(f"audio {name}", {**row, "name": f"a-{len(self.cases)}", **cells}, ends, says))

    def portrait(self, name: str, path: Path | str, ends: str, says: str = "", **cells: Any) -> None:
        row = {"portrait": str(path), "audio": str(self.speech), "size": "256x256"}
        self.cases.append(Case(f"portrait {name}", {**row, "name": f"p-{len(self.cases)}", **cells}, ends, says))

    def cells(self, name: str, says: str, **cells: Any) -> None:
        row = {"portrait": str(self.face), "audio": str(self.speech), "name": f"c-{len(self.cases)}"}
        self.cases.append(Case(f"cell {name}", row | cells, "submit", says))

    def noise(self, size: int) -> bytes:
        return self.dice.randbytes(size)

    def picture(self, name: str, image: Image.Image, **options: Any) -> Path:
        target = self.folder / name
        image.save(target, **options)
        return target


def wav(samples: bytes, *, rate: int = 16_000, channels: int = 1, bits: int = 16, form: int = 1) -> bytes:
    """A WAV file of raw sample bytes, with whatever the header is told to claim."""
    frame = max(1, channels * bits // 8)
    head = struct.pack("<HHIIHH", form, channels, rate, (rate * frame) & 0xFFFFFFFF, frame & 0xFFFF, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tone(seconds: float, rate: int, channels: int = 1, level: float = 0.3) -> bytes:
    time = np.arange(round(seconds * rate)) / rate
    wave_form = np.clip(level * np.sin(2 * np.pi * 220 * time), -1, 1)
    return (np.repeat(wave_form[:, None], channels, 1) * 32767).astype("<i2").tobytes()


def png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG file of raw compressed rows, with whatever the header is told to claim."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def add_sounds(c: Corpus) -> None:
    good = c.speech.read_bytes()
    c.audio("empty", c.write("empty.wav", b""), "submit", "is empty")
    c.audio("cut inside its header", c.write("cut header.wav", good[:20]), "submit", UNREADABLE)
    c.audio("random bytes", c.write("random.mp3", c.noise(40_000)), "submit", UNREADABLE)
    c.audio("text", c.write("text.wav", b"This is a letter, not a sound.\n" * 50), "submit", UNREADABLE)
    c.audio("a picture", c.folder / "face.jpg", "submit", NO_SOUND_FORMAT)
    c.audio("no samples", c.write("no samples.wav", wav(b"")), "submit", "holds no samples")
    c.audio(
        "no channels", c.write("no channels.wav", wav(tone(0.5, 16_000), channels=0)), "submit", "the file is damaged"
    )
    c.audio("a rate of zero", c.write("rate zero.wav", wav(tone(0.5, 16_000), rate=0)), "submit", UNREADABLE)
    c.audio("65,535 channels", c.write("channels.wav", wav(tone(0.5, 16_000), channels=65_535)), "submit", "sound")
    c.audio("one sample", c.write("one.wav", wav(b"\1\0")), "film")
    c.audio("20 ms", c.write("20ms.wav", wav(tone(0.02, 16_000))), "film")
    not_numbers = np.full(8000, np.nan, "<f4")
    not_numbers[::2] = 0.1
    c.audio("NaN", c.write("nan.wav", wav(not_numbers.tobytes(), bits=32, form=3)), "film", "were no numbers")
    c.audio("silence", c.write("silence.wav", wav(bytes(16_000))), "film", "silent")
    c.audio("clipped, 8 kHz", c.write("clipped.wav", wav(tone(0.4, 8000, level=9.0), rate=8000)), "film")
    surround = wav(tone(0.3, 192_000, channels=6), rate=192_000, channels=6)
    c.audio("192 kHz in 5.1", c.write("surround.wav", surround), "film")
    music = c.ffmpeg("music.mp3", "-i", c.speech, "-b:a", "64k")
    c.audio("an MP3 called WAV", c.write("really mp3.wav", music.read_bytes()), "film")
    flac = bytearray(c.ffmpeg("corrupt.flac", "-i", c.speech, "-c:a", "flac").read_bytes())
    flac[len(flac) // 2 : len(flac) // 2 + 900] = c.noise(900)
    c.audio("corrupt in the middle", c.write("corrupt.flac", bytes(flac)), "film", "damaged")
    c.audio("promises a day and a half", _endless(c), "submit", "claims to last")
    sparse = c.folder / "huge.wav"
    with sparse.open("wb") as file:
        file.truncate(21_000_000_000)
    c.audio("21 GB", sparse, "submit", "is larger than 20 GB")
    m4a = c.ffmpeg("good.m4a", "-i", c.speech)
    c.audio(
        "an M4A cut in half", c.write("half.m4a", m4a.read_bytes()[: m4a.stat().st_size // 2]), "submit", UNREADABLE
    )
    drm = b"\0\0\0\x20ftypM4P \0\0\0\0M4P mp42isom\0\0\0\0" + c.noise(30_000)
    c.audio("protected against copying", c.write("protected.m4p", drm), "submit", UNREADABLE)
    silent_film = c.ffmpeg("mute.mp4", "-f", "lavfi", "-i", "testsrc=s=64x64:d=0.4")
    c.audio("a video without sound", silent_film, "submit", "has no sound")
    c.audio("zipped", c.write("speech.wav.gz", gzip.compress(good)), "submit", UNREADABLE)
    c.audio("a program", c.write("program.wav", b"\x7fELF" + c.noise(4000)), "submit", UNREADABLE)
    c.audio("a web page", c.write("page.mp3", b"<!DOCTYPE html><html><body>404</body></html>\n"), "submit", UNREADABLE)
    c.audio("PDF", c.write("paper.mp3", b"%PDF-1.7\n" + c.noise(4000)), "submit", UNREADABLE)


def _endless(c: Corpus) -> Path:
    """A FLAC file whose header counts 2^36 - 1 samples."""
    data = bytearray(c.ffmpeg("endless.flac", "-i", c.speech, "-c:a", "flac").read_bytes())
    data[21] |= 0x0F
    data[22:26] = b"\xff\xff\xff\xff"
    return c.write("endless.flac", bytes(data))


def add_playlists(c: Corpus) -> None:
    """Files that name other files or addresses: they must not be followed."""
    secret = c.write("secret.txt", SECRET.encode())
    inner = c.speech
    texts = {
        "HLS playlist": ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inner}\n#EXT-X-ENDLIST\n"),
        "HLS playlist called MP3": ("list.mp3", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n"),
        "HLS to a network": ("net.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"),
        "concat script": ("list.ffconcat", f"ffconcat version 1.0\nfile '{inner}'\n"),
        "concat script called WAV": ("concat.wav", f"ffconcat version 1.0\nfile '{secret}'\n"),
        "DASH manifest": ("list.mpd", f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011">{inner}</MPD>'),
        "session description": ("call.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=audio 5004 RTP/AVP 0\n"),
        "subtitles": ("words.srt", "1\n00:00:00,000 --> 00:00:01,000\nHello\n"),
        "web subtitles": ("words.vtt", "WEBVTT\n\n00:00.000 --> 00:01.000\nHello\n"),
        "styled subtitles": ("words.ass", "[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0\n"),
        "PLS playlist": ("list.pls", f"[playlist]\nFile1={inner}\nNumberOfEntries=1\n"),
    }
    for name, (file, text) in texts.items():
        # Which of the two sentences depends on whether ffmpeg has a reader for it that we refuse.
        c.audio(name, c.write(file, text.encode()), "submit", "sound")


def add_paths(c: Corpus) -> None:
    folder = c.folder / "a folder.wav"
    folder.mkdir()
    fifo = c.folder / "pipe.wav"
    os.mkfifo(fifo)
    loop = c.folder / "loop.wav"
    loop.symlink_to(loop)
    dangling = c.folder / "dangling.wav"
    dangling.symlink_to(c.folder / "gone")
    plug = c.folder / "socket.wav"
    with socket.socket(socket.AF_UNIX) as listener:
        cwd = Path.cwd()
        os.chdir(c.folder)  # a socket's path may have 107 bytes
        try:
            listener.bind(plug.name)
        finally:
            os.chdir(cwd)
    for add in (c.audio, c.portrait):
        add("folder", folder, "submit", "is a directory")
        add("pipe", fifo, "submit", "is a pipe, socket or device")
        add("device", "/dev/zero", "submit", "is a pipe, socket or device")
        add("socket", plug, "submit", "is a pipe, socket or device")
        add("link to itself", loop, "submit", "symbolic links go round in a circle")
        add("link to nothing", dangling, "submit", "does not exist")
        add("missing", c.folder / "missing", "submit", "does not exist")
    if os.geteuid() != 0:  # root reads everything
        locked = c.write("locked.wav", c.speech.read_bytes())
        locked.chmod(0)
        c.audio("unreadable", locked, "submit", "may not be read")


def add_pictures(c: Corpus) -> None:
    face = Image.open(c.face)
    jpeg = c.face.read_bytes()
    as_png = io.BytesIO()
    face.save(as_png, "PNG")
    c.portrait("empty", c.write("empty.png", b""), "submit", "is empty")
    c.portrait("text", c.write("text.png", b"a letter\n" * 90), "submit", NO_PICTURE)
    c.portrait("a sound", c.speech, "submit", NO_PICTURE)
    c.portrait(
        "an SVG drawing", c.write("drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'), "submit", NO_PICTURE
    )
    c.portrait(
        "PostScript", c.write("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "submit", NO_PICTURE
    )
    c.portrait("HEIC", c.write("phone.heic", b"\0\0\0\x18ftypheic" + c.noise(4000)), "submit", NO_PICTURE)
    c.portrait("PNG cut in half", c.write("half.png", as_png.getvalue()[: as_png.tell() // 2]), "prepare", DAMAGED)
    c.portrait("JPEG cut in half", c.write("half.jpg", jpeg[: len(jpeg) // 2]), "prepare", DAMAGED)
    garbled = bytearray(as_png.getvalue())
    garbled[9000:9400] = c.noise(400)
    c.portrait("corrupt in the middle", c.write("garbled.png", bytes(garbled)), "prepare", DAMAGED)
    c.portrait("1x1", c.picture("dot.png", Image.new("RGB", (1, 1))), "prepare", "is only 1x1 px")
    row = zlib.compress(bytes(1000), 9)
    c.portrait("20,000 x 20,000", c.write("large.png", png(20_000, 20_000, row)), "submit", "too many pixels")
    c.portrait("JPEG of 65,500 x 65,500", _large_jpeg(c, jpeg), "submit", "too many pixels")
    bomb = zlib.compress(bytes(3 * 9000 * 9000 + 9000), 9)
    c.portrait("decompression bomb", c.write("bomb.png", png(9000, 9000, bomb)), "prepare", "no face was found")
    text = b"zTXt" + b"k\0\0" + zlib.compress(bytes(200 << 20), 9)
    text = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    c.portrait("bomb in a comment", c.write("comment.png", png(99, 99, row, extra=text)), "submit", "damaged picture")
    heavy = c.folder / "heavy.png"
    with heavy.open("wb") as file:
        file.truncate(150_000_000)
    c.portrait("150 MB", heavy, "submit", "is larger than 100 MB")
    c.portrait("animation", c.picture("moving.gif", face, save_all=True, append_images=[face]), "submit", NO_PICTURE)
    small = face.resize((128, 128))
    moving = c.picture("moving.webp", face, save_all=True, append_images=[small.resize(face.size)])
    c.portrait("moving WebP", moving, "film", "is an animation; its first picture is used")
    c.portrait("CMYK", c.picture("print.jpg", face.convert("CMYK")), "film")
    deep = np.asarray(face.convert("L")).astype(np.uint16) * 257
    c.portrait("16 bit", c.picture("deep.png", Image.fromarray(deep)), "film")
    turned = Image.Exif()
    turned[0x0112] = 6
    c.portrait("turned by EXIF", c.picture("turned.jpg", face.rotate(90, expand=True), exif=turned), "film")
    c.portrait("upside down", c.picture("upside down.jpg", face.rotate(180)), "prepare", "is not upright")
    both = Image.new("RGB", (1024, 512), "grey")
    close = face.crop((110, 0, 350, 240))
    both.paste(close.resize((500, 500)), (0, 0))
    both.paste(close.resize((400, 400)), (580, 20))
    c.portrait("two faces", c.picture("two.jpg", both), "film", "2 faces")
    c.portrait(
        "no face", c.picture("wall.png", Image.new("RGB", (400, 400), "seagreen")), "prepare", "no face was found"
    )
    noise = np.random.default_rng(1).integers(0, 255, (400, 400, 3), np.uint8)
    c.portrait("noise", c.picture("noise.png", Image.fromarray(noise)), "prepare", "no face was found")
    c.portrait("cartoon", c.picture("cartoon.png", _cartoon()), "prepare", "no face was found")
    c.portrait("a profile cut out of paper", c.picture("profile.png", _silhouette()), "prepare", "no face was found")
    far = Image.new("RGB", (1600, 1600), (90, 110, 120))
    far.paste(face.resize((150, 150)), (700, 700))
    c.portrait("far away", c.picture("far.jpg", far), "prepare", "no face was found")
    c.portrait("sunglasses", c.picture("sunglasses.jpg", _sunglasses(face)), "film")
    c.portrait("a strip", c.picture("strip.png", face.resize((70, 3000))), "prepare", "portrait")


def _large_jpeg(c: Corpus, jpeg: bytes) -> Path:
    """The face with a header that claims 65,500 x 65,500."""
    at = next(i for i in range(len(jpeg) - 9) if jpeg[i] == 0xFF and jpeg[i + 1] in (0xC0, 0xC2))
    return c.write("claims.jpg", jpeg[: at + 5] + struct.pack(">HH", 65_500, 65_500) + jpeg[at + 9 :])


def _cartoon() -> Image.Image:
    image = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((60, 60, 340, 340), fill="yellow", outline="black", width=6)
    for x in (140, 220):
        draw.ellipse((x, 140, x + 36, 190), fill="black")
    draw.arc((130, 170, 270, 290), 20, 160, fill="black", width=8)
    return image


def _silhouette() -> Image.Image:
    image = Image.new("RGB", (400, 400), "white")
    outline = [(120, 400), (130, 300), (110, 240), (130, 120), (200, 60), (280, 90), (290, 160), (320, 210)]
    outline += [(295, 225), (300, 250), (290, 262), (298, 280), (280, 310), (240, 320), (250, 400)]
    ImageDraw.Draw(image).polygon(outline, fill="black")
    return image


def _sunglasses(face: Image.Image) -> Image.Image:
    """The astronaut with dark glasses; the eyes stand at known places of that photo."""
    image = face.copy()
    draw = ImageDraw.Draw(image)
    for x in (203, 243):
        draw.ellipse((x - 18, 92, x + 18, 122), fill=(15, 15, 15))
    draw.line((203, 104, 243, 104), fill=(15, 15, 15), width=4)
    return image


def add_names(c: Corpus) -> None:
    """Good files with names that a shell, a CSV reader or ffmpeg could trip over: they become films."""
    for portrait_name, audio_name in (
        ("-rf --help.jpg", "new\nline 'and' \"quotes\".wav"),
        ("100%d $(touch owned) `id`.jpg", "讲座 第一课 🎤.wav"),
        ("x" * 251 + ".jpg", "file:concat|pipe:0,http.wav"),
    ):
        portrait, audio = c.folder / portrait_name, c.folder / audio_name
        shutil.copy(c.face, portrait)
        shutil.copy(c.speech, audio)
        row = {"portrait": str(portrait), "audio": str(audio), "model": "pattern", "size": "64x64"}
        c.cases.append(Case(f"names {portrait_name[:12]!r} and {audio_name[:12]!r}", row, "film", ""))


def add_cells(c: Corpus) -> None:
    c.cells("no such model", "there is no model 'opera'", model="opera")
    c.cells("no such preset", "has no preset 'opera'", preset="opera")
    c.cells("no such column", "there is no column 'volume'", volume="11")
    c.cells("a size of nothing", "cannot render 0x0", size="0x0")
    c.cells("a size in words", "is not WIDTHxHEIGHT", size="large")
    c.cells("a rate nobody has", "frames per second", fps="1000000")
    c.cells("a seed in words", "seed must be a whole number", seed="lucky")
    c.cells("a mouth of NaN", "mouth must be a number", mouth="nan")
    c.cells("a priority beyond all", "priority must be from", priority="1000")
    c.cells("a deadline in words", "deadline must be a date", deadline="soon")
    c.cells("continuity in words", "continuity must be carry or parallel", continuity="smooth")
    c.cells("an output that is a folder", "is a folder", output="a folder.mp4")
    c.cells("an engine's own setting", "there is no column 'python_executable'", python_executable="/bin/sh")


def make(folder: Path) -> list[Case]:
    """Write all files, `bad.jsonl` and `cases.json` into `folder`, which must be new or empty."""
    corpus = Corpus(folder)
    adders: tuple[Callable[[Corpus], None], ...] = (
        add_sounds,
        add_playlists,
        add_paths,
        add_pictures,
        add_names,
        add_cells,
    )
    for add in adders:
        add(corpus)
    (folder / "a folder.mp4").mkdir()
    lines = [json.dumps(case.row) for case in corpus.cases]
    (folder / "bad.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in corpus.cases], indent=1))
    return corpus.cases


def page(cases: list[Case], folder: Path) -> str:
    """docs/bad-input.md: every case and what is said about it."""
    where = {"submit": "refused at submit", "prepare": "fails alone", "film": "becomes a film"}

    def cell(text: str) -> str:
        shown = text.replace(str(folder), "…").replace("\n", "\\n").replace("|", "\\|")
        return shown if len(shown) <= 90 else shown[:87] + "..."

    rows = [f"| {cell(case.name)} | {where[case.ends]} | {cell(case.says) or '-'} |" for case in cases]
    return (
        f"""# Bad input

{len(cases)} files and rows that mean harm or were made by mistake, and what becomes of each. With `--skip-bad` the
rows that are refused keep no other row back; a job that fails alone does so once, when it is looked at, and takes
no warm model with it. The third column is part of the sentence, or of the note in the film's report.

This page is written by `scripts/make_bad_inputs.py`, which makes the files too; `tests/system/test_bad_input.py`
submits them between two good rows to workers that are warm, and asks for these sentences, for the same processes
afterwards, and for the neighbours' films.

| case | what becomes of it | what is said |
| --- | --- | --- |
"""
        + "\n".join(rows)
        + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, help="also write the page that lists all cases")
    options = parser.parse_args()
    cases = make(options.folder)
    if options.table:
        options.table.write_text(page(cases, options.folder), encoding="utf-8")
    counts = {end: sum(case.ends == end for case in cases) for end in ("submit", "prepare", "film")}
    print(f"{len(cases)} cases in {options.folder}: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
