"""What a study trains next where one of Optuna's samplers chooses: asked when a trial can start.

The sampler does not see the study itself but a view of it: one trial an architecture, whatever its seeds and learning
rates. A complete one has the mean loss over its seeds at its best learning rate. One that runs or has not begun counts
as running, so that several workers ask for different places (constant liar). One that was stopped, or is paused on a
rung, is pruned, with its loss at each evaluation: TPE orders such trials by how far they came, then by loss, below all
complete ones. The other samplers know no pruned trials and are told the last loss, an upper bound of what the trial
would have reached. Results of a warm start are in the view alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from march_search.architecture import Architecture
from march_search.config import StudyConfig
from march_search.objectives import value
from march_search.study.candidates import Candidates, Planned, how_many, rates
from march_search.study.sampler import ARCHITECTURE, FeasibleSampler, make_sampler
from march_search.study.warm import Prior

REMEMBERS = ("cmaes", "qmc")
"""Samplers whose state is in what they proposed before, which is then proposed again in order."""


@dataclass(frozen=True)
class NextTrial:
    """Says what a study trains next."""

    ask: Callable[[optuna.Study], Planned | None]
    ranges: dict[str, BaseDistribution]
    """Of every dimension, the same for all trials."""
    total: int
    """Trials that the study will have, with all seeds and learning rates."""

    def __call__(self, study: optuna.Study) -> Planned | None:
        """The next trial; None if the study has enough."""
        return self.ask(study)


def next_trial(config: StudyConfig, chosen: Candidates) -> NextTrial:
    """What says what a study trains next; None once it has `search.trials` architectures, or all there are.

    The study's trials say in their attributes `architecture`, `seed` and, where there are several, `learning_rate` what
    they are. Who calls it holds the study's lock until the trial is in the study: two that asked at once would be told
    the same. The same study is told the same again.
    """
    search = config.search
    sampler = FeasibleSampler(chosen.found, search.strategy, search.seed, listed=chosen.architectures)

    def ask(study: optuna.Study) -> Planned | None:
        trials = study.get_trials(deepcopy=False)
        known = [Architecture.parse(name) for name in grouped(trials)]
        present = {_identity(trial, config) for trial in trials}
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
    """Trials by the name of their architecture, in the order of their first."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if ARCHITECTURE in trial.user_attrs:
            groups.setdefault(trial.user_attrs[ARCHITECTURE], []).append(trial)
    return groups


def view(
    sampler: FeasibleSampler, trials: Sequence[FrozenTrial], config: StudyConfig, priors: Sequence[Prior]
) -> optuna.Study:
    """A study in memory as `sampler` is to see it."""
    search, groups = config.search, grouped(trials)
    seed = search.seed if search.strategy in REMEMBERS else (search.seed + 7919 * len(groups)) % 2**32
    sampler.inner = make_sampler(search.strategy, seed)
    seen = optuna.create_study(directions=["minimize"] * len(search.objectives), sampler=sampler)
    ends = {name: _end(group, config) for name, group in groups.items()}
    own = [loss for state, loss, _ in ends.values() if state == TrialState.COMPLETE and loss is not None]
    for prior in _shifted([p for p in priors if sampler.dimensions.holds(p.architecture)], own):
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


End = tuple[TrialState, float | None, Mapping[int, float]]
"""State, loss and losses by tokens of an architecture."""


def _end(group: Sequence[FrozenTrial], config: StudyConfig) -> End:
    """What became of an architecture."""
    complete: dict[float, list[float]] = {}
    for trial in group:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            complete.setdefault(_identity(trial, config)[2], []).append(trial.value)
    if complete:
        return TrialState.COMPLETE, min(map(fmean, complete.values())), {}
    waits = [t for t in group if t.state == TrialState.WAITING]
    if any(t.state == TrialState.RUNNING for t in group) or not all(t.intermediate_values for t in waits):
        return TrialState.RUNNING, None, {}
    halted = [t for t in group if t.state in (TrialState.PRUNED, TrialState.WAITING) and t.intermediate_values]
    if not halted:
        return TrialState.FAIL, None, {}
    furthest = max(max(t.intermediate_values) for t in halted)
    curves: dict[float, list[Mapping[int, float]]] = {}
    for trial in halted:
        if furthest in trial.intermediate_values:
            curves.setdefault(_identity(trial, config)[2], []).append(trial.intermediate_values)
    best = min(map(_mean, curves.values()), key=lambda losses: losses[furthest])
    if config.search.strategy == "tpe" and len(config.search.objectives) == 1:
        return TrialState.PRUNED, None, best
    return TrialState.COMPLETE, best[furthest], {}


def _mean(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Mean loss of several seeds at each number of tokens that all have."""
    return {tokens: fmean(c[tokens] for c in curves) for tokens in curves[0] if all(tokens in c for c in curves)}


def _add(
    seen: optuna.Study, sampler: FeasibleSampler, a: Architecture, end: End, config: StudyConfig, attrs: dict[str, Any]
) -> None:
    """Adds an architecture to a view."""
    (state, loss, losses), params = end, sampler.dimensions.params(a)
    told = attrs if attrs else {ARCHITECTURE: a.name}  # a result from elsewhere has not been tried here
    values = None if loss is None else [loss, *(value(o, a, config) for o in config.search.objectives[1:])]
    if config.search.strategy in REMEMBERS and not attrs:
        seen.enqueue_trial(params, user_attrs=told)
        trial = seen.ask()
        sampler.suggest(trial)
        if state != TrialState.RUNNING:
            seen.tell(trial, values, state)
        return
    ranges = {axis: sampler.distributions[axis] for axis in params}
    seen.add_trial(
        create_trial(
            state=state, values=values, params=params, distributions=ranges, user_attrs=told,
            intermediate_values=dict(losses),
        )
    )  # fmt: skip


def _shifted(priors: Sequence[Prior], own: Sequence[float]) -> list[Prior]:
    """Results from elsewhere, moved so that their median is that of the study's own losses once it has any."""
    if not priors or not own:
        return list(priors)
    shift = median(own) - median(prior.loss for prior in priors)
    return [Prior(p.architecture, p.loss + shift, p.source) for p in priors]


def _identity(trial: FrozenTrial, config: StudyConfig) -> tuple[str, int, float]:
    """What a trial trains."""
    attrs = trial.user_attrs
    return (
        attrs[ARCHITECTURE],
        attrs.get("seed", config.search.seeds[0]),
        attrs.get("learning_rate", config.training.learning_rate),
    )
