"""One rank of a tiny FlashTalk that renders three chunks; what it made is written for a test to compare.

python render_in_step.py OUT PORTRAIT WIDTH HEIGHT [nan]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from farm.errors import EngineError
from tests.engines.flashtalk.conftest import Speech
from workers.engines.contract import FilmRequest
from workers.engines.flashtalk import make_engine
from workers.engines.flashtalk.geometry import NEW_FRAMES, TINY_VAE, Geometry
from workers.engines.flashtalk.inventory import vae_tensors
from workers.engines.flashtalk.sampler import sigmas
from workers.engines.flashtalk.shares import SpreadAttention, TokenShare
from workers.engines.flashtalk.sources import RandomSource
from workers.engines.flashtalk.vae import Vae

CHUNKS = 3


class Kept(Speech):
    """Counts how often it is read."""

    reads = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        self.reads += 1
        return super().read(start, stop)


def stages(engine: Any, film: FilmRequest) -> dict[str, np.ndarray]:
    """One pass through the transformer and the autoencoder, in floats."""
    made = engine._prepare(film, engine.begin(film, 0, None)._film.job, Geometry(film.height, film.width))
    draw = torch.Generator().manual_seed(5)
    latents = torch.randn(made.geometry.latent_shape, generator=draw)
    taps = torch.randn(33, 5, engine.dit.config.audio_layers, engine.dit.config.audio_dim, generator=draw)
    share = TokenShare(made.geometry, engine.ranks)
    velocity = engine.dit.velocity(
        latents,
        made.condition,
        engine.dit.modulation(sigmas(2)[1]),
        made.context,
        engine.dit.hear(taps),
        made.geometry,
        SpreadAttention(engine.exact_attention, share),
        2,
        share,
    )
    decoded = engine.vae.decode(latents, 0, 5, engine.ranks)
    lean = engine.vae.decode(latents, 2, 5, engine.ranks)
    source = RandomSource(vae_tensors(TINY_VAE), engine.device)
    fast = Vae(TINY_VAE, source, engine.device, engine.dtype, upstream_rounding=False, tiled=True)
    tiled = fast.decode(latents, 0, 5, engine.ranks)
    encoded = engine.vae.encode(decoded[:, -5:], 0, engine.ranks)
    whole = engine.vae.encode(decoded[:, -5:])
    found = {"velocity": velocity, "decoded": decoded, "decoded in parts": lean, "encoded": encoded, "whole": whole}
    found["decoded in tiles"] = tiled
    return {name: tensor.numpy() for name, tensor in found.items()}


def main(out: str, portrait: str, width: str, height: str, fault: str = "") -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    settings = {"weights": "random", "architecture": "tiny", "device": "cpu", "cache": f"{out}.{rank}.cache"}
    engine: Any = make_engine(settings)
    engine.load()
    speech = Kept(CHUNKS * NEW_FRAMES * 640)
    film = FilmRequest(
        portrait=Path(portrait) if rank == 0 else Path("nowhere.png"),  # rank 0 alone reads it
        audio=speech,
        total_frames=CHUNKS * NEW_FRAMES,
        width=int(width),
        height=int(height),
        fps=(25, 1),
        prompt="",
        seed=7,
        settings={"steps": 2},
        facts={},
    )
    found: dict[str, np.ndarray] = {}
    if fault:
        weights, name = engine.vae._w, "decoder.conv1.bias"
        healthy = weights[name]
        weights[name] = healthy * float("nan") if rank == 1 else healthy
        try:
            engine.begin(film, 0, None).step()
        except EngineError as error:
            found["said"] = np.array(str(error))
        weights[name] = healthy
    with torch.inference_mode():
        found |= stages(engine, film)
    carry, frames = None, []
    for chunk in range(CHUNKS):  # each chunk a segment of its own
        session = engine.begin(film, chunk * NEW_FRAMES, carry)
        frames.append(session.step())
        carry = session.carry()
        found[f"carry {chunk}"] = session._motion.numpy()
    assert (speech.reads > 0) == (rank == 0)
    np.savez(f"{out}.{rank}.npz", frames=np.concatenate(frames), version=np.array(engine.version), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
