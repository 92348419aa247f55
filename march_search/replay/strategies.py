"""Search strategies by name, and the replay of rungs."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.pruners import BasePruner

from march_search.config.halving import Halving, SizeHalving
from march_search.errors import UsageError, nearest
from march_search.replay.asha import Asha
from march_search.replay.learning_curves import Curves, Replayed, schedule


def replay_rungs(curves: Curves, order: Sequence[int], workers: int, rungs: Halving) -> Replayed:
    """Train the runs in the given order, rung by rung; promoted runs resume where they stopped.

    Idle workers wait until the rung is decided.
    """
    going, reached = tuple(order), dict.fromkeys(order, 0.0)
    cost = busy = makespan = 0.0
    losses: dict[int, float] = {}
    for number, fraction in enumerate(rungs.fractions):
        if number:
            going = rungs.promoted(losses, number - 1)
        losses, times = {}, []
        for run in going:
            evaluation = curves.at(run, fraction)
            trained = curves.tokens[run][evaluation] - reached[run]
            reached[run] += trained
            cost += curves.cost(run, trained)
            times.append(trained * curves.rates[run])
            losses[run] = curves.losses[run][evaluation]
        busy += sum(times)
        makespan += schedule(times, workers)
    best = min(going, key=lambda run: losses[run])
    return Replayed(best, cost, busy, makespan)


PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "exhaustive": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": partial(optuna.pruners.PercentilePruner, percentile=25.0),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}
"""Optuna's pruners with Optuna's defaults; `percentile` has no default and is set to 25."""

RULES: dict[str, Callable[..., Halving | Asha | SizeHalving]] = {"rungs": Halving, "asha": Asha, "sizes": SizeHalving}
"""Rules that resume what they promote, and the one that trains it at a larger size."""

NAMES = (*PRUNERS, *RULES)


def all_names(has_sizes: bool) -> tuple[str, ...]:
    """Return the strategies that `all` stands for: `sizes` needs curves at several sizes."""
    return tuple(name for name in NAMES if has_sizes or name != "sizes")


@dataclass(frozen=True)
class Strategy:
    """A strategy and its options."""

    text: str
    """The strategy as the user wrote it, for example `halving:reduction_factor=3`."""
    make: Callable[[], BasePruner] | Halving | Asha | SizeHalving
    """Function that creates the pruner of one study, or the rule."""

    @property
    def is_ordered(self) -> bool:
        """Whether the choice depends on the order of the runs and on the number of workers."""
        return not isinstance(self.make, Halving | SizeHalving) and self.text != "exhaustive"


def parse(text: str) -> Strategy:
    """Parse a strategy such as `halving` or `halving:min_resource=1,reduction_factor=3`.

    Raises:
        UsageError: If the strategy or an option is unknown, or if a value is invalid.
    """
    name, _, rest = text.partition(":")
    if name not in NAMES:
        raise UsageError(f'unknown strategy "{name}". {nearest(name, NAMES)}')
    options = dict(_option(text, part) for part in rest.split(",") if part)
    maker: Callable[..., Any] = PRUNERS.get(name) or RULES[name]
    known = list(inspect.signature(maker).parameters)
    if unknown := [key for key in options if key not in known]:
        raise UsageError(f'{name} has no option "{unknown[0]}". {nearest(unknown[0], known) if known else ""}'.rstrip())
    make = partial(maker, **options)
    try:
        made = make()
    except TypeError:
        raise UsageError(
            f"{text}: only fractions takes several numbers; give one number for each other option."
        ) from None
    except ValueError as error:
        raise UsageError(f"{text}: {str(error).rstrip('.')}.") from None
    return Strategy(text, made if isinstance(made, Halving | Asha | SizeHalving) else make)


def _option(text: str, part: str) -> tuple[str, Any]:
    """Parse `key=value`, where the value is one number or several, separated by `/`."""
    key, _, value = part.partition("=")
    try:
        numbers = [float(number) for number in value.split("/")]
    except ValueError:
        raise UsageError(f'{text}: "{part}" must look like key=number, or key=number/number/number.') from None
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f'{text}: "{part}" has a number that is not finite: use finite numbers.')
    if "/" in value or key == "fractions":
        return key, tuple(numbers)
    return key, int(numbers[0]) if numbers[0].is_integer() else numbers[0]
