"""Compute every figure of studies/FINDINGS.md from the trials in studies/results/*.csv.

    python scripts/findings.py            prints the tables
    python scripts/findings.py --write    writes them into the page
    python scripts/findings.py --check    exits with 1 if the page has other tables

All contrasts of all studies form one family. Trials at other learning rates than 2e-3 (`learning-rates`) count for the
architectures that have them. The losses of single examples are not stored. Each study's page states the largest
deviation over documents of a difference to the best arm; it is taken for every pair.
"""

import csv
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from march_search.analysis.findings import Answer, Step, family
from march_search.analysis.measurement import Measured, Trials
from march_search.analysis.noise import DataNoise, seed_noise
from march_search.analysis.statements import NOTHING_NATS
from march_search.architecture.architecture import Architecture

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "studies" / "FINDINGS.md"
RESULTS = ROOT / "studies" / "results"
SHARED_RATE = 2e-3
LADDER_STUDY = "learning-rates"
BEGIN, END = "<!-- Made by scripts/findings.py. -->", "<!-- End of the part made by scripts/findings.py. -->"

WORDS = {"yes": "supported", "no": "contradicted", "at this rate": "at 2e-3"}
"""Words of the analysis, and those of the page."""


def losses(study: str) -> dict[str, dict[float, list[float]]]:
    """Return the losses of a study's seeds by architecture and learning rate, in the order of its table."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (RESULTS / f"{study}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["name"]][float(row["learning_rate"])].append(float(row["loss"]))
    return found


def document_deviation(study: str) -> float:
    """Return the largest deviation over documents of a difference to the best arm, in nats, from a study's page."""
    text = (RESULTS / f"{study}.md").read_text()
    [found] = re.findall(r"deviations of the differences to the best are up to ([\d.]+) nats", text)
    return float(found)


def document_count(study: str) -> int:
    """Return the number of documents that a study's page states."""
    [found] = re.findall(r"paired losses on the same (\d+) documents", (RESULTS / f"{study}.md").read_text())
    return int(found)


def trials(study: str) -> Trials:
    """Return the trials of a study, with those of the same architectures at other learning rates."""
    own, ladder = losses(study), losses(LADDER_STUDY)
    shapes = [Architecture.parse(name) for name in own]
    at_shared = [tuple(rates[SHARED_RATE]) for rates in own.values()]
    rates = [{**ladder.get(name, {}), **by_rate} for name, by_rate in own.items()]
    covariance = document_deviation(study) ** 2 / 2 * np.eye(len(shapes))
    return Trials(
        architectures=shapes,
        means=[statistics.fmean(values) for values in at_shared],
        counts=[len(values) for values in at_shared],
        rates=rates,
        seeds=seed_noise(shapes, at_shared),
        data=DataNoise(covariance, document_count(study) - 1),
    )


def studies() -> list[str]:
    """Return the names of the studies whose contrasts form the family."""
    return sorted(path.stem for path in RESULTS.glob("*.csv") if path.stem != LADDER_STUDY)


def answers() -> dict[str, tuple[Answer, ...]]:
    """Return the answers of every study, with one correction over all their contrasts."""
    tested = family([trials(study) for study in studies()])
    return {
        study: tuple(answer for answer in found if answer.steps) for study, found in zip(studies(), tested, strict=True)
    }


def contrast_rows(tested: dict[str, tuple[Answer, ...]]) -> list[tuple[str, ...]]:
    """Return one row per contrast: study, statement, step, difference, both intervals and the verdict."""
    return [
        (
            f"`{study}`",
            answer.statement,
            step.step or "two groups",
            with_interval(step.at_rate),
            _p(step.adjusted_p_at_rate),
            _range(step),
            _p(step.adjusted_p),
            in_page_words(step.answer),
        )
        for study, found in tested.items()
        for answer in found
        for step in answer.steps
    ]


def in_page_words(answer: str) -> str:
    """Return an answer of the analysis in the words of the page."""
    return re.sub(r"\byes\b|\bno\b|at this rate", lambda found: WORDS[found[0]], answer)


def march_rows(tested: dict[str, tuple[Answer, ...]]) -> list[tuple[str, ...]]:
    """Return one row per step that both this repository and the 2023 study measured: layers 4, 2 and 1."""
    runs = json.loads((ROOT / "tables" / "march-2023.json").read_text())["runs"]
    last = {
        (run["family"], Architecture.parse(run["architecture"]).num_layers): run["evaluations"][-1][1] for run in runs
    }
    rows = []
    for study, statement, kind in (
        ("heads-layers", "more heads and fewer layers are better", "heads_vs_layers"),
        ("dims-layers", "a wider model with fewer layers is better", "dim_vs_layers"),
    ):
        [answer] = [answer for answer in tested[study] if answer.statement == statement]
        for step in answer.steps:
            start, end = (int(number) for number in re.findall(r"\d+", step.step))
            then, here = last[kind, end] - last[kind, start], step.at_rate.difference
            agrees = "equal" if then * here > 0 else "different"
            rows.append((statement, step.step, f"{then:+.3f}", f"{here:+.3f}", agrees))
    return rows


def figures() -> set[str]:
    """Return every figure that the page may quote: those of the tables, the losses of arms, and the margin."""
    every = (*studies(), LADDER_STUDY)
    means = {statistics.fmean(values) for s in every for rates in losses(s).values() for values in rates.values()}
    return set(re.findall(r"[+-]?\d\.\d{3,4}(?!\d)", tables())) | {f"{mean:.3f}" for mean in {*means, NOTHING_NATS}}


def tables() -> str:
    """Return the generated part of the page."""
    tested = answers()
    return "\n\n".join(
        [
            _table(
                ("study", "statement", "step", "at 2e-3", "p", "with the learning rate", "p", "verdict"),
                contrast_rows(tested),
            ),
            "### The steps that 2023 measured, too",
            _table(("statement", "step", "2023", "here", "sign"), march_rows(tested)),
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Print, write or check the tables and return the exit code."""
    made = tables()
    if not {"--write", "--check"} & set(arguments):
        print(made)
        return 0
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    page = f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}"
    if "--check" in arguments:
        if page != text:
            print("studies/FINDINGS.md is not current; run python scripts/findings.py --write", file=sys.stderr)
        return int(page != text)
    PAGE.write_text(page)
    return 0


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_interval(measured: Measured) -> str:
    """Return a difference with its interval."""
    return f"{measured.difference:+.3f} {_interval(measured)}"


def _interval(measured: Measured) -> str:
    """Return the interval of a difference."""
    assert measured.interval
    return f"[{measured.interval.low:.3f}, {measured.interval.high:.3f}]"


def _range(step: Step) -> str:
    """Return the interval with the learning rate, and the differences at each rate if several were measured."""
    if not step.by_rate:
        return _interval(step.over_rates)
    values = ", ".join(f"{difference:+.3f}" for difference in step.by_rate.values())
    return f"{values} {_interval(step.over_rates)}"


def _p(p: float) -> str:
    """Return a corrected p-value."""
    return "<0.001" if p < 0.001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
