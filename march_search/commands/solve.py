"""`march-search solve`: list every architecture inside a budget of parameters, FLOPs, hours or bytes."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands.options import (
    COST_OPTIONS,
    add_examples,
    add_format,
    add_price_options,
    natural,
    positive,
    price_notes,
    price_settings,
    refuse_without_effect,
)
from march_search.errors import UsageError

if TYPE_CHECKING:
    from march_search.cost.setup import Setup
    from march_search.space.feasible_set import Selection
    from march_search.space.limits import Limit
    from march_search.space.space import SearchSpace

PARETO = "flops,memory,-depth"
"""Default objectives of `--pareto`."""

TOP = 20
"""Architectures printed without an overview, and by the other formats."""

SPREAD = 12
"""Architectures of the spread in an overview."""

OVERVIEW = (
    "Nearest to the budget: --top 20. All: --top 0 --format csv. Another choice: --design 24 --by num_layers,d_model, "
    '--sample 12, --pareto, --near NAME. Fewer: --where "num_heads * d_kv == d_model".'
)
"""Note below an overview: how to ask further."""

ADD_DEVICE = "With memory and hours: --device 8xA100."
"""Note below an overview without a device."""

INVERTED = "inverted: every budget was solved for d_ff at each point of the other axes, so the set is complete."
"""Note on budgets of other kinds."""

CHECKED = "complete: every budget was solved for d_ff, or checked at each d_ff, at each point of the other axes."
"""The same for a space with a block, whose formulas may fall as d_ff rises."""

PRICED = ("memory", "hours", "memory_bytes", "tokens_per_second", "prefill_ms", "decode_ms", "cache_bytes_per_token")
"""Measures and columns that depend on the device and the setup of a trial."""

BUDGETS = {
    "flops_per_token": "flops_per_token",
    "training_flops": "training_flops",
    "hours": "hours",
    "memory": "bytes_per_device",
    "kv_cache": "kv_cache_bytes_per_token",
}
"""Kinds of budgets in `[budget]` by option."""

SELECTIONS = ("sample", "design", "pareto", "near", "count")
"""Options that print something else than the top of the set."""


def add(solve: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    solve.add_argument(
        "--budget", metavar="N", help="parameters: 220M, 1.3B, 2.2e8, 222_903_552 or a name such as t5-base"
    )
    solve.add_argument(
        "--space",
        default="t5",
        metavar="NAME|FILE",
        help="shipped space, a TOML file, or auto, which lays ranges around the budget (default: t5)",
    )
    solve.add_argument(
        "--tolerance", metavar="P", help="tolerance around the budget (default: the space's, else 1.5%%)"
    )
    solve.add_argument(
        "--counting",
        choices=("total", "non-embedding", "active"),
        help="parameters that the budget counts; active: those that one position is multiplied by",
    )
    solve.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="RULE",
        help='condition on fields and measures, e.g. "num_heads * d_kv == d_model", "d_model %% num_heads == 0", '
        '"flops_per_token <= 5e8", or with --device "hours < 3"; measures: params, params_non_embedding, '
        "active_params, flops_per_token, depth, difference, memory, hours, tokens_per_second, cache_bytes_per_token, "
        "prefill_ms, decode_ms; repeatable",
    )
    solve.add_argument(
        "--top",
        type=natural,
        metavar="N",
        help="architectures to print (0: all; default: an overview, or 20 in other formats)",
    )
    solve.add_argument(
        "--sort",
        metavar="KEY",
        help="sort by a field or a measure, such as difference, params, flops or hours (default: difference)",
    )
    solve.add_argument("--descending", action="store_true", help="sort in descending order")
    solve.add_argument("--columns", metavar="A,B,...", help="columns to print, e.g. name,params,num_layers,hours")
    solve.add_argument("--figure", type=Path, metavar="FILE", help="also draw the whole set by depth and width, as SVG")
    add_format(solve, holds="one row per architecture: its fields, parameters and FLOPs, with --device also its cost")
    add_examples(
        solve,
        "march-search solve --budget 220M",
        'march-search solve --budget 220M --where "num_heads * d_kv == d_model" --design 12',
        'march-search solve --budget 3M --space auto --where "d_model % num_heads == 0"',
        'march-search solve --budget 220M --device 8xA100 --where "hours < 3"',
        'march-search solve --budget 220M --flops-per-token "<=650M" --hours 0.3 --device 8xH100',
        "march-search solve --space t5-220m --device 8xA100 --sort hours --format csv > shapes.csv",
    )
    _add_budgets(solve)
    _add_selections(solve)
    add_price_options(solve)
    solve.set_defaults(run=run)


def _add_budgets(solve: argparse.ArgumentParser) -> None:
    """Add the options for budgets of other kinds than parameters."""
    budgets = solve.add_argument_group("budgets of other kinds, alone or with --budget; all of them are met")
    budgets.add_argument(
        "--flops-per-token",
        metavar="N",
        help='FLOPs per token, forward and backward, within the tolerance: 600M; or at most: "<=600M"',
    )
    budgets.add_argument(
        "--training-flops", metavar="N", help='FLOPs of a trial of --tokens, in the same way: 1e19 or "<=1e19"'
    )
    budgets.add_argument("--hours", metavar="X", help="at most X hours per trial of --tokens on --device")
    budgets.add_argument("--memory", metavar="BYTES", help="at most this memory per device in training: 24GB, 80GiB")
    budgets.add_argument("--kv-cache", metavar="BYTES", help="at most this key/value cache per token: 40KB")


def _add_selections(solve: argparse.ArgumentParser) -> None:
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
    other.add_argument(
        "--near",
        metavar="NAME|FILE",
        help="architectures nearest to NAME, a config.json or a public model, which may be off the budget",
    )
    other.add_argument("--count", action="store_true", help="print only the number of architectures")
    solve.add_argument("--seed", type=natural, metavar="S", help="seed of --sample and --design (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Print an overview of the feasible set of a space, its members, best first, or a selection of them."""
    from march_search.cost.devices import parse_device
    from march_search.cost.setup import Setup
    from march_search.display.architectures import columns_named, solve_row
    from march_search.space.conditions import parse_conditions, prices_in, solve_where
    from march_search.space.limits import UNMEASURED_CPU
    from march_search.space.named import named_space

    settings = price_settings(options)
    amounts = {kind: getattr(options, name) for name, kind in BUDGETS.items()}
    space = named_space(
        options.space, options.budget, options.tolerance, options.counting, limits={**amounts, **settings}
    )
    own = tuple(space.block.fields) if space.block else ()
    asked = columns_named(options.columns.split(","), own) if options.columns is not None else None
    rules, measured = parse_conditions(options.where, space.block)
    prices = prices_in(measured)
    setup, has_device = Setup(**space.trial), "device" in space.trial
    if prices and not has_device:
        raise UsageError(f"{prices[0]} depends on the device: add one, such as --device 8xA100.")
    priced = has_device and options.count is False
    priced = priced or any(column.key in PRICED for column in asked or ())
    if setup.device == UNMEASURED_CPU and (priced or prices or _orders_by_price(options)):
        setup = replace(setup, device=parse_device("cpu"))  # of a space file, whose bytes need no speed
    _refuse_options_without_effect(options, priced, bool(prices) or bool(space.limits))
    chosen = found = solve_where(space, rules, measured, setup)
    if options.figure:
        _draw(found, options.figure)
    if options.count:
        print(len(found))
        return 0
    is_overview = _is_overview(options, found)
    if is_overview:
        chosen, description = found.design(SPREAD).top(0, "d_model").top(0, "num_layers"), OVERVIEW
    else:
        chosen, description = _select(found, options, setup)
    rows = [
        solve_row(a, difference, setup, priced)
        for difference, a in zip(chosen.members().difference_percent().tolist(), chosen, strict=True)
    ]
    title = _title(found, space, [rule.text for rule in rules], [rule.text for rule in measured])
    if is_overview:
        title = _print_overview(found, title)
    _print(rows, found, title, description, options, setup, priced, asked)
    return 0


def _is_overview(options: argparse.Namespace, found: "Selection") -> bool:
    """Return whether to print an overview: nothing narrower was asked for, and the set is too large to list."""
    others = (*SELECTIONS, "sort", "descending", "columns")
    return (
        options.format == "table"
        and options.top is None
        and len(found) > TOP
        and not any(getattr(options, name) for name in others)
    )


def _title(found: "Selection", space: "SearchSpace", where: Sequence[str], measured: Sequence[str]) -> str:
    """Return the line with the number of architectures, and how many are left by the conditions about measures."""
    method = ["inverted" if space.block is None else "complete"] if space.limits else []
    budget, source = space.condition, "; ".join([f"space {space.name}", *where, *method])
    if not measured:
        verb = "architecture has" if len(found) == 1 else "architectures have"
        return f"{len(found):,} {verb} {budget} ({source})"
    verb = "meets" if len(found) == 1 else "meet"
    total = len(found.source)
    return f"{len(found):,} of {total:,} architectures with {budget} ({source}) {verb} {' and '.join(measured)}"


def _print_overview(found: "Selection", title: str) -> str:
    """Print the number of architectures, then by depth and width; return the title of the spread that follows."""
    from march_search.display.cross_table import print_cross_table
    from march_search.display.tables import console

    out = console()
    out.print(title, style="bold")
    out.print()
    print_cross_table(out, found)
    return f"{SPREAD} of them, as different as possible"


def _refuse_options_without_effect(options: argparse.Namespace, priced: bool, filtered: bool) -> None:
    """Refuse options that the chosen selection ignores.

    Raises:
        UsageError: If there is one.
    """
    selection = next((name for name in SELECTIONS if getattr(options, name)), None)
    if selection in ("sample", "design", "count"):
        refuse_without_effect(options, ("top",), f"with --{selection}, which prints its own number")
    if selection in ("sample", "design", "near", "count"):
        refuse_without_effect(options, ("sort", "descending"), f"with --{selection}, which has its own order")
    if selection == "count":
        no_effect = ("columns",) if filtered else ("columns", "device")
        refuse_without_effect(options, no_effect, "with --count, which prints one number")
    if selection != "design":
        refuse_without_effect(options, ("by", "strata"), "without --design N")
    if selection not in ("sample", "design"):
        refuse_without_effect(options, ("seed",), "without --sample N or --design N")
    if selection == "pareto" and options.sort is None:
        refuse_without_effect(options, ("descending",), "without --sort KEY")
    if not (priced or filtered or _orders_by_price(options)):
        refuse_without_effect(options, COST_OPTIONS, "without --device D, which adds memory, tokens/s and hours")


def _orders_by_price(options: argparse.Namespace) -> bool:
    """Return whether the members are ordered or chosen by what depends on the device and the setup of a trial."""
    keys = [str(options.sort), *str(options.pareto).split(",")]
    return any(key.removeprefix("-") in PRICED for key in keys)


def _select(found: "Selection", options: argparse.Namespace, setup: "Setup") -> "tuple[Selection, str]":
    """Return the members to print, and a description of their selection and order."""
    from march_search.architecture.checkpoints import read_architecture

    seed, top = options.seed or 0, TOP if options.top is None else options.top
    if options.sample is not None:
        return found.sample(options.sample, seed), f"a uniform sample, seed {seed}"
    if options.design is not None:
        by, strata = (tuple(text.split(",")) if text else () for text in (options.by, options.strata))
        return found.design(options.design, by, seed, strata), f"a spread design, seed {seed}"
    chosen: Selection = found
    which = ""
    if options.pareto is not None:
        chosen = found.pareto(tuple(options.pareto.split(",")), setup)
        which = f"{len(chosen):,} Pareto-optimal in {options.pareto}, "
    more = "" if not top or len(chosen) <= top else "; --top 0 shows all"
    if options.pareto is not None and options.sort is None:
        return chosen[: top or len(chosen)], f"{which}in order of these objectives{more}"
    if options.near is not None:
        near = read_architecture(options.near)
        return found.nearest(near, top), f"nearest to {near} first{more}"
    key = options.sort or "difference"
    return chosen.top(top, "-" * options.descending + key, setup), f"{which}sorted by {key}{more}"


def _limit_table(limit: "Limit") -> dict[str, Any]:
    """Return a budget of another kind than parameters as a dict for JSON; an upper limit has no low end."""
    return {"kind": limit.kind, "aim": limit.aim, "low": limit.low or None, "high": limit.high, "text": str(limit)}


def _draw(found: "Selection", path: Path) -> None:
    """Write the figure of the set."""
    from march_search.files.atomic import write_output
    from march_search.report.page import standalone
    from march_search.report.shapes import shapes

    write_output(path, standalone(shapes(found)))


def _print(
    rows: list[dict[str, Any]],
    found: "Selection",
    title: str,
    description: str,
    options: argparse.Namespace,
    setup: "Setup",
    priced: bool,
    asked: Any,
) -> None:
    """Print the rows, with notes on the selection and the meaning of the numbers."""
    from march_search.commands.explain import setup_table
    from march_search.commands.output import print_rows
    from march_search.display import architectures

    columns = asked or (architectures.PRICED_COLUMNS if priced else architectures.SOLVE_COLUMNS)
    notes = [] if description == OVERVIEW else [f"{len(rows):,} shown, {description}."]
    if any(column.key == "flops_per_token" for column in columns):
        length = setup.sequence_length
        notes.append(f"FLOPs: forward and backward, per token of text, {length} tokens per sequence.")
    if found.source.limits:
        notes.append(INVERTED if found.source.space.block is None else CHECKED)
    if description == OVERVIEW:
        notes.append(OVERVIEW if priced else f"{OVERVIEW} {ADD_DEVICE}")
    budget = found.source.budget
    head = {
        "space": found.source.space.name,
        "budget": budget
        and {"parameters": budget.parameters, "tolerance": float(budget.tolerance), "count": budget.count},
        **({"budgets": [_limit_table(limit) for limit in found.source.limits]} if found.source.limits else {}),
        "total": len(found),
        "where": options.where,
    }
    if asked and options.format in ("json", "csv"):
        rows = [{column.key: row[column.key] for column in asked} for row in rows]
    print_rows(
        options.format,
        rows,
        columns,
        title=title,
        notes=[*notes, *(price_notes(setup) if priced else ())],
        legend=f"{architectures.NARROW_LEGEND}, diff: from the budget" if not asked and not priced else "",
        head=head | ({"setup": setup_table(setup)} if priced else {}),
        name="architectures",
    )
