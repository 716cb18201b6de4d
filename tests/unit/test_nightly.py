"""What a nightly file says: the window, the rows of a course, the summary and how it is told."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email import message_from_string
from email.policy import default as modern
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from farm.errors import ConfigError
from farm.nightly import AnotherRuns, only_one
from farm.nightly_config import (
    CostSettings,
    Left,
    MailSettings,
    Night,
    Nightly,
    SummarySettings,
    find_rows,
    read_nightly,
)
from farm.nightly_summary import FilmMade, JobFailed, JobLeft, Summary, as_page, as_text, tell

ROOT = Path(__file__).resolve().parents[2]
BERLIN = ZoneInfo("Europe/Berlin")


def write(folder: Path, text: str) -> Nightly:
    path = folder / "lectures.toml"
    path.write_text(text, encoding="utf-8")
    return read_nightly(path)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def shown(instant: float) -> str:
    return datetime.fromtimestamp(instant, BERLIN).strftime("%a %d %H:%M")


WINDOW = '[[courses]]\nfolder = "."\n[window]\nstart = "22:00"\nend = "06:00"\ntimezone = "Europe/Berlin"\n'


# The window


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-11-23T21:59:59", False),
        ("2026-11-23T22:00:00", True),
        ("2026-11-24T05:59:59", True),
        ("2026-11-24T06:00:00", False),
        ("2026-11-24T12:00:00", False),
    ],
)
def test_a_window_over_midnight_is_open_from_its_start_to_its_end(tmp_path: Path, moment: str, is_open: bool) -> None:
    window = write(tmp_path, WINDOW).window
    assert window.last(at(moment)).is_open(at(moment)) is is_open


def test_a_night_belongs_to_the_day_on_which_it_begins(tmp_path: Path) -> None:
    window = write(tmp_path, WINDOW + 'days = ["fri"]\n').window
    saturday_early, sunday_early = at("2026-11-28T03:00"), at("2026-11-29T03:00")
    assert window.last(saturday_early).is_open(saturday_early)
    assert not window.last(sunday_early).is_open(sunday_early)
    assert shown(window.last(sunday_early).begin) == "Fri 27 22:00"
    assert shown(window.next(sunday_early).begin) == "Fri 04 22:00"


def test_the_night_in_which_the_clock_is_put_forward_is_an_hour_shorter(tmp_path: Path) -> None:
    window = write(tmp_path, WINDOW).window
    hours = [
        (n.end - n.begin) / 3600 for n in (window.last(at("2026-03-28T23:00")), window.last(at("2026-03-30T23:00")))
    ]
    assert hours == [7, 8]


def test_without_a_window_it_is_always_open(tmp_path: Path) -> None:
    window = write(tmp_path, '[[courses]]\nfolder = "."\n').window
    for moment in (at("2026-11-23T00:00"), at("2026-11-23T12:00"), at("2026-11-23T23:59:59")):
        assert window.last(moment).is_open(moment)


def test_a_deadline_is_the_first_such_time_after_the_night_begins(tmp_path: Path) -> None:
    nightly = write(tmp_path, 'deadline = "08:00"\n' + WINDOW)
    night = nightly.window.last(at("2026-11-23T23:00"))
    assert nightly.defaults(nightly.settings.courses[0], night)["deadline"] == "2026-11-24T08:00:00+01:00"


# The file


def test_the_example_is_read_and_finds_the_examples() -> None:
    nightly = read_nightly(ROOT / "configs/nightly.toml")
    (rows,), left = find_rows(nightly, datetime(2030, 1, 1, tzinfo=BERLIN).timestamp())
    assert [Path(row.cells["audio"]).stem for row in rows.rows] == ["greeting_ja", "lecture_ja", "reading_en"]
    assert left == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "courses: is missing"),
        ("[[courses]]\n", "courses.0: name either a folder of recordings or batches"),
        ('[[courses]]\nfolder = "a"\nbatches = "b"\n', "courses.0: name either"),
        ('[[courses]]\nfolder = "."\n[window]\nstart = "10 pm"\nend = "06:00"\n', "window.start: write a time of day"),
        (
            '[[courses]]\nfolder = "."\n[window]\nstart = "25:00"\nend = "06:00"\n',
            "window.start: hour must be in 0..23",
        ),
        (WINDOW + 'days = ["monday"]\n', "window.days.0: Input should be 'mon'"),
        (WINDOW.replace("Berlin", "Bärlin"), "there is no time zone"),
        ('[[courses]]\nfolder = "."\nset = { name = "x" }\n', "courses.0.set.name: this column differs"),
        ('[[courses]]\nfolder = "."\n[summary]\nwebhook = "file:///etc/passwd"\n', "must begin with https://"),
        ("[[courses]\n", "lectures.toml: "),
    ],
)
def test_a_wrong_file_is_told_with_its_key(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write(tmp_path, text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


# Rows


def course(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / "course" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        os.utime(path, (1000, 1000))
    return folder


def rows_of(nightly: Nightly, now: float = 5000.0) -> tuple[dict[str, tuple[str, str]], list[Left]]:
    """By audio: the portrait and the film, below the course's folder."""
    sets, left = find_rows(nightly, now)
    root = nightly.path.parent / "course"

    def short(path: str) -> str:
        return str(Path(path).relative_to(root))

    cells = [row.cells for rows in sets for row in rows.rows]
    return {short(c["audio"]): (short(c["portrait"]), short(c["output"])) for c in cells}, left


def test_the_nearest_portrait_is_taken(tmp_path: Path) -> None:
    names = ("a.mp3", "a.jpg", "b.wav", "week1/c.MP3", "week2/d.flac", "week2/portrait.png", "faces/e.JPG", "e.ogg")
    course(tmp_path, *names, "teacher.jpg", "notes.txt", ".hidden.mp3", "films/a.mp3")
    nightly = write(
        tmp_path, '[[courses]]\nfolder = "course"\nportrait = "course/teacher.jpg"\nportraits = "course/faces"\n'
    )
    found, left = rows_of(nightly)
    assert found == {
        "a.mp3": ("a.jpg", "films/a.mp4"),
        "b.wav": ("teacher.jpg", "films/b.mp4"),
        "e.ogg": ("faces/e.JPG", "films/e.mp4"),
        "week1/c.MP3": ("teacher.jpg", "films/week1/c.mp4"),
        "week2/d.flac": ("week2/portrait.png", "films/week2/d.mp4"),
    }
    assert left == []


def test_a_lecture_without_a_portrait_and_one_whose_film_is_taken_are_told(tmp_path: Path) -> None:
    course(tmp_path, "a.mp3", "b.mp3", "b.wav", "b.png")
    found, left = rows_of(write(tmp_path, '[[courses]]\nfolder = "course"\n'))
    assert list(found) == ["b.mp3"]
    assert [item.sentence.split(":")[0] for item in left] == [
        "no portrait",
        "b.mp3 beside it becomes the film of this name; rename one",
    ]


def test_a_file_that_was_changed_just_now_waits_for_the_next_look(tmp_path: Path) -> None:
    nightly = write(course(tmp_path, "a.mp3", "portrait.jpg"), '[[courses]]\nfolder = "course"\n')
    assert rows_of(nightly, 1059.0)[0] == {}
    assert list(rows_of(nightly, 1060.0)[0]) == ["a.mp3"]


def test_batch_files_keep_their_tags_and_get_the_nightlys(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("portrait,audio,tags\na.jpg,a.mp3,week1\n")
    (tmp_path / "two.jsonl").write_text('{"portrait": "a.jpg", "audio": "b.mp3", "tags": ["x", "y"]}\n')
    (tmp_path / "bad.csv").write_text("picture,sound\n")
    text = 'settle_seconds = 0\n[[courses]]\nbatches = "*.csv"\n[[courses]]\nbatches = "*.jsonl"\n'
    sets, left = find_rows(write(tmp_path, text), 5000.0)
    assert [row.cells["tags"] for rows in sets for row in rows.rows] == [
        "week1 nightly:lectures",
        "x y nightly:lectures",
    ]
    assert len(left) == 1 and "no column portrait" in left[0].sentence


# The lock


def test_a_second_nightly_is_told_that_another_runs(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(AnotherRuns) as caught, only_one(tmp_path):
        pass
    assert caught.value.exit_code == 75
    with only_one(tmp_path):
        pass


# The summary

MADE = FilmMade(1, "第一课 <intro>", "/films/第一课.mp4", 3661.0, 1800.0)
FAILED = JobFailed(2, "two", "no face was found in /a&b.jpg")
LEFT = JobLeft(3, "three", "paused", 0.4, 60.0)


def summary(**changes: Any) -> Summary:
    facts: dict[str, Any] = {
        "name": "lectures",
        "night": Night(1_764_000_000.0, 1_764_020_000.0),
        "made": [MADE],
        "failed": [],
        "left": [],
        "problems": [],
        "stuck": [],
        "cost": CostSettings(per_device_hour=2.0, currency="EUR"),
    }
    return Summary(**{**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"made": []}, 0),
        ({"left": [LEFT]}, 4),
        ({"failed": [FAILED]}, 3),
        ({"failed": [FAILED], "left": [LEFT]}, 3),
        ({"problems": [Left("a.mp3", "is silent")]}, 3),
    ],
)
def test_the_exit_code_tells_cron_how_the_night_was(changes: dict[str, Any], code: int) -> None:
    assert summary(**changes).exit_code == code


def test_the_text_tells_films_failures_and_cost() -> None:
    text = as_text(summary(failed=[FAILED], left=[LEFT], stuck=["no worker serves queue x"]))
    assert "1 film made, 1 failed, 1 left." in text
    assert "1:01:01 in 30:00 of device time, 1.00 EUR" in text
    assert "job 2  two: no face was found in /a&b.jpg" in text
    assert "three: paused, 40% rendered" in text
    assert "no worker serves queue x" in text


def test_the_page_escapes_what_people_wrote() -> None:
    page = as_page(summary(failed=[FAILED]))
    assert "第一课 &lt;intro&gt;" in page and "<intro>" not in page
    assert "/a&amp;b.jpg" in page
    assert "http" not in page  # loads nothing


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_summary_reaches_folder_and_web_hook(tmp_path: Path) -> None:
    received: list[Any] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with serving(HTTPServer(("127.0.0.1", 0), Hook)) as port:
        settings = SummarySettings(folder="told", webhook=f"http://127.0.0.1:{port}/hook")
        assert tell(summary(), settings, place=lambda path: tmp_path / path) == []
    assert received[0]["summary"]["made"][0]["name"] == "第一课 <intro>"
    assert received[0]["summary"]["cost"] == "1.00 EUR"
    assert sorted(path.suffix for path in (tmp_path / "told").iterdir()) == [".html", ".txt"]


def test_the_summary_reaches_a_mail_server() -> None:
    lines: list[str] = []

    class Mailbox(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            in_data = False
            while line := self.rfile.readline().decode():
                lines.append(line)
                if in_data:
                    in_data = line != ".\r\n"
                    answer = "" if in_data else "250 taken"
                elif line.upper().startswith("DATA"):
                    in_data, answer = True, "354 go on"
                else:
                    answer = "221 bye" if line.upper().startswith("QUIT") else "250 fine"
                if answer:
                    self.wfile.write(f"{answer}\r\n".encode())
                if answer.startswith("221"):
                    return

    with serving(socketserver.TCPServer(("127.0.0.1", 0), Mailbox)) as port:
        mail = MailSettings(
            host="127.0.0.1", port=port, security="none", sender="farm@example.org", to=["a@example.org"]
        )
        assert tell(summary(), SummarySettings(mail=mail), place=Path) == []
    start = [line.upper() for line in lines].index("DATA\r\n")
    sent = message_from_string("".join(lines[start + 1 : -2]), policy=modern)
    assert sent["Subject"] == "lectures: 1 film made"
    body = sent.get_body(("plain",))
    assert body is not None and "/films/第一课.mp4" in body.get_content()


def test_a_summary_that_cannot_be_delivered_is_a_sentence_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = SummarySettings(folder="file/below", webhook="http://127.0.0.1:9/closed")
    failed = tell(summary(), settings, place=lambda path: tmp_path / path)
    assert [sentence.split(":")[0] for sentence in failed] == [
        "the summary did not reach the folder",
        "the summary did not reach the web hook",
    ]


# The crontab


def install_cron(folder: Path, *words: str, home: str = "") -> subprocess.CompletedProcess[str]:
    """Run scripts/install-cron with a crontab program that keeps its table in a file."""
    program = folder / "bin" / "crontab"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        f'#!/bin/sh\ncase $1 in -l) cat "{folder}/table" 2>/dev/null ;; -r) rm "{folder}/table" ;;'
        f' -) cat > "{folder}/table.new" && mv "{folder}/table.new" "{folder}/table" ;; esac\n'
    )
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"} | ({"FARM_HOME": home} if home else {})
    argv = [str(ROOT / "scripts/install-cron"), *words]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, cwd=folder)


def test_install_cron_keeps_other_lines_and_takes_its_own_out_again(tmp_path: Path) -> None:
    others = "MAILTO=ann\n5 4 * * * backup 100\\%\n"
    (tmp_path / "table").write_text(others)
    (tmp_path / "my course.toml").write_text("")
    for every in ("10", "15"):
        done = install_cron(tmp_path, "my course.toml", "--every", every, "--farm", "/bin/true", home="/srv/50% farm")
        assert done.returncode == 0, done.stderr
    table = (tmp_path / "table").read_text()
    line = f"*/15 * * * * FARM_HOME='/srv/50\\% farm' '/bin/true' nightly '{tmp_path}/my course.toml'\n"
    assert table == f"{others}# farm nightly: {tmp_path}/my course.toml\n{line}"
    assert install_cron(tmp_path, "my course.toml", "--remove").returncode == 0
    assert (tmp_path / "table").read_text() == others


def test_install_cron_prints_the_line_and_installs_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    done = install_cron(tmp_path, "a.toml", "--print")
    assert f"*/10 * * * * '{ROOT}/.venv/bin/farm' nightly '{tmp_path}/a.toml'" in done.stdout
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    "words", [[], ["a.toml", "--every", "7"], ["a.toml", "--sometimes"], ["a", "b"], ["no/a.toml"]]
)
def test_install_cron_refuses_what_it_does_not_understand(tmp_path: Path, words: list[str]) -> None:
    done = install_cron(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("scripts/install-cron: ") and done.stderr.count("\n") == 1
