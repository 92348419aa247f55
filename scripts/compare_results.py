"""Compare the losses of a study with those in a stored table, such as studies/results/glu.csv.

    python scripts/compare_results.py studies/results/glu.csv cpu/glu

On the same processor with the same libraries, losses are equal to the last digit. On other machines, training amplifies
rounding differences. The script marks losses that differ by more than two seeds of one shape do in 95% of cases. It
exits with 0 if the losses agree, 1 if too many differ, and 2 if no trial can be compared.
"""

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from march_search.analysis.comparison import CONFIDENCE
from march_search.analysis.noise import seed_noise
from march_search.architecture.architecture import Architecture
from march_search.commands.studies import named_study
from march_search.errors import MarchSearchError


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare a table with a study and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, metavar="TABLE", help="CSV file written by march-search report --tables")
    parser.add_argument("study", metavar="STUDY", help="a shipped study, a TOML file, or a study by name or folder")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of the studies (default: runs)")
    options = parser.parse_args(arguments)
    try:
        return compare(options.table, options.study, options.root)
    except (MarchSearchError, OSError) as error:
        print(f"compare_results.py: {error}", file=sys.stderr)
        return 2


def compare(table: Path, study: str, root: Path) -> int:
    """Print the losses of every trial in both and return the exit code."""
    from scipy.special import stdtrit

    stored: dict[tuple[str, str, str], float] = {}
    seeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["state"] == "complete":
                stored[row["name"], row["seed"], row["learning_rate"]] = float(row["loss"])
                seeds[row["name"], row["learning_rate"]].append(float(row["loss"]))
    if not stored:
        print(f"{table}: the table has no complete trial.", file=sys.stderr)
        return 2
    noise = seed_noise([Architecture.parse(name) for name, _ in seeds], list(seeds.values()))
    tolerances = {
        key: float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * deviation * 2**0.5
        for key, deviation, degrees in zip(seeds, noise.deviations, noise.degrees, strict=True)
    }
    record, compared, differing = named_study(study, root).record(), 0, 0
    print(f"{'trial':58s} {'table':>9s} {'study':>9s} {'difference':>11s}")
    for trial in record.trials:
        rate = f"{trial.config.training.learning_rate:g}"
        loss = stored.get((trial.architecture.name, str(trial.seed), rate))
        if loss is None or trial.loss is None or trial.state != "complete":
            continue
        difference = trial.loss - loss
        differs = abs(difference) > tolerances[trial.architecture.name, rate]
        compared, differing = compared + 1, differing + differs
        mark = "  differs" if differs else ""
        print(
            f"{trial.architecture.name} s{trial.seed}".ljust(58),
            f"{loss:9.6f} {trial.loss:9.6f} {difference:+11.6f}{mark}",
        )
    if not compared:
        print("no complete trial of the study is in the table.", file=sys.stderr)
        return 2
    print(f"{compared - differing} of {compared} agree (95% of pairs of seeds of one shape differ by no more).")
    return int(differing > 0.05 * compared + 1)


if __name__ == "__main__":
    sys.exit(main())
