"""How early the final order was already there: each evaluation's order against the last one's."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from march_search.evidence.noise import Array
from march_search.evidence.pooling import Pooled

LATE = 2 / 3
"""Share of training from which on curves that cross are counted: its last third."""


@dataclass(frozen=True)
class Rung:
    """One evaluation that all architectures had."""

    tokens: int
    share: float
    """Of the data budget."""
    kendall: float
    """Rank correlation with the final order (Kendall's tau-b)."""
    spearman: float
    """Spearman's."""
    regret: float
    """Final loss of the architecture that leads here, less the lowest, in nats."""


def shared_curves(pooled: Sequence[Pooled]) -> tuple[list[int], Array]:
    """Tokens of the evaluations that all have, and losses (architectures, evaluations)."""
    curves = [dict(p.curve) for p in pooled]
    tokens = sorted(set.intersection(*(set(c) for c in curves))) if curves else []
    return tokens, np.array([[c[t] for t in tokens] for c in curves])


def rungs(pooled: Sequence[Pooled]) -> tuple[Rung, ...]:
    """All shared evaluations but the last, in order; none with fewer than three architectures."""
    tokens, losses = shared_curves(pooled)
    if len(pooled) < 3 or len(tokens) < 2:
        return ()
    last, found = losses[:, -1], []
    for place, seen in enumerate(tokens[:-1]):
        here = losses[:, place]
        if len(set(here)) == 1 or len(set(last)) == 1:
            continue  # no order to compare
        regret = float(last[here.argmin()] - last.min())
        found.append(Rung(seen, seen / tokens[-1], kendall(here, last), spearman(here, last), regret))
    return tuple(found)


def kendall(x: Array, y: Array) -> float:
    """Kendall's tau-b; scipy.stats has it too, and takes longer to import than all of `rank`."""
    x_AA, y_AA = np.sign(np.subtract.outer(x, x)), np.sign(np.subtract.outer(y, y))
    return float((x_AA * y_AA).sum() / np.sqrt((x_AA**2).sum() * (y_AA**2).sum()))


def spearman(x: Array, y: Array) -> float:
    """Spearman's rho: the correlation of ranks, equal values sharing theirs."""
    ranks = [np.sign(np.subtract.outer(one, one)).sum(axis=1) for one in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def enough(found: Sequence[Rung], tolerance: float) -> Rung | None:
    """The first rung from which on the leader is, within `tolerance` nats, the final one; None if there is none."""
    last_wrong = max((n for n, rung in enumerate(found) if rung.regret > tolerance), default=-1)
    return found[last_wrong + 1] if last_wrong + 1 < len(found) else None


def crossings(pooled: Sequence[Pooled]) -> tuple[tuple[int, int], ...]:
    """Pairs (places in the order given) whose order changed in the last third of training."""
    tokens, losses = shared_curves(pooled)
    late = [place for place, seen in enumerate(tokens) if seen >= LATE * tokens[-1]]
    pairs = itertools.combinations(range(len(pooled)), 2)
    return tuple((i, k) for i, k in pairs if len(set(np.sign(losses[i, late] - losses[k, late])) - {0.0}) > 1)
