"""Rows and columns that describe architectures, as `solve`, `study` and `rank` print them."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from march_search.architecture import Architecture
from march_search.report.tables import Column, count, percent, si

GLU_NAMES = {"gated-relu": "ReGLU", "gated-gelu": "GEGLU", "gated-silu": "SwiGLU"}
"""Names of gated linear units (Shazeer 2020)."""

SHAPE_COLUMNS = (
    Column("layers", "layers", "L"),
    Column("d_model", "d_model", "D"),
    Column("heads", "heads×d_kv", "H×kv"),
    Column("d_ff", "d_ff", "F"),
    Column("glu", "GLU", "GLU", left=True),
)

SOLVE_COLUMNS = (
    Column("name", "name", "name", left=True),
    *SHAPE_COLUMNS,
    Column("num_params", "parameters", "params", count),
    Column("difference_percent", "difference", "diff", percent),
    Column("flops_per_token", "FLOPs/token", "FLOPs", si),
)

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


def public(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the texts that only tables need: what JSON and CSV hold."""
    return [{k: v for k, v in row.items() if k not in ("layers", "heads", "glu")} for row in rows]


_NAME = Column("name", "name", "name", left=True)

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
