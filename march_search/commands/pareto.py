"""`march-search pareto`: the Pareto-optimal architectures of a study."""

import argparse
import json
import sys
from pathlib import Path

from march_search.commands import Verbs


def add(verbs: Verbs) -> None:
    """Add the command to the parser."""
    pareto = verbs.add_parser("pareto", help="print the Pareto-optimal architectures of a study")
    pareto.add_argument("study", metavar="STUDY", help="name of a study in the --root folder, or its folder")
    pareto.add_argument("--by", metavar="A,B", help="objectives, e.g. loss,-tokens_per_second (default: the study's)")
    pareto.add_argument("--all", action="store_true", help="also print the dominated architectures")
    pareto.add_argument("--root", default="runs", metavar="DIR", help="folder of the studies (default: runs)")
    pareto.add_argument("--format", choices=("table", "json", "csv", "markdown"), default="table")
    pareto.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the Pareto set."""
    from march_search.analysis.objectives import pareto_rows
    from march_search.analysis.study_record import read_study
    from march_search.display import architectures, tables

    study = read_study(options.study, Path(options.root))
    every = pareto_rows(study, tuple(options.by.split(",")) if options.by else ())
    rows = every if options.all else [row for row in every if row["pareto"]]
    by = options.by.split(",") if options.by else study.settings["search"]["objectives"]
    columns = architectures.pareto_columns([name.removeprefix("-") for name in by])
    if options.format == "json":
        print(json.dumps({"schema_version": 1, "study": study.name, "by": by, "rows": rows}, indent=1))
    elif options.format == "csv":
        sys.stdout.write(tables.csv_text(rows, ["pareto", "knee", *(column.key for column in columns[1:])]))
    elif options.format == "markdown":
        sys.stdout.write(tables.markdown_text(rows, columns))
    else:
        best = sum(row["pareto"] for row in every)
        title = f"{study.name}: {best} of {len(every)} complete architectures are Pareto-optimal in {' and '.join(by)}"
        notes = [
            "*: in the Pareto set. knee: its member with the smallest sum of objectives, each scaled to its range."
        ]
        tables.print_table(tables.console(), rows, columns, title, notes, architectures.NARROW_LEGEND)
    return 0
