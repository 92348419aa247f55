"""Pool the trials of each architecture over its seeds, at the most tokens that it can be compared at."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from march_search.analysis.seed_prior import seed_prior
from march_search.analysis.study_record import StudyRecord, TrialRecord
from march_search.architecture.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """Trials of one architecture at its best learning rate, compared at the same number of tokens."""

    architecture: Architecture
    tokens: int
    """Tokens at which the losses were evaluated."""
    trials: tuple[TrialRecord, ...]
    """One trial per seed, in order of seed."""
    losses: tuple[float, ...]
    """Loss of each seed after `tokens` tokens."""
    rates: dict[float, float]
    """Mean loss at each learning rate after `tokens` tokens, by ascending rate."""
    shared_means: tuple[float, ...]
    """Mean loss at each learning rate over the best rate's seeds that at least one other rate also has; the best rate
    first."""
    num_shared: int
    """Number of these seeds: those that had a part in choosing the rate."""
    num_rates: int
    """Number of learning rates that were tried, at this or fewer tokens."""
    edge: str
    """`lowest` or `highest` if the best of several learning rates is at that end of the list, else empty."""
    is_final: bool
    """Whether the trials are complete."""
    rate_correction: float = 0.0
    """Nats by which choosing the best of several learning rates makes the mean loss too low."""

    @property
    def loss(self) -> float:
        """Mean loss over seeds, corrected for the choice of the learning rate."""
        return statistics.fmean(self.losses) + self.rate_correction

    @property
    def bits_per_byte(self) -> float | None:
        """The loss in bits per byte of text; None if no trial recorded it."""
        factor = next((t.bits_per_nat for t in self.trials if t.bits_per_nat), None)
        return None if factor is None else self.loss * factor

    @property
    def context_gain(self) -> float | None:
        """Mean context gain over seeds after `tokens` tokens; None if no trial measured it."""
        gains = [gain for t in self.trials if (gain := t.gain_at(self.tokens)) is not None]
        return statistics.fmean(gains) if gains else None

    @property
    def learning_rate(self) -> float:
        """Learning rate of the trials."""
        return self.trials[0].config.training.learning_rate

    @property
    def best_trial(self) -> TrialRecord:
        """Trial with the lowest loss."""
        return min(zip(self.losses, self.trials, strict=True), key=lambda pair: (pair[0], pair[1].number))[1]

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """(tokens, loss) pairs up to `tokens`: the mean over seeds at each evaluation that all seeds share."""
        curves = [t.curve for t in self.trials]
        shared = sorted(tokens for tokens in set.intersection(*(set(c) for c in curves)) if tokens <= self.tokens)
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
    """Return all architectures that can be compared: complete ones first, then by falling tokens, best first.

    An architecture without a complete trial is compared at the most tokens at which it was evaluated and at which a
    trial was stopped or waits. A running trial therefore counts with its loss at the last such point. Failed and
    damaged trials do not count.
    """
    alive = [t for t in study.trials if t.state in ("complete", "pruned", "paused", "unfinished")]
    marks = {t.tokens for t in alive if t.state in ("pruned", "paused") and t.loss is not None}
    by_shape: dict[Architecture, list[tuple[bool, int, TrialRecord]]] = defaultdict(list)
    for trial in alive:
        for is_final, tokens in _points(trial, marks):
            by_shape[trial.architecture].append((is_final, tokens, trial))
    tried = sorted(study.settings.get("search", {}).get("learning_rates") or ())
    pooled = []
    for architecture, points in by_shape.items():
        is_final, tokens = max((is_final, tokens) for is_final, tokens, _ in points)
        own = [trial for point in points if point[:2] == (is_final, tokens) for trial in point[2:]]
        num_rates = len({t.config.training.learning_rate for t in alive if t.architecture == architecture})
        pooled.append(_pooled(architecture, tokens, own, is_final, tried, num_rates))
    return tuple(sorted(pooled, key=lambda p: (not p.is_final, -p.tokens, p.loss, p.trials[0].number)))


def _points(trial: TrialRecord, marks: Iterable[int]) -> list[tuple[bool, int]]:
    """Return whether a trial is complete, and its tokens, for each point at which it can be compared."""
    if trial.state == "complete":
        return [] if trial.loss is None else [(True, trial.tokens)]
    return [(False, tokens) for tokens in marks if trial.loss_at(tokens) is not None]


def _pooled(
    architecture: Architecture,
    tokens: int,
    trials: Sequence[TrialRecord],
    is_final: bool,
    tried: Sequence[float],
    num_rates: int,
) -> Pooled:
    """Return one architecture at its best learning rate after `tokens` tokens."""
    rates: dict[float, dict[int, TrialRecord]] = defaultdict(dict)
    for trial in sorted(trials, key=lambda t: t.number):
        rates[trial.config.training.learning_rate].setdefault(trial.seed, trial)  # a retry repeats its seed
    losses = {
        rate: {t.seed: loss for t in rates[rate].values() if (loss := t.loss_at(tokens)) is not None}
        for rate in sorted(rates)
    }
    best = chosen_rate(losses, seed_prior(architecture).deviation)
    edge = ""
    if len(tried) > 1:
        edge = {tried[0]: "lowest", tried[-1]: "highest"}.get(best, "")
    seeds, shared = sorted(losses[best]), _shared_seeds(losses, best)
    order = [best, *(rate for rate in losses if rate != best)]
    common = [[loss for seed, loss in losses[rate].items() if seed in shared] for rate in order]
    return Pooled(
        architecture=architecture,
        tokens=tokens,
        trials=tuple(rates[best][seed] for seed in seeds),
        losses=tuple(losses[best][seed] for seed in seeds),
        rates={rate: statistics.fmean(own.values()) for rate, own in losses.items()},
        shared_means=tuple(statistics.fmean(own) for own in common if own),
        num_shared=len(shared),
        num_rates=num_rates,
        edge=edge,
        is_final=is_final,
    )


def chosen_rate(losses: Mapping[float, Mapping[int, float]], deviation: float) -> float:
    """Return the learning rate with the lowest mean loss over seeds, or one with more seeds that noise may hide.

    A rate gets further seeds because it was the best. If they raise its mean above that of a rate with fewer seeds, it
    stays the best as long as the difference is within two standard errors. Otherwise, further seeds would move the
    choice to a mean that happens to be low.
    """
    means = {rate: statistics.fmean(own.values()) for rate, own in losses.items()}
    lowest = min(means, key=lambda rate: (means[rate], rate))
    within = [
        rate for rate, own in losses.items()
        if means[rate] - means[lowest] <= 2 * deviation * math.sqrt(1 / len(own) + 1 / len(losses[lowest]))
    ]  # fmt: skip
    return min(within, key=lambda rate: (-len(losses[rate]), means[rate], rate))


def _shared_seeds(losses: Mapping[float, Mapping[int, float]], best: float) -> set[int]:
    """Return the seeds of the best rate that another rate has, too."""
    return {seed for seed in losses[best] if any(seed in own for rate, own in losses.items() if rate != best)}
