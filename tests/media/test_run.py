"""Running a media tool: its limits, its end, its last words."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ffmpeg as ffmpeg_python
import pytest

from farm.errors import ConfigError, MediaError, NotEnoughRoom
from farm.media.binary import find_ffmpeg, version
from farm.media.command import pattern_input, raw_input, to_argv, untrusted_input
from farm.media.run import MIB, Child, run

ENDLESS_SOUND = ["-f", "lavfi", "-re", "-i", "sine"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_tool_that_hangs_is_killed_at_its_time_out(ffmpeg: Path):
    with pytest.raises(MediaError, match="ran out of time") as caught:
        run([str(ffmpeg), "-nostdin", *ENDLESS_SOUND, "-f", "null", "-"], timeout_seconds=0.3)
    assert caught.value.code is None


def test_a_stopped_tool_is_killed_at_its_time_out(ffmpeg: Path):
    argv = [str(ffmpeg), "-nostdin", *ENDLESS_SOUND, "-f", "null", "-"]
    with Child(argv, timeout_seconds=0.5) as child:
        os.kill(child.pid, signal.SIGSTOP)
        assert child.wait() == -signal.SIGKILL
        assert child.timed_out


def test_the_children_of_a_tool_die_with_it():
    pid_reader, pid_writer = os.pipe()
    code = f"import os, time; os.write({pid_writer}, b'%d' % os.getpid()) if os.fork() == 0 else None; time.sleep(60)"
    with Child(python(code), timeout_seconds=60, pass_fds=(pid_writer,)) as child:
        os.close(pid_writer)
        grandchild = int(os.read(pid_reader, 100))
        child.kill()
    os.close(pid_reader)
    wait_until(lambda: not is_alive(grandchild), "the end of the grandchild")


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_failure_keeps_argv_code_and_the_last_lines():
    with pytest.raises(MediaError, match="ended with 3: the cause") as caught:
        run(python("import sys; print('the cause', file=sys.stderr); sys.exit(3)"), timeout_seconds=120)
    assert caught.value.code == 3
    assert caught.value.argv[0] == sys.executable


def test_of_endless_complaints_only_the_end_is_kept():
    code = "import sys\nfor n in range(200000): print('complaint', n, file=sys.stderr)\nsys.exit(1)"
    with pytest.raises(MediaError, match="complaint 199999") as caught:
        run(python(code), timeout_seconds=60)
    assert len(caught.value.stderr) <= 8 * 1024


def test_a_tool_that_says_too_much_is_stopped():
    code = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    with pytest.raises(MediaError, match="wrote more than 1048576 bytes"):
        run(python(code), timeout_seconds=60, output_limit_bytes=MIB)


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_a_tool_cannot_take_more_memory_than_it_was_given():
    limited = "resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY"  # set once the tool runs
    wait = f"import resource, time\nwhile not ({limited}): time.sleep(0.01)\n"
    take = "b = bytearray(800 << 20)"
    with pytest.raises(MediaError, match="MemoryError"):
        run(python(wait + take), timeout_seconds=120, memory_limit_bytes=400 * MIB)
    assert run(python(take), timeout_seconds=120) == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_apart_from_a_broken_tool():
    argv = to_argv(ffmpeg_python.output(pattern_input("sine=duration=2"), "file:/dev/full", f="s16le"))
    with pytest.raises(NotEnoughRoom, match="disk is full"):
        run(argv, timeout_seconds=120)


def test_a_finished_tool_leaves_no_thread_and_no_descriptor():
    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    run(python(""), timeout_seconds=120)
    descriptors, threads = open_descriptors(), threading.active_count()
    for _ in range(5):
        run(python(""), timeout_seconds=120)
    # Less is well: something of an earlier test may end meanwhile.
    wait_until(lambda: open_descriptors() <= descriptors and threading.active_count() <= threads, "all to be let go")


def test_every_input_is_guarded(tmp_path: Path):
    argv = to_argv(ffmpeg_python.output(untrusted_input(tmp_path / "a"), raw_input(0, f="s16le"), "pipe:1", f="null"))
    before_inputs = " ".join(argv).split(" -i ")
    assert len(before_inputs) == 3
    assert "-protocol_whitelist file" in before_inputs[0]
    assert "-format_whitelist" in before_inputs[0]
    assert "-protocol_whitelist pipe" in before_inputs[1]
    assert argv[1] == "-nostdin"


def test_farm_ffmpeg_decides_which_program_runs(ffmpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mine = tmp_path / "my ffmpeg"
    mine.symlink_to(ffmpeg)
    monkeypatch.setenv("FARM_FFMPEG", str(mine))
    assert find_ffmpeg() == mine
    assert version(mine) == version(ffmpeg)


def test_without_a_program_on_path_the_bundled_one_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FARM_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "imageio_ffmpeg" in str(find_ffmpeg())


def test_a_wrong_farm_ffmpeg_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FARM_FFMPEG", "/no/such/ffmpeg")
    with pytest.raises(ConfigError, match=r"FARM_FFMPEG is '/no/such/ffmpeg'"):
        find_ffmpeg()


def test_a_program_that_is_not_ffmpeg_is_refused():
    with pytest.raises(ConfigError, match="not ffmpeg"):
        version(Path("/bin/echo"))
