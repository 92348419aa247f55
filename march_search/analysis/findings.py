"""Test named findings and open questions about architectures on the results of a study.

Each statement is a contrast: the mean difference in loss over all pairs of architectures in which one is on the
favoured side and all fields that the statement holds fixed are equal. Other dimensions that differ in most pairs are
reported: under a budget several dimensions move together, so a finding about one may be a finding about another.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from march_search.analysis.comparison import CONFIDENCE, Interval, pooled_variance
from march_search.analysis.effects import AXES, GATED
from march_search.analysis.noise import DataNoise, SeedNoise
from march_search.architecture.architecture import Architecture

NOTHING_NATS = 0.01
"""Increase in loss, in nats, below which a change "costs nothing"; about the size of published seed noise."""

CONFOUNDED = 1.25
"""A dimension that differs by more than this factor in at least half of the pairs is reported."""

Verdict = Literal["yes", "no", "not separable", "not tested"]

Shape = Architecture


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A finding of the 2023 study, one of its open questions, or the opposite of one."""

    text: str
    praises: Callable[[Shape, Shape], bool]
    """Whether the first of two architectures is on the favoured side of the second."""
    equal: tuple[str, ...]
    """Fields that must be equal in both architectures, in addition to `SAME`."""
    moves: tuple[str, ...]
    """Dimensions that the statement is about."""
    margin: float = 0.0
    """Nats by which the favoured side may be worse while the statement still holds."""
    varies: tuple[str, ...] = ()
    """Fields of `SAME` that the statement is about, so that they may differ."""


SAME = (
    *("structure", "vocab_size", "position", "tie_word_embeddings", "head_schedule", "share_layers", "bottleneck"),
    *("length_reduction", "noop_key"),
)
"""Fields that must be equal in both architectures unless a statement is about them."""

SHAPE = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff")


def _alone(shape: Shape) -> int | str:
    """Return `share_layers`, but `all` for a stack of one layer, where it makes no difference."""
    return "all" if shape.num_layers == 1 else shape.share_layers


STATEMENTS = (
    Statement(
        text="more heads and fewer layers are better",
        praises=lambda a, b: a.num_heads > b.num_heads and a.num_layers < b.num_layers,
        equal=("d_model", "d_kv", "feed_forward_proj", "cross_attention"),
        moves=("heads", "layers"),
    ),
    Statement(
        text="a wider model with fewer layers is better",
        praises=lambda a, b: a.d_model > b.d_model and a.num_layers < b.num_layers,
        equal=("d_kv", "feed_forward_proj", "cross_attention"),
        moves=("d_model", "layers"),
    ),
    Statement(
        text="more heads with a smaller d_kv are better",
        praises=lambda a, b: a.num_heads > b.num_heads and a.d_kv < b.d_kv,
        equal=("num_layers", "d_model", "feed_forward_proj", "cross_attention"),
        moves=("heads", "d_kv"),
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
    ),
    Statement(
        text="a wider model with a smaller d_ff is better",
        praises=lambda a, b: a.d_ff < b.d_ff and a.d_model > b.d_model,
        equal=("num_layers", "d_kv", "feed_forward_proj", "cross_attention"),
        moves=("d_ff / d_model", "d_model"),
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
        varies=("position",),
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
        varies=("share_layers",),
    ),
    Statement(
        text="using the same weights in more layers is better",
        praises=lambda a, b: a.share_layers == "all" and a.num_layers > b.num_layers and _alone(b) == "all",
        equal=("d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj", "cross_attention"),
        moves=("layers",),
        varies=("share_layers",),
    ),
    Statement(
        text="fewer positions from the middle of the encoder cost nothing",
        praises=lambda a, b: a.length_reduction < b.length_reduction,
        equal=(*SHAPE, "feed_forward_proj", "cross_attention"),
        moves=(),
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
        varies=("bottleneck",),
    ),
)
"""Findings and open questions of the 2023 study of T5-style models with 220M parameters."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Result of testing one statement on a study."""

    statement: str
    verdict: Verdict
    difference: float | None
    """Mean loss of the favoured side minus that of the other over the pairs, in nats; negative if it is better."""
    interval: Interval | None
    """Confidence interval from training and data noise."""
    pairs: int
    agreeing: int
    """Number of pairs in which the favoured side has the lower loss, with the statement's margin."""
    confounds: tuple[str, ...]
    """Other dimensions that differ in at least half of the pairs."""


def findings(
    architectures: Sequence[Shape],
    means: Sequence[float],
    counts: Sequence[int],
    seeds: SeedNoise | None,
    data: DataNoise | None,
) -> tuple[Answer, ...]:
    """Test all statements on a study and return the answers in order.

    Args:
        architectures: Architectures of the study.
        means: Mean loss of each architecture.
        counts: Number of seeds behind each mean.
        seeds: Training noise.
        data: Data noise, for the same architectures in the same order.
    """
    return tuple(_answer(s, architectures, np.asarray(means), np.asarray(counts), seeds, data) for s in STATEMENTS)


def _answer(
    statement: Statement,
    shapes: Sequence[Shape],
    means_A: np.ndarray,
    counts_A: np.ndarray,
    seeds: SeedNoise | None,
    data: DataNoise | None,
) -> Answer:
    """Compute the contrast of one statement over all its pairs."""
    equal = (*(field for field in SAME if field not in statement.varies), *statement.equal)
    pairs = [
        (i, k)
        for i, a in enumerate(shapes)
        for k, b in enumerate(shapes)
        if statement.praises(a, b) and all(getattr(a, field) == getattr(b, field) for field in equal)
    ]
    if not pairs:
        return Answer(
            statement=statement.text,
            verdict="not tested",
            difference=None,
            interval=None,
            pairs=0,
            agreeing=0,
            confounds=(),
        )
    weights_A = np.zeros(len(shapes))
    for i, k in pairs:
        weights_A[i] += 1 / len(pairs)
        weights_A[k] -= 1 / len(pairs)
    difference = float(weights_A @ means_A)
    interval = _interval(difference, weights_A, counts_A, seeds, data)
    verdict: Verdict = "not separable"
    if interval and interval.high < statement.margin:
        verdict = "yes"
    elif interval and interval.low > statement.margin:
        verdict = "no"
    agreeing = sum(bool(means_A[i] < means_A[k] + statement.margin) for i, k in pairs)
    return Answer(
        statement=statement.text,
        verdict=verdict,
        difference=difference,
        interval=interval,
        pairs=len(pairs),
        agreeing=agreeing,
        confounds=_confounds(statement, shapes, pairs),
    )


def _interval(
    difference: float, weights_A: np.ndarray, counts_A: np.ndarray, seeds: SeedNoise | None, data: DataNoise | None
) -> Interval | None:
    """Return the confidence interval of a contrast; None if no noise is known."""
    from scipy.special import stdtrit

    parts: list[tuple[float, float]] = []
    if seeds is not None:
        variances_A = np.square(seeds.deviations) * weights_A**2 / counts_A
        parts += zip(variances_A.tolist(), seeds.degrees, strict=True)
    if data is not None:
        parts.append((max(0.0, float(weights_A @ data.covariance_AA @ weights_A)), data.degrees))
    if not parts:
        return None
    variance, degrees = pooled_variance(parts)
    half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Interval(difference - half, difference + half)


def _confounds(statement: Statement, shapes: Sequence[Shape], pairs: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Return the dimensions that differ in at least half of the pairs but that the statement does not name."""
    confounds = []
    for name, take in AXES.items():
        ratios = [take(shapes[i]) / take(shapes[k]) for i, k in pairs]
        differing = sum(max(ratio, 1 / ratio) > CONFOUNDED for ratio in ratios)
        if name not in statement.moves and differing * 2 >= len(pairs):
            confounds.append(name)
    return tuple(confounds)
