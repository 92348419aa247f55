"""`march-search solve`: every architecture that meets a parameter budget."""

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from march_search.commands import Verbs


def add(verbs: Verbs) -> None:
    """Adds the command to the parser."""
    solve = verbs.add_parser("solve", help="list every architecture that meets a parameter budget")
    solve.add_argument("--budget", metavar="N", help="220M, 1.3B, 222_903_552 or a name such as t5-base")
    solve.add_argument("--space", default="t5", metavar="NAME|FILE", help="shipped space or a TOML file (default: t5)")
    solve.add_argument(
        "--tolerance", metavar="P", help="allowed distance from the budget (default: the space's, else 1.5%%)"
    )
    solve.add_argument("--counting", choices=("total", "non-embedding"), help="which parameters the budget counts")
    solve.add_argument(
        "--where", action="append", default=[], metavar="RULE", help='also require, e.g. "num_heads >= 16"; repeatable'
    )
    solve.add_argument("--top", type=_natural, default=20, metavar="N", help="how many to print (default: 20; 0: all)")
    solve.add_argument(
        "--sort", default="difference", metavar="KEY", help="difference, params, flops or a field (default: difference)"
    )
    solve.add_argument("--descending", action="store_true", help="largest first")
    solve.add_argument("--format", choices=("table", "json", "csv"), default="table")
    solve.add_argument("--count", action="store_true", help="print only how many there are")
    solve.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the feasible set of a space, best first."""
    from march_search.architecture import DEFAULTS
    from march_search.closest import solve_or_explain
    from march_search.errors import UsageError
    from march_search.rules import Rule
    from march_search.settings import nearest
    from march_search.space import SearchSpace

    keys = ("difference", "params", "flops", *DEFAULTS)
    if options.sort not in keys:
        raise UsageError(f'cannot sort by "{options.sort}". {nearest(options.sort, keys)}')
    space = SearchSpace.load(options.space)
    space = space.with_budget(options.budget, options.tolerance, options.counting)
    space = replace(space, rules=space.rules + tuple(Rule.parse(text, DEFAULTS) for text in options.where))
    found = solve_or_explain(space)
    if options.count:
        print(len(found))
        return 0
    chosen = found.top(options.top, "-" * options.descending + options.sort)
    rows = []
    for number, a in zip(chosen.members().counted.tolist(), chosen, strict=True):
        rows.append(_solve_row(a, found.budget.difference_percent(number)))
    _print_solved(rows, found, options)
    return 0


def _solve_row(architecture: Any, difference: float) -> dict[str, Any]:
    """One architecture with its distance from the budget and its cost."""
    from march_search.report.architectures import architecture_row

    extra = {"difference_percent": round(difference, 4), "flops_per_token": architecture.flops_per_token()}
    return architecture_row(architecture) | extra


def _print_solved(rows: list[dict[str, Any]], found: Any, options: argparse.Namespace) -> None:
    """The feasible set in the format asked for."""
    from march_search.report import architectures as columns
    from march_search.report import tables

    budget = found.budget
    if options.format == "json":
        head = {
            "schema_version": 1,
            "space": found.space.name,
            "budget": {"parameters": budget.parameters, "tolerance": float(budget.tolerance), "count": budget.count},
            "total": len(found),
        }
        print(json.dumps(head | {"architectures": columns.public(rows)}, indent=1))
    elif options.format == "csv":
        sys.stdout.write(tables.csv_text(rows, list(columns.public(rows)[0])))
    else:
        verb = "architecture has" if len(found) == 1 else "architectures have"
        title = f"{len(found):,} {verb} {budget} (space {found.space.name})"
        more = "; --top 0 shows all" if len(rows) < len(found) else ""
        notes = [
            f"{len(rows):,} shown, sorted by {options.sort}{more}.",
            "FLOPs: forward and backward, per token of text, 512 tokens a sequence.",
        ]
        tables.print_table(
            tables.console(),
            rows,
            columns.SOLVE_COLUMNS,
            title,
            notes,
            f"{columns.NARROW_LEGEND}, diff from the budget",
        )


def _natural(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f'"{text}" must be a whole number of at least 0')
    return int(text)
