"""Replay search strategies on the 25 recorded runs of 2023, with several workers, levels of noise and random pools.

    python benchmarks/strategies.py [--replays 100] [--seed 0]

The benchmark trains nothing. Its figures depend on the seed and not on the machine. Its last tables are those of
`benchmarks/rungs.py`, which chooses the default rungs.
"""

import argparse
import logging
from dataclasses import replace

import optuna
import rungs

from march_search.replay.learning_curves import LearningCurves, read_curves
from march_search.replay.pools import Replay, replay
from march_search.replay.strategies import parse

COMPARED = (
    "rungs",
    "asha",
    "asha:fractions=0.02/0.08/0.32/1,reduction_factor=4",
    "halving",
    "halving:min_resource=1",
    "hyperband",
    "median",
    "percentile",
    "exhaustive",
)
HEADING = "| {} | observations | spent (maximum) | best found | mean regret (worst) | time (idle) |"


def print_row(label: str, table: LearningCurves, strategy: str, workers: int, how: Replay) -> None:
    """Replay a strategy and print one row of a Markdown table."""
    row = replay(table, parse(strategy), workers, how)
    cells = [str(row["replays"]), f"{row['spent']:.1%} ({row['spent_max']:.1%})"]
    cells += [f"{row['found']:.0%} ({100 * row['found_low']:.0f}–{100 * row['found_high']:.0f})"]
    error = "" if row["regret_error"] is None else f" ± {1.96 * row['regret_error']:.4f}"
    cells += [f"{row['regret']:.4f}{error} ({row['regret_max']:.3f})", f"{row['time']:.0%} ({row['idle']:.0%})"]
    print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def print_heading(text: str) -> None:
    """Print the heading of a Markdown table."""
    print("\n" + HEADING.format(text) + "\n" + "| --- " * 6 + "|")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(logging.ERROR)
    table, how = read_curves("march-2023"), Replay(replays=arguments.replays, seed=arguments.seed)
    noisy = replace(how, pool=18, noise=0.006, evaluation_noise=0.005, replays=5 * how.replays)
    for title, setting in (
        ("25 runs without noise: orders of one pool", how),
        (f"{noisy.replays} pools of 18 runs with noise", noisy),
    ):
        for workers in (1, 4, 8):
            print_heading(f"{title}, {workers} worker{'s' * (workers > 1)}")
            for strategy in COMPARED:
                print_row(strategy, table, strategy, workers, setting)
    print_heading("Optuna counts training steps (20 per evaluation), 1 worker")
    for strategy in ("halving", "hyperband", "median"):
        print_row(strategy, table, strategy, 1, replace(how, step=20))
    print_heading("TPE chooses the next run, 4 workers")
    for strategy in COMPARED[3:-1]:
        print_row(strategy, table, strategy, 4, replace(how, tpe=True))
    many = replace(noisy, replays=20 * how.replays)
    print_heading(f"rungs, {many.replays} draws, 4 workers")
    for noise, evaluation_noise in ((0.006, 0.0), (0.0, 0.005), (0.006, 0.005), (0.012, 0.01)):
        for pool in (18, 25):
            label = f"{pool} runs, noise {noise:g} per curve, {evaluation_noise:g} per evaluation"
            drawn = replace(many, pool=pool, noise=noise, evaluation_noise=evaluation_noise)
            print_row(label, table, "rungs", 4, drawn)
    rungs.print_tables(20 * arguments.replays, arguments.seed)


if __name__ == "__main__":
    main()
