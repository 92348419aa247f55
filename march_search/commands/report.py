"""`march-search report`: write a study as one HTML page or as text, and its figures and tables as files."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from march_search.commands import Verbs

if TYPE_CHECKING:
    from march_search.analysis.evidence import Evidence
    from march_search.analysis.study_record import StudyRecord


def add(verbs: Verbs) -> None:
    """Add the command to the parser."""
    report = verbs.add_parser("report", help="write a report of a study: one HTML file with figures, or text")
    report.add_argument("study", metavar="STUDY", help="name of a study in the --root folder, or its folder")
    report.add_argument(
        "-o", "--output", metavar="FILE", help="output file, - for stdout (default: report.html in the study folder)"
    )
    report.add_argument("--format", choices=("html", "markdown", "md", "csv", "json"), default="html")
    report.add_argument("--figures", metavar="DIR", help="also write each figure to DIR as SVG and, with resvg-py, PNG")
    report.add_argument(
        "--tables",
        metavar="DIR",
        help="also write a summary, STUDY.md, and all learning curves, STUDY.csv, to DIR",
    )
    report.add_argument("--horizon", metavar="TOKENS", help="data budget to predict (default: ten times the study's)")
    report.add_argument("--root", default="runs", metavar="DIR", help="folder of the studies (default: runs)")
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the report."""
    from march_search.analysis.study_record import read_study
    from march_search.files import write_text
    from march_search.report.page import page

    study = read_study(options.study, Path(options.root))
    found = _evidence(study, options.horizon)
    folder = study.trials[0].folder.parent.parent
    command, cost = _command(study, options.root), _cost(folder)
    text = page(found, command, cost) if options.format == "html" else _plain_text(found, options.format)
    path = Path(options.output) if options.output else folder / f"report.{_ENDINGS[options.format]}"
    if options.output == "-":
        sys.stdout.write(text)
    else:
        write_text(path, text)
        print(path)
    if options.figures:
        _write_figures(found, Path(options.figures))
    if options.tables:
        _write_tables(found, Path(options.tables), command, cost)
    return 0


_ENDINGS = {"html": "html", "markdown": "md", "md": "md", "csv": "csv", "json": "json"}


def _evidence(study: "StudyRecord", horizon: str | None) -> "Evidence":
    """Return all evidence. The default horizon is omitted if the curves are too short to predict it."""
    from march_search.analysis.evidence import study_evidence
    from march_search.errors import UsageError
    from march_search.space.budget import parse_count

    if horizon:
        return study_evidence(study, tokens=parse_count(horizon, "horizon"), with_effects=True)
    tokens = 10 * max(trial.config.training.tokens for trial in study.trials)
    try:
        return study_evidence(study, tokens=tokens, with_effects=True)
    except UsageError:
        return study_evidence(study, with_effects=True)


def _cost(folder: Path) -> list[tuple[str, str]]:
    """Return the planned and the actual cost of the study, or an empty list if it has no plan."""
    from march_search.study import price
    from march_search.study.study_folder import StudyFolder

    plan = price.kept(folder)
    return price.comparison_rows(plan, price.actual(folder, StudyFolder(folder).config())) if plan else []


def _command(study: "StudyRecord", root: str) -> str:
    """Return the commands that run the study and write this report."""
    where = "" if root == "runs" else f" --root {root}"
    return f"march-search study run {_file(study)}{where}\nmarch-search report {study.name}{where}"


def _file(study: "StudyRecord") -> str:
    """Return the STUDY argument for `study run`: the name of the shipped study, else the name of its TOML file."""
    from march_search.config.loader import read_file
    from march_search.config.shipped import shipped_folder

    studies = shipped_folder("studies")
    for path in sorted(studies.glob(f"**/{study.name}.toml")):
        if read_file(path).get("question", "") == study.settings.get("question", ""):
            return str(path.relative_to(studies).with_suffix(""))
    return f"{study.name}.toml"


def _plain_text(found: "Evidence", kind: str) -> str:
    """Return the report without figures, as `march-search rank` prints it."""
    import contextlib
    import io

    from march_search.commands import rank

    writer = {"json": rank.print_json, "csv": rank.print_csv}.get(kind, rank.print_markdown)
    with contextlib.redirect_stdout(io.StringIO()) as text:
        writer(found)
    return text.getvalue()


def _write_tables(found: "Evidence", folder: Path, command: str, cost: list[tuple[str, str]]) -> None:
    """Write the summary and the learning curves of a study, small enough to keep in a repository."""
    from march_search.files import make_folder, write_text
    from march_search.report.record import record_csv, record_text

    make_folder(folder)
    for ending, text in (("md", record_text(found, command, cost)), ("csv", record_csv(found))):
        write_text(folder / f"{found.study.name}.{ending}", text)
        print(folder / f"{found.study.name}.{ending}")


def _write_figures(found: "Evidence", folder: Path) -> None:
    """Write every figure as SVG and, if resvg-py is installed, as PNG."""
    from march_search.files import make_folder, write_text
    from march_search.report.page import figure_files, png

    make_folder(folder)
    drawn, missing = figure_files(found), False
    for name, text in drawn.items():
        write_text(folder / f"{name}.svg", text)
        pixels = png(text)
        missing |= pixels is None
        if pixels is not None:
            (folder / f"{name}.png").write_bytes(pixels)
    print(f"{folder}: {', '.join(drawn) or 'no figures yet'}")
    if missing:
        print("PNG files need resvg-py: pip install 'march-search[report]'.", file=sys.stderr)
