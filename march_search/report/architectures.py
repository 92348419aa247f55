"""Rows and columns that describe architectures, as `solve`, `study` and `rank` print them."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from march_search import cost, memory
from march_search.architecture import CHOICES, Architecture
from march_search.cost import Setup
from march_search.errors import UsageError
from march_search.report.tables import Column, count, percent, si, size
from march_search.settings import nearest
from march_search.space import AXES

GLU_NAMES = {"gated-relu": "ReGLU", "gated-gelu": "GEGLU", "gated-silu": "SwiGLU"}
"""Names of gated linear units (Shazeer 2020)."""

_NAME = Column("name", "name", "name", left=True)

SHAPE_COLUMNS = (
    Column("layers", "layers", "L", in_name=True),
    Column("d_model", "d_model", "D", in_name=True),
    Column("heads", "heads×d_kv", "H×kv", in_name=True),
    Column("d_ff", "d_ff", "F", in_name=True),
    Column("glu", "GLU", "GLU", left=True, in_name=True),
)

_COUNTS = (
    Column("num_params", "parameters", "params", count),
    Column("difference_percent", "difference", "diff", percent),
    Column("flops_per_token", "FLOPs/token", "FLOPs", si),
)

SOLVE_COLUMNS = (_NAME, *SHAPE_COLUMNS, *_COUNTS)

PRICE_COLUMNS = (
    Column("memory_bytes", "memory", "memory", size),
    Column("tokens_per_second", "tokens/s", "tok/s", si),
    Column("hours", "hours", "hours", "{:.3g}".format),
)

PRICED_COLUMNS = (_NAME, *(replace(column, wide_only=True) for column in SHAPE_COLUMNS), *_COUNTS, *PRICE_COLUMNS)
"""With a device: the name says the shape where there is little room."""

NARROW_LEGEND = "L layers a stack, D d_model, H×kv heads × d_kv, F d_ff"


def architecture_row(a: Architecture) -> dict[str, Any]:
    """Every field of `a`, its name and parameters, and the short texts that tables show."""
    return asdict(a) | {
        "name": a.name,
        "num_params": a.num_params,
        "layers": str(a.num_layers) if a.num_decoder_layers is None else f"{a.num_layers}+{a.num_decoder_layers}",
        "heads": f"{a.num_heads}×{a.d_kv}",
        "glu": GLU_NAMES.get(a.feed_forward_proj, "–" if a.feed_forward_proj == "relu" else a.feed_forward_proj),
    }


def solve_row(a: Architecture, difference_percent: float, setup: Setup, priced: bool) -> dict[str, Any]:
    """`architecture_row` with its distance from the budget, its operations, and with a device its price."""
    row = architecture_row(a) | {
        "difference_percent": round(difference_percent, 4),
        "flops_per_token": float(cost.flops_per_token(a, setup)),
    }
    return row | price(a, setup) if priced else row


def price(a: Architecture, setup: Setup) -> dict[str, float]:
    """What training `a` takes: bytes on each device, tokens a second and hours."""
    return {
        "memory_bytes": round(memory.memory_bytes(a, setup)),
        "tokens_per_second": round(cost.tokens_per_second(a, setup), 3),
        "hours": round(cost.hours(a, setup), 4),
    }


def columns_named(names: Sequence[str]) -> tuple[Column, ...]:
    """The columns with these keys; `params`, `flops` and `difference` are understood, and every field of a shape.

    Raises:
        UsageError: there is no such column.
    """
    known = {column.key: column for column in (*SOLVE_COLUMNS, *PRICE_COLUMNS)}
    known |= {axis: Column(axis, axis, axis, left=axis in CHOICES) for axis in AXES}
    known |= {column.short: column for column in PRICE_COLUMNS}
    known |= {
        "params": known["num_params"],
        "flops": known["flops_per_token"],
        "difference": known["difference_percent"],
    }
    for name in names:
        if name not in known:
            raise UsageError(f'there is no column "{name}". {nearest(name, known)}')
    return tuple(known[name] for name in names)


def public(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the texts that only tables need: what JSON and CSV hold."""
    return [{k: v for k, v in row.items() if k not in ("layers", "heads", "glu", "stands_out")} for row in rows]


_MEASURED = (
    Column("loss", "loss", "loss", "{:.4f}".format),
    Column("perplexity", "perplexity", "ppl", "{:.1f}".format),
    Column("context_gain", "context gain", "gain", "{:.3f}".format),
    Column("tokens", "tokens", "tokens", si),
    Column("tokens_per_second", "tokens/s", "tok/s", si),
)

RANK_COLUMNS = (
    Column("rank", "rank", "#"),
    _NAME,
    *(replace(column, wide_only=True) for column in SHAPE_COLUMNS),
    Column("num_params", "parameters", "params", count),
    *_MEASURED,
    Column("seed", "seed", "seed", wide_only=True),
    Column("state", "state", "state", left=True, wide_only=True),
)

OTHER_COLUMNS = (
    Column("trial", "trial", "trial"),
    _NAME,
    Column("state", "state", "state", left=True),
    Column("loss", "loss so far", "loss", "{:.4f}".format),
    Column("tokens", "tokens", "tokens", si),
    Column("reason", "why", "why", left=True),
)


def pareto_columns(objectives: Sequence[str]) -> tuple[Column, ...]:
    """Columns of a Pareto set by these objectives."""
    known = {
        "loss": Column("loss", "loss", "loss", "{:.4f}".format),
        "params": Column("params", "parameters", "params", count),
        "flops": Column("flops", "FLOPs/token", "FLOPs", si),
        "memory": Column("memory", "memory", "memory", size),
        "depth": Column("depth", "depth", "depth", count),
        "tokens_per_second": Column("tokens_per_second", "tokens/s", "tok/s", si),
    }
    stands_out = Column("stands_out", "Pareto", "", left=True)
    shape = (replace(column, wide_only=True) for column in SHAPE_COLUMNS)
    return (stands_out, _NAME, *shape, *(known[name] for name in objectives))
