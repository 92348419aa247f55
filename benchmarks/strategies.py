"""Replay search strategies on the 25 recorded runs of 2023, for several numbers of workers and levels of noise.

    python benchmarks/strategies.py [--orders 100] [--seed 0]

The benchmark trains nothing. Its figures depend on the seed and not on the machine.
"""

import argparse
import logging
from dataclasses import replace

import optuna

from march_search.replay.learning_curves import LearningCurves, read_curves
from march_search.replay.strategies import Replay, parse, replay

COMPARED = ("rungs", "halving", "halving:min_resource=1", "hyperband", "median", "percentile")
HEADING = "| {} | spent | at most | best found | as exhaustive | worst regret | time | idle |"


def print_row(label: str, table: LearningCurves, strategy: str, workers: int, how: Replay) -> None:
    """Replay a strategy and print one row of a Markdown table."""
    row = replay(table, parse(strategy), workers, how)
    cells = [f"{row['spent']:.1%}", f"{row['spent_max']:.1%}", f"{row['found'] / how.orders:.1%}"]
    cells += [f"{row['as_exhaustive'] / how.orders:.1%}", f"{row['regret_max']:.3f}"]
    cells += [f"{row['time']:.0%}", f"{row['idle']:.0%}"]
    print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def print_heading(text: str) -> None:
    """Print the heading of a Markdown table."""
    print("\n" + HEADING.format(text) + "\n" + "| --- " * 8 + "|")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(logging.ERROR)
    table, how = read_curves("march-2023"), Replay(orders=arguments.orders, seed=arguments.seed)
    print_heading("strategy, workers")
    for workers in (1, 4, 8):
        for strategy in COMPARED:
            print_row(f"{strategy}, {workers}", table, strategy, workers, how)
    print_heading("Optuna counts training steps (20 per evaluation), 1 worker")
    for strategy in ("halving", "hyperband", "median"):
        print_row(strategy, table, strategy, 1, replace(how, step=20))
    print_heading("TPE chooses the next run, 4 workers")
    for strategy in COMPARED[1:]:
        print_row(strategy, table, strategy, 4, replace(how, tpe=True))
    many = replace(how, orders=20 * arguments.orders)
    print_heading(f"rungs in {many.orders} orders, 4 workers")
    for noise, evaluation_noise in ((0.005, 0.0), (0.0, 0.005), (0.005, 0.005), (0.01, 0.01)):
        noisy = replace(many, noise=noise, evaluation_noise=evaluation_noise)
        print_row(f"noise {noise:g} per curve, {evaluation_noise:g} per evaluation", table, "rungs", 4, noisy)
    print_heading(f"rungs in {many.orders} orders, noise 0.005 per curve and per evaluation, without")
    for family in dict.fromkeys(run.family for run in table.runs):
        rest = replace(table, runs=tuple(run for run in table.runs if run.family != family))
        noisy = replace(many, noise=0.005, evaluation_noise=0.005)
        print_row(f"{family}: {len(rest.runs)} left", rest, "rungs", 4, noisy)
    print_heading(f"other rungs in {how.orders} orders, noise 0.005 per curve, 4 workers")
    for options in ("0.02/0.06/0.2/1", "0.02/0.1/0.4/1", "0.04/0.12/0.36/1", "0.02/0.2/1", "0.06/1", "0.1/1", "0.02/1"):
        for keep in ("0.3333333", "0.25"):
            text = f"rungs:fractions={options},keep={keep}"
            print_row(text, table, text, 4, replace(how, noise=0.005))


if __name__ == "__main__":
    main()
