"""Modules that process each position independently: norm, feed-forward, projection.

Shape suffixes: B examples, L positions, W residual width, F `d_ff`, G = F, or 2 F if gated; X any width; N = B * L.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from march_search.architecture.architecture import Architecture
from march_search.architecture.huggingface import EPSILON
from march_search.model import cpu
from march_search.model.init import Kinds

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "exact-gelu": F.gelu,
}
"""Activation functions by name. `gelu` is the tanh approximation, as in T5 v1.1 (`gelu_new`)."""

HAS_FUSED_RMS_NORM = hasattr(torch.ops.aten, "_fused_rms_norm")
"""Whether torch has a fused RMSNorm; versions before 2.9 would store its intermediate values in fp32."""


class RMSNorm(nn.Module):
    """Root mean square normalisation with a weight and no bias (Zhang and Sennrich 2019), computed in fp32."""

    def __init__(self, width: int, kind: str = "norm", layers: int = 1, epsilon: float = EPSILON) -> None:
        """Allocate `width` weights; `kind` is their kind in `init`, in a stack of `layers` layers."""
        super().__init__()
        self.kind, self.epsilon = kind, epsilon
        self.weight = nn.Parameter(torch.empty(width))
        self.sizes = {"d_model": width, "layers": layers}

    def kinds(self) -> Kinds:
        """Yield the parameter, for `init`."""
        yield self.kind, self.weight, self.sizes

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Return `x_BLW` normalised, in the same dtype."""
        if x_BLW.device.type == "cpu" or not HAS_FUSED_RMS_NORM:
            return cast(Tensor, cpu.rms_norm(x_BLW, self.weight, self.epsilon))
        return F.rms_norm(x_BLW, self.weight.shape, self.weight, self.epsilon)


class LayerNorm(RMSNorm):
    """Layer normalisation with a weight and a bias (Ba et al. 2016), computed in fp32."""

    def __init__(self, width: int, kind: str = "norm", layers: int = 1, epsilon: float = EPSILON) -> None:
        """Allocate `width` weights and biases; the kind of the biases is `kind` with `_bias`."""
        super().__init__(width, kind, layers, epsilon)
        self.bias = nn.Parameter(torch.empty(width))

    def kinds(self) -> Kinds:
        """Yield the parameters, for `init`."""
        yield from super().kinds()
        yield f"{self.kind}_bias", self.bias, self.sizes

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Return `x_BLW` normalised, in the same dtype."""
        return F.layer_norm(x_BLW, self.weight.shape, self.weight, self.bias, self.epsilon)


def build_norm(a: Architecture, width: int, kind: str = "norm", layers: int = 1) -> RMSNorm:
    """Allocate a norm of the residual stream."""
    return (LayerNorm if a.norm == "layer" else RMSNorm)(width, kind, layers, a.norm_epsilon)


class FeedForward(nn.Module):
    """Feed-forward layer: act(x W_i) W_o, or gated, (act(x W_gate) * (x W_up)) W_o (Shazeer 2020)."""

    def __init__(self, width: int, d_ff: int, feed_forward_proj: str, layers: int, has_bias: bool = False) -> None:
        """Allocate `wi` and `wo`, and their biases if it `has_bias`.

        In a gated layer, the first `d_ff` rows of `wi` are the gate, and the rest are up.
        """
        super().__init__()
        self.activation, self.is_gated = (
            feed_forward_proj.removeprefix("gated-"),
            feed_forward_proj.startswith("gated-"),
        )
        self.wi = nn.Parameter(torch.empty(d_ff * (1 + self.is_gated), width))
        self.wo = nn.Parameter(torch.empty(width, d_ff))
        self.wi_bias = nn.Parameter(torch.empty(len(self.wi))) if has_bias else None
        self.wo_bias = nn.Parameter(torch.empty(width)) if has_bias else None
        self.sizes = {"width": width, "d_ff": d_ff, "layers": layers}

    def kinds(self) -> Kinds:
        """Yield the parameters, for `init`."""
        yield "wi", self.wi, self.sizes
        yield "wo", self.wo, self.sizes
        if self.wi_bias is not None and self.wo_bias is not None:
            yield "bias", self.wi_bias, self.sizes
            yield "branch_bias", self.wo_bias, self.sizes

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Return the addition to the residual stream."""
        activate = ACTIVATIONS[self.activation]
        if not self.is_gated:
            return F.linear(activate(F.linear(x_BLW, self.wi, self.wi_bias)), self.wo, self.wo_bias)
        if x_BLW.device.type == "cpu":  # contiguous halves are faster here than one larger product
            biases = (None, None) if self.wi_bias is None else self.wi_bias.chunk(2)
            halves = zip(self.wi.chunk(2), biases, strict=True)
            gate_BLF, up_BLF = (F.linear(x_BLW, half, bias) for half, bias in halves)
        else:
            gate_BLF, up_BLF = F.linear(x_BLW, self.wi, self.wi_bias).chunk(2, -1)
        return F.linear(activate(gate_BLF) * up_BLF, self.wo, self.wo_bias)


class Projection(nn.Module):
    """Linear map between two residual widths."""

    def __init__(self, width: int, out: int) -> None:
        """Allocate a matrix from `width` to `out`."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, width))

    def kinds(self) -> Kinds:
        """Yield the parameter, for `init`."""
        yield "projection", self.weight, {"width": self.weight.shape[1]}

    def forward(self, x_BLX: Tensor) -> Tensor:
        """Return `x_BLX` projected to the other width."""
        return F.linear(x_BLX, self.weight)
