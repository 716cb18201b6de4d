"""Who works on what when several ranks render one chunk: tokens by place in the frame, pixels by rows.

Tokens: each rank has the same places of all nine latent frames, so a frame's speech is heard by whoever has its tokens,
and only self-attention needs the others.  It trades tokens for heads and back (Ulysses, arXiv 2309.14509).  Places that
do not divide are filled up; the fillers are never anybody's keys.

Pixels: each rank has some whole rows of latents, eight rows of pixels each.  Convolutions get one row from either
neighbour, so the strips together are exactly the picture that one rank decodes.
"""

from __future__ import annotations

import torch

from farm.errors import ConfigError, InputError
from workers.engines.flashtalk import ops
from workers.engines.flashtalk.attention import exact_backend
from workers.engines.flashtalk.geometry import SPACE_STRIDE, DitConfig, Geometry
from workers.engines.ranks import ALONE, Ranks


def refuse_group(config: DitConfig, size: int) -> None:
    """Raises ConfigError for a number of ranks that this model cannot be spread over."""
    if config.num_heads % size:
        fitting = ", ".join(str(n) for n in range(1, config.num_heads + 1) if not config.num_heads % n and n <= 8)
        raise ConfigError(
            f"the FlashTalk model has {config.num_heads} attention heads, which {size} ranks cannot share:"
            f" give it {fitting} cards"
        )


def refuse_film(geometry: Geometry, size: int) -> None:
    """Raises InputError for a film that is too small for so many ranks."""
    rows = geometry.height // SPACE_STRIDE
    if rows < size or geometry.tokens_per_frame < size:
        raise InputError(
            f"a film of {geometry.width}x{geometry.height} is too small for a worker of {size} cards: choose a larger"
            " size or a worker of one card"
        )


class TokenShare:
    """One rank's tokens of a chunk."""

    def __init__(self, geometry: Geometry, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self._places = geometry.tokens_per_frame
        self.per_frame = -(-self._places // ranks.size)  # places of each frame that a rank has, fillers included
        self._fillers = self.per_frame * ranks.size - self._places
        self._frames = geometry.latent_frames
        self._real: dict[torch.device, torch.Tensor] = {}

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """[frames, places, C] to this rank's [frames * per_frame, C]."""
        if self.ranks.is_alone:
            return x.flatten(0, 1)
        start = min(self.ranks.rank * self.per_frame, self._places)
        stop = min(start + self.per_frame, self._places)
        mine = x[:, start:stop]
        if stop - start < self.per_frame:
            fillers = x.new_zeros(x.shape[0], self.per_frame - (stop - start), x.shape[2])
            mine = torch.cat([mine, fillers], dim=1)
        return mine.flatten(0, 1).contiguous()

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """Every rank's [frames * per_frame, C] to all tokens, [frames * places, C]."""
        if self.ranks.is_alone:
            return x
        parts = self.ranks.gather(x.unflatten(0, (-1, self.per_frame)))  # [ranks, frames, per_frame, C]
        return parts.permute(1, 0, 2, 3).flatten(1, 2)[:, : self._places].flatten(0, 1)

    def real_keys(self, device: torch.device) -> torch.Tensor | None:
        """Which of all ranks' tokens, one rank's after the other's, are no fillers; None where all are real."""
        if not self._fillers:
            return None
        if device not in self._real:
            place = torch.arange(self.ranks.size * self.per_frame).view(self.ranks.size, 1, self.per_frame)
            real = (place < self._places).expand(-1, self._frames, -1).flatten()
            self._real[device] = real.nonzero().flatten().to(device)
        return self._real[device]


class SpreadAttention:
    """Self-attention over the tokens of all ranks, each rank taking some of the heads."""

    def __init__(self, name: str, share: TokenShare) -> None:
        self._attend = exact_backend(name)
        self._share = share

    def __call__(
        self,
        qkv: torch.Tensor,
        gain: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        heads: int,
        eps: float,
        skipped: int,
    ) -> torch.Tensor:
        """See attention.SelfAttention; all sizes are this rank's."""
        ops.rms_rope(qkv, gain, cos, sin, heads, eps)
        ranks = self._share.ranks
        n, d = qkv.shape[0], qkv.shape[1] // 3
        by_heads = qkv.view(n, 3, ranks.size, d // ranks.size).permute(2, 0, 1, 3).contiguous()
        got = ranks.exchange(by_heads)  # [ranks, n, 3, D / ranks]: everybody's tokens, our heads
        q, k, v = got.unflatten(3, (heads // ranks.size, -1)).unbind(2)
        q, k, v = q[:, skipped:].flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        real = self._share.real_keys(qkv.device)
        if real is not None:
            k, v = k[real], v[real]
        out = self._attend(q, k, v).view(ranks.size, n - skipped, d // ranks.size)
        return ranks.exchange(out.contiguous()).permute(1, 0, 2).reshape(n - skipped, d)


class RowShare:
    """One rank's rows of the autoencoder's pictures, counted in rows of latents."""

    def __init__(self, rows: int, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self._counts = [rows // ranks.size + (rank < rows % ranks.size) for rank in range(ranks.size)]

    @property
    def is_whole(self) -> bool:
        return self.ranks.is_alone

    def cut(self, x: torch.Tensor, dim: int, scale: int) -> torch.Tensor:
        """This rank's rows of `x`, which has `scale` rows for each row of latents."""
        if self.is_whole:
            return x
        start = sum(self._counts[: self.ranks.rank])
        return x.narrow(dim, start * scale, self._counts[self.ranks.rank] * scale)

    def join(self, x: torch.Tensor, dim: int, scale: int) -> torch.Tensor:
        """The rows of all ranks, on every rank."""
        return self.ranks.gather_uneven(x, dim, [count * scale for count in self._counts])

    def reach(self, x: torch.Tensor, above: bool = True) -> torch.Tensor:
        """[T, rows, ...] with one more row below, and above if wanted: the neighbours', zeros outside the picture."""
        before, after = self.ranks.swap_edges(x[:, :1], x[:, -1:])
        return torch.cat([before, x, after] if above else [x, after], dim=1)
