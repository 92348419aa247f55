"""Named statements, each as a rule for which architectures to compare.

They are findings and open questions of the 2023 study, and questions about the fields of current decoder-only models.

A statement about an ordered quantity names the field along which it moves (`along`). Its contrasts are the steps
between neighbours on that axis. A statement about two groups, such as gated or not, has one contrast of means.
"""

from collections.abc import Callable
from dataclasses import dataclass

from march_search.analysis.effects import GATED
from march_search.architecture.architecture import Architecture

NOTHING_NATS = 0.01
"""Increase in loss, in nats, below which a change "costs nothing"; about the size of published seed noise."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A finding of the 2023 study or the opposite of one, or an open question."""

    text: str
    praises: Callable[[Architecture, Architecture], bool]
    """Whether the first of two architectures is on the favoured side of the second; a partial order."""
    equal: tuple[str, ...]
    """Fields that must be equal in both architectures, in addition to `SAME`."""
    moves: tuple[str, ...]
    """Dimensions that the statement is about."""
    along: str = ""
    """Field or count that orders the architectures into steps; empty for a statement about two groups."""
    margin: float = 0.0
    """Nats by which the favoured side may be worse while the statement still holds."""
    varies: tuple[str, ...] = ()
    """Fields of `SAME` that the statement is about, so that they may differ."""


SAME = (
    *("structure", "vocab_size", "position", "tie_word_embeddings", "head_schedule", "share_layers", "bottleneck"),
    *("length_reduction", "noop_key", "num_key_value_heads", "qk_norm", "norm", "norm_position", "bias"),
    *("parallel_block", "rotary_fraction", "rotary_base", "rotary_scaling", "attention_window", "global_every"),
    *("logit_softcap", "block", "norm_epsilon", "d_bottleneck", "num_decoder_layers", "max_length"),
)
"""Fields that must be equal in both architectures unless a statement is about them."""

SHAPE = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff")


def _alone(shape: Architecture) -> int | str:
    """Return `share_layers`, but `all` for a stack of one layer, where it makes no difference."""
    return "all" if shape.num_layers == 1 else shape.share_layers


def _windowed(shape: Architecture) -> bool:
    """Return whether a layer sees only a window of the positions."""
    return shape.attention_window is not None


STATEMENTS = (
    Statement(
        text="more heads and fewer layers are better",
        praises=lambda a, b: a.num_heads > b.num_heads and a.num_layers < b.num_layers,
        equal=("d_model", "d_kv", "feed_forward_proj", "cross_attention"),
        moves=("heads", "layers"),
        along="num_layers",
        varies=("num_decoder_layers",),
    ),
    Statement(
        text="a wider model with fewer layers is better",
        praises=lambda a, b: a.d_model > b.d_model and a.num_layers < b.num_layers,
        equal=("d_kv", "feed_forward_proj", "cross_attention"),
        moves=("d_model", "layers"),
        along="num_layers",
        varies=("num_decoder_layers",),
    ),
    Statement(
        text="more heads with a smaller d_kv are better",
        praises=lambda a, b: a.num_heads > b.num_heads and a.d_kv < b.d_kv,
        equal=("num_layers", "d_model", "feed_forward_proj", "cross_attention"),
        moves=("heads", "d_kv"),
        along="num_heads",
    ),
    Statement(
        text="gated feed-forward is better",
        praises=lambda a, b: a.is_gated and not b.is_gated,
        equal=("num_layers", "d_model", "num_heads", "d_kv", "cross_attention"),
        moves=(GATED,),
    ),
    Statement(
        text="dropping cross-attention key/value weights costs nothing",
        praises=lambda a, b: a.cross_attention == "layer-shared" and b.cross_attention != "layer-shared",
        equal=("d_model", "num_heads", "d_kv", "feed_forward_proj"),
        moves=(),
        margin=NOTHING_NATS,
    ),
    Statement(
        text="more heads in place of cross-attention key/value weights are better",
        praises=lambda a, b: (
            a.cross_attention == "layer-shared" and b.cross_attention != "layer-shared" and a.num_heads > b.num_heads
        ),
        equal=("num_layers", "d_model", "d_kv", "feed_forward_proj"),
        moves=("heads",),
    ),
    Statement(
        text="more layers with a smaller d_ff are better",
        praises=lambda a, b: a.d_ff < b.d_ff and a.num_layers > b.num_layers,
        equal=("d_model", "num_heads", "d_kv", "feed_forward_proj", "cross_attention"),
        moves=("d_ff / d_model", "layers"),
        along="num_layers",
        varies=("num_decoder_layers",),
    ),
    Statement(
        text="a wider model with a smaller d_ff is better",
        praises=lambda a, b: a.d_ff < b.d_ff and a.d_model > b.d_model,
        equal=("num_layers", "d_kv", "feed_forward_proj", "cross_attention"),
        moves=("d_ff / d_model", "d_model"),
        along="d_model",
    ),
    Statement(
        text="a wider model with fewer layers and relatively wider attention is better",
        praises=lambda a, b: (
            a.d_model > b.d_model
            and a.num_layers < b.num_layers
            and a.num_heads * a.d_kv * b.d_model > b.num_heads * b.d_kv * a.d_model
        ),
        equal=("d_kv", "feed_forward_proj", "cross_attention"),
        moves=("heads", "d_model", "layers"),
        along="num_layers",
        varies=("num_decoder_layers",),
    ),
    Statement(
        text="more heads in the first layers of a stack than in the last are better",
        praises=lambda a, b: "first" in a.head_schedule and b.head_schedule == a.head_schedule.replace("first", "last"),
        equal=(*SHAPE, "feed_forward_proj", "cross_attention"),
        moves=(),
        varies=("head_schedule",),
    ),
    Statement(
        text="different numbers of heads per layer are better than equal ones",
        praises=lambda a, b: a.head_schedule != "constant" and b.head_schedule == "constant",
        equal=(*SHAPE, "feed_forward_proj", "cross_attention"),
        moves=(),
        varies=("head_schedule",),
    ),
    Statement(
        text="rotary positions are better than relative ones",
        praises=lambda a, b: a.position == "rotary" and b.position == "relative",
        equal=(*SHAPE, "feed_forward_proj", "cross_attention"),
        moves=(),
        varies=("position",),
    ),
    Statement(
        text="rotary positions are better than absolute ones",
        praises=lambda a, b: a.position == "rotary" and b.position == "absolute",
        equal=("num_layers", "d_model", "num_heads", "d_kv", "feed_forward_proj", "cross_attention"),
        moves=(),
        varies=("position", "max_length"),
    ),
    Statement(
        text="the changes of baseline V2 together are better",
        praises=lambda a, b: (
            (a.position, a.cross_attention, a.is_gated) == ("rotary", "output", True)
            and (b.position, b.cross_attention, b.is_gated) == ("absolute", "layer", False)
            and a.d_model > b.d_model
            and a.num_layers < b.num_layers
        ),
        equal=("d_kv",),
        moves=(GATED, "d_model", "layers", "heads"),
        varies=("position", "max_length", "num_decoder_layers"),
    ),
    Statement(
        text="cross-attention to the encoder output is better than to the encoder layer of the same depth",
        praises=lambda a, b: a.cross_attention == "output" and b.cross_attention == "layer",
        equal=(*SHAPE, "feed_forward_proj"),
        moves=(),
    ),
    Statement(
        text="sharing weights between all layers costs nothing at equal parameters",
        praises=lambda a, b: a.share_layers == "all" and b.share_layers == 1 and b.num_layers > 1,
        equal=("d_kv", "feed_forward_proj", "cross_attention"),
        moves=("layers", "d_model", "heads"),
        margin=NOTHING_NATS,
        varies=("share_layers", "num_decoder_layers"),
    ),
    Statement(
        text="using the same weights in more layers is better",
        praises=lambda a, b: a.share_layers == "all" and a.num_layers > b.num_layers and _alone(b) == "all",
        equal=("d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj", "cross_attention"),
        moves=("layers",),
        along="num_layers",
        varies=("share_layers", "num_decoder_layers"),
    ),
    Statement(
        text="fewer positions from the middle of the encoder cost nothing",
        praises=lambda a, b: a.length_reduction < b.length_reduction,
        equal=(*SHAPE, "feed_forward_proj", "cross_attention"),
        moves=(),
        along="length_reduction",
        margin=NOTHING_NATS,
        varies=("length_reduction",),
    ),
    Statement(
        text="a no-op attention key is better",
        praises=lambda a, b: a.noop_key != "none" and b.noop_key == "none",
        equal=(*SHAPE, "feed_forward_proj", "cross_attention"),
        moves=(),
        varies=("noop_key",),
    ),
    Statement(
        text="a narrower residual stream with a larger d_ff is better",
        praises=lambda a, b: a.bottleneck != "none" and b.bottleneck == "none" and a.d_ff > b.d_ff,
        equal=("num_layers", "d_model", "num_heads", "d_kv", "feed_forward_proj", "cross_attention"),
        moves=("d_ff / d_model",),
        varies=("bottleneck", "d_bottleneck"),
    ),
    Statement(
        text="fewer key/value heads with a larger d_ff cost nothing",
        praises=lambda a, b: a.key_value_heads < b.key_value_heads and a.d_ff >= b.d_ff,
        equal=("num_layers", "d_model", "num_heads", "d_kv", "feed_forward_proj", "cross_attention"),
        moves=("d_ff / d_model",),
        along="key_value_heads",
        margin=NOTHING_NATS,
        varies=("num_key_value_heads",),
    ),
    Statement(
        text="norms of queries and keys are better",
        praises=lambda a, b: a.qk_norm != "none" and b.qk_norm == "none",
        equal=(*SHAPE, "feed_forward_proj", "cross_attention"),
        moves=(),
        varies=("qk_norm",),
    ),
    Statement(
        text="a window of attention in all layers costs nothing",
        praises=lambda a, b: _windowed(a) and not a.global_every and not _windowed(b),
        equal=(*SHAPE, "feed_forward_proj", "cross_attention"),
        moves=(),
        margin=NOTHING_NATS,
        varies=("attention_window", "global_every"),
    ),
    Statement(
        text="a window of attention in some layers costs nothing",
        praises=lambda a, b: _windowed(a) and a.global_every > 0 and not _windowed(b),
        equal=(*SHAPE, "feed_forward_proj", "cross_attention"),
        moves=(),
        margin=NOTHING_NATS,
        varies=("attention_window", "global_every"),
    ),
)
"""Findings and open questions of the 2023 study of T5-style models with 220M parameters, then questions about
decoder-only models of today."""
