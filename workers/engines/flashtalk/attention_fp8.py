"""Self-attention with queries, keys, values, weights and result in fp8, by cuDNN's own kernel on Hopper.

cuDNN takes one factor per tensor.  Normalised queries and keys are bounded by sqrt(D) times their largest gain, so
their factor is known beforehand and nothing is ever clipped; the values' factor is their largest number, measured in
the pass that rounds queries and keys.  Each result is a mean of values, so it is bounded by the same number.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from farm.errors import ConfigError
from workers.engines.flashtalk.linears import FP8, LARGEST, Quantised

WEIGHT_SCALE = 256.0  # of the softmax weights, which are at most 1


class Fp8:
    """One object per process is enough: graphs are built once per shape."""

    _graphs: dict[tuple[int, int, int, int], tuple[Any, dict[str, Any], torch.Tensor]] = {}  # noqa: RUF012
    _constants: dict[int, tuple[torch.Tensor, ...]] = {}  # noqa: RUF012
    _handle: Any = None

    def __init__(self) -> None:
        try:
            import cudnn
        except ImportError:
            raise ConfigError(
                "attention fp8 needs the package nvidia-cudnn-frontend: install it or choose exact"
            ) from None
        self._cudnn = cudnn
        if torch.cuda.get_device_capability() < (9, 0):
            raise ConfigError("attention fp8 needs a Hopper card or a later one: choose exact")
        if Fp8._handle is None:
            Fp8._handle = cudnn.create_handle()

    def __call__(
        self,
        qkv: torch.Tensor,
        gain: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        heads: int,
        eps: float,
        skipped: int,
    ) -> Quantised:
        from workers.engines.flashtalk import kernels

        n, d = qkv.shape[0], qkv.shape[1] // 3
        factor, undo_q, undo_k = self._gain_constants(gain, d)
        q, k, v, top = kernels.rms_rope_fp8(qkv, gain, cos, sin, eps, factor)
        undo_v = (top / LARGEST["fp8"]).view(1, 1, 1, 1)
        graph, slots, workspace = self._graph(n - skipped, n, heads, d // heads, qkv.device)
        out = torch.empty((n - skipped, d), dtype=FP8, device=qkv.device)
        unit = undo_v.new_empty(2, 1, 1, 1, 1)
        pack = {
            slots["q"]: q[skipped:],
            slots["k"]: k,
            slots["v"]: v,
            slots["o"]: out,
            slots["descale_q"]: undo_q,
            slots["descale_k"]: undo_k,
            slots["descale_v"]: undo_v,
            slots["descale_s"]: self._scalar(1 / WEIGHT_SCALE, qkv.device),
            slots["scale_s"]: self._scalar(WEIGHT_SCALE, qkv.device),
            slots["scale_o"]: 1.0 / undo_v,
            slots["amax_s"]: unit[0],
            slots["amax_o"]: unit[1],
        }
        self._cudnn.set_stream(handle=Fp8._handle, stream=torch.cuda.current_stream().cuda_stream)
        graph.execute(pack, workspace, handle=Fp8._handle)
        return Quantised(out, undo_v.view(1, 1).expand(n - skipped, 1).contiguous())

    def _gain_constants(self, gain: torch.Tensor, width: int) -> tuple[torch.Tensor, ...]:
        """Factors of queries and keys [2], and what undoes each; a block's gain never changes."""
        known = Fp8._constants.get(gain.data_ptr())
        if known is None:
            bound = gain.abs().amax(dim=1) * math.sqrt(width)
            undo = bound / LARGEST["fp8"]
            known = (1 / undo, undo[0].view(1, 1, 1, 1).clone(), undo[1].view(1, 1, 1, 1).clone(), gain)
            Fp8._constants[gain.data_ptr()] = known
        return known[:3]

    @staticmethod
    def _scalar(value: float, device: torch.device) -> torch.Tensor:
        key = -int(value * 65536)
        if key not in Fp8._constants:
            Fp8._constants[key] = (torch.full((1, 1, 1, 1), value, device=device),)
        return Fp8._constants[key][0]

    def _graph(self, queries: int, keys: int, heads: int, size: int, device: torch.device) -> Any:
        shape = (queries, keys, heads, size)
        if shape in Fp8._graphs:
            return Fp8._graphs[shape]
        cudnn = self._cudnn
        fp8, fp32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
        graph = cudnn.pygraph(io_data_type=fp8, intermediate_data_type=fp32, compute_data_type=fp32, handle=Fp8._handle)

        def layout(rows: int) -> dict[str, Any]:
            return {"dim": [1, heads, rows, size], "stride": [rows * heads * size, size, heads * size, 1]}

        slots: dict[str, Any] = {
            "q": graph.tensor(name="q", data_type=fp8, **layout(queries)),
            "k": graph.tensor(name="k", data_type=fp8, **layout(keys)),
            "v": graph.tensor(name="v", data_type=fp8, **layout(keys)),
        }
        one = {"dim": [1, 1, 1, 1], "stride": [1, 1, 1, 1]}
        for name in ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o"):
            slots[name] = graph.tensor(name=name, data_type=fp32, **one)
        slots["o"], _, slots["amax_s"], slots["amax_o"] = graph.sdpa_fp8(
            **slots, is_inference=True, attn_scale=size**-0.5, use_causal_mask=False, name="attention"
        )
        out = layout(queries)
        slots["o"].set_output(True).set_dim(out["dim"]).set_stride(out["stride"]).set_data_type(fp8)
        for name in ("amax_s", "amax_o"):
            slots[name].set_output(True).set_dim(one["dim"]).set_stride(one["stride"]).set_data_type(fp32)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        workspace = torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device=device)
        Fp8._graphs[shape] = (graph, slots, workspace)
        return Fp8._graphs[shape]
