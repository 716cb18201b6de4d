"""Speech: which samples a chunk hears, and the features that the transformer reads of them.

A chunk hears the eight seconds that end with its last new frame, so nothing is read ahead; features come at 25 per
second, and each frame sees its own and two on either side, the last one standing in for what is not there yet.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from farm.errors import ConfigError
from workers.engines.contract import DrivingAudio
from workers.engines.flashtalk.geometry import CHUNK_SPAN, FPS, NEW_FRAMES, SAMPLE_RATE, SAMPLES_PER_FRAME

WINDOW_SECONDS = 8
WINDOW_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE
WINDOW_FRAMES = WINDOW_SECONDS * FPS
REACH = 2  # features on either side of a frame's own


class SpeechEncoder(Protocol):
    """Features of a window of samples, float32 [200, 12, 768], on the device."""

    def __call__(self, samples: np.ndarray) -> torch.Tensor: ...


def read_window(audio: DrivingAudio, chunk: int) -> np.ndarray:
    """The samples that `chunk` hears, float32 [128000]; zeros before the beginning and after the end."""
    stop = NEW_FRAMES * SAMPLES_PER_FRAME * (chunk + 1)
    return audio.read(stop - WINDOW_SAMPLES, stop)


def gather_taps(features: torch.Tensor) -> torch.Tensor:
    """Features [200, 12, 768] of a window as [33, 5, 12, 768]: each frame of the chunk with its neighbours."""
    centres = torch.arange(WINDOW_FRAMES - CHUNK_SPAN, WINDOW_FRAMES, device=features.device)
    reach = torch.arange(-REACH, REACH + 1, device=features.device)
    return features[(centres[:, None] + reach[None]).clamp(max=WINDOW_FRAMES - 1)]


class Wav2Vec2Speech:
    """wav2vec 2.0 base, its convolutional features stretched to 25 per second before the transformer layers."""

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        if folder is None:
            torch.manual_seed(0)
            self._model = Wav2Vec2Model(Wav2Vec2Config())
        else:
            said = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
            if not said.get("do_normalize", True):
                raise ConfigError(f"{folder / 'preprocessor_config.json'}: do_normalize must be true for this engine")
            self._model = Wav2Vec2Model.from_pretrained(folder, local_files_only=True)
        self._model = self._model.to(device, torch.float32).eval().requires_grad_(False)
        self._device = device
        self._layers: list[torch.Tensor] = []
        for layer in self._model.encoder.layers:
            layer.register_forward_hook(self._keep)

    def _keep(self, _module: object, _inputs: object, output: object) -> None:
        self._layers.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]

    def __call__(self, samples: np.ndarray) -> torch.Tensor:
        # The extractor's zero mean and unit variance also undo any gain, so upstream's loudness step changes nothing.
        x = samples.astype(np.float64)
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-7)
        values = torch.from_numpy(x.astype(np.float32))[None].to(self._device)
        heard = self._model.feature_extractor(values)
        heard = F.interpolate(heard, size=WINDOW_FRAMES, mode="linear", align_corners=True).transpose(1, 2)
        hidden, _ = self._model.feature_projection(heard)
        self._layers = []
        self._model.encoder(hidden)
        features = torch.cat(self._layers).transpose(0, 1)
        self._layers = []
        return features


class SyntheticSpeech:
    """A stand-in that needs no weights: band energies of each frame through a fixed random mixture."""

    BANDS = 32

    def __init__(self, layers: int, channels: int, device: torch.device) -> None:
        draw = np.random.Generator(np.random.Philox(key=1))
        mixture = draw.standard_normal((self.BANDS, layers * channels), dtype=np.float32) / self.BANDS**0.5
        self._mixture = torch.from_numpy(mixture).to(device)
        self._shape = (WINDOW_FRAMES, layers, channels)

    def __call__(self, samples: np.ndarray) -> torch.Tensor:
        frames = samples.reshape(WINDOW_FRAMES, -1).astype(np.float64)
        power = np.abs(np.fft.rfft(frames * np.hanning(frames.shape[1]), axis=1)[:, 1:]) ** 2
        bands = power[:, : power.shape[1] // self.BANDS * self.BANDS].reshape(WINDOW_FRAMES, self.BANDS, -1).mean(-1)
        levels = np.log10(bands + 1e-6) / 3.0 + 1.0
        return (torch.from_numpy(levels.astype(np.float32)).to(self._mixture.device) @ self._mixture).view(self._shape)
