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


def product_fp8(
    x: Quantised, weight: Quantised, bias: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [N, K] times weight [O, K] transposed, plus bias, into `out` if given; the weight's factors are [1, O]."""
    dtype = bias.dtype if bias is not None else torch.bfloat16 if out is None else out.dtype
    if x.values.is_cuda:
        given = {"scale_a": x.scale, "scale_b": weight.scale, "bias": bias, "out_dtype": dtype, "use_fast_accum": True}
        if out is not None:
            return torch._scaled_mm(x.values, weight.values.t(), **given, out=out)
        return torch._scaled_mm(x.values, weight.values.t(), **given)
    product = (x.values.float() @ weight.values.float().t()) * x.scale * weight.scale
    product = (product if bias is None else product + bias.float()).to(dtype)
    return product if out is None else out.copy_(product)


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
            return product_fp8(x, Quantised(self.weight, self.scale), self.bias)
        product = torch._int_mm(x.values, self.weight.t())
        if product.is_cuda:
            from workers.engines.flashtalk.kernels import scale_product

            return scale_product(product, x.scale, self.scale, self.bias)
        return (product.float() * x.scale * self.scale + self.bias.float()).to(self.bias.dtype)

    def add_to(self, total: torch.Tensor, x: Activation) -> torch.Tensor | None:
        """A plain layer adds x W^T to `total` in the product itself and leaves its bias out; others return y.

        The sum is rounded once instead of twice, and a pass over memory is saved.
        """
        if self.form != "plain":
            return self(x)
        assert isinstance(x, torch.Tensor)
        total.addmm_(x, self.weight.t())
        return None

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
