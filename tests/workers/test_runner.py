"""A worker's story with the real ledger, the real encoder and a real host."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from farm.artifacts import sha256_of
from farm.errors import LeaseLost
from farm.ledger import control, crew, moves, read
from farm.ledger.values import Lease, Worker
from farm.logs import StampIds
from farm.media.verify import frame_hashes
from farm.states import ArtifactKind, JobState, SegmentKind, WorkerState
from farm.store import open_store
from workers import rendering
from workers.film_steps import FilmSteps
from workers.heart import LeaseWatch
from workers.runner import Runner

from .conftest import SmallFarm, is_dead, running, wait_until, write_speech

ENDED = (JobState.ASSEMBLING, JobState.FAILED)


def worker(farm: SmallFarm, name: str = "fake@box") -> Worker:
    """The worker's row, once there is one."""
    return wait_until(lambda: next((w for w in read.workers(farm.ledger) if w.name == name), None), f"worker {name}")


def host_pid(runner: Runner) -> int:
    assert runner._renderer is not None
    pid = runner._renderer.host.pid
    assert pid is not None
    return pid


# From row to film


def test_a_job_becomes_a_film_with_every_frame_and_nothing_left_over(farm: SmallFarm) -> None:
    job_id = farm.submit(seconds=2.03)
    with running(farm.cpu_runner(), farm.runner()):
        job = farm.wait_for(job_id, JobState.SUCCEEDED, JobState.FAILED)
    assert (job.state, job.reason) == (JobState.SUCCEEDED, None)
    assert (job.total_frames, job.frames_done, job.segments_done) == (51, 51, job.segments_total)
    film = read.artifact(farm.ledger, job_id, ArtifactKind.FILM)
    assert film.path == job.output
    assert film.sha256 == sha256_of(Path(job.output))
    assert len(frame_hashes(Path(job.output))) == 51
    assert frame_hashes(Path(job.output)) == farm.segment_hashes(job_id)
    assert {a.kind for a in read.artifacts(farm.ledger, job_id)} == set(ArtifactKind)
    assert farm.outcomes(job_id) == [(number, "succeed") for number in range(job.segments_total)]
    assert farm.staging_files() == []
    assert farm.audit() == []
    assert {w.state for w in read.workers(farm.ledger)} == {WorkerState.STOPPED}


def test_every_line_about_an_attempt_bears_its_ids(farm: SmallFarm, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(StampIds())
    caplog.set_level(logging.INFO)
    job_id = farm.submit(seconds=0.3)
    with running(farm.cpu_runner(), farm.runner()):
        farm.wait_for(job_id, JobState.SUCCEEDED)
    told = [getattr(line, "ids", {}) for line in caplog.records if line.getMessage().startswith(f"job {job_id} ")]
    render = {"worker": "fake@box", "job": job_id, "step": "render", "segment": 1, "attempt": 1}
    assert told.count(render) == 2  # begins, published
    assert [ids["step"] for ids in told if ids["worker"] == "cpu@box"] == ["prepare", "prepare", "assemble", "assemble"]
    assert all(ids["job"] == job_id and ids["attempt"] == 1 for ids in told)


def test_a_bad_portrait_fails_its_job_alone_and_at_once(farm: SmallFarm, tmp_path: Path, portrait: Path) -> None:
    changed = tmp_path / "changed.png"
    changed.write_bytes(portrait.read_bytes())
    bad = farm.submit(portrait=str(changed))
    changed.write_bytes(b"not a picture any more")
    good = farm.submit(seconds=0.3)
    with running(farm.cpu_runner(), farm.runner()):
        job = farm.wait_for(bad, JobState.FAILED)
        farm.wait_for(good, JobState.SUCCEEDED)
    assert job.failure == "input"
    assert job.reason == f"portrait {changed} was changed after it was submitted; submit the row again"
    assert len(read.attempts(farm.ledger, bad)) == 1
    assert farm.audit() == []


def test_a_film_does_not_get_the_sound_of_a_recording_that_was_changed_while_it_was_rendered(farm: SmallFarm) -> None:
    job_id = farm.planned(seconds=0.3)
    audio = Path(farm.job(job_id).audio)
    write_speech(audio, 0.3, seed=4)  # of the same length, so that its samples fit the frames
    with running(farm.cpu_runner(), farm.runner()):
        job = farm.wait_for(job_id, JobState.SUCCEEDED, JobState.FAILED)
    assert job.reason == f"audio {audio} was changed after it was submitted; submit the row again"
    assert not Path(job.output).exists()


def test_a_lease_that_ends_while_the_film_goes_to_a_slow_disk_does_not_take_the_films_place(
    farm: SmallFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = farm.planned(seconds=0.3)
    with running(farm.runner()):
        farm.wait_for(job_id, JobState.ASSEMBLING)
    lease = farm.claim("cpu", "late", job_id)
    written, fsync = [], os.fsync

    def take_longer_than_a_lease(descriptor: int) -> None:
        if not written:
            farm.run_out(lease.segment.id)
        written.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", take_longer_than_a_lease)
    steps = FilmSteps(farm.ledger, farm.settings, open_store(farm.settings), "cpu")
    with contextlib.closing(steps), pytest.raises(LeaseLost):
        steps.assemble(lease, LeaseWatch(farm.ledger, lease, threading.Event()))
    assert written and not Path(lease.job.output).exists() and farm.staging_files() == []


def test_a_lost_segment_file_is_rendered_again_and_the_film_is_the_same(farm: SmallFarm) -> None:
    job_id = farm.planned()
    with running(farm.runner()):
        farm.wait_for(job_id, *ENDED)
    published = farm.segment_hashes(job_id)
    files = read.artifacts(farm.ledger, job_id, ArtifactKind.SEGMENT)
    Path(files[1].path).unlink()
    Path(files[2].path).write_bytes(b"damaged")
    with running(farm.cpu_runner(), farm.runner()):
        job = farm.wait_for(job_id, JobState.SUCCEEDED, JobState.FAILED)
    assert (job.state, job.reason) == (JobState.SUCCEEDED, None)
    assert frame_hashes(Path(job.output)) == published
    assert farm.outcomes(job_id)[-2:] == [(1, "succeed"), (2, "succeed")]
    assert [outcome for _, outcome in farm.outcomes(job_id, SegmentKind.ASSEMBLE)] == ["interrupt", "succeed"]
    assert farm.audit() == []


# Stopping and going on


def test_a_worker_that_is_stopped_gives_its_lease_back_and_leaves_nobody(farm: SmallFarm) -> None:
    job_id = farm.planned()
    runner = farm.runner(pace=0.2)
    with running(runner):
        wait_until(lambda: farm.segments_done(job_id), "the first segment")
        wait_until(lambda: read.running(farm.ledger), "the second one to be leased")
        pid = host_pid(runner)
    assert is_dead(pid)
    assert read.running(farm.ledger) == []
    assert farm.outcomes(job_id)[-1][1] in ("interrupt", "succeed")
    assert worker(farm).state is WorkerState.STOPPED
    assert farm.staging_files() == []
    assert farm.audit() == []


def test_a_film_that_was_interrupted_and_resumed_elsewhere_has_the_same_frames(farm: SmallFarm) -> None:
    whole = farm.planned(seconds=4.0)
    with running(farm.runner("one")):
        farm.wait_for(whole, *ENDED)
    resumed = farm.planned(seconds=4.0, output="again.mp4")
    for number, name in enumerate(["two", "three"]):
        with running(farm.runner(name, pace=0.15)):
            wait_until(lambda n=number: farm.segments_done(resumed) > n, "a segment of this worker")
            wait_until(
                lambda n=number: (
                    any(segment.frames_now for segment in read.running(farm.ledger))
                    or farm.segments_done(resumed) > n + 2
                ),
                "a chunk of the next",
            )
    with running(farm.runner("four")):
        farm.wait_for(resumed, *ENDED)
    assert farm.segment_hashes(resumed) == farm.segment_hashes(whole)
    assert len(farm.segment_hashes(whole)) == 100
    assert len({a.worker for a in read.attempts(farm.ledger, resumed)}) > 2
    assert farm.audit() == []


def test_parallel_segments_of_two_workers_are_the_film_of_one(farm: SmallFarm, tmp_path: Path) -> None:
    alone = farm.planned(continuity="parallel")
    with running(farm.runner("one")):
        farm.wait_for(alone, *ENDED)
    shared = farm.planned(continuity="parallel", output="shared.mp4")
    gate = tmp_path / "gate"
    with running(farm.runner("two", gate=str(gate)), farm.runner("three", gate=str(gate))):
        wait_until(lambda: len(read.running(farm.ledger)) == 2, "both workers to have a segment")
        gate.touch()
        farm.wait_for(shared, *ENDED)
    assert farm.segment_hashes(shared) == farm.segment_hashes(alone)
    assert {a.worker for a in read.attempts(farm.ledger, shared) if a.frames} == {"two@box", "three@box"}


@pytest.mark.parametrize("ask", ["pause", "cancel", "drain"])
def test_a_running_attempt_ends_within_a_chunk_of_being_asked(farm: SmallFarm, ask: str) -> None:
    farm.change("segments", seconds=30.0, first_seconds=30.0)
    job_id = farm.planned(seconds=30.0)
    runner = farm.runner(pace=0.1)
    with running(runner):
        segment = wait_until(lambda: next((s for s in read.running(farm.ledger) if s.frames_now), None), "a chunk")
        pid = host_pid(runner)
        if ask == "pause":
            control.pause(farm.ledger, job_id)
        elif ask == "cancel":
            control.cancel(farm.ledger, job_id)
        else:
            control.drain_worker(farm.ledger, "fake@box", now=True)
        wait_until(lambda: not read.running(farm.ledger), "the lease to be given back")
        outcome = {"pause": "interrupt", "cancel": "cancel", "drain": "interrupt"}[ask]
        assert farm.outcomes(job_id)[-1] == (segment.number, outcome)
        # The host stays warm for what comes next.
        other = farm.planned(seconds=0.2, output="other.mp4")
        if ask == "drain":
            wait_until(lambda: worker(farm).state is WorkerState.DRAINING, "the worker to say so")
            control.cancel(farm.ledger, job_id)  # or half a minute of film would come before the other
            control.resume_worker(farm.ledger, "fake@box")
            runner.wake()
        farm.wait_for(other, *ENDED)
        assert host_pid(runner) == pid
    assert farm.audit() == []


def test_a_paused_job_goes_on_when_it_is_resumed(farm: SmallFarm) -> None:
    job_id = farm.planned()
    with running(farm.runner(pace=0.05)):
        wait_until(lambda: farm.segments_done(job_id), "a segment")
        control.pause(farm.ledger, job_id)
        wait_until(lambda: not read.running(farm.ledger), "the lease to be given back")
        control.resume(farm.ledger, job_id)
        assert farm.wait_for(job_id, *ENDED).frames_done == 50


def test_a_host_that_does_not_stop_is_killed_and_the_worker_ends_in_time(farm: SmallFarm) -> None:
    farm.change("host", stop_seconds=0.3)
    job_id = farm.planned("hang@5")
    runner = farm.runner()
    with running(runner):
        wait_until(lambda: farm.segments_done(job_id) and read.running(farm.ledger), "the segment that hangs")
        pid = host_pid(runner)
    assert is_dead(pid)
    assert farm.outcomes(job_id) == [(0, "succeed"), (1, "interrupt")]


# Errors


def test_an_engine_error_is_tried_again_later_and_does_no_harm(farm: SmallFarm, tmp_path: Path) -> None:
    runner = farm.runner()
    with running(runner):
        pid = wait_until(lambda: worker(farm).host_pid, "the host")
        job_id = farm.planned(f"engine@10?{tmp_path}/once")
        farm.wait_for(job_id, *ENDED)
        assert host_pid(runner) == pid
    assert farm.outcomes(job_id)[:3] == [(0, "succeed"), (1, "retry"), (1, "succeed")]
    failed = next(a for a in read.attempts(farm.ledger, job_id) if a.outcome == "retry")
    assert (failed.failure, failed.reason, failed.strike) == ("engine", "the model gave no picture", True)
    assert farm.audit() == []


def test_a_segment_that_fails_three_times_fails_the_job_with_its_last_words(farm: SmallFarm) -> None:
    job_id = farm.planned("engine@10")
    with running(farm.runner()):
        job = farm.wait_for(job_id, JobState.FAILED)
    assert job.reason == "given up after 3 attempts; the last one: the model gave no picture"
    assert farm.outcomes(job_id) == [(0, "succeed"), (1, "retry"), (1, "retry"), (1, "fail")]
    assert farm.audit() == []


def test_an_input_error_fails_at_once_and_the_model_stays_warm(farm: SmallFarm) -> None:
    job_id = farm.planned("input@10")
    runner = farm.runner()
    with running(runner):
        job = farm.wait_for(job_id, JobState.FAILED)
        pid = host_pid(runner)
        assert (job.failure, job.reason) == ("input", "the mouth is covered by a hand")
        assert farm.outcomes(job_id) == [(0, "succeed"), (1, "fail")]
        other = farm.planned(output="other.mp4")
        farm.wait_for(other, *ENDED)
        assert host_pid(runner) == pid
    assert not any(a.strike for a in read.attempts(farm.ledger, job_id))


def test_out_of_memory_is_tried_once_smaller_on_a_fresh_host(farm: SmallFarm) -> None:
    runner = farm.runner()
    with running(runner):
        first = wait_until(lambda: worker(farm).host_pid, "the host")
        job_id = farm.planned("hungry@5")
        farm.wait_for(job_id, *ENDED)
        assert host_pid(runner) != first
    assert farm.outcomes(job_id)[:3] == [(0, "succeed"), (1, "retry"), (1, "succeed")]


def test_out_of_memory_also_when_smaller_fails_the_job(farm: SmallFarm) -> None:
    job_id = farm.planned("memory@5")
    with running(farm.runner()):
        job = farm.wait_for(job_id, JobState.FAILED)
    assert job.reason == "the device is full (also with the memory-saving settings)"
    assert farm.outcomes(job_id) == [(0, "succeed"), (1, "retry"), (1, "fail")]


def test_a_dead_host_is_replaced_and_the_film_goes_on(farm: SmallFarm, tmp_path: Path) -> None:
    runner = farm.runner()
    with running(runner):
        first = wait_until(lambda: worker(farm).host_pid, "the host")
        job_id = farm.planned(f"kill@10?{tmp_path}/once")
        farm.wait_for(job_id, *ENDED)
        assert is_dead(first) and host_pid(runner) != first
        wait_until(lambda: worker(farm).host_restarts == 1, "the restart to be told")
    failed = next(a for a in read.attempts(farm.ledger, job_id) if a.outcome == "retry")
    assert (failed.failure, failed.reason) == ("device", "the host was killed by SIGKILL while rendering")
    assert farm.staging_files() == []
    assert farm.audit() == []


def test_a_host_killed_while_idle_is_replaced_before_the_next_segment(farm: SmallFarm) -> None:
    runner = farm.runner()
    with running(runner):
        first = wait_until(lambda: worker(farm).host_pid, "the host")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: runner._renderer and runner._renderer.is_warm and host_pid(runner) != first, "a new host")
        job_id = farm.planned()
        farm.wait_for(job_id, *ENDED)
    assert {outcome for _, outcome in farm.outcomes(job_id)} == {"succeed"}


def test_an_encoder_that_is_killed_costs_one_attempt(farm: SmallFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []

    class Fragile(rendering.SegmentEncoder):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            if not killed:
                killed.append(self.pid)
                os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(rendering, "SegmentEncoder", Fragile)
    job_id = farm.planned()
    with running(farm.runner()):
        farm.wait_for(job_id, *ENDED)
    assert farm.outcomes(job_id)[:2] == [(0, "retry"), (0, "succeed")]
    failed = next(a for a in read.attempts(farm.ledger, job_id) if a.outcome == "retry")
    assert failed.failure in ("media", "engine")
    assert farm.audit() == []


# Losing the lease


def test_a_lease_that_is_lost_while_rendering_is_dropped_and_the_new_owners_result_stands(farm: SmallFarm) -> None:
    farm.change("segments", seconds=10.0, first_seconds=10.0)  # so that it is rendering for sure when the lease ends
    job_id = farm.planned(seconds=10.0)
    late = farm.runner("late", pace=0.3)
    with running(late):
        segment = wait_until(lambda: next((s for s in read.running(farm.ledger) if s.frames_now), None), "a chunk")
        control.drain_worker(farm.ledger, "late@box")  # so that it does not take the segment again
        farm.run_out(segment.id)
        with running(farm.runner("new")):
            wait_until(lambda: farm.segments_done(job_id) > segment.number, "the new owner's result")
            wait_until(lambda: late.heart._watch is None, "the late worker to notice")
    outcomes = [outcome for number, outcome in farm.outcomes(job_id) if number == segment.number]
    assert outcomes == ["expire", "succeed"]
    (artifact,) = [
        a for a in read.artifacts(farm.ledger, job_id, ArtifactKind.SEGMENT) if a.segment_number == segment.number
    ]
    assert f".t{segment.token + 1}." in artifact.path
    assert farm.staging_files() == []
    assert farm.audit() == []


def test_a_lease_is_renewed_for_as_long_as_the_render_lasts(farm: SmallFarm, tmp_path: Path) -> None:
    farm.change("lease", ttl_seconds=4.0, beat_seconds=0.1, sweep_seconds=0.1)
    job_id = farm.planned(seconds=1.2)
    gate = tmp_path / "gate"
    with running(farm.runner("slow", gate=str(gate)), farm.runner("other", gate=str(gate))):
        segment = wait_until(lambda: next(iter(read.running(farm.ledger)), None), "the first segment")
        assert segment.lease_until is not None
        wait_until(lambda: farm.ledger.now() > segment.lease_until, "the end that its lease had at first")
        gate.touch()
        farm.wait_for(job_id, *ENDED)
    assert {outcome for _, outcome in farm.outcomes(job_id)} == {"succeed"}


def test_work_of_a_worker_that_vanished_is_taken_up_by_another(farm: SmallFarm) -> None:
    job_id = farm.planned()
    farm.change("lease", sweep_seconds=0.1)
    moves.claim(farm.ledger, worker="gone", queue="fake", device="cpu", ttl_seconds=0.05)
    with running(farm.runner()):
        farm.wait_for(job_id, *ENDED)
    assert farm.outcomes(job_id)[:2] == [(0, "expire"), (0, "succeed")]
    assert farm.audit() == []


# What a worker tells of itself


def test_a_worker_says_what_it_is_and_does(farm: SmallFarm, tmp_path: Path) -> None:
    loads, renders = tmp_path / "loads", tmp_path / "renders"
    runner = farm.runner(load_gate=str(loads), gate=str(renders))
    with running(runner):
        for state, then in (
            (WorkerState.LOADING, loads.touch),
            (WorkerState.IDLE, lambda: farm.planned(seconds=1.0)),
            (WorkerState.RENDERING, renders.touch),
            (WorkerState.IDLE, lambda: None),
        ):
            wait_until(lambda state=state: worker(farm).state is state, f"the worker to be {state}")
            then()
        row = wait_until(lambda: row if (row := worker(farm)).host_pid else None, "the host to be told")
        assert row.info["engine"] == "fake"
        assert (row.info["memory_bytes"], row.queue, row.device, row.machine) == (123_456_789, "fake", "cpu", "box")
        assert row.host_pid == host_pid(runner)


def test_an_engine_that_does_not_load_is_told_and_tried_again(farm: SmallFarm, tmp_path: Path) -> None:
    farm.change("host", restart_delay_seconds=3600.0, restart_delay_max_seconds=3600.0)
    runner = farm.runner(on_load=f"engine@0?{tmp_path}/once")
    with running(runner):
        row = wait_until(lambda: next((w for w in read.workers(farm.ledger) if w.reason), None), "the reason")
        assert row.reason == "the engine could not be loaded: the model gave no picture"
        assert runner._loader is not None
        runner._loader.again_at = 0.0  # the hour is over
        wait_until(lambda: worker(farm).state is WorkerState.IDLE, "the engine to load in the end")
        assert worker(farm).reason is None


def test_an_engine_that_never_loads_makes_its_worker_sick(farm: SmallFarm) -> None:
    farm.planned()
    with running(farm.runner(on_load="engine")):
        said = "fake@box is sick: the engine could not be loaded: the model gave no picture"
        wait_until(lambda: any(said in stuck.reason for stuck in read.stuck(farm.ledger)), "the worker to be sick")


def test_an_engine_that_is_not_what_its_file_says_is_refused(farm: SmallFarm) -> None:
    with running(farm.runner(chunk_frames=7)):
        row = wait_until(lambda: next((w for w in read.workers(farm.ledger) if w.reason), None), "the reason")
    assert "configs/models/fake.toml says frames.chunk_frames = 5, the engine says 7; mend the file" in row.reason


def test_a_worker_without_room_takes_nothing_and_says_why(farm: SmallFarm) -> None:
    farm.change("room", min_free_disk_gb=1e9)
    job_id = farm.planned()
    with running(farm.runner()):
        row = wait_until(lambda: next((w for w in read.workers(farm.ledger) if w.reason), None), "the reason")
        assert "GB of disk are free" in row.reason and "less than room.min_free_disk_gb" in row.reason
        assert farm.outcomes(job_id) == []


def test_a_sick_worker_takes_nothing_until_a_person_forgives_it(farm: SmallFarm) -> None:
    bad = [farm.planned("device@0", output=f"bad{n}.mp4") for n in range(3)]
    with running(farm.runner()):
        for job_id in bad[:2]:
            farm.wait_for(job_id, JobState.FAILED)
        wait_until(lambda: worker(farm).state is WorkerState.SICK, "the worker to be sick")
        good = farm.planned(output="good.mp4")
        assert "failed 3 different jobs in a row" in (worker(farm).reason or "")
        assert farm.outcomes(bad[2]) == [(0, "retry")]  # a worker that is well may still render it
        assert farm.outcomes(good) == []
        control.resume_worker(farm.ledger, "fake@box")
        farm.wait_for(bad[2], JobState.FAILED)
        farm.wait_for(good, *ENDED)


def test_a_worker_whose_name_was_taken_stops(farm: SmallFarm) -> None:
    first, second = farm.runner(), farm.runner()
    with running(first):
        wait_until(lambda: worker(farm).host_pid, "the first worker")
        with running(second):
            assert first.finished.wait(60)
            assert not second.finished.is_set()


def test_a_worker_that_follows_a_dead_one_takes_its_lease_back_at_once(farm: SmallFarm) -> None:
    job_id = farm.planned()
    crew.say_hello(
        farm.ledger,
        name="fake@box",
        queue="fake",
        machine="box",
        pid=4_000_000,  # above the largest process id that Linux gives
        incarnation="dead",
        device="cpu",
        info={"process_birth": "an earlier boot:1"},
    )
    moves.claim(farm.ledger, worker="fake@box", queue="fake", device="cpu", ttl_seconds=3600.0)
    with running(farm.runner()):
        farm.wait_for(job_id, *ENDED)
    assert farm.outcomes(job_id)[:2] == [(0, "expire"), (0, "succeed")]


def test_a_film_that_another_version_of_the_engine_began_begins_again(farm: SmallFarm) -> None:
    calm = farm.planned(seconds=1.0)
    with running(farm.runner()):
        farm.wait_for(calm, JobState.ASSEMBLING)
    again = farm.planned(seconds=1.0)
    lease = farm.claim("fake", "older@box", again)
    moves.publish(farm.ledger, lease, artifacts=[], carry=b"another shape", frames=5, engine_version="0")
    with running(farm.runner(), farm.cpu_runner()):
        farm.wait_for(again, *ENDED, JobState.SUCCEEDED)
    assert [e for e in farm.outcomes(again) if e[0] == 0] == [(0, "render_again"), (0, "succeed")]
    assert farm.segment_hashes(again) == farm.segment_hashes(calm)
    assert farm.audit() == []


def test_a_bug_of_ours_does_not_end_the_worker(farm: SmallFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = farm.planned()
    claim, broken = moves.claim, threading.Event()

    def claim_badly(*args: Any, **kwargs: Any) -> Lease | None:
        if broken.is_set():
            return claim(*args, **kwargs)
        broken.set()
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(moves, "claim", claim_badly)
    with running(farm.runner()):
        farm.wait_for(job_id, *ENDED)
    assert broken.is_set()
