"""`farm jobs`, `workers`, `models`, `db`, `status`, `logs`: steering without a worker."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from farm.ledger import crew, open_ledger, store
from farm.logs import LogFormat
from farm.states import WorkerState
from tests.ledger import scenes

Farm = Callable[..., Result]


def state(farm: Farm, job: int) -> str:
    return str(json.loads(farm("jobs", "show", str(job), "--json").stdout)["state"])


def test_jobs_are_paused_resumed_cancelled_and_retried(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    assert farm("jobs", "pause", "1").exit_code == 0
    assert state(farm, 1) == "paused"
    farm("jobs", "resume", "1")
    assert state(farm, 1) == "queued"
    farm("jobs", "cancel", "1-2")
    assert [state(farm, job) for job in (1, 2)] == ["cancelled", "cancelled"]
    farm("jobs", "retry", "2")
    assert state(farm, 2) == "queued"


def test_a_job_that_cannot_be_retried_keeps_no_other_back(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    farm("jobs", "cancel", "1-2")
    farm("submit", str(batch), "--again")
    farm("jobs", "cancel", "4")
    done = farm("jobs", "retry", "1-2")
    assert done.exit_code == 2 and "job 1 cannot be retried: job 3 is about to write" in done.stderr
    assert [state(farm, job) for job in (1, 2)] == ["cancelled", "queued"]


def test_jobs_without_films_are_passed_over_by_a_fetch(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    done = farm("jobs", "fetch", "2")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "without a film: 2\n")


def test_a_whole_batch_is_steered_at_once(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    farm("jobs", "pause", "--batch", "1")
    assert [state(farm, job) for job in (1, 2)] == ["paused", "paused"]


def test_jobs_are_listed_by_the_state_that_people_see(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    farm("jobs", "pause", "2")

    def listed(state: str) -> list[int]:
        said = farm("jobs", "list", "--state", state, "--json").stdout
        return [json.loads(line)["id"] for line in said.splitlines()]

    assert (listed("paused"), listed("queued"), listed("open")) == ([2], [1], [2, 1])
    farm("jobs", "cancel", "2")
    assert (listed("paused"), listed("cancelled"), listed("open")) == ([], [2], [1])


def test_what_could_not_be_moved_is_said(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    farm("jobs", "cancel", "1")
    done = farm("jobs", "cancel", "1", "2")
    assert "cancelled: 2" in done.stdout
    assert "had ended already: 1" in done.stderr


def test_one_job_that_cannot_be_retried_keeps_no_other_from_it(farm: Farm, home: Path, batch: Path) -> None:
    farm("submit", str(batch))
    ledger = open_ledger(str(home / "ledger.db"))
    scenes.prepare(ledger, 1)
    ledger.close()
    farm("jobs", "cancel", "1-2")
    with contextlib.closing(sqlite3.connect(home / "ledger.db")) as there, there:
        there.execute("DELETE FROM artifacts")  # as `farm gc` forgets them
    done = farm("jobs", "retry", "--batch", "1")
    assert (done.exit_code, done.stdout) == (2, "back in the queue: 2\n")
    assert done.stderr == "farm: the working files of job 1 were deleted by `farm gc`; submit its row with --again\n"


def test_priority_and_deadline_reach_the_ledger(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    farm("jobs", "priority", "50", "2")
    farm("jobs", "deadline", "2027-01-01T06:00", "2")
    job = json.loads(farm("jobs", "show", "2", "--json").stdout)
    assert job["priority"] == 50
    assert job["due"] > 1.7e9


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("jobs", "show", "99"), 1, "there is no job 99"),
        (("jobs", "cancel", "99"), 1, "there is no job 99"),
        (("jobs", "cancel", "one"), 2, "'one' is no job id"),
        (("jobs", "cancel"), 2, "say which jobs"),
        (("jobs", "deadline", "soon", "1"), 2, "deadline must be a date"),
        (("jobs", "deadline", "9999-12-31T23:59-14:00", "1"), 2, "deadline must be a date"),
        (("jobs", "cancel", "9-3"), 2, "'9-3' is no range"),
        (("jobs", "cancel", "1-99999999999"), 2, "'1-99999999999' is no range"),
        (("watch", "7"), 1, "there is no batch 7"),
        (("logs", "7"), 1, "there is no job 7"),
        (("workers", "drain", "gpu9"), 1, "there is no worker 'gpu9'"),
        (("models", "show", "dall-e"), 1, "there is no model 'dall-e'"),
        (("worker", "gpu9"), 1, "names no worker 'gpu9'"),
        (("db", "upgrade", "--revision", "0099"), 2, "there is no revision '0099'"),
        (("db", "downgrade", "first", "--yes"), 2, "there is no revision 'first'"),
        (("db", "copy", "elsewhere"), 2, "elsewhere is no database URL"),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(
    farm: Farm, batch: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    farm("submit", str(batch))
    done = farm(*words)
    assert done.exit_code == code
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_work_that_nobody_can_take_is_said_aloud(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    assert "no worker serves queue cpu" in farm("status").stdout
    stuck = json.loads(farm("status", "--json").stdout)["stuck"]
    assert stuck[0]["segments"] == 2


def test_the_history_is_told_in_order(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    farm("jobs", "cancel", "1")
    lines = farm("logs", "1").stdout.splitlines()
    assert "submit" in lines[0]
    assert "job_cancelled" in lines[-1]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_lines_of_logs_that_bear_a_job_are_found_in_both_formats(
    farm: Farm, home: Path, batch: Path, log_format: LogFormat
) -> None:
    code = f"""
import logging
from farm.logs import log_ids, log_to_stderr
log_to_stderr({log_format!r})
for job in (1, 11):
    with log_ids(job=job):
        logging.warning("the host says of %d", job)
logging.warning("job 1 is named")
"""
    (home / "logs").mkdir()
    with (home / "logs/worker-cpu.log").open("wb") as log:
        subprocess.run([sys.executable, "-c", code], stderr=log, check=True)
    farm("submit", str(batch))
    raw = [line for line in farm("logs", "1", "--raw").stdout.splitlines() if line.startswith("worker-cpu: ")]
    assert len(raw) == 2
    assert "the host says of 1" in raw[0] and "job 1 is named" in raw[1]


def test_tables_are_plain_when_piped(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    out = farm("jobs", "list").stdout
    assert out.splitlines()[0].split("\t")[:3] == ["id", "batch", "name"]
    assert "\x1b" not in out


def test_the_ledger_is_checked_and_told(farm: Farm, home: Path) -> None:
    (home / "ledger.db").unlink()
    assert farm("db", "check").exit_code == 1  # there is none yet
    farm("db", "upgrade")
    assert farm("db", "check").exit_code == 0
    assert "newest" in farm("db", "current").stdout


def test_broken_promises_are_listed(farm: Farm, batch: Path, home: Path) -> None:
    farm("submit", str(batch))
    assert "every promise is kept" in farm("db", "check", "--promises").stdout
    with sqlite3.connect(home / "ledger.db") as connection:
        connection.execute("UPDATE jobs SET segments_done = 7 WHERE id = 1")
    connection.close()
    done = farm("db", "check", "--files")
    assert done.exit_code == 1
    assert "job 1: it says" in done.stdout and "jobs are what their segments say" in done.stdout
    assert "1 promises are broken" in done.stderr


def test_a_wrong_setting_names_the_variable(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LEASE__TTL_SECONDS", "soon")
    done = farm("jobs", "list")
    assert done.exit_code == 2
    assert "variable FARM_LEASE__TTL_SECONDS" in done.stderr


def test_a_ledger_that_cannot_be_opened_is_told_without_its_password(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_LEDGER_URL", "postgresql://farm:hunter2@127.0.0.1:1/farm")
    done = farm("jobs", "list")
    assert done.exit_code == 1
    assert "does not answer" in done.stderr
    assert "hunter2" not in done.output


def test_models_are_listed_with_their_presets(farm: Farm) -> None:
    models = {m["id"]: m for m in map(json.loads, farm("models", "list", "--json").stdout.splitlines())}
    assert "natural" in models["preview"]["presets"]
    assert "blink_rate" in farm("models", "show", "preview").stdout


def test_a_recording_that_was_just_copied_is_told_to_wait(farm: Farm, media: Path) -> None:
    course = media.parent / "course.toml"
    course.write_text(
        'settle_seconds = 3600\n[[courses]]\nfolder = "media"\nportrait = "media/anna.png"\n', encoding="utf-8"
    )
    now = time.time()
    for changed, told in ((now, "1 recording waits for a later run: "), (now - 86400, "Would render 1 film,")):
        for path in media.iterdir():
            os.utime(path, (changed, changed))
        assert told in farm("nightly", str(course), "--dry-run").stdout


def test_gc_says_what_it_would_delete_and_deletes_nothing_in_a_dry_run(farm: Farm, batch: Path, home: Path) -> None:
    farm("submit", str(batch))
    assert "would delete 0 files" in farm("gc", "--dry-run").stdout


def test_completion_scripts_are_printed_for_each_shell(farm: Farm) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_FARM_COMPLETE" in farm("completion", shell).stdout


def test_a_probe_hears_of_a_worker_that_is_loading_silent_or_unknown(
    farm: Farm, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_MACHINE", "pod-0")
    assert farm("workers", "check", "preview").exit_code == 1  # it never said hello
    with contextlib.closing(open_ledger(str(home / "ledger.db"))) as ledger:
        crew.say_hello(
            ledger,
            name="preview@pod-0",
            queue="preview",
            machine="pod-0",
            pid=1,
            incarnation="1",
            device="cpu",
            info={},
        )
        assert farm("workers", "check", "preview").exit_code == 0
        loading = farm("workers", "check", "preview", "--ready")
        assert (loading.exit_code, loading.stdout[:26]) == (1, "preview@pod-0 is loading, ")
        beat = {"name": "preview@pod-0", "incarnation": "1", "reason": None, "host_pid": None, "host_restarts": 0}
        crew.beat(ledger, state=WorkerState.IDLE, info={}, **beat)
        assert farm("workers", "check", "preview@pod-0", "--ready").exit_code == 0
        crew.say_goodbye(ledger, name="preview@pod-0", incarnation="1")
        assert farm("workers", "check", "preview").exit_code == 1


def test_a_ledger_that_is_away_kills_no_worker(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LEDGER_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setattr(store, "READ_SECONDS", 0.1)
    said = farm("workers", "check", "preview")
    assert said.exit_code == 0 and "does not answer" in said.stderr
    assert farm("workers", "check", "preview", "--ready").exit_code == 1


def test_two_spaces_of_a_films_name_stay_in_lists(farm: Farm, media: Path) -> None:
    rows = media / "rows.csv"
    rows.write_text('portrait,audio,name,output\nanna.png,one.wav,"two  spaces","a  b.mp4"\n', encoding="utf-8")
    farm("submit", str(rows))
    assert "\ttwo  spaces\t" in farm("jobs", "list").stdout
    assert f"film       {media / 'a  b.mp4'}\n" in farm("jobs", "show", "1").stdout


def test_a_list_that_is_cut_off_says_so(farm: Farm, batch: Path) -> None:
    farm("submit", str(batch))
    cut = farm("jobs", "list", "--limit", "1")
    assert (len(cut.stdout.splitlines()), cut.stderr) == (2, "these are the newest 1; --limit shows more\n")
    assert farm("jobs", "list", "--limit", "2").stderr == ""
