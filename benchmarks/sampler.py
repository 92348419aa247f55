"""Measure the cost and the benefit of the sampler over the feasible set.

    python benchmarks/sampler.py [--seeds 200]

1. The fraction of plain Optuna's uniform proposals over the grid that meet the budget, and the seconds per proposal of
   the sampler over the feasible set, whose proposals all meet it.
2. The number of trials that TPE and uniform draws need to find the best of the 25 recorded runs of the 2023 study, and
   the gap between the best run so far and the best run. Losses are looked up, not trained; all runs have equal tokens.
"""

import argparse
import contextlib
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna

from march_search import Architecture, SearchSpace, solve
from march_search.config import SearchConfig
from march_search.planning.warm_start import read_priors
from march_search.sampler.feasible_sampler import FeasibleSampler, make_sampler
from march_search.space.feasible_set import FeasibleSet


def seconds_per_proposal(feasible: FeasibleSet, name: str, trials: int) -> float:
    """Return the median seconds per proposal, without the first dozen."""
    sampler, seconds = FeasibleSampler(feasible, name), []
    study = optuna.create_study(sampler=sampler)
    for _ in range(trials):
        began = time.perf_counter()
        trial = study.ask()
        a = sampler.suggest(trial)
        seconds.append(time.perf_counter() - began)
        study.tell(trial, abs(a.d_model - 768) / 768 + abs(a.num_layers - 12) / 12)
    return statistics.median(seconds[12:])


def feasible_fraction(feasible: FeasibleSet, trials: int) -> float:
    """Return the fraction of uniform proposals over the grid that are in the set."""
    sampler, hits = FeasibleSampler(feasible), 0
    study = optuna.create_study(sampler=make_sampler("random", 0))
    for _ in range(trials):
        with contextlib.suppress(ValueError):  # the values do not form a valid architecture
            hits += sampler.dimensions.suggest(study.ask()) in feasible
    return hits / trials


def recorded_runs() -> tuple[FeasibleSet, dict[str, float]]:
    """Return the recorded runs as a feasible set, and their losses by name."""
    priors = read_priors(SearchConfig(strategy="tpe", warm_start=("march-2023",)), Path())
    shapes = [prior.architecture for prior in priors]
    axes = {axis: sorted({getattr(a, axis) for a in shapes}) for axis in
            ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj", "cross_attention")}  # fmt: skip
    fixed = {"vocab_size": 30000, "position": "absolute"}
    budget = {"parameters": "220M", "tolerance": "60%"}
    return restricted(solve(SearchSpace.from_table({"axes": axes | fixed, "budget": budget})), shapes), {
        prior.architecture.name: prior.loss for prior in priors
    }


def restricted(feasible: FeasibleSet, shapes: list[Architecture]) -> FeasibleSet:
    """Return a feasible set with only these members, as intervals of one `d_ff` each."""
    numbers = np.array(sorted(feasible.index(a) for a in shapes))
    rows = np.searchsorted(feasible.begins, numbers, side="right") - 1
    combination = np.searchsorted(feasible.starts, rows, side="right") - 1
    first = feasible.intervals.first[rows] + (numbers - feasible.begins[rows])
    intervals = feasible.intervals.pick(rows)._replace(first=first, length=np.ones_like(first))
    used, starts = np.unique(combination, return_index=True)
    combinations = tuple(feasible.combinations[index] for index in used)
    return replace(feasible, combinations=combinations, starts=starts, intervals=intervals)


def best_so_far(feasible: FeasibleSet, losses: dict[str, float], name: str, seed: int) -> list[float]:
    """Return the lowest recorded loss so far after each trial."""
    sampler = FeasibleSampler(feasible, name, seed)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: losses[sampler.suggest(trial).name], n_trials=len(losses))
    return list(np.minimum.accumulate([trial.value for trial in study.trials]))


def main() -> None:
    """Print the cost of proposals and the number of trials until the best run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="sampler seeds (default: 200)")
    seeds = parser.parse_args().seeds
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for space in ("t5-220m", "t5-220m-wide"):
        feasible = solve(SearchSpace.load(space))
        print(f"{space}: {feasible_fraction(feasible, 4000):.2%} of uniform proposals over the grid meet the budget")
        for name in ("random", "tpe"):
            seconds = seconds_per_proposal(feasible, name, 40)
            print(f"  over the feasible set all do; {name}: {seconds:.4f} s per proposal")
    feasible, losses = recorded_runs()
    best, curves = min(losses.values()), {}
    for name in ("tpe", "random"):
        curves[name] = np.array([best_so_far(feasible, losses, name, seed) for seed in range(seeds)])
        until = (curves[name] > best).sum(axis=1) + 1
        print(f"{len(losses)} recorded runs: {name:<6} finds the best after {np.median(until):.0f} trials (median), "
              f"{until.mean():.1f} (mean) ± {until.std(ddof=1) / seeds**0.5:.1f}")  # fmt: skip
        gaps = ", ".join(f"{1000 * (curves[name][:, k - 1].mean() - best):.1f} after {k}" for k in (5, 10, 12, 15, 20))
        print(f"  thousandths of a nat from the best: {gaps}")


if __name__ == "__main__":
    main()
