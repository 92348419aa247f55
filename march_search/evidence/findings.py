"""Named findings and questions about shapes as statements that a study can answer.

Each is a contrast: the mean difference in loss over all pairs of a study's architectures of which one lies on the side
that the statement praises and everything else that it names is equal. What else differs in most pairs is told: a budget
moves several dimensions at once, and a finding about one of them may be a finding about another.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from march_search.architecture import Architecture
from march_search.evidence.comparison import CONFIDENCE, Interval
from march_search.evidence.effects import AXES, GATED
from march_search.evidence.noise import DataNoise, SeedNoise

NOTHING_NATS = 0.01
"""What "costs nothing" means: less than this, the size of published seed noise."""
CONFOUNDED = 1.25
"""A dimension that differs by more than this factor in at least half of the pairs is told."""

Verdict = Literal["yes", "no", "not separable", "not tested"]
Shape = Architecture


@dataclass(frozen=True)
class Statement:
    """One finding of the 2023 study or one of its open questions, or its opposite."""

    text: str
    praises: Callable[[Shape, Shape], bool]
    """Whether the first of two shapes differs from the second as the statement says."""
    equal: tuple[str, ...]
    """What both must have in common, apart from vocabulary and structure."""
    moves: tuple[str, ...]
    """Dimensions that it is about."""
    margin: float = 0.0
    """Nats by which the praised side may be worse and the statement still hold."""
    varies: tuple[str, ...] = ()
    """Fields of `SAME` that it is about, and may differ."""


SAME = (
    *("structure", "vocab_size", "position", "tie_word_embeddings", "head_schedule", "share_layers", "bottleneck"),
    *("length_reduction", "noop_key"),
)
"""What two shapes have in common unless a statement is about it."""
SHAPE = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff")


def _alone(shape: Shape) -> int | str:
    """`all` for a stack of one layer, which shares its weights with all that there are."""
    return "all" if shape.num_layers == 1 else shape.share_layers


STATEMENTS = (
    Statement(
        "more heads and fewer layers is better",
        lambda a, b: a.num_heads > b.num_heads and a.num_layers < b.num_layers,
        ("d_model", "d_kv", "feed_forward_proj", "cross_attention"),
        ("heads", "layers"),
    ),
    Statement(
        "wider and fewer layers is better",
        lambda a, b: a.d_model > b.d_model and a.num_layers < b.num_layers,
        ("d_kv", "feed_forward_proj", "cross_attention"),
        ("d_model", "layers"),
    ),
    Statement(
        "more heads of a smaller d_kv is better",
        lambda a, b: a.num_heads > b.num_heads and a.d_kv < b.d_kv,
        ("num_layers", "d_model", "feed_forward_proj", "cross_attention"),
        ("heads", "d_kv"),
    ),
    Statement(
        "gated feed-forward is better",
        lambda a, b: a.is_gated and not b.is_gated,
        ("num_layers", "d_model", "num_heads", "d_kv", "cross_attention"),
        (GATED,),
    ),
    Statement(
        "no cross-attention key/value weights costs nothing",
        lambda a, b: a.cross_attention == "layer-shared" and b.cross_attention != "layer-shared",
        ("d_model", "num_heads", "d_kv", "feed_forward_proj"),
        (),
        NOTHING_NATS,
    ),
    Statement(
        "heads instead of cross-attention key/value weights are better",
        lambda a, b: (
            a.cross_attention == "layer-shared" and b.cross_attention != "layer-shared" and a.num_heads > b.num_heads
        ),
        ("num_layers", "d_model", "d_kv", "feed_forward_proj"),
        ("heads",),
    ),
    Statement(
        "smaller d_ff for more layers is better",
        lambda a, b: a.d_ff < b.d_ff and a.num_layers > b.num_layers,
        ("d_model", "num_heads", "d_kv", "feed_forward_proj", "cross_attention"),
        ("d_ff / d_model", "layers"),
    ),
    Statement(
        "smaller d_ff for a wider model is better",
        lambda a, b: a.d_ff < b.d_ff and a.d_model > b.d_model,
        ("num_layers", "d_kv", "feed_forward_proj", "cross_attention"),
        ("d_ff / d_model", "d_model"),
    ),
    Statement(
        "wider, fewer layers, and attention wider than the model is better",
        lambda a, b: (
            a.d_model > b.d_model
            and a.num_layers < b.num_layers
            and a.num_heads * a.d_kv * b.d_model > b.num_heads * b.d_kv * a.d_model
        ),
        ("d_kv", "feed_forward_proj", "cross_attention"),
        ("heads", "d_model", "layers"),
    ),
    Statement(
        "more heads in a stack's first layers than in its last is better",
        lambda a, b: "first" in a.head_schedule and b.head_schedule == a.head_schedule.replace("first", "last"),
        (*SHAPE, "feed_forward_proj", "cross_attention"),
        (),
        varies=("head_schedule",),
    ),
    Statement(
        "heads that differ by layer are better than the same in all",
        lambda a, b: a.head_schedule != "constant" and b.head_schedule == "constant",
        (*SHAPE, "feed_forward_proj", "cross_attention"),
        (),
        varies=("head_schedule",),
    ),
    Statement(
        "rotary positions are better than relative ones",
        lambda a, b: a.position == "rotary" and b.position == "relative",
        (*SHAPE, "feed_forward_proj", "cross_attention"),
        (),
        varies=("position",),
    ),
    Statement(
        "rotary positions are better than absolute ones",
        lambda a, b: a.position == "rotary" and b.position == "absolute",
        ("num_layers", "d_model", "num_heads", "d_kv", "feed_forward_proj", "cross_attention"),
        (),
        varies=("position",),
    ),
    Statement(
        "cross-attention to the encoder's output is better than to the layer of the same depth",
        lambda a, b: a.cross_attention == "output" and b.cross_attention == "layer",
        (*SHAPE, "feed_forward_proj"),
        (),
    ),
    Statement(
        "one set of weights for all layers costs nothing at equal parameters",
        lambda a, b: a.share_layers == "all" and b.share_layers == 1 and b.num_layers > 1,
        ("d_kv", "feed_forward_proj", "cross_attention"),
        ("layers", "d_model", "heads"),
        NOTHING_NATS,
        ("share_layers",),
    ),
    Statement(
        "the same weights used in more layers are better",
        lambda a, b: a.share_layers == "all" and a.num_layers > b.num_layers and _alone(b) == "all",
        ("d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj", "cross_attention"),
        ("layers",),
        varies=("share_layers",),
    ),
    Statement(
        "fewer positions from the encoder's middle on cost nothing",
        lambda a, b: a.length_reduction < b.length_reduction,
        (*SHAPE, "feed_forward_proj", "cross_attention"),
        (),
        NOTHING_NATS,
        ("length_reduction",),
    ),
    Statement(
        "a key to attend to nothing is better",
        lambda a, b: a.noop_key != "none" and b.noop_key == "none",
        (*SHAPE, "feed_forward_proj", "cross_attention"),
        (),
        varies=("noop_key",),
    ),
    Statement(
        "a narrower residual stream and a larger d_ff is better",
        lambda a, b: a.bottleneck != "none" and b.bottleneck == "none" and a.d_ff > b.d_ff,
        ("num_layers", "d_model", "num_heads", "d_kv", "feed_forward_proj", "cross_attention"),
        ("d_ff / d_model",),
        varies=("bottleneck",),
    ),
)
"""What the 2023 study found or meant to ask of T5-style models with 220M parameters."""


@dataclass(frozen=True)
class Answer:
    """What a study says to one statement."""

    statement: str
    verdict: Verdict
    difference: float | None
    """Mean loss of the praised side less that of the other, over the pairs, in nats; negative: it is better."""
    interval: Interval | None
    """From training and data noise."""
    pairs: int
    agreeing: int
    """Pairs in which the praised side has the lower loss."""
    confounds: tuple[str, ...]
    """Dimensions that the statement does not name and that differ in at least half of the pairs."""


def findings(
    architectures: Sequence[Shape],
    means: Sequence[float],
    counts: Sequence[int],
    seeds: SeedNoise | None,
    data: DataNoise | None,
) -> tuple[Answer, ...]:
    """Answers to all statements, in their order.

    Args:
        architectures: of one study.
        means: their mean losses.
        counts: seeds behind each mean.
        seeds: training noise.
        data: data noise, of the same architectures in the same order.
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
    """The contrast of one statement over all its pairs."""
    equal = (*(field for field in SAME if field not in statement.varies), *statement.equal)
    pairs = [
        (i, k)
        for i, a in enumerate(shapes)
        for k, b in enumerate(shapes)
        if statement.praises(a, b) and all(getattr(a, field) == getattr(b, field) for field in equal)
    ]
    if not pairs:
        return Answer(statement.text, "not tested", None, None, 0, 0, ())
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
        statement.text, verdict, difference, interval, len(pairs), agreeing, _confounds(statement, shapes, pairs)
    )


def _interval(
    difference: float, weights_A: np.ndarray, counts_A: np.ndarray, seeds: SeedNoise | None, data: DataNoise | None
) -> Interval | None:
    """Where the contrast's true value lies; None if no noise is known."""
    from scipy.special import stdtrit

    parts = []
    if seeds is not None:
        parts.append((float(seeds.deviation**2 * (weights_A**2 / counts_A).sum()), seeds.degrees))
    if data is not None:
        parts.append((max(0.0, float(weights_A @ data.covariance_AA @ weights_A)), data.degrees))
    if not parts:
        return None
    variance, spread = sum(v for v, _ in parts), sum(v**2 / degrees for v, degrees in parts)
    half = float(stdtrit(variance**2 / spread if spread else math.inf, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Interval(difference - half, difference + half)


def _confounds(statement: Statement, shapes: Sequence[Shape], pairs: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Dimensions that differ in at least half of the pairs though the statement does not name them."""
    found = []
    for name, take in AXES.items():
        ratios = [take(shapes[i]) / take(shapes[k]) for i, k in pairs]
        differing = sum(max(ratio, 1 / ratio) > CONFOUNDED for ratio in ratios)
        if name not in statement.moves and differing * 2 >= len(pairs):
            found.append(name)
    return tuple(found)
