"""The state between two chunks as bytes: a JSON head that says what it fits, then the motion latents.

The motion latents are all that the next chunk needs, 344 064 bytes at 768x448, because noise is keyed; `upstream`
noise adds its generator's 16.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass

import numpy as np
import torch

from farm.errors import EngineError

MAGIC = b"FTK1"
LIMIT_BYTES = 1_000_000


@dataclass(frozen=True)
class CarryHead:
    """What a carry fits; everything here must be the same on both sides."""

    version: str
    film: str  # digest of what decides the film's pixels
    chunk: int  # the next one
    attention: str


def pack(head: CarryHead, motion: torch.Tensor, noise: bytes) -> bytes:
    """Motion latents [16, 2, rows, columns] in their own type."""
    raw = motion.contiguous().view(torch.uint8).cpu().numpy().tobytes()
    said = {**asdict(head), "shape": list(motion.shape), "dtype": str(motion.dtype), "noise": len(noise)}
    words = json.dumps(said).encode()
    return MAGIC + struct.pack("<I", len(words)) + words + noise + raw


def unpack(
    carry: bytes, version: str, film: str, chunk: int, dtype: torch.dtype
) -> tuple[CarryHead, torch.Tensor, bytes]:
    """Raises EngineError when the carry was made by another engine, for another film or at another frame."""
    try:
        if carry[:4] != MAGIC:
            raise ValueError
        (length,) = struct.unpack("<I", carry[4:8])
        said = json.loads(carry[8 : 8 + length])
        noise = carry[8 + length : 8 + length + said["noise"]]
        raw = np.frombuffer(carry, np.uint8, offset=8 + length + said["noise"])
        head = CarryHead(said["version"], said["film"], said["chunk"], said["attention"])
        shape = tuple(said["shape"])
    except (ValueError, KeyError, struct.error):
        raise EngineError("the carry is damaged: render this film from its beginning") from None
    if head.version != version:
        raise EngineError(f"the carry was made by engine {head.version}, this one is {version}")
    if head.film != film:
        raise EngineError("the carry belongs to another film or to other settings")
    if head.chunk != chunk:
        raise EngineError(f"the carry goes on at chunk {head.chunk}, asked for was chunk {chunk}")
    if said["dtype"] != str(dtype):
        raise EngineError(f"the carry holds {said['dtype']}, this engine renders in {dtype}")
    return head, torch.from_numpy(raw.copy()).view(dtype).view(shape), noise
