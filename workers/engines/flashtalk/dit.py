"""The diffusion transformer: 40 blocks of self-attention, attention to text and portrait, attention to speech, FFN.

What stays the same is computed once: modulations for each noise level per process, the text's and the portrait's keys
per film, the speech's per chunk.  Two exact rewritings save work:

* The rows that pad the prompt to 512 tokens are equal, so they are one key whose score gains the log of their count.
* A latent frame hears only 32 speech tokens.  Its scores are c (Wq^T k) and its result is p (v Wo), so the two
  5120 x 5120 products per token become products with 1280 columns, after folding Wq and Wo into the tokens per chunk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from workers.engines.flashtalk import ops
from workers.engines.flashtalk.attention import SelfAttention
from workers.engines.flashtalk.geometry import LATENT_FRAMES, DitConfig, Geometry
from workers.engines.flashtalk.linears import FP8, LARGEST, Activation, Form, Linear, Quantised, product_fp8
from workers.engines.flashtalk.rope import rope_tables
from workers.engines.flashtalk.shares import TokenShare
from workers.engines.flashtalk.sources import Source

TILE = 32  # keys that the attention to text and portrait reads at once
NEVER = -1e30  # score of a row that only fills a tile


class Modulation(NamedTuple):
    """Of one noise level, float32: for each block [6, D] as shift, 1 + scale, gate twice; for the head [2, D]."""

    blocks: torch.Tensor  # [layers, 6, D]
    head: torch.Tensor  # [2, D] as shift, 1 + scale


class FilmContext(NamedTuple):
    """Keys and values of the portrait's and the prompt's tokens in each block; fixed for a film."""

    keys: list[torch.Tensor]  # per block [tiles * 32, heads, head_dim], with the queries' gain and the softmax scale
    values: list[torch.Tensor]
    bias: torch.Tensor  # float32 [tokens]
    image_tokens: int
    limits: list[torch.Tensor | None]  # per block float32 [1], what no result exceeds; None where nobody asks


class FoldedSpeech(NamedTuple):
    """One block's speech with its query and output matrices folded in; fixed for a chunk."""

    scores: torch.Tensor  # [frames, heads * tokens, D]
    bias: torch.Tensor  # float32 [frames, heads * tokens]
    results: torch.Tensor  # [frames, heads * tokens, D]


class RoundedSpeech(NamedTuple):
    """FoldedSpeech in fp8, rows of both with factors of their own: one pair per frame."""

    scores: list[Quantised]  # [heads * tokens, D], factors [1, heads * tokens]
    bias: torch.Tensor
    results: list[Quantised]  # [D, heads * tokens], factors [1, D]
    shares: torch.Tensor  # factors [tokens of a frame, 1] of the softmax


class PlainSpeech(NamedTuple):
    """One block's speech keys and values [frames, heads, tokens, head_dim]; fixed for a chunk."""

    keys: torch.Tensor
    values: torch.Tensor


Speech = list["FoldedSpeech | RoundedSpeech | PlainSpeech"]


class Reach(NamedTuple):
    """What folding makes of a token of length one at most, by the Cauchy-Schwarz inequality, over 448."""

    scores: torch.Tensor  # float32 [heads]
    results: torch.Tensor  # float32 [D]


@dataclass(frozen=True)
class Block:
    """One block's weights as its products want them."""

    qkv: Linear
    out: Linear
    gain: torch.Tensor  # float32 [2, D]: queries', keys'
    cross_mul: torch.Tensor  # float32 [D], as all norms here
    cross_add: torch.Tensor
    cross_q: Linear
    cross_out: Linear
    speech_mul: torch.Tensor
    speech_add: torch.Tensor
    speech_q: Linear
    speech_out: Linear
    speech_kv: Linear
    heard_bias: torch.Tensor  # what x lacks when speech has been added to it
    reach: Reach | None  # where folded speech is fp8
    ffn_in: Linear
    ffn_out: Linear


class Dit:
    """The transformer for one precision.  `source` stays open: context weights may be read again for each film."""

    def __init__(
        self,
        config: DitConfig,
        source: Source,
        device: torch.device,
        dtype: torch.dtype,
        form: Form,
        *,
        fold_speech: bool,
        keep_context_weights: bool,
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.form = form
        self.fold_speech = fold_speech
        self._source = source
        self._tables: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._modulations: dict[float, Modulation] = {}
        self._context: list[tuple[Linear, ...]] = []
        take = self._take
        self._patch_weight = take("patch_embedding.weight").flatten(1)
        self._patch_bias = take("patch_embedding.bias")
        self._head = self._linear("head.head", torch.float32)
        self._head_modulation = self._take("head.modulation", torch.float32)[0]
        self._text = (self._linear("text_embedding.0"), self._linear("text_embedding.2"))
        self._image_norms = [take(f"img_emb.proj.{i}.{p}") for i in (0, 4) for p in ("weight", "bias")]
        self._image = (self._linear("img_emb.proj.1"), self._linear("img_emb.proj.3"))
        self._speech = {part: self._linear(f"audio_proj.{part}") for part in ("proj1", "proj1_vf", "proj2", "proj3")}
        self._speech_norm = [take(f"audio_proj.norm.{p}", torch.float32) for p in ("weight", "bias")]
        self._block_modulation = torch.cat(
            [take(f"blocks.{n}.modulation", torch.float32) for n in range(config.num_layers)]
        )
        self.blocks = [self._load_block(n) for n in range(config.num_layers)]
        if keep_context_weights:
            self._context = [self._context_linears(n) for n in range(config.num_layers)]
        self._queries_gain = [
            take(f"blocks.{n}.cross_attn.norm_q.weight", torch.float32) for n in range(config.num_layers)
        ]

    # -- loading ----------------------------------------------------------------------------------------------------

    def _take(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self._source.take(name, dtype or self.dtype)

    def _linear(self, name: str, dtype: torch.dtype | None = None) -> Linear:
        return Linear(self._take(f"{name}.weight", dtype), self._take(f"{name}.bias", dtype), "plain")

    def _rounded(self, *names: str, form: Form | None = None) -> Linear:
        weight = torch.cat([self._take(f"{name}.weight") for name in names])
        bias = torch.cat([self._take(f"{name}.bias") for name in names])
        return Linear(weight, bias, form or self.form)

    def _load_block(self, n: int) -> Block:
        at = f"blocks.{n}"
        own = f"{at}.self_attn"
        speech: Form = "plain" if self.fold_speech else self.form
        f32 = torch.float32
        cross_out = self._rounded(f"{at}.cross_attn.o")
        speech_q = self._rounded(f"{at}.audio_cross_attn.q_linear", form=speech)
        speech_out = self._rounded(f"{at}.audio_cross_attn.proj", form=speech)
        return Block(
            qkv=self._rounded(f"{own}.q", f"{own}.k", f"{own}.v"),
            out=self._rounded(f"{own}.o"),
            gain=torch.stack([self._take(f"{own}.{p}.weight", f32) for p in ("norm_q", "norm_k")]),
            cross_mul=self._take(f"{at}.norm3.weight", f32),
            cross_add=self._take(f"{at}.norm3.bias", f32),
            cross_q=self._rounded(f"{at}.cross_attn.q"),
            cross_out=cross_out,
            speech_mul=self._take(f"{at}.norm_x.weight", f32),
            speech_add=self._take(f"{at}.norm_x.bias", f32),
            speech_q=speech_q,
            speech_out=speech_out,
            speech_kv=self._rounded(f"{at}.audio_cross_attn.kv_linear", form="plain"),
            heard_bias=cross_out.bias.float() + speech_out.bias if self.form == "plain" else speech_out.bias,
            reach=self._reach(speech_q.weight, speech_out.weight) if self.fold_speech and self.form == "fp8" else None,
            ffn_in=self._rounded(f"{at}.ffn.0"),
            ffn_out=self._rounded(f"{at}.ffn.2"),
        )

    def _reach(self, w_q: torch.Tensor, w_out: torch.Tensor) -> Reach:
        heads = self.config.num_heads
        scores = torch.linalg.vector_norm(w_q.unflatten(0, (heads, -1)), dim=1, dtype=torch.float32).amax(1)
        results = torch.linalg.vector_norm(w_out.unflatten(1, (heads, -1)), dim=2, dtype=torch.float32).amax(1)
        step = 1.001 / LARGEST["fp8"]  # a little more, for what rounding adds
        return Reach(scores * step, results * step)

    def _context_linears(self, n: int) -> tuple[Linear, ...]:
        return tuple(self._linear(f"blocks.{n}.cross_attn.{part}") for part in ("k", "v", "k_img", "v_img"))

    # -- once per noise level, film and chunk -----------------------------------------------------------------------

    def modulation(self, sigma: float) -> Modulation:
        """Shifts, scales and gates for one noise level; computed once."""
        if sigma not in self._modulations:
            f32 = torch.float32
            half = self.config.freq_dim // 2
            angles = sigma * 1000.0 * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
            wave = torch.cat([angles.cos(), angles.sin()]).float().to(self.device)[None]
            e = self._linear("time_embedding.2", f32)(F.silu(self._linear("time_embedding.0", f32)(wave)))
            e0 = self._linear("time_projection.1", f32)(F.silu(e)).view(6, -1)
            blocks = self._block_modulation + e0
            blocks[:, (1, 4)] += 1
            head = self._head_modulation + e
            head[1] += 1
            self._modulations[sigma] = Modulation(blocks, head)
        return self._modulations[sigma]

    def film_context(self, text: torch.Tensor, image: torch.Tensor) -> FilmContext:
        """Keys and values of a prompt's rows [L, text_dim] and a portrait's features [257, image_dim]."""
        config = self.config
        rows = text[: config.text_len].to(self.device, self.dtype)
        padding = config.text_len - rows.shape[0]
        if padding:
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        first, second = self._text
        words = second(first.gelu(rows))
        weight0, bias0, weight4, bias4 = self._image_norms
        seen = F.layer_norm(image.to(self.device, self.dtype), (config.image_dim,), weight0, bias0, 1e-5)
        seen = self._image[1](F.gelu(self._image[0](seen)))
        seen = F.layer_norm(seen, (config.dim,), weight4, bias4, 1e-5)
        bias = torch.zeros(seen.shape[0] + rows.shape[0], device=self.device)
        if padding:
            bias[-1] = math.log(padding)
        keys, values = [], []
        limits: list[torch.Tensor | None] = []
        for n in range(config.num_layers):
            k, v, k_img, v_img = self._context[n] if self._context else self._context_linears(n)
            gain = self._queries_gain[n] * config.head_dim**-0.5
            k_text = self._rms(k(words), f"blocks.{n}.cross_attn.norm_k.weight") * gain
            k_seen = self._rms(k_img(seen), f"blocks.{n}.cross_attn.norm_k_img.weight") * gain
            shape = (-1, config.num_heads, config.head_dim)
            keys.append(_fill_tile(torch.cat([k_seen, k_text]).to(self.dtype)).view(shape))
            v_seen, v_words = v_img(seen), v(words)
            values.append(_fill_tile(torch.cat([v_seen, v_words])).view(shape))
            limits.append(_limit(v_seen, v_words) if self.form == "fp8" else None)
        return FilmContext(keys, values, _fill_tile(bias, NEVER), seen.shape[0], limits)

    def _rms(self, x: torch.Tensor, gain: str) -> torch.Tensor:
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.eps) * self._take(gain, torch.float32)

    def speech_tokens(self, taps: torch.Tensor) -> torch.Tensor:
        """Speech features [33, 5, layers, channels] as [latent frames, 32, output_dim] tokens.

        A latent frame after the first covers four frames: taps 0..2 of the first of them, the middle tap of the two
        between, taps 2..4 of the last.
        """
        config = self.config
        taps = taps.to(self.device, self.dtype)
        groups = taps[1:].unflatten(0, (-1, 4))  # [latents - 1, 4, 5, layers, channels]
        middle = config.audio_window // 2
        heard = torch.cat([groups[:, 0, : middle + 1], groups[:, 1:-1, middle], groups[:, -1, middle:]], dim=1).flatten(
            1
        )
        first = F.relu(self._speech["proj1"](taps[:1].flatten(1)))
        later = F.relu(self._speech["proj1_vf"](heard))
        x = F.relu(self._speech["proj2"](torch.cat([first, later])))
        x = self._speech["proj3"](x).unflatten(-1, (config.context_tokens, config.output_dim))
        weight, bias = self._speech_norm
        return F.layer_norm(x.float(), (config.output_dim,), weight, bias, 1e-5).to(self.dtype)

    def hear(self, taps: torch.Tensor) -> Speech:
        """Each block's speech for one chunk."""
        tokens = self.speech_tokens(taps)
        frames, count, _ = tokens.shape
        heads, size = self.config.num_heads, self.config.head_dim
        speech: Speech = []
        for block in self.blocks:
            kv = block.speech_kv(tokens.flatten(0, 1)).view(frames, count, 2, heads, size)
            if not self.fold_speech:
                k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
                speech.append(PlainSpeech(k.contiguous(), v.contiguous()))
                continue
            factor = size**-0.5
            bias = (kv[:, :, 0] * block.speech_q.bias.float().view(heads, size)).sum(-1) * factor
            bias = bias.transpose(1, 2).flatten(1)
            k, v = (kv[:, :, part].flatten(2) for part in (0, 1))
            w_q, w_out = block.speech_q.weight, block.speech_out.weight
            if block.reach is None:
                scores = ops.fold(k, w_q, heads, transposed=False, factor=factor)
                speech.append(FoldedSpeech(scores, bias, ops.fold(v, w_out, heads, transposed=True)))
                continue
            lengths = torch.linalg.vector_norm(kv, dim=-1, dtype=torch.float32)  # [frames, tokens, 2, heads]
            lengths = lengths.clamp(min=1e-12)
            of_scores = (lengths[:, :, 0] * (block.reach.scores * factor)).transpose(1, 2).flatten(1)
            of_results = lengths[:, :, 1].amax(dim=(1, 2))[:, None] * block.reach.results
            scores = ops.fold(k, w_q, heads, transposed=False, factor=factor, scale=of_scores)
            results = ops.fold(v, w_out, heads, transposed=True, turned=True, scale=of_results)
            share = torch.full((1, 1), 1 / LARGEST["fp8"], device=self.device)
            frames_of = [_by_frame(scores, of_scores), _by_frame(results, of_results)]
            speech.append(RoundedSpeech(frames_of[0], bias, frames_of[1], share))
        return speech

    @property
    def speech_bytes(self) -> int:
        """What one chunk's folded speech takes."""
        config = self.config
        rows = LATENT_FRAMES * config.num_heads * config.context_tokens
        return 2 * config.num_layers * rows * config.dim * (1 if self.form == "fp8" else self.dtype.itemsize)

    # -- once per step ----------------------------------------------------------------------------------------------

    def velocity(
        self,
        latents: torch.Tensor,
        condition: torch.Tensor,
        modulation: Modulation,
        film: FilmContext,
        speech: Speech,
        geometry: Geometry,
        attend: SelfAttention,
        known: int = 0,
        share: TokenShare | None = None,
    ) -> torch.Tensor:
        """Predicted velocity, float32 [16, frames, rows, columns].

        `condition` [20, frames, rows, columns] is the mask and the portrait's latents.  The first `known` latent
        frames of the result are zeros: the sampler overwrites them, so the last block does not compute them.
        With a `share` of several ranks each computes its own tokens, and all of them return the whole.
        """
        share = share or TokenShare(geometry)
        config, eps, form = self.config, self.config.eps, self.form
        frames, rows, columns = geometry.grid
        cos, sin = self._rope(geometry.grid, share)
        x = torch.cat([latents.to(self.dtype), condition.to(self.dtype)])
        x = x.view(-1, frames, rows, 2, columns, 2).permute(1, 2, 4, 0, 3, 5).reshape(frames, rows * columns, -1)
        x = F.linear(share.cut(x), self._patch_weight, self._patch_bias)
        y: torch.Tensor | None = None
        gate: torch.Tensor | None = None
        lacking: torch.Tensor | None = None  # biases that products added to x without
        skipped = known * share.per_frame
        for n, block in enumerate(self.blocks):
            m = modulation.blocks[n]
            x, h = ops.residual_norm(x, y, gate, m[1], m[0], eps, form, bias=lacking)
            last = bool(skipped) and n == config.num_layers - 1
            a = attend(block.qkv(h), block.gain, cos, sin, config.num_heads, eps, skipped if last else 0)
            if last:
                x, frames = x[skipped:], frames - known
            y = block.out(ops.quantise(a, form))
            x, h = ops.residual_norm(x, y, m[2], block.cross_mul, block.cross_add, eps, form)
            seen = ops.cross_attend(
                block.cross_q(h), film.keys[n], film.values[n], film.bias, film.image_tokens, eps, film.limits[n]
            )
            y = block.cross_out.add_to(x, ops.quantise(seen, form))
            lacking = block.cross_out.bias if y is None else None
            listening = form if isinstance(speech[n], RoundedSpeech) else block.speech_q.form
            x, h = ops.residual_norm(x, y, None, block.speech_mul, block.speech_add, eps, listening, bias=lacking)
            y, lacking = self._listen(block, x, h, speech[n], frames)
            x, h = ops.residual_norm(x, y, None, m[4], m[3], eps, form, bias=lacking)
            lacking = lacking if y is None else None
            if form == "plain":
                y = block.ffn_out(block.ffn_in.gelu(h))
            else:
                y = block.ffn_out(ops.gelu_rows(block.ffn_in(h), form))
            gate = m[5]
        shift, scale = modulation.head
        _, h = ops.residual_norm(x, y, gate, scale, shift, eps, "plain", torch.float32, lacking)
        out = share.join(self._head(h)).view(frames, rows, columns, 2, 2, config.out_dim)
        out = out.permute(5, 0, 1, 3, 2, 4).reshape(config.out_dim, frames, 2 * rows, 2 * columns)
        return F.pad(out, (0, 0, 0, 0, known, 0)) if skipped else out

    def _listen(
        self,
        block: Block,
        x: torch.Tensor,
        h: Activation,
        speech: FoldedSpeech | RoundedSpeech | PlainSpeech,
        frames: int,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Each latent frame's tokens attend to that frame's speech alone; the last `frames` frames are there.

        Returns what is to be added to x, or None where it has been, and the bias that is still to be added.
        """
        heads, size = self.config.num_heads, self.config.head_dim
        if isinstance(speech, RoundedSpeech):
            assert isinstance(h, Quantised)
            bias, weight = speech.bias[-frames:], speech.scores[0].values
            s = torch.empty(
                (frames, h.values.shape[0] // frames, weight.shape[0]), dtype=self.dtype, device=self.device
            )
            by_frame = zip(h.values.chunk(frames), h.scale.chunk(frames), speech.scores[-frames:], s, strict=True)
            for values, scale, scores, out in by_frame:
                product_fp8(Quantised(values, scale), scores, None, out)
            p = ops.softmax_groups(s, bias, self.config.context_tokens, FP8)
            share = speech.shares.expand(p.shape[1], 1).contiguous()
            y = torch.empty(h.values.shape, dtype=self.dtype, device=self.device)
            for values, results, out in zip(p, speech.results[-frames:], y.chunk(frames), strict=True):
                product_fp8(Quantised(values, share), results, None, out)
            return y, block.heard_bias
        if isinstance(speech, FoldedSpeech):
            scores, bias, results = (part[-frames:] for part in speech)
            assert isinstance(h, torch.Tensor)
            by_frame = h.view(frames, -1, h.shape[-1])
            if h.is_cuda:
                s = torch.bmm(by_frame, scores.transpose(1, 2), out_dtype=torch.float32)
            else:
                s = torch.bmm(by_frame.float(), scores.transpose(1, 2).float())
            p = ops.softmax_groups(s, bias, self.config.context_tokens, h.dtype)
            x.view(by_frame.shape).baddbmm_(p, results)
            return None, block.heard_bias
        q = block.speech_q(h).view(frames, -1, heads, size).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, speech.keys[-frames:], speech.values[-frames:])
        out = out.transpose(1, 2).reshape(-1, heads * size)
        y = block.speech_out.add_to(x, ops.quantise(out, block.speech_out.form))
        return y, block.heard_bias if y is None else None

    def _rope(self, grid: tuple[int, int, int], share: TokenShare) -> tuple[torch.Tensor, torch.Tensor]:
        key = (*grid, share.ranks.size)
        if key not in self._tables:
            cos, sin = rope_tables(grid, self.config.head_dim, self.device)
            self._tables[key] = (share.cut(cos.unflatten(0, (grid[0], -1))), share.cut(sin.unflatten(0, (grid[0], -1))))
        return self._tables[key]


def tensors_of(speech: Speech) -> Iterator[torch.Tensor]:
    """All tensors that it holds."""
    for block in speech:
        for part in block:
            if isinstance(part, torch.Tensor):
                yield part
            else:
                yield from itertools.chain.from_iterable(part)


def _fill_tile(x: torch.Tensor, value: float = 0.0) -> torch.Tensor:
    """Rows filled up to whole tiles of the attention kernel."""
    missing = -x.shape[0] % TILE
    return torch.cat([x, x.new_full((missing, *x.shape[1:]), value)]) if missing else x


def _limit(seen: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """What the sum of two means of values does not exceed, both rounded on the way; float32 [1]."""
    return 1.02 * (seen.abs().amax() + words.abs().amax()).float().view(1).clamp(min=1e-6)


def _by_frame(values: torch.Tensor, scale: torch.Tensor) -> list[Quantised]:
    """fp8 weights [O, K] of each frame from [F, O, K] and the rows' factors [F, O]."""
    return [Quantised(v, f.view(1, -1)) for v, f in zip(values, scale, strict=True)]
