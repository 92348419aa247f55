"""Part 2: speed and memory of training at a full batch, with settings switched, beside Hugging Face's T5."""

import importlib.util
from functools import partial
from typing import Any

from gpu_acceptance.acceptance_run import AcceptanceRun, Row
from gpu_acceptance.constants import replacement
from gpu_acceptance.toggles import COMPILED, LEFT_OUT_TINY, ratio
from march_search.display.tables import Column
from march_search.errors import TrialError
from march_search.files.json_tables import read_json, write_json
from march_search.units import si, size


def _signed(value: float) -> str:
    """Format a relative difference."""
    return f"{value:+.0%}"


COLUMNS = (
    Column(key="name", heading="setting", short="setting", left=True),
    Column(key="result", heading="result", short="result", left=True),
    Column(key="tokens_per_second", heading="tokens/s", short="tok/s", show=si),
    Column(key="speedup", heading="ratio", short="ratio", show="{:.2f}".format),
    Column(key="of_peak", heading="of peak", short="peak", show="{:.1%}".format),
    Column(key="data_wait", heading="data wait", short="wait", show="{:.1%}".format),
    Column(key="forward_seconds", heading="forward", short="fwd", show="{:.2f}".format, wide_only=True),
    Column(key="backward_seconds", heading="backward", short="bwd", show="{:.2f}".format, wide_only=True),
    Column(key="step_seconds", heading="optimizer", short="opt", show="{:.2f}".format, wide_only=True),
    Column(key="speed_error", heading="of predicted speed", short="speed", show=_signed),
    Column(key="peak_memory_bytes", heading="allocated", short="alloc", show=size),
    Column(key="memory_error", heading="of predicted", short="alloc", show=_signed),
    Column(key="peak_reserved_memory_bytes", heading="reserved", short="resv", show=size, wide_only=True),
    Column(key="finding", heading="finding", short="finding", left=True, show=lambda text: str(text)[:60]),
)

SHAPE_SECONDS, TOGGLE_SECONDS, HUGGINGFACE_SECONDS = 150, 240, 120
"""Time limits on a GPU: of one shape in a process of its own, of all switched settings, and of Hugging Face's T5."""


def run(acceptance: AcceptanceRun) -> int:
    """Run the part and return its exit code."""
    scale = acceptance.scale
    for micro_batch in sorted(scale.micro_batches, key=lambda m: m != scale.middle):
        name = f"micro batch {micro_batch}"
        acceptance.attempt(name, 20, partial(_session, acceptance, name, scale.shape, micro_batch))
    acceptance.attempt("switched settings", 60, partial(_toggles, acceptance))
    acceptance.attempt(
        "deterministic", 20, partial(_session, acceptance, "deterministic", scale.shape, scale.middle, True)
    )
    for name in ("Hugging Face T5", "Hugging Face T5, compiled")[: 1 + _can_compile(acceptance)]:
        acceptance.attempt(name, 40, partial(_huggingface, acceptance, name))
    acceptance.attempt("constants", 15, partial(_constants, acceptance))
    for number, shape in enumerate(scale.other_shapes):
        acceptance.attempt(shape, 20, partial(_session, acceptance, f"shape {number + 1}", shape, scale.middle))
    base = next((row for row in acceptance.rows if row["name"] == "as trained"), {})
    for row in acceptance.rows:
        row.update(compared(row, base))
    _write_constants(acceptance)
    tokens = scale.batch_sequences * scale.data.sequence_length
    acceptance.notes += [
        f"{scale.shape}, {tokens:,} tokens per step, {scale.precision}; medians of {scale.steps} steps, or of "
        f"{scale.compared_steps} where settings are compared.",
        'ratio: to "as trained". It and the switched settings share a process; each micro batch and shape has its own.',
        "of peak: operations of the shape over those of the device's data sheet. constants.json has what replaces "
        "assumed constants in march_search/cost/devices.py.",
    ]
    return acceptance.finish("speed", COLUMNS)


def compared(row: Row, base: Row) -> Row:
    """Return the speed relative to `base`, and how far speed and memory lie from their predictions."""
    found: Row = {}
    if "tokens_per_second" in row and row.get("shape") == base.get("shape"):
        found["speedup"] = ratio(row, base)
    if "predicted_tokens_per_second" in row:
        found["speed_error"] = row["tokens_per_second"] / row["predicted_tokens_per_second"] - 1
    if "predicted_memory_bytes" in row and "peak_reserved_memory_bytes" in row:  # a CPU counts the whole program
        found["memory_error"] = row["peak_memory_bytes"] / row["predicted_memory_bytes"] - 1
    if row["name"].startswith("Hugging Face") and "losses" in row and "losses" in base:
        difference = max(abs(x - y) for x, y in zip(row["losses"], base["losses"], strict=False))
        found["finding"] = f"loss differs from ours by {difference:.1e}"
        if row.get("micro_batch") != base.get("micro_batch"):
            found["finding"] += f"; micro batch {row['micro_batch']}, because memory ran out"
    return found


def _session(acceptance: AcceptanceRun, name: str, shape: str, micro_batch: int, deterministic: bool = False) -> Row:
    """Train one shape in a fresh process, so that its memory is its own."""
    label = name.replace(" ", "-")
    given = {"architecture": shape, "micro_batch": micro_batch, "deterministic": deterministic}
    return acceptance.child("session", label, SHAPE_SECONDS, **given) | {"is_alone": not deterministic}


def _toggles(acceptance: AcceptanceRun) -> list[Row]:
    """Return the rows of all switched settings, or of those that were reached in time."""
    skip = sorted(LEFT_OUT_TINY) if acceptance.scale_name == "tiny" else []
    if not _can_compile(acceptance):
        skip += sorted(COMPILED)
        acceptance.notes.append("torch.compile was left out: a compiler is missing, or this is a rehearsal.")
    try:
        rows: list[Row] = acceptance.child("toggles", "toggles", TOGGLE_SECONDS, skip=skip)["rows"]
    except TrialError as error:
        found = read_json(acceptance.out / "work" / "toggles" / "rows.json")
        rows = found["rows"] if isinstance(found, dict) else []
        rows.append(
            {"name": "other switched settings", "result": "skipped" if rows else "failed", "finding": str(error)}
        )
    for row in rows:
        texts = [row.get("finding", "")]
        if "loss_difference" in row:
            texts.append(f"loss differs by {row['loss_difference']:.1e}")
        if "graph_breaks" in row:
            texts.append(f"{row['graph_breaks']} graph breaks")
        row["finding"] = "; ".join(filter(None, texts))
    return rows


def _huggingface(acceptance: AcceptanceRun, name: str) -> Row:
    """Train Hugging Face's T5, in a process of its own."""
    if importlib.util.find_spec("transformers") is None:
        return {"result": "skipped", "finding": "transformers is not installed"}
    compiled = name.endswith("compiled")
    return acceptance.child("huggingface", f"huggingface-{compiled}", HUGGINGFACE_SECONDS, compiled=compiled)


def _can_compile(acceptance: AcceptanceRun) -> bool:
    """Return whether torch.compile is tried: not in a rehearsal, where compiling would take most of the time."""
    if acceptance.scale_name == "tiny":
        return False
    from march_search.model.attention_path import missing_compiler

    return not missing_compiler(acceptance.kind)


def _constants(acceptance: AcceptanceRun) -> Row:
    """Measure what the cost model assumes."""
    found: dict[str, Any] = acceptance.child("constants", "constants", 90)
    share, launch = found["utilisation"], found["launch_seconds"]
    texts = [f"products {share:.0%} of the peak", f"launch {launch * 1e6:.0f} us per layer"]
    acceptance.constants = found
    return {"finding": ", ".join(texts)}


def _write_constants(acceptance: AcceptanceRun) -> None:
    """Write constants.json from the direct measurements and the speeds of all sessions."""
    if acceptance.constants:
        write_json(
            acceptance.out / "constants.json",
            replacement(acceptance, [row for row in acceptance.rows if row.get("is_alone")]),
        )
