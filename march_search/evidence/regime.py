"""Which regime a ranking describes: do these models use their input yet, and do they beat tables of token pairs?

A young model predicts its target from the target alone. A ranking taken there says which shape learns n-grams fastest.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from march_search.evidence.curves import CurveFit, fit_curve
from march_search.evidence.ranking import Ranking
from march_search.evidence.rungs import crossings
from march_search.evidence.trials import StudyRecord, TrialRecord

NEAR_NATS = 0.1
"""A loss less than this below that of token pairs is near it."""
NEAR_GAIN = 0.05
"""Context gains below this are near none, whatever their noise: small models stay at 0.00 to 0.03 for millions of
tokens, then rise past 0.2 within a few more."""
FARTHEST = 10.0
"""Curves are continued to so many times the tokens seen when they are asked where the regime ends."""


@dataclass(frozen=True)
class Regime:
    """What a ranking is about."""

    unigram: float | None
    """Nats of a model that knows token frequencies, on what these models predict."""
    bigram: float | None
    """Of one that knows pairs of tokens."""
    leader_loss: float
    leader_gain: float | None
    """The leader's context gain."""
    gain_noise: float | None
    """Standard deviation of context gains between neighbouring evaluations."""
    near_ngrams: bool
    """Whether the leader's loss is above that of token pairs, or near it."""
    input_unused: bool
    """Whether its context gain is near zero."""
    crossings: tuple[tuple[int, int], ...]
    """Places of the pairs whose order changed in the last third of training."""
    separated_crossings: int
    """How many of them the tests hold to be different."""
    tokens_to_leave: tuple[float, float, float] | None
    """Tokens at which the leader's curve is `NEAR_NATS` below that of token pairs: low, middle, high; high may be
    infinite. None where it need not, or these curves cannot say."""
    sentences: tuple[str, ...]
    """The same in words."""


def regime(study: StudyRecord, ranking: Ranking) -> Regime | None:
    """The regime of a ranking; None for a study without a complete trial."""
    if not ranking.pooled:
        return None
    leader, row = ranking.pooled[0], ranking.rows[0]
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
    found = Regime(unigram, bigram, leader.loss, gain, noise, near, unused, crossed, split, leave, ())
    return replace(found, sentences=_sentences(found, len(ranking.pooled), study.decay))


def tokens_to_reach(fit: CurveFit | None, loss: float) -> tuple[float, float, float] | None:
    """Tokens at which a curve is down to `loss`: low, middle and high of its draws; infinite beyond `FARTHEST` times.

    None if there is no curve, or more than half of its draws do not get there.
    """
    if fit is None:
        return None
    factors = np.geomspace(1, FARTHEST, 200)
    reached = np.array([fit.draws(fit.unit * factor) for factor in factors]) <= loss
    first = np.where(reached.any(axis=0), factors[reached.argmax(axis=0)] * fit.unit, math.inf)
    low, middle, high = np.quantile(first, [0.025, 0.5, 0.975], method="nearest")
    return (float(low), float(middle), float(high)) if math.isfinite(middle) else None


def _gain_noise(trials: list[TrialRecord]) -> float | None:
    """Standard deviation of context gains around their trend, from differences of neighbouring evaluations."""
    steps = [
        np.diff([e["context_gain"] for e in t.evaluations if e.get("context_gain") is not None], n=2) for t in trials
    ]
    every = np.concatenate(steps) if steps else np.empty(0)
    return float(np.sqrt(np.mean(every**2) / 6)) if len(every) >= 4 else None


def _sentences(found: Regime, many: int, decay: str) -> tuple[str, ...]:
    """What a reader has to know of the regime."""
    said = []
    if found.near_ngrams:
        assert found.bigram is not None
        where = "above" if found.leader_loss > found.bigram else f"less than {NEAR_NATS:g} nats below"
        said.append(
            f"Regime: n-grams. The best loss, {found.leader_loss:.3f}, is {where} that of a table of token pairs "
            f"({found.bigram:.3f}): this ranking says which shape learns such tables fastest, and nothing about longer "
            f"training. {_budget(found, decay)}"
        )
    if found.input_unused:
        assert found.leader_gain is not None
        own = "" if found.gain_noise is None else f", its noise {found.gain_noise:.3f}"
        limit = max(NEAR_GAIN, 2 * (found.gain_noise or 0))
        when = "" if found.near_ngrams else " What budget would leave that regime cannot be said from these curves."
        said.append(
            f"Regime: the input is hardly used. The leader's context gain is {found.leader_gain:.3f} (near zero: below "
            f"{limit:.2f}{own}): differences of heads, encoder or cross-attention mean nothing yet.{when}"
        )
    if found.crossings:
        pairs = many * (many - 1) // 2
        split = f", {found.separated_crossings} of them separated at the end" if found.separated_crossings else ""
        said.append(
            f"Curves still cross: {len(found.crossings)} of {pairs} pairs changed places in the last third of training"
            f"{split}. A longer budget may order them otherwise."
        )
    return tuple(said)


def _budget(found: Regime, decay: str) -> str:
    """The token budget that would leave the n-grams behind."""
    from march_search.report.tables import si

    if found.tokens_to_leave is None:
        return "What budget would leave that regime cannot be said from these curves."
    low, middle, high = found.tokens_to_leave
    upper = si(high) if math.isfinite(high) else f"more than {FARTHEST:.0f} times these tokens"
    rough = f"; a rough guess, as the learning rate decays ({decay})" if decay else ""
    return f"Its curve leaves that regime after about {si(middle)} tokens (95 %: {si(low)} to {upper}){rough}."
