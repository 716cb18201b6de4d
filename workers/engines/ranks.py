"""Processes that render one film together: who they are, and how tensors travel between them.

An engine that can be spread calls `join_ranks` once, before it loads anything.  Alone it gets a group of one, whose
exchanges do nothing, so that one way through the engine's code serves both.  The variables are those of torchrun:
RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

Two groups of torch.distributed connect the ranks.  Tensors of a running chunk travel over the devices' own (NCCL, HCCL,
or gloo on the CPU) and every rank must be there within `COLLECTIVE_SECONDS`, or the group is lost.  What rank 0 finds
out for a film travels over gloo and may take as long as an encoder takes to load; that a rank died meanwhile is seen by
the launcher (workers/host/group.py) and not by a time-out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import farm.errors
from farm.errors import DeviceFault, EngineError, FarmError

COLLECTIVE_SECONDS = 25.0  # unless the variable COLLECTIVE_SECONDS says otherwise
PATIENCE_SECONDS = 1800.0  # for weights and encoders to be loaded
BACKENDS = {"cuda": "nccl", "npu": "hccl", "cpu": "gloo"}

Told = tuple[dict[str, Any], dict[str, torch.Tensor]]


class Ranks:
    """One process's view of its group.  Every method but the properties must be called by all ranks in one order."""

    def __init__(self, rank: int = 0, size: int = 1, control: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._control = control

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that talks to the worker."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def exchange(self, parts: torch.Tensor) -> torch.Tensor:
        """All to all: [size, ...] whose part p goes to rank p, to [size, ...] whose part p came from rank p."""
        if self.is_alone:
            return parts
        got = torch.empty_like(parts)
        dist.all_to_all_single(got, parts.contiguous())
        return got

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Equal shapes of all ranks, [size, ...]."""
        if self.is_alone:
            return x[None]
        x = x.contiguous()
        got = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(got, x)
        return torch.stack(got)

    def gather_uneven(self, x: torch.Tensor, dim: int, counts: Sequence[int]) -> torch.Tensor:
        """Parts that differ in length along `dim`, rank r's having counts[r], one after the other."""
        if self.is_alone:
            return x
        longest = max(counts)
        if x.shape[dim] < longest:
            shape = list(x.shape)
            shape[dim] = longest - x.shape[dim]
            x = torch.cat([x, x.new_zeros(shape)], dim)
        parts = self.gather(x)
        return torch.cat([part.narrow(dim, 0, count) for part, count in zip(parts, counts, strict=True)], dim)

    def swap_edges(self, first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The last edge of the rank before and the first edge of the rank after, zeros beyond the first and last."""
        before, after = last.new_zeros(last.shape), first.new_zeros(first.shape)
        moves = []
        for other, ours, theirs in ((self.rank - 1, first, before), (self.rank + 1, last, after)):
            if 0 <= other < self.size:
                moves += [dist.P2POp(dist.isend, ours.contiguous(), other), dist.P2POp(dist.irecv, theirs, other)]
        for work in dist.batch_isend_irecv(moves) if moves else []:
            work.wait()
        return before, after

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's tensor on every rank; the others give one of its shape to be written over."""
        if not self.is_alone:
            dist.broadcast(x, 0)
        return x

    def all_agree(self, here: bool) -> bool:
        """Whether it is so on every rank."""
        if self.is_alone:
            return here
        agreed = torch.tensor([int(here)])
        dist.all_reduce(agreed, dist.ReduceOp.MIN, group=self._control)
        return bool(agreed)

    def tell(self, make: Callable[[], Told]) -> Told:
        """What `make` returns on rank 0, where alone it runs: plain values, and tensors that arrive on the CPU.

        What it raises on rank 0 is raised on every rank, so that none of them waits for the others.
        """
        if self.is_alone:
            return make()
        if not self.is_first:
            return self._be_told()
        try:
            facts, tensors = make()
        except Exception as error:
            self._send({"error": type(error).__name__, "message": str(error)}, {})
            raise
        self._send({"facts": facts}, tensors)
        return facts, {name: tensor.cpu() for name, tensor in tensors.items()}

    def _send(self, head: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        shapes = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in held.items()}
        body = torch.tensor(list(json.dumps({**head, "tensors": shapes}).encode()), dtype=torch.uint8)
        dist.broadcast(torch.tensor([body.numel()]), 0, group=self._control)
        dist.broadcast(body, 0, group=self._control)
        for tensor in held.values():
            if tensor.numel():
                dist.broadcast(tensor.view(-1).view(torch.uint8), 0, group=self._control)

    def _be_told(self) -> Told:
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self._control)
        body = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(body, 0, group=self._control)
        head = json.loads(bytes(body.tolist()))
        tensors: dict[str, torch.Tensor] = {}
        for name, (dtype, shape) in head["tensors"].items():
            tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            if tensors[name].numel():
                dist.broadcast(tensors[name].view(-1).view(torch.uint8), 0, group=self._control)
        if "error" in head:
            kind = getattr(farm.errors, head["error"], EngineError)
            raise (kind if isinstance(kind, type) and issubclass(kind, FarmError) else EngineError)(head["message"])
        return head["facts"], tensors


ALONE = Ranks()


def local_rank() -> int:
    """Which of the visible devices is this process's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def join_ranks(device: torch.device, at_least_seconds: float = 0.0) -> Ranks:
    """The group that this process was started in, once every rank is there.

    `at_least_seconds` is for an engine whose first chunks keep a rank waiting longer than COLLECTIVE_SECONDS.
    Raises DeviceFault when the group cannot be formed, for example because the port was taken meanwhile; a new start
    takes another one.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    rank, seconds = int(os.environ["RANK"]), float(os.environ.get("COLLECTIVE_SECONDS", COLLECTIVE_SECONDS))
    seconds = max(seconds, at_least_seconds)
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            size,
            is_master=rank == 0,
            timeout=timedelta(seconds=PATIENCE_SECONDS),
        )
        placed = {"device_id": device} if device.type == "cuda" else {}
        dist.init_process_group(
            BACKENDS[device.type],
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=seconds),
            **placed,
        )
        control = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE_SECONDS))
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeviceFault(f"rank {rank} of {size} cannot join its group: {reason}") from error
    return Ranks(rank, size, control)
