"""Rows and columns of the architecture tables that `solve`, `study`, `rank` and `pareto` print."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from march_search.analysis.comparison import short_letters
from march_search.analysis.further_seeds import MOST
from march_search.analysis.ranking import Ranking
from march_search.architecture.architecture import CHOICES, Architecture
from march_search.cost import memory, speed
from march_search.cost.setup import Setup
from march_search.display.tables import Column, Row, chance, count, percent, si, size
from march_search.errors import UsageError, nearest
from march_search.space.space import AXES

GLU_NAMES = {"gated-relu": "ReGLU", "gated-gelu": "GEGLU", "gated-silu": "SwiGLU"}
"""Display names of gated linear units (Shazeer 2020)."""

_NAME = Column("name", "name", "name", left=True)


def _layers(row: Row) -> str:
    """Return the layers per stack, `12` or `12+6`."""
    decoder = row["num_decoder_layers"]
    return str(row["num_layers"]) if decoder is None else f"{row['num_layers']}+{decoder}"


def _feed_forward(row: Row) -> str:
    """Return the kind of feed-forward layer; a dash for T5's plain ReLU."""
    kind = row["feed_forward_proj"]
    return "–" if kind == "relu" else GLU_NAMES.get(kind, str(kind))


SHAPE_COLUMNS = (
    Column("layers", "layers", "L", in_name=True, derive=_layers),
    Column("d_model", "d_model", "D", in_name=True),
    Column("heads", "heads×d_kv", "H×kv", in_name=True, derive=lambda row: f"{row['num_heads']}×{row['d_kv']}"),
    Column("d_ff", "d_ff", "F", in_name=True),
    Column("glu", "GLU", "GLU", left=True, in_name=True, derive=_feed_forward),
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


def solve_row(a: Architecture, difference_percent: float, setup: Setup, priced: bool) -> dict[str, Any]:
    """Return `a.row()` plus the difference from the budget and the FLOPs, and if `priced` memory and time."""
    row = a.row() | {
        "difference_percent": round(difference_percent, 4),
        "flops_per_token": float(speed.flops_per_token(a, setup)),
    }
    return row | price(a, setup) if priced else row


def price(a: Architecture, setup: Setup) -> dict[str, float]:
    """Return the predicted cost of training `a`: bytes on each device, tokens per second, and hours."""
    return {
        "memory_bytes": round(memory.memory_bytes(a, setup)),
        "tokens_per_second": round(speed.tokens_per_second(a, setup), 3),
        "hours": round(speed.hours(a, setup), 4),
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


def rank_columns(ranking: Ranking) -> tuple[Column, ...]:
    """Return the columns of a ranking that have a value in at least one row; all of them if there are no rows."""

    def further_seeds(row: Row) -> Any:
        """Return the further seeds that would separate a row from the next, `>1000` if there are too few documents."""
        seeds, is_compared = row["further_seeds_to_next"], row["difference_to_next"] is not None
        return f">{MOST}" if seeds is None and is_compared and ranking.seeds else seeds

    columns = (
        Column("rank", "rank", "#"),
        _NAME,
        Column("num_params", "parameters", "params", count, wide_only=True),
        Column("num_seeds", "seeds", "seeds", wide_only=True),
        Column("learning_rate", "learning rate", "rate", derive=_learning_rate),
        Column("loss", "loss", "loss", "{:.4f}".format),
        Column("half_interval", "±", "±", "{:.3f}".format),
        Column("letters", "ties", "ties", short_letters, left=True),
        Column("probability_best", "P(best)", "best", chance),
        Column("further_seeds_to_next", "+seeds", "+seeds", derive=further_seeds),
        Column("context_gain", "context gain", "gain", "{:.3f}".format),
        Column("tokens_per_second", "tokens/s", "tok/s", si),
        Column("flops_per_token", "FLOPs/token", "FLOPs", si, wide_only=True),
        Column("compute_equivalent_gain", "CEG", "CEG", "{:.2f}".format),
    )
    rows = ranking.rows
    return tuple(c for c in columns if not rows or any(c.value(row) is not None for row in rows))


def _learning_rate(row: Row) -> str | None:
    """Return the best of several learning rates, with `!` at the edge of their list; None if only one was trained."""
    if len(row["learning_rate_losses"]) < 2:
        return None
    return f"{row['learning_rate']:g}" + "!" * bool(row["learning_rate_edge"])


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
    Column("pairs", "pairs", "pairs", derive=lambda row: f"{row['agreeing']}/{row['pairs']}"),
    Column("confounds", "also differs", "also differs", ", ".join, left=True),
)

OTHER_COLUMNS = (
    Column("trial", "trial", "trial"),
    _NAME,
    Column("state", "state", "state", left=True),
    Column("loss", "loss so far", "loss", "{:.4f}".format),
    Column("tokens", "tokens", "tokens", si),
    Column("reason", "why", "why", left=True),
)


def _stands_out(row: Row) -> str:
    """Return the mark of a row in a Pareto table: `knee`, `*` for the other optimal rows, or nothing."""
    return "knee" if row["knee"] else "*" if row["pareto"] else ""


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
    stands_out = Column("stands_out", "Pareto", "", left=True, derive=_stands_out)
    shape = (replace(column, wide_only=True) for column in SHAPE_COLUMNS)
    return (stands_out, _NAME, *shape, *(known[name] for name in objectives))
