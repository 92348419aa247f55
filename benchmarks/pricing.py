"""Compare predicted with published training speeds on GPUs, for sources and shapes that the fit has not seen.

    python benchmarks/pricing.py

The rows are the 44 published throughputs of `tests/reference/published-throughput.json`, of five other programs on A100
and H100, and the recorded minutes of the 25 runs of 2023 on 8 A5000. One fit explains all of them with the six numbers
of `march_search.cost.devices.GpuConstants` and one of the 2023 software, `STUDY_LAYER_SECONDS`. It minimises squared
errors of the logarithm of time, in which a source counts as at most `WEIGHT` rows, plus the squared distance from
`PRIOR` in units of `DEVIATIONS`.

Rows are held out in two ways: one source or one family of the 2023 shapes at a time, which corresponds to pricing
something that nobody has timed, and every second row.
"""

import json
import statistics
import sys
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.reference import FOLDER, march_architecture, march_runs

from march_search import Architecture
from march_search.cost.devices import A100_FLOPS, DATA_SHEETS, GpuConstants, gpu
from march_search.cost.setup import Setup
from march_search.cost.speed import Seconds, seconds_per_token

NAMES = ("products", "decline", "attention", "passes", "compiled", "score_bytes", "STUDY_LAYER_SECONDS")

PRIOR = np.log([0.7, 0.14, 0.55, 1.4, 0.5, 40.0, 7e-7])
"""Expected values of `NAMES`: products reach 200 to 230 of 312 TFLOP/s on an A100 and 600 to 650 of 989 on an H100;
fused attention reaches 0.5 to 0.6 of that; normalisation, casts and dropout read some bytes again; fusing the
operations of a layer leaves about half; a score is written and read about ten times in 2 or 4 bytes."""

DEVIATIONS = np.array([0.15, 0.3, 0.3, 0.3, 0.3, 0.5, 1.0])
"""How far the logarithms may plausibly lie from `PRIOR`."""

NOISE = 0.15
"""Expected error of the logarithm of one row's time, which sets the weight of rows against `PRIOR`."""

WEIGHT = 5
"""Number of rows that one source or family counts as at most: its rows share the habits of one program."""


class Row(NamedTuple):
    """A shape whose training speed is known."""

    source: str
    """Where it was published, or the family of a run of 2023."""
    label: str
    device: str
    seconds: float
    """Seconds per token of text on one device."""
    unit: Seconds
    """Predicted seconds if every constant were 1, with scores only where the software kept them."""
    flops: float
    """The device's peak."""
    is_compiled: bool
    """Whether the program used torch.compile."""
    is_march: bool
    """Whether it is a run of 2023."""


ONES = GpuConstants(products=1.0, decline=0.0, attention=1.0, passes=1.0, compiled=1.0, score_bytes=1.0)


def _row(fact: dict[str, Any], a: Architecture, is_march: bool, **setup: Any) -> Row:
    """Return the row of a published fact, whose keys are those of `published-throughput.json`."""
    device = gpu(fact["device"], *DATA_SHEETS[fact["device"]], constants=ONES)
    unit = seconds_per_token(a, Setup(device=replace(device, all_scores=True, layer_seconds=1.0), **setup))
    return Row(
        source=fact["source"],
        label=fact["architecture"],
        device=fact["device"],
        seconds=1 / fact["tokens_per_second"],
        unit=unit if fact["keeps_scores"] else unit._replace(scores=0.0),
        flops=device.bf16_flops,
        is_compiled=fact["is_compiled"],
        is_march=is_march,
    )


@lru_cache
def rows() -> tuple[Row, ...]:
    """Return the published rows, then the 25 runs of 2023.

    The log of 2023 does not record how many of 1,024 positions an example used.
    """
    published = json.loads((FOLDER / "published-throughput.json").read_text())["rows"]
    found = [
        _row(
            fact,
            Architecture.parse(fact["architecture"]),
            False,
            sequence_length=fact["sequence_length"],
            micro_batch=fact["micro_batch"],
        )
        for fact in published
    ]
    for run in march_runs():
        fact = {
            "source": f"2023 {run['family']}",
            "architecture": run["name"],
            "device": "A5000",
            "tokens_per_second": 1000 * 1_048_576 / (60 * run["minutes"]) / 8,
            "keeps_scores": True,
            "is_compiled": False,
        }
        found.append(_row(fact, march_architecture(run), True, sequence_length=1024))
    return tuple(found)


def predicted(row: Row, logarithms: Sequence[float]) -> float:
    """Return the predicted seconds per token for the logarithms of `NAMES`."""
    products, decline, attention, passes, compiled, score_bytes, layer_seconds = np.exp(logarithms)
    reached = products * (A100_FLOPS / row.flops) ** decline
    unit = row.unit
    parts = Seconds(
        unit.products / reached,
        unit.attention / (reached * attention),
        unit.memory * passes * (compiled if row.is_compiled else 1.0),
        unit.scores * score_bytes,
        unit.layers * layer_seconds * row.is_march,
        0.0 if row.is_march else unit.launches,
    )
    return float(parts.total)


def fit(seen: Sequence[Row]) -> np.ndarray:
    """Return the logarithms of `NAMES` from these rows and `PRIOR`."""
    sizes = Counter(row.source for row in seen)
    weights = [np.sqrt(min(1.0, WEIGHT / sizes[row.source])) / NOISE for row in seen]

    def residuals(x: np.ndarray) -> np.ndarray:
        misses = [w * np.log(predicted(row, x) / row.seconds) for row, w in zip(seen, weights, strict=True)]
        return np.array([*misses, *((x - PRIOR) / DEVIATIONS)])

    return np.asarray(least_squares(residuals, PRIOR).x)


def held_out(folds: Sequence[Hashable]) -> np.ndarray:
    """Return the relative error of each row's predicted time, from a fit on the rows of all other folds."""
    fits = {name: fit([row for row, other in zip(rows(), folds, strict=True) if other != name]) for name in set(folds)}
    return np.array([predicted(row, fits[name]) / row.seconds - 1 for row, name in zip(rows(), folds, strict=True)])


def by_source() -> np.ndarray:
    """Return the errors with one source or one family of 2023 held out at a time."""
    return held_out([row.source for row in rows()])


def median_size(errors: np.ndarray, chosen: Sequence[bool] | np.ndarray) -> float:
    """Return the median absolute error of the chosen rows."""
    return statistics.median(abs(errors[np.asarray(chosen)]).tolist())


def main() -> None:
    """Print the errors of each row, and the medians of each way of holding out."""
    everything = fit(rows())
    within = np.array([predicted(row, everything) / row.seconds - 1 for row in rows()])
    sources, halves = by_source(), held_out([index % 2 for index in range(len(rows()))])
    print(f"{'source':22}{'shape':58}{'device':10}{'tokens/s':>10}{'fit':>6}{'held out':>9}")
    for row, a, b in zip(rows(), within, sources, strict=True):
        print(f"{row.source:22}{row.label:58}{row.device:10}{1 / row.seconds:10,.0f}{a:+6.0%}{b:+9.0%}")
    is_march = np.array([row.is_march for row in rows()])
    print("median (largest) absolute error of time:")
    for label, chosen in (
        ("published, all", ~is_march),
        *(
            (f"published, {s}", [r.source == s for r in rows()])
            for s in dict.fromkeys(r.source for r in rows() if not r.is_march)
        ),
        *((f"published, {d}", [r.device == d for r in rows()]) for d in ("A100", "A100-40GB", "H100")),
        ("published, T5", [not r.is_march and bool(r.unit.scores) for r in rows()]),
        ("25 runs of 2023", is_march),
    ):
        texts = [
            f"{median_size(e, chosen):.1%} ({abs(e[np.asarray(chosen)]).max():.0%})" for e in (within, sources, halves)
        ]
        print(f"  {label:28} fit {texts[0]:14} source or family held out {texts[1]:14} every second row {texts[2]}")
    middle = [
        median_size(sources, [r.source == s for r in rows()]) for s in {r.source for r in rows() if not r.is_march}
    ]
    print(f"  median over the sources: {statistics.median(middle):.1%}")
    print(", ".join(f"{name}={value:.3g}" for name, value in zip(NAMES, np.exp(everything), strict=True)))


if __name__ == "__main__":
    main()
