#!/usr/bin/env python3
"""Compare our SoulX-FlashTalk with upstream's own modules on the same random weights, stage by stage.

    python scripts/parity_flashtalk.py --upstream PATH            tiny configuration, CPU, float32
    python scripts/parity_flashtalk.py --upstream PATH --gpu      true width on a CUDA device: bf16, fp8 and int8

PATH is a checkout of Soul-AILab/SoulX-FlashTalk; nothing of it is copied or written to.  Packages that upstream
imports and this comparison does not need are replaced by empty stand-ins.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

from farm.errors import FarmError  # noqa: E402
from workers.engines.flashtalk import colour, noise, sampler  # noqa: E402
from workers.engines.flashtalk.attention import attention, candidates  # noqa: E402
from workers.engines.flashtalk.dit import Dit  # noqa: E402
from workers.engines.flashtalk.geometry import MOTION_FRAMES, TINY_DIT, TINY_VAE, DitConfig, Geometry, VaeConfig  # noqa: E402
from workers.engines.flashtalk.inventory import dit_tensors, vae_tensors  # noqa: E402
from workers.engines.flashtalk.sources import RandomSource  # noqa: E402
from workers.engines.flashtalk.vae import Vae  # noqa: E402


class Upstream:
    """Upstream's modules, imported with stand-ins for what a single process does not use."""

    def __init__(self, path: Path) -> None:
        if not (path / "flash_talk").is_dir():
            raise SystemExit(f"{path} is no checkout of SoulX-FlashTalk: there is no folder flash_talk in it")
        self.commit = read_commit(path)
        import diffusers.models.modeling_utils  # noqa: F401  (must look for its packages before the stand-ins exist)
        from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model  # noqa: F401

        stand_in_for_missing()
        if not torch.cuda.is_available():
            torch.cuda.current_device = lambda: 0  # type: ignore[assignment]
            torch.cuda.synchronize = lambda *a: None  # type: ignore[assignment]
        sys.path.insert(0, str(path))
        from flash_talk.infinite_talk.modules import multitalk_model
        from flash_talk.infinite_talk.utils import multitalk_utils
        from flash_talk.src.pipeline import flash_talk_pipeline
        from flash_talk.wan.modules import vae

        multitalk_model.flash_attention = by_sdpa
        self.model = multitalk_model
        self.utils = multitalk_utils
        self.pipeline = flash_talk_pipeline
        self.vae = vae
        flash_talk_pipeline.print = lambda *a, **k: None  # type: ignore[attr-defined]

    def build_dit(self, config: DitConfig, device: torch.device, dtype: torch.dtype) -> Any:
        """Upstream's transformer with the weights that RandomSource makes."""
        with torch.device("meta"):
            model = self.model.WanModel(
                text_len=config.text_len,
                in_dim=config.in_dim,
                dim=config.dim,
                ffn_dim=config.ffn_dim,
                freq_dim=config.freq_dim,
                out_dim=config.out_dim,
                num_heads=config.num_heads,
                num_layers=config.num_layers,
                intermediate_dim=config.intermediate_dim,
                output_dim=config.output_dim,
                context_tokens=config.context_tokens,
                weight_init=False,
            )
        source = RandomSource(dit_tensors(config), device)
        fill(model, source, dtype)
        model.init_freqs()
        return model.eval().requires_grad_(False)

    def build_vae(self, config: Any, device: torch.device, dtype: torch.dtype) -> Any:
        """Upstream's autoencoder wrapper around its own model with RandomSource's weights."""
        with torch.device("meta"):
            model = self.vae.WanVAE_(
                dim=config.dim,
                z_dim=config.z_dim,
                dim_mult=list(config.multipliers),
                num_res_blocks=config.res_blocks,
                attn_scales=[],
                temperal_downsample=list(config.time_down),
                dropout=0.0,
            )
        fill(model, RandomSource(vae_tensors(config), device), dtype)
        wrapper = object.__new__(self.vae.WanVAE)
        from workers.engines.flashtalk.vae import MEAN, STD

        wrapper.dtype, wrapper.device, wrapper.parallel, wrapper.use_tiling = dtype, device, False, False
        wrapper.mean = torch.tensor(MEAN, dtype=dtype, device=device)
        wrapper.inv_std = 1.0 / torch.tensor(STD, dtype=dtype, device=device)
        wrapper.scale = [wrapper.mean, wrapper.inv_std]
        wrapper.model = model.eval().requires_grad_(False)
        return wrapper


def read_commit(path: Path) -> str:
    """The checkout's commit; unknown where the folder is no repository of its own."""
    asked = ["git", "-C", str(path), "rev-parse", "--show-toplevel", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    own = done.returncode == 0 and len(lines) == 2 and Path(lines[0]) == path.resolve()
    return lines[1][:12] if own else "unknown"


def fill(model: Any, source: RandomSource, dtype: torch.dtype) -> None:
    """Replace each parameter of a meta model, one at a time."""
    for name, _ in list(model.named_parameters()):
        holder = model.get_submodule(name.rpartition(".")[0]) if "." in name else model
        value = torch.nn.Parameter(source.take(name, dtype), requires_grad=False)
        holder._parameters[name.rpartition(".")[2]] = value


def by_sdpa(q: Any, k: Any, v: Any, k_lens: Any = None, window_size: Any = None, **_: Any) -> Any:
    """Upstream's attention seam on torch: q, k, v [B, L, heads, head_dim], every key counts."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # The kernels of FlashAttention 2, which upstream requires, are inside torch under this name.
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends, set_priority=True):
        out = F.scaled_dot_product_attention(*(x.to(v.dtype).transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2)


def stand_in_for_missing() -> None:
    """Modules that upstream imports by name only, and torchvision's crop."""

    def module(name: str, **members: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__spec__ = importlib.machinery.ModuleSpec(name, None)
        made.__path__ = []  # type: ignore[attr-defined]
        for key, value in members.items():
            setattr(made, key, value)
        sys.modules[name] = made
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, made)
        return made

    def nothing(*_: Any, **__: Any) -> None:
        return None

    module("xfuser")
    module("xfuser.core")
    groups = ("get_sequence_parallel_rank", "get_sequence_parallel_world_size", "get_sp_group")
    module("xfuser.core.distributed", **dict.fromkeys(groups, nothing))
    module("xfuser.core.long_ctx_attention", xFuserLongContextAttention=object)
    module("xformers")

    def efficient(q: Any, k: Any, v: Any, attn_bias: Any = None, op: Any = None) -> Any:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    module("xformers.ops", memory_efficient_attention=efficient)
    module("xformers.ops.fmha")
    module("xformers.ops.fmha.attn_bias", BlockDiagonalMask=object)
    module("optimum")
    module("optimum.quanto", **dict.fromkeys(("quantize", "freeze", "qint8", "requantize"), nothing))

    def center_crop(x: Any, size: tuple[int, int]) -> Any:
        top, left = round((x.shape[-2] - size[0]) / 2), round((x.shape[-1] - size[1]) / 2)
        return x[..., top : top + size[0], left : left + size[1]]

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        module("torchvision", __version__="0")
        module("torchvision.utils")
        names = ("Compose", "Resize", "ToTensor", "Normalize", "InterpolationMode")
        module("torchvision.transforms", **dict.fromkeys(names, types.SimpleNamespace(BICUBIC=3)))
        module("torchvision.transforms.functional", center_crop=center_crop)
    for name in ("imageio", "skimage", "pyloudnorm", "easydict", "loguru", "ftfy", "tqdm", "regex"):
        try:
            __import__(name)
        except ImportError:
            module(name, color=None, EasyDict=dict, logger=types.SimpleNamespace(info=nothing), tqdm=nothing)


class Table:
    """Rows of maximal and relative error, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, stage: str, ours: torch.Tensor, theirs: torch.Tensor, note: str = "") -> float:
        a, b = ours.double().cpu(), theirs.double().cpu()
        if a.shape != b.shape:
            raise SystemExit(f"{stage}: ours is {tuple(a.shape)}, upstream's is {tuple(b.shape)}")
        top = (a - b).abs().max().item()
        relative = ((a - b).norm() / b.norm()).item()
        self.rows.append({"stage": stage, "max": top, "relative": relative, "note": note})
        print(f"| {stage:44} | {top:10.2e} | {relative:10.2e} | {note}", flush=True)
        return relative


def statistics(x: torch.Tensor) -> dict[str, Any]:
    """What the suite's golden file keeps of a tensor."""
    x = x.double().cpu()
    flat = x.flatten()
    picks = torch.linspace(0, flat.numel() - 1, 7).long()
    return {
        "shape": list(x.shape),
        "mean": flat.mean().item(),
        "std": flat.std(unbiased=False).item(),
        "l2": flat.norm().item(),
        "samples": flat[picks].tolist(),
    }


def compare_tiny(upstream: Upstream, golden: Path | None) -> bool:
    """The tiny configuration in float32 on the CPU: every stage, then three chunks with upstream's own pipeline."""
    torch.manual_seed(2)
    device, f32 = torch.device("cpu"), torch.float32
    geometry = Geometry(64, 48)
    table, kept = Table(), {}
    theirs = upstream.build_dit(TINY_DIT, device, f32)
    their_vae = upstream.build_vae(TINY_VAE, device, f32)
    vae = Vae(TINY_VAE, RandomSource(vae_tensors(TINY_VAE), device), device, f32, upstream_rounding=False)
    source = RandomSource(dit_tensors(TINY_DIT), device)
    attend = attention(candidates(device)[0])
    draw = np.random.Generator(np.random.Philox(key=5))

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(draw.standard_normal(shape, dtype=np.float32))

    picture = normal(3, 64, 48).clamp(-1, 1)
    frames = torch.cat([picture[:, None], torch.zeros(3, 32, 64, 48)], dim=1)
    film_text, seen = normal(7, 4096), normal(257, 1280)
    taps = normal(33, 5, 12, 768)
    latents, condition = normal(16, 9, 8, 6), normal(20, 9, 8, 6)

    print(f"upstream {upstream.commit}, torch {torch.__version__}, tiny configuration, CPU float32")
    print(f"| {'stage':44} | {'max':10} | {'relative':10} |")
    for fold in (False, True):
        dit = Dit(TINY_DIT, source, device, f32, "plain", fold_speech=fold, keep_context_weights=True)
        arguments = {"context": [film_text], "clip_fea": seen[None], "seq_len": geometry.tokens, "y": condition[None]}
        want = theirs([latents], t=torch.tensor([1000 / 1.2]), audio=taps[None], **arguments)[0]
        film = dit.film_context(film_text, seen)
        got = dit.velocity(latents, condition, dit.modulation(1 / 1.2), film, dit.hear(taps), geometry, attend)
        table.add("DiT output" + (", speech folded" if fold else ""), got, want)
    kept["dit"] = statistics(got)
    trimmed = dit.velocity(latents, condition, dit.modulation(1 / 1.2), film, dit.hear(taps), geometry, attend, 2)
    table.add("DiT output, last block trimmed", trimmed[:, 2:], want[:, 2:])
    tokens = dit.speech_tokens(taps)
    their_taps = taps[None]
    caught: list[torch.Tensor] = []
    hook = theirs.audio_proj.register_forward_hook(lambda m, i, o: caught.append(o))
    theirs([latents], t=torch.tensor([1000.0]), audio=their_taps, **arguments)
    hook.remove()
    table.add("speech tokens", tokens, caught[0][0])
    kept["speech"] = statistics(tokens)

    z = (
        their_vae.encode(frames[None])[0]
        if their_vae.encode(frames[None]).dim() == 5
        else their_vae.encode(frames[None])
    )
    for part in (0, 1, 3):
        table.add(f"VAE encode 33 frames, part {part or 'all'}", vae.encode(frames, part), z)
    video = their_vae.decode(latents)[0]
    for part in (0, 1, 2, 4):
        table.add(f"VAE decode 9 latents, part {part or 'all'}", vae.decode(latents, part), video)
    kept["encode"], kept["decode"] = statistics(vae.encode(frames)), statistics(vae.decode(latents))

    their_colour = upstream.utils.match_and_blend_colors_torch(video[None], picture[None, :, None], 1.0)[0]
    ours = colour.match_colour(vae.decode(latents), colour.measure_colour(picture), 1.0)
    table.add("colour", ours, their_colour)
    kept["colour"] = statistics(ours)

    compare_encoders(upstream, table)
    kept["chunks"] = []
    chain(upstream, theirs, their_vae, dit, vae, geometry, film_text, seen, picture, attend, table, kept, normal)
    limit = 1e-4
    bad = [row for row in table.rows if row["relative"] > limit and "uint8" not in row["stage"]]
    frames_off = [row for row in table.rows if "uint8" in row["stage"] and row["max"] > 1]
    verdict = (
        "every stage within 1e-4, frames within 1/255" if not bad and not frames_off else f"FAILED: {bad + frames_off}"
    )
    print(verdict)
    if golden:
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(json.dumps({"upstream": upstream.commit, **kept}, indent=1), encoding="utf-8")
        print(f"golden statistics written to {golden}")
    return not bad and not frames_off


def compare_encoders(upstream: Upstream, table: Table) -> None:
    """Upstream's text, picture and speech encoders at tiny size beside transformers' with our key maps."""
    from flash_talk.wan.modules import clip, t5

    from workers.engines.flashtalk.conditioners import build_image_encoder, build_text_encoder

    device, f32 = torch.device("cpu"), torch.float32
    torch.manual_seed(3)
    text = t5.T5Encoder(100, 64, 64, 96, 4, 2, 32, shared_pos=False, dropout=0.0).eval()
    ids = torch.randint(2, 100, (1, 11))
    ours = build_text_encoder(text.state_dict(), device, f32)
    want = text(ids, torch.ones_like(ids))
    table.add("text encoder", ours(input_ids=ids).last_hidden_state, want)
    clip.flash_attention = by_sdpa
    picture = clip.VisionTransformer(28, 14, 160, 4, 32, 2, 3, "token", True, False, "gelu").eval()
    tensors = {f"visual.{name}": value for name, value in picture.state_dict().items()}
    pixels = torch.randn(1, 3, 28, 28)
    seen = build_image_encoder(tensors, device, f32)(pixel_values=pixels, output_hidden_states=True)
    table.add("picture encoder", seen.hidden_states[-2], picture(pixels, use_31_block=True))
    compare_speech(table)


def compare_speech(table: Table) -> None:
    """Upstream's stretched wav2vec beside ours, on two transformer layers of base width."""
    import tempfile

    from flash_talk.infinite_talk.audio_analysis.wav2vec2 import Wav2Vec2Model as Stretched
    from transformers import Wav2Vec2Config

    from workers.engines.flashtalk.speech import Wav2Vec2Speech

    torch.manual_seed(4)
    theirs = Stretched(Wav2Vec2Config(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=96))
    theirs = theirs.eval()
    samples = torch.randn(128_000).mul(0.1).numpy()
    with tempfile.TemporaryDirectory() as name:
        theirs.save_pretrained(name)
        (Path(name) / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
        ours = Wav2Vec2Speech(Path(name), torch.device("cpu"))(samples)
    values = torch.from_numpy((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))[None]
    found = theirs(values, seq_len=200, output_hidden_states=True)
    if found.hidden_states is None:
        print("| speech encoder: left out, this transformers returns no hidden states to upstream")
        return
    want = torch.stack(found.hidden_states[1:], dim=1)[0].transpose(0, 1)
    table.add("speech encoder", ours, want)


def chain(
    upstream: Upstream,
    theirs: Any,
    their_vae: Any,
    dit: Dit,
    vae: Vae,
    geometry: Geometry,
    text: torch.Tensor,
    seen: torch.Tensor,
    picture: torch.Tensor,
    attend: Any,
    table: Table,
    kept: dict[str, Any],
    normal: Any,
) -> None:
    """Three chunks with carry: upstream's own prepare_params and generate beside ours with upstream's noise."""
    from PIL import Image

    device = picture.device
    pipe = object.__new__(upstream.pipeline.FlashTalkPipeline)
    pipe.device, pipe.rank, pipe.cpu_offload, pipe.sp_size = device, 0, False, 1
    pipe.param_dtype, pipe.vae_stride, pipe.patch_size = torch.float32, (4, 8, 8), (1, 2, 2)
    pipe.model, pipe.vae, pipe.num_timesteps, pipe.use_timestep_transform = theirs, their_vae, 1000, True
    pipe.text_encoder = lambda prompts, at: [text]
    pipe.clip = types.SimpleNamespace(visual=lambda x: seen[None])
    levels = ((picture + 1) / 2 * 255).round().to(torch.uint8)
    image = Image.fromarray(levels.permute(1, 2, 0).numpy())
    pipe.prepare_params("p", image, (64, 48), 33, 5, 4, seed=9999, shift=5, color_correction_strength=1.0)

    given = (levels.float() / 255 - 0.5) * 2
    frames = torch.cat([given[:, None], torch.zeros(3, 32, geometry.height, geometry.width)], dim=1)
    image_latents = vae.encode(frames)
    mask = torch.zeros(4, *image_latents.shape[1:])
    mask[:, 0] = 1
    condition = torch.cat([mask, image_latents])
    table.add("mask and portrait latents", condition, pipe.arg_c["y"][0])
    motion = image_latents[:, :1]
    table.add("first motion latent", motion, pipe.latent_motion_frames)
    draws = noise.DeviceNoise(9999, device, torch.float32)
    reference = colour.measure_colour(given)
    film = dit.film_context(text, seen)
    marks = sampler.sigmas(4)
    for number in range(3):
        taps = normal(33, 5, 12, 768)
        want = pipe.generate(taps[None])
        speech = dit.hear(taps)
        x = sampler.sample(
            lambda x, step, speech=speech, known=motion.shape[1]: dit.velocity(
                x, condition, dit.modulation(marks[step]), film, speech, geometry, attend, known
            ),
            marks,
            motion,
            draws,
            number,
            geometry.latent_shape,
        )
        matched = colour.match_colour(vae.decode(x), reference, 1.0)
        motion = vae.encode(matched[:, -MOTION_FRAMES:])
        got = matched[:, MOTION_FRAMES:]
        table.add(f"chunk {number} frames", got, want)
        want_levels = (((want + 1) / 2).clip(0, 1) * 255).round()
        table.add(f"chunk {number} frames as uint8", colour.to_uint8(got).permute(3, 0, 1, 2).float(), want_levels)
        table.add(f"chunk {number} carried motion latents", motion, pipe.latent_motion_frames)
        kept["chunks"].append({"frames": statistics(got), "motion": statistics(motion)})


def compare_on_gpu(upstream: Upstream, layers: int) -> bool:
    """True width, few layers: upstream and ours in bf16, ours in fp8 and int8, all against upstream in float32."""
    device, bf16, f32 = torch.device("cuda"), torch.bfloat16, torch.float32
    config, geometry = DitConfig(num_layers=layers), Geometry(768, 448)
    draws = torch.Generator(device).manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, generator=draws)

    taps, latents, condition = normal(33, 5, 12, 768), normal(*geometry.latent_shape), normal(20, 9, 96, 56)
    text, seen = normal(24, 4096), normal(257, 1280)
    print(f"upstream {upstream.commit}, {torch.cuda.get_device_name()}, torch {torch.__version__}, {layers} blocks")
    print(f"| {'stage, against upstream in float32':44} | {'max':10} | {'relative':10} |")
    table = Table()

    def theirs(dtype: torch.dtype) -> torch.Tensor:
        model = upstream.build_dit(config, device, dtype)
        out = model(
            [latents.to(dtype)],
            t=torch.tensor([1000 / 1.2], device=device),
            context=[text.to(dtype)],
            clip_fea=seen[None].to(dtype),
            seq_len=geometry.tokens,
            y=condition[None].to(dtype),
            audio=taps[None],
        )
        return out[0]

    exact = theirs(f32)
    rough = table.add("DiT, upstream bf16", theirs(bf16), exact)
    source = RandomSource(dit_tensors(config), device)
    rows: list[tuple[str, Any, Any, str, bool]] = [
        ("ours float32", f32, "plain", "efficient", True),
        ("ours bf16", bf16, "plain", candidates(device)[0], True),
        ("ours bf16, speech not folded", bf16, "plain", candidates(device)[0], False),
        ("ours fp8", bf16, "fp8", candidates(device)[0], True),
        ("ours int8", bf16, "int8", candidates(device)[0], False),
        ("ours fp8 with fp8 attention", bf16, "fp8", "fp8", True),
        ("ours bf16 with fp8 attention", bf16, "plain", "fp8", True),
    ]
    found: dict[str, float] = {}
    for name, dtype, form, how, fold in rows:
        torch.cuda.empty_cache()
        try:
            dit = Dit(config, source, device, dtype, form, fold_speech=fold, keep_context_weights=True)
            film = dit.film_context(text, seen)
            got = dit.velocity(
                latents, condition, dit.modulation(1 / 1.2), film, dit.hear(taps), geometry, attention(how)
            )
            found[name] = table.add(f"DiT, {name}", got, exact)
        except FarmError as error:
            print(f"| DiT, {name}: left out, {error}")
    small = latents[:, :, :32, :24].contiguous()
    picture = normal(3, 5, 256, 192).clamp(-1, 1)
    vaes = RandomSource(vae_tensors(VaeConfig()), device)
    true_vae = upstream.build_vae(VaeConfig(), device, f32)
    want, want_encoded = true_vae.decode(small)[0], true_vae.encode(picture[None])
    their_vae = upstream.build_vae(VaeConfig(), device, bf16)
    their_decoded = their_vae.decode(small.to(bf16))[0]
    their_decode = table.add("VAE decode, upstream bf16", their_decoded, want)
    their_encode = table.add("VAE encode, upstream bf16", their_vae.encode(picture[None].to(bf16)), want_encoded)
    ours = Vae(VaeConfig(), vaes, device, bf16, upstream_rounding=False)
    decode = table.add("VAE decode, ours bf16", ours.decode(small), want)
    encode = table.add("VAE encode, ours bf16", ours.encode(picture), want_encoded)
    table.add("VAE decode, ours in parts of 1", ours.decode(small, 1), want)
    reference = colour.measure_colour(picture[:, 0])
    matched = colour.match_colour(want, reference, 1.0)
    portrait = picture[None, :, :1].to(bf16)
    rounded = upstream.utils.match_and_blend_colors_torch(want[None].to(bf16), portrait, 1.0)
    table.add("colour, upstream bf16", rounded[0].float(), matched)
    good = found["ours bf16"] <= 1.2 * rough and decode <= 1.2 * their_decode and encode <= 1.2 * their_encode
    print(
        "ours in bf16 is within 1.2 times upstream's own rounding" if good else "FAILED: ours rounds more than upstream"
    )
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of Soul-AILab/SoulX-FlashTalk")
    parser.add_argument("--golden", type=Path, help="write golden statistics of the tiny run to this file")
    parser.add_argument("--gpu", action="store_true", help="compare at true width on a CUDA device")
    parser.add_argument("--layers", type=int, default=4, help="blocks of the comparison on a GPU")
    arguments = parser.parse_args()
    with torch.inference_mode():
        upstream = Upstream(arguments.upstream)
        good = compare_on_gpu(upstream, arguments.layers) if arguments.gpu else compare_tiny(upstream, arguments.golden)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
