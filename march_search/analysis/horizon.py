"""Predict the ranking of a study at a longer data budget: the differences of today stay, as far as recorded ones did.

Extrapolated learning curves order architectures no better than their present losses do, and their intervals hold less
often than they claim (`benchmarks/README.md`). The order of today is therefore the prediction. How far a difference may
have changed by then is taken from recorded runs (`order_changes.py`), up to the largest factor in tokens on record.
While models do not use their input yet, nothing is claimed: what such a plateau leaves behind is not on record.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from march_search.analysis.comparison import CONFIDENCE
from march_search.analysis.noise import Array
from march_search.analysis.order_changes import CHECKED, SOURCE, changes_at, later_differences
from march_search.analysis.ranking import Ranking
from march_search.analysis.regime import Regime
from march_search.analysis.study_record import StudyRecord
from march_search.errors import UsageError

DRAWS = 20_000
"""Number of draws."""


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """Predicted ranking of a study at a longer data budget."""

    tokens: int
    ratio: float
    """`tokens` as a multiple of the tokens trained."""
    rows: tuple[dict[str, Any], ...]
    """One row per complete architecture, in the present order."""
    flip_probability: float | None
    """Probability that the present leader is not the best at the longer budget; None if nothing is claimed."""
    caveats: tuple[str, ...]
    """Source and limitations of the prediction, one sentence each."""


def horizon(study: StudyRecord, ranking: Ranking, found: Regime | None, tokens: int) -> Horizon:
    """Predict the ranking after `tokens` tokens.

    Raises:
        UsageError: If no trial is complete, or `tokens` is not between the tokens trained and `CHECKED` times these.
    """
    if not ranking.levels or not ranking.levels[0].is_final:
        raise UsageError(f"{study.name} has no complete trial, so --horizon has nothing to predict from.")
    trained = ranking.levels[0].tokens
    if tokens <= trained:
        raise UsageError(f"--horizon {tokens:,}: the trials already have {trained:,} tokens; use a larger number.")
    if tokens > CHECKED * trained:
        raise UsageError(
            f"--horizon {tokens:,}: is {tokens / trained:.1f} times the {trained:,} tokens trained, but changes of "
            f"order are on record only up to {CHECKED:.1f} times; use at most {int(CHECKED * trained):,}."
        )
    ratio = tokens / trained
    on_plateau = found is not None and found.num_unused > 0
    draws_AB = None if on_plateau else _draws(ranking, ratio)
    flip = None if draws_AB is None or len(draws_AB) < 2 else float(np.mean(draws_AB[1:].min(axis=0) < 0))
    return Horizon(
        tokens=tokens,
        ratio=ratio,
        rows=_rows(ranking, draws_AB),
        flip_probability=flip,
        caveats=_caveats(study, found, ratio),
    )


def _draws(ranking: Ranking, ratio: float) -> Array:
    """Return (A, B) draws of the differences to the present leader at the longer budget."""
    losses_A = np.array([p.loss for p in ranking.pooled])
    errors_AB = np.zeros((len(losses_A), DRAWS))
    if ranking.seeds:
        rng = np.random.default_rng(1)
        degrees_A1 = np.array(ranking.seeds.degrees)[:, None]
        counts_A = np.array([len(p.trials) for p in ranking.pooled])
        scale_A1 = (np.array(ranking.seeds.deviations) / np.sqrt(counts_A))[:, None]
        errors_AB = scale_A1 * rng.standard_t(degrees_A1, errors_AB.shape)
    draws_AB = later_differences(losses_A - losses_A[0], errors_AB - errors_AB[0], ratio)
    draws_AB[0] = 0
    return draws_AB


def _rows(ranking: Ranking, draws_AB: Array | None) -> tuple[dict[str, Any], ...]:
    """Return one row per architecture, in the present order."""
    rows = []
    best_A = None
    if draws_AB is not None and len(draws_AB) > 1:
        best_A = np.bincount(draws_AB.argmin(axis=0), minlength=len(draws_AB)) / draws_AB.shape[1]
    for index, now in enumerate(ranking.first_rows):
        low = high = None
        if draws_AB is not None and index:
            low, high = (float(x) for x in np.quantile(draws_AB[index], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
        rows.append(
            {
                "rank": now["rank"],
                "name": now["name"],
                "loss_now": now["loss"],
                "difference": now["loss"] - ranking.first_rows[0]["loss"],
                "difference_low": low,
                "difference_high": high,
                "probability_best": None if best_A is None else float(best_A[index]),
            }
        )
    return tuple(rows)


def _caveats(study: StudyRecord, found: Regime | None, ratio: float) -> tuple[str, ...]:
    """Return the source and the limitations of the prediction, one sentence each."""
    if found is not None and found.num_unused:
        return (
            f"No interval and no probability: {found.num_unused} of {found.num_measured} architectures do not use "
            "their input yet (context gain near zero). Losses fall by another law once a model leaves that plateau, "
            "and no recorded run shows by how much orders change then. Train longer first.",
        )
    changes = changes_at(ratio)
    sentences = [
        f"The order of today is the prediction. After {ratio:.1f} times the tokens, recorded differences were "
        f"{changes.kept:.0%} of what they had been, in the median. The 95% intervals are from how far they changed on "
        f"{SOURCE}, and cover seed noise. They held for 94% to 99% of held-out pairs.",
    ]
    if found is None or not found.num_measured:
        sentences.append("Context gain was not measured, so a plateau that the models have not left would not show.")
    if study.decay:
        sentences.append(
            f"The learning rate decays ({study.decay}). A longer run decays it later, so compare differences, not "
            "losses."
        )
    return tuple(sentences)
