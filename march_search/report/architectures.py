"""Rows and columns of the architecture tables that `solve`, `study`, `rank` and `pareto` print."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from march_search import cost, memory
from march_search.architecture import CHOICES, Architecture
from march_search.cost import Setup
from march_search.errors import UsageError
from march_search.report.tables import Column, chance, count, percent, si, size
from march_search.settings import nearest
from march_search.space import AXES

GLU_NAMES = {"gated-relu": "ReGLU", "gated-gelu": "GEGLU", "gated-silu": "SwiGLU"}
"""Display names of gated linear units (Shazeer 2020)."""

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
"""Columns with a device. On a narrow terminal only the name shows the shape."""

NARROW_LEGEND = "L: layers per stack, D: d_model, H×kv: heads × d_kv, F: d_ff"


def architecture_row(a: Architecture) -> dict[str, Any]:
    """Return a row with every field of `a`, its name, its parameter count and the short texts for tables."""
    return asdict(a) | {
        "name": a.name,
        "num_params": a.num_params,
        "layers": str(a.num_layers) if a.num_decoder_layers is None else f"{a.num_layers}+{a.num_decoder_layers}",
        "heads": f"{a.num_heads}×{a.d_kv}",
        "glu": GLU_NAMES.get(a.feed_forward_proj, "–" if a.feed_forward_proj == "relu" else a.feed_forward_proj),
    }


def solve_row(a: Architecture, difference_percent: float, setup: Setup, priced: bool) -> dict[str, Any]:
    """Return `architecture_row` plus the difference from the budget and the FLOPs, and if `priced` memory and time."""
    row = architecture_row(a) | {
        "difference_percent": round(difference_percent, 4),
        "flops_per_token": float(cost.flops_per_token(a, setup)),
    }
    return row | price(a, setup) if priced else row


def price(a: Architecture, setup: Setup) -> dict[str, float]:
    """Return the predicted cost of training `a`: bytes on each device, tokens per second, and hours."""
    return {
        "memory_bytes": round(memory.memory_bytes(a, setup)),
        "tokens_per_second": round(cost.tokens_per_second(a, setup), 3),
        "hours": round(cost.hours(a, setup), 4),
    }


def columns_named(names: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns with these keys.

    Besides the printed columns, `params`, `flops`, `difference` and every field of an architecture are valid keys.

    Raises:
        UsageError: If a column is unknown.
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
            raise UsageError(f'unknown column "{name}". {nearest(name, known)}')
    return tuple(known[name] for name in names)


_SHOWN = (
    "layers",
    "heads",
    "glu",
    "learning_rate_shown",
    "further_seeds_shown",
    "letters_shown",
    "pairs_shown",
    "confounds_shown",
    "stands_out",
)


def public(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows for JSON and CSV: without the texts that only tables need."""
    return [{k: v for k, v in row.items() if k not in _SHOWN} for row in rows]


RANK_COLUMNS = (
    Column("rank", "rank", "#"),
    _NAME,
    Column("num_params", "parameters", "params", count, wide_only=True),
    Column("num_seeds", "seeds", "seeds", wide_only=True),
    Column("learning_rate_shown", "learning rate", "rate"),
    Column("loss", "loss", "loss", "{:.4f}".format),
    Column("half_interval", "±", "±", "{:.3f}".format),
    Column("letters_shown", "ties", "ties", left=True),
    Column("probability_best", "P(best)", "best", chance),
    Column("further_seeds_shown", "+seeds", "+seeds"),
    Column("context_gain", "context gain", "gain", "{:.3f}".format),
    Column("tokens_per_second", "tokens/s", "tok/s", si),
    Column("flops_per_token", "FLOPs/token", "FLOPs", si, wide_only=True),
    Column("compute_equivalent_gain", "CEG", "CEG", "{:.2f}".format),
)


def rank_columns(rows: Sequence[dict[str, Any]]) -> tuple[Column, ...]:
    """Return the `RANK_COLUMNS` that have a value in at least one row; return all of them if there are no rows."""
    return tuple(c for c in RANK_COLUMNS if not rows or any(row.get(c.key) is not None for row in rows))


HORIZON_COLUMNS = (
    Column("rank", "rank", "#"),
    _NAME,
    Column("rank_now", "rank now", "now"),
    Column("loss_now", "loss now", "loss now", "{:.4f}".format),
    Column("predicted_loss", "predicted", "then", "{:.3f}".format),
    Column("predicted_low", "95 % from", "from", "{:.3f}".format),
    Column("predicted_high", "to", "to", "{:.3f}".format),
    Column("probability_best", "P(best)", "best", chance),
)

EFFECT_COLUMNS = (
    Column("axis", "dimension", "dimension", left=True),
    Column("nats", "nats per doubling", "nats", "{:+.4f}".format),
    Column("low", "95 % from", "from", "{:+.4f}".format),
    Column("high", "to", "to", "{:+.4f}".format),
    Column("separable", "separable", "separable", left=True),
    Column("importance", "importance", "imp.", "{:.0%}".format),
)

FINDING_COLUMNS = (
    Column("statement", "statement", "statement", left=True),
    Column("verdict", "answer", "answer", left=True),
    Column("difference", "nats", "nats", "{:+.4f}".format),
    Column("low", "95 % from", "from", "{:+.4f}".format),
    Column("high", "to", "to", "{:+.4f}".format),
    Column("pairs_shown", "pairs", "pairs"),
    Column("confounds_shown", "also differs", "also differs", left=True),
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
    """Return the columns of a table of architectures compared by `objectives`."""
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
