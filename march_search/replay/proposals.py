"""In which order a strategy gets to see the runs: at random, or as Optuna's TPE would try them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from march_search.architecture import Architecture


class Proposals(Iterator[int]):
    """Runs of a table, each once; an interface that `Random` and `Tpe` share."""

    def tell(self, run: int, loss: float) -> None:
        """The last loss of a run that has ended."""


class Random(Proposals):
    """A random order."""

    def __init__(self, count: int, seed: int) -> None:
        """An order of `count` runs."""
        self._left = iter(np.random.default_rng(seed).permutation(count).tolist())

    def __next__(self) -> int:
        return int(next(self._left))


class Tpe(Proposals):
    """The untried run nearest to what TPE proposes, as `FeasibleSampler` does with a space's feasible set."""

    def __init__(self, architectures: Sequence[Architecture], seed: int) -> None:
        """Proposals among `architectures`, over the fields in which they differ."""
        shapes = [asdict(a) for a in architectures]
        self._fields = [f for f in shapes[0] if len({s[f] for s in shapes}) > 1]
        self._shapes = [{f: s[f] for f in self._fields} for s in shapes]
        self._distributions = {f: _distribution([s[f] for s in shapes]) for f in self._fields}
        self._left = dict.fromkeys(range(len(shapes)))
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))

    def __next__(self) -> int:
        if not self._left:
            raise StopIteration
        trial = self._study.ask(self._distributions)
        run = min(
            self._left, key=lambda r: sum(self._apart(f, trial.params[f], self._shapes[r][f]) for f in self._fields)
        )
        del self._left[run]
        return run

    def tell(self, run: int, loss: float) -> None:
        """TPE learns from the run's own fields, not from those it proposed."""
        told = optuna.create_trial(params=self._shapes[run], distributions=self._distributions, value=loss)
        self._study.add_trial(told)

    def _apart(self, field: str, one: Any, other: Any) -> float:
        """Distance of two values, 1 for the ends of a range or for different choices."""
        distribution = self._distributions[field]
        if isinstance(distribution, IntDistribution):
            return abs(int(one) - int(other)) / (distribution.high - distribution.low)
        return float(one != other)


def _distribution(values: list[Any]) -> BaseDistribution:
    """Optuna's distribution of a field's values."""
    if all(type(value) is int for value in values):
        return IntDistribution(min(values), max(values))
    return CategoricalDistribution(sorted(set(values), key=str))
