"""Every tensor that the official checkpoint must hold, by name and shape."""

from __future__ import annotations

import itertools
from math import prod

from workers.engines.flashtalk.geometry import DitConfig, VaeConfig

Shapes = dict[str, tuple[int, ...]]


def dit_tensors(config: DitConfig) -> Shapes:
    """Names and shapes of the transformer: 1633 tensors, 18 882 046 784 parameters at 14B."""
    d = config.dim
    shapes: Shapes = {}

    def linear(name: str, out: int, inside: int) -> None:
        shapes[f"{name}.weight"] = (out, inside)
        shapes[f"{name}.bias"] = (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = (width,)
        shapes[f"{name}.bias"] = (width,)

    shapes["patch_embedding.weight"] = (d, config.in_dim, 1, 2, 2)
    shapes["patch_embedding.bias"] = (d,)
    linear("text_embedding.0", d, config.text_dim)
    linear("text_embedding.2", d, d)
    linear("time_embedding.0", d, config.freq_dim)
    linear("time_embedding.2", d, d)
    linear("time_projection.1", 6 * d, d)
    norm("img_emb.proj.0", config.image_dim)
    linear("img_emb.proj.1", config.image_dim, config.image_dim)
    linear("img_emb.proj.3", d, config.image_dim)
    norm("img_emb.proj.4", d)
    features = config.audio_layers * config.audio_dim
    linear("audio_proj.proj1", config.intermediate_dim, config.audio_window * features)
    linear("audio_proj.proj1_vf", config.intermediate_dim, (config.audio_window + 3) * features)
    linear("audio_proj.proj2", config.intermediate_dim, config.intermediate_dim)
    linear("audio_proj.proj3", config.context_tokens * config.output_dim, config.intermediate_dim)
    norm("audio_proj.norm", config.output_dim)
    for n in range(config.num_layers):
        block = f"blocks.{n}"
        shapes[f"{block}.modulation"] = (1, 6, d)
        for part in ("q", "k", "v", "o"):
            linear(f"{block}.self_attn.{part}", d, d)
        for part in ("norm_q", "norm_k"):
            shapes[f"{block}.self_attn.{part}.weight"] = (d,)
        norm(f"{block}.norm3", d)
        norm(f"{block}.norm_x", d)
        for part in ("q", "k", "v", "o", "k_img", "v_img"):
            linear(f"{block}.cross_attn.{part}", d, d)
        for part in ("norm_q", "norm_k", "norm_k_img"):
            shapes[f"{block}.cross_attn.{part}.weight"] = (d,)
        linear(f"{block}.audio_cross_attn.q_linear", d, d)
        linear(f"{block}.audio_cross_attn.proj", d, d)
        linear(f"{block}.audio_cross_attn.kv_linear", 2 * d, config.output_dim)
        linear(f"{block}.ffn.0", config.ffn_dim, d)
        linear(f"{block}.ffn.2", d, config.ffn_dim)
    shapes["head.modulation"] = (1, 2, d)
    linear("head.head", 4 * config.out_dim, d)
    return shapes


def vae_tensors(config: VaeConfig) -> Shapes:
    """Names and shapes of Wan2.1_VAE.pth: 194 tensors, 126 892 531 parameters at base 96."""
    shapes: Shapes = {}

    def conv(name: str, out: int, inside: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, inside, *kernel)
        shapes[f"{name}.bias"] = (out,)

    def residual(name: str, inside: int, out: int) -> None:
        shapes[f"{name}.residual.0.gamma"] = (inside, 1, 1, 1)
        conv(f"{name}.residual.2", out, inside, 3, 3, 3)
        shapes[f"{name}.residual.3.gamma"] = (out, 1, 1, 1)
        conv(f"{name}.residual.6", out, out, 3, 3, 3)
        if inside != out:
            conv(f"{name}.shortcut", out, inside, 1, 1, 1)

    def middle(name: str, width: int) -> None:
        residual(f"{name}.0", width, width)
        shapes[f"{name}.1.norm.gamma"] = (width, 1, 1)
        conv(f"{name}.1.to_qkv", 3 * width, width, 1, 1)
        conv(f"{name}.1.proj", width, width, 1, 1)
        residual(f"{name}.2", width, width)

    widths = [config.dim * m for m in (1, *config.multipliers)]
    conv("encoder.conv1", widths[0], 3, 3, 3, 3)
    for kind, index, inside, out in encoder_layers(config):
        name = f"encoder.downsamples.{index}"
        if kind == "res":
            residual(name, inside, out)
        else:
            conv(f"{name}.resample.1", out, inside, 3, 3)
            if kind == "down3d":
                conv(f"{name}.time_conv", out, out, 3, 1, 1)
    middle("encoder.middle", widths[-1])
    shapes["encoder.head.0.gamma"] = (widths[-1], 1, 1, 1)
    conv("encoder.head.2", 2 * config.z_dim, widths[-1], 3, 3, 3)
    conv("conv1", 2 * config.z_dim, 2 * config.z_dim, 1, 1, 1)
    conv("conv2", config.z_dim, config.z_dim, 1, 1, 1)

    conv("decoder.conv1", widths[-1], config.z_dim, 3, 3, 3)
    middle("decoder.middle", widths[-1])
    for kind, index, inside, out in decoder_layers(config):
        name = f"decoder.upsamples.{index}"
        if kind == "res":
            residual(name, inside, out)
        else:
            conv(f"{name}.resample.1", out, inside, 3, 3)
            if kind == "up3d":
                conv(f"{name}.time_conv", 2 * inside, inside, 3, 1, 1)
    shapes["decoder.head.0.gamma"] = (config.dim, 1, 1, 1)
    conv("decoder.head.2", 3, config.dim, 3, 3, 3)
    return shapes


Layer = tuple[str, int, int, int]  # kind, index in the checkpoint, channels in, channels out


def encoder_layers(config: VaeConfig) -> list[Layer]:
    """The encoder's ladder: res, down2d and down3d layers from pixels to latents."""
    widths = [config.dim * m for m in (1, *config.multipliers)]
    layers: list[Layer] = []
    last = len(config.multipliers) - 1
    for stage, (inside, out) in enumerate(itertools.pairwise(widths)):
        for n in range(config.res_blocks):
            layers.append(("res", len(layers), inside if n == 0 else out, out))
        if stage != last:
            layers.append(("down3d" if config.time_down[stage] else "down2d", len(layers), out, out))
    return layers


def decoder_layers(config: VaeConfig) -> list[Layer]:
    """The decoder's ladder: res, up3d and up2d layers from latents to pixels; each up halves the channels."""
    widths = [config.dim * m for m in (config.multipliers[-1], *reversed(config.multipliers))]
    layers: list[Layer] = []
    last = len(config.multipliers) - 1
    for stage, (wide, out) in enumerate(itertools.pairwise(widths)):
        inside = wide if stage == 0 else wide // 2
        for n in range(config.res_blocks + 1):
            layers.append(("res", len(layers), inside if n == 0 else out, out))
        if stage != last:
            kind = "up3d" if config.time_down[::-1][stage] else "up2d"
            layers.append((kind, len(layers), out, out // 2))
    return layers


def count_parameters(shapes: Shapes) -> int:
    """How many numbers the tensors hold together."""
    return sum(prod(shape) for shape in shapes.values())
