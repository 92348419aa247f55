"""Determine the regime of a ranking: whether the models use their input yet, and whether they beat a bigram model.

Early in training, a model predicts the target from the target alone. An order at that stage shows which architecture
learns n-grams fastest. On recorded runs it foretold most of the later order, but not how large the differences were.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from march_search.analysis.early_order import crossings
from march_search.analysis.ranking import Ranking
from march_search.analysis.study_record import StudyRecord, TrialRecord

NEAR_NATS = 0.1
"""A loss less than this far below that of the bigram model counts as near it."""

NEAR_GAIN = 0.05
"""Context gains below this count as near zero, whatever their noise: those of small models stay at 0.00 to 0.03 for
millions of tokens, then rise above 0.2 within a few million more."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Regime of a ranking: of all architectures on its first level."""

    unigram: float | None
    """Loss of a unigram model on the same targets, in nats per token."""
    bigram: float | None
    """Loss of a bigram model on the same targets, in nats per token."""
    num_compared: int
    """Number of architectures."""
    losses: tuple[float, float]
    """Lowest and highest loss of these architectures."""
    gains: tuple[float, float] | None
    """Lowest and highest context gain of these architectures; None if it was not measured."""
    gain_noise: float | None
    """Standard deviation of context gains around their trend."""
    gain_limit: float
    """Context gains below this count as near zero: the larger of `NEAR_GAIN` and twice their noise."""
    num_measured: int
    """Number of architectures with a measured context gain."""
    num_unused: int
    """Number of these whose context gain is near zero."""
    num_near_ngrams: int
    """Number of architectures whose loss is above that of the bigram model, or near it."""
    crossings: tuple[tuple[int, int], ...]
    """Pairs, by index in the ranking, whose order changed in the last third of training."""
    separated_crossings: int
    """Number of these pairs that are separated at the end."""


def regime(study: StudyRecord, ranking: Ranking) -> Regime | None:
    """Determine the regime of a ranking's first level; return None for a study without a ranked architecture."""
    pooled = ranking.pooled
    if not pooled:
        return None
    key = "text" if pooled[0].architecture.structure == "decoder-only" else "target"
    unigram, bigram = (study.reference.get(f"{key}_{model}_nats") for model in ("unigram", "bigram"))
    noise = _gain_noise([t for p in pooled for t in p.trials])
    limit = max(NEAR_GAIN, 2 * (noise or 0.0))
    gains = [p.context_gain for p in pooled if p.context_gain is not None]
    crossed = crossings(pooled)
    adjusted = ranking.comparison.adjusted_AA if ranking.comparison else None
    losses = [p.loss for p in pooled]
    return Regime(
        unigram=unigram,
        bigram=bigram,
        num_compared=len(pooled),
        losses=(min(losses), max(losses)),
        gains=(min(gains), max(gains)) if gains else None,
        gain_noise=noise,
        gain_limit=limit,
        num_measured=len(gains),
        num_unused=sum(gain < limit for gain in gains),
        num_near_ngrams=0 if bigram is None else sum(loss > bigram - NEAR_NATS for loss in losses),
        crossings=crossed,
        separated_crossings=0 if adjusted is None else sum(bool(adjusted[i, k] < 0.05) for i, k in crossed),
    )


def _gain_noise(trials: Sequence[TrialRecord]) -> float | None:
    """Return the standard deviation of context gains around their trend, from second differences of evaluations."""
    steps = [
        np.diff([e["context_gain"] for e in t.evaluations if e.get("context_gain") is not None], n=2) for t in trials
    ]
    every = np.concatenate(steps) if steps else np.empty(0)
    return float(np.sqrt(np.mean(every**2) / 6)) if len(every) >= 4 else None
