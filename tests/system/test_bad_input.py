"""Files and rows that mean harm: each gets its sentence, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from farm.ledger import read
from farm.ledger.values import Job, Worker
from farm.media.verify import frame_hashes
from farm.states import JobState
from tests.conftest import do_without, redis_program
from tests.system.stage import Stage, stage

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from make_bad_inputs import SECRET, Case, make, page  # noqa: E402


@dataclass(frozen=True)
class Outcome:
    """What one farm made of the whole corpus."""

    cases: list[Case]
    refused: dict[int, str]  # by row: what submit said
    jobs: dict[int, Job]  # by row
    before: dict[str, tuple[int, ...]]  # process ids
    after: dict[str, tuple[int, ...]]
    neighbours: tuple[list[str], list[str]]  # frames of one film, made before and among the bad rows
    everything_said: str


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    if redis_program() is None:
        do_without("no private Redis for the farm of the corpus")
    folder = tmp_path_factory.mktemp("bad")
    cases = make(folder)
    with stage() as farm:
        farm.write_roster({"cpu0": {}, "pattern": {"model": "pattern"}, "preview": {"model": "preview"}})
        for name in ("cpu0", "pattern", "preview"):
            farm.start_worker(name)
        good = {"portrait": str(folder / "face.jpg"), "audio": str(folder / "speech.wav"), "size": "256x256"}
        calm = folder / "calm.jsonl"
        calm.write_text(json.dumps({**good, "name": "calm"}))
        farm.farm("submit", calm, "-o", farm.folder / "films", "--wait")
        before = processes(farm)
        batch = folder / "bad.jsonl"
        batch.write_text(json.dumps({**good, "name": "neighbour"}) + "\n" + batch.read_text())
        done = farm.farm("submit", batch, "-o", farm.folder / "films", "--skip-bad", "--wait", check=False)
        refused = {}
        for line in done.stderr.splitlines():
            where, mark, sentence = line.partition(": skipped: ")
            if mark:
                refused[int(where.rpartition(":")[2]) - 2] = sentence
        with contextlib.closing(farm.open()) as ledger:
            jobs = {job.row_number - 2: job for job in read.jobs(ledger, limit=None) if job.name != "calm"}
        films = [frame_hashes(farm.folder / "films" / f"{name}.mp4") for name in ("calm", "neighbour")]
        logs = "".join(path.read_text(errors="replace") for path in (farm.home / "logs").iterdir())
        reports = "".join(path.read_text() for path in farm.home.rglob("report.*json"))
        yield Outcome(
            cases,
            refused,
            jobs,
            before,
            processes(farm),
            (films[0], films[1]),
            done.stdout + done.stderr + logs + reports,
        )


def processes(farm: Stage) -> dict[str, tuple[int, ...]]:
    """Of each worker its own process id, and those of its host or workshop."""
    with contextlib.closing(farm.open()) as ledger:
        workers: list[Worker] = read.workers(ledger)
    found: dict[str, tuple[int, ...]] = {}
    for worker in workers:
        children = psutil.Process(worker.pid).children()
        found[worker.name] = (worker.pid, *sorted(child.pid for child in children if "python" in child.name()))
    return found


def test_every_case_ends_where_it_must_with_its_sentence(outcome: Outcome) -> None:
    wrong: list[str] = []
    for row, case in enumerate(outcome.cases):
        said, job = outcome.refused.get(row), outcome.jobs.get(row)
        if case.ends == "submit":
            if said is None or case.says not in said:
                wrong.append(f"{case.name}: submit said {said!r}")
        elif job is None:
            wrong.append(f"{case.name}: refused at submit: {said!r}")
        elif case.ends == "prepare":
            if job.state is not JobState.FAILED or job.failure != "input" or case.says not in (job.reason or ""):
                wrong.append(f"{case.name}: {job.state}: {job.reason!r}")
        elif job.state is not JobState.SUCCEEDED or (case.says and case.says not in " ".join(job.notes)):
            wrong.append(f"{case.name}: {job.state}: {job.reason!r}, notes {job.notes}")
    assert not wrong, "\n".join(wrong)
    assert len(outcome.cases) >= 60


def test_every_sentence_is_one_line_for_a_person(outcome: Outcome) -> None:
    sentences = [*outcome.refused.values(), *(job.reason for job in outcome.jobs.values() if job.reason)]
    assert len(sentences) >= 60
    for sentence in sentences:
        assert "\n" not in sentence and "Traceback" not in sentence and "Errno" not in sentence, sentence
        assert len(sentence) < 600


def test_no_process_was_replaced(outcome: Outcome) -> None:
    assert outcome.after == outcome.before
    assert all(len(pids) >= 2 for pids in outcome.before.values())


def test_the_neighbours_film_is_right(outcome: Outcome) -> None:
    calm, neighbour = outcome.neighbours
    assert calm == neighbour
    assert len(calm) == 15


def test_no_playlist_was_followed_and_no_name_was_executed(outcome: Outcome) -> None:
    assert SECRET not in outcome.everything_said
    assert "Traceback" not in outcome.everything_said
    assert not (ROOT / "owned").exists()


def test_the_page_lists_every_case(outcome: Outcome) -> None:
    folder = Path(str(outcome.cases[0].row["portrait"])).parent
    assert (ROOT / "docs/bad-input.md").read_text(encoding="utf-8") == page(outcome.cases, folder)
