"""The speech encoder of the checkouts, whichever transformers is installed."""

from __future__ import annotations

import inspect
from typing import Any

import torch


def give_hidden_states() -> bool:
    """Let transformers' wav2vec 2.0 hand out its layers when it is asked for `output_hidden_states`.

    The checkouts' encoder calls the inner one with that word and takes `hidden_states[1:]` of its answer, which
    releases after 5.15 no longer give there.  What is given is what earlier releases gave, except the first, which
    stands before all layers and which no checkout takes.  Returns whether anything had to be done.
    """
    from transformers.modeling_outputs import BaseModelOutput
    from transformers.models.wav2vec2 import modeling_wav2vec2 as module

    kind = module.Wav2Vec2Encoder
    plain = kind.forward
    if "output_hidden_states" in inspect.signature(plain).parameters:
        return False

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        kept: list[torch.Tensor] = [hidden_states]

        def keep(_layer: Any, _given: Any, said: Any) -> None:
            kept.append(said[0] if isinstance(said, tuple) else said)

        hooks = [layer.register_forward_hook(keep) for layer in self.layers] if output_hidden_states else []
        try:
            said = plain(self, hidden_states, attention_mask=attention_mask, **others)
        finally:
            for hook in hooks:
                hook.remove()
        return BaseModelOutput(last_hidden_state=said[0], hidden_states=tuple(kept) if hooks else None)

    kind.forward = forward
    return True
