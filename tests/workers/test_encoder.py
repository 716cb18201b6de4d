"""Jobs for an encoder that not every worker has; no worker of these tests sees a card, so the failing trial is real."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from farm.ledger import crew, read
from farm.media.profile import EncoderProfile
from farm.states import JobState, WorkerState
from farm.store import open_store
from workers import rendering
from workers.preparing import Prepared, prepare

from .conftest import SmallFarm, running, wait_until

NVENC = "h264_nvenc"


def prepared(farm: SmallFarm) -> Prepared:
    lease = farm.claim("cpu", "test", farm.submit(seconds=0.6))
    return prepare(lease.job, lease.token, open_store(farm.settings), farm.settings.segments, farm.settings.film)


def is_idle(farm: SmallFarm, name: str) -> bool:
    return any(w.name == name and w.state is WorkerState.IDLE for w in read.workers(farm.ledger))


def test_the_codec_is_frozen_with_the_job_and_keeps_its_segments_from_others(farm: SmallFarm) -> None:
    software = prepared(farm)
    farm.change("film", codec=NVENC)
    card = prepared(farm)
    assert [one.job["profile"]["codec"] for one in (software, card)] == ["libx264", NVENC]
    assert (card.job["profile"]["preset"], card.job["profile"]["crf"]) == ("p5", 30)
    assert not {part.content_key for part in software.plan} & {part.content_key for part in card.plan}


def test_a_job_that_nobody_can_encode_fails_at_once_and_the_worker_stays_fit(farm: SmallFarm) -> None:
    runner = farm.runner()
    with running(runner):
        for _ in range(2):  # the second is refused without another trial
            farm.change("film", codec=NVENC)
            job_id = farm.planned(seconds=0.6)
            reason = farm.wait_for(job_id, JobState.FAILED).reason or ""
            assert reason.startswith(f"the ffmpeg of this worker on cpu cannot encode with {NVENC}, for which the job")
            assert reason.endswith('or set film.codec = "libx264" and submit the row with --again')
            assert farm.outcomes(job_id) == [(0, "fail")]
            assert [a.strike for a in read.attempts(farm.ledger, job_id)][-1:] == [False]
        farm.change("film", codec="libx264")
        farm.wait_for(farm.planned(seconds=0.6), JobState.ASSEMBLING)
        assert runner._renderer is not None and runner._renderer.restarts == 0
    assert farm.audit() == []


def test_what_one_worker_cannot_encode_another_takes_and_no_attempt_is_spent(
    farm: SmallFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Card(rendering.SegmentEncoder):
        """In place of a card's encoder; only the worker that did not refuse comes here."""

        def __init__(self, profile: EncoderProfile, *rest: Any) -> None:
            super().__init__(replace(profile, codec="libx264", preset="ultrafast"), *rest)

    monkeypatch.setattr(rendering, "SegmentEncoder", Card)
    farm.change("film", codec=NVENC)
    able = farm.runner("able")
    assert able._renderer is not None
    able._renderer._tried[NVENC] = None
    with running(farm.runner()):
        wait_until(lambda: is_idle(farm, "fake@box"), "the first worker to be warm")
        crew.say_hello(
            farm.ledger,
            name="able@box",
            queue=able.queue,
            machine="elsewhere",
            pid=os.getpid(),
            incarnation="before",
            device="cpu",
            info={},
        )
        job_id = farm.planned(seconds=0.6)
        wait_until(lambda: any(o == "interrupt" for _, o in farm.outcomes(job_id)), "the first worker to refuse")
        with running(able):
            farm.wait_for(job_id, JobState.ASSEMBLING, JobState.FAILED)
    assert farm.job(job_id).state is JobState.ASSEMBLING
    rendered = [a for a in read.attempts(farm.ledger, job_id) if a.worker != "test"]
    refused = [(a.outcome, a.failure, a.strike) for a in rendered if a.worker == "fake@box"]
    assert set(refused) == {("interrupt", "encoder", True)}
    assert {a.outcome for a in rendered if a.worker == "able@box"} == {"succeed"}
    assert {s.errors for s in read.segments(farm.ledger, job_id)} == {0}
    assert farm.audit() == []
