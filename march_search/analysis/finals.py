"""The finalists of a study, what their seeds show, and which seeds are trained next.

The decision depends on the trials and the settings alone, so that every worker and every later reader decides alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from march_search.analysis.pooling import best_rates
from march_search.analysis.separation import remaining
from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig


@dataclass(frozen=True, kw_only=True)
class SeedTrial:
    """One trial of a study; of a retried trial, the newest attempt."""

    architecture: str
    """Name of the architecture."""
    seed: int
    learning_rate: float
    loss: float | None = None
    """Final loss of a complete trial; None for any other."""
    has_failed: bool = False
    """Whether it ended without a final loss and was not pruned."""


@dataclass(frozen=True, kw_only=True)
class Finals:
    """What the confirmation has found so far. Each finalist has the learning rate that was best in the search."""

    losses: Mapping[str, tuple[float, ...]]
    """Final losses of each finalist, one per seed: those of the search, then further ones. The finalists are in the
    order of their mean loss in the search."""
    left: tuple[str, ...]
    """Finalists that are not eliminated, lowest mean loss first."""
    following: tuple[SeedTrial, ...]
    """Trials of the next round; empty if there is none."""
    failed: tuple[str, ...]
    """Finalists that are left and get no further seeds because one of theirs failed."""

    @property
    def is_separated(self) -> bool:
        """Whether the leader is separated from all other finalists."""
        return len(self.losses) > 1 and len(self.left) == 1


def baseline(config: StudyConfig, names: Sequence[str]) -> str | None:
    """Return the baseline: the first of `[search] architectures` if it is among `names`, else the first of `names`."""
    listed = [Architecture.parse(text).name for text in config.search.architectures[:1]]
    return next((name for name in (*listed, *names) if name in names), None)


def finals(trials: Sequence[SeedTrial], config: StudyConfig) -> Finals:
    """Return the finalists of a study, which of them are left, and the next seeds.

    The finalists are the best `finalists` complete architectures of the search, and the baseline. A seed that
    `[search]` does not list belongs to the confirmation.

    Args:
        trials: All trials in the order of their numbers.
        config: The study's settings.
    """
    searched = [t for t in trials if t.seed in config.search.seeds]
    by_rate: dict[tuple[str, float], list[float]] = {}
    for trial in searched:
        if trial.loss is not None:
            by_rate.setdefault((trial.architecture, trial.learning_rate), []).append(trial.loss)
    rates = best_rates(by_rate)  # lowest mean loss first
    chosen = [*rates][: config.pruner.finalists]
    first = baseline(config, list(dict.fromkeys(t.architecture for t in searched)))
    if config.pruner.finalists > 1 and first in rates and first not in chosen:
        chosen.append(first)
    further = {t.seed for t in trials} - {*config.search.seeds}
    order = [*config.search.seeds, *sorted(further)]
    complete = {(t.architecture, t.learning_rate, t.seed): t.loss for t in trials if t.loss is not None}
    losses = {
        name: tuple(complete[key] for seed in order if (key := (name, rates[name], seed)) in complete)
        for name in chosen
    }  # fmt: skip
    left = remaining(losses, config.confirm.confidence)
    failed = {t.architecture for t in trials if t.has_failed and t.seed in further}
    following: tuple[SeedTrial, ...] = ()
    if len([name for name in left if name not in failed]) > 1:
        following = tuple(
            SeedTrial(architecture=name, seed=_next_seed(name, trials, config), learning_rate=rates[name])
            for name in left
            if name not in failed and config.confirm.further(len(losses[name])) != 0
        )
    return Finals(losses=losses, left=left, following=following, failed=tuple(name for name in left if name in failed))


def _next_seed(name: str, trials: Sequence[SeedTrial], config: StudyConfig) -> int:
    """Return the first seed after those of `[search]` that an architecture does not have."""
    taken = {t.seed for t in trials if t.architecture == name} | {*config.search.seeds}
    return next(seed % 2**32 for seed in count(max(config.search.seeds) + 1) if seed % 2**32 not in taken)


def verdict(found: Finals, config: StudyConfig) -> str:
    """Return what the confirmation has found as one sentence in lower case."""
    confidence = f"at {config.confirm.confidence:.0%} confidence"
    trials = sum(map(len, found.losses.values()))
    if len(found.losses) < 2:
        return "fewer than two finalists are complete."
    leader, rivals = found.left[0], found.left[1:]
    if not rivals:
        return f"{leader} is separated from all other finalists {confidence} after {trials} complete trials."
    reason = ""
    if found.failed:
        reason = f"; {', '.join(found.failed)} had a failed seed (march-search study retry)"
    elif not found.following:
        fewest, limit = min(len(found.losses[name]) for name in found.left), config.confirm.max_seeds
        reason = f"; each has {fewest} seeds, the limit of [confirm] max_seeds"
        if fewest != limit:
            reason = f"; each has at least {fewest} seeds, and [confirm] max_seeds is {limit}"
    others = ", ".join(rivals)
    return f"{leader} leads after {trials} complete trials, but is not separated {confidence} from {others}{reason}."
