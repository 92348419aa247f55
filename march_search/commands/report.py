"""`march-search report`: write a study, or a comparison of studies, as one HTML page or as text, with its figures."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from march_search.commands.options import STUDY_HELP, add_examples, add_root, refuse_without_effect, root_option

if TYPE_CHECKING:
    from march_search.analysis.evidence import Evidence
    from march_search.analysis.study_comparison import StudyComparison
    from march_search.commands.studies import NamedStudy


_ENDINGS = {"html": "html", "json": "json", "csv": "csv", "markdown": "md"}
"""File name endings of the formats."""


def add(report: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    report.add_argument("study", nargs="+", metavar="STUDY", help=f"{STUDY_HELP}; several are compared with the first")
    add_root(report)
    report.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="output file, - for stdout (default: report.html in the study folder; needed to compare)",
    )
    report.add_argument(
        "--format",
        choices=tuple(_ENDINGS),
        default="html",
        help="html: one page with figures; json, csv and markdown: what rank prints in that format (default: html)",
    )
    add_examples(
        report,
        "march-search report cpu-demo -o report.html",
        "march-search report cpu-demo --figures figures",
        "march-search report cpu-demo my-study -o compare.html",
    )
    report.add_argument(
        "--figures",
        metavar="DIR",
        help="also write each figure to DIR, one column of a paper wide, as SVG and, with resvg-py, PNG",
    )
    report.add_argument(
        "--tables",
        metavar="DIR",
        help="also write a summary, STUDY.md, and all learning curves, STUDY.csv, to DIR",
    )
    report.add_argument(
        "--horizon",
        metavar="TOKENS",
        help="also predict the ranking at this data budget, at most 3.3 times the study's",
    )
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the report."""
    if len(options.study) > 1:
        return _compare(options)
    from march_search.analysis.evidence import study_evidence
    from march_search.commands.rank import evidence_text
    from march_search.commands.studies import named_study
    from march_search.config.counts import parse_count
    from march_search.report.page import figure_files, page

    named = named_study(options.study[0], options.root)
    if named.ladder_studies():
        return _ladder(named, options)
    tokens = parse_count(options.horizon, "horizon") if options.horizon else None
    evidence = study_evidence(named.record(), tokens=tokens, with_effects=True)
    root = root_option(named.folder.path.parent)
    overrides = "".join(f" {shlex.quote(override)}" for override in named.folder.overrides)
    command = f"march-search study run {named.argument}{overrides}{root}\nmarch-search report {named.name}{root}"
    cost = _cost(named.folder.path)
    is_page = options.format == "html"
    text = page(evidence, command, cost) if is_page else evidence_text(evidence, options.format)
    _write(text, named.folder.path / f"report.{_ENDINGS[options.format]}", options.output)
    if options.figures:
        _write_figures(figure_files(evidence), Path(options.figures))
    if options.tables:
        _write_tables(evidence, Path(options.tables), command, cost)
    return 0


def _ladder(named: "NamedStudy", options: argparse.Namespace) -> int:
    """Write the report of a ladder."""
    from march_search.commands.rank import isoflop_text, ladder_text
    from march_search.ladders.isoflop import isoflop_evidence
    from march_search.ladders.ladder import ladder_evidence
    from march_search.report.ladder_page import isoflop_files, isoflop_page, ladder_files, ladder_page

    refuse_without_effect(options, ("tables", "horizon"), f"on {named.name}, which is a ladder")
    folder, is_page = named.folder.path, options.format == "html"
    ladder, isoflop = named.ladder(), named.isoflop()
    record = ladder or isoflop
    root, overrides = (
        root_option(folder.parent),
        "".join(f" {shlex.quote(o)}" for o in (record.overrides if record else ())),
    )
    argument = named.argument if named.file else f"{named.name}.toml"  # a ladder is run from its file only
    command = f"march-search study run {argument}{overrides}{root}\nmarch-search report {named.name}{root}"
    if ladder:
        found = ladder_evidence(ladder, folder.parent)
        text = ladder_page(found, command) if is_page else ladder_text(found, options.format)
        files = ladder_files(found) if options.figures else {}
    else:
        assert isoflop is not None
        budgets = isoflop_evidence(isoflop, folder.parent)
        text = isoflop_page(budgets, command) if is_page else isoflop_text(budgets, options.format)
        files = isoflop_files(budgets) if options.figures else {}
    _write(text, folder / f"report.{_ENDINGS[options.format]}", options.output)
    if options.figures:
        _write_figures(files, Path(options.figures))
    return 0


def _write(text: str, path: Path, output: str | None) -> None:
    """Write a report to `output`, or to `path` if that is None, and print where.

    Raises:
        StorageError: If the file cannot be written.
    """
    from march_search.commands.output import print_or_write
    from march_search.errors import StorageError
    from march_search.files.atomic import write_text

    if output is None:
        try:
            write_text(path, text)
        except StorageError as error:
            raise StorageError(f"{error} Choose another file with -o.") from None
        print(path)
    elif print_or_write(output, text):
        print(output)


def _compare(options: argparse.Namespace) -> int:
    """Write the comparison of the first study with each of the others."""
    from dataclasses import replace

    from march_search.analysis.evidence import study_evidence
    from march_search.analysis.study_comparison import compare_studies
    from march_search.commands.output import print_or_write
    from march_search.commands.studies import named_study
    from march_search.display.comparison_sections import comparison_answer, comparison_names
    from march_search.errors import UsageError
    from march_search.report.comparison_page import comparison_files

    refuse_without_effect(options, ("tables", "horizon"), "on a comparison; remove it, or name one study")
    if options.output is None:
        raise UsageError("a comparison belongs to no study's folder: name its file with -o, e.g. -o compare.html.")
    records = [named_study(text, options.root).record() for text in options.study]
    if len({record.name for record in records}) < len(records):
        records = [replace(record, name=text) for record, text in zip(records, options.study, strict=True)]
    if len({record.name for record in records}) < len(records):
        raise UsageError("a study cannot be compared with itself: name each study once.")
    first, *others = [study_evidence(record) for record in records]
    found = [compare_studies(first, other) for other in others]
    if print_or_write(options.output, _comparison_text(found, options)):
        print("\n".join(comparison_answer(comparison, comparison_names(found)) for comparison in found))
        print(options.output)
    if options.figures:
        _write_figures(comparison_files(found), Path(options.figures))
    return 0


def _comparison_text(found: "list[StudyComparison]", options: argparse.Namespace) -> str:
    """Return a comparison in the format that the options ask for."""
    from march_search.display.comparison_sections import comparison_markdown, comparison_rows, comparison_values
    from march_search.display.tables import csv_text
    from march_search.report.comparison_page import comparison_page

    if options.format == "json":
        return json.dumps(comparison_values(found), indent=1, allow_nan=False) + "\n"
    if options.format == "markdown":
        return comparison_markdown(found)
    if options.format == "csv":
        rows = comparison_rows(found)
        return csv_text(rows, list(dict.fromkeys(key for row in rows for key in row)))
    names = " ".join(shlex.quote(text) for text in options.study)
    return comparison_page(
        found, f"march-search report {names}{root_option(options.root)} -o {shlex.quote(options.output)}"
    )


def _cost(folder: Path) -> list[tuple[str, str]]:
    """Return the actual cost of the study and the plan of each phase, or an empty list if it has no plan."""
    from march_search.errors import StorageError
    from march_search.planning import plan_cost
    from march_search.storage import usage
    from march_search.storage.study_folder import StudyFolder

    try:
        plan = usage.saved_plan(folder)
    except StorageError as error:
        print(f"{error} The report leaves the cost out.", file=sys.stderr)
        return []
    if not plan:
        return []
    actual = usage.actual(folder, StudyFolder(folder).config())
    return usage.comparison_rows(plan, actual) + plan_cost.phase_rows(plan)


def _write_tables(evidence: "Evidence", folder: Path, command: str, cost: list[tuple[str, str]]) -> None:
    """Write the summary and the learning curves of a study, small enough to keep in a repository."""
    from march_search.files.atomic import make_folder, write_text
    from march_search.report.record import record_csv, record_text

    make_folder(folder)
    for ending, text in (("md", record_text(evidence, command, cost)), ("csv", record_csv(evidence))):
        write_text(folder / f"{evidence.study.name}.{ending}", text)
        print(folder / f"{evidence.study.name}.{ending}")


def _write_figures(drawn: dict[str, str], folder: Path) -> None:
    """Write every figure as SVG and, if resvg-py is installed, as PNG."""
    from march_search.files.atomic import make_folder, write_text
    from march_search.report.page import png

    make_folder(folder)
    missing = False
    for name, text in drawn.items():
        write_text(folder / f"{name}.svg", text)
        pixels = png(text)
        missing |= pixels is None
        if pixels is not None:
            (folder / f"{name}.png").write_bytes(pixels)
    print(f"{folder}: {', '.join(drawn) or 'no figures yet'}")
    if missing:
        print("PNG files need resvg-py: pip install 'march-search[report]'.", file=sys.stderr)
