"""Sizes of the model and of a film: the only place that divides pixels into latents and latents into tokens."""

from __future__ import annotations

from dataclasses import dataclass

from farm.errors import InputError

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
CHUNK_SPAN = 33  # frames that one chunk denoises
MOTION_FRAMES = 5  # of which the first five repeat the chunk before
NEW_FRAMES = CHUNK_SPAN - MOTION_FRAMES
TIME_STRIDE = 4
SPACE_STRIDE = 8
PATCH = 2
LATENT_FRAMES = (CHUNK_SPAN - 1) // TIME_STRIDE + 1


@dataclass(frozen=True)
class DitConfig:
    """Shape of the diffusion transformer; the defaults are the 14B model."""

    in_dim: int = 36
    out_dim: int = 16
    dim: int = 5120
    ffn_dim: int = 13824
    freq_dim: int = 256
    num_heads: int = 40
    num_layers: int = 40
    eps: float = 1e-6
    text_len: int = 512
    text_dim: int = 4096
    image_dim: int = 1280
    audio_window: int = 5
    audio_layers: int = 12
    audio_dim: int = 768
    intermediate_dim: int = 512
    output_dim: int = 768
    context_tokens: int = 32

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class VaeConfig:
    """Shape of the Wan 2.1 video autoencoder."""

    dim: int = 96
    z_dim: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    time_down: tuple[bool, ...] = (False, True, True)


TINY_DIT = DitConfig(
    dim=128,
    ffn_dim=320,
    freq_dim=64,
    num_heads=4,
    num_layers=3,
    text_len=32,
    intermediate_dim=24,
    output_dim=48,
)
TINY_VAE = VaeConfig(dim=8)


@dataclass(frozen=True)
class Geometry:
    """One film's size in pixels, latents and tokens."""

    height: int
    width: int

    def __post_init__(self) -> None:
        step = SPACE_STRIDE * PATCH
        if self.height <= 0 or self.width <= 0 or self.height % step or self.width % step:
            raise InputError(
                f"a film of {self.width}x{self.height} cannot be rendered: both sides must be multiples of {step}"
            )

    @property
    def latent_frames(self) -> int:
        return LATENT_FRAMES

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Of one chunk: channels, frames, rows, columns."""
        return 16, self.latent_frames, self.height // SPACE_STRIDE, self.width // SPACE_STRIDE

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of one chunk: frames, rows, columns."""
        return self.latent_frames, self.height // (SPACE_STRIDE * PATCH), self.width // (SPACE_STRIDE * PATCH)

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[1] * self.grid[2]

    @property
    def tokens(self) -> int:
        return self.latent_frames * self.tokens_per_frame
