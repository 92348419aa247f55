"""Self-attention and cross-attention layers.

Shape suffixes: B examples, L query positions, M key positions, S encoder positions, W residual width, H heads,
J heads of the keys and values, K `d_kv`, X = H * K inner width, Y any number of heads times K, E width of the encoder's
output; scores_BHLM.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from march_search.architecture.architecture import Architecture
from march_search.architecture.parameters import LayerGroup
from march_search.model import cpu, flex
from march_search.model.attention_path import (
    Bias,
    PathName,
    choose_path,
    groups_without_copies,
    padded_width,
    platform_of,
)
from march_search.model.init import Kinds
from march_search.model.layers import RMSNorm
from march_search.model.positions import PositionInfo, rotate

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one self-attention, each (B, S, J, K), before normalisation and rotary rotation."""


class Attention(nn.Module):
    """Base class of self-attention and cross-attention: shape, output matrix, no-op key, attention product.

    Scores are divided by √d_kv, except where T5's initialisation of the queries does it: with relative positions and
    without `qk_norm`, which would undo it.
    """

    def __init__(self, a: Architecture, shape: LayerGroup, layers: int) -> None:
        """Allocate the attention of one layer of this shape, in a stack of `layers` layers."""
        super().__init__()
        self.heads, self.d_kv, self.inner, self.key_value_inner = (
            shape.heads,
            shape.d_kv,
            shape.inner,
            shape.key_value_inner,
        )
        is_unscaled = a.position == "relative" and a.qk_norm == "none"
        self.q_kind, self.scale = "q_unscaled" if is_unscaled else "q", 1.0 if is_unscaled else shape.d_kv**-0.5
        self.has_noop = a.noop_key != "none"
        self.o = nn.Parameter(torch.empty(shape.width, shape.inner))
        self.o_bias = nn.Parameter(torch.empty(shape.width)) if a.bias == "all" else None
        self.noop_key = nn.Parameter(torch.empty(shape.key_value_inner)) if a.noop_key == "learned" else None
        self.normalises_heads = a.qk_norm == "head"
        widths = (shape.d_kv, shape.d_kv) if self.normalises_heads else (shape.inner, shape.key_value_inner)
        norms = [RMSNorm(width, epsilon=a.norm_epsilon) if a.qk_norm != "none" else None for width in widths]
        self.q_norm, self.k_norm = norms
        self.sizes = {"width": shape.width, "inner": shape.inner, "d_kv": shape.d_kv, "layers": layers}

    def kinds(self) -> Kinds:
        """Yield the parameters, for `init`; the norms yield their own."""
        yield "o", self.o, self.sizes
        if self.o_bias is not None:
            yield "branch_bias", self.o_bias, self.sizes
        if self.noop_key is not None:
            yield "noop_key", self.noop_key, self.sizes

    def attend(
        self,
        q_BLHK: Tensor,
        k_BMJK: Tensor,
        v_BMJK: Tensor,
        position_info: PositionInfo | None,
        path: PathName | None = None,
    ) -> Tensor:
        """Apply attention and the output matrix; return the addition to the residual stream, (B, L, W).

        Args:
            q_BLHK, k_BMJK, v_BMJK: Queries, keys and values.
            position_info: Bias and causal mask; None in cross-attention, which has neither.
            path: How attention is computed; None chooses by device and shape.
        """
        if self.has_noop:
            k_BMJK, v_BMJK = self._with_noop(k_BMJK, v_BMJK)
        q_BHLK, k_BJMK, v_BJMK = q_BLHK.transpose(1, 2), k_BMJK.transpose(1, 2), v_BMJK.transpose(1, 2)
        bias_HLM, causal = (position_info.bias_HLM, position_info.causal) if position_info else (None, False)
        bias_HLM = None if bias_HLM is None else bias_HLM[..., : self.heads, :, :]
        block_mask = position_info.block_mask if position_info else None
        y_BHLK = scaled_attention(q_BHLK, k_BJMK, v_BJMK, bias_HLM, causal, self.scale, path, block_mask)
        return F.linear(y_BHLK.transpose(1, 2).flatten(2), self.o, self.o_bias)

    def _with_noop(self, k_BMJK: Tensor, v_BMJK: Tensor) -> KeysValues:
        """Append a no-op position to keys and values. Its value is 0, and its key is 0 unless it is learned."""
        zero = (0, 0, 0, 0, 0, 1)
        if self.noop_key is None:
            return F.pad(k_BMJK, zero), F.pad(v_BMJK, zero)
        noop_BMJK = self.noop_key.view(1, 1, -1, self.d_kv).expand(len(k_BMJK), -1, -1, -1)
        return torch.cat((k_BMJK, noop_BMJK), 1), F.pad(v_BMJK, zero)

    def _split(self, x_BLY: Tensor, *widths: int) -> list[Tensor]:
        """Split one projection's output into views of these widths, each of shape (B, L, heads, K)."""
        return [part_BLY.view(*part_BLY.shape[:2], -1, self.d_kv) for part_BLY in torch.split(x_BLY, list(widths), -1)]

    def _normalised(self, norm: RMSNorm | None, x_BLHK: Tensor) -> Tensor:
        """Return queries or keys after their norm, over each head or over all of them."""
        if norm is None or self.normalises_heads:
            return x_BLHK if norm is None else cast(Tensor, norm(x_BLHK))
        return cast(Tensor, norm(x_BLHK.flatten(2))).view(x_BLHK.shape)


class SelfAttention(Attention):
    """Self-attention, with queries, keys and values from one matrix."""

    def __init__(self, a: Architecture, shape: LayerGroup, layers: int) -> None:
        """Allocate `qkv`, whose rows are queries, then keys, then values."""
        super().__init__(a, shape, layers)
        self.qkv = nn.Parameter(torch.empty(self.inner + 2 * self.key_value_inner, shape.width))
        self.qkv_bias = nn.Parameter(torch.empty(len(self.qkv))) if a.bias != "none" else None

    def kinds(self) -> Kinds:
        """Yield the parameters, for `init`."""
        yield self.q_kind, self.qkv[: self.inner], self.sizes
        yield "kv", self.qkv[self.inner :], self.sizes
        if self.qkv_bias is not None:
            yield "bias", self.qkv_bias, self.sizes
        yield from super().kinds()

    def forward(self, x_BLW: Tensor, long_BMW: Tensor | None, position_info: PositionInfo) -> tuple[Tensor, KeysValues]:
        """Return the addition to the residual stream, and the keys and values before their norm and rotary rotation.

        Args:
            x_BLW: Normalised residual stream.
            long_BMW: Source of the keys and values if only the queries are pooled; else None.
            position_info: Positions of queries and keys.
        """
        widths = self.inner, self.key_value_inner, self.key_value_inner
        if long_BMW is None:
            q_BLHK, k_BMJK, v_BMJK = self._split(F.linear(x_BLW, self.qkv, self.qkv_bias), *widths)
        else:
            rows, bias = self.inner, self.qkv_bias
            to_q, to_kv = (None, None) if bias is None else (bias[:rows], bias[rows:])
            (q_BLHK,) = self._split(F.linear(x_BLW, self.qkv[:rows], to_q), *widths[:1])
            k_BMJK, v_BMJK = self._split(F.linear(long_BMW, self.qkv[rows:], to_kv), *widths[1:])
        keys_values = k_BMJK, v_BMJK
        q_BLHK, k_BMJK = self._normalised(self.q_norm, q_BLHK), self._normalised(self.k_norm, k_BMJK)
        if position_info.turn_L is not None and position_info.turn_M is not None:
            q_BLHK, k_BMJK = rotate(q_BLHK, position_info.turn_L), rotate(k_BMJK, position_info.turn_M)
        return self.attend(q_BLHK, k_BMJK, v_BMJK, position_info, position_info.path), keys_values


class CrossAttention(Attention):
    """Cross-attention of the decoder to the encoder's output, or to the keys and values of one encoder layer."""

    def __init__(self, a: Architecture, shape: LayerGroup, layers: int) -> None:
        """Allocate `q` and `kv`, whose rows are keys, then values."""
        super().__init__(a, shape, layers)
        self.source = a.cross_attention
        self.q = nn.Parameter(torch.empty(shape.inner, shape.width))
        width, rows = a.d_model if self.source == "output" else self.key_value_inner, 2 * self.key_value_inner
        has_kv, has_bias = self.source != "layer-shared", a.bias != "none"
        self.kv = nn.Parameter(torch.empty(rows, width)) if has_kv else None
        self.q_bias = nn.Parameter(torch.empty(shape.inner)) if has_bias else None
        self.kv_bias = nn.Parameter(torch.empty(rows)) if has_kv and has_bias else None

    def kinds(self) -> Kinds:
        """Yield the parameters, for `init`."""
        yield self.q_kind, self.q, self.sizes
        if self.kv is not None:
            kind, inputs = ("kv", "width") if self.source == "output" else ("kv_layer", "inner")
            yield kind, self.kv, {inputs: self.kv.shape[1]}
        for bias in (self.q_bias, self.kv_bias):
            if bias is not None:
                yield "bias", bias, self.sizes
        yield from super().kinds()

    def forward(self, x_BLW: Tensor, memory: Tensor | KeysValues, path: PathName | None = None) -> Tensor:
        """Return the addition to the residual stream.

        Args:
            x_BLW: Normalised residual stream.
            memory: The encoder's output, or the keys and values of one of its layers.
            path: How attention is computed; None chooses by device and shape.
        """
        (q_BLHK,) = self._split(F.linear(x_BLW, self.q, self.q_bias), self.inner)
        k_BSJK, v_BSJK = self._keys_values(memory)
        q_BLHK, k_BSJK = self._normalised(self.q_norm, q_BLHK), self._normalised(self.k_norm, k_BSJK)
        return self.attend(q_BLHK, k_BSJK, v_BSJK, None, path)

    def _keys_values(self, memory: Tensor | KeysValues) -> KeysValues:
        widths = self.key_value_inner, self.key_value_inner
        if isinstance(memory, Tensor):
            k_BSJK, v_BSJK = self._split(F.linear(memory, cast(Tensor, self.kv), self.kv_bias), *widths)
            return k_BSJK, v_BSJK
        if self.kv is None:
            return memory
        biases = (None, None) if self.kv_bias is None else self.kv_bias.chunk(2)
        k_BSJK, v_BSJK = (
            F.linear(x.flatten(2), w, bias).view(x.shape)
            for x, w, bias in zip(memory, self.kv.chunk(2), biases, strict=True)
        )
        return k_BSJK, v_BSJK


def scaled_attention(
    q_BHLK: Tensor,
    k_BJMK: Tensor,
    v_BJMK: Tensor,
    bias_HLM: Tensor | None,
    causal: bool,
    scale: float,
    path: PathName | None = None,
    block_mask: Any = None,
) -> Tensor:
    """Return softmax(scale q k' + bias) v.

    Args:
        q_BHLK, k_BJMK, v_BJMK: Queries, keys and values; each key head belongs to H / J consecutive query heads.
        bias_HLM: Bias, which includes any causal mask, or (B, H, L, M) if it differs by example; None for none.
        causal: Whether the kernel applies a causal mask. Needs no bias and as many keys as queries.
        scale: Factor of the products of queries and keys.
        path: How attention is computed, from `choose_path`; None calls it.
        block_mask: Mask of the path "flex", whose bias is (H, L, M) in fp32 and includes none.
    """
    if path is None:
        path = _path_of(q_BHLK, k_BJMK, bias_HLM, causal)
    if path == "flex":
        return flex.attention(q_BHLK, k_BJMK, v_BJMK, bias_HLM, block_mask, scale)
    if path == "cpu-products":
        return cast(Tensor, cpu.attention(q_BHLK, k_BJMK, v_BJMK, bias_HLM, causal, scale))
    d_kv, groups = q_BHLK.shape[-1], q_BHLK.shape[1] // k_BJMK.shape[1]
    zeros = (0, padded_width(path, d_kv) - d_kv)
    if zeros[1]:
        q_BHLK, k_BJMK, v_BJMK = (F.pad(x, zeros) for x in (q_BHLK, k_BJMK, v_BJMK))
    options: dict[str, Any] = {"is_causal": causal, "scale": scale}
    if groups > 1 and groups_without_copies(path, q_BHLK.device.type):
        options["enable_gqa"] = True
    elif groups > 1:
        k_BJMK, v_BJMK = (x.repeat_interleave(groups, 1) for x in (k_BJMK, v_BJMK))
    bias_BHLM = bias_HLM if bias_HLM is None or bias_HLM.ndim == 4 else bias_HLM[None]
    y_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BJMK, v_BJMK, bias_BHLM, **options)
    return y_BHLK[..., :d_kv] if zeros[1] else y_BHLK


def _path_of(q_BHLK: Tensor, k_BJMK: Tensor, bias_HLM: Tensor | None, causal: bool) -> PathName:
    """Return the path of attention outside a model, without FlexAttention."""
    bias: Bias = "causal" if causal else "none"
    if bias_HLM is not None:
        bias = "trained" if bias_HLM.requires_grad else "fixed"
    platform = platform_of(q_BHLK.device)
    return choose_path(platform, q_BHLK.dtype, q_BHLK.shape[-1], bias, k_BJMK.shape[2], "sdpa").name
