"""Whether a study that was run again says what a kept table says: python scripts/compare_results.py TABLE.csv STUDY

TABLE.csv is what `march-search report STUDY --tables DIR` wrote, such as studies/results/glu.csv; STUDY is a folder
below runs/, or its name. On the same processor and libraries losses come out equal to the last digit. Elsewhere two
runs of one trial differ by rounding that training amplifies: in 95 % of cases no more than two seeds of a shape do.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

from march_search.analysis.comparison import CONFIDENCE
from march_search.analysis.noise import seed_noise
from march_search.analysis.study_record import read_study
from march_search.errors import MarchSearchError


def main(table: str, study: str) -> int:
    """Prints every trial of both; 0 if all agree, 1 if one does not, 2 if nothing can be compared."""
    from scipy.special import stdtrit

    kept: dict[tuple[str, str, str], float] = {}
    seeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    with Path(table).open(newline="") as file:
        for row in csv.DictReader(file):
            if row["state"] == "complete":
                kept[row["name"], row["seed"], row["learning_rate"]] = float(row["loss"])
                seeds[row["name"], row["learning_rate"]].append(float(row["loss"]))
    noise = seed_noise(list(seeds.values()))
    assert noise is not None
    degrees = noise.degrees if noise.is_measured else 1e9
    most = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * noise.deviation * 2**0.5
    compared, apart = 0, 0
    print(f"{'trial':58s} {'kept':>9s} {'again':>9s} {'difference':>11s}")
    for trial in read_study(study, Path("runs")).trials:
        rate = f"{trial.config.training.learning_rate:g}"
        there = kept.get((trial.architecture.name, str(trial.seed), rate))
        if there is None or trial.loss is None or trial.state != "complete":
            continue
        difference = trial.loss - there
        compared, apart = compared + 1, apart + (abs(difference) > most)
        mark = "  apart" if abs(difference) > most else ""
        print(
            f"{trial.architecture.name} s{trial.seed}".ljust(58),
            f"{there:9.6f} {trial.loss:9.6f} {difference:+11.6f}{mark}",
        )
    if not compared:
        print("no complete trial is in both.", file=sys.stderr)
        return 2
    print(f"{compared - apart} of {compared} agree within {most:.4f} nats (95 %: of two seeds, {noise.source}).")
    return int(apart > 0.05 * compared + 1)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {(__doc__ or '').splitlines()[0].split(': ', 1)[1]}")
    try:
        sys.exit(main(*sys.argv[1:]))
    except (MarchSearchError, OSError) as error:
        sys.exit(str(error))
