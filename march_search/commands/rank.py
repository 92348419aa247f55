"""`march-search rank`: the architectures of a study in order."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs

if TYPE_CHECKING:
    from march_search.evidence.trials import StudyRecord


def add(verbs: Verbs) -> None:
    """Adds the command to the parser."""
    rank = verbs.add_parser("rank", help="print the architectures of a study in order")
    rank.add_argument("study", metavar="STUDY", help="name of a study below the root, or its folder")
    rank.add_argument("--root", default="runs", metavar="DIR", help="folder of studies (default: runs)")
    rank.add_argument("--format", choices=("table", "json", "csv", "markdown"), default="table")
    rank.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the ranking."""
    from march_search.evidence.ranking import other_rows, ranked_rows
    from march_search.evidence.trials import read_study
    from march_search.report import architectures, tables

    study = read_study(options.study, Path(options.root))
    rows, others = ranked_rows(study), other_rows(study)
    if options.format == "json":
        value = {"schema_version": 1, "study": study.name, "reference": study.reference}
        value |= {"ranked": architectures.public(rows), "not_ranked": architectures.public(others)}
        print(json.dumps(value, indent=1))
    elif options.format == "csv":
        first = ["rank", "name", "loss", "perplexity", "context_gain", "tokens", "tokens_per_second", "state", "reason"]
        keys = list(dict.fromkeys([*first, *architectures.public([*rows, *others])[0]]))
        sys.stdout.write(tables.csv_text(architectures.public([*rows, *others]), keys))
    elif options.format == "markdown":
        sys.stdout.write(tables.markdown_text(rows, architectures.RANK_COLUMNS))
        if others:
            sys.stdout.write("\nNot ranked:\n\n" + tables.markdown_text(others, architectures.OTHER_COLUMNS))
    else:
        _print_tables(study, rows, others)
    return 0


def _print_tables(study: "StudyRecord", rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """The ranked table, and below it the trials that have no rank."""
    from march_search.report import architectures, tables

    out = tables.console()
    title = f"{study.name}: {len(rows)} of {len(study.trials)} trials complete, ranked by validation loss"
    legend = f"{architectures.NARROW_LEGEND}, gain context gain"
    tables.print_table(out, rows, architectures.RANK_COLUMNS, title, notes(study), legend)
    if others:
        tables.print_table(out, others, architectures.OTHER_COLUMNS, "not ranked")


def notes(study: "StudyRecord") -> list[str]:
    """What a reader of the ranking has to know, a sentence a line."""
    is_text = study.trials[0].architecture.structure == "decoder-only"
    lines = ["loss: nats per token of text; there is no input apart from it, and so no context gain."]
    if not is_text:
        lines = [
            "loss: nats per target token. "
            "gain: loss with another document's input minus loss; 0: the input is not used."
        ]
    key, where = ("text", "this text") if is_text else ("target", "these targets")
    unigram, bigram = (study.reference.get(f"{key}_{model}_nats") for model in ("unigram", "bigram"))
    if unigram is not None:
        pairs = "" if bigram is None else f", one that knows pairs of tokens {bigram:.3f}"
        lines.append(f"A model that knows only token frequencies has a loss of {unigram:.3f} on {where}{pairs}.")
    if len({t.seed for t in study.trials}) == 1:
        lines.append(
            "One seed each: differences of the size of seed noise (0.005-0.010 nats in published runs) mean nothing."
        )
    return lines
