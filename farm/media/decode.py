"""Decode a user's sound once, into what drives the engine, and count its samples exactly.

Time is counted in decoded samples and in nothing else: a container's time stamps, gaps and declared length are not
believed.  `farm.media.assemble` takes its sound from the same decoder in the same way (`native_sound`), so the film's
sound and the frames that were driven by it begin and end together, whatever the file claims.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import selectors
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import ffmpeg
import numpy as np
import numpy.typing as npt

from farm.errors import InputError, NotEnoughRoom
from farm.media.command import locate, raw_input, to_argv, untrusted_input
from farm.media.probe import probe_audio
from farm.media.run import DISK_FULL, MIB, Child, enlarge_pipe
from farm.media.sound import RATE, SoundMeter

TIMEOUT_SECONDS = 3600.0
MEMORY_LIMIT_BYTES = 4096 * MIB
READ_BYTES = MIB
GUESSED_DURATIONS = ("mp3", "aac", "ac3", "eac3", "amr")  # formats without an index: length is bytes over bit rate


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """What decoding found.  Samples with a rate are native, the others mono at 16 kHz."""

    native_rate: int  # Hz; a file that changes its rate inside is counted at one of them
    native_samples: int  # per channel; the film has ceil(native_samples * fps / native_rate) frames
    driving_samples: int  # ceil(native_samples * 16000 / native_rate)
    peak: float  # largest |sample|
    rms_dbfs: float
    loudness_lufs: float  # ITU-R BS.1770-4 of the mono sound; -120 for silence
    pauses: tuple[tuple[int, int], ...]  # [start, stop), at least 0.2 s each
    has_nan: bool  # the file holds samples that are no numbers; they are silence in the film
    notes: tuple[str, ...]  # sentences for the report: damage that was decoded around

    @property
    def seconds(self) -> float:
        return self.native_samples / self.native_rate


def decode_driving(
    source: Path,
    target: Path,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> AudioFacts:
    """Write the first sound of `source` to `target` as mono 16 kHz float32, raw little endian, whole or not at all.

    A file that is damaged in the middle is decoded as far as it goes, with a note.  Memory does not grow with length.
    Raises InputError when nothing can be decoded, MediaError when the decoder was killed or ran out of time,
    NotEnoughRoom when the disk is full.
    """
    declared = probe_audio(source)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        facts = _decode(source, staging, timeout_seconds, memory_limit_bytes)
        if not facts.native_samples:
            raise InputError(f"The sound of {source} holds no samples that can be decoded.")
        staging.replace(target)
        _sync_directory(target.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NotEnoughRoom(f"The disk of {target.parent} is full.") from error
        raise
    finally:
        staging.unlink(missing_ok=True)
    if declared.container not in GUESSED_DURATIONS and facts.seconds < 0.9 * declared.duration_seconds - 0.5:
        said = f"The file promises {declared.duration_seconds:.1f} s of sound and holds {facts.seconds:.1f} s."
        return replace(facts, notes=(*facts.notes, said))
    return facts


def native_sound(source: Path) -> Any:
    """Input stream and options that decode `source`; whoever counts or encodes its sound starts from here."""
    return untrusted_input(source)["a:0"]


def decode_native(
    source: Path, target: Path, *, rate: int, samples: int | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> None:
    """Write the sound of `source` to `target` as mono int16 at its own `rate`, raw, cut or filled up to `samples`.

    Sample n of it is made from sample n of the recording and from no other, which a change of the rate would not leave
    so.  Raises MediaError, NotEnoughRoom.
    """
    output = {"f": "s16le", "acodec": "pcm_s16le", "ac": 1, "ar": rate}
    argv = to_argv(ffmpeg.output(native_sound(source), locate(target), **output))
    with Child(argv, timeout_seconds=timeout_seconds, memory_limit_bytes=MEMORY_LIMIT_BYTES) as child:
        code = child.wait()
        if child.timed_out or code < 0 or DISK_FULL in child.stderr or not target.exists():
            raise child.failure()  # another code is damage, which `decode_driving` decoded around as well
    if samples is not None:
        with target.open("r+b") as file:
            file.truncate(2 * samples)


def to_driving(sound: npt.NDArray[np.int16], rate: int) -> npt.NDArray[np.float32]:
    """Mono int16 at `rate` Hz as mono float32 at 16 kHz, ceil(len * 16000 / rate) samples, made from nothing else.

    Raises MediaError.
    """
    if rate == RATE:
        return sound.astype(np.float32) / np.float32(32768)
    argv = to_argv(
        ffmpeg.output(
            raw_input(0, f="s16le", ar=rate, ac=1)["a:0"], "pipe:1", f="f32le", acodec="pcm_f32le", ac=1, ar=RATE
        )
    )
    wanted = -(-len(sound) * RATE // rate)
    with Child(argv, timeout_seconds=TIMEOUT_SECONDS, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        feeder = threading.Thread(target=_feed, args=(child, sound.astype("<i2").tobytes()), name="feeder")
        feeder.start()
        data = child.stdout.read()
        feeder.join()
        child.finish()
    resampled = np.frombuffer(data[: len(data) - len(data) % 4], "<f4")[:wanted]
    return np.pad(resampled, (0, wanted - len(resampled))).astype(np.float32)


def _feed(child: Child, data: bytes) -> None:
    with contextlib.suppress(OSError):  # a child that died early tells why by its code
        child.stdin.write(data)
    with contextlib.suppress(OSError):
        child.stdin.close()


def _decode(source: Path, staging: Path, timeout_seconds: float, memory_limit_bytes: int) -> AudioFacts:
    native_read, native_write = os.pipe()
    driving_read, driving_write = os.pipe()
    with contextlib.ExitStack() as stack:
        for fd in (native_read, driving_read):
            enlarge_pipe(fd)
            stack.callback(os.close, fd)
        sound = native_sound(source)
        argv = to_argv(
            # 8-bit mono in an AU header: the cheapest stream that tells the true rate and counts exactly.
            ffmpeg.output(sound, f"pipe:{native_write}", f="au", acodec="pcm_s8", ac=1),
            ffmpeg.output(sound, f"pipe:{driving_write}", f="f32le", acodec="pcm_f32le", ac=1, ar=RATE),
        )
        try:
            child = stack.enter_context(
                Child(
                    argv,
                    timeout_seconds=timeout_seconds,
                    pass_fds=(native_write, driving_write),
                    memory_limit_bytes=memory_limit_bytes,
                )
            )
        finally:
            os.close(native_write)
            os.close(driving_write)
        counter, meter = _SampleCounter(), SoundMeter()
        with staging.open("wb") as file:
            driving = _DrivingWriter(file, meter)
            for fd, data in _read_all(native_read, driving_read):
                counter.take(data) if fd == native_read else driving.take(data)
            # A resampler holds back a few samples, all of them in a very short file; the plan counts on each.
            driving_samples = -(-counter.samples * RATE // counter.rate) if counter.rate else 0
            driving.fit(driving_samples)
            meter.close()
            file.flush()
            os.fsync(file.fileno())
        code = child.wait()
        if child.timed_out or code < 0:
            raise child.failure()
        notes = list(_complaints(child.stderr))
        if code and not counter.samples:
            raise InputError(f"The sound of {source} cannot be decoded ({notes[0] if notes else 'no reason given'}).")
    if notes:
        notes = [f"The file is damaged and was decoded as far as it goes: {notes[0]}."]
    if driving.not_finite:
        notes.append(f"{driving.not_finite} samples were no numbers and became silence.")
    return AudioFacts(
        native_rate=counter.rate,
        native_samples=counter.samples,
        driving_samples=driving_samples,
        peak=meter.peak,
        rms_dbfs=meter.rms_dbfs,
        loudness_lufs=meter.loudness_lufs,
        pauses=tuple((start, min(stop, driving_samples)) for start, stop in meter.pauses()),
        has_nan=driving.not_finite > 0,
        notes=tuple(notes),
    )


class _SampleCounter:
    """Reads an AU stream of one byte per sample: a 24-byte header with the rate, then samples to count."""

    HEADER = struct.Struct(">4s5I")

    def __init__(self) -> None:
        self.rate = 0
        self.samples = 0
        self._head = b""

    def take(self, data: bytes) -> None:
        if self.rate:
            self.samples += len(data)
            return
        self._head += data
        if len(self._head) < self.HEADER.size:
            return
        _, offset, _, _, rate, _ = self.HEADER.unpack_from(self._head)
        if len(self._head) >= offset:
            self.rate = rate
            self.samples = len(self._head) - offset


class _DrivingWriter:
    """Passes float32 bytes of any cut on to a file and a meter; what is no number becomes 0."""

    def __init__(self, file: IO[bytes], meter: SoundMeter) -> None:
        self.not_finite = 0
        self._file = file
        self._meter = meter
        self._rest = b""

    def take(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % 4
        self._rest = data[whole:]
        sound, wrong = silence_what_is_no_number(np.frombuffer(data[:whole], "<f4"))
        self.not_finite += wrong
        self._file.write(sound.tobytes() if wrong else data[:whole])
        self._meter.take(sound)

    def fit(self, samples: int) -> None:
        """Fill up with silence, or cut, to `samples`."""
        self.take(bytes(4 * max(0, samples - self._meter.samples)))
        self._file.truncate(4 * samples)


def silence_what_is_no_number(sound: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """`sound` with NaN and infinity as 0, and how many there were."""
    good = np.isfinite(sound)
    wrong = len(sound) - int(np.count_nonzero(good))
    return (np.where(good, sound, np.float32(0)), wrong) if wrong else (sound, 0)


def _read_all(*fds: int) -> Iterator[tuple[int, bytes]]:
    """Pieces of all pipes as they come, until each has ended."""
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, READ_BYTES)
                if data:
                    yield key.fd, data
                else:
                    selector.unregister(key.fd)


def _complaints(stderr: str) -> Iterator[str]:
    """What the decoder said, line by line, without the names and addresses in front."""
    for line in stderr.splitlines():
        said = re.sub(r"^(\[[^]]*\] ?)+", "", line).strip().rstrip(".")
        if said:
            yield said


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
