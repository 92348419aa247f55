"""Checks that train a tiny trial with the commands that studies use: its start-up time, and one rank against two."""

import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from march_search.config import DevicesConfig, TrainingConfig, TrialConfig
from march_search.doctor.engine import agreement
from march_search.doctor.findings import Finding
from march_search.doctor.processes import Bench
from march_search.doctor.worker import DATA
from march_search.errors import TrialError
from march_search.files import read_json, read_lines, write_json
from march_search.study.child import TRAINING, Child

SHAPE = "L1-D32-H2x16-F64-geglu-rope-V400"

RECIPE = TrainingConfig(
    tokens=16 * 256,
    global_batch_tokens=256,
    micro_batch_sequences=4,
    learning_rate=1e-2,
    precision="fp32",
    evaluations=1,
    checkpoints=0,
    keep_weights=False,
)
"""16 steps of 8 sequences."""


def trial(bench: Bench) -> Finding:
    """Measure the time to the first step of a trial, and the time per step."""
    done = _trained(bench, "auto", 1)
    first, step = done["first_step_seconds"], done["step_seconds"]
    return Finding("ok", f"first step after {first:.1f} s, then {step:.2g} s per step (tiny model)", values=done)


def two_ranks(bench: Bench) -> Finding:
    """Compare the trial on two CPU ranks, which share gradients and optimizer state (ZeRO 2), with one rank."""
    one = _trained(bench, "auto", 1)
    if not one["device"].startswith("cpu"):
        one = _trained(bench, "cpu", 1)
    two = _trained(bench, "cpu", 2)
    return agreement("two ranks (gloo, ZeRO 2) and one rank", two["losses"], one["losses"], "fp32", two)


def _trained(bench: Bench, kind: str, ranks: int) -> dict[str, Any]:
    """Return losses and times of the trial; it is trained on the first call only.

    Raises:
        TrialError: If the trial failed, in this check or an earlier one.
    """
    folder = bench.folder / f"trial-{kind}-{ranks}"
    if folder.exists():
        times = read_json(folder / "times.json")
        if not isinstance(times, dict):
            raise TrialError("the trial on one rank failed, so there is nothing to compare with")
        return times
    folder.mkdir()
    store = read_json(bench.folder / "store" / "found.json") or bench.work("store")
    training = replace(RECIPE, zero_stage=2 if ranks > 1 else 0)
    devices = DevicesConfig(kind, ranks, threads=1)  # type: ignore[arg-type]
    write_json(folder / "trial.json", asdict(TrialConfig(SHAPE, store["store"], 0, DATA, training, devices)))
    times = _timed(bench, folder)
    write_json(folder / "times.json", times)
    return times


def _timed(bench: Bench, folder: Path) -> dict[str, Any]:
    """Train the trial; time the first step until its metrics line appears, and the others by their recorded speed."""
    seen: list[float] = []
    began = time.monotonic()

    def watch(child: Child) -> None:
        if not seen and child.new_lines():
            seen.append(time.monotonic() - began)

    result = bench.run(TRAINING, folder, "result.json", watch)
    seen.append(time.monotonic() - began)  # for a trial that ended between two polls
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    seconds = [RECIPE.global_batch_tokens / line["tokens_per_second"] for line in lines[1:]]
    return {
        "first_step_seconds": round(seen[0], 3),
        "step_seconds": round(statistics.median(seconds), 5),
        "losses": [line["loss"] for line in lines],
        "device": result["device"],
    }
