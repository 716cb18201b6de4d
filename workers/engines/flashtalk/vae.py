"""The Wan 2.1 video autoencoder, whole sequences at once or a few latents at a time.

Activations are [frames, rows, columns, channels], which is what cuDNN calls channels_last_3d, so a convolution needs
no conversion; norm, SiLU, bias and residual between two convolutions are one pass.  Causal convolutions look two frames
back: the pass before writes its result behind two frames of history, which are zeros at the beginning of a film and the
last two frames of the part before afterwards.  That makes part sizes a choice of memory, not of pixels.  A whole
sequence on a CUDA card takes half the multiplications (see winograd.py) and rounds a little differently.

Several ranks each take some rows.  Before a convolution a rank gets one row from either neighbour, and each frame's
attention sees everybody's keys, so that the rows together are what one rank computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F

from workers.engines.flashtalk import ops, winograd
from workers.engines.flashtalk.geometry import SPACE_STRIDE, VaeConfig
from workers.engines.flashtalk.inventory import Layer, decoder_layers, encoder_layers, vae_tensors
from workers.engines.flashtalk.shares import RowShare
from workers.engines.flashtalk.sources import Source
from workers.engines.flashtalk.winograd import Products
from workers.engines.ranks import ALONE, Ranks

# The latent space's constants, as Wan 2.1 publishes them.
MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
UNSTACKED = ("encoder.conv1.weight", "decoder.conv1.weight")
LEAN_FRAMES = 1  # full-size frames that a decode in parts works on at once
HISTORY = 2  # frames that a causal convolution of size three looks back

STACKED = (96, 384)  # channel counts whose convolutions run faster as planes of three stacked frames
ENTRY = 8  # channels that a picture is filled up to, because fewer leave the matrix units idle

Memory = dict[str, torch.Tensor]  # layer name -> last frames of its input


class Stream(NamedTuple):
    """Activations [T, H, W, C] as a sum that the next pass makes: y + bias + residual."""

    y: torch.Tensor | Products
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None


class Vae:
    """Encoder and decoder.

    `upstream_rounding` holds the latent constants in the weights' type, as upstream does.  `stacked` names the channel
    counts whose convolutions run over stacked planes; by default those for which that is faster on a GPU.  `tiled`
    goes through whole sequences by winograd.py; by default on a GPU.
    """

    def __init__(
        self,
        config: VaeConfig,
        source: Source,
        device: torch.device,
        dtype: torch.dtype,
        *,
        upstream_rounding: bool,
        stacked: Collection[int] | None = None,
        tiled: bool | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self._w: dict[str, torch.Tensor] = {}
        self._share = RowShare(1)  # whose rows the running call works on
        self._stacked = set(stacked if stacked is not None else STACKED if device.type == "cuda" else ())
        self._tiled = tiled if tiled is not None else device.type == "cuda"
        self._planes: dict[str, tuple[torch.Tensor, ...]] = {}  # weights of tiled convolutions
        for name, shape in vae_tensors(config).items():
            tensor = source.take(name, torch.float32)
            if self._tiled and ".residual." in name and len(shape) == 5:
                self._planes[name] = winograd.weigh(tensor, dtype)
            self._w[name] = self._arrange(name, tensor, shape)
        rounded = dtype if upstream_rounding else torch.float32
        self._mean = torch.tensor(MEAN, device=device, dtype=rounded)
        self._scale = 1.0 / torch.tensor(STD, device=device, dtype=rounded)

    def _arrange(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A weight in the layout that its layer reads."""
        if name.endswith("gamma"):
            return tensor.flatten() * shape[0] ** 0.5
        if name.startswith("decoder.upsamples") and name.endswith("resample.1.weight"):
            return split_phases(tensor).to(self.dtype).contiguous(memory_format=torch.channels_last)
        tensor = tensor.to(self.dtype)
        if name == "decoder.head.2.weight":  # [27 * O, C]: products of a pixel with each tap
            return tensor.permute(2, 3, 4, 0, 1).flatten(0, 3).contiguous()
        if name == "encoder.conv1.weight":
            tensor = F.pad(tensor, (0, 0, 0, 0, 0, 0, 0, ENTRY - shape[1]))
        if len(shape) == 5 and shape[2:] == (3, 3, 3):
            if shape[1] in self._stacked and name not in UNSTACKED:
                planes = tensor.permute(0, 2, 1, 3, 4).flatten(1, 2)
                return planes.contiguous(memory_format=torch.channels_last)
            return tensor.contiguous(memory_format=torch.channels_last_3d)
        if len(shape) == 5:
            return tensor.contiguous(memory_format=torch.channels_last_3d)
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    # -- latents ----------------------------------------------------------------------------------------------------

    def encode(self, frames: torch.Tensor, part: int = 0, ranks: Ranks = ALONE) -> torch.Tensor:
        """Frames in [-1, 1], [3, 1 + 4n, H, W], to latents [16, 1 + n, H / 8, W / 8]; `part` latents at a time.

        All of `ranks` give the same frames and get the whole result.
        """
        self._share = share = RowShare(frames.shape[2] // SPACE_STRIDE, ranks)
        x = share.cut(frames.to(self.dtype), 2, SPACE_STRIDE).permute(1, 2, 3, 0)
        memory: Memory | None = {} if part else None
        cuts = [0, 1, *range(1 + 4 * part, x.shape[0], 4 * part), x.shape[0]] if part else [0, x.shape[0]]
        parts = [self._encode_part(x[a:b].contiguous(), memory) for a, b in itertools.pairwise(cuts) if a < b]
        mu = share.join(torch.cat(parts)[..., : self.config.z_dim], 1, 1)
        return ((mu - self._mean) * self._scale).to(self.dtype).permute(3, 0, 1, 2).contiguous()

    def decode(self, latents: torch.Tensor, part: int = 0, dropped: int = 0, ranks: Ranks = ALONE) -> torch.Tensor:
        """Latents [16, 1 + n, h, w] to float32 frames [3, 1 + 4n - dropped, 8h, 8w], clamped to [-1, 1].

        `part` latents at a time; the first `dropped` frames are not wanted.  All of `ranks` give the same latents and
        get the whole result.
        """
        self._share = share = RowShare(latents.shape[2], ranks)
        z = latents.to(self.dtype) / self._scale.view(-1, 1, 1, 1) + self._mean.view(-1, 1, 1, 1)
        z = share.cut(z.to(self.dtype), 2, 1).permute(1, 2, 3, 0).contiguous()
        z = self._pointwise(z, "conv2")
        if not part:
            return share.join(self._decode_part(z, None, dropped), 2, SPACE_STRIDE)
        memory: Memory = {}
        frames = [self._decode_part(piece.contiguous(), memory, 0) for piece in z.split(part)]
        return share.join(torch.cat(frames, dim=1)[:, dropped:], 2, SPACE_STRIDE)

    # -- ladders ----------------------------------------------------------------------------------------------------

    def _encode_part(self, x: torch.Tensor, memory: Memory | None) -> torch.Tensor:
        stream = self._enter(x, "encoder.conv1", memory)
        for layer in encoder_layers(self.config):
            stream = self._encoder_layer(stream, layer, memory)
        stream = Stream(self._add_up(self._middle(stream, "encoder", memory)))
        out, _ = self._norm_conv(stream, "encoder.head.0.gamma", "encoder.head.2", memory, keep=False)
        return self._pointwise(self._add_up(out), "conv1")

    def _decode_part(self, z: torch.Tensor, memory: Memory | None, dropped: int) -> torch.Tensor:
        stream = self._middle(self._enter(z, "decoder.conv1", memory), "decoder", memory)
        layers = decoder_layers(self.config)
        last = max(n for n, layer in enumerate(layers) if layer[0] == "up3d")
        for layer in layers[: last + 1]:
            stream = self._decoder_layer(stream, layer, memory)
        if memory is None:
            return self._finish(stream, layers[last + 1 :], None, dropped)
        # Frames are single from here on, so a lean decode takes fewer at once where they are largest.
        pieces = self._add_up(stream).split(LEAN_FRAMES)
        return torch.cat([self._finish(Stream(x), layers[last + 1 :], memory, 0) for x in pieces], dim=1)

    def _finish(self, stream: Stream, layers: list[Layer], memory: Memory | None, dropped: int) -> torch.Tensor:
        for layer in layers:
            stream = self._decoder_layer(stream, layer, memory)
        return self._paint(stream, memory, dropped).clamp_(-1, 1)

    def _decoder_layer(self, stream: Stream, layer: Layer, memory: Memory | None) -> Stream:
        kind, index, _, _ = layer
        name = f"decoder.upsamples.{index}"
        if kind == "res":
            return self._residual(stream, name, memory)
        return self._grow(self._add_up(stream), name, kind == "up3d", memory)

    def _encoder_layer(self, stream: Stream, layer: Layer, memory: Memory | None) -> Stream:
        kind, index, _, _ = layer
        name = f"encoder.downsamples.{index}"
        if kind == "res":
            return self._residual(stream, name, memory)
        return self._shrink(self._add_up(stream), name, kind == "down3d", memory)

    def _middle(self, stream: Stream, side: str, memory: Memory | None) -> Stream:
        stream = self._residual(stream, f"{side}.middle.0", memory)
        stream = Stream(self._look_around(self._add_up(stream), f"{side}.middle.1"))
        return self._residual(stream, f"{side}.middle.2", memory)

    # -- layers -----------------------------------------------------------------------------------------------------

    def _enter(self, x: torch.Tensor, name: str, memory: Memory | None) -> Stream:
        if x.shape[-1] < ENTRY:
            x = F.pad(x, (0, ENTRY - x.shape[-1]))
        room = self._room(x, name, memory, stacked=False)
        room[HISTORY:] = x
        return Stream(self._conv(room, name, memory), self._w[f"{name}.bias"])

    def _residual(self, stream: Stream, name: str, memory: Memory | None) -> Stream:
        inner, x = self._norm_conv(stream, f"{name}.residual.0.gamma", f"{name}.residual.2", memory, keep=True)
        assert isinstance(x, torch.Tensor)
        out, _ = self._norm_conv(inner, f"{name}.residual.3.gamma", f"{name}.residual.6", memory, keep=False)
        if f"{name}.shortcut.weight" in self._w:
            x = self._pointwise(x, f"{name}.shortcut")
        return out._replace(residual=x)

    def _norm_conv(
        self, stream: Stream, gamma: str, name: str, memory: Memory | None, *, keep: bool
    ) -> tuple[Stream, torch.Tensor | Products]:
        """Norm, SiLU and a causal convolution; the stream's sum too where `keep`."""
        keep = keep and stream.bias is not None
        frames = stream.y.shape[0]
        if memory is None and f"{name}.weight" in self._planes and winograd.pays(frames):
            tiles, kept = winograd.spread(*stream, self._w[gamma], self.dtype, keep)
            reached, pad = self._reach(tiles)
            out = winograd.convolve(reached, self._planes[f"{name}.weight"], pad, frames)
            return Stream(out, self._w[f"{name}.bias"]), stream.y if kept is None else kept
        assert isinstance(stream.y, torch.Tensor)  # a layer's convolutions have equally many frames: all leave products
        room = self._room(stream.y, name, memory)
        kept = ops.residual_rms_silu(*stream, self._w[gamma], room, keep)
        out = Stream(self._conv(room, name, memory), self._w[f"{name}.bias"])
        return out, stream.y if kept is None else kept

    def _add_up(self, stream: Stream) -> torch.Tensor:
        if isinstance(stream.y, Products):
            assert stream.bias is not None
            return winograd.add_up(stream.y, stream.bias, stream.residual, self.dtype)
        return stream.y if stream.bias is None else ops.add_up(stream.y, stream.bias, stream.residual)

    def _paint(self, stream: Stream, memory: Memory | None, dropped: int) -> torch.Tensor:
        """The last norm and the convolution to three channels, float32 [3, T - dropped, H, W].

        With so few results the taps' products are one matrix product, and adding them up reads each once.
        """
        name = "decoder.head.2"
        frames, rows, columns, channels = stream.y.shape
        gamma = self._w["decoder.head.0.gamma"]
        if isinstance(stream.y, Products):
            shape = (HISTORY + frames, rows, columns, channels)
            room = torch.empty(shape, dtype=self.dtype, device=self.device)
            room[:HISTORY] = 0
            winograd.norm_into(*stream, gamma, room)
        else:
            room = self._room(stream.y, name, memory, stacked=False)
            ops.residual_rms_silu(*stream, gamma, room, False)
        if memory is not None:
            memory[name] = room[-HISTORY:].clone()
        room = room[dropped:]
        if not self._share.is_whole:
            room, rows = self._share.reach(room), rows + 2
        pixels = room.view(-1, channels).t()
        weight = self._w[f"{name}.weight"]
        if room.is_cuda:
            products = torch.mm(weight, pixels, out_dtype=torch.float32)
        else:
            products = torch.mm(weight.float(), pixels.float())
        out = ops.sum_taps(products, (frames - dropped, rows, columns), self._w[f"{name}.bias"])
        return out if self._share.is_whole else out[:, :, 1:-1].contiguous()

    def _room(self, like: torch.Tensor, name: str, memory: Memory | None, stacked: bool | None = None) -> torch.Tensor:
        """Empty input of a convolution with its history written: frames in a row, or stacked three by three."""
        frames, rows, columns, channels = like.shape
        before = memory.get(name) if memory is not None else None
        if stacked is None:
            stacked = channels in self._stacked
        if stacked:
            room = like.new_empty(frames, rows, columns, 3, channels)
            room[0, :, :, :2] = 0 if before is None else before.permute(1, 2, 0, 3)
            room[1:2, :, :, 0] = 0 if before is None else before[1]
            return room
        room = like.new_empty(HISTORY + frames, rows, columns, channels)
        room[:HISTORY] = 0 if before is None else before
        return room

    def _conv(self, room: torch.Tensor, name: str, memory: Memory | None) -> torch.Tensor:
        """A causal convolution without its bias; remembers the end of its input."""
        weight = self._w[f"{name}.weight"]
        if memory is not None:
            stacked = room.dim() == 5
            end = room[-1, :, :, 1:].permute(2, 0, 1, 3).contiguous() if stacked else room[-HISTORY:].clone()
            memory[name] = end
        room, pad = self._reach(room)
        if room.dim() == 5:
            out = F.conv2d(room.flatten(3).permute(0, 3, 1, 2), weight, padding=pad)
            return out.permute(0, 2, 3, 1).contiguous()
        out = F.conv3d(room.permute(3, 0, 1, 2)[None], weight, padding=(0, *pad))
        return out[0].permute(1, 2, 3, 0).contiguous()

    def _reach(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """A convolution's input with the neighbours' rows, and the padding of rows and columns that is left to do."""
        return (x, (1, 1)) if self._share.is_whole else (self._share.reach(x), (0, 1))

    def _pointwise(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight = self._w[f"{name}.weight"]
        return F.linear(x, weight.flatten(1), self._w[f"{name}.bias"])

    def _look_around(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Attention of one head among the pixels of each frame."""
        h = F.normalize(x.float(), dim=-1) * self._w[f"{name}.norm.gamma"]
        q, k, v = self._pointwise(h.to(x.dtype), f"{name}.to_qkv").chunk(3, dim=-1)
        if not self._share.is_whole:
            k, v = self._share.join(torch.cat([k, v], dim=-1), 1, 1).chunk(2, dim=-1)
        out = F.scaled_dot_product_attention(*(part.flatten(1, 2)[:, None] for part in (q, k, v)))
        return x + self._pointwise(out.view(x.shape), f"{name}.proj")

    def _grow(self, x: torch.Tensor, name: str, in_time: bool, memory: Memory | None) -> Stream:
        """Twice the rows and columns; in time every frame but the film's first becomes two."""
        if in_time:
            first = memory is None or f"{name}.begun" not in memory
            later = x[1:] if first else x
            if memory is not None:
                memory[f"{name}.begun"] = x.new_zeros(1)
            if later.shape[0]:
                room = self._room(later, name, memory, stacked=False)
                room[HISTORY:] = later
                y = self._time_conv(room, name, 1) + self._w[f"{name}.time_conv.bias"]
                if memory is not None:
                    memory[name] = room[-HISTORY:].clone()
                frames, rows, columns, channels = later.shape
                y = y.view(frames, rows, columns, 2, channels).permute(0, 3, 1, 2, 4)
                y = y.reshape(2 * frames, rows, columns, channels)
                x = torch.cat([x[:1], y]) if first else y
        # Repeating each pixel and then convolving is four small convolutions, one for each place in the new 2x2.
        x, pad = self._reach(x)
        phases = F.conv2d(x.permute(0, 3, 1, 2), self._w[f"{name}.resample.1.weight"], padding=pad)
        phases = phases.permute(0, 2, 3, 1).contiguous().unflatten(3, (4, -1))
        return Stream(ops.shuffle_phases(phases, self._w[f"{name}.resample.1.bias"]))

    def _shrink(self, x: torch.Tensor, name: str, in_time: bool, memory: Memory | None) -> Stream:
        """Half the rows and columns; in time the film's first frame stays and each two after it become one."""
        weight, bias = self._w[f"{name}.resample.1.weight"], self._w[f"{name}.resample.1.bias"]
        rows = 1 if self._share.is_whole else 0
        x = x if rows else self._share.reach(x, above=False)
        x = F.conv2d(F.pad(x, (0, 0, 0, 1, 0, rows)).permute(0, 3, 1, 2), weight, bias, stride=2)
        x = x.permute(0, 2, 3, 1).contiguous()
        if not in_time:
            return Stream(x)
        before = memory.get(name) if memory is not None else None
        if memory is not None:
            memory[name] = x[-1:].clone()
        seen = x if before is None else torch.cat([before, x])
        if seen.shape[0] < 3:
            return Stream(x)
        y = self._time_conv(seen, name, 2) + self._w[f"{name}.time_conv.bias"]
        return Stream(torch.cat([x[:1], y]) if before is None else y)

    def _time_conv(self, x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        weight = self._w[f"{name}.time_conv.weight"]
        out = F.conv3d(x.permute(3, 0, 1, 2)[None], weight, stride=(stride, 1, 1))
        return out[0].permute(1, 2, 3, 0).contiguous()


def split_phases(weight: torch.Tensor) -> torch.Tensor:
    """A 3x3 convolution after doubling rows and columns as 2x2 ones before it: [O, C, 3, 3] to [4 * O, C, 2, 2].

    Place 0 of a doubled row sees the row before once and its own twice, place 1 its own twice and the next one once.
    """

    def fold(w: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        a, b, c = w.unbind(axis)
        return torch.stack([a, b + c], axis), torch.stack([a + b, c], axis)

    return torch.cat([phase for half in fold(weight, 2) for phase in fold(half, 3)])
