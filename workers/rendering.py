"""Rendering one leased segment: the host yields frames, the encoder takes them, the file is sealed."""

from __future__ import annotations

import contextvars
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from farm.artifacts import JobFolder, staging_name
from farm.errors import DeviceFault, EngineChanged, EngineError, FarmError, FileLost, MediaError, NoEncoder, StoreError
from farm.ledger import Ledger, read
from farm.ledger.values import Job, Lease, NewArtifact
from farm.media.encode import SegmentEncoder, why_not_encoding
from farm.media.profile import SOFTWARE, EncoderProfile
from farm.models import ModelSpec
from farm.planning import Part
from farm.states import ArtifactKind
from farm.store import Store, write_sealed
from farm.workshop import Stopped
from workers.heart import LeaseWatch
from workers.host.parent import Host, HostSpec, Loaded, Progress, Rendered
from workers.thumbnails import thumbnail_jpeg

log = logging.getLogger(__name__)

ENCODER_SECONDS = 120.0  # for the frames that are still in the encoder when the last one was rendered
SUFFIX = ".mp4"


@dataclass(frozen=True, slots=True)
class RenderedSegment:
    artifacts: tuple[NewArtifact, ...]
    carry: bytes
    frames: int
    device_seconds: float
    engine_version: str


class Renderer:
    """Owns the host of one worker and renders segments with it."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        spec: HostSpec,
        model: ModelSpec,
        stop_seconds: float,
        on_progress: Callable[[Lease, int], None],
        preset: str = "",
    ) -> None:
        self.host = Host(spec)
        self.restarts = -1  # the first start is none
        self._ledger = ledger
        self._store = store
        self._model = model
        self._preset = preset or model.default_preset
        self._stop_seconds = stop_seconds
        self._on_progress = on_progress
        self._devices = spec.devices
        self._tried: dict[str, str | None] = {}  # codecs, and why they do not encode here

    @property
    def is_warm(self) -> bool:
        return self.host.is_alive and self.host.loaded is not None

    def warm_up(self, give_up: threading.Event) -> Loaded:
        """Start the host and load the engine.  Raises ConfigError, and what loading raised."""
        self.restarts += 1
        loaded = self.host.start(give_up)
        problem = mismatch(self._model, self._preset, loaded)
        if problem:
            self.host.kill()
            raise EngineError(problem)
        return loaded

    def refuse_another_versions_film(self, job: Job) -> None:
        """Raises EngineChanged before anything is rendered when the ledger would refuse it afterwards."""
        if self.host.loaded is None:
            raise DeviceFault("the host is not loaded")
        version = str(self.host.loaded.description["version"])
        if job.engine_version not in (None, version):
            raise EngineChanged.between(job.engine_version, version)

    def render(self, lease: Lease, watch: LeaseWatch) -> RenderedSegment:
        """Render and seal one segment.

        Raises Stopped when the lease or the worker must end, and the errors of the host and the encoder.
        """
        if self.host.loaded is None:
            raise DeviceFault("the host is not loaded")
        job, segment = lease.job, lease.segment
        profile = EncoderProfile.from_json(json.dumps(job.profile))
        self._refuse_what_cannot_be_encoded(profile.codec)
        folder = self._store.folder(job.id).make()
        final = folder.segment(segment.number, lease.token, SUFFIX)
        staged = staging_name(final, lease.token)
        description = self.host.loaded.description
        with SegmentEncoder(profile, description["pixel_format"], staged, self._devices.environment()) as encoder:
            done = self._drive_host(lease, watch, encoder)
            encoded = encoder.finish(ENCODER_SECONDS)
        planned = segment.part.frames if segment.part is not None else segment.frames
        if encoded.frames != planned:
            staged.unlink(missing_ok=True)
            raise MediaError(["encoder"], 0, f"{encoded.frames} frames were encoded where {planned} were planned")
        assert done.carry is not None
        facts = {"frames": encoded.frames, "extradata_sha1": encoded.extradata_sha1}
        artifacts = [self._store.seal(staged, final, ArtifactKind.SEGMENT, facts)]
        picture = self._thumbnail_of(done.last_frame, str(description["pixel_format"]), folder, lease)
        if picture is not None:
            artifacts.append(picture)
        return RenderedSegment(
            tuple(artifacts), done.carry, done.frames, done.device_seconds, str(description["version"])
        )

    def _refuse_what_cannot_be_encoded(self, codec: str) -> None:
        """Raises NoEncoder.  A codec of a card is tried once, with the devices that the host has."""
        if codec == SOFTWARE:
            return
        if codec not in self._tried:
            self._tried[codec] = why_not_encoding(codec, self._devices.environment())
        why = self._tried[codec]
        if why is not None:
            raise NoEncoder(
                f"the ffmpeg of this worker on {self._devices} cannot encode with {codec}, for which the job was"
                f" prepared ({why}): use a card that has an encoder (H100 and H200 have none), or set"
                f' film.codec = "{SOFTWARE}" and submit the row with --again'
            )

    def _drive_host(self, lease: Lease, watch: LeaseWatch, encoder: SegmentEncoder) -> Rendered:
        segment = lease.segment
        watcher = StopWatcher(watch.why_stop, self.host, self._stop_seconds)
        try:
            with watcher:
                events = self.host.render(
                    self._film(lease),
                    first_frame=segment.first_frame if segment.part is None else 0,
                    frames=segment.frames if segment.part is None else segment.part.frames,
                    carry=lease.carry,
                    write_fd=encoder.write_fd,
                )
                first = True
                for event in events:
                    if first:
                        encoder.close_write_end()
                        first = False
                    if isinstance(event, Progress):
                        watch.frames = event.frames
                        self._on_progress(lease, event.frames)
                    else:
                        if event.carry is None:
                            raise Stopped(watcher.word or "shutdown")
                        return event
        except FarmError as error:
            if watcher.word is not None:
                raise Stopped(watcher.word) from error
            if isinstance(error, EngineError) and not isinstance(error, DeviceFault) and not encoder.running:
                # The host failed because its reader was gone; the encoder's own words tell why.  When the host itself
                # died, the encoder has ended after it and has nothing to tell.
                encoder.finish(1.0)
            raise
        raise DeviceFault("the host ended the render without a word")

    def _film(self, lease: Lease) -> dict[str, Any]:
        job = lease.job
        portrait = read.artifact(self._ledger, job.id, ArtifactKind.PORTRAIT)
        driving = read.artifact(self._ledger, job.id, ArtifactKind.DRIVING)
        try:
            picture, sound = (self._store.fetch(artifact) for artifact in (portrait, driving))
        except FileLost as error:
            raise EngineError(f"{error}; prepare made it: submit the row with --again") from None
        settings = dict(job.settings)
        return {
            "portrait": str(picture),
            "audio": str(sound),
            "total_frames": job.total_frames,
            "width": job.width,
            "height": job.height,
            "fps": list(job.fps),
            "prompt": job.prompt,
            "seed": job.seed,
            "settings": settings,
            "facts": dict(job.facts),
            "save_memory": lease.smaller,
        } | _of_part(lease.segment.part)

    def _thumbnail_of(self, frame: bytes, pixel_format: str, folder: JobFolder, lease: Lease) -> NewArtifact | None:
        """The segment's last frame, for people; its failure costs nothing."""
        final = folder.segment(lease.segment.number, lease.token, ".jpg")
        try:
            jpeg = thumbnail_jpeg(frame, lease.job.width, lease.job.height, pixel_format)
            return write_sealed(self._store, final, jpeg, lease.token, ArtifactKind.THUMBNAIL)
        except (ValueError, OSError, StoreError) as error:
            log.warning("%s: no thumbnail: %s", lease.label, error)
            return None


def _of_part(part: Part | None) -> dict[str, Any]:
    """What the film of one segment of a parallel film has other than the film itself."""
    if part is None:
        return {}
    return {
        "window": [part.first_sample, part.first_sample + part.samples],
        "total_frames": part.frames,
        "seed": part.seed,
        "facts": dict(part.facts),
        "joined": True,
    }


class StopWatcher:
    """Asks, while a render runs, whether it is still wanted; stops the host at its next chunk, kills it in the end."""

    def __init__(self, why_stop: Callable[[], str | None], host: Host, stop_seconds: float) -> None:
        self.word: str | None = None
        self._why_stop = why_stop
        self._host = host
        self._stop_seconds = stop_seconds
        self._done = threading.Event()
        here = contextvars.copy_context()  # so that its lines bear the ids of this attempt
        self._thread = threading.Thread(target=here.run, args=(self._run,), name="stop-watcher", daemon=True)

    def __enter__(self) -> StopWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.1):
            try:
                word = self._why_stop()
            except Exception as error:  # the ledger is away: the lease decides in the end
                log.warning("could not ask whether the render is still wanted: %s", error)
                continue
            if word is None:
                continue
            self.word = word
            log.info("the host is asked to end at its next chunk: %s", word)
            self._host.stop_render()
            if not self._done.wait(self._stop_seconds):
                log.warning("the host did not stop within %.0f s; it is killed", self._stop_seconds)
                self._host.kill()
            return


def mismatch(model: ModelSpec, preset: str, loaded: Loaded) -> str | None:
    """A sentence when the engine is not what configs/models says, so that plans made from it would be wrong."""
    said = loaded.description
    fps = tuple(said["fps"])
    wanted = {
        "id": (model.id, said["id"]),
        "frames.chunk_frames": (model.chunk(preset, fps), said["chunk_frames"]),
        "frames.lookahead_samples": (model.frames.lookahead_samples, said["lookahead_samples"]),
        "frames.carry_limit_bytes": (model.frames.carry_limit_bytes, said["carry_limit_bytes"]),
    }
    for key, (planned, found) in wanted.items():
        if planned != found:
            return f"configs/models/{model.id}.toml says {key} = {planned!r}, the engine says {found!r}; mend the file"
    return None
