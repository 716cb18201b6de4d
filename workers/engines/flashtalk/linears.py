"""Linear layers in the weights' own type, in fp8 and in int8, and the activations that they take.

Quantised layers scale each output channel of the weight and each row of the activation on its own, so the product is
exact up to the rounding of its two factors.  The kernel before a quantised layer already writes the rounded rows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Union

import torch
import torch.nn.functional as F

from farm.errors import ConfigError

Form = Literal["plain", "fp8", "int8"]
FP8 = torch.float8_e4m3fn
LARGEST = {"fp8": 448.0, "int8": 127.0}


class Quantised(NamedTuple):
    """Rows in fp8 or int8 [N, K] and the float32 factor of each row [N, 1]."""

    values: torch.Tensor
    scale: torch.Tensor


Activation = Union[torch.Tensor, Quantised]  # noqa: UP007  (read by Python 3.10 at run time)


def round_rows(x: torch.Tensor, form: Form) -> Quantised:
    """Rows of [N, K] rounded to fp8 or int8, each with its own factor."""
    largest = LARGEST[form]
    x = x.float()
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / largest
    scaled = x / scale
    values = scaled.clamp(-largest, largest).to(FP8) if form == "fp8" else scaled.round().to(torch.int8)
    return Quantised(values, scale)


class Linear:
    """y = x W^T + b for rows [N, K]; the form says what kind of activation it takes."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, form: Form) -> None:
        self.form = form
        self.bias = bias
        self.out_features, self.in_features = weight.shape
        if form == "plain":
            self.weight = weight
        else:
            self.weight, scale = round_rows(weight, form)
            self.scale = scale.view(1, -1).contiguous()

    def __call__(self, x: Activation) -> torch.Tensor:
        if self.form == "plain":
            assert isinstance(x, torch.Tensor)
            return F.linear(x, self.weight, self.bias)
        assert isinstance(x, Quantised)
        if self.form == "fp8":
            if x.values.is_cuda:
                return torch._scaled_mm(
                    x.values,
                    self.weight.t(),
                    scale_a=x.scale,
                    scale_b=self.scale,
                    bias=self.bias,
                    out_dtype=self.bias.dtype,
                    use_fast_accum=True,
                )
            product = x.values.float() @ self.weight.float().t()
        else:
            product = torch._int_mm(x.values, self.weight.t())
            if product.is_cuda:
                from workers.engines.flashtalk.kernels import scale_product

                return scale_product(product, x.scale, self.scale, self.bias)
        return (product.float() * x.scale * self.scale + self.bias.float()).to(self.bias.dtype)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """GELU(tanh) of a plain layer's product, fused into the product where the library can."""
        assert self.form == "plain"
        if x.is_cuda:
            return torch._addmm_activation(self.bias, x, self.weight.t(), use_gelu=True)
        return F.gelu(self(x), approximate="tanh")

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes


def form_for(precision: str, device: torch.device) -> Form:
    """The linear layers' form for a preset's precision.  Raises ConfigError where the card cannot."""
    if precision == "bf16":
        return "plain"
    if precision == "fp8":
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
            raise ConfigError("this card has no fp8 arithmetic: choose precision int8 or bf16")
        return "fp8"
    if precision == "int8":
        return "int8"
    raise ConfigError(f"precision is {precision!r}: it must be bf16, fp8 or int8")
