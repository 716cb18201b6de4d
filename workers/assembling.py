"""`assemble`: join the segments, encode the sound once, verify, publish.  Runs in the workshop's child process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from farm import __version__
from farm.artifacts import JobFolder, discard_staged, staging_name
from farm.errors import EngineError, FileLost, InputError, MediaError
from farm.ledger.values import Artifact, Job, NewArtifact
from farm.media.assemble import assemble
from farm.media.pictures import contact_sheet, poster
from farm.media.profile import EncoderProfile
from farm.media.verify import FilmFacts, verify_film
from farm.states import ArtifactKind
from farm.store import Store, write_sealed


@dataclass(frozen=True, slots=True)
class Assembled:
    """A film at its staging path, verified, and its finished companions."""

    staged: Path
    output: Path
    facts: dict[str, Any]
    companions: tuple[NewArtifact, ...]


class BadSegment(EngineError):
    """Files of published segments are missing or were changed; they must be rendered again."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        self.paths = dict(paths)  # by segment number
        number, path = next(iter(self.paths.items()))
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        super().__init__(f"segment {number + 1}'s file {path}{more} is missing or was changed since it was published")

    def __reduce__(self) -> tuple[Any, ...]:
        return BadSegment, (self.paths,)


def assemble_film(
    job: Job,
    token: int,
    store: Store,
    segments: Sequence[Artifact],
    cuts: Sequence[int],
    history: Mapping[str, Any],
    audio_bitrate: int,
    timeout_seconds: float,
) -> Assembled:
    """Join `segments` into a film of the planned length beside its place, under a staging name.

    `cuts` are the first frames of the segments; around each the film is decoded as a check.  `history` goes into the
    report.  Raises InputError when the output cannot be written or the recording was changed since it was submitted,
    BadSegment, MediaError, StoreError.
    """
    folder = store.folder(job.id).make()
    output = store.film_path(job, token)
    staged = staging_name(output, token)
    files = _fetch_files(store, segments)
    sound = store.input(job.audio, job.audio_sha256, "audio")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        discard_staged(output, token)
        staged.touch()
    except OSError as error:
        raise InputError(f"the film cannot be written to {output.parent}: {error.strerror}") from None
    try:
        assert job.total_frames is not None and job.audio_samples is not None and job.audio_rate is not None
        profile = EncoderProfile.from_json(json.dumps(job.profile))
        assemble(
            files,
            sound,
            staged,
            frames=job.total_frames,
            profile=profile,
            counts=[stop - start for start, stop in pairwise([*cuts, job.total_frames])],
            audio_bitrate=audio_bitrate,
            metadata={"title": job.name, "comment": f"farm {__version__}, {job.model}, seed {job.seed}"},
            timeout_seconds=timeout_seconds,
        )
        film = verify_film(
            staged,
            frames=job.total_frames,
            fps=job.fps,
            audio_seconds=job.audio_samples / job.audio_rate,
            decode_at=_spots(cuts, job.total_frames),
        )
    except MediaError:
        staged.unlink(missing_ok=True)
        raise
    companions = _companions(job, token, store, folder, staged, film, history)
    return Assembled(staged, output, _film_facts(film), tuple(companions))


def _spots(cuts: Sequence[int], frames: int, at_most: int = 24) -> list[int]:
    """Frames around which the film is decoded as a check: its ends and joins, a sample of them in a long film."""
    spots = [0, *cuts[1:], frames - 1]
    if len(spots) > at_most:
        step = (len(spots) - 1) / (at_most - 1)
        spots = [spots[round(i * step)] for i in range(at_most)]
    return sorted(set(spots))


def _fetch_files(store: Store, segments: Sequence[Artifact]) -> list[Path]:
    files: list[Path] = []
    bad: dict[int, str] = {}
    for artifact in segments:
        try:
            files.append(store.fetch(artifact, verify=True))
        except FileLost:
            bad[artifact.segment_number] = artifact.path
    if bad:
        raise BadSegment(bad)
    return files


def _film_facts(film: FilmFacts) -> dict[str, Any]:
    return {
        "frames": film.frames,
        "video_seconds": film.video_seconds,
        "audio_seconds": film.audio_seconds,
        "width": film.width,
        "height": film.height,
    }


def _companions(
    job: Job,
    token: int,
    store: Store,
    folder: JobFolder,
    staged: Path,
    film: FilmFacts,
    history: Mapping[str, Any],
) -> list[NewArtifact]:
    made: list[NewArtifact] = []
    picture = folder.file("poster.jpg", token)
    hidden = staging_name(picture, token)
    poster(staged, hidden, at_seconds=min(1.0, film.video_seconds / 2))
    made.append(store.seal(hidden, picture, ArtifactKind.POSTER))
    sheet = folder.file("sheet.jpg", token)
    hidden = staging_name(sheet, token)
    contact_sheet(staged, hidden)
    made.append(store.seal(hidden, sheet, ArtifactKind.SHEET))
    report = {
        "schema": "farm.report/1",
        "farm": __version__,
        "job": job.id,
        "name": job.name,
        "film": job.output,
        "portrait": {"path": job.portrait, "sha256": job.portrait_sha256},
        "audio": {
            "path": job.audio,
            "sha256": job.audio_sha256,
            "samples": job.audio_samples,
            "rate": job.audio_rate,
        },
        "model": job.model,
        "preset": job.preset,
        "settings": dict(job.settings),
        "prompt": job.prompt,
        "seed": job.seed,
        "fps": list(job.fps),
        "continuity": job.continuity.value,
        "notes": list(job.notes),
        "video": _film_facts(film),
        "profile": dict(job.profile),
        **history,
    }
    final = folder.file("report.json", token)
    body = json.dumps(report, indent=2, ensure_ascii=False).encode()
    made.append(write_sealed(store, final, body, token, ArtifactKind.REPORT))
    return made
