"""Modules that process each position independently: norm, feed-forward, projection.

Shape suffixes: B examples, L positions, W residual width, F `d_ff`, G = F, or 2 F if gated; X any width; N = B * L.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from march_search.architecture.huggingface import EPSILON
from march_search.model import cpu
from march_search.model.init import Kinds

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
"""Activation functions by name. GELU is the tanh approximation, as in T5 v1.1 (`gelu_new`)."""

HAS_FUSED_RMS_NORM = hasattr(torch.ops.aten, "_fused_rms_norm")
"""Whether torch has a fused RMSNorm; versions before 2.9 would store its intermediate values in fp32."""


class RMSNorm(nn.Module):
    """Root mean square normalisation with a weight and no bias (Zhang and Sennrich 2019), computed in fp32."""

    def __init__(self, width: int, kind: str = "norm") -> None:
        """Allocate `width` weights; `kind` is their kind in `init`."""
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(width))

    def kinds(self) -> Kinds:
        """Yield the parameter, for `init`."""
        yield self.kind, self.weight, {"d_model": len(self.weight)}

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Return `x_BLW` normalised, in the same dtype."""
        if x_BLW.device.type == "cpu" or not HAS_FUSED_RMS_NORM:
            return cast(Tensor, cpu.rms_norm(x_BLW, self.weight))
        return F.rms_norm(x_BLW, self.weight.shape, self.weight, EPSILON)


class FeedForward(nn.Module):
    """Feed-forward layer: act(x W_i) W_o, or gated, (act(x W_gate) * (x W_up)) W_o (Shazeer 2020)."""

    def __init__(self, width: int, d_ff: int, feed_forward_proj: str, layers: int) -> None:
        """Allocate `wi` and `wo`. In a gated layer, the first `d_ff` rows of `wi` are the gate, and the rest are up."""
        super().__init__()
        self.activation, self.is_gated = (
            feed_forward_proj.removeprefix("gated-"),
            feed_forward_proj.startswith("gated-"),
        )
        self.wi = nn.Parameter(torch.empty(d_ff * (1 + self.is_gated), width))
        self.wo = nn.Parameter(torch.empty(width, d_ff))
        self.sizes = {"width": width, "d_ff": d_ff, "layers": layers}

    def kinds(self) -> Kinds:
        """Yield the parameters, for `init`."""
        yield "wi", self.wi, self.sizes
        yield "wo", self.wo, self.sizes

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Return the addition to the residual stream."""
        activate = ACTIVATIONS[self.activation]
        if not self.is_gated:
            return F.linear(activate(F.linear(x_BLW, self.wi)), self.wo)
        if x_BLW.device.type == "cpu":  # contiguous halves are faster here than one larger product
            gate_BLF, up_BLF = (F.linear(x_BLW, half) for half in self.wi.chunk(2))
        else:
            gate_BLF, up_BLF = F.linear(x_BLW, self.wi).chunk(2, -1)
        return F.linear(activate(gate_BLF) * up_BLF, self.wo)


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
