"""A feasible set as Optuna's parameters: one whole number or word for each axis, and back to an architecture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import Trial

from march_search.architecture import Architecture
from march_search.errors import ConfigError
from march_search.space import AXES
from march_search.study.neighbours import Neighbours

CARD = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj")
"""Axes that are always parameters of a trial; others are where they vary."""


class Dimensions:
    """The axes of one set; a class because its distributions are made once."""

    def __init__(self, neighbours: Neighbours, listed: Iterable[Architecture] = ()) -> None:
        """The axes of the members that `neighbours` knows, and of the `listed` architectures, which may be others."""
        self._neighbours, self._listed = neighbours, tuple(listed)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every axis, the same over the whole study: the values that occur."""
        return {axis: _distribution(self._values(axis)) for axis in AXES}

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The parameters that `suggest` records; decoder layers only where they are not the encoder's."""
        combinations, listed = self._neighbours.found.combinations, self._listed
        equal = all(c.depth == c.outer["num_layers"] for c in combinations)
        equal = equal and all(a.decoder_layers == a.num_layers for a in listed)
        varying = [a for a in AXES if not self.distributions[a].single() and not (equal and a == "num_decoder_layers")]
        return tuple(a for a in AXES if a in CARD or a in varying)

    def suggest(self, trial: Trial) -> Architecture:
        """The architecture that `trial` is to try, its parameters recorded."""
        for axis in self.axes:
            distribution = self.distributions[axis]
            if isinstance(distribution, IntDistribution):
                trial.suggest_int(axis, distribution.low, distribution.high, step=distribution.step)
            elif isinstance(distribution, CategoricalDistribution):
                trial.suggest_categorical(axis, distribution.choices)
        return self.architecture(trial.params)

    def params(self, a: Architecture) -> dict[str, Any]:
        """An architecture as the parameters of a trial."""
        return {axis: axis_value(a, axis) for axis in self.axes}

    def holds(self, a: Architecture) -> bool:
        """Whether every parameter has a value of its distribution; what does not vary here may be another."""
        return all(_has(self.distributions[axis], axis_value(a, axis)) for axis in self.axes)

    def architecture(self, params: Mapping[str, Any]) -> Architecture:
        """The architecture of a trial's parameters; axes that are missing have their only value.

        Raises:
            ConfigError: one is missing that varies.
            ArchitectureError: they are no transformer.
        """
        missing = [axis for axis in self.axes if axis not in params and not self.distributions[axis].single()]
        if missing:
            raise ConfigError(f"the parameters lack {missing[0]}, which varies in this feasible set.")
        values = {axis: params.get(axis, _first(self.distributions[axis])) for axis in AXES}
        equal_depths = "num_decoder_layers" not in {*params, *self.axes}
        if values["structure"] == "decoder-only" or equal_depths:
            values["num_decoder_layers"] = None
        if values["bottleneck"] == "none":
            values["d_bottleneck"] = None
        return Architecture(**values)

    def _values(self, axis: str) -> list[Any]:
        """Values of an axis, those of the listed shapes last."""
        return list(dict.fromkeys([*self._neighbours.values(axis), *(axis_value(a, axis) for a in self._listed)]))


def axis_value(a: Architecture, axis: str) -> Any:
    """The value of an axis as a parameter: layers of the decoder as a number, 0 for no bottleneck."""
    if axis == "num_decoder_layers":
        return a.decoder_layers
    return 0 if axis == "d_bottleneck" and a.d_bottleneck is None else getattr(a, axis)


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """The range of whole numbers, or the words, that these values are."""
    if not all(type(value) is int for value in values):
        return CategoricalDistribution(tuple(values))
    step = math.gcd(*(value - min(values) for value in values))
    return IntDistribution(min(values), max(values), step=max(step, 1))


def _has(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution has a value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution)
    return type(value) is int and value in range(distribution.low, distribution.high + 1, distribution.step)


def _first(distribution: BaseDistribution) -> Any:
    """The first value of a distribution."""
    return distribution.low if isinstance(distribution, IntDistribution) else distribution.choices[0]  # type: ignore[attr-defined]
