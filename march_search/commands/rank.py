"""`march-search rank`: rank the architectures of a study, with ties and uncertainty."""

import argparse
import json
import math
import sys
from typing import TYPE_CHECKING

from march_search.commands.options import add_examples, add_format, add_study, refuse_without_effect

if TYPE_CHECKING:
    from pathlib import Path

    from march_search.analysis.evidence import Evidence
    from march_search.ladders.isoflop import IsoflopEvidence
    from march_search.ladders.isoflop_record import IsoflopRecord
    from march_search.ladders.ladder import LadderEvidence
    from march_search.ladders.ladder_record import LadderRecord


def add(rank: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_study(rank)
    add_format(rank, holds="the ranking; json and markdown also every other table of results")
    add_examples(
        rank,
        "march-search rank cpu-demo",
        "march-search rank cpu-demo --format csv > ranking.csv",
        "march-search rank cpu-ladder --at 4M",
    )
    rank.add_argument(
        "--seed-noise",
        default="prior",
        metavar="NATS",
        help="prior standard deviation over seeds: nats, none, or prior (default: recorded for models of this kind)",
    )
    rank.add_argument(
        "--horizon",
        metavar="TOKENS",
        help="also predict the ranking at this data budget, at most 3.3 times the study's, e.g. 10B",
    )
    rank.add_argument(
        "--at",
        metavar="N",
        help="of a study with decay branches, rank at this shorter data budget in tokens, e.g. 2M; of a ladder, "
        "forecast the losses at this budget in parameters (default: one size further), e.g. 64M",
    )
    rank.add_argument(
        "--effects",
        action="store_true",
        help="also print the effect of each dimension, and test named statements, such as those of the 2023 study",
    )
    rank.add_argument(
        "--explain", action="store_true", help="also print all notes, the columns and the methods in full"
    )
    rank.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the ranking."""
    from march_search.analysis.evidence import study_evidence
    from march_search.analysis.shorter_budgets import at_budget
    from march_search.commands.output import print_text
    from march_search.commands.studies import named_study
    from march_search.config.counts import parse_count
    from march_search.errors import visible

    named = named_study(options.study, options.root)
    if ladder := named.ladder():
        return _run_ladder(ladder, named.folder.path.parent, options)
    if isoflop := named.isoflop():
        return _run_isoflop(isoflop, named.folder.path.parent, options)
    study = named.record()
    if options.at:
        study = at_budget(study, parse_count(options.at, "data budget"))
    tokens = parse_count(options.horizon, "horizon") if options.horizon else None
    evidence = study_evidence(
        study,
        assumed=_assumed(options.seed_noise),
        with_seed_noise=options.seed_noise != "none",
        tokens=tokens,
        with_effects=options.effects,
    )
    if options.format == "table":
        _print_tables(evidence, options.explain)
    else:
        print_text(evidence_text(evidence, options.format))
    if options.format == "csv":
        for note in study.notes:
            print(f"march-search: {visible(note)}", file=sys.stderr)
    return 0


def _run_ladder(ladder: "LadderRecord", root: "Path", options: argparse.Namespace) -> int:
    """Print what a ladder shows."""
    from march_search.commands.output import print_text
    from march_search.config.counts import parse_parameters
    from march_search.display import tables
    from march_search.display.ladder_sections import ladder_answer, ladder_sections
    from march_search.errors import UsageError, visible
    from march_search.ladders.ladder import ladder_evidence

    refuse_without_effect(options, ("horizon", "effects", "explain"), f"on {ladder.name}, which is a ladder")
    if options.seed_noise == "none":
        raise UsageError("--seed-noise none: a ladder compares sizes by their seed noise; use prior or nats.")
    found = ladder_evidence(
        ladder, root, _assumed(options.seed_noise), parse_parameters(options.at) if options.at else None
    )
    if options.format != "table":
        print_text(ladder_text(found, options.format))
        for fault in found.forecast_faults if options.format == "csv" else ():
            print(f"march-search: {visible(fault)}", file=sys.stderr)
    else:
        out = tables.console()
        lines = [("Question", ladder.question), ("Answer", ladder_answer(found))]
        tables.print_labelled(out, [line for line in lines if line[1]])
        for section in ladder_sections(found):
            tables.print_table(out, section.rows, section.columns, section.title, section.notes, "", section.warnings)
    return 0


def _run_isoflop(ladder: "IsoflopRecord", root: "Path", options: argparse.Namespace) -> int:
    """Print what a ladder with compute budgets shows."""
    from march_search.commands.output import print_text
    from march_search.display import isoflop_sections, tables
    from march_search.errors import UsageError
    from march_search.ladders.isoflop import isoflop_evidence

    refuse_without_effect(
        options, ("horizon", "effects", "explain", "at"), f"on {ladder.name}, which is a ladder with training_flops"
    )
    if options.seed_noise == "none":
        raise UsageError("--seed-noise none: a ladder compares sizes by their seed noise; use prior or nats.")
    found = isoflop_evidence(ladder, root, _assumed(options.seed_noise))
    if options.format != "table":
        print_text(isoflop_text(found, options.format))
        return 0
    out = tables.console()
    lines = [("Question", ladder.question), ("Answer", isoflop_sections.isoflop_answer(found))]
    tables.print_labelled(out, [line for line in lines if line[1]])
    for section in isoflop_sections.isoflop_sections(found):
        tables.print_table(out, section.rows, section.columns, section.title, section.notes, "", section.warnings)
    return 0


def isoflop_text(found: "IsoflopEvidence", output_format: str) -> str:
    """Return the results of a ladder with compute budgets as JSON, CSV or Markdown."""
    from march_search.display.isoflop_sections import isoflop_markdown, isoflop_rows, isoflop_values
    from march_search.display.tables import csv_text

    if output_format == "json":
        return json.dumps(isoflop_values(found), indent=1, allow_nan=False) + "\n"
    if output_format == "markdown":
        return isoflop_markdown(found)
    rows = isoflop_rows(found)
    return csv_text(rows, list(rows[0]))


def ladder_text(found: "LadderEvidence", output_format: str) -> str:
    """Return the results of a ladder as JSON, CSV or Markdown."""
    from march_search.display.ladder_sections import ladder_markdown, ladder_rows, ladder_values
    from march_search.display.tables import csv_text

    if output_format == "json":
        return json.dumps(ladder_values(found), indent=1, allow_nan=False) + "\n"
    if output_format == "markdown":
        return ladder_markdown(found)
    rows = ladder_rows(found)
    return csv_text(rows, list(rows[0]))


def _assumed(text: str) -> float | None:
    """Return the deviation given by --seed-noise, or None for "prior" and "none".

    Raises:
        UsageError: If the text is neither a valid number of nats, "prior" nor "none".
    """
    from march_search.errors import UsageError

    if text in ("prior", "none"):
        return None
    try:
        nats = float(text)
    except ValueError:
        nats = math.nan
    if not 0 < nats < 100:
        raise UsageError(f"--seed-noise {text}: must be nats above 0 (e.g. 0.006), prior, or none.")
    return nats


def evidence_text(evidence: "Evidence", output_format: str) -> str:
    """Return all results as text.

    Args:
        evidence: Results of a study.
        output_format: `json`: one object; `csv`: the ranked and the unranked rows; `markdown`: every table with notes.
    """
    from march_search.display.sections import json_values, markdown_sections
    from march_search.display.tables import csv_text

    if output_format == "json":
        return json.dumps(json_values(evidence), indent=1, allow_nan=False) + "\n"
    if output_format == "markdown":
        return markdown_sections(evidence)
    rows = [*evidence.ranking.rows, *evidence.ranking.others]
    first = ["rank", "name", "loss", "level_tokens", "interval_low", "interval_high", "interval_kind", "letters"]
    first += ["probability_best", "bits_per_byte", "perplexity"]
    first += ["context_gain", "tokens", "tokens_per_second", "compute_equivalent_gain", "state", "reason"]
    return csv_text(rows, list(dict.fromkeys([*first, *(key for row in rows for key in row)])))


def _print_tables(evidence: "Evidence", is_explained: bool) -> None:
    """Print the answer, the ranking with the notes that matter, then the other tables."""
    from march_search.display import architectures, tables
    from march_search.display.notes import shown_notes, study_notes
    from march_search.display.sections import heading_lines, sections
    from march_search.display.sentences import explanation

    out = tables.console()
    tables.print_labelled(out, heading_lines(evidence))
    first, *others = sections(evidence)
    legend = architectures.NARROW_LEGEND if is_explained else ""
    tables.print_table(out, first.rows, first.columns, first.title, legend=legend, breaks=first.breaks)
    notes = study_notes(evidence)
    tables.print_notes(
        out,
        [(n.full if is_explained else n.text, n.is_warning) for n in (notes if is_explained else shown_notes(notes))],
    )
    if is_explained:
        out.print("columns and methods", style="bold")
        tables.print_notes(out, [(line, False) for line in explanation(evidence)])
    for section in others:
        tables.print_table(out, section.rows, section.columns, section.title, section.notes, "", section.warnings)
