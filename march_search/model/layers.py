"""The parts of a layer that look at one position at a time: norm, feed-forward, projection.

Shape suffixes: B examples, L positions, W residual width, F `d_ff`, G = F, or 2 F if gated; X any width; N = B * L.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from march_search.model import cpu
from march_search.model.init import Kinds

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
"""By name; GELU is the tanh approximation, as in T5 v1.1 (`gelu_new`)."""


class RMSNorm(nn.Module):
    """Division by the root mean square, times a weight, without bias (Zhang and Sennrich 2019). fp32 inside."""

    def __init__(self, width: int, kind: str = "norm") -> None:
        """A norm of `width` weights; its `kind` is what `init` calls it."""
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(width))

    def kinds(self) -> Kinds:
        """Its one parameter, for `init`."""
        yield self.kind, self.weight, {"d_model": len(self.weight)}

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Normed `x_BLW`, in its dtype."""
        if x_BLW.device.type == "cpu":
            return cast(Tensor, cpu.rms_norm(x_BLW, self.weight))
        return F.rms_norm(x_BLW, self.weight.shape, self.weight, cpu.EPSILON)


class FeedForward(nn.Module):
    """Two matrices around an activation, or a gated linear unit: act(x W_gate) * (x W_up), then W_o (Shazeer 2020)."""

    def __init__(self, width: int, d_ff: int, feed_forward_proj: str, layers: int) -> None:
        """Gate and up projection are one matrix: its first `d_ff` rows are the gate."""
        super().__init__()
        self.activation, self.is_gated = (
            feed_forward_proj.removeprefix("gated-"),
            feed_forward_proj.startswith("gated-"),
        )
        self.wi = nn.Parameter(torch.empty(d_ff * (1 + self.is_gated), width))
        self.wo = nn.Parameter(torch.empty(width, d_ff))
        self.sizes = {"width": width, "d_ff": d_ff, "layers": layers}

    def kinds(self) -> Kinds:
        """Its parameters, for `init`."""
        yield "wi", self.wi, self.sizes
        yield "wo", self.wo, self.sizes

    def forward(self, x_BLW: Tensor) -> Tensor:
        """What the layer adds to the residual stream."""
        activate = ACTIVATIONS[self.activation]
        if not self.is_gated:
            return F.linear(activate(F.linear(x_BLW, self.wi)), self.wo)
        if x_BLW.device.type == "cpu":  # halves that are contiguous save more here than one larger product does
            gate_BLF, up_BLF = (F.linear(x_BLW, half) for half in self.wi.chunk(2))
        else:
            gate_BLF, up_BLF = F.linear(x_BLW, self.wi).chunk(2, -1)
        return F.linear(activate(gate_BLF) * up_BLF, self.wo)


class Projection(nn.Module):
    """A matrix between two residual widths."""

    def __init__(self, width: int, out: int) -> None:
        """From `width` to `out`."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, width))

    def kinds(self) -> Kinds:
        """Its one parameter, for `init`."""
        yield "projection", self.weight, {"width": self.weight.shape[1]}

    def forward(self, x_BLX: Tensor) -> Tensor:
        """`x_BLX` at the other width."""
        return F.linear(x_BLX, self.weight)
