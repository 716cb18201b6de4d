"""The state between two chunks as bytes: a JSON head that says what it fits, then tensors and generators."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from farm.errors import EngineError

MAGIC = b"UPS1"


@dataclass(frozen=True)
class CarryHead:
    """What a carry fits; everything here must be the same on both sides."""

    version: str
    film: str  # digest of what decides the film's pixels
    chunk: int  # the next one


def pack(head: CarryHead, tensors: Mapping[str, torch.Tensor], states: Mapping[str, bytes]) -> bytes:
    """Tensors are kept bit for bit in their own type; states are generators'."""
    parts: list[bytes] = []
    listed = []
    for name, tensor in tensors.items():
        raw = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        listed.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), len(raw)])
        parts.append(raw)
    for name, raw in states.items():
        listed.append([name, "", [], len(raw)])
        parts.append(raw)
    said = {"version": head.version, "film": head.film, "chunk": head.chunk, "parts": listed}
    words = json.dumps(said).encode()
    return MAGIC + struct.pack("<I", len(words)) + words + b"".join(parts)


def unpack(carry: bytes, head: CarryHead) -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """Raises EngineError when the carry was made by another engine, for another film or at another frame."""
    tensors: dict[str, torch.Tensor] = {}
    states: dict[str, bytes] = {}
    try:
        if carry[:4] != MAGIC:
            raise ValueError
        (length,) = struct.unpack("<I", carry[4:8])
        said = json.loads(carry[8 : 8 + length])
        at = 8 + length
        for name, dtype, shape, size in said["parts"]:
            raw, at = carry[at : at + size], at + size
            if len(raw) != size:
                raise ValueError
            if dtype:
                flat = torch.from_numpy(np.frombuffer(raw, np.uint8).copy())
                tensors[name] = flat.view(getattr(torch, dtype)).view(shape)
            else:
                states[name] = raw
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, struct.error):
        raise EngineError("the carry is damaged: render this film from its beginning") from None
    if said["version"] != head.version:
        raise EngineError(f"the carry was made by engine {said['version']}, this one is {head.version}")
    if said["film"] != head.film:
        raise EngineError("the carry belongs to another film or to other settings")
    if said["chunk"] != head.chunk:
        raise EngineError(f"the carry goes on at chunk {said['chunk']}, asked for was chunk {head.chunk}")
    return tensors, states
