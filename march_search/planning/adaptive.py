"""Choose the next trial of a study that uses one of Optuna's samplers, at the time a worker can start it.

The sampler sees an in-memory view of the study with one trial per architecture, whatever its seeds and learning rates:

- complete: its loss is the mean over seeds at the best learning rate.
- running, also if it waits to start: parallel workers get different proposals (constant liar).
- pruned, also if it is paused on a rung: it has its loss at each evaluation. TPE ranks pruned trials below all complete
  ones, by tokens reached, then by loss. Other samplers, and TPE with several objectives, do not use pruned trials and
  get the last loss instead, an upper bound of the final loss.

Warm-start results appear only in the view.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from march_search.analysis.pooling import best_rates
from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig
from march_search.cost.measures import objective_value
from march_search.planning.candidates import Candidates, Planned, how_many, rates
from march_search.planning.warm_start import Prior
from march_search.sampler.feasible_sampler import ARCHITECTURE, FeasibleSampler, make_sampler
from march_search.storage.trials import trial_identity

REMEMBERS = ("cmaes", "qmc")
"""Samplers whose state depends on their past proposals, which the view therefore replays in order."""


@dataclass(frozen=True)
class NextTrial:
    """Source of a study's next trial."""

    ask: Callable[[optuna.Study], Planned | None]
    ranges: dict[str, BaseDistribution]
    """Distribution of every dimension, the same for all trials."""
    total: int
    """Number of trials that the study will have, over all seeds and learning rates."""

    def __call__(self, study: optuna.Study) -> Planned | None:
        """Return the next trial; None if the study has enough trials."""
        return self.ask(study)


def next_trial(config: StudyConfig, chosen: Candidates) -> NextTrial:
    """Return the source of a study's next trial.

    It is exhausted once the study has `search.trials` architectures, or all feasible ones. The choice depends only on
    the study's trials and their attributes `architecture`, `seed` and, with several learning rates, `learning_rate`.
    The caller must hold the study's lock until it has added the trial; otherwise two workers would get the same trial.
    """
    search = config.search
    sampler = FeasibleSampler(chosen.found, search.strategy, search.seed, listed=chosen.architectures)

    def ask(study: optuna.Study) -> Planned | None:
        trials = study.get_trials(deepcopy=False)
        known = [Architecture.parse(name) for name in grouped(trials)]
        present = {trial_identity(trial, config.training.learning_rate) for trial in trials}
        for a in known:
            for seed in search.seeds:
                for rate in rates(config):
                    if (a.name, seed, rate) not in present:
                        return Planned(a, seed, rate)
        if len(known) >= search.trials:
            return None
        try:
            trial = view(sampler, trials, config, chosen.priors).ask()
            return Planned(sampler.suggest(trial), search.seeds[0], rates(config)[0])
        except optuna.TrialPruned:
            return None

    ranges = {axis: sampler.distributions[axis] for axis in sampler.dimensions.axes}
    return NextTrial(ask, ranges, how_many(chosen, config) * len(search.seeds) * len(rates(config)))


def grouped(trials: Iterable[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """Group trials by architecture name, in order of first appearance."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if ARCHITECTURE in trial.user_attrs:
            groups.setdefault(trial.user_attrs[ARCHITECTURE], []).append(trial)
    return groups


def view(
    sampler: FeasibleSampler, trials: Sequence[FrozenTrial], config: StudyConfig, priors: Sequence[Prior]
) -> optuna.Study:
    """Return the in-memory study that `sampler` sees."""
    search, groups = config.search, grouped(trials)
    seed = search.seed if search.strategy in REMEMBERS else (search.seed + 7919 * len(groups)) % 2**32
    sampler.inner = make_sampler(search.strategy, seed)
    seen = optuna.create_study(directions=["minimize"] * len(search.objectives), sampler=sampler)
    ends = {name: _observation(group, config) for name, group in groups.items()}
    own_losses = [loss for state, loss, _ in ends.values() if state == TrialState.COMPLETE and loss is not None]
    for prior in _shifted([p for p in priors if sampler.dimensions.holds(p.architecture)], own_losses):
        _add(
            seen,
            sampler,
            prior.architecture,
            (TrialState.COMPLETE, prior.loss, {}),
            config,
            {"warm_start": prior.source},
        )
    for name, end in ends.items():
        _add(seen, sampler, Architecture.parse(name), end, config, {})
    return seen


Observation = tuple[TrialState, float | None, Mapping[int, float]]
"""State, loss, and loss by number of tokens of an architecture."""


def _observation(group: Sequence[FrozenTrial], config: StudyConfig) -> Observation:
    """Return the outcome of an architecture from its trials, at its best learning rate."""
    own_rate = config.training.learning_rate
    complete: dict[tuple[str, float], list[float]] = {}
    for trial in group:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            name, _, rate = trial_identity(trial, own_rate)
            complete.setdefault((name, rate), []).append(trial.value)
    if complete:
        return TrialState.COMPLETE, fmean(complete[next(iter(best_rates(complete).items()))]), {}
    waits = [t for t in group if t.state == TrialState.WAITING]
    if any(t.state == TrialState.RUNNING for t in group) or not all(t.intermediate_values for t in waits):
        return TrialState.RUNNING, None, {}
    halted = [t for t in group if t.state in (TrialState.PRUNED, TrialState.WAITING) and t.intermediate_values]
    if not halted:
        return TrialState.FAIL, None, {}
    furthest = max(max(t.intermediate_values) for t in halted)
    curves: dict[tuple[str, float], list[Mapping[int, float]]] = {}
    for trial in halted:
        if furthest in trial.intermediate_values:
            name, _, rate = trial_identity(trial, own_rate)
            curves.setdefault((name, rate), []).append(trial.intermediate_values)
    rates_at_furthest = best_rates({key: [c[furthest] for c in own] for key, own in curves.items()})
    best = _mean(curves[next(iter(rates_at_furthest.items()))])
    if config.search.strategy == "tpe" and len(config.search.objectives) == 1:
        return TrialState.PRUNED, None, best
    return TrialState.COMPLETE, best[furthest], {}


def _mean(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return the mean loss over seeds at each number of tokens that all curves have."""
    return {tokens: fmean(c[tokens] for c in curves) for tokens in curves[0] if all(tokens in c for c in curves)}


def _add(
    seen: optuna.Study,
    sampler: FeasibleSampler,
    a: Architecture,
    end: Observation,
    config: StudyConfig,
    attrs: dict[str, Any],
) -> None:
    """Add an architecture to a view."""
    (state, loss, losses), params = end, sampler.dimensions.params(a)
    user_attrs = attrs if attrs else {ARCHITECTURE: a.name}  # a warm-start result does not count as tried
    values = None if loss is None else [loss, *(objective_value(o, a, config) for o in config.search.objectives[1:])]
    if config.search.strategy in REMEMBERS and not attrs:
        seen.enqueue_trial(params, user_attrs=user_attrs)
        trial = seen.ask()
        sampler.suggest(trial)
        if state != TrialState.RUNNING:
            seen.tell(trial, values, state)
        return
    ranges = {axis: sampler.distributions[axis] for axis in params}
    seen.add_trial(
        create_trial(
            state=state, values=values, params=params, distributions=ranges, user_attrs=user_attrs,
            intermediate_values=dict(losses),
        )
    )  # fmt: skip


def _shifted(priors: Sequence[Prior], own: Sequence[float]) -> list[Prior]:
    """Return warm-start results, shifted so that their median equals that of the study's own losses, if it has any."""
    if not priors or not own:
        return list(priors)
    shift = median(own) - median(prior.loss for prior in priors)
    return [Prior(p.architecture, p.loss + shift, p.source) for p in priors]
