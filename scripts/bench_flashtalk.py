#!/usr/bin/env python3
"""Measure SoulX-FlashTalk with random weights at true size, alone or beside upstream in the same process.

    python scripts/bench_flashtalk.py --preset quality --preset fast
    python scripts/bench_flashtalk.py --preset quality --upstream PATH
    python scripts/bench_flashtalk.py --world-size 1 --world-size 2 --world-size 4 --world-size 8

Each preset renders a chain of chunks with carry through the engine's own sessions, and its frames are written into a
pipe as the host would.  The first two chunks are not counted; the rest give the median.  Text and portrait encoders
are left out on both sides.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

from scripts.sounds import HeldSound  # noqa: E402
from workers.engines.contract import FilmRequest  # noqa: E402
from workers.engines.flashtalk import colour, make_engine, speech  # noqa: E402
from workers.engines.flashtalk.attention import attention  # noqa: E402
from workers.engines.flashtalk.geometry import MOTION_FRAMES, NEW_FRAMES, DitConfig, Geometry, VaeConfig  # noqa: E402
from workers.engines.flashtalk.noise import KeyedNoise  # noqa: E402
from workers.engines.flashtalk.sampler import sigmas  # noqa: E402

PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "quality": ({"precision": "bf16"}, {"steps": 4, "attention": "exact"}),
    "balanced": ({"precision": "fp8"}, {"steps": 4, "attention": "exact"}),
    "fast": ({"precision": "fp8"}, {"steps": 2, "attention": "fp8"}),
    "low-vram": ({"precision": "fp8", "residency": "lean"}, {"steps": 4, "attention": "exact"}),
}


def hum(seconds: float) -> HeldSound:
    """Speech that never repeats and needs no file."""
    draw = np.random.Generator(np.random.Philox(key=11))
    return HeldSound((0.1 * draw.standard_normal(int(seconds * 16_000))).astype(np.float32))


class Sink:
    """Takes frames as an encoder does: a pipe, written by a thread of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._thread: threading.Thread | None = None

    def put(self, frames: np.ndarray) -> None:
        if self._thread:
            self._thread.join()
        pipe = self._process.stdin
        assert pipe is not None
        self._thread = threading.Thread(target=lambda: pipe.write(memoryview(frames).cast("B")))
        self._thread.start()

    def close(self) -> None:
        if self._thread:
            self._thread.join()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def milliseconds(work: Callable[[], Any], repeats: int = 5, warm: int = 2) -> float:
    """Median device time of `work`."""
    for _ in range(warm):
        work()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def ceilings() -> dict[str, float]:
    """What this card's libraries reach on large products, in TFLOP/s."""
    device, bf16 = torch.device("cuda"), torch.bfloat16
    a, b = (torch.randn(8192, 8192, device=device, dtype=bf16) for _ in range(2))
    work = 2 * 8192**3 / 1e9
    found = {"bf16 product": work / milliseconds(lambda: a @ b, 10)}
    if torch.cuda.get_device_capability() >= (8, 9):
        from workers.engines.flashtalk.linears import Linear, round_rows

        layer, rows = Linear(b, torch.zeros(8192, device=device, dtype=bf16), "fp8"), round_rows(a, "fp8")
        found["fp8 product"] = work / milliseconds(lambda: layer(rows), 10)
    q, k, v = (torch.randn(12096, 40, 128, device=device, dtype=bf16) for _ in range(3))
    from workers.engines.flashtalk.attention import candidates, exact_backend

    for name in candidates(device)[:2]:
        attend = exact_backend(name)
        found[f"attention {name}"] = 4 * 12096**2 * 5120 / 1e9 / milliseconds(lambda a=attend: a(q, k, v))
    return found


def work_per_chunk(geometry: Geometry, steps: int) -> tuple[float, float]:
    """TFLOP of one chunk as upstream computes it: transformer and autoencoder.

    The transformer is 6 attention-sized products for q, k, v, o twice, the speech's q and o, the FFN, and attention.
    The autoencoder scales with pixels from 97.1 (decode) and 9.3 (encode) at 448x768.
    """
    c, n = DitConfig(), geometry.tokens
    products = 2 * n * (8 * c.dim * c.dim + 2 * c.dim * c.ffn_dim)
    attended = 4 * n * c.dim * (n + 769 + c.context_tokens)
    context = 2 * 769 * 4 * c.dim * c.dim
    step = c.num_layers * (products + attended + context) / 1e12
    return step * steps, 106.4 * geometry.height * geometry.width / (448 * 768)


def bench_ours(
    engine: Any, preset: str, job: dict[str, Any], size: tuple[int, int], chunks: int, folder: Path
) -> dict[str, Any]:
    """Steady chain and stages of one preset."""
    geometry = Geometry(size[1], size[0])
    film = FilmRequest(folder / "portrait.png", hum(120), 28 * (chunks + 4), *size, (25, 1), "", 9999, job, {})
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    session, sink = engine.begin(film, 0, None), Sink()
    marks = []
    for _ in range(chunks + 2):
        sink.put(session.step())
        marks.append(time.monotonic())
    sink.close()
    peak = torch.cuda.max_memory_allocated()
    carry = len(session.carry())
    intervals = [b - a for a, b in itertools.pairwise(marks[1:])]
    chunk_seconds = statistics.median(intervals)
    del session
    engine._ahead = None
    torch.cuda.synchronize()
    transformer, vae = work_per_chunk(geometry, job["steps"])
    result = {
        "preset": preset,
        "size": f"{size[0]}x{size[1]}",
        "steps": job["steps"],
        "attention": engine.exact_attention if job["attention"] == "exact" else "fp8",
        "chunk_ms": 1e3 * chunk_seconds,
        "spread_ms": [round(1e3 * t, 1) for t in sorted(intervals)],
        "frames_per_second": NEW_FRAMES / chunk_seconds,
        "tflops_of_upstreams_work": (transformer + vae) / chunk_seconds,
        "first_frame_s": marks[0] - started,
        "peak_gb": peak / 1e9,
        "carry_bytes": carry,
        "stages_ms": stages(engine, film, geometry, job),
    }
    return result


@torch.inference_mode()
def stages(engine: Any, request: FilmRequest, geometry: Geometry, job: dict[str, Any]) -> dict[str, float]:
    """Device time of each stage on its own."""
    film = next(iter(engine._films.values()))
    window = speech.read_window(request.audio, 20)
    taps = speech.gather_taps(engine.speech(window))
    attend = attention("fp8" if job["attention"] == "fp8" else engine.exact_attention)
    heard, level = engine.dit.hear(taps), engine.dit.modulation(sigmas(job["steps"])[1])
    latents = KeyedNoise(1, engine.device).draw(0, 0, geometry.latent_shape)

    def step() -> torch.Tensor:
        return engine.dit.velocity(latents, film.condition, level, film.context, heard, geometry, attend, 2)

    frames = engine.vae.decode(latents, engine.vae_part, MOTION_FRAMES)
    matched = colour.match_colour(frames, film.reference, 1.0)
    levels = colour.to_uint8(matched)
    held = torch.empty(levels.shape, dtype=torch.uint8, pin_memory=True)
    return {
        "speech features": milliseconds(lambda: engine.speech(window)),
        "speech into blocks": milliseconds(lambda: engine.dit.hear(taps), 3, 1),
        "DiT step": milliseconds(step, 5, 1),
        "decode": milliseconds(lambda: engine.vae.decode(latents, engine.vae_part, MOTION_FRAMES), 5, 1),
        "colour": milliseconds(lambda: colour.match_colour(frames, film.reference, 1.0)),
        "encode": milliseconds(lambda: engine.vae.encode(matched[:, -MOTION_FRAMES:], engine.vae_part)),
        "to uint8": milliseconds(lambda: colour.to_uint8(matched)),
        "copy": milliseconds(lambda: held.copy_(levels, non_blocking=True)),
    }


@torch.inference_mode()
def bench_upstream(path: Path, size: tuple[int, int], steps: int, chunks: int, folder: Path) -> dict[str, Any]:
    """Upstream's own generate, compiled as it ships, its attention by the FA2 kernels inside torch."""
    import types

    from parity_flashtalk import Upstream
    from PIL import Image

    device, bf16 = torch.device("cuda"), torch.bfloat16
    upstream = Upstream(path)
    geometry = Geometry(size[1], size[0])
    pipe = object.__new__(upstream.pipeline.FlashTalkPipeline)
    pipe.device, pipe.rank, pipe.cpu_offload, pipe.sp_size = device, 0, False, 1
    pipe.param_dtype, pipe.vae_stride, pipe.patch_size = bf16, (4, 8, 8), (1, 2, 2)
    pipe.num_timesteps, pipe.use_timestep_transform = 1000, True
    pipe.model = torch.compile(upstream.build_dit(DitConfig(), device, bf16))
    pipe.vae = upstream.build_vae(VaeConfig(), device, bf16)
    pipe.vae.encode, pipe.vae.decode = torch.compile(pipe.vae.encode), torch.compile(pipe.vae.decode)
    text, seen = torch.randn(24, 4096, device=device, dtype=bf16), torch.randn(1, 257, 1280, device=device)
    pipe.text_encoder = lambda prompts, at: [text]
    pipe.clip = types.SimpleNamespace(visual=lambda x: seen)
    started = time.monotonic()
    image = Image.open(folder / "portrait.png").convert("RGB")
    pipe.prepare_params("p", image, (size[1], size[0]), 33, 5, steps, seed=9999, shift=5, color_correction_strength=1.0)
    taps = torch.randn(1, 33, 5, 12, 768, device=device)
    marks = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(chunks + 2):
        sample = pipe.generate(taps)
        frames = (((sample + 1) / 2).permute(1, 2, 3, 0).clip(0, 1) * 255).contiguous().cpu()
        marks.append(time.monotonic())
        assert torch.isfinite(frames).all()
    intervals = [b - a for a, b in itertools.pairwise(marks[1:])]
    seconds = statistics.median(intervals)
    latents = torch.randn(geometry.latent_shape, device=device, dtype=bf16)
    arguments = {**pipe.arg_c, "audio": taps}
    tail = torch.randn(1, 3, 5, size[1], size[0], device=device, dtype=bf16)
    return {
        "preset": "upstream compiled",
        "upstream": upstream.commit,
        "size": f"{size[0]}x{size[1]}",
        "steps": steps,
        "chunk_ms": 1e3 * seconds,
        "spread_ms": [round(1e3 * t, 1) for t in sorted(intervals)],
        "frames_per_second": NEW_FRAMES / seconds,
        "first_frame_s": marks[0] - started,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "stages_ms": {
            "DiT step": milliseconds(lambda: pipe.model([latents], t=pipe.timesteps[1], **arguments), 3, 1),
            "decode": milliseconds(lambda: pipe.vae.decode(latents), 3, 1),
            "encode": milliseconds(lambda: pipe.vae.encode(tail), 3, 1),
        },
    }


def show(result: dict[str, Any]) -> None:
    """One result as a few lines."""
    print(
        f"## {result['preset']} {result['size']} {result['steps']} steps: chunk {result['chunk_ms']:.0f} ms"
        f" {result['spread_ms']}, {result['frames_per_second']:.2f} frames/s, peak {result['peak_gb']:.1f} GB,"
        f" first frame {result['first_frame_s']:.2f} s"
    )
    rows = ", ".join(f"{name} {ms:.2f}" for name, ms in result["stages_ms"].items())
    print(f"   ms: {rows}", flush=True)


def bench_groups(arguments: argparse.Namespace, pixels: tuple[int, int]) -> None:
    """`--world-size`: this process only starts hosts and never touches a card."""
    from bench_ranks import as_json, bench_ranks, show

    from farm.cards import list_cards

    kind = arguments.device or next((kind for kind in ("cuda", "npu") if list_cards(kind)), "cpu")
    cards = arguments.cards.split(",") if arguments.cards else [str(n) for n in range(max(arguments.world_size))]
    load, job = PRESETS[(arguments.preset or ["quality"])[0]]
    job = {**job, "steps": (arguments.steps or [job["steps"]])[0]}
    found = []
    for size in arguments.world_size:
        found += bench_ranks(size, kind=kind, cards=cards, pixels=pixels, load=load, job=job, chunks=arguments.chunks)
        show(found[-2:])
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(found), indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", choices=[*PRESETS], help="may be given several times")
    parser.add_argument("--steps", type=int, action="append", help="steps instead of the preset's; several times")
    parser.add_argument("--size", default="448x768", help="width x height in pixels")
    parser.add_argument("--chunks", type=int, default=6, help="counted chunks, at least five for a figure to report")
    parser.add_argument("--upstream", type=Path, help="a checkout of Soul-AILab/SoulX-FlashTalk to measure too")
    parser.add_argument("--memory-limit-gb", type=float, default=0.0, help="cap of our process's device memory")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--world-size", type=int, action="append", help="ranks of a group, 1, 2, 4 or 8; several times")
    parser.add_argument("--cards", default="", help="of --world-size: 2,3 for example; otherwise from the first on")
    parser.add_argument("--device", choices=["cuda", "npu", "cpu"], help="of --world-size; otherwise what is there")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.lower().split("x"))
    if arguments.world_size:
        bench_groups(arguments, (width, height))
        return
    card = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    print(card, flush=True)
    results: list[dict[str, Any]] = []
    top = ceilings() if not arguments.memory_limit_gb else {}
    print("ceilings, TFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in top.items()), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from PIL import Image

        draw = np.random.Generator(np.random.Philox(key=3))
        small = draw.integers(0, 255, (24, 14, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(folder / "portrait.png")
        loaded: tuple[dict[str, Any], Any] | None = None
        for preset in arguments.preset or ["quality"]:
            load, job = PRESETS[preset]
            if loaded is None or loaded[0] != load:
                loaded = None
                gc.collect()
                torch.cuda.empty_cache()
                settings = {"weights": "random", "cache": str(folder), "memory_limit_gb": arguments.memory_limit_gb}
                engine = make_engine({**settings, **load})
                report = engine.load()
                print(
                    f"# {preset} loaded in {report.seconds:.1f} s, {report.memory_bytes / 1e9:.1f} GB: {report.notes}"
                )
                loaded = (load, engine)
            for steps in arguments.steps or [job["steps"]]:
                chosen = {**job, "steps": steps}
                results.append(bench_ours(loaded[1], preset, chosen, (width, height), arguments.chunks, folder))
                show(results[-1])
        loaded = engine = None
        gc.collect()
        torch.cuda.empty_cache()
        if arguments.upstream:
            results.append(bench_upstream(arguments.upstream, (width, height), 4, arguments.chunks, folder))
            show(results[-1])
            base = results[-1]["frames_per_second"]
            for result in results[:-1]:
                ratio = result["frames_per_second"] / base
                print(f"{result['preset']} {result['steps']} steps / upstream compiled 4 steps: {ratio:.2f}x")
    if arguments.json:
        arguments.json.write_text(json.dumps({"card": card, "ceilings": top, "results": results}, indent=1))


if __name__ == "__main__":
    main()
