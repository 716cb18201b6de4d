"""The farm's own Wan autoencoder and colour match where a checkout's pipeline has upstream's.

They compute the same in another order: the autoencoder a whole sequence at once instead of a latent at a time, with
less than half of the passes over memory, and the colours in float32, where upstream's bfloat16 costs more than one
level of 255 on average.  Nothing of them is compiled, which is most of what loading a pipeline takes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from workers.engines.flashtalk.colour import match_colour, measure_colour
from workers.engines.flashtalk.geometry import VaeConfig
from workers.engines.flashtalk.inventory import vae_tensors
from workers.engines.flashtalk.sources import FileSource
from workers.engines.flashtalk.vae import Vae
from workers.engines.upstream.platforms import Platform

TORCH_NEEDED = (2, 8)  # torch.mm gives float32 of half precision from here on
PART = 2  # latents that are decoded at once where a whole chunk would take too much, which is 15 GB at 512x512
WAN = VaeConfig()


def pay(platform: Platform) -> bool:
    """Whether they are faster on this device with this torch: on a CPU they are not, on an NPU nobody tried."""
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return platform.kind == "cuda" and found >= TORCH_NEEDED


class WanPictures:
    """Stands for the checkout's WanVAE: pictures [1, 3, T, H, W] in [-1, 1], latents [16, 1 + T // 4, H / 8, W / 8]."""

    def __init__(self, file: Path, platform: Platform, config: VaeConfig = WAN, *, whole_from_bytes: float = 0) -> None:
        """Cards with less memory than `whole_from_bytes` decode in parts.  Raises ConfigError for a missing tensor."""
        device = torch.device(platform.device)
        source = FileSource(file, vae_tensors(config), device)
        self._vae = Vae(config, source, device, platform.dtype, upstream_rounding=True)
        on_card = platform.kind == "cuda"
        self._part = PART if on_card and torch.cuda.get_device_properties(0).total_memory < whole_from_bytes else 0

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        return self._vae.encode(frames[0], self._part)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """In float32, so that no level is lost before the frames become bytes."""
        return self._vae.decode(latents, self._part)[None]


def match_colours(frames: torch.Tensor, reference: torch.Tensor, strength: float) -> torch.Tensor:
    """Frames [1, 3, T, H, W] with the Lab mean and deviation of a picture [1, 3, 1, H, W], both in [-1, 1]."""
    matched = match_colour(frames[0], measure_colour(reference[0, :, 0]), strength)
    return matched[None].to(frames.dtype)
