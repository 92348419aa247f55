"""What the sampler over the feasible set costs and gains: against rejection, and TPE against chance.

python benchmarks/sampler.py [--seeds 200]

1. Uniform proposals of plain Optuna over the grid of a space: how many meet the budget. Over the feasible set all do:
   seconds a proposal.
2. The 25 recorded runs of the 2023 study as a table to look losses up in, whole runs, so equal tokens a trial: how many
   trials TPE and uniform draws need until they have had the best run, and how far the best so far is from it.
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
from march_search.sampler.feasible_sampler import FeasibleSampler, make_sampler
from march_search.space.feasible_set import FeasibleSet
from march_search.study.warm_start import read_priors


def asked(found: FeasibleSet, name: str, trials: int) -> float:
    """Median seconds a proposal, after a dozen trials."""
    sampler, seconds = FeasibleSampler(found, name), []
    study = optuna.create_study(sampler=sampler)
    for _ in range(trials):
        began = time.perf_counter()
        trial = study.ask()
        a = sampler.suggest(trial)
        seconds.append(time.perf_counter() - began)
        study.tell(trial, abs(a.d_model - 768) / 768 + abs(a.num_layers - 12) / 12)
    return statistics.median(seconds[12:])


def plain(found: FeasibleSet, trials: int) -> float:
    """Share of uniform proposals over the grid that are in the set."""
    sampler, hits = FeasibleSampler(found), 0
    study = optuna.create_study(sampler=make_sampler("random", 0))
    for _ in range(trials):
        with contextlib.suppress(ValueError):  # no architecture at all
            hits += sampler.dimensions.suggest(study.ask()) in found
    return hits / trials


def recorded() -> tuple[FeasibleSet, dict[str, float]]:
    """The recorded runs as a feasible set, and their losses by name."""
    priors = read_priors(SearchConfig(strategy="tpe", warm_start=("march-2023",)), Path())
    shapes = [prior.architecture for prior in priors]
    axes = {axis: sorted({getattr(a, axis) for a in shapes}) for axis in
            ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj", "cross_attention")}  # fmt: skip
    fixed = {"vocab_size": 30000, "position": "absolute"}
    budget = {"parameters": "220M", "tolerance": "60%"}
    return only(solve(SearchSpace.from_table({"axes": axes | fixed, "budget": budget})), shapes), {
        prior.architecture.name: prior.loss for prior in priors
    }


def only(found: FeasibleSet, shapes: list[Architecture]) -> FeasibleSet:
    """A feasible set of these members alone: runs of one `d_ff` each."""
    numbers = np.array(sorted(found.index(a) for a in shapes))
    rows = np.searchsorted(found.begins, numbers, side="right") - 1
    owner = np.searchsorted(found.starts, rows, side="right") - 1
    first = found.intervals.first[rows] + (numbers - found.begins[rows])
    runs = found.intervals.pick(rows)._replace(first=first, length=np.ones_like(first))
    kept, starts = np.unique(owner, return_index=True)
    return replace(found, combinations=tuple(found.combinations[k] for k in kept), starts=starts, runs=runs)


def looked_up(found: FeasibleSet, losses: dict[str, float], name: str, seed: int) -> list[float]:
    """Best loss so far after each trial."""
    sampler = FeasibleSampler(found, name, seed)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: losses[sampler.suggest(trial).name], n_trials=len(losses))
    return list(np.minimum.accumulate([trial.value for trial in study.trials]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    seeds = parser.parse_args().seeds
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for space in ("t5-220m", "t5-220m-wide"):
        found = solve(SearchSpace.load(space))
        print(f"{space}: {plain(found, 4000):.2%} of uniform proposals over the grid are on the budget")
        for name in ("random", "tpe"):
            print(f"  over the feasible set all are; {name}: {asked(found, name, 40):.4f} s a proposal")
    found, losses = recorded()
    best, curves = min(losses.values()), {}
    for name in ("tpe", "random"):
        curves[name] = np.array([looked_up(found, losses, name, seed) for seed in range(seeds)])
        until = (curves[name] > best).sum(axis=1) + 1
        print(f"{len(losses)} recorded runs: {name:<6} has the best after {np.median(until):.0f} trials in the median, "
              f"{until.mean():.1f} in the mean ± {until.std(ddof=1) / seeds**0.5:.1f}")  # fmt: skip
        gaps = ", ".join(f"{1000 * (curves[name][:, k - 1].mean() - best):.1f} after {k}" for k in (5, 10, 12, 15, 20))
        print(f"  thousandths of a nat from the best: {gaps}")


if __name__ == "__main__":
    main()
