#!/usr/bin/env python3
"""The farm's autoencoder and colour match against those of the checkouts that they stand in for, on the CPU in float32.

    python scripts/parity_parts.py --flashhead PATH                 SoulX-FlashHead's Wan autoencoder and colours
    python scripts/parity_parts.py --flashhead PATH --lightx2v PATH     and LightX2V's, which SoulX-LiveAct asks for

Run it by an interpreter that has what the checkouts import.  Weights are random and of the autoencoder's true size,
pictures small.  Prints the largest difference of each part; exits with 1 where one is above 1e-4.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

import torch  # noqa: E402
from check_upstream import Making, write_autoencoder  # noqa: E402

from workers.engines.upstream import flashhead, own_parts  # noqa: E402
from workers.engines.upstream.checkout import check_checkout, import_from  # noqa: E402
from workers.engines.upstream.platforms import Platform  # noqa: E402

SIDE = 32
ALLOWED = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flashhead", type=Path, required=True, help="a checkout of SoulX-FlashHead")
    parser.add_argument("--lightx2v", type=Path, help="folder to import lightx2v from")
    asked = parser.parse_args()
    torch.manual_seed(0)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder) / "Wan2.1_VAE.pth"
        write_autoencoder(file, Making())
        ours = own_parts.WanPictures(file, Platform("cpu"))
        checkout = check_checkout(asked.flashhead.resolve(), flashhead.LAYOUT)
        theirs = import_from(checkout, "flash_head.wan.modules.vae").WanVAE
        compare("SoulX-FlashHead", ours, theirs(vae_path=str(file), dtype=torch.float32, device="cpu"), found)
        colours = import_from(checkout, flashhead.COLOURS).match_and_blend_colors_torch
        compare_colours(colours, found)
        if asked.lightx2v:
            sys.path.insert(0, str(asked.lightx2v.resolve()))
            from lightx2v.models.video_encoders.hf.wan.vae import WanVAE

            theirs = WanVAE(vae_path=str(file), dtype=torch.float32, device="cpu", use_lightvae=False, parallel=False)
            compare("LightX2V", ours, theirs, found)
    for name, apart in found.items():
        print(f"{name}: at most {apart:.1e} apart")
    return 0 if max(found.values()) <= ALLOWED else 1


def compare(name: str, ours: own_parts.WanPictures, theirs: Any, found: dict[str, float]) -> None:
    """A picture before grey frames as it is encoded for a film, frames of a chunk, and latents that are decoded."""
    photo = torch.rand(1, 3, 1, SIDE, SIDE) * 2 - 1
    grey = torch.zeros(1, 3, 8, SIDE, SIDE)
    for what, frames in (("a photo", torch.cat([photo, grey], 2)), ("frames", torch.rand(1, 3, 9, SIDE, SIDE) * 2 - 1)):
        found[f"{name}: {what} encoded"] = float((ours.encode(frames) - theirs.encode(frames)).abs().max())
    latents = torch.randn(16, 4, SIDE // 8, SIDE // 8)
    found[f"{name}: latents decoded"] = float((ours.decode(latents) - theirs.decode(latents)).abs().max())


def compare_colours(theirs: Callable[..., torch.Tensor], found: dict[str, float]) -> None:
    frames = torch.rand(1, 3, 4, SIDE, SIDE) * 2 - 1
    photo = torch.rand(1, 3, 1, SIDE, SIDE) * 1.6 - 0.9
    for strength in (1.0, 0.4):
        apart = own_parts.match_colours(frames, photo, strength) - theirs(frames, photo, strength)
        found[f"SoulX-FlashHead: colours matched by {strength:g}"] = float(apart.abs().max())


if __name__ == "__main__":
    sys.exit(main())
