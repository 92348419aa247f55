"""Optuna sampler over a feasible set: another sampler proposes values, this one tries the nearest untried member.

A proposal is a point of the whole grid. Optuna records the values of the member instead, so the other sampler learns
from what was really tried. Until the other sampler can propose, as at the start, members are drawn uniformly.
"""

import contextlib
import logging
import random
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from march_search.architecture.architecture import Architecture
from march_search.config import ADAPTIVE
from march_search.errors import ConfigError, EmptySetError, nearest
from march_search.sampler.dimensions import Dimensions, axis_value
from march_search.sampler.neighbours import Neighbours
from march_search.space.axes import AXES
from march_search.space.feasible_set import FeasibleSet

_LOGGER = logging.getLogger(__name__)

ARCHITECTURE = "architecture"
"""User attribute of a trial that holds the name of its architecture."""


class FeasibleSampler(BaseSampler):
    """Optuna sampler over a feasible set that remembers which members the study has tried."""

    def __init__(
        self,
        found: FeasibleSet,
        inner: BaseSampler | str = "tpe",
        seed: int = 0,
        replicates: int = 1,
        listed: Iterable[Architecture] = (),
    ) -> None:
        """Create a sampler of `found`.

        Args:
            found: The feasible set.
            inner: One of `config.ADAPTIVE` or any Optuna sampler; it proposes values. "random" draws uniformly.
            seed: Seed of the draws, and of a sampler given by name.
            replicates: How many trials may have the same architecture.
            listed: Architectures that are enqueued as well. The distributions cover them even if they are not members.

        Raises:
            EmptySetError: If `found` is empty.
            ConfigError: If the sampler is unknown or needs a package that is not installed.
        """
        if not len(found):
            raise EmptySetError(f"nothing to sample: no architecture has {found.condition}.")
        self.found, self.replicates, self._seed = found, replicates, seed
        self.inner = make_sampler(inner, seed) if isinstance(inner, str) else inner
        self._neighbours = Neighbours(found)
        self.dimensions, self._lock = Dimensions(self._neighbours, listed), threading.RLock()
        self._numbers: dict[str, int | None] = {}
        self._ended = False

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna distribution of every axis over the values of all members; constant for the whole study."""
        return self.dimensions.distributions

    def suggest(self, trial: Trial) -> Architecture:
        """Return the architecture for `trial` and record its parameters.

        Raises:
            optuna.TrialPruned: If every member has been tried; `study.optimize` then ends.
        """
        if not set(AXES) <= set(trial.relative_params):
            raise self._exhausted(trial.storage.get_trial_system_attrs(trial._trial_id))
        return self.dimensions.suggest(trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all axes, and what else the inner sampler varies, such as a learning rate."""
        return self.inner.infer_relative_search_space(study, trial) | self.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values of the member to try; no axis values if no member is left."""
        fixed = {k: v for k, v in trial.system_attrs.get("fixed_params", {}).items() if k in AXES}
        with self._lock:
            proposed = self._propose(study, trial)
            others = {name: value for name, value in proposed.items() if name not in AXES}
            if set(self.dimensions.axes) <= set(fixed):  # a complete enqueued shape, member or not
                chosen: Architecture | None = self.dimensions.architecture(fixed)
            else:
                chosen = self._claim(study, trial, {k: v for k, v in proposed.items() if k in AXES}, fixed)
        return others if chosen is None else others | {axis: axis_value(chosen, axis) for axis in AXES}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Leave parameters that are not axes to the inner sampler.

        Raises:
            optuna.TrialPruned: If every member has been tried.
            ConfigError: If a requested range does not contain the member's value.
        """
        if param_name not in AXES:
            return self.inner.sample_independent(study, trial, param_name, param_distribution)
        name = study._storage.get_trial(trial._trial_id).user_attrs.get(ARCHITECTURE)
        if not name:
            raise self._exhausted(trial.system_attrs)
        raise ConfigError(
            f"the range given for {param_name}, {param_distribution}, does not contain the value of {name}: use "
            f'sampler.distributions["{param_name}"], or call sampler.suggest(trial).'
        )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Notify the inner sampler."""
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Notify the inner sampler."""
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Reseed the inner sampler, so that each thread draws different values."""
        self.inner.reseed_rng()

    def _stop(self, study: optuna.Study) -> None:
        """End `study.optimize` after the running trials, with one message; outside of `study.optimize`, do nothing."""
        try:
            study.stop()
        except RuntimeError:
            return
        if not self._ended:
            self._ended, times = True, f" {self.replicates} times each" if self.replicates > 1 else ""
            _LOGGER.warning(
                f"All {len(self.found):,} feasible architectures are taken{times}: the study ends after the running "
                "trials. For more, widen the space or the tolerance, or set replicates."
            )

    def _exhausted(self, attrs: Mapping[str, Any]) -> optuna.TrialPruned:
        """Return the exception for a trial when no untried member is left."""
        if fixed := attrs.get("fixed_params"):
            return optuna.TrialPruned(f"every feasible architecture with {_listed(fixed)} has been tried.")
        return optuna.TrialPruned(f"all {len(self.found):,} feasible architectures have been tried.")

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return the inner sampler's proposal; empty if it has none yet."""
        known = any(t.state.is_finished() and t.params for t in study.get_trials(deepcopy=False))
        space = self.inner.infer_relative_search_space(study, trial)
        if space:
            return self.inner.sample_relative(study, trial, space)
        if not known or isinstance(self.inner, optuna.samplers.RandomSampler):
            return {}
        varying = ((a, self.distributions[a]) for a in self.dimensions.axes if not self.distributions[a].single())
        return {axis: self.inner.sample_independent(study, trial, axis, values) for axis, values in varying}

    def _claim(
        self, study: optuna.Study, trial: FrozenTrial, proposed: dict[str, Any], fixed: dict[str, Any]
    ) -> Architecture | None:
        """Return the member to try and claim it, so that no other process tries it; None if none is left.

        If two processes claim the same member, the one that reads last sees both claims and withdraws.
        """
        while True:
            taken = self._taken(study, trial)
            number = self._choose(trial, proposed, fixed, {n for n, k in taken.items() if k >= self.replicates})
            if number is None:
                if not fixed:
                    self._stop(study)
                return None
            chosen = self.found[number]
            self._numbers[chosen.name] = number
            study._storage.set_trial_user_attr(trial._trial_id, ARCHITECTURE, chosen.name)
            taken = self._taken(study, trial)
            if taken[number] < self.replicates:
                if sum(min(k, self.replicates) for k in taken.values()) + 1 >= self.replicates * len(self.found):
                    self._stop(study)  # this was the last member
                return chosen
            study._storage.set_trial_user_attr(trial._trial_id, ARCHITECTURE, "")
            time.sleep(random.random() * 0.05)  # so that the two do not collide again

    def _choose(
        self, trial: FrozenTrial, proposed: dict[str, Any], fixed: dict[str, Any], tried: set[int]
    ) -> int | None:
        """Return the index of the nearest untried member, or a random one without a proposal; None if none is left."""
        if not proposed:
            rng = np.random.default_rng([self._seed, trial.number])
            if not fixed:
                return self._any(rng, tried)
            start = self.found[int(rng.integers(len(self.found)))]
            proposed = {axis: axis_value(start, axis) for axis in self.dimensions.axes}
        number = self._neighbours.nearest(proposed, tried, fixed)
        if number is None and self._neighbours.nearest(proposed, (), fixed) is None:
            raise ConfigError(f"no feasible architecture has {_listed(fixed)}, which the enqueued trial requires.")
        return number

    def _any(self, rng: np.random.Generator, tried: set[int]) -> int | None:
        """Return the index of an untried member, drawn uniformly; None if none is left."""
        if 2 * len(tried) >= len(self.found):
            left = np.setdiff1d(np.arange(len(self.found)), np.fromiter(tried, dtype=np.int64, count=len(tried)))
            return int(rng.choice(left)) if len(left) else None
        return next(n for n in iter(lambda: int(rng.integers(len(self.found))), None) if n not in tried)

    def _taken(self, study: optuna.Study, trial: FrozenTrial) -> Counter[int]:
        """Return how many other trials of the study use each member, in any state."""
        names = (self._name(t) for t in study.get_trials(deepcopy=False) if t.number != trial.number)
        return Counter(n for n in (self._number(name) for name in names if name) if n is not None)

    def _name(self, trial: FrozenTrial) -> str | None:
        """Return the name of a trial's architecture, from its attribute or else its parameters."""
        if ARCHITECTURE in trial.user_attrs:
            return str(trial.user_attrs[ARCHITECTURE])
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        if not set(self.dimensions.axes) <= set(params):
            return None
        with contextlib.suppress(ValueError):
            return self.dimensions.architecture(params).name
        return None

    def _number(self, name: str) -> int | None:
        """Return the index of the member with this name; None if the shape is not a member."""
        if name not in self._numbers:
            try:
                self._numbers[name] = self.found.index(Architecture.parse(name))
            except ValueError:
                self._numbers[name] = None
        return self._numbers[name]


def _listed(values: Mapping[str, Any]) -> str:
    """Return the values as text, such as `d_model = 65, num_layers = 2`."""
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Return one of Optuna's samplers, with its arguments set explicitly.

    Raises:
        ConfigError: If the sampler is unknown or needs a package that is not installed.
    """
    samplers = optuna.samplers
    with warnings.catch_warnings():  # the user chose this experimental sampler by name
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "qmc":
            return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    if name == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=10, multivariate=True, constant_liar=True)
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=10)
    if name == "cmaes":
        try:
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)
        except ImportError:
            raise ConfigError('the sampler "cmaes" needs the package cmaes: pip install cmaes.') from None
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    raise ConfigError(f'unknown sampler "{name}". {nearest(name, ADAPTIVE)}')
