"""What the documents tell to type is typed: every block is run in a farm of its own, or says why it cannot be."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.conftest import free_loopback_port, private_folder
from tests.docs.blocks import Block, blocks_of
from workers.engines.preview.face_models import find_models

ROOT = Path(__file__).resolve().parents[2]
READMES = ["README.md", "README.zh.md"]
DOCUMENTS = [*READMES, *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]

# Run with FARM_TEST_SLOW=1 only: together they take minutes.
LONG = [f"docs/{name}.md" for name in ("api", "operations", "quickstart", "scale", "storage", "troubleshooting")]

# The front page stays free of marks, so those of both READMEs stand here.
README_MARKS = {
    "./scripts/demo": "it sets up and renders for minutes",
    "./scripts/test": "it is what runs this",
}
# What is left out, over all documents.  Raise it only with a reason in the document.
NOT_RUN = 44

# Kinds of blocks that are no command and no file: what a program printed, a drawing, another server's language.
SHOWN = ("text", "mermaid", "sql")
ENDLESS = {"farm serve": 8000, "farm flower": 5555}  # by the port that it answers on
PATIENCE_SECONDS = 120.0
LENT = ("rsync",)  # programs that this machine may lack; their lines are left out then


def document_blocks(document: str) -> list[Block]:
    return blocks_of(ROOT, document, README_MARKS if document in READMES else {})


@dataclass
class Desk:
    """A checkout's folders with tiny media, a home, and the farm that all documents share."""

    root: Path
    speech: Path
    ports: dict[int, int]
    here: Path = Path()  # the folder of the document that is read
    env: dict[str, str] = field(default_factory=dict)
    beside: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ran: set[tuple[str, ...]] = field(default_factory=set)

    def bash(self, script: str, where: str) -> str:
        """Run lines of a document; what they export is there for the next ones."""
        kept = self.root / "environment"
        trap = "trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR"
        wrapped = f"set -eEa -o pipefail\n{trap}\n{script}\nenv -0 > {kept}\n"
        done = subprocess.run(
            ["bash", "-c", wrapped], cwd=self.here, env=self.env, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{where} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        self.env = dict(line.split("=", 1) for line in kept.read_text().split("\0") if "=" in line)
        return done.stdout

    def start(self, line: str, port: int, where: str) -> None:
        """Start what does not end by itself; it stays until the end of its document."""
        log = self.root / "beside.log"
        with log.open("ab") as output:
            child = subprocess.Popen(
                ["bash", "-c", f"exec {line}"], cwd=self.here, env=self.env, stdout=output, stderr=output
            )
        self.beside.append(child)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not answers(port):
            assert child.poll() is None and time.monotonic() < deadline, f"{where}: {line}\n{log.read_text()[-3000:]}"
            time.sleep(0.05)

    def end_what_runs_beside(self) -> None:
        for child in self.beside:
            child.send_signal(signal.SIGTERM)
        for child in self.beside:
            child.wait(PATIENCE_SECONDS)
        self.beside.clear()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def desk(ffmpeg: Path) -> Iterator[Desk]:
    with private_folder("farm-docs-") as root:
        checkout, home = root / "checkout", root / "home"
        for folder in (checkout, home, root / "backup"):
            folder.mkdir()
        speech = root / "speech.wav"
        source = ROOT / "examples/speech/reading_en.flac"
        subprocess.run([ffmpeg, "-v", "error", "-ss", "1", "-t", "0.48", "-i", source, speech], check=True)
        shutil.copytree(ROOT / "configs", checkout / "configs")
        shutil.copytree(ROOT / "examples", checkout / "examples")
        for path in (checkout / "examples/speech").iterdir():  # so short that a batch takes seconds
            subprocess.run([ffmpeg, "-v", "error", "-y", "-i", speech, path], check=True)
        shutil.copytree(checkout / "examples", root / "examples")  # as seen from a file in the home
        for path in (*root.rglob("examples/*"), *root.rglob("examples/*/*")):
            os.utime(path, (1.7e9, 1.7e9))  # a nightly run leaves files alone that were just written
        (checkout / "scripts").symlink_to(ROOT / "scripts")
        (checkout / ".venv").symlink_to(sys.prefix)
        one = Desk(root, speech, {port: free_loopback_port() for port in (8000, 5555, 5556)})
        farm_home = root / "farm"
        farm_home.mkdir()
        (farm_home / "workers.toml").write_text('[workers.cpu]\n\n[workers.gpu0]\nmodel = "preview"\ndevices = "cpu"\n')
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FARM_", "PYTHONDONTWRITE"))}
        inherited |= {k: v for k, v in os.environ.items() if k in ("FARM_FFMPEG", "FARM_CACHE", "FARM_FACE_MODELS")}
        hour = int(time.strftime("%H", time.gmtime()))
        one.env = inherited | {
            "HOME": str(home),
            "FARM_FACE_MODELS": str(find_models()),  # HOME is another one
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FARM_HOME": str(farm_home),
            "FARM_LEASE__POLL_SECONDS": "0.3",
            "FARM_SERVER__PORT": str(one.ports[8000]),
            "FLOWER_PORT": str(one.ports[5555]),
            "TZ": f"NOON{hour - 12:+d}",  # it is always noon, outside of the example's window
        }
        one.here = checkout
        seed(one)
        try:
            yield one
        finally:
            one.end_what_runs_beside()
            subprocess.run(["farm", "down"], env=one.env, capture_output=True)
            for process in psutil.process_iter(["pid", "cmdline"]):
                if any(str(root) in word for word in process.info["cmdline"] or ()):
                    with contextlib.suppress(psutil.Error):
                        process.kill()


def seed(desk: Desk) -> None:
    """Batch 3 and job 7, which the documents speak of; nobody renders them."""
    for index, seeds in enumerate([(1,), (2,), (3, 4, 5, 6, 7)]):
        portrait = f"{desk.here}/examples/portraits/astronaut.jpg"
        given = {"portrait": portrait, "audio": str(desk.speech), "owner": "physics"}
        rows = [given | {"seed": number, "output": f"{desk.root}/seeds/{number}.mp4"} for number in seeds]
        lines = "\n".join(json.dumps(row) for row in rows)
        (desk.root / f"seed{index}.jsonl").write_text(lines)
    desk.bash(
        f"for n in 0 1 2; do farm submit {desk.root}/seed$n.jsonl; done; farm jobs cancel 1-7; farm up --wait",
        "what the documents begin with",
    )


@pytest.fixture
def opened(desk: Desk, request: pytest.FixtureRequest) -> Iterator[tuple[Desk, str]]:
    """The desk with a document open: a folder of its own with what the document takes as given, a warm farm."""
    document: str = request.param
    desk.here = desk.root / "documents" / document.replace("/", "-")
    shutil.copytree(desk.root / "checkout", desk.here, symlinks=True)
    before = dict(desk.env)
    lay_out(desk, "portrait,audio,name\nanna.jpg,lesson1.mp3,Lesson 1\nanna.jpg,lesson2.mp3,Lesson 2\n", "lectures.csv")
    lay_out(desk, "portrait,audio\nanna.jpg,lesson1.mp3\n", "week1.csv")
    lay_out(desk, "portrait,audio\nanna.jpg,hello.wav\n", "hello.csv")
    yield desk, document
    desk.end_what_runs_beside()
    desk.env = before


def lay_out(desk: Desk, text: str, name: str) -> None:
    """Write a batch file and everything that its rows name."""
    (desk.here / name).write_text(text, encoding="utf-8")
    for row in csv.DictReader(io.StringIO(text)):
        lay_out_row(desk, row)


def lay_out_row(desk: Desk, row: dict[str, Any]) -> None:
    from PIL import Image

    portrait, audio = desk.here / row["portrait"], desk.here / row["audio"]
    portrait.parent.mkdir(exist_ok=True)
    if not portrait.exists():
        Image.open(ROOT / "examples/portraits/grace_hopper.jpg").save(portrait)
    if not audio.exists():
        subprocess.run([desk.env.get("FARM_FFMPEG", "ffmpeg"), "-v", "error", "-i", desk.speech, audio], check=True)


def stand_in(desk: Desk, text: str) -> str:
    """The words of a document that stand for something of the reader's."""
    for port, free in desk.ports.items():
        text = re.sub(rf"\b{port}\b", str(free), text)
    text = text.replace("/backup/", f"{desk.root}/backup/").replace("/old/home/", f"{desk.root}/old/")
    text = text.replace("PORTRAIT AUDIO", "examples/portraits/astronaut.jpg examples/speech/greeting_ja.mp3")
    return text.replace("/v1/jobs/1/", f"/v1/jobs/{newest_job(desk) + 1}/")


def newest_job(desk: Desk) -> int:
    from farm.ledger import open_ledger, read

    ledger = open_ledger(f"sqlite:///{desk.env['FARM_HOME']}/ledger.db")
    with contextlib.closing(ledger):
        return max(job.id for job in read.jobs(ledger, limit=None))


def lacks_program(line: str) -> bool:
    program = line.split()[0]
    return program in LENT and shutil.which(program) is None


def run_commands(desk: Desk, block: Block) -> None:
    lines = [stand_in(desk, line) for line in block.commands() if not lacks_program(line)]
    if tuple(lines) in desk.ran:  # the READMEs say the same
        return
    desk.ran.add(tuple(lines))
    piece: list[str] = []
    for line in lines:
        endless = next((command for command in ENDLESS if line.startswith(command)), None)
        if endless is None:
            piece.append(line)
            continue
        desk.bash("\n".join(piece), block.where)
        piece.clear()
        named = re.search(r"--port[= ](\d+)", line)
        desk.start(line, int(named[1]) if named else desk.ports[ENDLESS[endless]], block.where)
    desk.bash("\n".join(piece), block.where)


def load_table(desk: Desk, block: Block) -> None:
    """A TOML block belongs to one of the farm's files, and is read as that file."""
    from farm.config import Settings
    from farm.models import all_models

    table = tomllib.loads(block.text)
    if "workers" in table or set(table) <= set(Settings.model_fields):
        name, command = ("workers.toml", "load_roster") if "workers" in table else ("farm.toml", "load_settings")
        home = desk.root / "read"
        home.mkdir(exist_ok=True)
        (home / name).write_text(block.text, encoding="utf-8")
        module = "farm.roster" if "workers" in table else "farm.config"
        desk.bash(f"FARM_HOME={home} python -c 'from {module} import {command}; {command}()'", block.where)
        shutil.rmtree(home)
    elif "courses" in table:
        (desk.here / "block.toml").write_text(block.text, encoding="utf-8")
        desk.bash("farm nightly block.toml --dry-run --any-time", block.where)
    else:
        readers = [model for model in all_models() if set(table) <= set(model.settings)]
        assert readers, f"{block.where} is read by nothing"
        for key, value in table.items():
            assert readers[0].settings[key].read(key, value) == value


def submit_rows(desk: Desk, block: Block, suffix: str) -> None:
    if suffix == ".csv":
        lay_out(desk, block.text, "lectures.csv")
        desk.bash("farm submit lectures.csv --dry-run", block.where)
        return
    for line in block.text.splitlines():
        lay_out_row(desk, json.loads(line))
    (desk.here / "block.jsonl").write_text(block.text, encoding="utf-8")
    desk.bash("farm submit block.jsonl --dry-run", block.where)


@pytest.mark.parametrize(
    "opened",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in DOCUMENTS],
    ids=str,
    indirect=True,
)
def test_every_block_of_a_document_runs(opened: tuple[Desk, str]) -> None:
    desk, document = opened
    blocks = [block for block in document_blocks(document) if block.is_run and block.kind not in SHOWN]
    if any(block.kind in ("sh", "console", "python") for block in blocks):
        desk.bash("farm up", "before " + document)
    for block in blocks:
        if block.kind in ("sh", "console"):
            run_commands(desk, block)
        elif block.kind == "python":
            desk.bash("farm up", "before " + block.where)  # an earlier block may have ended with `farm down`
            (desk.here / "block.py").write_text(stand_in(desk, block.text), encoding="utf-8")
            desk.bash("python block.py", block.where)
        elif block.kind == "toml":
            load_table(desk, block)
        elif block.kind == "json" and "portrait" not in block.text:
            assert [json.loads(line) for line in block.text.splitlines()]
        elif block.kind in ("csv", "json"):
            submit_rows(desk, block, f".{block.kind}")
        elif block.kind == "yaml":
            assert yaml.safe_load(block.text)
        else:
            pytest.fail(f"{block.where}: a block of kind {block.kind!r} is neither run nor shown; give it a kind")


def test_what_is_not_run_is_counted_and_says_why() -> None:
    reasons = [
        f"{block.where}: {command or 'the block'}: {reason}"
        for document in DOCUMENTS
        for block in document_blocks(document)
        for command, reason in block.marks.items()
    ]
    assert len(reasons) == NOT_RUN, "\n".join(reasons)


def test_every_mark_stands_above_a_block() -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        marks = sum(len(block.marks) for block in blocks_of(ROOT, document, {}))
        assert marks == text.count("<!-- not run"), document
