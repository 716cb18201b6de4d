"""From utterances to weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from scripts.mouth import rooms
from scripts.mouth.phones import KINDS, Utterance, draw_curves, draw_kinds
from scripts.sounds import HeldSound
from workers.engines.contract import DRIVING_RATE
from workers.engines.preview import loudness, mel
from workers.engines.preview.articulation import Curve

CHANNELS, DILATIONS = 128, (1, 2, 4, 8)
REACH = 2 + sum(DILATIONS)
BATCH, WINDOW = 32, 250
_SPEECH_RMS = 0.05  # as loudness.measure brings speech to
_QUIET = float(np.log(1e-5))  # a log-mel of digital silence
# How much an error in each curve counts; closures have a loss of their own.
_WEIGHTS = (2.2, 0.9, 1.0, 0.0, 1.0, 0.6, 0.6, 0.9)
_CLOSURE_WEIGHT, _CLOSED_COUNTS = 0.5, 2.0
_KIND_WEIGHT = 0.06
_FASTEST = 3e-3
_FOLLOWS_WEIGHT = 0.10

Halves = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Example:
    """Log-mels [n, 40], curves [n, 8] and kinds of phones [n] of one recording."""

    log_mels: Halves
    curves: Halves
    kinds: npt.NDArray[np.int8]


def hear(samples: npt.NDArray[np.float32], gain: float) -> npt.NDArray[np.float64]:
    """Log-mels at the engine's places: value t is centred on sample 160 t + 80."""
    count = len(samples) // mel.HOP
    padded = np.pad(samples, (mel.LEAD, mel.WINDOW))[: mel.samples_for(count)]
    return mel.features(padded, gain)[0]


def level_of(samples: npt.NDArray[np.float32]) -> float:
    """The gain that the engine would choose."""
    return float(loudness.measure(HeldSound(samples))["speech_gain"])


def make_examples(said: Utterance, chance: np.random.Generator) -> list[Example]:
    """One utterance as it is, and twice as recordings make it: in rooms, over telephones, under noise and music."""
    before, after = (int(chance.uniform(0.15, 0.8) * 100) for _ in range(2))
    count = len(said.samples) // mel.HOP
    curves = np.pad(draw_curves(said.segments, count), ((before, after), (0, 0)), mode="edge")
    kinds = np.pad(draw_kinds(said.segments, count), (before, after))
    wanted = np.concatenate([curves, kinds[:, None].astype(np.float32)], axis=1)
    samples = np.pad(said.samples[: count * mel.HOP], (before * mel.HOP, after * mel.HOP))
    made = []
    for version in range(3):
        x, y = samples, wanted
        if version:
            x, y = rooms.change_size(x, y, chance)
            if chance.random() < 0.6:
                x = rooms.put_into_room(x, chance)
            if chance.random() < 0.35:
                x = rooms.narrow_band(x, chance)
        x = x * np.float32(level_of(x))
        if version or chance.random() < 0.5:
            under = rooms.make_music if chance.random() < 0.3 else rooms.make_noise
            decibels = chance.uniform(6, 45) if version else chance.uniform(25, 55)
            x = x + under(len(x), chance) * np.float32(_SPEECH_RMS * 10 ** (-decibels / 20))
        x = x * np.float32(10 ** (chance.uniform(-4, 4) / 20))
        heard = hear(x.astype(np.float32), 1.0)
        length = min(len(heard), len(y))
        y = y[:length]
        made.append(Example(heard[:length].astype(np.float16), y[:, :8].astype(np.float16), y[:, 8].astype(np.int8)))
    return made


def make_wordless(chance: np.random.Generator) -> Example:
    """Noise or music alone, at any level: the mouth rests."""
    count = int(chance.uniform(3, 7) * DRIVING_RATE)
    sound = (rooms.make_music if chance.random() < 0.5 else rooms.make_noise)(count, chance)
    if chance.random() < 0.3:
        sound = rooms.put_into_room(sound, chance)
    heard = hear(sound * np.float32(_SPEECH_RMS * 10 ** (chance.uniform(-35, 6) / 20)), 1.0)
    rest = np.tile(draw_curves((), 1), (len(heard), 1)).astype(np.float16)
    return Example(heard.astype(np.float16), rest, np.zeros(len(heard), np.int8))


class MouthNetwork(nn.Module):
    """The net of articulation.SpeechNetwork, and a layer that names kinds of phones, which only training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(mel.BANDS, CHANNELS, 5)
        self.middle = nn.ModuleList([nn.Conv1d(CHANNELS, CHANNELS, 3, dilation=d) for d in DILATIONS])
        self.last = nn.Conv1d(CHANNELS, 8, 1)
        self.kinds = nn.Conv1d(CHANNELS, KINDS, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised log-mels [b, 40, n + 2 * REACH] to curves [b, 8, n], the closure a logit, and logits of kinds."""
        x = F.relu(self.first(x))
        for dilation, layer in zip(DILATIONS, self.middle, strict=True):
            x = x[:, :, dilation:-dilation] + F.relu(layer(x))
        return self.last(x), self.kinds(x)


def train(
    examples: list[Example], steps: int, seed: int, start: Path | None = None
) -> dict[str, npt.NDArray[np.float16]]:
    """Weights after `steps` of AdamW under one cycle of the learning rate, on one thread; `start` is gone on from."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    chance = np.random.default_rng(seed)
    some = np.concatenate([example.log_mels[::7].astype(np.float32) for example in examples])
    mean, deviation = some.mean(axis=0), some.std(axis=0)
    net = MouthNetwork()
    if start is not None:
        mean, deviation = _go_on_from(start, net)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _FASTEST, total_steps=steps)
    centre, spread = torch.tensor(mean)[:, None], torch.tensor(deviation)[:, None]
    lengths = np.array([len(example.curves) for example in examples], np.float64)
    began, running = time.monotonic(), 0.0
    for step in range(steps):
        x, y, kinds = _batch(examples, lengths / lengths.sum(), chance)
        # Processors that multiply in bfloat16 are several times faster at it.
        with torch.autocast("cpu", torch.bfloat16):
            out, named = net((x - centre) / spread)
        loss = _loss(out.float(), y) + _KIND_WEIGHT * F.cross_entropy(named.float(), kinds, ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        running = float(loss.detach()) if not step else 0.98 * running + 0.02 * float(loss.detach())
        if step % 500 == 499 or step == steps - 1:
            print(f"step {step + 1}: loss {running:.4f}, {time.monotonic() - began:.0f} s", flush=True)
    return _weights_of(net, mean, deviation)


def _loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Curves [b, 8, n] against those that are wanted: places, changes, closures, and whether they go together."""
    weights = torch.tensor(_WEIGHTS)[None, :, None]
    # Lips tucked under the teeth are rare, so they count double where they are wanted.
    rare = 1 + 2 * (y > 0.5).float() * torch.eye(8)[Curve.TUCK][None, :, None]
    loss = (weights * rare * (out - y) ** 2).mean()
    change = (out[:, :, 1:] - out[:, :, :-1]) - (y[:, :, 1:] - y[:, :, :-1])
    loss = loss + 1.2 * (weights * change**2).mean()
    closed = y[:, Curve.CLOSE]
    wrong = F.binary_cross_entropy_with_logits(out[:, Curve.CLOSE], closed, reduction="none")
    loss = loss + _CLOSURE_WEIGHT * (wrong * (1 + (_CLOSED_COUNTS - 1) * closed)).mean()
    # The engine stretches each curve to the voice's own range, so what counts is the correlation in each window.
    got, wanted = (z[:, : Curve.CLOSE] - z[:, : Curve.CLOSE].mean(dim=2, keepdim=True) for z in (out, y))
    size = (got.square().mean(dim=2) + 1e-3).sqrt() * (wanted.square().mean(dim=2) + 1e-3).sqrt()
    return loss + _FOLLOWS_WEIGHT * (1 - (got * wanted).mean(dim=2) / size).mean()


def _batch(
    examples: list[Example], shares: npt.NDArray[np.float64], chance: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """BATCH windows, each heard from another throat through another microphone: log-mels, curves, kinds."""
    heard, wanted, kinds = [], [], []
    for k in chance.choice(len(examples), BATCH, p=shares):
        example = examples[k]
        length = len(example.curves)
        start = int(chance.integers(-REACH, max(1, length - WINDOW)))
        at = np.arange(start - REACH, start + WINDOW + REACH)
        x = example.log_mels[np.clip(at, 0, length - 1)].astype(np.float32) @ mel.throat(chance.uniform(0.88, 1.12))
        x = x + np.interp(np.arange(mel.BANDS), np.linspace(0, mel.BANDS - 1, 5), chance.normal(0, 0.7, 5))
        if chance.random() < 0.3:
            band = int(chance.integers(0, mel.BANDS - 4))
            x[:, band : band + int(chance.integers(1, 5))] = _QUIET
        if chance.random() < 0.3:  # a recording's own hiss
            x = np.logaddexp(x, chance.uniform(-9, -4))
        x[(at < 0) | (at >= length)] = _QUIET
        heard.append(np.maximum(x, _QUIET).T.astype(np.float32))
        inside = np.clip(at[REACH:-REACH], 0, length - 1)
        wanted.append(example.curves[inside].T.astype(np.float32))
        kinds.append(example.kinds[inside].astype(np.int64))
    return torch.tensor(np.stack(heard)), torch.tensor(np.stack(wanted)), torch.tensor(np.stack(kinds))


def _go_on_from(path: Path, net: MouthNetwork) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Fill `net`, which may be wider; mean and deviation of the log-mels that it was trained with.

    What is new in a wider net hears all channels and is not heard by the old ones, so it begins with the same curves.
    """
    with np.load(path) as stored:
        weights = {name: torch.tensor(stored[name].astype(np.float32)) for name in stored.files}
    known = len(weights["ib"])
    with torch.no_grad():
        net.first.weight[:known], net.first.bias[:known] = weights["iw"], weights["ib"]
        net.last.weight[:, known:] = 0
        net.last.weight[:, :known, 0], net.last.bias[:] = weights["ow"], weights["ob"]
        for k, layer in enumerate(net.middle):
            layer.weight[:known, known:] = 0
            layer.weight[:known, :known], layer.bias[:known] = weights[f"w{k}"], weights[f"b{k}"]
    return weights["mu"].numpy(), weights["sd"].numpy()


def _weights_of(
    net: MouthNetwork, mean: npt.NDArray[np.float32], deviation: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float16]]:
    found = {"mu": mean, "sd": deviation, "ib": net.first.bias, "iw": net.first.weight, "ob": net.last.bias}
    found["ow"] = net.last.weight[:, :, 0]
    for k, layer in enumerate(net.middle):
        found[f"w{k}"], found[f"b{k}"] = layer.weight, layer.bias
    return {
        name: (value.detach().numpy() if isinstance(value, torch.Tensor) else value).astype(np.float16)
        for name, value in found.items()
    }


def join(paths: list[Path]) -> dict[str, npt.NDArray[np.float16]]:
    """The weights of several networks that are asked together, each under its number."""
    joined = {}
    for k, path in enumerate(paths):
        with np.load(path) as stored:
            joined |= {f"{k}/{name}": stored[name] for name in stored.files}
    return joined


def save_weights(weights: dict[str, npt.NDArray[np.float16]], path: Path) -> None:
    """As articulation.SpeechNetwork reads them."""
    np.savez(path, **weights)  # type: ignore[arg-type]
