"""The default search strategy: synchronous successive halving on rungs, a rule that needs no order and no tuning."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Rungs:
    """All candidates train to the first rung; the best share goes on to the next, from its checkpoint, and so on.

    A rung is decided once every candidate on it has reached it or failed, so neither the order of the trials nor the
    number of workers changes what is promoted (Jamieson and Talwalkar 2016, without the asynchrony of Li et al. 2020).
    """

    fractions: tuple[float, ...] = (0.02, 0.06, 0.2, 1.0)
    """Rungs as shares of a trial's data budget, ascending, the last 1."""
    keep: float = 1 / 3
    """Share of a rung's candidates that is promoted, rounded up, at least one."""

    def promoted(self, losses: Mapping[Key, float | None]) -> tuple[Key, ...]:
        """Which of a rung's candidates go on, lowest loss first; None or a loss that is not finite is a failure.

        Failures count among the candidates of the rung, whose share is then filled by the next best. Equal losses keep
        the mapping's order.
        """
        finite = {key: loss for key, loss in losses.items() if loss is not None and math.isfinite(loss)}
        many = max(1, math.ceil(len(losses) * self.keep - 1e-9))
        return tuple(sorted(finite, key=lambda key: finite[key])[:many])
