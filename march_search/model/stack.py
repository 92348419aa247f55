"""Encoder and decoder stacks: layers, which may share weights, with their positions, widths and pooling.

Shape suffixes: B examples, L positions, W residual width of a layer, D `d_model`, H heads, M key positions.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from march_search.architecture.architecture import Architecture
from march_search.architecture.flops import reduced_length
from march_search.architecture.parameters import RELATIVE_BUCKETS, LayerGroup, layer_shapes, most_heads, projections
from march_search.model.attention import CrossAttention, KeysValues, SelfAttention
from march_search.model.init import Kinds
from march_search.model.layers import FeedForward, Projection, RMSNorm
from march_search.model.positions import PositionInfo, causal_mask, pool, pool_positions, relative_bias, rotary_turn


class Memory(NamedTuple):
    """Encoder results for the decoder: the output, and each layer's keys and values if the decoder uses them."""

    output_BSD: Tensor
    keys_values: list[KeysValues]


class Layer(nn.Module):
    """Pre-norm transformer layer: self-attention, cross-attention if `has_cross`, and feed-forward."""

    def __init__(self, a: Architecture, shape: LayerGroup, layers: int, has_cross: bool) -> None:
        """Allocate a layer of this shape, in a stack of `layers` layers."""
        super().__init__()
        attention = (shape, a.position, a.noop_key, layers)
        self.norm, self.attention = RMSNorm(shape.width), SelfAttention(*attention)
        self.cross_norm = RMSNorm(shape.width) if has_cross else None
        self.cross_attention = CrossAttention(*attention, a.cross_attention, a.d_model) if has_cross else None
        self.feed_forward_norm = RMSNorm(shape.width)
        self.feed_forward = FeedForward(shape.width, a.d_ff, a.feed_forward_proj, layers)

    def forward(
        self, x_BLW: Tensor, position_info: PositionInfo, memory: Tensor | KeysValues | None, reduced: int | None
    ) -> tuple[Tensor, KeysValues]:
        """Return the residual stream after this layer, and the keys and values of its self-attention.

        If `reduced` is not None, the residual stream and the queries are pooled to so many positions; keys and values
        are not.
        """
        long_BMW = None
        if reduced is not None:
            long_BMW, x_BLW = self.norm(x_BLW), pool(x_BLW, reduced)
        added_BLW, keys_values = self.attention(self.norm(x_BLW), long_BMW, position_info)
        x_BLW = x_BLW + added_BLW
        if self.cross_norm is not None and self.cross_attention is not None:
            x_BLW = x_BLW + self.cross_attention(self.cross_norm(x_BLW), memory)
        return x_BLW + self.feed_forward(self.feed_forward_norm(x_BLW)), keys_values


class Stack(nn.Module):
    """Encoder or decoder."""

    def __init__(self, a: Architecture, num_layers: int, is_decoder: bool, checkpointing: bool) -> None:
        """Allocate one `Layer` for each set of shared weights, and the projections between different widths."""
        super().__init__()
        self.architecture, self.is_decoder, self.checkpointing = a, is_decoder, checkpointing
        share = num_layers if a.share_layers == "all" else a.share_layers
        self.shapes = layer_shapes(a, num_layers)
        has_cross = is_decoder and a.structure == "encoder-decoder"
        self.uses = [i // share for i in range(num_layers)]
        self.layers = nn.ModuleList(Layer(a, shape, num_layers, has_cross) for shape in self.shapes[::share])
        moves = enumerate(projections(a, num_layers))
        self.projections = nn.ModuleDict({str(i): Projection(w, v) for i, (w, v) in moves if w != v})
        heads, relative = most_heads(self.shapes), a.position == "relative"
        self.relative_bias = nn.Parameter(torch.empty(RELATIVE_BUCKETS, heads)) if relative else None
        self.norm = RMSNorm(a.d_model, "output_norm" if is_decoder else "norm")
        self.keeps_keys_values = not is_decoder and a.cross_attention != "output"

    def kinds(self) -> Kinds:
        """Yield the bias table, for `init`."""
        if self.relative_bias is not None:
            yield "relative_bias", self.relative_bias, {"d_model": self.architecture.d_model}

    def forward(self, x_BLD: Tensor, memory: Memory | None) -> Memory:
        """Return the output after the final norm, and the layers' keys and values if a decoder uses them."""
        length, middle, x_BLW = x_BLD.shape[1], len(self.uses) // 2, x_BLD
        reduced = length if self.is_decoder else reduced_length(length, self.architecture.length_reduction)
        queries_L = torch.arange(length, device=x_BLD.device, dtype=torch.float32)
        keys_M, position_info, keys_values = queries_L, dict[int, PositionInfo](), list[KeysValues]()
        for i, shape in enumerate(self.shapes):
            x_BLW = self._project(i, x_BLW)
            pools = reduced < length and i == middle
            if pools or (reduced < length and i == middle + 1):
                keys_M, queries_L = queries_L, pool_positions(queries_L, reduced) if pools else queries_L
                position_info.clear()
            turning = shape.d_kv if self.architecture.position == "rotary" else 0
            if turning not in position_info:
                position_info[turning] = self._position_info(queries_L, keys_M, turning, x_BLW.dtype)
            arguments = (x_BLW, position_info[turning], self._source(memory, i), reduced if pools else None)
            x_BLW, layer_keys_values = self._apply_layer(self.layers[self.uses[i]], arguments)
            if self.keeps_keys_values:
                keys_values.append(layer_keys_values)
        return Memory(self.norm(self._project(len(self.uses), x_BLW)), keys_values)

    def _apply_layer(self, layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor, KeysValues]:
        """Return the layer's result; with `checkpointing`, do not store its activations."""
        if self.checkpointing and torch.is_grad_enabled():
            result = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            result = layer(*arguments)
        return cast(tuple[Tensor, KeysValues], result)

    def _project(self, step: int, x_BLW: Tensor) -> Tensor:
        """Return the residual stream, projected if its width changes at this step of `parameters.projections`."""
        name = str(step)
        return cast(Tensor, self.projections[name](x_BLW)) if name in self.projections else x_BLW

    def _source(self, memory: Memory | None, layer: int) -> Tensor | KeysValues | None:
        """Return the input of this layer's cross-attention from the encoder."""
        if memory is None or self.architecture.cross_attention == "output":
            return memory and memory.output_BSD
        return memory.keys_values[layer]

    def _position_info(self, queries_L: Tensor, keys_M: Tensor, d_kv: int, dtype: torch.dtype) -> PositionInfo:
        """Return the positional information of queries and keys. `d_kv` is used only for rotary positions."""
        noop = self.architecture.noop_key != "none"
        bias_HLM, turn_L, turn_M = None, None, None
        if self.relative_bias is not None:
            bias_HLM = relative_bias(self.relative_bias, queries_L, keys_M, self.is_decoder, noop)
        elif self.is_decoder and noop:
            bias_HLM = F.pad(causal_mask(queries_L, keys_M, dtype), (0, 1))
        if self.architecture.position == "rotary":
            turn_L, turn_M = rotary_turn(queries_L, d_kv, dtype), rotary_turn(keys_M, d_kv, dtype)
        return PositionInfo(bias_HLM, self.is_decoder and bias_HLM is None, turn_L, turn_M)
