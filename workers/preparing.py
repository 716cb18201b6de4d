"""`prepare`: look at the portrait, decode the sound, plan the frames.  Runs in the workshop's child process."""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.artifacts import JobFolder, seal, sha256_of, staging_name
from farm.config import FilmSettings, SegmentSettings
from farm.errors import InputError
from farm.ledger.values import Job, NewArtifact
from farm.media.decode import AudioFacts, decode_driving
from farm.media.profile import default_profile
from farm.models import load_model
from farm.planning import PlannedSegment, frame_count, plan_segments
from farm.states import ArtifactKind
from workers.host.audio import DrivingFile
from workers.portrait import normalise

DRIVING_RATE = 16_000
SILENT_PEAK = 1e-4  # of full scale, -80 dB


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` hands to the ledger."""

    artifacts: tuple[NewArtifact, ...]
    job: dict[str, Any]  # columns of the job
    plan: tuple[PlannedSegment, ...]
    queue: str


def prepare(job: Job, token: int, folder_path: Path, segments: SegmentSettings, film: FilmSettings) -> Prepared:
    """Raises InputError when this portrait or audio cannot become a film."""
    model = load_model(job.model)
    folder = JobFolder(folder_path, job.id).make()
    portrait, portrait_notes = _look_at_portrait(job, token, folder)
    sound, driving = _decode_sound(job, token, folder)
    total_frames = frame_count(sound.native_samples, sound.native_rate, job.fps)
    facts: dict[str, Any] = {"loudness_lufs": sound.loudness_lufs, "peak": sound.peak}
    if model.measure:
        facts |= importlib.import_module(model.measure).measure(DrivingFile(Path(driving.path)))
    num, den = job.fps
    pauses = [
        (-(-start * num // (DRIVING_RATE * den)), stop * num // (DRIVING_RATE * den)) for start, stop in sound.pauses
    ]
    plan = plan_segments(
        total_frames,
        chunk_frames=model.frames.chunk(job.fps),
        fps=job.fps,
        segment_seconds=model.segment_seconds or segments.seconds,
        first_seconds=segments.first_seconds,
        continuity=job.continuity,
        pauses=pauses,
    )
    profile = dataclasses.replace(
        default_profile(job.width, job.height, job.fps), crf=film.crf, preset=film.encoder_preset
    )
    return Prepared(
        artifacts=(portrait, driving),
        job={
            "audio_seconds": sound.native_samples / sound.native_rate,
            "audio_rate": sound.native_rate,
            "audio_samples": sound.native_samples,
            "total_frames": total_frames,
            "facts": facts,
            "profile": json.loads(profile.to_json()),
            "notes": [*job.notes, *portrait_notes, *sound.notes, *_silence(sound)],
        },
        plan=tuple(plan),
        queue=model.queue_for(job.preset),
    )


def _silence(sound: AudioFacts) -> list[str]:
    """A film of a silent recording is a film, and most likely not the one that was wanted."""
    return [] if sound.peak > SILENT_PEAK else ["the sound is silent from beginning to end; the mouth stays shut"]


def _look_at_portrait(job: Job, token: int, folder: JobFolder) -> tuple[NewArtifact, list[str]]:
    source = Path(job.portrait)
    _check_unchanged(source, job.portrait_sha256, "portrait")
    final = folder.file("portrait.png", token)
    staged = staging_name(final, token)
    try:
        found, notes = make_portrait(source, staged, job.model)
        return seal(staged, final, ArtifactKind.PORTRAIT, found), notes
    finally:
        staged.unlink(missing_ok=True)


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


def _decode_sound(job: Job, token: int, folder: JobFolder) -> tuple[AudioFacts, NewArtifact]:
    source = Path(job.audio)
    _check_unchanged(source, job.audio_sha256, "audio")
    final = folder.file("driving.f32", token)
    staged = staging_name(final, token)
    try:
        sound = decode_driving(source, staged)
        facts = {"rate": DRIVING_RATE, "samples": sound.driving_samples}
        return sound, seal(staged, final, ArtifactKind.DRIVING, facts)
    finally:
        staged.unlink(missing_ok=True)


def _check_unchanged(path: Path, sha256: str, what: str) -> None:
    """The film is named after what was submitted; a file that changed since is another job."""
    try:
        if sha256_of(path) == sha256:
            return
    except FileNotFoundError:
        raise InputError(f"{what} {path} is gone; it was there at submit") from None
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}") from None
    raise InputError(f"{what} {path} was changed after it was submitted; submit the row again")
