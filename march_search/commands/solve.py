"""`march-search solve`: list every architecture inside a parameter budget."""

import argparse
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs, explain
from march_search.commands.options import add_price_options, natural, positive, price_notes, price_setup

if TYPE_CHECKING:
    from march_search.cost.setup import Setup
    from march_search.space.feasible_set import FeasibleSet, Selection


PARETO = "flops,memory,-depth"
"""Default objectives of `--pareto`."""


def add(verbs: Verbs) -> None:
    """Add the command to the parser."""
    solve = verbs.add_parser("solve", help="list every architecture inside a parameter budget")
    solve.add_argument("--budget", metavar="N", help="parameters: 220M, 1.3B, 222_903_552 or a name such as t5-base")
    solve.add_argument("--space", default="t5", metavar="NAME|FILE", help="shipped space, or a TOML file (default: t5)")
    solve.add_argument(
        "--tolerance", metavar="P", help="tolerance around the budget (default: the space's, else 1.5%%)"
    )
    solve.add_argument("--counting", choices=("total", "non-embedding"), help="parameters that the budget counts")
    solve.add_argument(
        "--where", action="append", default=[], metavar="RULE", help='extra rule, e.g. "num_heads >= 16"; repeatable'
    )
    solve.add_argument(
        "--top", type=natural, default=20, metavar="N", help="architectures to print (default: 20; 0: all)"
    )
    solve.add_argument(
        "--sort",
        metavar="KEY",
        help="sort by difference, params, flops, depth, memory, hours or a field (default: difference)",
    )
    solve.add_argument("--descending", action="store_true", help="sort in descending order")
    solve.add_argument("--columns", metavar="A,B,...", help="columns to print, e.g. name,params,num_layers,hours")
    solve.add_argument("--format", choices=("table", "json", "csv"), default="table")
    solve.add_argument("--count", action="store_true", help="print only the number of architectures")
    _add_choices(solve)
    add_price_options(solve)
    solve.set_defaults(run=run)


def _add_choices(solve: argparse.ArgumentParser) -> None:
    """Add the options that select other architectures than the top N."""
    other = solve.add_argument_group("selection instead of the top N").add_mutually_exclusive_group()
    other.add_argument("--sample", type=positive, metavar="N", help="N architectures drawn uniformly at random")
    other.add_argument("--design", type=positive, metavar="N", help="N architectures as different as possible")
    solve.add_argument("--by", metavar="A,B,...", help="axes that --design spreads over (default: all axes that vary)")
    solve.add_argument("--strata", metavar="A,B,...", help="axes whose values --design uses equally often")
    other.add_argument(
        "--pareto",
        nargs="?",
        const=PARETO,
        metavar="BY",
        help=f"the Pareto set in BY (default: {PARETO}; prefix - to maximize)",
    )
    other.add_argument("--near", metavar="NAME", help="architectures nearest to NAME, which may be off the budget")
    other.add_argument("--explain", metavar="NAME", help="parameters of one architecture by group; needs no budget")
    solve.add_argument(
        "--seed", type=natural, default=0, metavar="S", help="seed of --sample and --design (default: 0)"
    )


def run(options: argparse.Namespace) -> int:
    """Print the feasible set of a space, best first, or a selection of it."""
    setup = price_setup(options)
    if options.explain is not None:
        return explain.run(options, setup)
    from march_search.architecture.architecture import DEFAULTS
    from march_search.display.architectures import columns_named, solve_row
    from march_search.space.infeasible import solve_or_explain
    from march_search.space.rules import Rule
    from march_search.space.space import SearchSpace

    asked = columns_named(options.columns.split(",")) if options.columns is not None else None
    space = SearchSpace.load(options.space)
    space = space.with_budget(options.budget, options.tolerance, options.counting)
    space = replace(space, rules=space.rules + tuple(Rule.parse(text, DEFAULTS) for text in options.where))
    found = solve_or_explain(space)
    if options.count:
        print(len(found))
        return 0
    chosen, order = _choose(found, options, setup)
    priced = options.device is not None or any(column.key in explain.PRICES for column in asked or ())
    rows = [
        solve_row(a, found.budget.difference_percent(number), setup, priced)
        for number, a in zip(chosen.members().counted.tolist(), chosen, strict=True)
    ]
    if options.format == "table":
        _print_table(rows, found, order, setup, priced, asked)
    else:
        _print_data(rows, found, options, setup, priced, asked)
    return 0


def _choose(found: "FeasibleSet", options: argparse.Namespace, setup: "Setup") -> "tuple[Selection, str]":
    """Return the members to print, and a description of their selection and order."""
    from march_search.architecture.architecture import Architecture

    if options.sample is not None:
        return found.sample(options.sample, options.seed), f"a uniform sample, seed {options.seed}"
    if options.design is not None:
        by, strata = (tuple(text.split(",")) if text else () for text in (options.by, options.strata))
        return found.design(options.design, by, options.seed, strata), f"a spread design, seed {options.seed}"
    chosen: Selection = found
    order = ""
    if options.pareto is not None:
        chosen = found.pareto(tuple(options.pareto.split(",")), setup)
        order = f"{len(chosen):,} Pareto-optimal in {options.pareto}, "
        if options.sort is None:
            return chosen[: options.top or len(chosen)], f"{order}in order of these objectives"
    if options.near is not None:
        near = Architecture.parse(options.near)
        return found.nearest(near, options.top), f"nearest to {near} first"
    key = options.sort or "difference"
    return chosen.top(options.top, "-" * options.descending + key, setup), f"{order}sorted by {key}"


def _print_data(
    rows: list[dict[str, Any]], found: "FeasibleSet", options: Any, setup: "Setup", priced: bool, asked: Any
) -> None:
    """Print the rows as JSON or CSV, with all columns or those of --columns."""
    from march_search.display import tables

    rows = [{c.key: row[c.key] for c in asked} for row in rows] if asked else rows
    if options.format == "csv":
        sys.stdout.write(tables.csv_text(rows, list(rows[0])))
        return
    budget = found.budget
    head = {
        "schema_version": 1,
        "space": found.space.name,
        "budget": {"parameters": budget.parameters, "tolerance": float(budget.tolerance), "count": budget.count},
        "total": len(found),
    }
    if priced:
        head["setup"] = explain.setup_table(setup)
    print(json.dumps(head | {"architectures": rows}, indent=1))


def _print_table(
    rows: list[dict[str, Any]], found: "FeasibleSet", order: str, setup: "Setup", priced: bool, asked: Any
) -> None:
    """Print the rows as a table, with notes on the selection and the meaning of the numbers."""
    from march_search.display import architectures, tables

    verb = "architecture has" if len(found) == 1 else "architectures have"
    title = f"{len(found):,} {verb} {found.budget} (space {found.space.name})"
    more = "; --top 0 shows all" if "sorted" in order and len(rows) < len(found) else ""
    columns = asked or (architectures.PRICED_COLUMNS if priced else architectures.SOLVE_COLUMNS)
    notes = [f"{len(rows):,} shown, {order}{more}."]
    if any(column.key == "flops_per_token" for column in columns):
        length = setup.sequence_length
        notes.append(f"FLOPs: forward and backward, per token of text, {length} tokens per sequence.")
    legend = f"{architectures.NARROW_LEGEND}, diff: from the budget" if not asked and not priced else ""
    tables.print_table(
        tables.console(), rows, columns, title, [*notes, *(price_notes(setup) if priced else ())], legend
    )
