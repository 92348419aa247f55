"""`march-search solve`: every architecture that meets a parameter budget."""

import argparse
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs

if TYPE_CHECKING:
    from march_search.selection import Selection
    from march_search.solver import FeasibleSet


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
    other = solve.add_mutually_exclusive_group()
    other.add_argument(
        "--sample", type=_positive, metavar="N", help="N of them, uniformly at random, instead of the top"
    )
    other.add_argument(
        "--design", type=_positive, metavar="N", help="N of them, as different as possible, instead of the top"
    )
    other.add_argument("--explain", metavar="NAME", help="count one architecture group by group; needs no budget")
    solve.add_argument(
        "--seed", type=_natural, default=0, metavar="S", help="seed of --sample and --design (default: 0)"
    )
    solve.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the feasible set of a space, best first, or what was asked for instead."""
    if options.explain is not None:
        return _explain(options)
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
    chosen = _choose(found, options)
    rows = []
    for number, a in zip(chosen.members().counted.tolist(), chosen, strict=True):
        rows.append(_solve_row(a, found.budget.difference_percent(number)))
    _print_solved(rows, found, options)
    return 0


def _choose(found: "FeasibleSet", options: argparse.Namespace) -> "Selection":
    """The members to print."""
    from march_search.design import design

    if options.sample is not None:
        return found.sample(options.sample, options.seed)
    if options.design is not None:
        return design(found, options.design, seed=options.seed)
    return found.top(options.top, "-" * options.descending + options.sort)


def _explain(options: argparse.Namespace) -> int:
    """Prints the parameters of one architecture by group."""
    from march_search.architecture import Architecture
    from march_search.report import tables

    a = Architecture.parse(options.explain)
    groups = a.param_groups()
    rows = [
        {"group": group, "parameters": count, "share_percent": round(100 * count / a.num_params, 3)}
        for group, count in groups.items()
    ]
    if options.format == "json":
        print(json.dumps({"schema_version": 1, "name": a.name, "num_params": a.num_params, "groups": groups}, indent=1))
    elif options.format == "csv":
        sys.stdout.write(tables.csv_text(rows, list(rows[0])))
    else:
        columns = (
            tables.Column("group", "group", "group", left=True),
            tables.Column("parameters", "parameters", "parameters", tables.count),
            tables.Column("share_percent", "share", "share", "{:.1f}%".format),
        )
        counts = (f"{a.num_params:,} parameters, {a.num_params_non_embedding:,} of them non-embedding",)
        tables.print_table(tables.console(), rows, columns, a.name, counts)
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
        order = f"sorted by {options.sort}{more}"
        if options.sample is not None or options.design is not None:
            order = f"{'a uniform sample' if options.sample is not None else 'a spread design'}, seed {options.seed}"
        notes = [
            f"{len(rows):,} shown, {order}.",
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


def _positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" must be a whole number of at least 1')
    return int(text)


def _natural(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f'"{text}" must be a whole number of at least 0')
    return int(text)
