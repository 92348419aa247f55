"""Train one shape again and again in the same process, with one setting switched at a time."""

from pathlib import Path
from typing import Any

from gpu_acceptance.scale import SCALES
from gpu_acceptance.session import Switches, release, settings, trained
from march_search.doctor.bench import in_words
from march_search.files.json_tables import write_json
from march_search.training.engine import join_ranks

SDPA = {"attention": "sdpa"}

SETTINGS: dict[str, tuple[str, Switches]] = {
    "as trained": ("", Switches()),
    "attention: sdpa": ("", Switches(training=SDPA)),
    "attention: flex": ("", Switches(training={"attention": "flex"})),
    "compiled layers": ("", Switches(training={"compile": "layers"})),
    "timer on": ("", Switches(has_timers=True)),
    "not pinned": ("", Switches(is_pinned=False)),
    "attention: cuDNN": ("", Switches(backend="CUDNN_ATTENTION", training=SDPA)),
    "attention: math": ("", Switches(backend="MATH", training=SDPA)),
    "rotary": ("-rope", Switches()),
    "rotary, flash": ("-rope", Switches(backend="FLASH_ATTENTION")),
    "rotary, cuDNN": ("-rope", Switches(backend="CUDNN_ATTENTION")),
    "as trained, again": ("", Switches()),
}
"""Word added to the shape, and switches, by name. The first and the last are alike and show how far speeds drift."""

LEFT_OUT_TINY = {"attention: cuDNN", "rotary, flash", "rotary, cuDNN"}
"""Settings left out on a CPU, which has no such backends."""

COMPILED = {name for name, (_, switches) in SETTINGS.items() if "compile" in switches.training}
"""Settings that need a compiler."""


def toggles(folder: Path, scale: str, kind: str, store: str, out: str, skip: list[str]) -> dict[str, Any]:
    """Return one row per setting. Rows so far are kept in rows.json, in case the process is stopped."""
    size, rows = SCALES[scale], list[dict[str, Any]]()
    first = settings(scale, kind, store, size.shape, size.middle)
    rank_info = join_ranks(first.devices)
    reference: dict[str, list[float]] = {}
    for name, (word, switches) in SETTINGS.items():
        if name in skip:
            continue
        config = settings(scale, kind, store, _with_word(size.shape, word), size.middle)
        try:
            row = trained(folder, Path(out), config, rank_info, size.compared_steps, size.warm_up, switches)
        except Exception as error:  # a backend that cannot run this shape, or memory that ran out
            row = {"result": "refused" if switches.backend else "failed", "finding": in_words(error)[:200]}
        release()
        losses = row.get("losses")
        if losses:
            same = reference.setdefault(word, losses)
            row["loss_difference"] = max(abs(x - y) for x, y in zip(losses, same, strict=False))
        if switches.training.get("compile") == "layers":
            row["graph_breaks"] = _graph_breaks()
        rows.append({"name": name} | row)
        write_json(folder / "rows.json", {"rows": rows})
    return {"rows": rows}


def _with_word(shape: str, word: str) -> str:
    """Return the shape's name with another word before its vocabulary."""
    base, mark, vocabulary = shape.partition("-V")
    return f"{base}{word}{mark}{vocabulary}"


def _graph_breaks() -> int:
    """Return the number of graph breaks of torch.compile so far in this process."""
    import torch._dynamo.utils

    return sum(torch._dynamo.utils.counters["graph_break"].values())


def ratio(row: dict[str, Any], base: dict[str, Any]) -> float:
    """Return the speed of a row, as a multiple of that of `base`."""
    return float(row["tokens_per_second"] / base["tokens_per_second"])
