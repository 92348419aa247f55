"""Hands Optuna a study's trials: one parameter a dimension, known from the start."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from march_search.architecture import CHOICES, Architecture

CARD = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj")
"""Fields that are always Optuna parameters; others are where they vary."""

Wanted = tuple[Architecture, int] | tuple[Architecture, int, float]
"""An architecture, a training seed, and a learning rate where it may be another than the study's own."""


def distributions(architectures: Iterable[Architecture]) -> dict[str, BaseDistribution]:
    """Optuna's range of every dimension that matters among these architectures."""
    shapes = [asdict(a) for a in architectures]
    varying = [f for f in shapes[0] if len({s[f] for s in shapes}) > 1 and all(s[f] is not None for s in shapes)]
    return {axis: _distribution(axis, {s[axis] for s in shapes}) for axis in dict.fromkeys((*CARD, *varying))}


def _distribution(axis: str, values: set[Any]) -> BaseDistribution:
    """The range of one dimension."""
    if axis in CHOICES:
        return CategoricalDistribution(CHOICES[axis])
    if all(type(value) is int for value in values):
        return IntDistribution(min(values), max(values))
    return CategoricalDistribution(sorted(values, key=str))


def enqueue(study: optuna.Study, wanted: Sequence[Wanted], ranges: dict[str, BaseDistribution], own_rate: float) -> int:
    """Adds the trials that the study does not have yet; how many. `own_rate` is the study's own learning rate.

    Only under the study's lock: two that enqueue at once would both add.
    """
    known = {identity(trial, own_rate) for trial in study.get_trials(deepcopy=False)}
    new = [one for one in wanted if (one[0].name, one[1], one[2] if len(one) > 2 else own_rate) not in known]
    for architecture, seed, *rate in new:
        told = {"learning_rate": rate[0]} if rate and rate[0] != own_rate else {}
        add(study, architecture, seed, ranges, **told)
    return len(new)


def add(
    study: optuna.Study, architecture: Architecture, seed: int, ranges: dict[str, BaseDistribution], **told: Any
) -> None:
    """Adds one trial."""
    attrs = {"architecture": architecture.name, "seed": seed, "num_params": architecture.num_params, **told}
    params = {axis: getattr(architecture, axis) for axis in ranges}
    study.add_trial(create_trial(state=TrialState.WAITING, params=params, distributions=ranges, user_attrs=attrs))


def repeat(study: optuna.Study, trial: FrozenTrial, **told: Any) -> None:
    """Adds a trial of the same architecture as `trial`, which may have other attributes."""
    kept = {key: trial.user_attrs[key] for key in ("architecture", "seed", "num_params", "learning_rate")
            if key in trial.user_attrs}  # fmt: skip
    study.add_trial(
        create_trial(
            state=TrialState.WAITING, params=trial.params, distributions=trial.distributions, user_attrs=kept | told
        )
    )


def identity(trial: FrozenTrial, own_rate: float) -> tuple[Any, Any, float]:
    """What makes a trial another than those before; one that says no learning rate has the study's own."""
    told = trial.user_attrs
    return told.get("architecture"), told.get("seed"), told.get("learning_rate", own_rate)
