#!/usr/bin/env python3
"""Run an engine of workers/engines/upstream against a real checkout, on the CPU with tiny random weights.

    python scripts/check_upstream.py flashhead --repo PATH --python PATH
    python scripts/check_upstream.py liveact --repo PATH --python PATH
    python scripts/check_upstream.py liveact --repo PATH --python PATH --world-size 2
    python scripts/check_upstream.py flashtalk --repo PATH --python PATH

It proves that the checkout's entry points and signatures are those that the engine uses, that a film's frames are
counted right, that one seed is one film, and that a film which goes on in a new process is the film.  It says nothing
about pictures or speed.  PATH of --python is an interpreter that has what the checkout needs; the weights are made with
it, then a real host is started with it.  Nothing is written into the checkout.  Of LiveAct the transformer and the
speech encoder are the checkout's; its text encoder and picture tower have gigabytes at any size, so what they would say
is put into the cache, and LightX2V's autoencoder, a package of its own, is stood in for.  With --world-size 2 it is the
checkout's transformer for two cards, in two processes that meet over gloo; rank 1 is killed while it renders.  Of
FlashTalk everything is the checkout's; its text encoder and picture tower are given a few thin layers
(scripts/small_encoders.py), and its attention through xformers runs on torch, as it does in the engine everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

LAYERS = 1


@dataclass(frozen=True)
class Making:
    """How large the random weights are, and where they are drawn."""

    true_size: bool = False  # every layer as released; otherwise few and thin ones
    device: str = "cpu"
    dtype: str = "float32"  # of FlashHead's transformer on disk, where the released one is float32 too
    kernel: str = "auto"
    layers: int = 40  # of LiveAct's and FlashTalk's at true size
    small_encoders: bool = False  # FlashTalk's, with everything else at true size


# The side that the model's interpreter runs: weights that have upstream's names and shapes and random values.


def make_flashhead(repo: Path, folder: Path, variant: str, making: Making) -> dict[str, str]:
    """A checkpoint for one variant.  Returns the engine's settings."""
    import torch

    from workers.engines.upstream import flashhead
    from workers.engines.upstream.checkout import check_checkout, check_imports, import_from

    checkout = check_checkout(repo, flashhead.LAYOUT)
    model = flashhead.FlashHead({"model_type": variant})
    check_imports(checkout, model.modules())
    torch.manual_seed(1)
    lite = variant == "lite"
    with torch.device(making.device):
        dit = import_from(checkout, flashhead.TRANSFORMER).WanModelAudioProject(
            dim=1536,  # the speech projection's width, which the code fixes
            in_dim=256 if lite else 32,
            ffn_dim=8960 if making.true_size else 64,
            out_dim=128 if lite else 16,
            text_dim=4096 if making.true_size else 16,
            freq_dim=256,
            eps=1e-6,
            vae_stride=[8, 32, 32] if lite else [4, 8, 8],
            patch_size=[1, 1, 1] if lite else [1, 2, 2],
            num_heads=12,
            num_layers=30 if making.true_size else LAYERS,
            has_image_input=False,
        )
    dit.to(getattr(torch, making.dtype)).save_pretrained(folder / ("Model_Lite" if lite else "Model_Pro"))
    if lite:
        make_ltx(checkout, folder, making)
    else:
        (folder / "VAE_Wan").mkdir(parents=True, exist_ok=True)
        write_autoencoder(folder / "VAE_Wan" / "Wan2.1_VAE.pth", making)
    return {"ckpt_dir": str(folder), "wav2vec_dir": make_speech(folder / "wav2vec", making)}


def write_autoencoder(file: Path, making: Making) -> None:
    """Random weights of the Wan autoencoder at its true size, which every checkout's code fixes."""
    import torch

    from workers.engines.flashtalk.geometry import VaeConfig
    from workers.engines.flashtalk.inventory import vae_tensors
    from workers.engines.flashtalk.sources import RandomSource

    shapes = vae_tensors(VaeConfig())
    source = RandomSource(shapes, torch.device(making.device))
    torch.save({name: source.take(name, torch.float32).cpu() for name in shapes}, file)


def make_ltx(checkout: Any, folder: Path, making: Making) -> None:
    """The LTX autoencoder, or a small one with its strides: 8 in time, 32 in space, 128 channels."""
    import torch

    from workers.engines.upstream.checkout import import_from

    config: dict[str, Any] = {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 128,
        "blocks": [["compress_all", 1], ["compress_all", 1], ["compress_all", 1], ["res_x", 1]],
        "scaling_factor": 1.0,
        "norm_layer": "pixel_norm",
        "patch_size": 4,
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": False,
    }
    if making.true_size:
        config = dict(import_from(checkout, "flash_head.ltx_video.utils.diffusers_config_mapping").OURS_VAE_CONFIG)
    place = folder / "VAE_LTX"
    place.mkdir(parents=True, exist_ok=True)
    maker = import_from(
        checkout, "flash_head.ltx_video.models.autoencoders.causal_video_autoencoder"
    ).CausalVideoAutoencoder
    with torch.device(making.device):
        made = maker.from_config(dict(config))
    state = {name: value.cpu() for name, value in made.state_dict().items()}
    state["per_channel_statistics.std-of-means"] = torch.ones(128)
    state["per_channel_statistics.mean-of-means"] = torch.zeros(128)
    torch.save(state, place / "autoencoder.pth")
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")


def make_speech(folder: Path, making: Making) -> str:
    """A wav2vec 2.0 base, or one of its width and depth with thin layers."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    thin = {} if making.true_size else {"intermediate_size": 32, "conv_dim": (32,) * 7}
    config = Wav2Vec2Config(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, **thin)
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    return str(folder)


STAND_IN_VAE = """
import torch.nn.functional as F


class WanVAE:
    def __init__(self, vae_path=None, dtype=None, device=None, use_lightvae=False, parallel=False):
        pass

    def encode(self, video):
        size = ((video.shape[2] - 1) // 4 + 1, video.shape[3] // 8, video.shape[4] // 8)
        return F.interpolate(video[0].mean(0)[None, None], size)[0].expand(16, -1, -1, -1)

    def decode(self, latents):
        size = (4 * latents.shape[1] - 3, latents.shape[2] * 8, latents.shape[3] * 8)
        return F.interpolate(latents[:3][None].float(), size, mode="trilinear").tanh()
"""


def make_liveact(repo: Path, folder: Path, size: str, making: Making) -> dict[str, str]:
    """A checkpoint, what the encoders would say of the check's film, and an autoencoder.

    It is LightX2V's where that can be imported, and otherwise a stand-in.
    """
    import torch

    from workers.engines.flashtalk.conditioners import EncodingCache, digest
    from workers.engines.upstream import liveact, weights
    from workers.engines.upstream.checkout import check_checkout, check_imports, import_from

    if making.device == "cpu":
        torch.cuda.current_device = lambda: 0
    torch.manual_seed(1)
    model = liveact.LiveAct({name: setting.default for name, setting in liveact.KNOWN.items()})
    model.values = {**model.values, "cache": str(folder / "cache")}
    model.values |= {"device": making.device, "kernel": making.kernel}
    model.checkout = check_checkout(repo, liveact.LAYOUT)
    model.choose_platform()
    parts = (liveact.TRANSFORMER, liveact.TEXT, liveact.PICTURES, liveact.SPEECH)
    check_imports(model.checkout, parts)
    for name in parts:
        import_from(model.checkout, name)
    sizes = (5120, 13824, 40, making.layers) if making.true_size else (256, 64, 2, LAYERS + 1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(making.device):
        dit = import_from(model.checkout, liveact.TRANSFORMER).WanModel(
            in_dim=36, **dict(zip(("dim", "ffn_dim", "num_heads", "num_layers"), sizes, strict=True))
        )
    torch.set_default_dtype(torch.float32)
    # The checkout draws none for its last layer, so that nothing of what the transformer computes would be seen.
    torch.nn.init.normal_(dit.head.head.weight, std=dit.config.dim**-0.5)
    dit.to(torch.bfloat16).save_pretrained(folder)
    for name in (liveact.VAE_FILE, liveact.TEXT_FILE, liveact.IMAGE_FILE):
        (folder / name).write_bytes(b"\x80 not read")
    for name in (liveact.TEXT_TOKENIZER, liveact.IMAGE_TOKENIZER):
        (folder / name).mkdir(parents=True)
    model.shards = weights.check_transformer(folder, liveact.CONFIG_KEYS)
    film = film_of(folder.parent, 1, 64, 0)
    cache = EncodingCache(model.cache)
    content = digest(Path(film["portrait"]).read_bytes(), size, model.recipe)
    rows, seen = torch.randn(512, 4096).bfloat16(), torch.randn(1, 257, 1280).bfloat16()
    cache.fetch("text", digest(film["prompt"], model.recipe), lambda: {"kept": rows})
    cache.fetch("pictures", content, lambda: {"kept": seen})
    has_lightx2v = importlib.util.find_spec("lightx2v") is not None
    if making.true_size or has_lightx2v:
        write_autoencoder(folder / liveact.VAE_FILE, making)
    if not has_lightx2v:
        place = folder / "site/lightx2v/models/video_encoders/hf/wan"
        place.mkdir(parents=True)
        (place / "vae.py").write_text(STAND_IN_VAE, encoding="utf-8")
    speech = make_speech(folder / "wav2vec", making)
    return {"ckpt_dir": str(folder), "wav2vec_dir": speech, "cache": str(folder / "cache")}


def make_flashtalk(repo: Path, folder: Path, _: str, making: Making) -> dict[str, str]:
    """Every file of the released checkpoint by the checkout's own classes, in the types that the released ones have.

    At true size it is 55 GB; the files are written side by side, while the numbers are copied from the card.
    """
    import torch
    from small_encoders import LETTERS, shrink

    from workers.engines.flashtalk.checkpoint import IMAGE_FILE, TEXT_FILE, TOKENIZER_FOLDER, VAE_FILE
    from workers.engines.upstream import flashtalk
    from workers.engines.upstream.checkout import check_checkout, check_imports, import_from

    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s: {what}", flush=True)

    if making.device == "cpu":
        torch.cuda.current_device = lambda: 0
    checkout = check_checkout(repo, flashtalk.LAYOUT)
    check_imports(checkout, (flashtalk.PIPELINE, flashtalk.CONFIG))
    flashtalk.import_libraries()
    maker = import_from(checkout, flashtalk.TRANSFORMER).WanModel
    is_small = making.small_encoders or not making.true_size
    if is_small:
        shrink(checkout)
    torch.manual_seed(1)
    with ThreadPoolExecutor(10) as writers:
        writing = []
        for module, function, file, dtype in (
            (flashtalk.TEXT, "umt5_xxl", TEXT_FILE, torch.bfloat16),
            (flashtalk.PICTURES, "clip_xlm_roberta_vit_h_14", IMAGE_FILE, torch.float32),
        ):
            torch.set_default_dtype(dtype)  # so that nothing is allocated twice
            wanted = {"encoder_only": True, "return_tokenizer": False} if module == flashtalk.TEXT else {}
            encoder = getattr(import_from(checkout, module), function)(dtype=dtype, device=making.device, **wanted)
            writing.append(writers.submit(torch.save, encoder.state_dict(), folder / file))
            tell(f"{file} drawn, {count_gigabytes(encoder.state_dict()):.1f} GB")
            del encoder
        torch.set_default_dtype(torch.bfloat16)
        sizes = (5120, 13824, 40, making.layers) if making.true_size else (256, 64, 2, LAYERS + 1)
        with torch.device(making.device):
            dit = maker(in_dim=36, **dict(zip(("dim", "ffn_dim", "num_heads", "num_layers"), sizes, strict=True)))
        torch.set_default_dtype(torch.float32)
        # The checkout draws none for its last layer, so that nothing of what the transformer computes would be seen.
        torch.nn.init.normal_(dit.head.head.weight, std=dit.config.dim**-0.5)
        tell(f"the transformer drawn, {count_gigabytes(dit.state_dict()):.1f} GB")
        dit.save_config(folder)
        writing += write_shards(folder, dit.state_dict(), 8, writers)
        writing.append(writers.submit(write_autoencoder, folder / VAE_FILE, making))
        for name in (TOKENIZER_FOLDER, flashtalk.IMAGE_TOKENIZER):
            write_tokenizer(folder / name, LETTERS)
        speech = make_speech(folder / "wav2vec", making)
        for one in writing:
            one.result()
    tell("written")
    return {"ckpt_dir": str(folder), "wav2vec_dir": speech}


def count_gigabytes(tensors: Mapping[str, Any]) -> float:
    return float(sum(tensor.nbytes for tensor in tensors.values()) / 1e9)


def write_shards(folder: Path, tensors: Mapping[str, Any], count: int, writers: ThreadPoolExecutor) -> list[Any]:
    """A transformer as diffusers writes it: up to `count` safetensors files and their index.  Returns what is begun."""
    shards: list[dict[str, Any]] = [{} for _ in range(count)]
    total, before = sum(tensor.nbytes for tensor in tensors.values()), 0
    for name, tensor in tensors.items():
        shards[before * count // total][name] = tensor
        before += tensor.nbytes
    shards = [shard for shard in shards if shard]
    named = {f"diffusion_pytorch_model-{n:05d}-of-{len(shards):05d}.safetensors": s for n, s in enumerate(shards, 1)}
    index = {"metadata": {"total_size": total}, "weight_map": {name: file for file, s in named.items() for name in s}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return [writers.submit(write_safetensors, folder / file, shard) for file, shard in named.items()]


def write_safetensors(file: Path, tensors: Mapping[str, Any]) -> None:
    """One tensor after the other, so that a card's numbers are never all in the host's memory."""
    import torch

    types = {torch.bfloat16: "BF16", torch.float32: "F32"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        places = [end, end + tensor.nbytes]
        header[name] = {"dtype": types[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places}
        end += tensor.nbytes
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    with file.open("wb", buffering=0) as out:
        for raw in (struct.pack("<Q", len(words)), words):
            out.write(raw)
        for tensor in tensors.values():
            raw = memoryview(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy())
            while raw:  # a file without a buffer may take less than it is given
                raw = raw[out.write(raw) :]


def write_tokenizer(folder: Path, letters: int) -> None:
    """One that transformers reads without a network, for Latin letters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(32, 127))]
    assert len(words) <= letters
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


MAKERS = {
    "flashhead-pro": (make_flashhead, "pro"),
    "flashhead-lite": (make_flashhead, "lite"),
    "liveact": (make_liveact, ""),
    "flashtalk": (make_flashtalk, ""),
}


# The farm's side: a real host with that interpreter.


def film_of(folder: Path, frames: int, size: int, seed: int, **settings: Any) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    draw = np.random.Generator(np.random.Philox(key=3))
    portrait, audio = folder / "a photo.v1 照片.png", folder / "speech 声音.f32"
    if not portrait.exists():
        Image.fromarray(draw.integers(0, 255, (80, 64, 3), dtype=np.uint8)).save(portrait)
        (0.1 * draw.standard_normal(640 * 200)).astype("<f4").tofile(audio)
    return {
        "portrait": str(portrait),
        "audio": str(audio),
        "total_frames": frames,
        "width": size,
        "height": size,
        "fps": [25, 1],
        "prompt": "a person talks",
        "seed": seed,
        "settings": settings,
        "facts": {},
    }


class Hosted:
    """A host of the engine under the model's interpreter, and what it renders."""

    def __init__(self, module: str, settings: dict[str, Any], python: str, log: Path, ranks: int = 1) -> None:
        from farm.devices import DeviceSet
        from workers.host.parent import Host, HostSpec

        self.host = Host(
            HostSpec(
                engine_module=module,
                engine_settings=settings,
                devices=DeviceSet("cpu"),
                log_file=log,
                python=python,
                environment={"PYTHONPATH": os.pathsep.join([str(log.parent / "weights/site"), str(ROOT / "scripts")])},
                load_timeout_seconds=1200.0,
                stuck_floor_seconds=1200.0,
                ranks=ranks,
            )
        )
        self.loaded = self.host.start()

    def render(self, film: dict[str, Any], first: int, frames: int, carry: bytes | None) -> tuple[bytes, bytes]:
        from workers.host.frames import render_to_bytes

        return render_to_bytes(self.host, film, first, frames, carry)

    def lose(self, film: dict[str, Any], first: int, frames: int, carry: bytes) -> str:
        """Kill this host's rank 1 while it renders these frames.  Returns what the worker is told."""
        import psutil

        from farm.errors import DeviceFault
        from workers.host.frames import read_frames

        (second,) = (one for one in psutil.Process(self.host.pid).children() if one.environ()["RANK"] == "1")
        killed = threading.Event()

        def kill(_: Any) -> None:
            with contextlib.suppress(psutil.NoSuchProcess):
                second.kill()
            killed.set()

        try:
            read_frames(
                self.host,
                film,
                first_frame=first,
                frames=frames,
                carry=carry,
                take=lambda block: killed.wait(600),  # so that the film cannot end before
                on_progress=kill,
            )
        except DeviceFault as error:
            return str(error)
        raise AssertionError("nobody missed a rank that was killed")


def compare_films(one: bytes, other: bytes, frame_bytes: int) -> str:
    """How far the films of one card and of two go together."""
    import numpy as np

    apart = [
        int(np.abs(np.frombuffer(a, np.uint8).astype(int) - np.frombuffer(b, np.uint8)).max())
        for a, b in (
            (one[at : at + frame_bytes], other[at : at + frame_bytes]) for at in range(0, len(one), frame_bytes)
        )
    ]
    blocks = {"blocks 0 and 1": apart[:53], "later blocks": apart[53:]}
    return "; ".join(f"{name} at most {max(levels)} levels apart" for name, levels in blocks.items() if levels)


def check(name: str, repo: Path, python: str, size: int, ranks: int = 1, carried: str = "") -> None:
    """Raises AssertionError with what is wrong."""
    from farm.errors import EngineError

    began = time.monotonic()
    model, _, variant = name.partition("-")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = subprocess.run(
            [
                python,
                __file__,
                "--make",
                name,
                "--repo",
                str(repo),
                "--into",
                str(folder / "weights"),
                "--size",
                str(size),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr[-4000:]
        settings = json.loads(made.stdout.splitlines()[-1])
        settings |= {"repo_path": str(repo), "device": "cpu", "compile": False}
        settings |= {"model_type": variant} if variant else {}
        settings |= {"carry": carried} if carried else {}
        wishes = {} if model == "liveact" else {"steps": 2}
        log = folder / "host.log"
        module = "small_encoders" if model == "flashtalk" else f"workers.engines.upstream.{model}"
        print(f"{name}: weights made after {time.monotonic() - began:.0f} s", flush=True)
        try:
            frames_alone = b""
            if ranks > 1:
                hosted = Hosted(module, settings, python, log)
                frames_alone, carry_alone = hosted.render(film_of(folder, 3 * 32 + 5, size, 7), 0, 3 * 32 + 5, None)
                hosted.host.kill()
            hosted = Hosted(module, settings, python, log, ranks)
            said = hosted.loaded.description
            step = said["chunk_frames"]
            print(f"{name}: {said['version']}, Python {hosted.loaded.python}; {hosted.loaded.report['notes']}")
            frames = (3 if model == "liveact" else 1) * step + 5  # the tail is no whole chunk
            film = film_of(folder, frames, size, 7, **wishes)
            bytes_each = size * size * 3
            other, _ = hosted.render(film | {"seed": 8}, 0, step, None)
            whole, end = hosted.render(film, 0, frames, None)
            assert len(whole) == frames * bytes_each, f"{len(whole) // bytes_each} frames for {frames}"
            assert other != whole[: step * bytes_each], "another seed is the same film"
            if model == "flashtalk":
                other, _ = hosted.render(film | {"prompt": "a person is silent"}, 0, step, None)
                assert other != whole[: step * bytes_each], "another prompt is the same film"
            again, carry = hosted.render(film, 0, step, None)
            assert again == whole[: step * bytes_each], "the same film is another one when it is rendered again"
            if ranks > 1:
                print(f"{name}: beside one card's film: {compare_films(frames_alone, whole, bytes_each)}")
                try:
                    hosted.render(film, frames - 5, 5, carry_alone)
                except EngineError as error:
                    print(f"{name}: one card's carry is refused: {error}")
                else:
                    raise AssertionError("two cards went on with one card's film")
                print(f"{name}: rank 1 killed: {hosted.lose(film, step, frames - step, carry)}")
            hosted.host.kill()
            hosted = Hosted(module, settings, python, log, ranks)
            rest, last = hosted.render(film, step, frames - step, carry)
            assert again + rest == whole, "a film that goes on in a new process is another film"
            assert last == end, "its last carry is another one"
            print(
                f"{name}: {frames} frames of {size}x{size}; carry {len(carry)} bytes; resumed in a new process: equal"
            )
        except BaseException:
            print(log.read_text(encoding="utf-8", errors="replace")[-4000:] if log.exists() else "no log")
            raise
        finally:
            if "hosted" in locals():
                hosted.host.kill()
    print(f"{name}: passed in {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", default="flashhead", choices=("flashhead", "flashtalk", "liveact"), help="which"
    )
    parser.add_argument("--repo", type=Path, required=True, help="the checkout")
    parser.add_argument("--python", default=sys.executable, help="the model's interpreter")
    parser.add_argument("--variant", action="append", choices=("pro", "lite"), help="pro or lite; both by default")
    parser.add_argument("--world-size", type=int, default=1, help="2: LiveAct as two ranks that render together")
    parser.add_argument("--carry", choices=("replay", "disk"), default="", help="what LiveAct goes on with")
    parser.add_argument(
        "--size", type=int, default=0, help="side of the frames, a multiple of 32; 64, or FlashTalk's 32"
    )
    parser.add_argument("--make", choices=sorted(MAKERS), help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--frame", default="", help=argparse.SUPPRESS)
    parser.add_argument("--true-size", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--kernel", default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=40, help=argparse.SUPPRESS)
    parser.add_argument("--small-encoders", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if (asked.world_size > 1 or asked.carry) and asked.model != "liveact":
        parser.error("--world-size and --carry are LiveAct's")
    asked.size = asked.size or (32 if asked.model == "flashtalk" else 64)
    repo = asked.repo.resolve()
    if asked.make:
        make, variant = MAKERS[asked.make]
        asked.into.mkdir(parents=True)
        size = asked.frame or f"{asked.size}x{asked.size}"
        making = Making(asked.true_size, asked.device, asked.dtype, asked.kernel, asked.layers, asked.small_encoders)
        print(json.dumps(make(repo, asked.into, variant or size, making)))
        return 0
    from farm.errors import FarmError

    try:
        variants = asked.variant or ("pro", "lite")
        names = [f"flashhead-{variant}" for variant in variants] if asked.model == "flashhead" else [asked.model]
        for name in names:
            check(name, repo, asked.python, asked.size, asked.world_size, asked.carry)
    except (FarmError, AssertionError) as error:
        print(f"{asked.model}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
