"""Whatever workers, people and the reaper do, in whatever order, the ledger keeps its promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from farm.config import load_settings
from farm.errors import LeaseLost
from farm.ledger import Ledger, control, moves, read
from farm.ledger.audit import audit
from farm.ledger.repair import begin_again, render_again
from farm.ledger.values import Lease
from farm.retry import Decision
from farm.states import Continuity, Event, JobState, SegmentKind, SegmentState

from .conftest import empty
from .scenes import POLICY, QUEUE, TTL, beat, chain, hello, plan, publish, request, run_out, submit

WORKERS = ["w1", "w2", "w3"]
QUEUES = {"w1": QUEUE, "w2": QUEUE, "w3": "cpu"}


class Farm(RuleBasedStateMachine):
    """Claims, ends of every kind, lost workers, and what people ask, on one ledger."""

    ledger: Ledger
    settings: Any
    leases = Bundle("leases")

    @initialize(jobs=st.integers(1, 3), data=st.data())
    def begin(self, jobs: int, data: st.DataObject) -> None:
        empty(self.ledger)
        for worker, queue in QUEUES.items():
            hello(self.ledger, worker, queue=queue)
        self.jobs = submit(
            self.ledger,
            *[request(continuity=data.draw(st.sampled_from(Continuity)), owner=f"o{n % 2}") for n in range(jobs)],
        )
        self.published: set[tuple[int, SegmentKind, int]] = set()
        self.tokens: dict[int, int] = {}

    # Workers

    @rule(target=leases, worker=st.sampled_from(WORKERS), warm=st.booleans())
    def claim(self, worker: str, warm: bool) -> Any:
        before = {s.id: s for job in self.jobs for s in read.segments(self.ledger, job)}
        jobs = {job: read.job(self.ledger, job) for job in self.jobs}
        lease = moves.claim(
            self.ledger,
            worker=worker,
            queue=QUEUES[worker],
            device="cpu",
            ttl_seconds=TTL,
            warm_job=self.jobs[-1] if warm else None,
        )
        if lease is None:
            return multiple()
        was, job = before[lease.segment.id], jobs[lease.job.id]
        assert was.state is SegmentState.QUEUED and not was.held
        assert was.queue == QUEUES[worker]
        assert not job.paused and job.state not in (JobState.FAILED, JobState.CANCELLED, JobState.SUCCEEDED)
        assert lease.token > self.tokens.get(was.id, 0)
        assert lease.attempt == was.attempt + 1
        assert (lease.carry is not None) == was.needs_carry
        self.tokens[was.id] = lease.token
        return lease

    @rule(lease=consumes(leases))
    def succeed(self, lease: Lease) -> None:
        segment = lease.segment
        key = (lease.job.id, segment.kind, segment.number)
        again = key in self.published
        try:
            if segment.kind is SegmentKind.PREPARE:
                plan(self.ledger, lease, chain(2, continuity=lease.job.continuity))
            else:
                publish(self.ledger, lease)
        except LeaseLost:
            return
        assert not again, f"{lease.label} was published twice"
        self.published.add(key)

    @rule(
        lease=consumes(leases),
        event=st.sampled_from([Event.RETRY, Event.FAIL, Event.INTERRUPT]),
        smaller=st.booleans(),
    )
    def end_without_result(self, lease: Lease, event: Event, smaller: bool) -> None:
        counts = event is not Event.INTERRUPT
        if counts and lease.segment.errors + 1 >= POLICY.max_errors:
            event = Event.FAIL
        decision = Decision(event, "boom", "engine", counts=counts, strike=counts, smaller=smaller)
        try:
            moves.release(self.ledger, lease, decision)
        except LeaseLost:
            return

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        try:
            moves.renew(self.ledger, lease, ttl_seconds=TTL, frames_now=1)
        except LeaseLost:
            return

    @rule(lease=leases)
    def vanish(self, lease: Lease) -> None:
        """The lease runs out, if it still is one; its worker does not know."""
        if moves.standing(self.ledger, lease) != moves.Standing.LOST:
            current = next(s for s in read.segments(self.ledger, lease.job.id) if s.id == lease.segment.id)
            if current.state is SegmentState.LEASED:
                run_out(self.ledger, lease)

    @rule()
    def sweep(self) -> None:
        moves.expire_leases(self.ledger, POLICY)
        assert moves.expire_leases(self.ledger, POLICY) == []

    @rule(worker=st.sampled_from(WORKERS))
    def beat(self, worker: str) -> None:
        beat(self.ledger, worker)

    @rule(worker=st.sampled_from(WORKERS))
    def restart(self, worker: str) -> None:
        hello(self.ledger, worker, queue=QUEUES[worker])
        moves.expire_leases(self.ledger, POLICY, worker=worker)

    # People

    def any_job(self, data: st.DataObject) -> int:
        return int(data.draw(st.sampled_from(self.jobs)))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        control.cancel(self.ledger, self.any_job(data))

    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        control.pause(self.ledger, self.any_job(data))

    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        control.resume(self.ledger, self.any_job(data))

    @rule(data=st.data(), number=st.one_of(st.none(), st.integers(0, 1)))
    def retry(self, data: st.DataObject, number: int | None) -> None:
        control.retry(self.ledger, self.any_job(data), segment_number=number)

    @rule(worker=st.sampled_from(WORKERS), now=st.booleans())
    def drain(self, worker: str, now: bool) -> None:
        control.drain_worker(self.ledger, worker, now=now)

    @rule(worker=st.sampled_from(WORKERS))
    def forgive(self, worker: str) -> None:
        control.resume_worker(self.ledger, worker)

    @rule(data=st.data(), number=st.integers(0, 1))
    def lose_a_file(self, data: st.DataObject, number: int) -> None:
        """What `assemble` does when it finds a published file gone."""
        job = self.any_job(data)
        assembling = [s for s in read.segments(self.ledger, job) if s.kind is SegmentKind.ASSEMBLE]
        if assembling and assembling[0].state is SegmentState.LEASED:
            return
        if render_again(self.ledger, job, number, "gone"):
            self.published.discard((job, SegmentKind.RENDER, number))

    @rule(lease=consumes(leases))
    def another_version(self, lease: Lease) -> None:
        """What a worker does whose engine is not the one that began the film."""
        if lease.segment.kind is not SegmentKind.RENDER:
            return
        try:
            begun = begin_again(self.ledger, lease, "another version")
        except LeaseLost:
            return
        if begun:
            self.published -= {key for key in self.published if key[:2] == (lease.job.id, SegmentKind.RENDER)}

    # What holds at every moment

    @invariant()
    def the_ledger_keeps_its_promises(self) -> None:
        assert [str(violation) for violation in audit(self.ledger, self.settings, check_files=False)] == []

    @invariant()
    def what_is_published_stays_published(self) -> None:
        succeeded = {
            (job, s.kind, s.number)
            for job in self.jobs
            for s in read.segments(self.ledger, job)
            if s.state is SegmentState.SUCCEEDED
        }
        assert succeeded == self.published

    def teardown(self) -> None:
        """However bad it was, the farm can still finish every job."""
        for worker in WORKERS:
            control.resume_worker(self.ledger, worker)
            moves.expire_leases(self.ledger, POLICY, worker=worker)
        for job in self.jobs:
            control.resume(self.ledger, job)
            control.retry(self.ledger, job)
        idle = False
        while not idle:
            idle = True
            for worker, queue in QUEUES.items():
                lease = moves.claim(self.ledger, worker=worker, queue=queue, device="cpu", ttl_seconds=TTL)
                if lease is None:
                    continue
                idle = False
                if lease.segment.kind is SegmentKind.PREPARE:
                    plan(self.ledger, lease, chain(2, continuity=lease.job.continuity))
                else:
                    publish(self.ledger, lease)
        assert {read.job(self.ledger, job).state for job in self.jobs} == {JobState.SUCCEEDED}
        assert audit(self.ledger, self.settings, check_files=False) == []


@pytest.mark.parametrize(
    ("ledger", "examples"), [("sqlite", 8), ("postgres", 3)], indirect=["ledger"], ids=["sqlite", "postgres"]
)
def test_no_order_of_events_breaks_a_promise(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    machine = type("FarmHere", (Farm,), {"ledger": ledger, "settings": load_settings()})
    enough = settings(max_examples=examples, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(machine, settings=enough)
