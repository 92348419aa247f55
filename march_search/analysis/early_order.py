"""Measure how early the final order was visible: compare the order at each evaluation with the last."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from march_search.analysis.noise import Array
from march_search.analysis.pooling import Pooled

LATE = 2 / 3
"""Share of training after which crossing curves are counted: the last third."""


@dataclass(frozen=True, kw_only=True)
class EarlyOrder:
    """One evaluation that all architectures share."""

    tokens: int
    share: float
    """Share of the data budget."""
    kendall: float
    """Rank correlation with the final order (Kendall's tau-b)."""
    spearman: float
    """Rank correlation with the final order (Spearman's rho)."""
    regret: float
    """Final loss of the architecture that leads here minus the lowest final loss, in nats."""


def shared_curves(pooled: Sequence[Pooled]) -> tuple[list[int], Array]:
    """Return the tokens of the shared evaluations and the losses (architectures, evaluations)."""
    curves = [dict(p.curve) for p in pooled]
    tokens = sorted(set.intersection(*(set(c) for c in curves))) if curves else []
    return tokens, np.array([[c[t] for t in tokens] for c in curves])


def early_orders(pooled: Sequence[Pooled]) -> tuple[EarlyOrder, ...]:
    """Return all shared evaluations but the last, in order; empty with fewer than three architectures."""
    tokens, losses = shared_curves(pooled)
    if len(pooled) < 3 or len(tokens) < 2:
        return ()
    from scipy.stats import kendalltau, spearmanr

    last, results = losses[:, -1], []
    for column, seen in enumerate(tokens[:-1]):
        here = losses[:, column]
        if len(set(here)) == 1 or len(set(last)) == 1:
            continue  # all losses are equal
        regret = float(last[here.argmin()] - last.min())
        results.append(
            EarlyOrder(
                tokens=seen,
                share=seen / tokens[-1],
                kendall=float(kendalltau(here, last)[0]),
                spearman=float(spearmanr(here, last)[0]),
                regret=regret,
            )
        )
    return tuple(results)


def enough(found: Sequence[EarlyOrder], tolerance: float) -> EarlyOrder | None:
    """Return the first evaluation from which on the leader's final loss stays within `tolerance` nats of the lowest.

    None if there is none.
    """
    last_wrong = max((n for n, rung in enumerate(found) if rung.regret > tolerance), default=-1)
    return found[last_wrong + 1] if last_wrong + 1 < len(found) else None


def crossings(pooled: Sequence[Pooled]) -> tuple[tuple[int, int], ...]:
    """Return the pairs, by index, whose order changed in the last third of training."""
    tokens, losses = shared_curves(pooled)
    late = [column for column, seen in enumerate(tokens) if seen >= LATE * tokens[-1]]
    pairs = itertools.combinations(range(len(pooled)), 2)
    return tuple((i, k) for i, k in pairs if len(set(np.sign(losses[i, late] - losses[k, late])) - {0.0}) > 1)
