"""Chooses the run that is nearest to the proposal of Optuna's TPE."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from march_search.architecture.architecture import Architecture
from march_search.errors import UsageError
from march_search.replay.clock import RUN
from march_search.replay.learning_curves import LearningCurves


class TpeProposals:
    """TPE over the architectures of a table, each run being tried once.

    TPE proposes a point in the grid that the architectures span. The nearest remaining run is taken, and TPE receives
    the values of that run.
    """

    def __init__(self, table: LearningCurves, seed: int) -> None:
        """Create the proposals for one study.

        Raises:
            UsageError: If a run has no architecture.
        """
        if lacking := [run.name for run in table.runs if run.architecture is None]:
            raise UsageError(
                f'TPE needs the architecture of every run; "{lacking[0]}" has none. Use --proposals random.'
            )
        shapes = [asdict(Architecture.parse(run.architecture or "")) for run in table.runs]
        varying = [axis for axis in shapes[0] if len({shape[axis] for shape in shapes}) > 1]
        self._members = [{axis: shape[axis] for axis in varying} for shape in shapes]
        self._space = {axis: _distribution([shape[axis] for shape in shapes]) for axis in varying}
        self._told: set[int] = set()
        self._proposer = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))

    def __call__(self, study: optuna.Study, trial: Trial, left: Sequence[int]) -> int:
        """Return the remaining run that is nearest to the proposal, the first one if several are equally near."""
        for ended in study.get_trials(deepcopy=False):
            if ended.state.is_finished() and ended.number not in self._told:
                self._tell(ended)
        proposal = self._proposer.ask(self._space)
        self._proposer.tell(proposal, state=TrialState.FAIL)
        return min(left, key=lambda run: self._distance(proposal.params, self._members[run]))

    def _tell(self, ended: FrozenTrial) -> None:
        """Add a finished trial of the replayed study to TPE's study, with the parameters of its run."""
        self._told.add(ended.number)
        copy = optuna.trial.create_trial(
            state=ended.state,
            value=ended.value,
            params=self._members[ended.user_attrs[RUN]],
            distributions=self._space,
            intermediate_values=ended.intermediate_values,
        )
        self._proposer.add_trial(copy)

    def _distance(self, a: dict[str, Any], b: dict[str, Any]) -> float:
        """Return the squared distance of two points: log ratios over the axis's log range, and 0 or 1 per choice."""
        total = 0.0
        for axis, values in self._space.items():
            if isinstance(values, IntDistribution):
                total += (math.log(a[axis] / b[axis]) / math.log(values.high / values.low)) ** 2
            else:
                total += a[axis] != b[axis]
        return total


def _distribution(values: list[Any]) -> BaseDistribution:
    """Return the distribution of an axis: a logarithmic range for positive integers, else a choice of its values."""
    if all(type(value) is int and value > 0 for value in values):
        return IntDistribution(min(values), max(values), log=True)
    return CategoricalDistribution(sorted(set(values), key=str))
