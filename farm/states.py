"""What a segment can be, what can happen to it, and what a job is because of its segments.

A segment is what one worker leases.  Most are of kind `render`: frames [first, first + frames) of one film.  Looking at
the inputs (`prepare`) and joining the film (`assemble`) are leased, retried and fenced the same way, so they are
segments without frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from farm.errors import IllegalMove


class SegmentKind(StrEnum):
    PREPARE = "prepare"  # look at portrait and audio, plan the frames
    RENDER = "render"  # frames of the film, without sound
    ASSEMBLE = "assemble"  # join the segments, encode the audio once, verify


class SegmentState(StrEnum):
    WAITING = "waiting"  # what it builds on is not published yet
    QUEUED = "queued"  # any worker of its queue may lease it
    LEASED = "leased"  # one worker holds it until the lease expires
    SUCCEEDED = "succeeded"  # published; nothing leaves this state
    FAILED = "failed"  # attempts are spent, or the input cannot be rendered
    CANCELLED = "cancelled"  # a person said so


class Event(StrEnum):
    READY = "ready"  # what it builds on was published
    LEASE = "lease"  # a worker took it; counts an attempt
    SUCCEED = "succeed"  # the result was published
    RETRY = "retry"  # the attempt failed; another one may follow
    EXPIRE = "expire"  # the lease ran out: its worker died or lost its way
    INTERRUPT = "interrupt"  # a stop that was asked for; not held against anyone
    FAIL = "fail"  # no further attempt
    CANCEL = "cancel"  # a person stopped the job
    REQUEUE = "requeue"  # a person wants it tried again


MOVES: Mapping[tuple[SegmentState, Event], SegmentState] = {
    (SegmentState.WAITING, Event.READY): SegmentState.QUEUED,
    (SegmentState.QUEUED, Event.LEASE): SegmentState.LEASED,
    (SegmentState.LEASED, Event.SUCCEED): SegmentState.SUCCEEDED,
    (SegmentState.LEASED, Event.RETRY): SegmentState.QUEUED,
    (SegmentState.LEASED, Event.EXPIRE): SegmentState.QUEUED,
    (SegmentState.LEASED, Event.INTERRUPT): SegmentState.QUEUED,
    (SegmentState.LEASED, Event.FAIL): SegmentState.FAILED,
    (SegmentState.WAITING, Event.CANCEL): SegmentState.CANCELLED,
    (SegmentState.QUEUED, Event.CANCEL): SegmentState.CANCELLED,
    (SegmentState.LEASED, Event.CANCEL): SegmentState.CANCELLED,
    (SegmentState.FAILED, Event.REQUEUE): SegmentState.WAITING,
    (SegmentState.CANCELLED, Event.REQUEUE): SegmentState.WAITING,
}


def after(state: SegmentState, event: Event) -> SegmentState:
    """The state that `event` leads to from `state`.  Raises IllegalMove."""
    try:
        return MOVES[state, event]
    except KeyError:
        raise IllegalMove(f"a {state} segment cannot {event}") from None


def states_before(event: Event) -> tuple[SegmentState, ...]:
    """Every state that has a move for `event`."""
    return tuple(state for state, e in MOVES if e is event)


class JobState(StrEnum):
    QUEUED = "queued"  # nobody has looked at it yet
    PREPARING = "preparing"  # portrait and audio are being looked at
    RENDERING = "rendering"  # planned; segments are being rendered or wait for a worker
    ASSEMBLING = "assembling"  # all frames are published, the film is not
    SUCCEEDED = "succeeded"  # the film is published
    FAILED = "failed"  # one segment failed for good
    CANCELLED = "cancelled"  # a person said so


FINISHED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
# All others, named one by one, so that the ledger's index of states is used.
OPEN_STATES = tuple(state for state in JobState if state not in FINISHED)


def job_state(segments: Mapping[tuple[SegmentKind, SegmentState], int]) -> JobState:
    """What a job is, from how many of its segments of each kind are in each state."""
    states = {state for (_, state), count in segments.items() if count}
    if SegmentState.FAILED in states:
        return JobState.FAILED
    if SegmentState.CANCELLED in states:
        return JobState.CANCELLED

    def done(kind: SegmentKind) -> bool:
        of_kind = {state for (k, state), count in segments.items() if count and k is kind}
        return of_kind == {SegmentState.SUCCEEDED}

    if done(SegmentKind.ASSEMBLE):
        return JobState.SUCCEEDED
    if done(SegmentKind.RENDER):
        return JobState.ASSEMBLING
    if done(SegmentKind.PREPARE):
        return JobState.RENDERING
    if segments.get((SegmentKind.PREPARE, SegmentState.LEASED)):
        return JobState.PREPARING
    return JobState.QUEUED


class Continuity(StrEnum):
    CARRY = "carry"  # segments are a chain: each starts from the state that the one before left
    PARALLEL = "parallel"  # segments start afresh at pauses in the speech; many workers share one film


class WorkerState(StrEnum):
    LOADING = "loading"  # its host brings the weights onto the devices
    IDLE = "idle"  # ready, nothing to do
    RENDERING = "rendering"  # holds a lease
    DRAINING = "draining"  # finishes or gives back what it holds, takes nothing new
    SICK = "sick"  # failed for several jobs; takes nothing until a person or time forgives it
    STOPPED = "stopped"  # said goodbye
    LOST = "lost"  # stopped beating without a goodbye


class ArtifactKind(StrEnum):
    PORTRAIT = "portrait"  # upright 8-bit RGB PNG, as the engine gets it
    DRIVING = "driving"  # mono 16 kHz float32, as the engine hears it
    SEGMENT = "segment"  # video only
    THUMBNAIL = "thumbnail"  # last frame of a segment
    FILM = "film"
    POSTER = "poster"
    SHEET = "sheet"  # contact sheet
    REPORT = "report"
