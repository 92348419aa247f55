"""Pool the trials of each architecture over its seeds."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from march_search.analysis.study_record import StudyRecord, TrialRecord
from march_search.architecture.architecture import Architecture


@dataclass(frozen=True)
class Pooled:
    """Complete trials of one architecture at its best learning rate."""

    architecture: Architecture
    trials: tuple[TrialRecord, ...]
    """One trial per seed, in order of seed."""
    rates: dict[float, float]
    """Mean loss at each learning rate, by ascending rate; the best of several noisy means is biased slightly low."""
    edge: str
    """`lowest` or `highest` if the best of several learning rates is at that end of the list, else empty."""

    @property
    def losses(self) -> tuple[float, ...]:
        """Loss of each seed."""
        return tuple(t.loss for t in self.trials if t.loss is not None)

    @property
    def loss(self) -> float:
        """Mean loss over seeds."""
        return statistics.fmean(self.losses)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the trials."""
        return self.trials[0].config.training.learning_rate

    @property
    def best_trial(self) -> TrialRecord:
        """Trial with the lowest loss."""
        return min(self.trials, key=lambda t: (t.loss or 0.0, t.number))

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """(tokens, loss) pairs: the mean over seeds at each evaluation that all seeds share."""
        curves = [{e["tokens"]: float(e["loss"]) for e in t.evaluations} for t in self.trials]
        shared = sorted(set.intersection(*(set(c) for c in curves)))
        return tuple((tokens, statistics.fmean(c[tokens] for c in curves)) for tokens in shared)


def best_rates(losses: Mapping[tuple[str, float], Sequence[float]]) -> dict[str, float]:
    """Return the learning rate with the lowest mean loss over the seeds, for each architecture.

    Args:
        losses: Losses of the seeds by architecture name and learning rate. Of equal means the first one is taken.
    """
    best: dict[str, float] = {}
    for name, rate in sorted(losses, key=lambda key: statistics.fmean(losses[key])):
        best.setdefault(name, rate)
    return best


def pool(study: StudyRecord) -> tuple[Pooled, ...]:
    """Return the architectures with a complete trial, lowest mean loss first, then by number of their first trial."""
    by_shape: dict[Architecture, dict[float, list[TrialRecord]]] = defaultdict(lambda: defaultdict(list))
    for trial in study.trials:
        if trial.state == "complete" and trial.loss is not None:
            by_shape[trial.architecture][trial.config.training.learning_rate].append(trial)
    tried = sorted(study.settings.get("search", {}).get("learning_rates") or ())
    pooled = [_pooled(a, rates, tried) for a, rates in by_shape.items()]
    return tuple(sorted(pooled, key=lambda p: (p.loss, p.trials[0].number)))


def _pooled(architecture: Architecture, rates: dict[float, list[TrialRecord]], tried: Sequence[float]) -> Pooled:
    """Return one architecture at the learning rate with the lowest mean loss."""
    means = {rate: statistics.fmean(t.loss or 0.0 for t in rates[rate]) for rate in sorted(rates)}
    name = architecture.name
    best = best_rates({(name, rate): [mean] for rate, mean in means.items()})[name]
    edge = ""
    if len(tried) > 1:
        edge = {tried[0]: "lowest", tried[-1]: "highest"}.get(best, "")
    return Pooled(architecture, tuple(sorted(rates[best], key=lambda t: (t.seed, t.number))), means, edge)
