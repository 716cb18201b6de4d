"""What a film is told once: the prompt's rows and the portrait's features, cached on disk by content.

The encoders are large and used once per new prompt or portrait, so they are loaded for that one call and dropped.  A
known prompt and portrait load neither.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from farm.errors import ConfigError
from workers.engines.flashtalk.portrait import to_image_encoder
from workers.engines.flashtalk.sources import read_torch_file

IMAGE_TOKENS = 257


def digest(*parts: str | bytes) -> str:
    """SHA-256 of the parts, each with its length so that none runs into the next."""
    hashed = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        hashed.update(len(raw).to_bytes(8, "little") + raw)
    return hashed.hexdigest()


def fingerprint(path: Path) -> str:
    """Tells one weight file from another without reading its gigabytes."""
    found = path.stat()
    return f"{path.name}:{found.st_size}:{found.st_mtime_ns}"


class EncodingCache:
    """Tensors on disk under content keys; a broken or missing entry is simply made again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, kind: str, key: str, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        path = self._folder / kind / f"{key}.pt"
        try:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception:  # a missing file, and whatever the bytes of a broken one lead the reader to
            pass
        made = {name: tensor.cpu() for name, tensor in make().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f"{path.name}.{os.getpid()}")
        torch.save(made, staging)
        staging.replace(path)
        return made


def clean_prompt(prompt: str) -> str:
    """Unescaped twice and with single spaces, as the text encoder was trained."""
    try:
        import ftfy

        prompt = ftfy.fix_text(prompt)
    except ImportError:  # only repairs text that was decoded wrongly before it came here
        pass
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt)).strip()).strip()


def encode_text(
    weights: Path, tokenizer_folder: Path, prompt: str, text_len: int, device: torch.device
) -> torch.Tensor:
    """The prompt's rows [tokens, 4096] from umT5, loaded for this call only."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    ids = tokenizer([clean_prompt(prompt)], truncation=True, max_length=text_len, return_tensors="pt").input_ids
    model = build_text_encoder(read_torch_file(weights), device, torch.bfloat16)
    rows = model(input_ids=ids.to(device)).last_hidden_state[0]
    return rows


def build_text_encoder(tensors: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' umT5 encoder with the checkpoint's tensors; its shape is read off them."""
    from transformers import UMT5Config, UMT5EncoderModel

    vocabulary, width = tensors["token_embedding.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    heads = tensors["blocks.0.pos_embedding.embedding.weight"].shape[1]
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=tensors["blocks.0.attn.q.weight"].shape[0] // heads,
        d_ff=tensors["blocks.0.ffn.fc1.weight"].shape[0],
        num_layers=layers,
        num_heads=heads,
        relative_attention_num_buckets=tensors["blocks.0.pos_embedding.embedding.weight"].shape[0],
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    named = {
        "shared.weight": tensors["token_embedding.weight"],
        "encoder.final_layer_norm.weight": tensors["norm.weight"],
    }
    parts = {
        "norm1": "layer.0.layer_norm",
        "attn.q": "layer.0.SelfAttention.q",
        "attn.k": "layer.0.SelfAttention.k",
        "attn.v": "layer.0.SelfAttention.v",
        "attn.o": "layer.0.SelfAttention.o",
        "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
        "norm2": "layer.1.layer_norm",
        "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
        "ffn.fc1": "layer.1.DenseReluDense.wi_1",
        "ffn.fc2": "layer.1.DenseReluDense.wo",
    }
    for n in range(layers):
        for theirs, ours in parts.items():
            named[f"encoder.block.{n}.{ours}.weight"] = tensors[f"blocks.{n}.{theirs}.weight"]
    named["encoder.embed_tokens.weight"] = named["shared.weight"]
    return _assemble(lambda: UMT5EncoderModel(config), named, device, dtype)


def encode_image(weights: Path, picture: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Features [257, 1280] of a picture [3, H, W] in [-1, 1] from CLIP's picture tower, loaded for this call only."""
    tensors = {k: v for k, v in read_torch_file(weights).items() if k.startswith("visual.")}
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = build_image_encoder(tensors, device, dtype)
    seen = to_image_encoder(picture).to(device, dtype)
    return model(pixel_values=seen, output_hidden_states=True).hidden_states[-2][0]


def build_image_encoder(tensors: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' CLIP picture tower with the checkpoint's tensors; its shape is read off them."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    patches = tensors["visual.patch_embedding.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("visual.transformer."))
    side = round((tensors["visual.pos_embedding"].shape[-2] - 1) ** 0.5)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=tensors["visual.transformer.0.mlp.0.weight"].shape[0],
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 80),
        image_size=side * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    made: dict[str, torch.Tensor] = {
        "embeddings.class_embedding": tensors["visual.cls_embedding"].flatten(),
        "embeddings.position_embedding.weight": tensors["visual.pos_embedding"].reshape(-1, width),
        "embeddings.patch_embedding.weight": patches,
    }
    for p in ("weight", "bias"):
        made[f"pre_layrnorm.{p}"] = tensors[f"visual.pre_norm.{p}"]
        made[f"post_layernorm.{p}"] = tensors[f"visual.post_norm.{p}"]
        for n in range(layers):
            theirs, ours = f"visual.transformer.{n}", f"encoder.layers.{n}"
            made[f"{ours}.layer_norm1.{p}"] = tensors[f"{theirs}.norm1.{p}"]
            made[f"{ours}.layer_norm2.{p}"] = tensors[f"{theirs}.norm2.{p}"]
            split = tensors[f"{theirs}.attn.to_qkv.{p}"].chunk(3)
            for part, tensor in zip("qkv", split, strict=True):
                made[f"{ours}.self_attn.{part}_proj.{p}"] = tensor
            made[f"{ours}.self_attn.out_proj.{p}"] = tensors[f"{theirs}.attn.proj.{p}"]
            made[f"{ours}.mlp.fc1.{p}"] = tensors[f"{theirs}.mlp.0.{p}"]
            made[f"{ours}.mlp.fc2.{p}"] = tensors[f"{theirs}.mlp.2.{p}"]
    return _assemble(lambda: CLIPVisionModel(config), made, device, dtype)


def _assemble(
    make: Callable[[], Any], tensors: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype
) -> Any:
    """A transformers model built without weights and given these, whatever prefix its version puts before names."""
    with torch.device("meta"):
        model = make()
    names = set(model.state_dict())
    for prefix in ("", "vision_model."):
        moved = {prefix + name: tensor for name, tensor in tensors.items()}
        if len(names & moved.keys()) >= len(names) - 2:
            break
    missing = sorted(names - moved.keys())
    if missing:
        raise ConfigError(f"the checkpoint lacks tensors of {type(model).__name__}, the first is {missing[0]}")
    chosen = {name: moved[name].to(device, dtype) for name in names}
    model.load_state_dict(chosen, strict=True, assign=True)
    for holder in model.modules():  # position numbers are made on the fly by the constructor, which ran without data
        for name, held in list(holder.named_buffers(recurse=False)):
            if held.is_meta:
                holder._buffers[name] = torch.arange(held.numel(), device=device).view(held.shape)
    return model.eval().requires_grad_(False)


def synthetic_rows(key: str, rows: int, width: int) -> torch.Tensor:
    """Rows that stand in for an encoder's where weights are random: normal numbers keyed by the content."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    drawn = np.random.Generator(np.random.Philox(key=seed)).standard_normal((rows, width), dtype=np.float32)
    return torch.from_numpy(drawn)
