"""Predict the ranking of a study at a longer data budget from its learning curves.

Each curve is extrapolated separately (`curves.py`), but separate fits predict an order poorly: slopes are noisier than
final losses. The prediction is therefore calibrated on the study itself. Two predictions of the end are made from the
first half of the tokens: one from the fits, and one that keeps the differences as they are. The mix of both that would
have worked best there (least squares, weight between 0 and 1) then predicts the differences at the longer budget. The
error of that mix per doubling of tokens, both common to all architectures and of each one, widens the draws; so does
seed noise.

Shape suffixes: A architectures, B draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from march_search.analysis.comparison import CONFIDENCE
from march_search.analysis.curve_fit import Array, Curve, CurveFit, fit_curve
from march_search.analysis.ranking import Ranking
from march_search.analysis.study_record import StudyRecord
from march_search.errors import UsageError

CHECKED = 10 / 3
"""Largest factor in tokens for which predictions were checked against real curves (`benchmarks/horizon.py`)."""


@dataclass(frozen=True)
class Mix:
    """Weight and errors of predicting the end of a study from its first half."""

    share: float
    """Weight of the fits, 0 to 1; the rest is the weight of unchanged differences."""
    shared_miss: float
    """Error of the mean over all curves, in nats per doubling of tokens."""
    own_miss: float
    """Standard deviation of the remaining errors of single curves, in nats per doubling of tokens."""


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """Predicted ranking of a study at a longer data budget."""

    tokens: int
    fits: tuple[CurveFit, ...]
    """Fit of each architecture, in the present order."""
    mix: Mix | None
    """None if the first half is too short to learn from."""
    rows: tuple[dict[str, Any], ...]
    """One row per architecture, by predicted loss."""
    flip_probability: float
    """Probability that the present leader is not the best at the longer budget."""
    caveats: tuple[str, ...]
    """Limitations of the prediction, one sentence each."""


def learn_mix(curves: Sequence[Curve], warmup_tokens: float = 0) -> Mix | None:
    """Learn the mix from the first halves of the curves; return None with fewer than three that are long enough."""
    last = min(curve[-1][0] for curve in curves)
    halves = [[(tokens, loss) for tokens, loss in curve if tokens <= last / 2] for curve in curves]
    fits = [fit_curve(half, warmup_tokens, miss=0.0) for half in halves]
    used = [n for n, fit in enumerate(fits) if fit is not None]
    if len(used) < 3:
        return None
    fitted_A = np.array([fits[n].at(last) for n in used])  # type: ignore[union-attr]
    middle_A, end_A = (np.array([c[n][-1][1] for n in used]) for c in (halves, curves))
    change_A, predicted_A = _centred(end_A) - _centred(middle_A), _centred(fitted_A) - _centred(middle_A)
    share = float(np.clip(float(change_A @ predicted_A) / max(float(predicted_A @ predicted_A), 1e-300), 0, 1))
    doublings = math.log2(last / halves[used[0]][-1][0])
    deviation = float(np.std(change_A - share * predicted_A, ddof=1))
    return Mix(share, abs(float(end_A.mean() - fitted_A.mean())) / doublings, deviation / doublings)


def predicted_losses(
    curves: Sequence[Curve], fits: Sequence[CurveFit], mix: Mix | None, tokens: float, seed: int = 0
) -> Array:
    """Return (A, B) draws of the losses at `tokens`, the prediction first, without seed noise."""
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
    """Predict the ranking after `tokens` tokens.

    Raises:
        UsageError: If no trial is complete, `tokens` is not above the tokens trained, or a curve is too short.
    """
    if not ranking.rows:
        raise UsageError(f"{study.name} has no complete trial, so --horizon has no curve to extrapolate.")
    trained = max(int(row["tokens"]) for row in ranking.rows)
    if tokens <= trained:
        raise UsageError(f"--horizon {tokens:,}: the trials already have {trained:,} tokens; use a larger number.")
    warmup = study.settings.get("training", {}).get("warmup_tokens", 0)
    curves = [p.curve for p in ranking.pooled]
    fits = [fit_curve(curve, warmup, seed, None if len(curves) < 3 else 0.0) for curve in curves]
    known = [fit for fit in fits if fit is not None]
    if len(known) < len(curves):
        raise UsageError(
            f"{study.name}: --horizon needs at least four evaluations per curve after warm-up and the first fifth of "
            "the tokens; increase [training] evaluations."
        )
    mix = learn_mix(curves, warmup)
    draws_AB = predicted_losses(curves, known, mix, tokens, seed)
    if ranking.seeds:
        counts = np.array([len(p.trials) for p in ranking.pooled])
        noise_AB = np.random.default_rng(seed + 1).standard_normal(draws_AB[:, 1:].shape)
        draws_AB[:, 1:] += noise_AB * (np.array(ranking.seeds.deviations) / np.sqrt(counts))[:, None]
    rows = _rows(ranking, draws_AB)
    flip = 1 - next(row["probability_best"] for row in rows if row["place_now"] == 0)
    return Horizon(
        tokens=tokens,
        fits=tuple(known),
        mix=mix,
        rows=rows,
        flip_probability=flip,
        caveats=_caveats(study, mix, tokens / trained),
    )


def _rows(ranking: Ranking, draws_AB: Array) -> tuple[dict[str, Any], ...]:
    """Return one row per architecture, by predicted loss."""
    won = np.bincount(draws_AB[:, 1:].argmin(axis=0), minlength=len(draws_AB)) / (draws_AB.shape[1] - 1)
    quantiles = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    rows = []
    for rank, index in enumerate(np.argsort(draws_AB[:, 0], kind="stable").tolist(), 1):
        low, high = np.quantile(draws_AB[index, 1:], quantiles)
        now = ranking.rows[index]
        rows.append(
            {
                "rank": rank,
                "name": now["name"],
                "rank_now": now["rank"],
                "place_now": index,
                "loss_now": now["loss"],
                "predicted_loss": float(draws_AB[index, 0]),
                "predicted_low": float(low),
                "predicted_high": float(high),
                "probability_best": float(won[index]),
            }
        )
    return tuple(rows)


def _caveats(study: StudyRecord, mix: Mix | None, factor: float) -> tuple[str, ...]:
    """Return the limitations of the prediction, one sentence each."""
    caveats = []
    if study.decay:
        caveats.append(
            f"The learning rate decays ({study.decay}). A longer run would decay it later, so these curves fall faster "
            "at their end than those of a longer run. Compare differences, not losses."
        )
    if factor > CHECKED:
        caveats.append(
            f"This is {factor:.1f} times the tokens trained; predictions were checked on real curves only up to "
            f"{CHECKED:.1f} times."
        )
    if mix is None:
        caveats.append("There are too few curves or evaluations to check the fits on the first half of this study.")
    else:
        caveats.append(
            f"Predictions of this study's end from its first half missed by {mix.shared_miss:.3f} nats per doubling of "
            f"tokens on average and by a further {mix.own_miss:.3f} per architecture. The prediction applies "
            f"{mix.share:.0%} of the change in differences that the fits predict."
        )
    return (*caveats, "A plateau that the models have not left yet does not show in the curves.")


def _centred(values: Array) -> Array:
    """Return `values` minus their mean."""
    return np.asarray(values - values.mean(), np.float64)
