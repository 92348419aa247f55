"""Convert between members of a feasible set and Optuna parameters, one integer or category per axis."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import Trial

from march_search.architecture.architecture import Architecture
from march_search.errors import ConfigError
from march_search.sampler.neighbours import Neighbours
from march_search.space.axes import AXES

SHAPE_AXES = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj")
"""Axes that are always parameters of a trial; the others are parameters only if they vary."""


class Dimensions:
    """Axes of one feasible set as Optuna parameters, with cached distributions."""

    def __init__(self, neighbours: Neighbours, listed: Iterable[Architecture] = ()) -> None:
        """Use the axes of the members of `neighbours` and of the `listed` architectures, which need not be members."""
        self._neighbours, self._listed = neighbours, tuple(listed)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna distribution of every axis over the values that occur, the same for the whole study."""
        return {axis: _distribution(self._values(axis)) for axis in AXES}

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Parameters that `suggest` records; decoder layers only if their number may differ from the encoder's, and
        key/value heads only if theirs may differ from that of all heads."""
        combinations, listed = self._neighbours.found.combinations, self._listed
        equal = all(c.depth == c.outer["num_layers"] for c in combinations)
        equal = equal and all(a.decoder_layers == a.num_layers for a in listed)
        follow = {"num_decoder_layers"} if equal else set()
        if not self._neighbours.found.space.has_groups and all(a.num_key_value_heads is None for a in listed):
            follow.add("num_key_value_heads")
        varying = [a for a in AXES if not self.distributions[a].single() and a not in follow]
        return tuple(a for a in AXES if a in SHAPE_AXES or a in varying)

    def suggest(self, trial: Trial) -> Architecture:
        """Record the parameters of `trial` and return its architecture."""
        for axis in self.axes:
            distribution = self.distributions[axis]
            if isinstance(distribution, IntDistribution):
                trial.suggest_int(axis, distribution.low, distribution.high, step=distribution.step)
            elif isinstance(distribution, CategoricalDistribution):
                trial.suggest_categorical(axis, distribution.choices)
        return self.architecture(trial.params)

    def params(self, a: Architecture) -> dict[str, Any]:
        """Return an architecture as the parameters of a trial."""
        return {axis: axis_value(a, axis) for axis in self.axes}

    def holds(self, a: Architecture) -> bool:
        """Return whether the distributions contain all of the architecture's parameters; only `axes` are checked."""
        return all(_has(self.distributions[axis], axis_value(a, axis)) for axis in self.axes)

    def architecture(self, params: Mapping[str, Any]) -> Architecture:
        """Return the architecture for a trial's parameters; a missing axis gets its only value.

        Raises:
            ConfigError: If an axis that varies is missing.
            ArchitectureError: If the values do not form a valid architecture.
        """
        missing = [axis for axis in self.axes if axis not in params and not self.distributions[axis].single()]
        if missing:
            raise ConfigError(f"missing parameter {missing[0]}: it varies in this feasible set; set its value.")
        values = {axis: params.get(axis, _first(self.distributions[axis])) for axis in AXES}
        equal_depths = "num_decoder_layers" not in {*params, *self.axes}
        if values["structure"] == "decoder-only" or equal_depths:
            values["num_decoder_layers"] = None
        if "num_key_value_heads" not in {*params, *self.axes} and not self._neighbours.found.space.has_groups:
            values["num_key_value_heads"] = None
        if values["bottleneck"] == "none":
            values["d_bottleneck"] = None
        return Architecture(**values)

    def _values(self, axis: str) -> list[Any]:
        """Return the values of an axis, those of the listed architectures last."""
        return list(dict.fromkeys([*self._neighbours.values(axis), *(axis_value(a, axis) for a in self._listed)]))


def axis_value(a: Architecture, axis: str) -> Any:
    """Return the value of an axis as a parameter: layers and heads as integers, 0 for no bottleneck."""
    if axis == "num_decoder_layers":
        return a.decoder_layers
    if axis == "num_key_value_heads":
        return a.key_value_heads
    return 0 if axis == "d_bottleneck" and a.d_bottleneck is None else getattr(a, axis)


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """Return the integer range, or the categories, of these values."""
    if not all(type(value) is int for value in values):
        return CategoricalDistribution(tuple(values))
    step = math.gcd(*(value - min(values) for value in values))
    return IntDistribution(min(values), max(values), step=max(step, 1))


def _has(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a distribution contains a value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution)
    return type(value) is int and value in range(distribution.low, distribution.high + 1, distribution.step)


def _first(distribution: BaseDistribution) -> Any:
    """Return the first value of a distribution."""
    return distribution.low if isinstance(distribution, IntDistribution) else distribution.choices[0]  # type: ignore[attr-defined]
