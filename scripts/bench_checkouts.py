#!/usr/bin/env python3
"""Run the engines of upstream checkouts at true size with random weights, and upstream's own loop and script beside.

    python scripts/bench_checkouts.py --model flashhead-pro --model flashhead-lite --repo PATH --make-random
    python scripts/bench_checkouts.py --model liveact --repo PATH --lightx2v PATH --make-random
    python scripts/bench_checkouts.py --model liveact --cards 0,1 --repo PATH --lightx2v PATH --make-random
    python scripts/bench_checkouts.py --model flashtalk --repo PATH --make-random

For each model: the engine is loaded through a real host, renders two films warm, is killed in the middle of a third,
starts anew, goes on from the last carry, and what it renders is compared with the undisturbed film.  Then upstream's
own loop renders the same clip in one warm process, its export included, and at last ten-second films are made both
ways: warm by the host, and cold by starting upstream's script for each.  FlashHead's models are loaded and compiled at
the same time, since that is most of the work; whatever is timed has the card to itself.

With --cards LiveAct's film is rendered by one card, then by both as a group, whose rank 1 is killed in the middle of
one.  Upstream's loop is left out then: its two-card mode needs a kernel that gives noise on Hopper cards.

FlashTalk is run alone and not compiled; scripts/bench_flashtalk.py --upstream measures upstream's loop.  Its weights
are 55 GB with both encoders at their true size; on a smaller disk, or with --small-encoders, those two are thin.

Every part has a limit, none stops another, and what was measured is written after each of them.  Nothing is written
into a checkout.  Modules that a checkout imports and one card does not need are stood in for where they are not
installed, and the output says which.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

import numpy as np  # noqa: E402
from sounds import write_sound  # noqa: E402

from farm.cards import list_cards  # noqa: E402
from farm.devices import DeviceSet  # noqa: E402
from workers.host.frames import read_frames, render_to_bytes  # noqa: E402
from workers.host.parent import Host, HostSpec, Progress  # noqa: E402

MODELS = ("flashhead-pro", "flashhead-lite", "liveact", "flashtalk")
REPOSITORIES = {"flashhead": "SoulX-FlashHead", "liveact": "SoulX-LiveAct", "flashtalk": "SoulX-FlashTalk"}
ALONE = ("liveact", "flashtalk")  # no two of these fit on a card
FLASHTALK_BYTES = 57e9  # of its checkpoint at true size
RATE, FPS = 16_000, 25
MARK = "@@ "  # as scripts/upstream_loops.py writes it
# What the checkouts import and one card does not need: written beside the bench for upstream's own processes, each only
# where the interpreter has no such package.
STAND_INS = {
    "xfuser": {
        "__init__.py": "",
        "core/__init__.py": "",
        "core/distributed.py": "def _none(*_, **__):\n    raise RuntimeError('stood in for')\n\n\n"
        "get_sequence_parallel_rank = get_sequence_parallel_world_size = get_sp_group = _none\n"
        "init_distributed_environment = initialize_model_parallel = get_world_group = _none\n",
        "core/long_ctx_attention.py": "class xFuserLongContextAttention:\n    pass\n",
    },
    "mediapipe": {"__init__.py": ""},
    "decord": {"__init__.py": "class VideoReader:\n    pass\n\n\ndef cpu(*_):\n    pass\n"},
    "dashscope": {"__init__.py": ""},
    "librosa": {
        "__init__.py": "import wave\n\nimport numpy as np\n\n\ndef load(path, sr, mono):\n"
        "    with wave.open(str(path)) as file:\n        assert file.getframerate() == sr\n"
        "        data = file.readframes(file.getnframes())\n"
        "    return np.frombuffer(data, '<i2').astype(np.float32) / 32768, sr\n"
    },
}
GOALS = {"flashhead-pro": 1.15, "flashhead-lite": 1.6}
COLD_GOAL = 8.0


class Bench:
    """What all parts share: the clock, the clip, the results, and the processes that must not outlive them."""

    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        self.asked, self.work = asked, work
        self.began = time.monotonic()
        self.deadline = self.began + asked.seconds
        self.results: dict[str, Any] = {"seconds_given": asked.seconds, "tiny": asked.tiny, "models": {}}
        self._writing = threading.RLock()
        self.children: list[subprocess.Popen[str]] = []
        self.hosts: list[Host] = []
        self.ffmpeg = find_ffmpeg(asked.python)
        self.clip = write_clip(work, asked.clip_seconds, "clip")
        # The first three chunks or blocks are computed by different graphs.
        self.warm = write_clip(work, 1.0 if asked.tiny else 2.6, "warm")
        self.portrait = write_portrait(work)
        self.stand_ins = write_stand_ins(work / "stand-ins", asked.python)
        self.note("stood in for, in upstream's own processes only", ", ".join(self.stand_ins) or "nothing")

    def note(self, *words: Any) -> None:
        print(f"[{time.monotonic() - self.began:6.1f}]", *words, flush=True)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def put(self, model: str, part: str, found: Any) -> None:
        with self._writing:
            self.results["models"].setdefault(model, {})[part] = found
            self.save()

    def save(self) -> None:
        if not self.asked.json:
            return
        with self._writing:
            self.results["seconds"] = round(time.monotonic() - self.began, 1)
            staging = self.asked.json.with_suffix(".part")
            staging.write_text(json.dumps(self.results, indent=1, default=str))
            staging.replace(self.asked.json)

    def part(self, model: str, name: str, needs_seconds: float, work: Callable[[], Any]) -> Any:
        """Run one part; what it raises is told and kept, and None is returned."""
        if self.left() < needs_seconds:
            self.note(f"{model}: {name}: left out, {self.left():.0f} s are left")
            self.put(model, name, {"left_out": f"{self.left():.0f} s were left"})
            return None
        self.note(f"{model}: {name}")
        began = time.monotonic()
        try:
            found = work()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            tail = "".join(traceback.format_exception(error))[-1800:]
            self.note(f"{model}: {name} FAILED after {time.monotonic() - began:.0f} s:\n{tail}")
            self.put(model, name, {"failed": f"{type(error).__name__}: {error}"[:1500]})
            return None
        self.put(model, name, found)
        if isinstance(found, dict):
            shown = {key: value for key, value in found.items() if not isinstance(value, list | dict)}
            self.note(f"{model}: {name}: " + ", ".join(f"{key} {shorten(value)}" for key, value in shown.items()))
        return found

    def environment(self, stood_in: bool) -> dict[str, str]:
        env = dict(os.environ)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            env.pop(name, None)
        paths = [str(self.work / "stand-ins")] if stood_in else []
        # A folder `site` beside the checkouts may hold packages that only they need.
        paths += [str(path) for path in (self.asked.lightx2v, self.asked.repo / "site") if path and path.is_dir()]
        paths += [str(path) for path in self.work.glob("weights-liveact/site")]
        env["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [env.get("PYTHONPATH")])])
        env["PATH"] = os.pathsep.join([str(self.work / "bin"), env.get("PATH", "")])
        if self.ffmpeg:
            env["IMAGEIO_FFMPEG_EXE"] = self.ffmpeg
        env["PYTHONUNBUFFERED"], env["PYTHONDONTWRITEBYTECODE"] = "1", "1"
        env["TORCHINDUCTOR_CACHE_DIR"] = str(self.work / "compiled-upstream")
        if not self.asked.tiny:
            env["CUDA_VISIBLE_DEVICES"] = self.asked.card
        return env

    def spawn(self, argv: list[str], log: Path, **how: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, **how
        )
        self.children.append(process)
        return process

    def end_all(self) -> None:
        for host in self.hosts:
            with contextlib.suppress(Exception):
                host.kill()
        for process in self.children:
            with contextlib.suppress(OSError):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def watch(self) -> None:
        """End everything when the time is over, whatever hangs."""

        def wait() -> None:
            time.sleep(max(0.0, self.left()) + 15.0)
            self.note("TIME IS OVER: what was measured so far is written")
            self.save()
            self.end_all()
            os._exit(3)

        threading.Thread(target=wait, daemon=True).start()


# Material.


def write_clip(work: Path, seconds: float, name: str) -> dict[str, Any]:
    """The same sound for both sides: 16 bit WAV for upstream, the same levels as float32 for the host."""
    draw = np.random.Generator(np.random.Philox(key=5))
    count = round(seconds * RATE)
    swell = 0.5 + 0.5 * np.sin(np.arange(count) * (2 * np.pi * 3 / RATE))
    levels = (0.15 * swell * draw.standard_normal(count) * 32767).clip(-32767, 32767).astype("<i2")
    write_sound(work / f"{name}.wav", levels, RATE)
    (levels.astype("<f4") / 32768).tofile(work / f"{name}.f32")
    return {"wav": work / f"{name}.wav", "f32": work / f"{name}.f32", "frames": -(-count * FPS // RATE)}


def write_portrait(work: Path) -> Path:
    """A smooth picture under the name that check_upstream's weights of LiveAct keep their encodings for."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from check_upstream import film_of

    return Path(film_of(work, 1, 64, 0)["portrait"])


def write_stand_ins(folder: Path, python: str) -> list[str]:
    """Those that the model's interpreter lacks.  Returns their names."""
    ask = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n    try:\n        importlib.import_module(name)\n"
        "    except Exception:\n        print(name)\n"
    )
    said = subprocess.run([python, "-c", ask, *STAND_INS], capture_output=True, text=True, check=True, timeout=90)
    folder.mkdir(parents=True, exist_ok=True)
    for name in said.stdout.split():
        for file, text in STAND_INS[name].items():
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_text(text)
    return said.stdout.split()


def find_ffmpeg(python: str) -> str:
    """ffmpeg on the path or the one inside imageio-ffmpeg.  Empty where there is none."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    with contextlib.suppress(Exception):
        ask = "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"
        said = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True, timeout=60)
        return said.stdout.split()[-1]
    return ""


def make_weights(bench: Bench, model: str) -> dict[str, Any]:
    asked = bench.asked
    into = bench.work / f"weights-{model}"
    argv = [
        asked.python,
        str(ROOT / "scripts/check_upstream.py"),
        "--make",
        model,
        "--repo",
        str(repo_of(asked, model)),
    ]
    argv += ["--into", str(into), "--device", "cpu" if asked.tiny else "cuda", "--kernel", asked.kernel]
    argv += ["--frame", "{}x{}".format(*size_of(asked, model)), "--dtype", asked.dtype]
    argv += [] if asked.tiny else ["--true-size", "--layers", str(asked.liveact_layers)]
    argv += ["--small-encoders"] if asked.small_encoders else []
    began, log, last = time.monotonic(), bench.work / f"weights-{model}.log", ""
    maker = bench.spawn(argv, log, env=bench.environment(False), start_new_session=True)
    over = threading.Timer(max(30.0, bench.left()), maker.kill)
    over.daemon = True
    over.start()
    assert maker.stdout is not None
    for line in maker.stdout:
        last = line.strip()
        if not last.startswith("{"):
            bench.note(f"{model}: weights: {last}")
    code = maker.wait()
    over.cancel()
    if code:
        raise RuntimeError(f"ended with {code} behind {last!r}\n{log.read_text()[-2500:]}")
    size = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    return {"settings": json.loads(last), "seconds": time.monotonic() - began, "gigabytes": size / 1e9}


def repo_of(asked: argparse.Namespace, model: str) -> Path:
    """The checkout itself, or the folder that holds both under their names."""
    inside = asked.repo / REPOSITORIES[model.partition("-")[0]]
    return (inside if inside.is_dir() else asked.repo).resolve()


def size_of(asked: argparse.Namespace, model: str) -> tuple[int, int]:
    if asked.tiny:
        return (32, 32) if model in ("flashhead-pro", "flashtalk") else (64, 64)
    if model not in ALONE:
        return (512, 512)
    width, _, height = {"liveact": asked.liveact_size, "flashtalk": asked.flashtalk_size}[model].partition("x")
    return int(width), int(height)


def seconds_of(asked: argparse.Namespace, model: str) -> float:
    """Length of a film; the two large models' is shorter than a clip, because a chunk of theirs takes seconds."""
    given = {"liveact": asked.liveact_seconds, "flashtalk": asked.flashtalk_seconds}
    if asked.tiny:
        given["flashtalk"] = min(1.3, asked.flashtalk_seconds)  # its autoencoder is whole even then
    return float(min(asked.clip_seconds, given.get(model, asked.clip_seconds)))


# Our side.


class Warm:
    """A host and the thread that it was started from, which must outlive it."""

    def __init__(self, bench: Bench, model: str, weights: dict[str, str], cards: tuple[str, ...] = ()) -> None:
        asked = bench.asked
        kind, _, variant = model.partition("-")
        self.bench, self.model, self.cards = bench, model, cards or (asked.card,)
        self.width, self.height = size_of(asked, model)
        settings: dict[str, Any] = {**weights, "repo_path": str(repo_of(asked, model)), "kernel": asked.kernel}
        compiled = {"liveact": asked.compile_liveact, "flashtalk": asked.compile_flashtalk}.get(kind, True)
        settings |= {"device": "cpu" if asked.tiny else "cuda", "compile": compiled}
        settings.setdefault("cache", str(bench.work / f"cache-{model}"))
        settings |= {"model_type": variant} if variant else {}
        # Upstream's wishes are the model's defaults at any size, so that both sides compute the same.
        self.film_settings: dict[str, Any] = {}
        paths, module = bench.environment(False)["PYTHONPATH"], f"workers.engines.upstream.{kind}"
        if kind == "flashtalk" and (asked.tiny or asked.small_encoders):
            paths, module = os.pathsep.join([paths, str(ROOT / "scripts")]), "small_encoders"
        ranks = len(self.cards)
        # Rank 0 may still look for a kernel while rank 1 waits for it; NVLink's multicast is not everywhere.
        group = {"COLLECTIVE_SECONDS": "120", "NCCL_NVLS_ENABLE": "0", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
        self.host = Host(
            HostSpec(
                engine_module=module,
                engine_settings=settings,
                devices=DeviceSet("cpu") if asked.tiny else DeviceSet("cuda", self.cards),
                log_file=bench.work / f"host-{model}-{ranks}.log",
                python=asked.python,
                environment={
                    "PYTHONPATH": paths,
                    "TORCHINDUCTOR_CACHE_DIR": str(bench.work / f"compiled-{model}"),
                    **(group if ranks > 1 else {}),
                },
                ranks=ranks,
                load_timeout_seconds=max(60.0, bench.left()),
                stuck_floor_seconds=120.0,
            )
        )
        bench.hosts.append(self.host)
        self._thread = ThreadPoolExecutor(1)
        self.chunk_frames = 0

    def start_with_own_lock(self) -> Future[dict[str, Any]]:
        """Begin to load.  The card is taken by a lock of this host's own, so that two can be compiled at once."""
        os.environ["FARM_CARD_LOCKS"] = str(self.bench.work / f"locks-{self.model}-{len(self.cards)}")
        starting = self._thread.submit(self._start)
        while self.host.pid is None and not starting.done() and self.bench.left() > 0:
            time.sleep(0.05)  # until it has the lock; the variable is the process's
        return starting

    def _start(self) -> dict[str, Any]:
        began = time.monotonic()
        loaded = self.host.start()
        self.chunk_frames = loaded.description["chunk_frames"]
        return {
            "seconds": time.monotonic() - began,
            "version": loaded.description["version"],
            "device": loaded.description["device"],
            "resident_gb": loaded.report["memory_bytes"] / 1e9,
            "notes": "; ".join(loaded.report["notes"]),
            "python": loaded.python,
        }

    def film(self, seed: int, frames: int) -> dict[str, Any]:
        return {
            "portrait": str(self.bench.portrait),
            "audio": str(self.bench.clip["f32"]),
            "total_frames": frames,
            "width": self.width,
            "height": self.height,
            "fps": [FPS, 1],
            "prompt": "a person talks",
            "seed": seed,
            "settings": self.film_settings,
            "facts": {},
        }

    @property
    def frames(self) -> int:
        clip: int = self.bench.clip["frames"]
        return min(clip, round(seconds_of(self.bench.asked, self.model) * FPS))

    def encode(self, seed: int, target: Path) -> dict[str, Any]:
        """A whole film into x264 as the farm does it, while it is rendered; then its sound beside it."""
        began, marks, film = time.monotonic(), [], self.film(seed, self.frames)
        with encoder(self.bench, self.width, self.height, target.with_suffix(".video.mp4")) as pipe:
            for event in self.host.render(film, first_frame=0, frames=self.frames, carry=None, write_fd=pipe):
                if isinstance(event, Progress):
                    marks.append(time.monotonic())
        gaps = [b - a for a, b in pairwise(marks)]
        # The last chunk has fewer frames and nothing behind it, the second may still be a first one.  LiveAct has
        # denoised three blocks at its first step, so that its last two steps only hand frames out.
        steady = (gaps[: -(-(self.frames - 21) // 32) - 2] if self.model == "liveact" else gaps[1:-1]) or gaps
        return {
            "frames": self.frames,
            "first_frame_seconds": marks[0] - began,
            "wall_seconds": time.monotonic() - began,
            "chunk_ms": 1e3 * statistics.median(steady),
            "frames_per_second": self.chunk_frames / statistics.median(steady),
            "all_chunks_ms": [round(1e3 * gap, 1) for gap in gaps],
        }

    def two_jobs_and_a_kill(self) -> dict[str, Any]:
        """Two films warm, the second kept as what the third is compared with; then SIGKILL in the third's middle."""
        first = self.encode(7, self.bench.work / f"{self.model}-7.mp4")
        self.bench.note(
            f"{self.model}: first film: {first['frames_per_second']:.2f} frames/s, {first['all_chunks_ms']}"
        )
        whole, end = render_to_bytes(self.host, self.film(8, self.frames), 0, self.frames)
        self.size = self.width * self.height * 3
        assert len(whole) == self.frames * self.size, f"{len(whole) / self.size} frames for {self.frames}"
        self.cut = max(1, self.frames // self.chunk_frames // 2) * self.chunk_frames
        head, self.carry = render_to_bytes(self.host, self.film(8, self.frames), 0, self.cut)
        self.whole, self.end = hashlib.sha256(whole[self.cut * self.size :]).hexdigest(), end
        pid, killed, gone = self.host.pid, [], threading.Event()
        peak, held = memory_of(pid), memory_of_cards(self.cards)
        if len(self.cards) > 1:
            pid = second_rank(pid)

        def kill(progress: Progress) -> None:
            if not killed and pid is not None:
                killed.append(progress.frames)
                os.kill(pid, signal.SIGKILL)
                gone.set()

        with contextlib.suppress(Exception):
            read_frames(
                self.host,
                self.film(8, self.frames),
                first_frame=self.cut,
                frames=self.frames - self.cut,
                carry=self.carry,
                take=lambda block: gone.wait(60),  # so that the film cannot end before
                on_progress=kill,
            )
        assert killed and not self.host.is_alive, "the host was not killed"
        return {
            **first,
            "peak_gb": peak,
            "cards_gb": held,
            "again_equal": head == whole[: self.cut * self.size],
            "carry_bytes": len(self.carry),
            "killed_at_frame": self.cut + killed[0],
        }

    def film_and_head(self) -> dict[str, Any]:
        """A film, and the beginning of another for the group to be compared with."""
        self.head, _ = self.render_head()  # first, so that the film is as warm as the group's
        found = self.encode(7, self.bench.work / f"{self.model}-alone.mp4")
        return {**found, "cards_gb": memory_of_cards(self.cards)}

    def render_head(self) -> tuple[bytes, bytes]:
        """Three blocks, of which the last is the first that hears of a squeezed memory."""
        return render_to_bytes(self.host, self.film(8, 64), 0, 64)

    def beside(self, other: bytes) -> dict[str, Any]:
        """How far our beginning of a film is from another one's of the same row, in levels of 255."""
        size = self.width * self.height * 3
        ours, theirs = (np.frombuffer(b, np.uint8).reshape(-1, size) for b in (self.render_head()[0], other))
        apart = [float(np.abs(a.astype(np.int16) - b).mean()) for a, b in zip(ours, theirs, strict=True)]
        return {"mean_apart_before_the_memory": max(apart[:53]), "mean_apart_behind_it": max(apart[53:])}

    def logs(self) -> str:
        """The ends of what the ranks printed."""
        found = sorted(self.bench.work.glob(f"{self.host.spec.log_file.stem}*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in found)

    def resume(self) -> dict[str, Any]:
        began = time.monotonic()
        rest, end = render_to_bytes(self.host, self.film(8, self.frames), self.cut, self.frames - self.cut, self.carry)
        return {
            "from_frame": self.cut,
            "seconds": time.monotonic() - began,
            "frames_equal": hashlib.sha256(rest).hexdigest() == self.whole,
            "carry_equal": end == self.end,
        }

    def films(self, count: int, limit_seconds: float) -> dict[str, Any]:
        """Films one after the other, each encoded and with sound; the mux of one runs beside the next."""
        began, done = time.monotonic(), 0
        with ThreadPoolExecutor(2) as muxers:
            muxed = []
            for number in range(count):
                target = self.bench.work / f"{self.model}-film-{number}.mp4"
                self.encode(100 + number, target)
                muxed.append(muxers.submit(mux, self.bench, target.with_suffix(".video.mp4"), target))
                done += 1
                if time.monotonic() - began > limit_seconds:
                    break
            for one in muxed:
                one.result()
        wall = time.monotonic() - began
        return {"films": done, "of": count, "wall_seconds": wall, "films_per_hour": 3600 * done / wall}

    def run(self, work: Callable[[], Any]) -> Any:
        return self._thread.submit(work).result()

    def close(self) -> None:
        self._thread.submit(self.host.close).result()
        self._thread.shutdown()


@contextlib.contextmanager
def encoder(bench: Bench, width: int, height: int, target: Path) -> Iterator[int]:
    """A pipe into x264 with the farm's settings; without ffmpeg the frames are dropped, and the output says so."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS), "-i", "pipe:0"]
    x264 = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p"]
    argv = [bench.ffmpeg, "-v", "error", "-y", *raw, *x264, str(target)] if bench.ffmpeg else ["cat"]
    reading, writing = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    process = subprocess.Popen(argv, stdin=reading, stdout=subprocess.DEVNULL)
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)
        process.wait(120)
    if process.returncode:
        raise RuntimeError(f"the encoder ended with {process.returncode}")


def mux(bench: Bench, video: Path, target: Path) -> None:
    if not bench.ffmpeg:
        return
    sound = ["-i", str(bench.clip["wav"]), "-c:v", "copy", "-c:a", "aac", "-b:a", "160k"]
    subprocess.run([bench.ffmpeg, "-v", "error", "-y", "-i", str(video), *sound, str(target)], check=True, timeout=120)


def memory_of(pid: int | None) -> float:
    """Gigabytes that the driver counts for a process, which its allocator keeps once it used them; 0 when unknown."""
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        ask = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        said = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout
        used = {int(line.split(",")[0]): float(line.split(",")[1]) for line in said.splitlines() if "," in line}
        return used.get(pid or -1, 0.0) * 2**20 / 1e9
    return 0.0


def memory_of_cards(cards: tuple[str, ...]) -> dict[str, float]:
    """Gigabytes in use on each card, whoever uses them; empty where there is no driver's tool."""
    with contextlib.suppress(Exception):
        return {card.index: round(card.used_mb * 2**20 / 1e9, 2) for card in list_cards("cuda") if card.index in cards}
    return {}


def second_rank(pid: int | None) -> int:
    """The process of rank 1 that this launcher started.  Raises RuntimeError."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            is_child = int(stat.read_text().rpartition(")")[2].split()[1]) == pid
            if is_child and b"RANK=1" in stat.with_name("environ").read_bytes().split(b"\0"):
                return int(stat.parent.name)
    raise RuntimeError(f"process {pid} has no second rank")


# Upstream's side.


class Loop:
    """Upstream's own loop in a process of its own; see scripts/upstream_loops.py."""

    def __init__(self, bench: Bench, model: str, weights: dict[str, str]) -> None:
        asked = bench.asked
        self.bench = bench
        self.log = bench.work / f"loop-{model}.log"
        width, height = size_of(asked, model)
        argv = [asked.python, str(ROOT / "scripts/upstream_loops.py"), model, "--repo", str(repo_of(asked, model))]
        argv += ["--weights", weights["ckpt_dir"], "--speech", weights["wav2vec_dir"]]
        argv += ["--portrait", str(bench.portrait), "--out", str(bench.work / f"upstream-{model}.mp4")]
        argv += ["--width", str(width), "--height", str(height)]
        sound = bench.clip
        if model == "liveact":
            sound = write_clip(bench.work, seconds_of(asked, model), "clip-liveact")
            argv += ["--compile"] if asked.compile_liveact else []
        argv += [
            "--sound",
            str(sound["wav"]),
            "--warm-sound",
            str((bench.warm if model != "liveact" else sound)["wav"]),
        ]
        argv += ["--tiny", "--side", str(width)] if asked.tiny else []
        self._process = bench.spawn(argv, self.log, env=bench.environment(True), start_new_session=True)
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self.mended = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                heard = json.loads(line[len(MARK) :])
                if "mended_speech" in heard:
                    self.mended = heard["mended_speech"]
                else:
                    self._heard.put(heard)
        self._heard.put({"failed": "its process ended"})

    def hear(self) -> dict[str, Any]:
        """Its next word.  Raises RuntimeError with the end of its log."""
        try:
            heard = self._heard.get(timeout=max(1.0, self.bench.left()))
        except queue.Empty:
            heard = {"failed": "it did not answer in time"}
        if "failed" in heard:
            raise RuntimeError(f"upstream's loop: {heard['failed']}\n{self.log.read_text()[-1500:]}")
        return heard

    def measure(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        found = self.hear()
        gaps, frames = found.pop("chunk_seconds"), found["chunk_frames"]
        steady = statistics.median(gaps[1:] or gaps)
        exported = steady + found["export_seconds"] / found["chunks"]
        return {
            **found,
            "speech_encoder_mended_for_this_transformers": self.mended,
            "chunk_ms": 1e3 * steady,
            "frames_per_second": frames / steady,
            "frames_per_second_with_export": frames / exported,
            "all_chunks_ms": [round(1e3 * gap, 1) for gap in gaps],
        }

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)


def run_cold(bench: Bench, model: str, weights: dict[str, str], count: int, limit_seconds: float) -> dict[str, Any]:
    """Upstream's script as its users start it, once for each film, with what it compiled before on disk."""
    asked, walls = bench.asked, []
    for number in range(count):
        target = bench.work / f"cold-{model}-{number}.mp4"
        given = ["--ckpt_dir", weights["ckpt_dir"], "--wav2vec_dir", weights["wav2vec_dir"]]
        given += ["--model_type", model.partition("-")[2], "--cond_image", str(bench.portrait)]
        given += ["--audio_path", str(bench.clip["wav"]), "--audio_encode_mode", "stream", "--save_file", str(target)]
        # The script's own file, run as the main program by a few lines that mend transformers' newest speech encoder.
        argv = [asked.python, str(ROOT / "scripts/upstream_loops.py"), "script", "--repo", str(repo_of(asked, model))]
        argv += ["--tiny", "--side", str(size_of(asked, model)[0])] if asked.tiny else []
        argv += given
        began = time.monotonic()
        log = bench.work / f"cold-{model}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                argv,
                cwd=repo_of(asked, model),
                env=bench.environment(True),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )
            bench.children.append(process)
            try:
                code = process.wait(max(1.0, bench.left()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if code or not target.is_file():
            raise RuntimeError(f"the script ended with {code}:\n{log.read_text()[-1500:]}")
        walls.append(time.monotonic() - began)
        bench.note(f"{model}: the script's film {number + 1}: {walls[-1]:.1f} s")
        if sum(walls) > limit_seconds:
            break
    mean = statistics.mean(walls)
    said = f"{len(walls)} measured; the hour is extrapolated from them"
    return {"films": len(walls), "seconds_each": walls, "films_per_hour": 3600 / mean, "note": said}


# The parts in their order.


def run_flashhead(bench: Bench, models: list[str]) -> None:
    asked = bench.asked
    with ThreadPoolExecutor(len(models)) as pool:
        makers = {m: pool.submit(bench.part, m, "weights", 20, lambda m=m: make_weights(bench, m)) for m in models}
        weights = {model: maker.result()["settings"] for model, maker in makers.items() if maker.result()}
    models = [model for model in models if model in weights]
    warm = {model: Warm(bench, model, weights[model]) for model in models}
    loops = {model: Loop(bench, model, weights[model]) for model in models if "loop" in asked.parts}
    starting = {}
    for model in models:
        starting[model] = warm[model].start_with_own_lock()
    alive = [m for m in models if bench.part(m, "load, compiling beside the others", 20, starting[m].result)]
    for model in list(loops):
        if not bench.part(model, "upstream's loop: load, compiling", 10, loops[model].hear):
            loops.pop(model).close()
    killed = [m for m in alive if bench.part(m, "jobs", 20, lambda m=m: warm[m].run(warm[m].two_jobs_and_a_kill))]
    for model, loop in loops.items():
        bench.part(model, "upstream's loop", 15, loop.measure)
        loop.close()
    again = {model: warm[model].start_with_own_lock() for model in killed}
    back = [m for m in killed if bench.part(m, "load again, from compiled", 20, again[m].result)]
    for model in back:
        bench.part(model, "resume", 10, lambda m=model: warm[m].run(warm[m].resume))
    for model in models:
        if "cold" in asked.parts:
            share = max(1.0, bench.left() / (len(models) - models.index(model)) - 40)
            bench.part(
                model,
                "cold films",
                45 if not asked.tiny else 10,
                lambda m=model, s=share: run_cold(bench, m, weights[m], asked.cold_films, s),
            )
    for model in back:
        if "films" in asked.parts:
            limit = min(asked.film_seconds, max(5.0, bench.left() - 20))
            bench.part(
                model, "warm films", 15, lambda m=model, s=limit: warm[m].run(lambda: warm[m].films(asked.films, s))
            )
    for model in models:
        compare(bench, model)
    for model in models:
        bench.part(model, "closing", -1e9, warm[model].close)


def run_alone(bench: Bench, model: str) -> None:
    """One model that has the card to itself: films, a kill and what comes back, then LiveAct's loop of upstream."""
    asked = bench.asked
    if model == "flashtalk" and not asked.tiny and shutil.disk_usage(bench.work).free < FLASHTALK_BYTES:
        asked.small_encoders = True
    if model == "flashtalk":
        thin = asked.tiny or asked.small_encoders
        bench.put(model, "encoders", "a few thin layers" if thin else "true size")
        bench.note(f"{model}: text and picture encoders:", "a few thin layers" if thin else "at true size")
    made = bench.part(model, "weights", 60 if not asked.tiny else 10, lambda: make_weights(bench, model))
    if not made:
        return
    if asked.cards:
        run_pair(bench, made["settings"])
        return
    warm = Warm(bench, model, made["settings"])
    done = None
    if bench.part(model, "load", 30, lambda: warm.start_with_own_lock().result()):
        killed = bench.part(model, "jobs", 30, lambda: warm.run(warm.two_jobs_and_a_kill))
        if killed and bench.part(model, "load again", 30, lambda: warm.start_with_own_lock().result()):
            done = bench.part(model, "resume", 10, lambda: warm.run(warm.resume))
    if not done:
        bench.note(warm.logs())
    bench.part(model, "closing", -1e9, warm.close)
    if model == "liveact" and "loop" in asked.parts and bench.left() > (60 if not asked.tiny else 10):
        loop = Loop(bench, model, made["settings"])
        if bench.part(model, "upstream's loop: load", 30, loop.hear):
            bench.part(model, "upstream's loop", 10, loop.measure)
        loop.close()
        compare(bench, model)


def run_pair(bench: Bench, weights: dict[str, str]) -> None:
    """One card's film, then the same row's on two cards, one of which loses its rank."""
    asked, model = bench.asked, "liveact"
    alone = Warm(bench, model, weights, asked.cards[:1])
    one = None
    if bench.part(model, "one card: load", 30, lambda: alone.start_with_own_lock().result()):
        one = bench.part(model, "one card: film", 30, lambda: alone.run(alone.film_and_head))
    if not one:
        bench.note(alone.logs())
    bench.part(model, "one card: closing", -1e9, alone.close)
    pair = Warm(bench, model, weights, asked.cards)
    two = None
    if bench.part(model, "two cards: load", 30, lambda: pair.start_with_own_lock().result()):
        if one:
            bench.part(model, "two cards: beside one", 15, lambda: pair.run(lambda: pair.beside(alone.head)))
        two = bench.part(model, "two cards: films, a rank killed", 30, lambda: pair.run(pair.two_jobs_and_a_kill))
        if two and bench.part(model, "two cards: load again", 30, lambda: pair.start_with_own_lock().result()):
            bench.part(model, "two cards: resume", 10, lambda: pair.run(pair.resume))
    bench.note(pair.logs())
    if one and two:
        times = two["frames_per_second"] / one["frames_per_second"]
        said = {"times_as_fast": times, "first_frame_times": one["first_frame_seconds"] / two["first_frame_seconds"]}
        bench.put(model, "two cards beside one", said)
        bench.note(f"## {model}: two cards: {times:.2f} times one card's frames/s; memory {two['cards_gb']} GB")
    bench.part(model, "two cards: closing", -1e9, pair.close)


def compare(bench: Bench, model: str) -> None:
    """Our frames per second by upstream's, and films an hour warm by cold, where both are there."""
    found = bench.results["models"].get(model, {})
    ours, theirs = found.get("jobs", {}), found.get("upstream's loop", {})
    said: dict[str, Any] = {}
    if "frames_per_second" in ours and "frames_per_second" in theirs:
        said["steady_to_their_chunks"] = ours["frames_per_second"] / theirs["frames_per_second"]
        said["steady_to_their_chunks_and_export"] = ours["frames_per_second"] / theirs["frames_per_second_with_export"]
        said["goal"] = GOALS.get(model, "none")
    warm, cold = found.get("warm films", {}), found.get("cold films", {})
    if "films_per_hour" not in warm and "wall_seconds" in ours:
        warm = {"films_per_hour": 3600 / ours["wall_seconds"]}
        said["warm_films"] = "extrapolated from the first one"
    if "films_per_hour" in warm and "films_per_hour" in cold:
        said["warm_to_cold"] = warm["films_per_hour"] / cold["films_per_hour"]
        said["cold_goal"] = COLD_GOAL
    if said:
        bench.put(model, "compared", said)
        bench.note(f"## {model}: " + ", ".join(f"{name} {shorten(value)}" for name, value in said.items()))


def shorten(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, required=True, help="several times")
    parser.add_argument("--repo", type=Path, required=True, help="the checkout, or the folder that holds them")
    parser.add_argument("--weights", type=Path, help="folder for weights and everything else; temporary by default")
    parser.add_argument(
        "--make-random", action="store_true", help="make random weights there; nothing else is known yet"
    )
    parser.add_argument("--lightx2v", type=Path, help="folder to import LightX2V's autoencoder from, for LiveAct")
    parser.add_argument("--python", default=sys.executable, help="the model's interpreter")
    parser.add_argument("--card", default="0", help="index of the card")
    parser.add_argument("--cards", help="two, as 0,1: LiveAct on the first of them and then on both")
    parser.add_argument("--tiny", action="store_true", help="on the CPU with tiny weights: does every part run")
    parser.add_argument("--seconds", type=float, default=480.0, help="for everything; then what is there is written")
    parser.add_argument("--film-seconds", type=float, default=20.0, help="for the warm films of one model")
    parser.add_argument("--films", type=int, default=10, help="warm films of each model")
    parser.add_argument("--cold-films", type=int, default=1, help="films by the script of each model")
    parser.add_argument("--clip-seconds", type=float, default=10.0, help="length of a film")
    parser.add_argument("--liveact-seconds", type=float, default=4.0, help="length of LiveAct's, at most a clip's")
    parser.add_argument("--liveact-layers", type=int, default=40, help="fewer are not its true size, and quicker")
    parser.add_argument("--liveact-size", default="416x720", help="width x height")
    parser.add_argument("--compile-liveact", action="store_true", help="compile it on both sides, as its script does")
    parser.add_argument("--flashtalk-seconds", type=float, default=4.0, help="length of FlashTalk's film")
    parser.add_argument("--flashtalk-size", default="448x768", help="width x height")
    parser.add_argument("--compile-flashtalk", action="store_true", help="compile it, which takes minutes")
    parser.add_argument("--small-encoders", action="store_true", help="FlashTalk's prompt and portrait by thin layers")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of FlashHead's files")
    parser.add_argument("--kernel", default="auto", help="the engines' attention kernel")
    parser.add_argument("--parts", default="loop,films,cold", help="of loop, films and cold; the jobs always run")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    asked = parser.parse_args()
    if not asked.make_random:
        parser.error("--make-random is the only source of weights so far")
    asked.repo = asked.repo.resolve()
    asked.parts = set(asked.parts.split(","))
    asked.cards = tuple(asked.cards.split(",")) if asked.cards else ()
    if asked.cards and (len(set(asked.cards)) != 2 or asked.model != ["liveact"]):
        parser.error("--cards takes two cards, and --model liveact alone")
    asked.card = asked.cards[0] if asked.cards else asked.card
    if asked.lightx2v:
        asked.lightx2v = asked.lightx2v.resolve()
    models = list(dict.fromkeys(asked.model))
    with contextlib.ExitStack() as stack:
        if asked.weights:
            work = asked.weights.resolve()
            work.mkdir(parents=True, exist_ok=True)
        else:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(asked, work)
        (work / "bin").mkdir(exist_ok=True)
        if bench.ffmpeg and not shutil.which("ffmpeg"):
            with contextlib.suppress(FileExistsError):
                (work / "bin/ffmpeg").symlink_to(bench.ffmpeg)
        bench.note("ffmpeg:", bench.ffmpeg or "NONE: nothing is encoded on either side")
        bench.watch()
        try:
            flashheads = [model for model in models if model not in ALONE]
            if flashheads:
                run_flashhead(bench, flashheads)
            for model in models:
                if model in ALONE:
                    run_alone(bench, model)
        finally:
            bench.end_all()
            bench.save()
        bench.note("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
