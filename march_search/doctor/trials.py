"""A tiny trial from text to result, by the very commands of a study: how fast it starts, and the same on two ranks."""

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
"""Sixteen steps of eight sequences."""


def trial(bench: Bench) -> Finding:
    """How long a trial takes to its first step, and how long each step."""
    done = _trained(bench, "auto", 1)
    first, step = done["first_step_seconds"], done["step_seconds"]
    return Finding(
        "ok", f"first step {first:.1f} s after its start, then {step:.2g} s a step (tiny model)", values=done
    )


def two_ranks(bench: Bench) -> Finding:
    """The trial on two ranks of the CPU, gradients and optimizer divided between them, against one rank."""
    one = _trained(bench, "auto", 1)
    if not one["device"].startswith("cpu"):
        one = _trained(bench, "cpu", 1)
    two = _trained(bench, "cpu", 2)
    return agreement("two ranks (gloo, ZeRO 2) and one", two["losses"], one["losses"], "fp32", two)


def _trained(bench: Bench, kind: str, ranks: int) -> dict[str, Any]:
    """Losses and times of the trial, which is trained once.

    Raises:
        TrialError: it failed, now or when another check wanted it.
    """
    folder = bench.folder / f"trial-{kind}-{ranks}"
    if folder.exists():
        kept = read_json(folder / "times.json")
        if not isinstance(kept, dict):
            raise TrialError("there is nothing to compare with: the trial on one rank failed")
        return kept
    folder.mkdir()
    made = read_json(bench.folder / "store" / "found.json") or bench.work("store")
    training = replace(RECIPE, zero_stage=2 if ranks > 1 else 0)
    devices = DevicesConfig(kind, ranks, threads=1)  # type: ignore[arg-type]
    write_json(folder / "trial.json", asdict(TrialConfig(SHAPE, made["store"], 0, DATA, training, devices)))
    told = _timed(bench, folder)
    write_json(folder / "times.json", told)
    return told


def _timed(bench: Bench, folder: Path) -> dict[str, Any]:
    """Trains; the first step is there when its line is, the others take what their lines say."""
    seen: list[float] = []
    began = time.monotonic()

    def watch(child: Child) -> None:
        if not seen and child.new_lines():
            seen.append(time.monotonic() - began)

    result = bench.run(TRAINING, folder, "result.json", watch)
    seen.append(time.monotonic() - began)  # for a trial that ended between two looks
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    seconds = [RECIPE.global_batch_tokens / line["tokens_per_second"] for line in lines[1:]]
    return {
        "first_step_seconds": round(seen[0], 3),
        "step_seconds": round(statistics.median(seconds), 5),
        "losses": [line["loss"] for line in lines],
        "device": result["device"],
    }
