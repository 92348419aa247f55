"""Rows and columns of the architecture tables that `solve`, `study`, `rank` and `pareto` print."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from march_search.architecture.architecture import CHOICES, Architecture
from march_search.cost import inference, memory, speed
from march_search.cost.setup import Setup
from march_search.display.tables import Column, Row
from march_search.errors import UsageError, nearest
from march_search.space.axes import AXES
from march_search.units import chance, count, percent, si, size

if TYPE_CHECKING:
    from march_search.analysis.ranking import Ranking

GLU_NAMES = {"gated-relu": "ReGLU", "gated-gelu": "GEGLU", "gated-silu": "SwiGLU"}
"""Display names of gated linear units (Shazeer 2020)."""

_NAME = Column(key="name", heading="name", short="name", left=True)


def _layers(row: Row) -> str:
    """Return the layers per stack, `12` or `12+6`."""
    decoder = row["num_decoder_layers"]
    return str(row["num_layers"]) if decoder is None else f"{row['num_layers']}+{decoder}"


def _feed_forward(row: Row) -> str:
    """Return the kind of feed-forward layer; a dash for T5's plain ReLU."""
    kind = row["feed_forward_proj"]
    return "–" if kind == "relu" else GLU_NAMES.get(kind, str(kind))


SHAPE_COLUMNS = (
    Column(key="layers", heading="layers", short="L", in_name=True, derive=_layers),
    Column(key="d_model", heading="d_model", short="D", in_name=True),
    Column(
        key="heads",
        heading="heads×d_kv",
        short="H×kv",
        in_name=True,
        derive=lambda row: f"{row['num_heads']}×{row['d_kv']}",
    ),
    Column(key="d_ff", heading="d_ff", short="F", in_name=True),
    Column(key="glu", heading="GLU", short="GLU", left=True, in_name=True, derive=_feed_forward),
)

_COUNTS = (
    Column(key="num_params", heading="parameters", short="params", show=count),
    Column(key="difference_percent", heading="difference", short="diff", show=percent),
    Column(key="flops_per_token", heading="FLOPs/token", short="FLOPs", show=si),
)

SOLVE_COLUMNS = (_NAME, *SHAPE_COLUMNS, *_COUNTS)

PRICE_COLUMNS = (
    Column(key="memory_bytes", heading="memory", short="memory", show=size),
    Column(key="tokens_per_second", heading="tokens/s", short="tok/s", show=si),
    Column(key="hours", heading="hours", short="hours", show="{:.3g}".format),
)

INFERENCE_COLUMNS = (
    Column(key="cache_bytes_per_token", heading="cache/token", short="cache", show=size),
    Column(key="prefill_ms", heading="prefill ms", short="prefill", show="{:.3g}".format),
    Column(key="decode_ms", heading="decode ms", short="decode", show="{:.3g}".format),
)
"""Columns of generating text, which are printed where they are asked for."""

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
    """Return the predicted cost of `a`: bytes on each device, tokens per second and hours of training, and of text."""
    return {
        "memory_bytes": round(memory.memory_bytes(a, setup)),
        "tokens_per_second": round(speed.tokens_per_second(a, setup), 3),
        "hours": round(speed.hours(a, setup), 4),
        "cache_bytes_per_token": round(inference.cache_bytes_per_token(a, setup)),
        "prefill_ms": round(float(inference.prefill_ms(a, setup)), 4),
        "decode_ms": round(float(inference.decode_ms(a, setup)), 4),
    }


def columns_named(names: Sequence[str], block_fields: Sequence[str] = ()) -> tuple[Column, ...]:
    """Return the columns with these keys.

    Besides the printed columns, `params`, `active_params`, `flops`, `difference`, every field of an architecture and
    the `block_fields` of a user's block are valid keys.

    Raises:
        UsageError: If a column is unknown.
    """
    known = {column.key: column for column in (*SOLVE_COLUMNS, *PRICE_COLUMNS, *INFERENCE_COLUMNS)}
    known |= {axis: Column(key=axis, heading=axis, short=axis, left=axis in CHOICES) for axis in (*AXES, *block_fields)}
    known |= {column.short: column for column in PRICE_COLUMNS}
    known |= {
        "params": known["num_params"],
        "active_params": replace(known["num_params"], key="num_active_params", heading="active", short="active"),
        "flops": known["flops_per_token"],
        "difference": known["difference_percent"],
    }
    for name in names:
        if name not in known:
            raise UsageError(f'unknown column "{name}". {nearest(name, known)}')
    return tuple(known[name] for name in names)


def rank_columns(ranking: "Ranking") -> tuple[Column, ...]:
    """Return the columns of a ranking that have a value in at least one row; all of them for an empty ranking.

    A question mark follows each figure that rests on an assumed seed noise, because the architecture has one seed.
    """
    from march_search.analysis.comparison import short_letters  # here, because `solve` does not need it

    columns = (
        Column(key="rank", heading="rank", short="#"),
        _NAME,
        Column(key="num_seeds", heading="seeds", short="seeds", drop=2),
        Column(key="learning_rate", heading="learning rate", short="rate", derive=_learning_rate, drop=5),
        Column(key="loss", heading="loss", short="loss", show="{:.4f}".format),
        Column(key="bits_per_byte", heading="bits/byte", short="b/B", show="{:.4f}".format, drop=1),
        Column(key="half_interval", heading="±", short="±", show="{:.3f}".format, suffix=_mark),
        Column(key="letters", heading="ties", short="ties", show=short_letters, left=True),
        Column(key="probability_best", heading="P(best)", short="best", show=chance),
        Column(
            key="further_seeds_to_next",
            heading="+seeds",
            short="+seeds",
            derive=lambda row: _further_seeds(row, bool(ranking.seeds)),
            drop=6,
        ),
        Column(key="context_gain", heading="context gain", short="gain", show="{:.3f}".format, drop=7),
        Column(key="tokens_per_second", heading="tokens/s", short="tok/s", show=si, suffix=_rough, drop=4),
        Column(
            key="compute_equivalent_gain",
            heading="CEG",
            short="CEG",
            show="{:.2f}".format,
            suffix=_gain_range,
            narrow=lambda row: _gain_range(row).strip() or f"{row['compute_equivalent_gain']:.2f}",
            drop=3,
        ),
        Column(key="num_params", heading="parameters", short="params", show=count, wide_only=True),
        Column(key="flops_per_token", heading="FLOPs/token", short="FLOPs", show=si, wide_only=True),
    )
    rows = ranking.rows
    return tuple(c for c in columns if not rows or any(c.value(row) is not None for row in rows))


def _mark(row: Row) -> str:
    """Return `?` for an architecture whose seed noise is assumed."""
    return "?" if row["interval_kind"] == "assumed" else ""


def _further_seeds(row: Row, has_noise: bool) -> str | None:
    """Return the range of further seeds that would separate a row from the next: `3`, `3–12?`, `3+` or `>1000`."""
    from march_search.analysis.further_seeds import MOST

    if row["difference_to_next"] is None or not has_noise:
        return None
    low, high = row["further_seeds_low"], row["further_seeds_high"]
    if low is None:
        return f">{MOST}{_mark(row)}"
    return (f"{low}+" if high is None else f"{low}" if low == high else f"{low}–{high}") + _mark(row)


def _rough(row: Row) -> str:
    """Return `~` for a speed that other trials may have lowered, or that differs between seeds."""
    return "~" if row["speed_is_rough"] else ""


def _gain_range(row: Row) -> str:
    """Return the interval of the compute-equivalent gain: ` 1.05–1.40`, with `?` if it rests on assumed noise."""
    low, high = row["gain_low"], row["gain_high"]
    return "" if low is None or high is None else f" {low:.2f}–{high:.2f}{_mark(row)}"


def _learning_rate(row: Row) -> str | None:
    """Return the best of several learning rates, with `!` at the edge of their list; None if only one was trained."""
    if len(row["learning_rate_losses"]) < 2:
        return None
    return f"{row['learning_rate']:g}" + "!" * bool(row["learning_rate_edge"])


HORIZON_COLUMNS = (
    Column(key="rank", heading="rank", short="#"),
    _NAME,
    Column(key="loss_now", heading="loss now", short="loss now", show="{:.4f}".format),
    Column(key="difference", heading="to the leader", short="gap now", show="{:.4f}".format),
    Column(key="difference_low", heading="then 95% from", short="then from", show="{:+.3f}".format),
    Column(key="difference_high", heading="to", short="to", show="{:+.3f}".format),
    Column(key="probability_best", heading="P(best)", short="best", show=chance),
)

BUDGET_COLUMNS = (
    Column(key="tokens", heading="data budget", short="tokens", show=si),
    replace(_NAME, heading="leader"),
    Column(key="architectures", heading="compared", short="of"),
    Column(key="next", heading="kept at the next", short="kept next"),
    Column(key="last", heading="kept at the longest", short="kept at end"),
    Column(key="kendall", heading="Kendall's tau", short="tau", show="{:+.2f}".format),
    Column(key="regret", heading="regret", short="regret", show="{:.4f}".format),
)

EFFECT_COLUMNS = (
    Column(key="axis", heading="dimension", short="dimension", left=True),
    Column(key="nats", heading="nats per doubling", short="nats", show="{:+.4f}".format),
    Column(key="low", heading="95% from", short="from", show="{:+.4f}".format),
    Column(key="high", heading="to", short="to", show="{:+.4f}".format),
    Column(key="separable", heading="separable", short="separable", left=True),
    Column(key="importance", heading="importance", short="imp.", show="{:.0%}".format),
)

FINDING_COLUMNS = (
    Column(key="statement", heading="statement", short="statement", left=True),
    Column(key="step", heading="step", short="step", left=True),
    Column(key="answer", heading="answer", short="answer", left=True),
    Column(key="difference", heading="nats", short="nats", show="{:+.4f}".format),
    Column(key="low", heading="95% from", short="from", show="{:+.4f}".format),
    Column(key="high", heading="to", short="to", show="{:+.4f}".format),
    Column(key="low_at_rate", heading="at this rate from", short="from", show="{:+.4f}".format, wide_only=True),
    Column(key="high_at_rate", heading="to", short="to", show="{:+.4f}".format, wide_only=True),
    Column(key="pairs", heading="pairs", short="pairs", derive=lambda row: f"{row['agreeing']}/{row['pairs']}"),
    Column(key="confounds", heading="also differs", short="also differs", show=", ".join, left=True),
)

OTHER_COLUMNS = (
    Column(key="trial", heading="trial", short="trial"),
    _NAME,
    Column(key="state", heading="state", short="state", left=True),
    Column(key="loss", heading="loss so far", short="loss", show="{:.4f}".format),
    Column(key="bits_per_byte", heading="bits/byte", short="b/B", show="{:.4f}".format, wide_only=True),
    Column(key="tokens", heading="tokens", short="tokens", show=si),
    Column(key="reason", heading="why", short="why", left=True),
)


def _stands_out(row: Row) -> str:
    """Return the mark of a row in a Pareto table: `knee`, `*` for the other optimal rows, or nothing."""
    return "knee" if row["knee"] else "*" if row["pareto"] else ""


def pareto_columns(objectives: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns of a table of architectures compared by `objectives`."""
    known = {
        "loss": Column(key="loss", heading="loss", short="loss", show="{:.4f}".format),
        "params": Column(key="params", heading="parameters", short="params", show=count),
        "flops": Column(key="flops", heading="FLOPs/token", short="FLOPs", show=si),
        "memory": Column(key="memory", heading="memory", short="memory", show=size),
        "depth": Column(key="depth", heading="depth", short="depth", show=count),
        "tokens_per_second": Column(key="tokens_per_second", heading="tokens/s", short="tok/s", show=si, suffix=_rough),
    }
    stands_out = Column(key="stands_out", heading="Pareto", short="", left=True, derive=_stands_out)
    shape = (replace(column, wide_only=True) for column in SHAPE_COLUMNS)
    return (stands_out, _NAME, *shape, *(known[name] for name in objectives))
