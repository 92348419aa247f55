"""Search strategies on the 25 recorded runs of 2023: tokens spent, regret, time, for each number of workers and noise.

    python benchmarks/strategies.py

Nothing is trained and nothing depends on this machine: a seed gives the same figures everywhere.
"""

import argparse
import logging
from dataclasses import replace

import optuna

from march_search.replay.learning_curves import LearningCurves, read_curves
from march_search.replay.strategies import Replay, parse, replay

COMPARED = ("rungs", "halving", "halving:min_resource=1", "hyperband", "median", "percentile")
HEADING = "| {} | spent | at most | best found | as exhaustive | worst regret | time | idle |"


def line(label: str, table: LearningCurves, strategy: str, workers: int, how: Replay) -> None:
    row = replay(table, parse(strategy), workers, how)
    cells = [f"{row['spent']:.1%}", f"{row['spent_max']:.1%}", f"{row['found'] / how.orders:.1%}"]
    cells += [f"{row['as_exhaustive'] / how.orders:.1%}", f"{row['regret_max']:.3f}"]
    cells += [f"{row['time']:.0%}", f"{row['idle']:.0%}"]
    print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def heading(text: str) -> None:
    print("\n" + HEADING.format(text) + "\n" + "| --- " * 8 + "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(logging.ERROR)
    table, how = read_curves("march-2023"), Replay(orders=arguments.orders, seed=arguments.seed)
    heading("strategy, workers")
    for workers in (1, 4, 8):
        for strategy in COMPARED:
            line(f"{strategy}, {workers}", table, strategy, workers, how)
    heading("Optuna told training steps (20 an evaluation), 1 worker")
    for strategy in ("halving", "hyperband", "median"):
        line(strategy, table, strategy, 1, replace(how, step=20))
    heading("TPE chooses the next run, 4 workers")
    for strategy in COMPARED[1:]:
        line(strategy, table, strategy, 4, replace(how, tpe=True))
    many = replace(how, orders=20 * arguments.orders)
    heading(f"rungs in {many.orders} orders, 4 workers")
    for noise, evaluation_noise in ((0.005, 0.0), (0.0, 0.005), (0.005, 0.005), (0.01, 0.01)):
        noisy = replace(many, noise=noise, evaluation_noise=evaluation_noise)
        line(f"noise {noise:g} a curve, {evaluation_noise:g} an evaluation", table, "rungs", 4, noisy)
    heading(f"rungs in {many.orders} orders, 0.005 a curve and an evaluation, without")
    for family in dict.fromkeys(run.family for run in table.runs):
        rest = replace(table, runs=tuple(run for run in table.runs if run.family != family))
        noisy = replace(many, noise=0.005, evaluation_noise=0.005)
        line(f"{family}: {len(rest.runs)} left", rest, "rungs", 4, noisy)
    heading("other rungs, 100 orders, noise 0.005 a curve, 4 workers")
    for options in ("0.02/0.06/0.2/1", "0.02/0.1/0.4/1", "0.04/0.12/0.36/1", "0.02/0.2/1", "0.06/1", "0.1/1", "0.02/1"):
        for keep in ("0.3333333", "0.25"):
            text = f"rungs:fractions={options},keep={keep}"
            line(text, table, text, 4, replace(how, noise=0.005))


if __name__ == "__main__":
    main()
