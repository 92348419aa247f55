"""Encoder and decoder stacks: layers, which may share weights, with their positions, widths and pooling.

Shape suffixes: B examples, L positions, W residual width of a layer, D `d_model`, H heads, M key positions.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from march_search.architecture.architecture import Architecture
from march_search.architecture.flops import reduced_length
from march_search.architecture.parameters import RELATIVE_BUCKETS, LayerGroup, layer_shapes, most_heads, projections
from march_search.errors import ConfigError
from march_search.model import flex
from march_search.model.attention import CrossAttention, KeysValues, SelfAttention
from march_search.model.attention_path import AttentionPath, Bias, choose_path, platform_of
from march_search.model.block_layer import BlockLayer
from march_search.model.init import Kinds
from march_search.model.layers import FeedForward, Projection, RMSNorm, build_norm
from march_search.model.positions import (
    PositionInfo,
    attention_mask,
    document_mask,
    pool,
    pool_positions,
    relative_bias,
    rotary_turn,
)

_LOGGER = logging.getLogger(__name__)

RECOMPILATIONS = 8
"""Shapes of inputs for which torch.compile may compile each layer of a stack."""


class Memory(NamedTuple):
    """Encoder results for the decoder: the output, and each layer's keys and values if the decoder uses them."""

    output_BSD: Tensor
    keys_values: list[KeysValues]


class PositionKind(NamedTuple):
    """What the positional information of a layer depends on, besides the positions."""

    turning: int
    """Number of dimensions of a head that rotary positions turn; 0 without them."""
    window: int | None
    """Number of positions that self-attention sees; None if it sees all of this sequence."""


class Layer(nn.Module):
    """Transformer layer: self-attention, cross-attention if `has_cross`, and feed-forward.

    Each sublayer has a norm before it, or with `norm_position="post"` behind it, before its output is added to the
    residual stream. In a parallel block, all read the same residual stream.
    """

    def __init__(self, a: Architecture, shape: LayerGroup, layers: int, has_cross: bool) -> None:
        """Allocate a layer of this shape, in a stack of `layers` layers."""
        super().__init__()
        self.is_post, self.is_parallel = a.norm_position == "post", a.parallel_block
        norm = (a, shape.width, "branch_norm" if self.is_post else "norm", layers)
        self.norm, self.attention = build_norm(*norm), SelfAttention(a, shape, layers)
        self.cross_norm = build_norm(*norm) if has_cross else None
        self.cross_attention = CrossAttention(a, shape, layers) if has_cross else None
        self.feed_forward_norm = build_norm(*norm)
        self.feed_forward: nn.Module
        if a.block is not None:
            self.feed_forward = BlockLayer(a.block, shape.width, a.d_ff, layers)
        else:
            self.feed_forward = FeedForward(shape.width, a.d_ff, a.feed_forward_proj, layers, a.bias == "all")

    def forward(
        self, x_BLW: Tensor, position_info: PositionInfo, memory: Tensor | KeysValues | None, reduced: int | None
    ) -> tuple[Tensor, KeysValues]:
        """Return the residual stream after this layer, and the keys and values of its self-attention.

        If `reduced` is not None, the residual stream and the queries are pooled to so many positions; keys and values
        are not.
        """
        long_BMW = None
        if reduced is not None:
            long_BMW, x_BLW = self._before(self.norm, x_BLW), pool(x_BLW, reduced)
        input_BLW = x_BLW
        added_BLW, keys_values = self.attention(self._before(self.norm, x_BLW), long_BMW, position_info)
        x_BLW = x_BLW + self._after(self.norm, added_BLW)
        if self.cross_norm is not None and self.cross_attention is not None:
            queries_BLW = self._before(self.cross_norm, x_BLW)
            added_BLW = self.cross_attention(queries_BLW, memory, position_info.cross_path)
            x_BLW = x_BLW + self._after(self.cross_norm, added_BLW)
        read_BLW = input_BLW if self.is_parallel else x_BLW
        added_BLW = self.feed_forward(self._before(self.feed_forward_norm, read_BLW))
        return x_BLW + self._after(self.feed_forward_norm, added_BLW), keys_values

    def _before(self, norm: RMSNorm, x_BLW: Tensor) -> Tensor:
        """Return the input of a sublayer."""
        return x_BLW if self.is_post else cast(Tensor, norm(x_BLW))

    def _after(self, norm: RMSNorm, added_BLW: Tensor) -> Tensor:
        """Return what a sublayer adds to the residual stream."""
        return cast(Tensor, norm(added_BLW)) if self.is_post else added_BLW


class Stack(nn.Module):
    """Encoder or decoder."""

    def __init__(
        self, a: Architecture, num_layers: int, is_decoder: bool, checkpointing: bool, attention: str = "auto"
    ) -> None:
        """Allocate one `Layer` for each set of shared weights, and the projections between different widths."""
        super().__init__()
        self.architecture, self.is_decoder, self.checkpointing = a, is_decoder, checkpointing
        self.attention_setting = attention
        self.paths: dict[str, AttentionPath] = {}
        """How attention was computed in the last pass with gradients: `self`, `window`, and `cross` in a decoder."""
        self.after_layer: Callable[[Tensor], None] | None = None
        """Called with the residual stream after each layer, outside compiled code."""
        self._compiled: list[Callable[..., Any]] = []
        self._flex_faults: dict[tuple[object, ...], str] = {}
        share = num_layers if a.share_layers == "all" else a.share_layers
        self.shapes = layer_shapes(a, num_layers)
        has_cross = is_decoder and a.structure == "encoder-decoder"
        self.uses = [i // share for i in range(num_layers)]
        self.layers = nn.ModuleList(Layer(a, shape, num_layers, has_cross) for shape in self.shapes[::share])
        moves = enumerate(projections(a, num_layers))
        self.projections = nn.ModuleDict({str(i): Projection(w, v) for i, (w, v) in moves if w != v})
        heads, relative = most_heads(self.shapes), a.position == "relative"
        self.relative_bias = nn.Parameter(torch.empty(RELATIVE_BUCKETS, heads)) if relative else None
        self.norm = build_norm(a, a.d_model, "output_norm" if is_decoder else "norm")
        self.keeps_keys_values = not is_decoder and a.cross_attention != "output"

    def kinds(self) -> Kinds:
        """Yield the bias table, for `init`."""
        if self.relative_bias is not None:
            yield "relative_bias", self.relative_bias, {"d_model": self.architecture.d_model}

    def forward(self, x_BLD: Tensor, memory: Memory | None, starts_BL: Tensor | None = None) -> Memory:
        """Return the output after the final norm, and the layers' keys and values if a decoder uses them.

        Args:
            x_BLD: Embeddings.
            memory: Results of the encoder; None without one.
            starts_BL: In a decoder-only model, position of the first token of each token's document, which is all that
                the token sees; None if it sees all text before it.
        """
        length, middle, x_BLW = x_BLD.shape[1], len(self.uses) // 2, x_BLD
        reduced = length if self.is_decoder else reduced_length(length, self.architecture.length_reduction)
        queries_L = torch.arange(length, device=x_BLD.device, dtype=torch.float32)
        keys_M, position_info, keys_values = queries_L, dict[PositionKind, PositionInfo](), list[KeysValues]()
        kinds = [self._kind(shape, length) for shape in self.shapes]
        for i, kind in enumerate(kinds):
            x_BLW = self._project(i, x_BLW)
            pools = reduced < length and i == middle
            if pools or (reduced < length and i == middle + 1):
                keys_M, queries_L = queries_L, pool_positions(queries_L, reduced) if pools else queries_L
                position_info.clear()
            source = self._source(memory, i)
            if kind not in position_info:
                end = len(self.uses) if reduced == length or i > middle else middle + pools
                segment = [other for other in range(i, end) if kinds[other] == kind]
                position_info[kind] = self._position_info(queries_L, keys_M, kind, x_BLW, segment, source, starts_BL)
            arguments = (x_BLW, position_info[kind], source, reduced if pools else None)
            x_BLW, layer_keys_values = self._apply_layer(self.uses[i], arguments)
            if self.after_layer is not None:
                self.after_layer(x_BLW)
            if self.keeps_keys_values:
                keys_values.append(layer_keys_values)
        return Memory(self.norm(self._project(len(self.uses), x_BLW)), keys_values)

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile each layer for training. Passes without gradients, such as evaluations, stay uncompiled.

        A layer is compiled once for each shape of its inputs.
        """
        flex.allow_recompilations(RECOMPILATIONS * len(self.layers))
        self._compiled = [torch.compile(layer, backend=backend, dynamic=False) for layer in self.layers]

    def _apply_layer(self, index: int, arguments: tuple[Any, ...]) -> tuple[Tensor, KeysValues]:
        """Return the result of `layers[index]`; with `checkpointing`, do not store its activations."""
        is_compiled = bool(self._compiled) and torch.is_grad_enabled()
        layer: Callable[..., Any] = self._compiled[index] if is_compiled else self.layers[index]
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

    def _kind(self, shape: LayerGroup, length: int) -> PositionKind:
        """Return what the positional information of a layer depends on, in a sequence of `length` positions."""
        a, window = self.architecture, shape.window
        turning = round(shape.d_kv * a.rotary_fraction) if a.position == "rotary" else 0
        return PositionKind(turning, None if window is None or window >= length else window)

    def _position_info(
        self,
        queries_L: Tensor,
        keys_M: Tensor,
        kind: PositionKind,
        x_BLW: Tensor,
        segment: list[int],
        source: Tensor | KeysValues | None,
        starts_BL: Tensor | None,
    ) -> PositionInfo:
        """Return the positional information of queries and keys, and how attention is computed.

        Args:
            queries_L, keys_M: Positions.
            kind: What it depends on.
            x_BLW: The residual stream.
            segment: Indices of the layers with these positions.
            source: What cross-attention reads; None without it.
            starts_BL: Where documents begin if they are masked.
        """
        a, dtype = self.architecture, x_BLW.dtype
        noop = a.noop_key != "none"
        turn_L, turn_M = None, None
        if kind.turning:
            turning = kind.turning, a.rotary_base, dtype, a.rotary_scaling
            turn_L, turn_M = (rotary_turn(at, *turning) for at in (queries_L, keys_M))
            if starts_BL is not None:  # positions restart with each document
                restarted_BL = torch.arange(len(queries_L), device=queries_L.device) - starts_BL
                turn_L = turn_M = turn_L[0][restarted_BL], turn_L[1][restarted_BL]
        path, cross_path = self._choose(keys_M, kind, dtype, segment, source, starts_BL is not None)
        if path.name == "flex":
            flexible = self._flexible_info(queries_L, keys_M, kind, cross_path, starts_BL)
            flexible = flexible._replace(turn_L=turn_L, turn_M=turn_M)
            fault = self._flex_fault(flexible, queries_L, keys_M, kind, dtype, segment, len(x_BLW), starts_BL)
            if not fault:
                self._remember(path, cross_path, kind)
                return flexible
            path = AttentionPath("efficient", f"FlexAttention failed: {fault}")
        self._remember(path, cross_path, kind)
        mask_1LM = None
        if starts_BL is not None:
            mask_1LM = document_mask(starts_BL, kind.window, x_BLW)  # of shape (B, 1, L, M)
        elif self.relative_bias is not None or noop or kind.window is not None:
            mask_1LM = attention_mask(len(queries_L), len(keys_M), self.is_decoder, kind.window, x_BLW)
        bias_HLM = mask_1LM if mask_1LM is None or not noop else F.pad(mask_1LM, (0, 1))
        if self.relative_bias is not None:
            bias_HLM = relative_bias(self.relative_bias, queries_L, keys_M, self.is_decoder, noop, mask_1LM)
        causal = self.is_decoder and bias_HLM is None
        return PositionInfo(bias_HLM, causal, turn_L, turn_M, path.name, cross_path and cross_path.name)

    def _choose(
        self,
        keys_M: Tensor,
        kind: PositionKind,
        dtype: torch.dtype,
        segment: list[int],
        source: Tensor | KeysValues | None,
        has_documents: bool,
    ) -> tuple[AttentionPath, AttentionPath | None]:
        """Return how self-attention and cross-attention of these layers are computed; None without the latter."""
        platform, noop = platform_of(keys_M.device), self.architecture.noop_key != "none"
        d_kv = max(self.shapes[i].d_kv for i in segment)
        bias: Bias = "none"
        if self.relative_bias is not None:
            bias = "trained" if self.relative_bias.requires_grad and torch.is_grad_enabled() else "fixed"
        elif kind.window is not None or has_documents:
            bias = "fixed"
        elif self.is_decoder:
            bias = "fixed" if noop else "causal"
        # An evaluation uses SDPA: to compile a FlexAttention kernel for a forward pass alone does not pay off.
        trains = has_documents and torch.is_grad_enabled()
        own = choose_path(platform, dtype, d_kv, bias, len(keys_M) + noop, self.attention_setting, trains)
        if source is None:
            return own, None
        length = (source if isinstance(source, Tensor) else source[0]).shape[1]
        return own, choose_path(platform, dtype, d_kv, "none", length + noop)

    def _remember(self, path: AttentionPath, cross_path: AttentionPath | None, kind: PositionKind) -> None:
        """Keep how attention is computed in training, to be recorded."""
        if torch.is_grad_enabled():
            self.paths["self" if kind.window is None else "window"] = path
            if cross_path:
                self.paths["cross"] = cross_path

    def _flexible_info(
        self,
        queries_L: Tensor,
        keys_M: Tensor,
        kind: PositionKind,
        cross_path: AttentionPath | None,
        starts_BL: Tensor | None,
    ) -> PositionInfo:
        """Return the positional information for FlexAttention: its bias is in fp32 and does not include the mask."""
        noop, bias_HLM = self.architecture.noop_key != "none", None
        if self.relative_bias is not None:
            bias_HLM = relative_bias(self.relative_bias.float(), queries_L, keys_M, self.is_decoder, noop)
        if starts_BL is not None:
            mask = flex.document_block_mask(starts_BL, noop, kind.window)
        else:
            mask = flex.block_mask(len(keys_M), noop, self.is_decoder, kind.window, keys_M.device)
        return PositionInfo(bias_HLM, False, None, None, "flex", cross_path and cross_path.name, mask)

    def _flex_fault(
        self,
        info: PositionInfo,
        queries_L: Tensor,
        keys_M: Tensor,
        kind: PositionKind,
        dtype: torch.dtype,
        segment: list[int],
        examples: int,
        starts_BL: Tensor | None,
    ) -> str:
        """Return why FlexAttention cannot compute these layers; empty if it can. Each shape is tried once.

        Raises:
            ConfigError: If it cannot although the settings demand it.
        """
        for i in segment:
            shape = self.shapes[i]
            key = (*shape[3:7], kind.window, len(queries_L), len(keys_M), examples, dtype, starts_BL is None)
            if key not in self._flex_faults:
                layer, is_first = cast(Layer, self.layers[self.uses[i]]), not any(self._flex_faults.values())
                lengths = (len(queries_L), len(keys_M))[: 1 + (len(queries_L) != len(keys_M))]
                sizes = [(examples, length, shape.width) for length in lengths]
                fault = self._flex_faults[key] = flex.fault(
                    layer.attention, info, self.is_decoder, sizes, dtype, kind.window, starts_BL
                )
                if fault and self.attention_setting == "flex":
                    raise ConfigError(f'[training]: attention = "flex" fails here: {fault}. Set "auto" or "sdpa".')
                if fault and is_first:
                    _LOGGER.warning(f"attention: FlexAttention fails here, and SDPA takes its place: {fault}.")
            if self._flex_faults[key]:
                return self._flex_faults[key]
        return ""
