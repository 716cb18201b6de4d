"""A small checkout of our own with the entry points that the LiveAct engine uses, and LightX2V's decoder beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .standin import write, write_safetensors, write_speech

TRANSFORMER = '''
import types
import torch
from torch import nn
from fp8_gemm import FP8GemmOptions

USE_SAGEATTN = True


def sdpa_attention(q, k, v, k_lens=None, window_size=None, attn_mask=None):
    return v.mean(1, keepdim=True).expand_as(q)


class SelfAttention(nn.Module):
    def k_compress(self, k):
        return k.view(1, -1, 5, *k.shape[2:]).mean(2) * 1.01

    def v_compress(self, v):
        return v.view(1, -1, 5, *v.shape[2:]).mean(2) * 0.99


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = SelfAttention()
        self.weight = nn.Parameter(torch.tensor([0.5]))


class WanModel(nn.Module):
    """Keeps a memory as the real one does: 14 slots of tokens, compressed as a block begins."""

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(num_layers=2, num_heads=2, dim=16)
        self.blocks = nn.ModuleList([Block(), Block()])

    @classmethod
    def from_pretrained(cls, folder, torch_dtype=None, low_cpu_mem_usage=False):
        assert low_cpu_mem_usage
        return cls()

    def init_freqs(self):
        self.freqs = torch.zeros(1)

    def forward(self, x, t, context, clip_fea=None, y=None, audio=None, ref_target_masks=None, kv_cache=None,
                start_idx=None, end_idx=None, update_cache=True, skip_audio=False):
        assert not USE_SAGEATTN and len(x) == 1 and context[0].shape == (512, 4096)
        assert audio.shape == (1, 53, 5, 12, 768) and clip_fea.shape == (1, 257, 1280)
        latent = x[0]
        assert y.shape == (1, 20, *latent.shape[1:]) and ref_target_masks.shape[0] == 3
        n = latent.shape[2] * latent.shape[3] // 4
        assert (start_idx, end_idx) == ((0, 6 * n) if latent.shape[1] == 6 else (6 * n, 14 * n))
        out = torch.zeros_like(latent)
        for layer, block in enumerate(self.blocks):
            cache, attention = kv_cache[layer], block.self_attn
            k, v = cache["k"], cache["v"]
            if update_cache:
                for held, squeeze in ((k, attention.k_compress), (v, attention.v_compress)):
                    held[:, 2 * n : 3 * n].copy_(squeeze(held[:, 2 * n : 7 * n]))
                    held[:, 3 * n : 4 * n].copy_(squeeze(held[:, 7 * n : 12 * n]))
                    held[:, 4 * n : 6 * n].copy_(held[:, 12 * n : 14 * n])
            tokens = latent.mean(0).reshape(latent.shape[1], n, 4).mean(2).reshape(1, -1, 1, 1).expand(1, -1, 2, 8)
            held = slice(6 * n, None) if start_idx else slice(0, 6 * n)
            k[:, held], v[:, held] = tokens, tokens * 0.5
            x = sdpa_attention(q=tokens, k=k[:, :end_idx], v=v[:, :end_idx])
            out = out + block.weight * x.float().mean().to(latent.dtype)
        heard = 0 if skip_audio else audio.float().mean() * 0.2
        said = context[0].float().sum() / 40960 + clip_fea.float().mean() + y.float().mean()
        return [(out + latent * 0.1 + heard + said).to(latent.dtype)]
'''
SPREAD_TRANSFORMER = '''
import torch
from xfuser.core.distributed import get_sequence_parallel_rank, get_sequence_parallel_world_size, get_sp_group
from xfuser.core.long_ctx_attention import xFuserLongContextAttention
from yunchang.kernels import AttnType

from . import model_memory

USE_SAGEATTN = True


class WanModel(model_memory.WanModel):
    """Of two cards: each has half of a block's frames, and seven slots of the memory, squeezed in a way of its own."""

    def forward(self, x, t, context, clip_fea=None, y=None, audio=None, ref_target_masks=None, kv_cache=None,
                start_idx=None, end_idx=None, update_cache=True, skip_audio=False):
        rank, size = get_sequence_parallel_rank(), get_sequence_parallel_world_size()
        assert not USE_SAGEATTN and size == 2 and audio.shape == (1, 53, 5, 12, 768)
        latent = x[0]
        n = latent.shape[2] * latent.shape[3] // 4
        mine = latent.float().mean(0).reshape(latent.shape[1], n, 4).mean(2).reshape(1, -1, 1, 1).expand(1, -1, 2, 8)
        mine = mine.to(latent.dtype).chunk(2, 1)[rank]
        out = 0
        for layer, block in enumerate(self.blocks):
            cache, attention = kv_cache[layer], block.self_attn
            k, v = cache["k"], cache["v"]
            assert attention.frame_seqlen == n and k.shape[1] == 7 * n
            if update_cache:
                for held, squeeze in ((k, attention.k_compress), (v, attention.v_compress)):
                    if rank == 0:
                        held[:, 2 * n : 3 * n] = squeeze(held[:, 2 * n : 7 * n])
                    else:
                        held[:, :n] = squeeze(held[:, : 5 * n])
                        held[:, n : 3 * n] = held[:, 5 * n :].clone()
            new = slice(3 * n, None) if start_idx else slice(0, 3 * n)
            k[:, new], v[:, new] = mine, mine * 0.5
            heard = attention.kv_idx2 if start_idx else attention.kv_idx0
            attend = xFuserLongContextAttention(attn_type=AttnType.SAGE_FP8_SM90)
            # A query of zeros hears all keys alike, as the attention of the stand-in for one card does.
            seen = attend(None, query=mine * 0, key=k[:, heard], value=v[:, heard], window_size=(-1, -1))
            assert seen.shape == mine.shape
            out = out + block.weight * get_sp_group().all_gather(seen, dim=1).float().mean().to(latent.dtype)
        heard = 0 if skip_audio else audio.float().mean() * 0.2
        said = context[0].float().sum() / 40960 + clip_fea.float().mean() + y.float().mean()
        return [(out + latent * 0.1 + heard + said).to(latent.dtype)]
'''
VAE = """
import os
import pathlib
import threading
import torch
import torch.nn.functional as F

THREADS = set()


class WanVAE:
    def __init__(self, vae_path=None, dtype=None, device=None, use_lightvae=False, parallel=False):
        assert not use_lightvae and not parallel

    def encode(self, video):
        frames = (video.shape[2] - 1) // 4 + 1
        size = (frames, video.shape[3] // 8, video.shape[4] // 8)
        return F.interpolate(video[0].mean(0)[None, None], size)[0].expand(16, -1, -1, -1)

    def decode(self, latents):
        assert threading.current_thread() is not threading.main_thread()
        frames = 4 * latents.shape[1] - 3
        size = (frames, latents.shape[2] * 8, latents.shape[3] * 8)
        pixels = torch.tanh(0.4 * F.interpolate(latents[:3][None].float(), size, mode="trilinear"))
        spoiled = pathlib.Path(os.environ.get("SPOILED_RANK_FILE", "none"))  # the rank whose pixels shall be none
        if spoiled.is_file() and spoiled.read_text() == os.environ.get("RANK"):
            pixels = pixels * float("nan")
        return pixels
"""
SPEECH = """
import torch
import types


class Wav2Vec2Model(torch.nn.Module):
    @classmethod
    def from_pretrained(cls, folder, local_files_only=False):
        made = cls()
        made.weight = torch.nn.Parameter(torch.ones(1))
        return made

    @property
    def dtype(self):
        return self.weight.dtype

    def forward(self, values, seq_len, output_hidden_states=True):
        level = torch.nn.functional.interpolate(values.abs()[None], seq_len, mode="linear")[0, 0]
        one = level.view(1, -1, 1).expand(1, -1, 768)
        return types.SimpleNamespace(hidden_states=[one] * 13)
"""
TEXT = """
import torch


class T5EncoderModel:
    def __init__(self, text_len, dtype=torch.bfloat16, device=torch.cuda.current_device(), checkpoint_path=None,
                 tokenizer_path=None, shard_fn=None):
        print("the text encoder is loaded")

    def __call__(self, texts, device):
        assert isinstance(texts, str)
        return [torch.full((3, 4096), (sum(map(ord, texts)) % 97) / 97.0)]
"""
PICTURES = """
import torch


class CLIPModel:
    def __init__(self, dtype, device, checkpoint_path, tokenizer_path):
        print("the picture tower is loaded")

    def visual(self, picture):
        assert picture.shape[:3] == (1, 3, 1)
        return picture.float().mean().expand(1, 257, 1280)
"""
EXTRACTOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": 16000,
    "padding_value": 0.0,
    "do_normalize": True,
    "return_attention_mask": False,
}


def liveact_checkout(folder: Path) -> Path:
    return write(
        folder / "SoulX LiveAct 检出",
        {
            "model_liveact/model_memory.py": TRANSFORMER,
            "model_liveact/model_memory_sp.py": SPREAD_TRANSFORMER,
            "model_liveact/attention.py": "",
            "wan/__init__.py": "import torch\n",
            "wan/modules/__init__.py": "",
            "wan/modules/t5.py": TEXT,
            "wan/modules/clip.py": PICTURES,
            "src/audio_analysis/wav2vec2.py": SPEECH,
            "fp8_gemm.py": "class FP8GemmOptions:\n    pass\n",
            ".git/HEAD": "ac8579b" + "0" * 33 + "\n",
        },
    )


def lightx2v(folder: Path) -> Path:
    """A folder for PYTHONPATH, since the decoder is a package of its own."""
    place = "lightx2v/models/video_encoders/hf/wan"
    inits = {"/".join(place.split("/")[:n]) + "/__init__.py": "" for n in range(1, 6)}
    return write(folder, {**inits, f"{place}/vae.py": VAE})


def liveact_checkpoint(folder: Path) -> Path:
    config = dict.fromkeys(("dim", "num_heads", "num_layers", "in_dim", "out_dim", "ffn_dim"), 2)
    write(folder, {"config.json": json.dumps(config), "google/umt5-xxl/t": "", "xlm-roberta-large/t": ""})
    write_safetensors(folder / "diffusion_pytorch_model-00001-of-00001.safetensors")
    for name in (
        "Wan2.1_VAE.pth",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    ):
        (folder / name).write_bytes(b"\x80\x02 an old pickle")
    return folder


def liveact_speech(folder: Path) -> Path:
    write_speech(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR), encoding="utf-8")
    return folder


def liveact_shop(folder: Path) -> Path:
    """All that an engine needs, below one folder."""
    liveact_checkout(folder)
    lightx2v(folder / "site")
    liveact_checkpoint(folder / "weights")
    liveact_speech(folder / "wav2vec")
    return folder


def liveact_settings(shop: Path, **changes: Any) -> dict[str, Any]:
    return {
        "repo_path": str(shop / "SoulX LiveAct 检出"),
        "ckpt_dir": str(shop / "weights"),
        "wav2vec_dir": str(shop / "wav2vec"),
        "cache": str(shop / "cache"),
        "device": "cpu",
        **changes,
    }
