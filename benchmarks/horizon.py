"""Measure how differences between recorded runs changed with further tokens, and how often intervals from them hold.

    python benchmarks/horizon.py [--write]

The runs are the 25 of the 2023 study (tables/march-2023.json: constant learning rate, 1000 steps) and the 90 of
studies/results (linear decay, 1M tokens). A pair of runs is compared after `t` and after `ratio` times `t` tokens. On
the 2023 runs `t` is at least a fifth of the budget; pairs of studies/results belong to one study and one seed.

For each ratio, the script prints which share of a difference was kept, and quantiles of what remains, as multiples of
the difference plus `OFFSET` nats (the wider of both sources). Then it prints the coverage of 95% intervals on held-out
pairs: those with a run of a family of the 2023 study, those of one of the own studies, and those of a whole source,
each calibrated without any of their runs. `--write` prints the table for march_search/analysis/order_changes.py.
"""

import argparse
import csv
import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from march_search.analysis.order_changes import LEVELS, OFFSET, RATIOS, Changes

ROOT = Path(__file__).parent.parent

FIRST_SHARE = 0.2
"""Share of the budget from which pairs of the 2023 study are compared."""


@dataclass(frozen=True)
class Pair:
    """Two recorded runs of one source, compared twice."""

    source: str
    groups: frozenset[str]
    """Families or studies of the two runs."""
    ratio: float
    before: float
    """Difference of their losses after some tokens, in nats."""
    after: float
    """Difference of their losses after `ratio` times as many."""


def march_pairs() -> list[Pair]:
    """Return the pairs of the 2023 study."""
    runs = json.loads((ROOT / "tables" / "march-2023.json").read_text())["runs"]
    found = []
    for a, b in itertools.combinations(runs, 2):
        gaps = [x[1] - y[1] for x, y in zip(a["evaluations"], b["evaluations"], strict=True)]
        for start in range(int(FIRST_SHARE * len(gaps)), len(gaps) + 1):
            for ratio in RATIOS:
                stop = round(start * ratio)
                if stop <= len(gaps):
                    groups = frozenset({a["family"], b["family"]})
                    found.append(Pair("2023", groups, ratio, gaps[start - 1], gaps[stop - 1]))
    return found


@dataclass(frozen=True)
class OwnRun:
    """A complete run of the own studies, evaluated five times."""

    name: str
    seed: str
    studies: frozenset[str]
    losses: tuple[float, ...]
    gains: tuple[float, ...]
    """Context gains; empty for decoder-only models."""


def own_runs() -> list[OwnRun]:
    """Return the runs of the own studies, each once."""
    studies: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    curves: dict[tuple[str, str, str], tuple[tuple[float, ...], ...]] = {}
    for path in sorted((ROOT / "studies" / "results").glob("*.csv")):
        with path.open() as lines:
            for row in csv.DictReader(lines):
                run = row["name"], row["learning_rate"], row["seed"]
                losses, gains = (
                    tuple(float(value) for key, value in row.items() if key.startswith(f"{kind}@") and value)
                    for kind in ("loss", "context_gain")
                )
                if len(losses) == 5:
                    studies[run].add(path.stem)
                    curves[run] = losses, gains
    return [OwnRun(run[0], run[2], frozenset(studies[run]), *curves[run]) for run in sorted(curves)]


def own_couples() -> list[tuple[OwnRun, OwnRun]]:
    """Return the pairs of runs of one study and one seed; a pair that several studies share counts once."""
    couples = itertools.combinations(own_runs(), 2)
    return [(a, b) for a, b in couples if a.seed == b.seed and a.name != b.name and a.studies & b.studies]


def own_pairs() -> list[Pair]:
    """Return the pairs of the own studies."""
    found = []
    for a, b in own_couples():
        for start, stop in itertools.combinations(range(1, 6), 2):
            gaps = [a.losses[n - 1] - b.losses[n - 1] for n in (start, stop)]
            ratios = [ratio for ratio in RATIOS if abs(stop / start - ratio) < 0.01]
            found += [Pair("own", a.studies | b.studies, ratio, *gaps) for ratio in ratios]
    return found


@dataclass(frozen=True)
class EarlyOrder:
    """What became of differences that were seen early."""

    pairs: int
    kept_order: float
    """Share of pairs that kept their order."""
    kept_difference: float
    """Median share of a difference of at least 0.05 nats that was kept."""


def early_order(before: list[float], after: list[float]) -> EarlyOrder:
    """Return what became of differences."""
    early, late = np.array(before), np.array(after)
    wide = np.abs(early) >= 0.05
    return EarlyOrder(len(early), float(np.mean(early * late > 0)), float(np.median(late[wide] / early[wide])))


def recorded_orders() -> dict[str, EarlyOrder]:
    """Return what became of the order of early evaluations by the end, for both sources.

    2023: from 30% of the tokens. Own: from a fifth, for pairs of which neither model used its input there (context gain
    below 0.05).
    """
    runs = json.loads((ROOT / "tables" / "march-2023.json").read_text())["runs"]
    pairs = list(itertools.combinations([[loss for _, loss in run["evaluations"]] for run in runs], 2))
    couples = [(a, b) for a, b in own_couples() if a.gains and b.gains and max(a.gains[0], b.gains[0]) < 0.05]
    return {
        "2023": early_order([a[14] - b[14] for a, b in pairs], [a[-1] - b[-1] for a, b in pairs]),
        "own": early_order(
            [a.losses[0] - b.losses[0] for a, b in couples], [a.losses[-1] - b.losses[-1] for a, b in couples]
        ),
    }


def calibrate(pairs: list[Pair], ratio: float) -> Changes:
    """Return the changes at one ratio: the mean of both sources' shares, and the wider of their quantiles."""
    sources = defaultdict(list)
    for pair in pairs:
        if pair.ratio == ratio:
            sources[pair.source].append((pair.before, pair.after))
    known = [np.array(values).T for values in sources.values()]
    shares = [
        np.median(after[wide] / before[wide]) for before, after in known if (wide := np.abs(before) >= 0.05).any()
    ]
    kept = float(np.mean(shares))
    scores = [np.abs(after - kept * before) / (np.abs(before) + OFFSET) for before, after in known]
    return Changes(kept, tuple(np.max([np.quantile(s, LEVELS) for s in scores], axis=0).tolist()))


def coverage(tested: list[Pair], used: list[Pair]) -> dict[float, float]:
    """Return the share of pairs inside their 95% interval, by ratio."""
    shares = {}
    for ratio, changes in table(used).items():
        own = np.array([(p.before, p.after) for p in tested if p.ratio == ratio])
        if len(own):
            half = changes.quantiles[LEVELS.index(0.95)] * (np.abs(own[:, 0]) + OFFSET)
            shares[ratio] = float(np.mean(np.abs(own[:, 1] - changes.kept * own[:, 0]) <= half))
    return shares


def table(pairs: list[Pair]) -> dict[float, Changes]:
    """Return the changes at each ratio; quantiles never fall with the ratio."""
    found = {ratio: calibrate(pairs, ratio) for ratio in RATIOS if any(p.ratio == ratio for p in pairs)}
    widest = np.maximum.accumulate([changes.quantiles for changes in found.values()])
    kept = np.minimum.accumulate([changes.kept for changes in found.values()])
    return {ratio: Changes(float(kept[n]), tuple(widest[n].tolist())) for n, ratio in enumerate(found)}


def main() -> None:
    """Print the table, and the coverage on held-out runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="print the table as Python")
    options = parser.parse_args()
    pairs = march_pairs() + own_pairs()
    found = table(pairs)
    if options.write:
        for ratio, changes in found.items():
            numbers = ", ".join(f"{value:.3f}" for value in changes.quantiles)
            print(f"    {ratio:.2f}: Changes({changes.kept:.3f}, ({numbers})),")
        return
    print(f"ratio: share of a difference kept; quantiles {LEVELS} of the rest; pairs that kept their order")
    for ratio, changes in found.items():
        signs = {
            source: np.mean([p.before * p.after > 0 for p in pairs if p.ratio == ratio and p.source == source])
            for source in ("2023", "own")
            if any(p.ratio == ratio and p.source == source for p in pairs)
        }
        order = ", ".join(f"{share:.3f} ({source})" for source, share in signs.items())
        print(f"{ratio:.2f}: {changes.kept:.2f}; {np.round(changes.quantiles, 3)}; {order}")
    for source, early in recorded_orders().items():
        print(
            f"early order to the end, {source}: {early.pairs} pairs, {early.kept_order:.3f} kept their order, "
            f"{early.kept_difference:.3f} of a difference was kept"
        )
    print("coverage of 95% intervals on held-out pairs, by ratio")
    for source in ("2023", "own"):
        own = [p for p in pairs if p.source == source]
        rows = []
        for group in sorted({group for p in own for group in p.groups}):
            tested = [p for p in own if group in p.groups]
            used = [p for p in pairs if p.source != source or group not in p.groups]
            rows.append(coverage(tested, used))
            print(f"  {source}, without {group}: {_shares(rows[-1])}")
        means = {ratio: float(np.mean([row[ratio] for row in rows])) for ratio in rows[0]}
        print(f"  {source}, mean of these: {_shares(means)}")
        others = [p for p in pairs if p.source != source]
        print(f"  {source}, from the other source alone: {_shares(coverage(own, others))}")
    print("coverage by size of the difference, without the pair's families or studies")
    for low, high in itertools.pairwise((0.0, 0.02, 0.05, 0.1, np.inf)):
        sized = [p for p in pairs if low <= abs(p.before) < high]
        rows = []
        for source in ("2023", "own"):
            for group in sorted({group for p in pairs if p.source == source for group in p.groups}):
                tested = [p for p in sized if p.source == source and group in p.groups]
                used = [p for p in pairs if p.source != source or group not in p.groups]
                if tested:
                    rows.append(coverage(tested, used))
        means = {ratio: float(np.mean([row[ratio] for row in rows if ratio in row])) for ratio in RATIOS}
        print(f"  {low:.2f} to {high:.2f} nats: {_shares(means)}")


def _shares(values: dict[float, float]) -> str:
    """Format shares by ratio."""
    return ", ".join(f"{ratio:.2f}: {share:.3f}" for ratio, share in values.items())


if __name__ == "__main__":
    main()
