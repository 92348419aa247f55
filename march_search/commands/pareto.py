"""`march-search pareto`: the Pareto-optimal architectures of a study."""

import argparse
from typing import Any

from march_search.commands.options import add_examples, add_format, add_study

DEFAULT = ("loss", "flops")
"""Objectives for a study that has only one."""


def add(pareto: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_study(pareto)
    pareto.add_argument(
        "--by",
        metavar="A,B",
        help="objectives, e.g. loss,-tokens_per_second (default: the study's if it has several, else loss,flops)",
    )
    pareto.add_argument("--all", action="store_true", help="also print the dominated architectures")
    add_format(pareto, holds="the Pareto set with its objectives")
    add_examples(
        pareto, "march-search pareto cpu-demo", "march-search pareto cpu-demo --by loss,-tokens_per_second --all"
    )
    pareto.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the Pareto set."""
    from march_search.analysis.objectives import pareto_rows
    from march_search.commands.output import print_rows
    from march_search.commands.studies import named_study
    from march_search.display import architectures

    study = named_study(options.study, options.root).record()
    own = study.settings.get("search", {}).get("objectives", ())
    by = tuple(options.by.split(",")) if options.by else tuple(own) if len(own) > 1 else DEFAULT
    every = pareto_rows(study, by)
    best = sum(row["pareto"] for row in every)
    print_rows(
        options.format,
        every if options.all else [row for row in every if row["pareto"]],
        architectures.pareto_columns([name.removeprefix("-") for name in by]),
        title=f"{study.name}: {best} of {len(every)} complete architectures are Pareto-optimal in {' and '.join(by)}",
        notes=[
            "*: in the Pareto set. knee: its member with the smallest sum of objectives, each scaled to its range.",
            *(["tokens/s with ~: trials ran beside others, or seeds differ by over 10%."] * any(map(_rough, every))),
        ],
        legend=architectures.NARROW_LEGEND,
        head={"study": study.name, "by": list(by)},
    )
    return 0


def _rough(row: dict[str, Any]) -> bool:
    """Return whether a row shows a rough speed."""
    return bool(row.get("tokens_per_second") and row["speed_is_rough"])
