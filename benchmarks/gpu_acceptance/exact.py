"""Part 1: the doctor, CPU against GPU for twelve shapes, and the kernels that attention uses."""

import shutil
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_acceptance.acceptance_run import AcceptanceRun, Row
from gpu_acceptance.agreement import SHAPES, SIZE, TOLERANCE_FLEX, verdict
from march_search.commands.doctor import _checks
from march_search.display.tables import Column
from march_search.doctor.bench import row

COLUMNS = (
    Column(key="name", heading="check or shape", short="check", left=True),
    Column(key="result", heading="result", short="result", left=True),
    Column(key="logits", heading="logits fp32", short="lg 32", show="{:.0e}".format),
    Column(key="gradients", heading="gradients fp32", short="gr 32", show="{:.0e}".format),
    Column(key="bf16", heading="bf16, of CPU's", short="bf16", show="{:.2f}".format),
    Column(key="attention", heading="attention", short="attention", left=True, show=", ".join),
    Column(key="finding", heading="finding", short="finding", left=True, show=lambda text: str(text)[:70]),
)

LEFT_OUT = {
    "full": {"libraries", "compiler"},
    "tiny": {"libraries", "compiler", "disk", "two-ranks"}
    | {"fp32-zero1", "fp32-zero2", "fp32-zero3", "bf16-zero2", "bf16-zero3"},
}
"""Checks of the doctor that are not run. A bundle leaves out libraries that only read other corpora."""

PACKAGES = ("torch", "triton", "deepspeed", "numpy", "scipy", "optuna", "transformers", "datasets")
"""Packages whose versions are recorded."""


def run(acceptance: AcceptanceRun) -> int:
    """Run the part and return its exit code."""
    acceptance.attempt("twelve shapes", 60, lambda: _agreement(acceptance))
    acceptance.attempt("FlexAttention against fp64", 30, lambda: _flex(acceptance))
    folder = acceptance.out / "work" / "doctor"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    folder.mkdir()
    for name in _checks(replace(acceptance.bench(), folder=folder), acceptance.out):
        if name not in LEFT_OUT[acceptance.scale_name]:
            acceptance.attempt(f"doctor {name}", 20, partial(_doctor, acceptance, folder, name))
    acceptance.notes += [
        "logits, gradients: distance from the CPU in fp32, relative to the norm; gradients of the worst parameter.",
        f"flex: distance of attention in bf16 from fp64; at most {TOLERANCE_FLEX}.",
        "bf16: largest error in bf16 as a multiple of the CPU's error in bf16. attention: kinds that a bf16 step uses.",
    ]
    return acceptance.finish("exact", COLUMNS, {"versions": {name: _version(name) for name in PACKAGES}})


def _doctor(acceptance: AcceptanceRun, folder: Path, name: str) -> Row:
    """Return the finding of one check of the doctor, whose processes run in `folder`."""
    bench = replace(acceptance.bench(120), folder=folder)
    found = row(name, _checks(bench, acceptance.out)[name])
    result = "failed" if found["state"] == "failed" else "ok"
    return {"result": result, "finding": found["text"], "values": found["values"]}


def _agreement(acceptance: AcceptanceRun) -> list[Row]:
    """Return one row per shape."""
    vocabulary = f"-V{acceptance.scale.data.vocab_size}" if acceptance.scale.data.vocab_size < 1000 else "-V2048"
    names = {label: f"{SIZE}{words}{vocabulary}" for label, words in SHAPES.items()}
    found = acceptance.child("agreement", "agreement", 300, names=list(names.values()))["rows"]
    rows = []
    for label, name in names.items():
        values = found[name]
        result, finding = verdict(values, acceptance.kind)
        worst = max(values["bf16"][k] / max(values["bf16_cpu"][k], 1e-12) for k in values["bf16"])
        measured = {"logits": values["fp32"]["logits"], "gradients": values["fp32"]["gradients"], "bf16": worst}
        rows.append({"name": label, "shape": name, "result": result, "finding": finding} | measured | values)
        rows[-1]["bf16"] = worst
    return rows


def _flex(acceptance: AcceptanceRun) -> Row | list[Row]:
    """Return one row per case of FlexAttention."""
    if acceptance.kind != "cuda":
        return {"result": "skipped", "finding": "FlexAttention has no backward pass on a CPU"}
    return [flex_row(name, found) for name, found in acceptance.child("flex", "flex", 150)["rows"].items()]


def flex_row(name: str, distances: dict[str, Any]) -> Row:
    """Return the row of one case: `failed` after an error, or if a distance from fp64 is too large or NaN."""
    if "error" in distances:
        return {"name": name, "result": "failed", "finding": distances["error"]}
    far = [part for part, distance in distances.items() if not distance <= TOLERANCE_FLEX]
    found = {"result": "failed", "finding": f"too far from fp64: {', '.join(far)}"} if far else {"finding": "agrees"}
    worst = max(distance for part, distance in distances.items() if part != "logits")
    return {"name": name, "logits": distances["logits"], "gradients": worst, "distances": distances} | found


def _version(name: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
