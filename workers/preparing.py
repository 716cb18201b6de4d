"""`prepare`: look at the portrait, decode the sound, plan the frames.  Runs in the workshop's child process."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.artifacts import JobFolder, staging_name
from farm.config import FilmSettings, SegmentSettings
from farm.errors import InputError
from farm.ledger.values import Job, NewArtifact
from farm.media.binary import find_ffmpeg, version
from farm.media.decode import AudioFacts, decode_driving, decode_native, to_driving
from farm.media.pauses import find_pauses
from farm.media.profile import SOFTWARE, EncoderProfile, default_profile
from farm.media.sound import NativeSound
from farm.models import ModelSpec, load_model
from farm.planning import Part, PlannedSegment, Stretch, choose_cuts, digest_of, frame_count, plan_segments, stretches
from farm.reuse import key_of
from farm.states import ArtifactKind, Continuity
from farm.store import Store
from workers.engines.contract import DRIVING_RATE
from workers.host.audio import DrivingFile
from workers.portrait import normalise

DRIVING_NAME = "driving.f32"
SILENT_PEAK = 1e-4  # of full scale, -80 dB


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` hands to the ledger."""

    artifacts: tuple[NewArtifact, ...]
    job: dict[str, Any]  # columns of the job
    plan: tuple[PlannedSegment, ...]
    queue: str


def prepare(job: Job, token: int, store: Store, segments: SegmentSettings, film: FilmSettings) -> Prepared:
    """Raises InputError when this portrait or audio cannot become a film, StoreError."""
    model = load_model(job.model)
    folder = store.folder(job.id).make()
    portrait, portrait_notes = _look_at_portrait(job, token, store, folder)
    profile = _choose_profile(job, film)
    made = _Making(job, token, store, folder, model, portrait.sha256, json.loads(profile.to_json()))
    seconds = model.segment_seconds or segments.seconds
    sound, driving, facts, plan = (
        _plan_parts(made, seconds)
        if job.continuity is Continuity.PARALLEL
        else _plan_chain(made, seconds, segments.first_seconds)
    )
    return Prepared(
        artifacts=(portrait, driving),
        job={
            "audio_seconds": sound.native_samples / sound.native_rate,
            "audio_rate": sound.native_rate,
            "audio_samples": sound.native_samples,
            "total_frames": frame_count(sound.native_samples, sound.native_rate, job.fps),
            "facts": {"loudness_lufs": sound.loudness_lufs, "peak": sound.peak, **facts},
            "profile": made.profile,
            "notes": [*job.notes, *portrait_notes, *sound.notes, *_silence(sound)],
        },
        plan=tuple(plan),
        queue=model.queue_for(job.preset),
    )


def _choose_profile(job: Job, film: FilmSettings) -> EncoderProfile:
    profile = dataclasses.replace(default_profile(job.width, job.height, job.fps, film.codec), crf=film.crf)
    return dataclasses.replace(profile, preset=film.encoder_preset) if film.codec == SOFTWARE else profile


@dataclass(frozen=True, slots=True)
class _Making:
    """What the steps of one `prepare` share."""

    job: Job
    token: int
    store: Store
    folder: JobFolder
    model: ModelSpec
    portrait_sha256: str  # of the normalised portrait
    profile: dict[str, Any]


_Planned = tuple[AudioFacts, NewArtifact, dict[str, Any], list[PlannedSegment]]


def _plan_chain(made: _Making, seconds: float, first_seconds: float) -> _Planned:
    """Segments that each go on where the one before stopped; they hear the whole film."""
    job = made.job
    sound, driving = _decode_sound(made)
    facts = importlib.import_module(made.model.measure).measure(_heard(made, driving)) if made.model.measure else {}
    plan = plan_segments(
        frame_count(sound.native_samples, sound.native_rate, job.fps),
        chunk_frames=made.model.chunk(job.preset, job.fps),
        fps=job.fps,
        segment_seconds=seconds,
        first_seconds=first_seconds,
    )
    # Any change of the sound changes its facts, the carries or both: the film is known as a whole or not at all.
    whole = {"sound": driving.sha256, "facts": facts, "seed": job.seed}
    return sound, driving, facts, [_keyed(made, item, part=[item.first_frame, item.frames], **whole) for item in plan]


def _plan_parts(made: _Making, seconds: float) -> _Planned:
    """Segments that begin and end at pauses; each hears its own sound only and is rendered as a film of its own."""
    job = made.job
    native = staging_name(made.folder.file("native.s16", made.token), made.token)
    try:
        with _decoded(made) as (source, sound, staged):
            decode_native(source, native, rate=sound.native_rate, samples=sound.native_samples)
            heard = NativeSound(native)
            rate = sound.native_rate
            cuts = choose_cuts(find_pauses(heard, rate), len(heard), round(seconds * rate))
            parts = stretches(cuts, len(heard), rate, job.fps)
            lengths = _write_driving(heard, rate, parts, staged)
            digests = [digest_of(heard[part.start : part.stop], rate) for part in parts]
            driving = _seal_driving(made, staged)
    finally:
        native.unlink(missing_ok=True)
    begins = [sum(lengths[:number]) for number in range(len(parts))]
    windows = [(begin, begin + length) for begin, length in zip(begins, lengths, strict=True)]
    facts: Sequence[dict[str, Any]] = [{} for _ in parts]
    if made.model.measure:
        measuring = importlib.import_module(made.model.measure)
        facts = measuring.measure_parts(_heard(made, driving), [_heard(made, driving, window) for window in windows])
    plan = []
    for part, (begin, end), own, digest in zip(parts, windows, facts, digests, strict=True):
        # With the film's own seed every segment would nod and blink alike, counted from its beginning.
        seed = int(hashlib.sha256(f"{job.seed}{digest}".encode()).hexdigest()[:7], 16)
        rendered = Part(begin, end - begin, part.rendered, seed, own, digest)
        item = PlannedSegment(part.first_frame, part.frames, needs_carry=False, part=rendered)
        plan.append(_keyed(made, item, sound=digest, frames=part.rendered, seed=seed, facts=own))
    return sound, driving, {}, plan


def _keyed(made: _Making, item: PlannedSegment, **own: Any) -> PlannedSegment:
    # Segments of two encoders may have headers that cannot stand in one film.
    encoder = version(find_ffmpeg())
    key = key_of(made.job, made.portrait_sha256, made.profile, encoder=encoder, **own)
    return dataclasses.replace(item, content_key=key)


def _write_driving(heard: NativeSound, rate: int, parts: Sequence[Stretch], target: Path) -> list[int]:
    """Each part's sound at 16 kHz, made from that part alone, one after the other.  Returns their lengths."""
    lengths = []
    with target.open("wb") as file:
        for part in parts:
            piece = to_driving(heard[part.start : part.stop], rate)
            file.write(piece.astype("<f4").tobytes())
            lengths.append(len(piece))
    return lengths


def _heard(made: _Making, driving: NewArtifact, window: tuple[int, int] | None = None) -> DrivingFile:
    return DrivingFile(made.store.fetch(driving), window)


def _silence(sound: AudioFacts) -> list[str]:
    """A film of a silent recording is a film, and most likely not the one that was wanted."""
    return [] if sound.peak > SILENT_PEAK else ["the sound is silent from beginning to end; the mouth stays shut"]


def _look_at_portrait(job: Job, token: int, store: Store, folder: JobFolder) -> tuple[NewArtifact, list[str]]:
    source = store.input(job.portrait, job.portrait_sha256, "portrait")
    final = folder.file("portrait.png", token)
    staged = staging_name(final, token)
    try:
        with _called(source, job.portrait):
            found, notes = make_portrait(source, staged, job.model)
        return store.seal(staged, final, ArtifactKind.PORTRAIT, found), notes
    finally:
        staged.unlink(missing_ok=True)


@contextlib.contextmanager
def _called(source: Path, given: str) -> Iterator[None]:
    """A user's mistake is told with the name that the user gave, wherever the file was read."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(source), given)) from None


def make_portrait(source: Path, target: Path, model_id: str) -> tuple[dict[str, Any], list[str]]:
    """Write `source` as the picture that engines read.  What was found in it, and notes.  Raises InputError."""
    notes = list(normalise(source, target).notes)
    rules = load_model(model_id).portrait
    if not rules.needs_face:
        return {}, notes
    from workers.engines.preview.portrait_check import PortraitRules, check, look

    facts = look(target)
    try:
        notes += check(facts, PortraitRules.from_mapping(rules.model_dump(exclude_none=True)))
    except InputError as error:
        raise InputError(f"portrait {source}: {error}") from None
    return facts.as_json(), notes


def _decode_sound(made: _Making) -> tuple[AudioFacts, NewArtifact]:
    with _decoded(made) as (_, sound, staged):
        return sound, _seal_driving(made, staged)


@contextlib.contextmanager
def _decoded(made: _Making) -> Iterator[tuple[Path, AudioFacts, Path]]:
    """The recording, its facts, and its driving sound under a staging name."""
    source = made.store.input(made.job.audio, made.job.audio_sha256, "audio")
    staged = staging_name(made.folder.file(DRIVING_NAME, made.token), made.token)
    try:
        with _called(source, made.job.audio):
            yield source, decode_driving(source, staged), staged
    finally:
        staged.unlink(missing_ok=True)


def _seal_driving(made: _Making, staged: Path) -> NewArtifact:
    facts = {"rate": DRIVING_RATE, "samples": staged.stat().st_size // 4}
    return made.store.seal(staged, made.folder.file(DRIVING_NAME, made.token), ArtifactKind.DRIVING, facts)
