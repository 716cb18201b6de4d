#!/usr/bin/env python3
"""Upstream's own loop over one clip in a warm process: what scripts/bench_checkouts.py compares the engines with.

    python scripts/upstream_loops.py flashhead-pro --repo PATH --weights FOLDER --speech FOLDER --portrait F --sound WAV

The process loads, renders a few chunks so that everything is compiled, says so in a line of JSON, and waits for a line
on its standard input.  Then it renders the clip and says how long each chunk and the export took.

FlashHead runs by `generate_video.generate` itself; only `get_pipeline` is replaced, by a function that returns the
pipeline that is loaded already.  LiveAct's script is one function that loads and renders, needs torchaudio's sox
effects and flash-attn, and would draw 19 billion numbers before it loads, so its loop is written out here with the
checkout's own functions in the script's order, text and picture features drawn.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
import traceback
import types
import wave
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
MARK = "@@ "  # before a line of JSON, among what upstream prints


def say(**words: Any) -> None:
    print(MARK + json.dumps(words), flush=True)


def wait_for_word() -> None:
    """Until the bench says that nobody else is using the card.  A bench that went away ends this process."""
    if not sys.stdin.readline():
        sys.exit("the bench went away")


def memory() -> dict[str, float]:
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
    }


# FlashHead.


def run_flashhead(asked: argparse.Namespace) -> None:
    import torch

    began = time.monotonic()
    mend_speech()
    os.chdir(asked.repo)
    sys.path.insert(0, str(asked.repo))
    soften_for_cpu(asked)
    import generate_video
    from flash_head import inference
    from loguru import logger

    variant = asked.model.partition("-")[2]
    pipeline = inference.get_pipeline(1, str(asked.weights), variant, str(asked.speech))
    built = time.monotonic() - began
    generate_video.get_pipeline = lambda **_: pipeline
    spent: dict[str, float] = {}
    for name in ("get_base_data", "save_video"):
        setattr(generate_video, name, timed(getattr(generate_video, name), name, spent))
    marks: list[float] = []
    logger.add(lambda line: marks.append(time.monotonic()) if "Generate video chunk" in line else None)

    def render(sound: Path, target: Path) -> dict[str, Any]:
        marks.clear()
        spent.clear()
        arguments = types.SimpleNamespace(
            ckpt_dir=str(asked.weights),
            wav2vec_dir=str(asked.speech),
            model_type=variant,
            save_file=str(target),
            base_seed=42,
            cond_image=str(asked.portrait),
            cond_image_dir=None,
            audio_path=str(sound),
            audio_encode_mode="stream",
            use_face_crop=False,
        )
        started = time.monotonic()
        generate_video.generate(arguments)
        total = time.monotonic() - started
        return {
            "total_seconds": total,
            "portrait_seconds": spent["get_base_data"],
            "export_seconds": spent["save_video"],
            "first_chunk_seconds": marks[0] - started,
            "chunk_seconds": [b - a for a, b in pairwise(marks)],
            "chunks": len(marks),
            "chunk_frames": 24 if variant == "lite" else 28,
            "film_bytes": target.stat().st_size if target.is_file() else 0,
        }

    render(asked.warm_sound, asked.out.with_name(f"warm-{asked.model}.mp4"))
    say(ready=time.monotonic() - began, built=built, compiled=not asked.tiny, torch=torch.__version__)
    wait_for_word()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    say(**render(asked.sound, asked.out), **memory())


def mend_speech() -> None:
    """The checkouts pin a transformers whose speech encoder answers otherwise than the newest; see the module."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from workers.engines.upstream.speech import give_hidden_states

    say(mended_speech=give_hidden_states())


def soften_for_cpu(asked: argparse.Namespace) -> None:
    """On a machine without a card: nothing compiled, small frames, no device to wait for."""
    if not asked.tiny:
        return
    import torch

    torch.cuda.synchronize = lambda *_: None
    from flash_head import inference
    from flash_head.src.pipeline import flash_head_pipeline

    flash_head_pipeline.COMPILE_MODEL = flash_head_pipeline.COMPILE_VAE = False
    inference.get_device = lambda *_: "cpu"
    inference.FlashHeadPipeline = functools.partial(inference.FlashHeadPipeline, param_dtype=torch.float32)
    inference.infer_params["height"] = inference.infer_params["width"] = asked.side


def timed(work: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(work)
    def run(*given: Any, **named: Any) -> Any:
        began = time.monotonic()
        try:
            return work(*given, **named)
        finally:
            spent[name] = time.monotonic() - began

    return run


def run_script(asked: argparse.Namespace) -> None:
    """The whole script as a user starts it, with what it needs to run here at all."""
    import runpy

    mend_speech()
    os.chdir(asked.repo)
    sys.path.insert(0, str(asked.repo))
    soften_for_cpu(asked)
    sys.argv = ["generate_video.py", *asked.rest]
    runpy.run_path("generate_video.py", run_name="__main__")


# LiveAct.


def name_encoder() -> None:
    """imageio looks for an encoder by encoding pictures of lavfi's, which a small build of ffmpeg lacks."""
    import importlib

    importlib.import_module("imageio_ffmpeg._io").get_first_available_h264_encoder = lambda: "libx264"


def run_liveact(asked: argparse.Namespace) -> None:
    import numpy as np
    import torch

    began = time.monotonic()
    kind = "cpu" if asked.tiny else "cuda"
    if kind == "cpu":
        torch.cuda.synchronize = lambda *_: None
    mend_speech()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sys.path.insert(0, str(asked.repo))
    os.chdir(asked.repo)
    import util_liveact as tools
    from diffusers.utils import export_to_video
    from lightx2v.models.video_encoders.hf.wan.vae import WanVAE
    from model_liveact.model_memory import WanModel
    from PIL import Image
    from src.audio_analysis.wav2vec2 import Wav2Vec2Model
    from transformers import Wav2Vec2FeatureExtractor

    name_encoder()
    width, height = asked.width, asked.height
    bf16 = torch.bfloat16
    model = WanModel.from_pretrained(str(asked.weights), torch_dtype=bf16, low_cpu_mem_usage=True).to(dtype=bf16)
    model.requires_grad_(False).eval()
    model.init_freqs()
    model.freqs = model.freqs.to(kind)
    model.to(kind)
    layers, heads = model.config.num_layers, model.config.num_heads
    vae = WanVAE(
        vae_path=str(asked.weights / "Wan2.1_VAE.pth"), dtype=bf16, device=kind, use_lightvae=False, parallel=False
    )
    encoder = Wav2Vec2Model.from_pretrained(str(asked.speech), local_files_only=True)
    encoder = encoder.to(kind, dtype=bf16).eval().requires_grad_(False)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(str(asked.speech), local_files_only=True)
    tokens = (height // 16) * (width // 16)
    shape = (1, 14 * tokens, heads, model.config.dim // heads)

    def memory_of(_: int) -> dict[str, Any]:
        made: dict[str, Any] = {name: torch.zeros(shape, dtype=bf16, device=kind) for name in ("k", "v")}
        flags = {"mean_memory": False, "offload_cache": False, "fp8_kv_cache": False}
        return {**made, "k_scale": None, "v_scale": None, **flags}

    kept = [{layer: memory_of(layer) for layer in range(layers)} for _ in range(3)]
    built = time.monotonic() - began
    called = torch.compile(model) if asked.compile else model
    if asked.compile:
        vae.encode = torch.compile(vae.encode)
    sigmas = [torch.tensor([level]).to(kind, dtype=torch.float32) for level in (1000.0, 937.5, 833.33333333, 0.0)]
    context = [torch.randn(24, 4096).to(kind, bf16)]
    seen = torch.randn(1, 257, 1280).to(kind, bf16)
    fps = 25

    def render(sound: Path, target: Path) -> dict[str, Any]:
        started, marks = time.monotonic(), []
        picture = tools.center_rescale_crop_keep_ratio(Image.open(asked.portrait).convert("RGB"), (height, width))
        planes = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
        image = planes[None, :, None].to(kind, bf16)
        with wave.open(str(sound), "rb") as file:
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        heard = tools.get_embedding(torch.from_numpy(samples) * 3.0, extractor, encoder, device=kind)
        grey = torch.zeros(1, 3, 52, height, width).to(kind, bf16)
        latents = vae.encode(torch.concat([image, grey], dim=2)).to(kind).unsqueeze(0)
        condition = torch.concat([tools.get_msk(53, image, (4, 8, 8), kind), latents], dim=1)
        masks = torch.ones(3, height // 8, width // 8).to(kind, bf16)
        torch.manual_seed(42)
        blocks = int(len(samples) / rate / (32 / fps)) + 1
        frames, before = [], None
        for block in range(blocks):
            first = max(0, block - 1) * 32
            audio = tools.get_audio_emb(heard, first, first + 53, kind)
            start, count = (0, 6) if block == 0 else (6, 8)
            with torch.no_grad(), torch.autocast(kind, dtype=bf16):
                latent = torch.randn(16, count, height // 8, width // 8, dtype=bf16, device=kind)
                for level in range(3):
                    flow = called(
                        [latent],
                        t=sigmas[level],
                        kv_cache=kept[level],
                        skip_audio=level == 0,
                        context=context,
                        clip_fea=seen,
                        ref_target_masks=masks,
                        audio=audio,
                        y=condition[:, :, start : start + count],
                        start_idx=start * tokens,
                        end_idx=(start + count) * tokens,
                        update_cache=block > 1,
                    )[0]
                    clean = latent + (-flow) * (sigmas[level][0] / 1000 - 0.0)
                    following = sigmas[level + 1][0] / 1000
                    latent = (1 - following) * clean + torch.randn_like(clean) * following
                if before is None:
                    video = vae.decode(latent.squeeze(0))
                else:
                    video = vae.decode(torch.concat([before[:, -3:], latent], dim=1).squeeze(0))[:, :, 9:]
                before = latent
                frames.append(video.cpu())
            marks.append(time.monotonic())
        torch.cuda.synchronize()
        exporting = time.monotonic()
        film = (torch.concat(frames, dim=2).permute((0, 2, 3, 4, 1))[0] + 1.0) / 2
        silent = str(target.with_suffix(".silent.mp4"))
        export_to_video(film.float().cpu().numpy(), silent, fps=fps)
        tools.add_audio_to_video(silent, str(sound), str(target))
        done = time.monotonic()
        return {
            "total_seconds": done - started,
            "export_seconds": done - exporting,
            "first_chunk_seconds": marks[0] - started,
            "chunk_seconds": [b - a for a, b in pairwise(marks)],
            "chunks": blocks,
            "chunk_frames": 32,
            "film_bytes": target.stat().st_size if target.is_file() else 0,
        }

    render(asked.warm_sound, asked.out.with_name("warm-liveact.mp4"))
    say(ready=time.monotonic() - began, built=built, compiled=asked.compile, torch=torch.__version__)
    wait_for_word()
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    say(**render(asked.sound, asked.out), **memory())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("flashhead-pro", "flashhead-lite", "liveact", "script"))
    parser.add_argument("--repo", type=Path, required=True, help="the checkout")
    parser.add_argument("--weights", type=Path, help="the checkpoint's folder")
    parser.add_argument("--speech", type=Path, help="the speech encoder's folder")
    parser.add_argument("--portrait", type=Path)
    parser.add_argument("--sound", type=Path, help="the clip, 16 kHz mono WAV")
    parser.add_argument("--warm-sound", type=Path, help="a few chunks of sound")
    parser.add_argument("--out", type=Path, help="the film")
    parser.add_argument("--width", type=int, default=416, help="of LiveAct's film")
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--compile", action="store_true", help="compile LiveAct's transformer as its script does")
    parser.add_argument("--tiny", action="store_true", help="on the CPU with a tiny model")
    parser.add_argument("--side", type=int, default=64, help="of FlashHead's frames with --tiny")
    asked, asked.rest = parser.parse_known_args()  # the rest is generate_video.py's, with `script`
    try:
        {"script": run_script, "liveact": run_liveact}.get(asked.model, run_flashhead)(asked)
    except Exception as error:
        traceback.print_exc()
        say(failed=f"{type(error).__name__}: {error}"[:2000])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
