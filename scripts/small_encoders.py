"""SoulX-FlashTalk's engine over a checkout whose text encoder and picture tower are a few thin layers.

Their sizes stand in the checkout's code and not in the checkpoint: 5.7 billion numbers, allocated in float32, and 1.2.
The checkout's own functions take other sizes as arguments, and here they get some.  Widths that the transformer reads,
and everything else, stay as they are.  For checks on the CPU, and for disks that are too small; a host is given this
module instead of the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from workers.engines.upstream import flashtalk
from workers.engines.upstream.checkout import Checkout, check_checkout, import_from

LETTERS = 128
TEXT = {"vocab_size": LETTERS, "dim_attn": 64, "dim_ffn": 64, "num_heads": 4, "encoder_layers": 2}
PICTURES = {
    "vision_mlp_ratio": 0.1,
    "vision_layers": 3,
    "vocab_size": LETTERS,
    "text_dim": 32,
    "text_heads": 2,
    "text_layers": 1,
}


def shrink(checkout: Checkout) -> None:
    """Give the checkout's two encoders these sizes, in this process."""
    for name, function, sizes in (
        (flashtalk.TEXT, "umt5_xxl", TEXT),
        (flashtalk.PICTURES, "clip_xlm_roberta_vit_h_14", PICTURES),
    ):
        module = import_from(checkout, name)
        setattr(module, function, partial(getattr(module, function), **sizes))


def make_engine(settings: Mapping[str, Any]) -> Any:
    """See workers.engines.upstream.flashtalk.make_engine."""
    import torch

    engine = flashtalk.make_engine(settings)
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: 0
    flashtalk.import_libraries()
    shrink(check_checkout(Path(settings["repo_path"]), flashtalk.LAYOUT))
    return engine
