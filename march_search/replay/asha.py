"""Asynchronous promotion on rungs (ASHA), replayed with several workers on a simulated clock."""

import heapq
import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from march_search.config.halving import check_rungs
from march_search.replay.clock import summary
from march_search.replay.learning_curves import Curves, Replayed


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving: a free worker promotes a run as soon as it may, else starts the next one.

    A run may be promoted once it is among the best 1/`reduction_factor` of the runs that have reached its rung so far,
    rounded down; the highest rung is asked first. Promoted runs resume from their checkpoints (Li et al. 2020,
    algorithm 2). That algorithm starts new runs for ever. Here the runs are used up at some time: when no run is
    training, waiting or promotable, the best on the highest rung is promoted, so that one run reaches the end.

    Optuna's `SuccessiveHalvingPruner` is the variant that stops runs and never resumes them.

    Raises:
        ValueError: If the fractions are not positive, ascending and end at 1, or if `reduction_factor` is below 2.
    """

    fractions: tuple[float, ...] = (0.02, 0.06, 0.2, 1.0)
    """Rungs as fractions of a run's tokens, ascending; the last is 1."""
    reduction_factor: int = 3
    """One in `reduction_factor` runs of a rung may be promoted; at least 2."""

    def __post_init__(self) -> None:
        check_rungs(self.fractions)
        if not (isinstance(self.reduction_factor, int) and self.reduction_factor >= 2):
            raise ValueError(f"reduction_factor must be a whole number of at least 2, not {self.reduction_factor}")

    def promotable(self, losses: Sequence[Mapping[int, float]], promoted: Sequence[Set[int]]) -> tuple[int, int] | None:
        """Return the run to promote and the rung that it reached; None if no run may be promoted.

        Args:
            losses: For each rung, the losses of the runs that have reached it, in the order in which they did.
            promoted: For each rung, the runs that have been promoted from it.
        """
        for rung in reversed(range(len(self.fractions) - 1)):
            best = sorted(losses[rung], key=losses[rung].__getitem__)[: len(losses[rung]) // self.reduction_factor]
            for run in best:
                if run not in promoted[rung]:
                    return run, rung
        return None


def replay_asha(curves: Curves, order: Sequence[int], workers: int, rule: Asha) -> Replayed:
    """Start the runs in the given order and resume each as soon as it is promoted.

    Results that arrive at the same time are handled in the order in which their training began.
    """
    left, idle, now = list(order), workers, 0.0
    losses: list[dict[int, float]] = [{} for _ in rule.fractions]
    promoted: list[set[int]] = [set() for _ in rule.fractions]
    reached = dict.fromkeys(order, 0)
    going: list[tuple[float, int, int, int, int]] = []  # time of the end, number of the job, run, rung, evaluation
    jobs = itertools.count()
    while True:
        while going and not (idle and (left or rule.promotable(losses, promoted))):
            now, _, run, rung, evaluation = heapq.heappop(going)
            losses[rung][run] = curves.losses[run][evaluation]
            reached[run] = evaluation + 1
            idle += 1
        if chosen := rule.promotable(losses, promoted) or (None if left else _leader(losses)):
            run, rung = chosen[0], chosen[1] + 1
            promoted[rung - 1].add(run)
        elif left:
            run, rung = left.pop(0), 0
        else:
            return summary(curves, reached, now)
        evaluation, before = curves.at(run, rule.fractions[rung]), reached[run]
        tokens = curves.tokens[run][evaluation] - (curves.tokens[run][before - 1] if before else 0.0)
        heapq.heappush(going, (now + tokens * curves.rates[run], next(jobs), run, rung, evaluation))
        idle -= 1


def _leader(losses: Sequence[Mapping[int, float]]) -> tuple[int, int] | None:
    """Return the best run on the highest rung that any run has reached, and the rung; None once it is the end."""
    highest = max(rung for rung, reached in enumerate(losses) if reached)
    if highest == len(losses) - 1:
        return None
    return min(losses[highest], key=losses[highest].__getitem__), highest
