"""SoulX-LiveAct on two cards, as upstream has it: the checkout's second transformer, and what it asks of xfuser.

Upstream's script under torchrun takes `model_liveact.model_memory_sp` in place of `model_memory`.  Both hold all
weights on every card.  A block's tokens are cut in two by latent frames: the first card has the earlier half of the
block, and of the memory the slots that such halves left.  Attention trades tokens for heads and back (Ulysses, arXiv
2309.14509); the head's output is gathered, so that every card has the whole latents.

The memory is what makes the film another one.  One card squeezes slots 2 to 6 and 7 to 11 of 14 into slots 2 and 3
and keeps the last block's last two frames.  Of two cards, with slots 0 to 6 each, the first squeezes 2 to 6 into slot 2
and keeps nothing as it was but the film's first two frames; the second squeezes 0 to 4 into slot 0 and keeps its last
two frames, which are the block's.

A block's picture is decoded in two halves, as LightX2V does it for upstream: each card decodes its half with two more
rows or columns of latents, which are cut off again.  Upstream waits for that; here it happens beside the next block.

The checkout takes five names from xfuser and yunchang and no more, so they are answered here by our own ranks, and
neither package is wanted, whether it is installed or not.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from farm.errors import ConfigError, EngineError, OutOfMemory
from workers.engines.ranks import PATIENCE_SECONDS, Ranks
from workers.engines.upstream.checkout import Checkout, import_from
from workers.engines.upstream.liveact import SPREAD_TRANSFORMER
from workers.engines.upstream.platforms import Attend, kernel

FIRST_LATENTS, LATENTS = 6, 8  # latent frames of a film's first block and of every later one
MOST_CARDS = 2
HALO = 2  # rows or columns of latents of the other half that a half is decoded with
SPACE_STRIDE = 8  # pixels of a latent
NO_FAULT, FAULT, FULL = range(3)  # what rank 1 says before its half of a picture
GIVEN = ("xfuser", "yunchang")  # packages whose names are answered here


def refuse_cards(heads: int, cards: int) -> None:
    """Raises ConfigError for a number of cards that the checkout's transformer cannot be spread over."""
    if cards > MOST_CARDS:
        raise ConfigError(
            f"SoulX-LiveAct renders a film with 1 or 2 cards, not with {cards}: the checkout cuts its memory of keys"
            " and values for two; give the other cards workers of their own"
        )
    if heads % cards:
        raise ConfigError(
            f"this SoulX-LiveAct has {heads} attention heads, which {cards} cards cannot share: give it one card"
        )


# The memory of keys and values.


@dataclass(frozen=True)
class Part:
    """What one card holds of the memory, counted in latent frames, and how it makes room before a block.

    Squeezing takes five frames' tokens in their order and leaves one frame's.
    """

    slots: int
    first: int  # of them are written by a film's first block
    kept: int  # of them count once room was made; the others are written by the next block
    squeezed: tuple[tuple[int, int], ...]  # [to, from]: slots from to from + 4 into slot `to`
    moved: tuple[int, int, int] | None  # [to, from, until]

    def make_room(self, held: torch.Tensor, squeeze: Callable[[torch.Tensor], torch.Tensor], frame: int) -> None:
        """What the transformer does as a block begins, for keys or values [1, slots * frame, heads, D]."""
        for to, start in self.squeezed:
            held[:, to * frame : (to + 1) * frame] = squeeze(held[:, start * frame : (start + 5) * frame])
        if self.moved is not None:
            to, start, stop = self.moved
            held[:, to * frame : (to + stop - start) * frame] = held[:, start * frame : stop * frame].clone()


WHOLE = Part(14, 6, 6, ((2, 2), (3, 7)), (4, 12, 14))
HALVES = (Part(7, 3, 3, ((2, 2),), None), Part(7, 3, 3, ((0, 0),), (1, 5, 7)))


def part_of(ranks: Ranks) -> Part:
    return WHOLE if ranks.is_alone else HALVES[ranks.rank]


def fit(model: Any, frame_tokens: int) -> None:
    """Tell each of the checkout's attentions how many tokens a latent frame of this film has.

    The checkout asks for it once and keeps it, so that a second size would be cut as the first one was; and it keeps
    lists of indices that take the whole memory, each a copy of it, where a slice takes it as it is.
    """
    first, all_ = HALVES[0].first * frame_tokens, HALVES[0].slots * frame_tokens
    for block in model.blocks:
        attention = block.self_attn
        attention.frame_seqlen = frame_tokens
        attention.kv_idx0, attention.kv_idx2 = slice(0, first), slice(0, all_)


# What the checkout asks of xfuser.


def import_spread(checkout: Checkout, ranks: Ranks, kernel_name: str) -> Any:
    """The checkout's transformer for two cards, bound to these ranks.  Raises ConfigError."""
    with _given(answers(ranks, kernel(kernel_name))):
        return import_from(checkout, SPREAD_TRANSFORMER)


def answers(ranks: Ranks, attend: Attend) -> dict[str, types.ModuleType]:
    """Modules under xfuser's names, with what the checkout takes from them."""

    class Group:
        all_gather = staticmethod(torch.compiler.disable(lambda x, dim: gather(ranks, x, dim)))

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def attention(_: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **__: Any) -> torch.Tensor:
        return attend_together(ranks, attend, query, key, value)

    said: dict[str, dict[str, Any]] = {
        "xfuser": {},
        "xfuser.core": {},
        "xfuser.core.distributed": {
            "get_sequence_parallel_rank": lambda: ranks.rank,
            "get_sequence_parallel_world_size": lambda: ranks.size,
            "get_sp_group": Group,
        },
        # The checkout makes one for each attention of each block.  Which kernel it wishes for, one for Hopper cards
        # that gives noise, is not heard: the worker's setting says.
        "xfuser.core.long_ctx_attention": {"xFuserLongContextAttention": lambda **_: attention},
        "yunchang": {},
        "yunchang.kernels": {"AttnType": types.SimpleNamespace(SAGE_FP8_SM90="")},
    }
    made = {name: types.ModuleType(name) for name in said}
    for name, members in said.items():
        made[name].__path__ = []  # type: ignore[attr-defined]
        vars(made[name]).update(members)
    return made


@contextmanager
def _given(modules: dict[str, types.ModuleType]) -> Iterator[None]:
    """These modules under their names while a module is imported that takes names from them; then what was there."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def attend_together(
    ranks: Ranks, attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attention of our tokens [1, L, heads, D] over everybody's keys and values [1, M, heads, D], to [1, L, heads, D].

    Each rank attends with its share of the heads over the tokens of all, rank 0's first.
    """
    q, k, v = (_trade_tokens(ranks, x) for x in (query, key, value))
    out = attend(q, k, v)  # [1, size * L, heads / size, D]
    back = _exchange(ranks, out[0].unflatten(0, (ranks.size, -1)).contiguous())
    return back.transpose(0, 1).flatten(1, 2)[None]


def _trade_tokens(ranks: Ranks, x: torch.Tensor) -> torch.Tensor:
    """Our tokens with all heads, [1, L, heads, D], for all tokens with our heads, [1, size * L, heads / size, D]."""
    parts = x[0].unflatten(1, (ranks.size, -1)).transpose(0, 1).contiguous()
    return _exchange(ranks, parts).flatten(0, 1)[None]


def gather(ranks: Ranks, x: torch.Tensor, dim: int) -> torch.Tensor:
    """Everybody's `x` along `dim`, rank 0's first, on every rank."""
    return torch.cat(list(ranks.gather(_bytes(x)).view(x.dtype)), dim)


def _exchange(ranks: Ranks, parts: torch.Tensor) -> torch.Tensor:
    return ranks.exchange(_bytes(parts)).view(parts.dtype)


def from_first(ranks: Ranks, x: torch.Tensor) -> torch.Tensor:
    """Rank 0's `x` on every rank; the others give one of its shape and type."""
    if ranks.is_alone:
        return x
    x = x.contiguous()
    ranks.spread(_bytes(x))
    return x


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """The same numbers as bytes, which every way between devices carries; not all of them know bfloat16."""
    return x.contiguous().view(torch.uint8)


# Pictures.


class Halves:
    """A block's picture decoded by both ranks, each half of its longer side; rank 1's half comes to rank 0.

    It travels from thread to thread over a group of its own, so that nothing waits for it but who wants the picture.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        if not ranks.is_alone:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE_SECONDS))

    def cut(self, latents: torch.Tensor) -> torch.Tensor:
        """Of [16, T, rows, columns] our half and a little more."""
        if self._ranks.is_alone:
            return latents
        dim = _longer(latents)
        half = latents.shape[dim] // 2
        more = half + min(half, HALO)
        return latents.narrow(dim, 0 if self._ranks.is_first else 2 * half - more, more)

    def crop(self, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Of the pixels [3, T, H, W] that `cut(latents)` became, our half alone."""
        if self._ranks.is_alone:
            return pixels
        dim = _longer(latents)
        half = latents.shape[dim] // 2 * SPACE_STRIDE
        return pixels.narrow(dim, 0 if self._ranks.is_first else pixels.shape[dim] - half, half)

    def join(self, make: Callable[[], torch.Tensor], latents: torch.Tensor) -> torch.Tensor:
        """Every rank's half, uint8 [T, h, w, 3] as `make` gives it, as one picture on rank 0; nothing on rank 1.

        What `make` raises on one rank, both raise in some form, and neither is left waiting.
        """
        if self._ranks.is_alone:
            return make()
        if not self._ranks.is_first:
            return self._hand_over(make)
        failed, mine, dim = None, torch.empty(0), _longer(latents) - 1
        try:
            mine = make()
        except Exception as error:  # raised once rank 1 is not waiting any more
            failed = error
        head = torch.zeros(4, dtype=torch.int64)
        dist.recv(head, 1, group=self._group)
        fault, *shape = head.tolist()
        theirs = torch.empty((*shape, 3), dtype=torch.uint8)
        if fault == NO_FAULT:
            dist.recv(theirs, 1, group=self._group)
        if failed is not None:
            raise failed
        if fault == FULL:
            raise OutOfMemory("rank 1: the device is full while it decodes")
        if fault != NO_FAULT:
            raise EngineError("rank 1 could not decode its half of a block")
        return torch.cat([mine, theirs], dim)

    def _hand_over(self, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        try:
            mine = make()
        except Exception as error:
            fault = FULL if isinstance(error, OutOfMemory | torch.OutOfMemoryError) else FAULT
            dist.send(torch.tensor([fault, 0, 0, 0]), 0, group=self._group)
            raise
        dist.send(torch.tensor([NO_FAULT, *mine.shape[:3]]), 0, group=self._group)
        dist.send(mine, 0, group=self._group)
        return mine[:, :0, :0]


def _longer(latents: torch.Tensor) -> int:
    """The dimension that is cut."""
    return 2 if latents.shape[2] > latents.shape[3] else 3


def needs_else(checkout: Checkout) -> Checkout:
    """The checkout as one that finds what is answered here, for looking at which packages it needs besides."""
    return replace(checkout, layout=replace(checkout.layout, stand_ins={name: () for name in GIVEN}))
