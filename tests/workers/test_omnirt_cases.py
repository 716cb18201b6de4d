"""Cases of OmniRT's tests that concern a resident worker; the numbers are those of docs/compatibility.md."""

from __future__ import annotations

from itertools import pairwise

from farm.ledger import read
from farm.states import JobState

from .conftest import SmallFarm, running, wait_until


def test_cases_15_and_19_jobs_that_differ_in_everything_share_one_load_of_the_model(farm: SmallFarm) -> None:
    jobs = [
        farm.planned(seconds=0.4, seed=1),
        farm.planned(seconds=0.4, seed=2),
        farm.planned("another prompt", seconds=0.4, size="96x64"),
    ]
    pids = []
    with running(farm.runner()):
        for job in jobs:
            farm.wait_for(job, JobState.ASSEMBLING)
            wait_until(lambda: read.workers(farm.ledger)[0].host_pid, "the host to be told")
            (worker,) = read.workers(farm.ledger)
            pids.append((worker.host_pid, worker.host_restarts))
    assert pids == [(pids[0][0], 0)] * 3


def test_case_20_jobs_submitted_at_once_are_rendered_one_after_the_other(farm: SmallFarm) -> None:
    jobs = [farm.planned(seconds=0.6, seed=seed) for seed in range(4)]
    with running(farm.runner()):
        for job in jobs:
            farm.wait_for(job, JobState.ASSEMBLING)
    tried = sorted(
        (a.started_at, a.ended_at or 0.0) for job in jobs for a in read.attempts(farm.ledger, job) if a.worker != "test"
    )
    assert len(tried) >= 4
    assert all(ended <= begins for (_, ended), (begins, _) in pairwise(tried))
