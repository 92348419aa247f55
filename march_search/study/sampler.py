"""An Optuna sampler that tries feasible architectures only, each once: another sampler proposes, this one projects.

The proposal is a point of the whole grid; what is tried is the nearest member that no trial of the study has. Optuna
records the member's values, so the other sampler learns from what was really tried. Where it has nothing to say yet, as
at the start, members are drawn uniformly.
"""

import contextlib
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

from march_search.architecture import Architecture
from march_search.config import ADAPTIVE
from march_search.errors import ConfigError, EmptySetError
from march_search.settings import nearest
from march_search.solver import FeasibleSet
from march_search.space import AXES
from march_search.study.dimensions import Dimensions, axis_value
from march_search.study.neighbours import Neighbours

ARCHITECTURE = "architecture"
"""User attribute of a trial: the name of the architecture that it tries."""


class FeasibleSampler(BaseSampler):
    """Optuna's interface over a feasible set, with a memory of what the study has tried."""

    def __init__(
        self,
        found: FeasibleSet,
        inner: BaseSampler | str = "tpe",
        seed: int = 0,
        replicates: int = 1,
        listed: Iterable[Architecture] = (),
    ) -> None:
        """A sampler of `found`.

        Args:
            found: what may be tried.
            inner: one of `config.ADAPTIVE` or any sampler of Optuna's, which proposes. "random" draws uniformly.
            seed: of the draws, and of a sampler given by name.
            replicates: how many trials may have the same architecture.
            listed: architectures that are enqueued too, perhaps no members, which the distributions then hold.

        Raises:
            EmptySetError: `found` is empty.
            ConfigError: no such sampler, or it needs a package that is not there.
        """
        if not len(found):
            raise EmptySetError(f"there is nothing to sample: no architecture has {found.budget}.")
        self.found, self.replicates, self._seed = found, replicates, seed
        self.inner = make_sampler(inner, seed) if isinstance(inner, str) else inner
        self._neighbours = Neighbours(found)
        self.dimensions, self._lock = Dimensions(self._neighbours, listed), threading.RLock()
        self._numbers: dict[str, int | None] = {}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every axis, the same over the whole study: the values that members have."""
        return self.dimensions.distributions

    def suggest(self, trial: Trial) -> Architecture:
        """The architecture that `trial` is to try, its parameters recorded.

        Raises:
            optuna.TrialPruned: every member has been tried; `study.optimize` then ends.
        """
        if not set(AXES) <= set(trial.relative_params):
            raise self._exhausted(trial.storage.get_trial_system_attrs(trial._trial_id))
        return self.dimensions.suggest(trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every axis, and what else the inner sampler knows, a learning rate say."""
        return self.inner.infer_relative_search_space(study, trial) | self.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The values of the member that is tried; none if none is left."""
        fixed = {k: v for k, v in trial.system_attrs.get("fixed_params", {}).items() if k in AXES}
        with self._lock:
            proposed = self._propose(study, trial)
            others = {name: value for name, value in proposed.items() if name not in AXES}
            if set(self.dimensions.axes) <= set(fixed):  # enqueued as a whole, a member or not
                chosen: Architecture | None = self.dimensions.architecture(fixed)
            else:
                chosen = self._claim(study, trial, {k: v for k, v in proposed.items() if k in AXES}, fixed)
        return others if chosen is None else others | {axis: axis_value(chosen, axis) for axis in AXES}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What has nothing to do with the shape is the inner sampler's.

        Raises:
            optuna.TrialPruned: every member has been tried.
            ConfigError: a range was asked for that lacks the member's value.
        """
        if param_name not in AXES:
            return self.inner.sample_independent(study, trial, param_name, param_distribution)
        name = study._storage.get_trial(trial._trial_id).user_attrs.get(ARCHITECTURE)
        if not name:
            raise self._exhausted(trial.system_attrs)
        raise ConfigError(
            f"the range given for {param_name}, {param_distribution}, lacks the value of {name}: take it from "
            f'sampler.distributions["{param_name}"], or call sampler.suggest(trial).'
        )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tells the inner sampler."""
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tells the inner sampler."""
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Has the inner sampler draw something else in each thread."""
        self.inner.reseed_rng()

    def _exhausted(self, attrs: Mapping[str, Any]) -> optuna.TrialPruned:
        """What a trial is told when no member is left for it."""
        if fixed := attrs.get("fixed_params"):
            return optuna.TrialPruned(f"every feasible architecture with {_listed(fixed)} has been tried.")
        return optuna.TrialPruned(f"every one of the {len(self.found):,} feasible architectures has been tried.")

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """What the inner sampler would try; empty if it has no opinion yet."""
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
        """The member that is tried, written down so that no other process tries it too; None if none is left.

        Of two processes that claim one member, whichever reads last sees both claims and withdraws.
        """
        while True:
            taken = self._taken(study, trial)
            number = self._choose(trial, proposed, fixed, {n for n, k in taken.items() if k >= self.replicates})
            if number is None:
                if not fixed:
                    _stop(study)
                return None
            chosen = self.found[number]
            self._numbers[chosen.name] = number
            study._storage.set_trial_user_attr(trial._trial_id, ARCHITECTURE, chosen.name)
            taken = self._taken(study, trial)
            if taken[number] < self.replicates:
                if sum(min(k, self.replicates) for k in taken.values()) + 1 >= self.replicates * len(self.found):
                    _stop(study)  # this was the last one
                return chosen
            study._storage.set_trial_user_attr(trial._trial_id, ARCHITECTURE, "")
            time.sleep(random.random() * 0.05)  # so that the two do not meet again

    def _choose(
        self, trial: FrozenTrial, proposed: dict[str, Any], fixed: dict[str, Any], tried: set[int]
    ) -> int | None:
        """The number of the nearest untried member, or of any where nothing is proposed; None if none is left."""
        if not proposed:
            rng = np.random.default_rng([self._seed, trial.number])
            if not fixed:
                return self._any(rng, tried)
            start = self.found[int(rng.integers(len(self.found)))]
            proposed = {axis: axis_value(start, axis) for axis in self.dimensions.axes}
        number = self._neighbours.nearest(proposed, tried, fixed)
        if number is None and self._neighbours.nearest(proposed, (), fixed) is None:
            raise ConfigError(f"no feasible architecture has {_listed(fixed)}, as the enqueued trial asks.")
        return number

    def _any(self, rng: np.random.Generator, tried: set[int]) -> int | None:
        """One of the members not tried, uniformly."""
        if 2 * len(tried) >= len(self.found):
            left = np.setdiff1d(np.arange(len(self.found)), np.fromiter(tried, dtype=np.int64, count=len(tried)))
            return int(rng.choice(left)) if len(left) else None
        return next(n for n in iter(lambda: int(rng.integers(len(self.found))), None) if n not in tried)

    def _taken(self, study: optuna.Study, trial: FrozenTrial) -> Counter[int]:
        """How many other trials of the study each member has, whatever came of them."""
        names = (self._name(t) for t in study.get_trials(deepcopy=False) if t.number != trial.number)
        return Counter(n for n in (self._number(name) for name in names if name) if n is not None)

    def _name(self, trial: FrozenTrial) -> str | None:
        """The architecture of a trial, as it says or as its parameters do."""
        if ARCHITECTURE in trial.user_attrs:
            return str(trial.user_attrs[ARCHITECTURE])
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        if not set(self.dimensions.axes) <= set(params):
            return None
        with contextlib.suppress(ValueError):
            return self.dimensions.architecture(params).name
        return None

    def _number(self, name: str) -> int | None:
        """The number of the member of that name; None for a shape that is none."""
        if name not in self._numbers:
            try:
                self._numbers[name] = self.found.index(Architecture.parse(name))
            except ValueError:
                self._numbers[name] = None
        return self._numbers[name]


def _stop(study: optuna.Study) -> None:
    """Ends `study.optimize` after the trials that run; a study that is not in it cannot be stopped."""
    with contextlib.suppress(RuntimeError):
        study.stop()


def _listed(values: Mapping[str, Any]) -> str:
    """`d_model = 65, num_layers = 2`."""
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def make_sampler(name: str, seed: int) -> BaseSampler:
    """One of Optuna's samplers, its arguments written out.

    Raises:
        ConfigError: no such sampler, or it needs a package that is not there.
    """
    samplers = optuna.samplers
    with warnings.catch_warnings():  # an experiment of Optuna's that whoever names it has asked for
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
            raise ConfigError('the sampler "cmaes" needs a package: pip install cmaes.') from None
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    raise ConfigError(f'there is no sampler "{name}". {nearest(name, ADAPTIVE)}')
