"""The Wan 2.1 video autoencoder, whole sequences at once or a few latents at a time.

Activations are [frames, rows, columns, channels], which is what cuDNN calls channels_last_3d, so a convolution needs
no conversion; norm, SiLU, bias and residual between two convolutions are one pass.  Causal convolutions look two frames
back: the pass before writes its result behind two frames of history, which are zeros at the beginning of a film and the
last two frames of the part before afterwards.  That makes part sizes a choice of memory, not of pixels.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from workers.engines.flashtalk import ops
from workers.engines.flashtalk.geometry import VaeConfig
from workers.engines.flashtalk.inventory import Layer, decoder_layers, encoder_layers
from workers.engines.flashtalk.sources import Source

# The latent space's constants, as Wan 2.1 publishes them.
MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
HISTORY = 2  # frames that a causal convolution of size three looks back

Memory = dict[str, torch.Tensor]  # layer name -> last frames of its input


class Vae:
    """Encoder and decoder.  `upstream_rounding` holds the latent constants in the weights' type, as upstream does."""

    def __init__(
        self, config: VaeConfig, source: Source, device: torch.device, dtype: torch.dtype, *, upstream_rounding: bool
    ) -> None:
        from workers.engines.flashtalk.inventory import vae_tensors

        self.config = config
        self.device = device
        self.dtype = dtype
        self._w: dict[str, torch.Tensor] = {}
        for name, shape in vae_tensors(config).items():
            tensor = source.take(name, torch.float32 if name.endswith("gamma") else dtype)
            if name.endswith("gamma"):
                tensor = tensor.flatten() * shape[0] ** 0.5
            elif tensor.dim() == 5:
                tensor = tensor.contiguous(memory_format=torch.channels_last_3d)
            elif tensor.dim() == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            self._w[name] = tensor
        rounded = dtype if upstream_rounding else torch.float32
        self._mean = torch.tensor(MEAN, device=device, dtype=rounded)
        self._scale = 1.0 / torch.tensor(STD, device=device, dtype=rounded)

    # -- latents ----------------------------------------------------------------------------------------------------

    def encode(self, frames: torch.Tensor, part: int = 0) -> torch.Tensor:
        """Frames in [-1, 1], [3, 1 + 4n, H, W], to latents [16, 1 + n, H / 8, W / 8]; `part` latents at a time."""
        x = frames.to(self.dtype).permute(1, 2, 3, 0)
        memory: Memory | None = {} if part else None
        cuts = [0, 1, *range(1 + 4 * part, x.shape[0], 4 * part), x.shape[0]] if part else [0, x.shape[0]]
        parts = [self._encode_part(x[a:b].contiguous(), memory) for a, b in itertools.pairwise(cuts) if a < b]
        mu = torch.cat(parts)[..., : self.config.z_dim]
        return ((mu - self._mean) * self._scale).to(self.dtype).permute(3, 0, 1, 2).contiguous()

    def decode(self, latents: torch.Tensor, part: int = 0) -> torch.Tensor:
        """Latents [16, 1 + n, h, w] to frames [3, 1 + 4n, 8h, 8w], clamped to [-1, 1]; `part` latents at a time."""
        z = latents.to(self.dtype) / self._scale.view(-1, 1, 1, 1) + self._mean.view(-1, 1, 1, 1)
        z = z.to(self.dtype).permute(1, 2, 3, 0).contiguous()
        z = self._pointwise(z, "conv2")
        if not part:
            frames = self._decode_part(z, None)
        else:
            memory: Memory = {}
            frames = torch.cat([self._decode_part(piece.contiguous(), memory) for piece in z.split(part)])
        return frames.permute(3, 0, 1, 2).clamp(-1, 1)

    # -- ladders ----------------------------------------------------------------------------------------------------

    def _encode_part(self, x: torch.Tensor, memory: Memory | None) -> torch.Tensor:
        x = self._enter(x, "encoder.conv1", memory)
        for layer in encoder_layers(self.config):
            x = self._encoder_layer(x, layer, memory)
        x = self._leave(self._middle(x, "encoder", memory), "encoder", memory)
        return self._pointwise(x, "conv1")

    def _decode_part(self, z: torch.Tensor, memory: Memory | None) -> torch.Tensor:
        x = self._enter(z, "decoder.conv1", memory)
        x = self._middle(x, "decoder", memory)
        for kind, index, _, _ in decoder_layers(self.config):
            name = f"decoder.upsamples.{index}"
            x = self._residual(x, name, memory) if kind == "res" else self._grow(x, name, kind == "up3d", memory)
        return self._leave(x, "decoder", memory)

    def _encoder_layer(self, x: torch.Tensor, layer: Layer, memory: Memory | None) -> torch.Tensor:
        kind, index, _, _ = layer
        name = f"encoder.downsamples.{index}"
        return self._residual(x, name, memory) if kind == "res" else self._shrink(x, name, kind == "down3d", memory)

    def _middle(self, x: torch.Tensor, side: str, memory: Memory | None) -> torch.Tensor:
        x = self._residual(x, f"{side}.middle.0", memory)
        x = self._look_around(x, f"{side}.middle.1")
        return self._residual(x, f"{side}.middle.2", memory)

    # -- layers -----------------------------------------------------------------------------------------------------

    def _enter(self, x: torch.Tensor, name: str, memory: Memory | None) -> torch.Tensor:
        room = self._room(x, x.shape[-1], name, memory)
        room[HISTORY:] = x
        return self._conv(room, name, memory) + self._w[f"{name}.bias"]

    def _leave(self, x: torch.Tensor, side: str, memory: Memory | None) -> torch.Tensor:
        name = f"{side}.head.2"
        room = self._room(x, x.shape[-1], name, memory)
        ops.residual_rms_silu(x, None, None, self._w[f"{side}.head.0.gamma"], room[HISTORY:], keep=False)
        return self._conv(room, name, memory) + self._w[f"{name}.bias"]

    def _residual(self, x: torch.Tensor, name: str, memory: Memory | None) -> torch.Tensor:
        first, second = f"{name}.residual.2", f"{name}.residual.6"
        room = self._room(x, x.shape[-1], first, memory)
        ops.residual_rms_silu(x, None, None, self._w[f"{name}.residual.0.gamma"], room[HISTORY:], keep=False)
        y = self._conv(room, first, memory)
        room = self._room(y, y.shape[-1], second, memory)
        gamma = self._w[f"{name}.residual.3.gamma"]
        ops.residual_rms_silu(y, self._w[f"{first}.bias"], None, gamma, room[HISTORY:], keep=False)
        y = self._conv(room, second, memory)
        if f"{name}.shortcut.weight" in self._w:
            x = self._pointwise(x, f"{name}.shortcut")
        return (y + self._w[f"{second}.bias"]).add_(x)

    def _room(self, like: torch.Tensor, channels: int, name: str, memory: Memory | None) -> torch.Tensor:
        """Empty frames for a convolution's input behind its history."""
        frames, rows, columns, _ = like.shape
        room = like.new_empty(HISTORY + frames, rows, columns, channels)
        if memory is not None and name in memory:
            room[:HISTORY] = memory[name]
        else:
            room[:HISTORY] = 0
        return room

    def _conv(self, room: torch.Tensor, name: str, memory: Memory | None) -> torch.Tensor:
        """A causal convolution without its bias; remembers the end of its input."""
        if memory is not None:
            memory[name] = room[-HISTORY:].clone()
        weight = self._w[f"{name}.weight"]
        rows = weight.shape[3] // 2
        out = F.conv3d(room.permute(3, 0, 1, 2)[None], weight, padding=(0, rows, rows))
        return out[0].permute(1, 2, 3, 0).contiguous()

    def _pointwise(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight = self._w[f"{name}.weight"]
        return F.linear(x, weight.flatten(1), self._w[f"{name}.bias"])

    def _plane(self, x: torch.Tensor, name: str, **how: int) -> torch.Tensor:
        """A convolution of each frame on its own."""
        out = F.conv2d(x.permute(0, 3, 1, 2), self._w[f"{name}.weight"], self._w[f"{name}.bias"], **how)
        return out.permute(0, 2, 3, 1).contiguous()

    def _look_around(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Attention of one head among the pixels of each frame."""
        frames, rows, columns, channels = x.shape
        h = F.normalize(x.float(), dim=-1) * self._w[f"{name}.norm.gamma"]
        qkv = self._pointwise(h.to(x.dtype), f"{name}.to_qkv").view(frames, 1, rows * columns, 3 * channels)
        out = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return x + self._pointwise(out.view(x.shape), f"{name}.proj")

    def _grow(self, x: torch.Tensor, name: str, in_time: bool, memory: Memory | None) -> torch.Tensor:
        """Twice the rows and columns; in time every frame but the film's first becomes two."""
        if in_time:
            first = memory is None or f"{name}.begun" not in memory
            later = x[1:] if first else x
            if memory is not None:
                memory[f"{name}.begun"] = x.new_zeros(1)
            if later.shape[0]:
                room = self._room(later, later.shape[-1], name, memory)
                room[HISTORY:] = later
                y = self._time_conv(room, name, 1) + self._w[f"{name}.time_conv.bias"]
                if memory is not None:
                    memory[name] = room[-HISTORY:].clone()
                frames, rows, columns, channels = later.shape
                y = y.view(frames, rows, columns, 2, channels).permute(0, 3, 1, 2, 4)
                y = y.reshape(2 * frames, rows, columns, channels)
                x = torch.cat([x[:1], y]) if first else y
        x = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest-exact").permute(0, 2, 3, 1)
        return self._plane(x, f"{name}.resample.1", padding=1)

    def _shrink(self, x: torch.Tensor, name: str, in_time: bool, memory: Memory | None) -> torch.Tensor:
        """Half the rows and columns; in time the film's first frame stays and each two after it become one."""
        x = self._plane(F.pad(x, (0, 0, 0, 1, 0, 1)), f"{name}.resample.1", stride=2)
        if not in_time:
            return x
        before = memory.get(name) if memory is not None else None
        if memory is not None:
            memory[name] = x[-1:].clone()
        seen = x if before is None else torch.cat([before, x])
        if seen.shape[0] < 3:
            return x
        y = self._time_conv(seen, name, 2) + self._w[f"{name}.time_conv.bias"]
        return torch.cat([x[:1], y]) if before is None else y

    def _time_conv(self, x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        weight = self._w[f"{name}.time_conv.weight"]
        out = F.conv3d(x.permute(3, 0, 1, 2)[None], weight, stride=(stride, 1, 1))
        return out[0].permute(1, 2, 3, 0).contiguous()
