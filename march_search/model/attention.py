"""Self-attention and cross-attention layers.

Shape suffixes: B examples, L query positions, M key positions, S encoder positions, W residual width, H heads,
K `d_kv`, X = H * K inner width, E width of the encoder's output; scores_BHLM.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from march_search.architecture.parameters import LayerGroup
from march_search.model import cpu, flex
from march_search.model.attention_path import Bias, PathName, choose_path, padded_width, platform_of
from march_search.model.init import Kinds
from march_search.model.positions import PositionInfo, rotate

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one self-attention, each (B, S, H, K), before rotary rotation."""


class Attention(nn.Module):
    """Base class of self-attention and cross-attention: shape, output matrix, no-op key, attention product."""

    def __init__(self, shape: LayerGroup, position: str, noop_key: str, layers: int) -> None:
        """Allocate the attention of one layer of this shape, in a stack of `layers` layers."""
        super().__init__()
        self.heads, self.d_kv, self.inner = shape.heads, shape.d_kv, shape.inner
        self.q_kind = "q_unscaled" if position == "relative" else "q"
        self.scale = 1.0 if position == "relative" else shape.d_kv**-0.5
        self.has_noop = noop_key != "none"
        self.o = nn.Parameter(torch.empty(shape.width, shape.inner))
        self.noop_key = nn.Parameter(torch.empty(shape.inner)) if noop_key == "learned" else None
        self.sizes = {"width": shape.width, "inner": shape.inner, "d_kv": shape.d_kv, "layers": layers}

    def kinds(self) -> Kinds:
        """Yield the parameters, for `init`."""
        yield "o", self.o, self.sizes
        if self.noop_key is not None:
            yield "noop_key", self.noop_key, self.sizes

    def attend(
        self,
        q_BLHK: Tensor,
        k_BMHK: Tensor,
        v_BMHK: Tensor,
        position_info: PositionInfo | None,
        path: PathName | None = None,
    ) -> Tensor:
        """Apply attention and the output matrix; return the addition to the residual stream, (B, L, W).

        Args:
            q_BLHK, k_BMHK, v_BMHK: Queries, keys and values.
            position_info: Bias and causal mask; None in cross-attention, which has neither.
            path: How attention is computed; None chooses by device and shape.
        """
        if self.has_noop:
            k_BMHK, v_BMHK = self._with_noop(k_BMHK, v_BMHK)
        q_BHLK, k_BHMK, v_BHMK = q_BLHK.transpose(1, 2), k_BMHK.transpose(1, 2), v_BMHK.transpose(1, 2)
        bias_HLM, causal = (position_info.bias_HLM, position_info.causal) if position_info else (None, False)
        bias_HLM = None if bias_HLM is None else bias_HLM[: self.heads]
        block_mask = position_info.block_mask if position_info else None
        y_BHLK = scaled_attention(q_BHLK, k_BHMK, v_BHMK, bias_HLM, causal, self.scale, path, block_mask)
        return F.linear(y_BHLK.transpose(1, 2).flatten(2), self.o)

    def _with_noop(self, k_BMHK: Tensor, v_BMHK: Tensor) -> KeysValues:
        """Append a no-op position to keys and values. Its value is 0, and its key is 0 unless it is learned."""
        zero = (0, 0, 0, 0, 0, 1)
        if self.noop_key is None:
            return F.pad(k_BMHK, zero), F.pad(v_BMHK, zero)
        noop_BMHK = self.noop_key.view(1, 1, self.heads, self.d_kv).expand(len(k_BMHK), -1, -1, -1)
        return torch.cat((k_BMHK, noop_BMHK), 1), F.pad(v_BMHK, zero)

    def _split(self, x_BLX: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split one projection's output into `parts` views of shape (B, L, H, K)."""
        return x_BLX.view(*x_BLX.shape[:2], parts, self.heads, self.d_kv).unbind(2)


class SelfAttention(Attention):
    """Self-attention, with queries, keys and values from one matrix."""

    def __init__(self, shape: LayerGroup, position: str, noop_key: str, layers: int) -> None:
        """Allocate `qkv`, whose rows are queries, then keys, then values."""
        super().__init__(shape, position, noop_key, layers)
        self.qkv = nn.Parameter(torch.empty(3 * shape.inner, shape.width))

    def kinds(self) -> Kinds:
        """Yield the parameters, for `init`."""
        yield self.q_kind, self.qkv[: self.inner], self.sizes
        yield "kv", self.qkv[self.inner :], self.sizes
        yield from super().kinds()

    def forward(self, x_BLW: Tensor, long_BMW: Tensor | None, position_info: PositionInfo) -> tuple[Tensor, KeysValues]:
        """Return the addition to the residual stream, and the keys and values before rotary rotation.

        Args:
            x_BLW: Normalised residual stream.
            long_BMW: Source of the keys and values if only the queries are pooled; else None.
            position_info: Positions of queries and keys.
        """
        if long_BMW is None:
            q_BLHK, k_BMHK, v_BMHK = self._split(F.linear(x_BLW, self.qkv), 3)
        else:
            (q_BLHK,) = self._split(F.linear(x_BLW, self.qkv[: self.inner]), 1)
            k_BMHK, v_BMHK = self._split(F.linear(long_BMW, self.qkv[self.inner :]), 2)
        keys_values = k_BMHK, v_BMHK
        if position_info.turn_L is not None and position_info.turn_M is not None:
            q_BLHK, k_BMHK = rotate(q_BLHK, position_info.turn_L), rotate(k_BMHK, position_info.turn_M)
        return self.attend(q_BLHK, k_BMHK, v_BMHK, position_info, position_info.path), keys_values


class CrossAttention(Attention):
    """Cross-attention of the decoder to the encoder's output, or to the keys and values of one encoder layer."""

    def __init__(
        self, shape: LayerGroup, position: str, noop_key: str, layers: int, source: str, encoder_width: int
    ) -> None:
        """Allocate `q` and `kv`, whose rows are keys, then values. `source` is the architecture's `cross_attention`."""
        super().__init__(shape, position, noop_key, layers)
        self.source = source
        self.q = nn.Parameter(torch.empty(shape.inner, shape.width))
        width = encoder_width if source == "output" else shape.inner
        self.kv = None if source == "layer-shared" else nn.Parameter(torch.empty(2 * shape.inner, width))

    def kinds(self) -> Kinds:
        """Yield the parameters, for `init`."""
        yield self.q_kind, self.q, self.sizes
        if self.kv is not None:
            kind, inputs = ("kv", "width") if self.source == "output" else ("kv_layer", "inner")
            yield kind, self.kv, {inputs: self.kv.shape[1]}
        yield from super().kinds()

    def forward(self, x_BLW: Tensor, memory: Tensor | KeysValues, path: PathName | None = None) -> Tensor:
        """Return the addition to the residual stream.

        Args:
            x_BLW: Normalised residual stream.
            memory: The encoder's output, or the keys and values of one of its layers.
            path: How attention is computed; None chooses by device and shape.
        """
        (q_BLHK,) = self._split(F.linear(x_BLW, self.q), 1)
        k_BSHK, v_BSHK = self._keys_values(memory)
        return self.attend(q_BLHK, k_BSHK, v_BSHK, None, path)

    def _keys_values(self, memory: Tensor | KeysValues) -> tuple[Tensor, ...]:
        if isinstance(memory, Tensor):
            return self._split(F.linear(memory, cast(Tensor, self.kv)), 2)
        if self.kv is None:
            return memory
        weights = self.kv.chunk(2)
        return tuple(self._split(F.linear(x.flatten(2), w), 1)[0] for x, w in zip(memory, weights, strict=True))


def scaled_attention(
    q_BHLK: Tensor,
    k_BHMK: Tensor,
    v_BHMK: Tensor,
    bias_HLM: Tensor | None,
    causal: bool,
    scale: float,
    path: PathName | None = None,
    block_mask: Any = None,
) -> Tensor:
    """Return softmax(scale q k' + bias) v.

    Args:
        q_BHLK, k_BHMK, v_BHMK: Queries, keys and values.
        bias_HLM: Bias, which includes any causal mask; None for none.
        causal: Whether the kernel applies a causal mask. Needs no bias and as many keys as queries.
        scale: Factor of the products of queries and keys.
        path: How attention is computed, from `choose_path`; None calls it.
        block_mask: Causal mask of the path "flex", whose bias is in fp32 and includes none.
    """
    if path is None:
        path = _path_of(q_BHLK, k_BHMK, bias_HLM, causal)
    if path == "flex":
        return flex.attention(q_BHLK, k_BHMK, v_BHMK, cast(Tensor, bias_HLM), block_mask, scale)
    if path == "cpu-products":
        return cast(Tensor, cpu.attention(q_BHLK, k_BHMK, v_BHMK, bias_HLM, causal, scale))
    d_kv = q_BHLK.shape[-1]
    zeros = (0, padded_width(path, d_kv) - d_kv)
    if zeros[1]:
        q_BHLK, k_BHMK, v_BHMK = (F.pad(x, zeros) for x in (q_BHLK, k_BHMK, v_BHMK))
    bias_1HLM = None if bias_HLM is None else bias_HLM[None]
    y_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHMK, v_BHMK, bias_1HLM, is_causal=causal, scale=scale)
    return y_BHLK[..., :d_kv] if zeros[1] else y_BHLK


def _path_of(q_BHLK: Tensor, k_BHMK: Tensor, bias_HLM: Tensor | None, causal: bool) -> PathName:
    """Return the path of attention outside a model, without FlexAttention."""
    bias: Bias = "causal" if causal else "none"
    if bias_HLM is not None:
        bias = "trained" if bias_HLM.requires_grad else "fixed"
    platform = platform_of(q_BHLK.device)
    return choose_path(platform, q_BHLK.dtype, q_BHLK.shape[-1], bias, k_BHMK.shape[2], "sdpa").name
