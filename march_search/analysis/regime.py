"""Determine the regime of a ranking: whether the models use their input yet, and whether they beat a bigram model.

Early in training, a model predicts the target from the target alone. A ranking at that stage only shows which
architecture learns n-grams fastest.
"""

import math
from dataclasses import dataclass

import numpy as np

from march_search.analysis.curve_fit import CurveFit, fit_curve
from march_search.analysis.early_order import crossings
from march_search.analysis.ranking import Ranking
from march_search.analysis.study_record import StudyRecord, TrialRecord

NEAR_NATS = 0.1
"""A loss less than this far below that of the bigram model counts as near it."""

NEAR_GAIN = 0.05
"""Context gains below this count as near zero, whatever their noise: those of small models stay at 0.00 to 0.03 for
millions of tokens, then rise above 0.2 within a few million more."""

FARTHEST = 10.0
"""Factor in tokens up to which curves are extrapolated to find where the regime ends."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Regime of a ranking."""

    unigram: float | None
    """Loss of a unigram model on the same targets, in nats per token."""
    bigram: float | None
    """Loss of a bigram model on the same targets, in nats per token."""
    leader_loss: float
    leader_gain: float | None
    """Context gain of the leader."""
    gain_noise: float | None
    """Standard deviation of context gains around their trend."""
    near_ngrams: bool
    """Whether the leader's loss is above that of the bigram model, or near it."""
    input_unused: bool
    """Whether the leader's context gain is near zero."""
    crossings: tuple[tuple[int, int], ...]
    """Pairs, by index in the ranking, whose order changed in the last third of training."""
    separated_crossings: int
    """Number of these pairs that are separated at the end."""
    tokens_to_leave: tuple[float, float, float] | None
    """Tokens at which the leader's curve is `NEAR_NATS` below the bigram model: low, middle, high (may be infinite).
    None if the leader is already there or the curve does not show it."""


def regime(study: StudyRecord, ranking: Ranking) -> Regime | None:
    """Determine the regime of a ranking; return None for a study without a complete trial."""
    if not ranking.pooled:
        return None
    leader, row = ranking.pooled[0], ranking.first_rows[0]
    key = "text" if leader.architecture.structure == "decoder-only" else "target"
    unigram, bigram = (study.reference.get(f"{key}_{model}_nats") for model in ("unigram", "bigram"))
    noise, gain = _gain_noise([t for p in ranking.pooled for t in p.trials]), row["context_gain"]
    near = bigram is not None and leader.loss > bigram - NEAR_NATS
    unused = gain is not None and gain < max(NEAR_GAIN, 2 * (noise or 0.0))
    crossed = crossings(ranking.pooled)
    adjusted = ranking.comparison.adjusted_AA if ranking.comparison else None
    split = 0 if adjusted is None else sum(bool(adjusted[i, k] < 0.05) for i, k in crossed)
    warmup = study.settings.get("training", {}).get("warmup_tokens", 0)
    leave = tokens_to_reach(fit_curve(leader.curve, warmup), bigram - NEAR_NATS) if near and bigram else None
    return Regime(
        unigram=unigram,
        bigram=bigram,
        leader_loss=leader.loss,
        leader_gain=gain,
        gain_noise=noise,
        near_ngrams=near,
        input_unused=unused,
        crossings=crossed,
        separated_crossings=split,
        tokens_to_leave=leave,
    )


def tokens_to_reach(fit: CurveFit | None, loss: float) -> tuple[float, float, float] | None:
    """Return the tokens at which a curve falls to `loss`: low, middle and high of its draws.

    A value is infinite beyond `FARTHEST` times the tokens seen. Returns None without a fit, or if at least half of the
    draws do not reach `loss`.
    """
    if fit is None:
        return None
    factors = np.geomspace(1, FARTHEST, 200)
    reached = np.array([fit.draws(fit.unit * factor) for factor in factors]) <= loss
    first = np.where(reached.any(axis=0), factors[reached.argmax(axis=0)] * fit.unit, math.inf)
    low, middle, high = np.quantile(first, [0.025, 0.5, 0.975], method="nearest")
    return (float(low), float(middle), float(high)) if math.isfinite(middle) else None


def _gain_noise(trials: list[TrialRecord]) -> float | None:
    """Return the standard deviation of context gains around their trend, from second differences of evaluations."""
    steps = [
        np.diff([e["context_gain"] for e in t.evaluations if e.get("context_gain") is not None], n=2) for t in trials
    ]
    every = np.concatenate(steps) if steps else np.empty(0)
    return float(np.sqrt(np.mean(every**2) / 6)) if len(every) >= 4 else None
