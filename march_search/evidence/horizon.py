"""What the learning curves of a study say about a longer budget: its ranking, and whether today's leader still leads.

Each curve is continued by itself (`curves.py`), and curves by themselves are a poor guide to an order: their slopes
hold more noise than their ends. So the study is asked about its own past. From the first half of the tokens the end is
predicted twice, by the fits and by "differences stay as they are"; the mix of both that would have been best there
(least squares, between 0 and 1) is what the differences are predicted by. What that mix missed by, for every doubling
of tokens, all shapes together and each shape by itself, widens the draws; so does seed noise.

Shape suffixes: A architectures, B draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from march_search.errors import UsageError
from march_search.evidence.comparison import CONFIDENCE
from march_search.evidence.curves import Array, Curve, CurveFit, fit_curve
from march_search.evidence.ranking import Ranking
from march_search.evidence.trials import StudyRecord

CHECKED = 10 / 3
"""Times the tokens seen up to which predictions were held against real curves (`benchmarks/horizon.py`)."""


@dataclass(frozen=True)
class Mix:
    """How a study's own first half predicts its end."""

    share: float
    """Weight of the fits against differences that stay as they are; 0 to 1."""
    shared_miss: float
    """Nats by which all curves together were missed, per doubling of tokens."""
    own_miss: float
    """Root mean square of what each was missed by beside that, per doubling."""


@dataclass(frozen=True)
class Horizon:
    """A study's ranking at a longer budget."""

    tokens: int
    fits: tuple[CurveFit, ...]
    """Of each architecture, in today's order."""
    mix: Mix | None
    """None where the first half was too short to learn from."""
    rows: tuple[dict[str, Any], ...]
    """One an architecture, by predicted loss."""
    flip_probability: float
    """Chance that today's leader is not the best then."""
    caveats: tuple[str, ...]
    """What a reader has to know, a sentence each."""


def learn_mix(curves: Sequence[Curve], warmup_tokens: float = 0) -> Mix | None:
    """The mix of these curves' first halves; None with fewer than three that are long enough."""
    last = min(curve[-1][0] for curve in curves)
    halves = [[(tokens, loss) for tokens, loss in curve if tokens <= last / 2] for curve in curves]
    fits = [fit_curve(half, warmup_tokens, miss=0.0) for half in halves]
    used = [n for n, fit in enumerate(fits) if fit is not None]
    if len(used) < 3:
        return None
    fitted_A = np.array([fits[n].at(last) for n in used])  # type: ignore[union-attr]
    middle_A, end_A = (np.array([c[n][-1][1] for n in used]) for c in (halves, curves))
    change_A, told_A = _centred(end_A) - _centred(middle_A), _centred(fitted_A) - _centred(middle_A)
    share = float(np.clip(float(change_A @ told_A) / max(float(told_A @ told_A), 1e-300), 0, 1))
    doublings = math.log2(last / halves[used[0]][-1][0])
    own = float(np.std(change_A - share * told_A, ddof=1))
    return Mix(share, abs(float(end_A.mean() - fitted_A.mean())) / doublings, own / doublings)


def predicted_losses(
    curves: Sequence[Curve], fits: Sequence[CurveFit], mix: Mix | None, tokens: float, seed: int = 0
) -> Array:
    """(A, B) draws of the losses at `tokens`, the prediction itself first; seed noise left out."""
    fitted_AB = np.array([fit.draws(tokens) for fit in fits])
    if mix is None:
        return fitted_AB
    mean_B = fitted_AB.mean(axis=0)
    stay_A1 = _centred(np.array([curve[-1][1] for curve in curves]))[:, None]
    mixed_AB = mean_B + stay_A1 + mix.share * (fitted_AB - mean_B - stay_A1)
    rng, doublings = np.random.default_rng(seed), math.log2(tokens / fits[0].unit)
    miss_AB = mix.own_miss * rng.standard_normal(mixed_AB.shape) + mix.shared_miss * rng.standard_normal(len(mean_B))
    miss_AB[:, 0] = 0
    return np.asarray(mixed_AB + doublings * miss_AB, np.float64)


def horizon(study: StudyRecord, ranking: Ranking, tokens: int, seed: int = 0) -> Horizon:
    """The ranking that the curves predict after `tokens`.

    Raises:
        UsageError: `tokens` have been trained already, or a curve has too few evaluations.
    """
    if not ranking.rows:
        raise UsageError(f"{study.name} has no complete trial, so no curve can be continued.")
    trained = max(int(row["tokens"]) for row in ranking.rows)
    if tokens <= trained:
        raise UsageError(f"--horizon {tokens:,}: the trials have {trained:,} tokens already; name a longer budget.")
    warmup = study.settings.get("training", {}).get("warmup_tokens", 0)
    curves = [p.curve for p in ranking.pooled]
    fits = [fit_curve(curve, warmup, seed, None if len(curves) < 3 else 0.0) for curve in curves]
    known = [fit for fit in fits if fit is not None]
    if len(known) < len(curves):
        raise UsageError(
            f"{study.name}: a curve needs at least four evaluations after warm-up and the first fifth to be continued; "
            "raise [training] evaluations."
        )
    mix = learn_mix(curves, warmup)
    draws_AB = predicted_losses(curves, known, mix, tokens, seed)
    if ranking.seeds:
        counts = np.array([len(p.trials) for p in ranking.pooled])
        noise_AB = np.random.default_rng(seed + 1).standard_normal(draws_AB[:, 1:].shape)
        draws_AB[:, 1:] += noise_AB * ranking.seeds.deviation / np.sqrt(counts)[:, None]
    rows = _rows(ranking, draws_AB)
    flip = 1 - next(row["probability_best"] for row in rows if row["place_now"] == 0)
    return Horizon(tokens, tuple(known), mix, rows, flip, _caveats(study, mix, tokens / trained))


def _rows(ranking: Ranking, draws_AB: Array) -> tuple[dict[str, Any], ...]:
    """One row an architecture, by predicted loss."""
    won = np.bincount(draws_AB[:, 1:].argmin(axis=0), minlength=len(draws_AB)) / (draws_AB.shape[1] - 1)
    quantiles = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    rows = []
    for rank, place in enumerate(np.argsort(draws_AB[:, 0], kind="stable").tolist(), 1):
        low, high = np.quantile(draws_AB[place, 1:], quantiles)
        now = ranking.rows[place]
        rows.append(
            {
                "rank": rank,
                "name": now["name"],
                "rank_now": now["rank"],
                "place_now": place,
                "loss_now": now["loss"],
                "predicted_loss": float(draws_AB[place, 0]),
                "predicted_low": float(low),
                "predicted_high": float(high),
                "probability_best": float(won[place]),
            }
        )
    return tuple(rows)


def _caveats(study: StudyRecord, mix: Mix | None, factor: float) -> tuple[str, ...]:
    """What a reader of the prediction has to know."""
    said = []
    if study.decay:
        said.append(
            f"The learning rate decays ({study.decay}): a longer run would have decayed later, and these curves fall "
            "faster at their end than a longer budget's would. Compare differences, not losses."
        )
    if factor > CHECKED:
        said.append(
            f"That is {factor:.1f} times the tokens trained; on real curves such predictions were checked up to "
            f"{CHECKED:.1f} times."
        )
    if mix is None:
        said.append("Too few curves or evaluations to check the fits against the study's own first half.")
    else:
        said.append(
            f"From the study's first half its end was missed by {mix.shared_miss:.3f} nats a doubling for all shapes "
            f"together and {mix.own_miss:.3f} for each; differences are predicted {mix.share:.0%} from the fits, the "
            "rest as they are now."
        )
    return (*said, "A plateau that the models have not left yet is in no curve.")


def _centred(values: Array) -> Array:
    """`values` less their mean."""
    return np.asarray(values - values.mean(), np.float64)
