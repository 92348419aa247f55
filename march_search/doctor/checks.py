"""The checks: Python, libraries, compiler, root folder, devices, DeepSpeed against plain torch, and tiny trials."""

import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from march_search.config import DevicesConfig, TrainingConfig, TrialConfig
from march_search.cost.devices import SLOW_BF16
from march_search.doctor.bench import NEW_ENVIRONMENT, Bench, Finding
from march_search.doctor.probe import DATA
from march_search.errors import TrialError
from march_search.files.json_tables import read_json, write_json
from march_search.storage.trial_process import TRAINING, TrialProcess
from march_search.trial.metrics import read_metrics
from march_search.units import plural

WRITTEN_BYTES = 64 * 2**20
"""Bytes written to measure the speed of a disk."""

ROOM_BYTES = 10 * 10**9
"""Recommended free space. A 220M trial holds up to three checkpoints at once, with 12 (fp32) or 14 (bf16) bytes per
parameter."""


def python() -> Finding:
    """Check that the Python version meets the requirement of the package."""
    version, needed = platform.python_version(), metadata.metadata("march-search")["Requires-Python"]
    if SpecifierSet(needed).contains(version, prereleases=True):
        return Finding("ok", version, values={"version": version})
    return Finding("failed", f"{version} (requires {needed})", "create the environment with a newer Python")


def libraries() -> Finding:
    """Check that every library meets the requirement of the package; extras are ignored."""
    right, wrong, pins = [], [], []
    for text in metadata.requires("march-search") or []:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version != "missing" and need.specifier.contains(version, prereleases=True):
            right.append(f"{need.name} {version}")
        else:
            wrong.append(f"{need.name} {version} (requires {need.specifier or 'any version'})")
            pins.append(f"'{need.name}{need.specifier}'")
    if wrong:
        return Finding("failed", "; ".join(wrong), f"pip install {' '.join(pins)}")
    return Finding("ok", ", ".join(right), values=dict(library.split(" ") for library in right))


def compiler() -> Finding:
    """Report the C++ compiler. Trials on a CPU need one only with `compile`: DeepSpeed's operations are disabled."""
    name = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if name is None:
        return Finding("note", 'no C++ compiler found; needed only for compile = "layers"')
    return Finding("ok", f'{shutil.which(name)}; needed only for compile = "layers"')


def disk(folder: Path) -> Finding:
    """Check the free space and write speed of the disk that holds, or will hold, `folder`."""
    block, fix = os.urandom(2**20), "choose another folder with --root, or fix the space or permissions there"
    try:
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        start = time.perf_counter()
        with tempfile.TemporaryFile(dir=parent) as file:
            for _ in range(WRITTEN_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        speed = WRITTEN_BYTES / (time.perf_counter() - start)
    except OSError as error:
        return Finding("failed", f"{folder} cannot be written: {error.strerror}", fix)
    free = shutil.disk_usage(parent).free
    found = f"{folder}: {free / 1e9:.3g} GB free, writes at {speed / 1e6:,.0f} MB/s"
    values = {"free_bytes": free, "write_bytes_per_second": round(speed)}
    if free < ROOM_BYTES:
        return Finding(
            "note", found, "enough for small studies; for 220M parameters, choose a --root with 10 GB free", values
        )
    return Finding("ok", found, values=values)


TOLERANCE = {"fp32": 1e-5, "bf16": 1e-4}
"""Largest allowed relative difference of a loss. Without clipping, the losses differ by 1e-2 in both precisions."""

UPDATE_TOLERANCE = 1e-5
"""Largest allowed difference of an update of the fp32 weights between DeepSpeed and plain torch, relative to its norm.
Measured on a CPU at ZeRO 0 to 3: up to 6e-7 in both precisions; 1e-3 with gradients that are reduced in bf16."""

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def devices(bench: Bench) -> Finding:
    """Check which GPUs torch finds, and report the CPU's cores and matrix-product speed."""
    measured = bench.work("devices")
    gpus = ", ".join(f"{gpu['name']} of {gpu['memory_bytes'] / 1e9:.3g} GB" for gpu in measured["gpus"])
    if not gpus and _NVIDIA_DRIVER.exists():
        fix = "install the torch build for this driver's CUDA version, and check CUDA_VISIBLE_DEVICES"
        return Finding(
            "failed", f"an NVIDIA driver is installed, but torch {measured['torch']} finds no GPU", fix, measured
        )
    peaks = " and ".join(f"{measured[f'{kind}_flops'] / 1e9:.3g} GFLOP/s in {kind}" for kind in TOLERANCE)
    cores = f"{plural(measured['cores'], 'core')} with {measured['memory_bytes'] / 1e9:.3g} GB"
    cpu = f"{cores}; matrix products on {plural(measured['threads'], 'thread')}: {peaks}"
    slower = measured["fp32_flops"] / measured["bf16_flops"]
    if not gpus and slower > SLOW_BF16:
        found = f"no GPU: trials run on the CPU; {cpu}: bf16 is {slower:.0f} times slower than fp32"
        return Finding(
            "note", found, 'set precision = "fp32" in [training]; the default, "auto", does so here', measured
        )
    return Finding("ok", f"{gpus}; {cpu}" if gpus else f"no GPU: trials run on the CPU; {cpu}", values=measured)


def parity(bench: Bench, precision: str, zero_stage: int) -> Finding:
    """Compare the losses of a trial's DeepSpeed engine with those of plain torch.

    Raises:
        TrialError: If the process failed, or if its gradients were too small to be clipped.
    """
    measured = bench.work(f"parity-{precision}-{zero_stage}")
    if min(measured["gradient_norms"]) <= measured["clipping"]:
        raise TrialError(
            f"gradient norms {measured['gradient_norms']} do not all exceed the clipping norm {measured['clipping']}."
        )
    who = f"DeepSpeed and plain torch on {measured['device']}"
    found = agreement(who, measured["engine"], measured["torch"], precision, measured)
    apart = measured["update_difference"]
    if found.state == "ok" and not apart <= UPDATE_TOLERANCE:
        text = f"{who} differ by {apart:.0e} of an update (allowed: {UPDATE_TOLERANCE:.0e})"
        return Finding("failed", text, f"trials cannot be trusted here: {NEW_ENVIRONMENT}", measured)
    return found


def agreement(
    who: str, losses: Sequence[float], expected: Sequence[float], precision: str, values: dict[str, Any]
) -> Finding:
    """Check that losses of the same step differ by no more than the tolerance of the precision."""
    differences = [abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)]
    difference = max(differences) if all(map(math.isfinite, differences)) else None
    tolerance = TOLERANCE[precision]
    values = {"difference": difference, "tolerance": tolerance} | values
    if difference is not None and difference <= tolerance:
        seen = f"differ by {difference:.0e} of the loss" if difference else "have equal losses"
        return Finding("ok", f"{who} {seen} (allowed: {tolerance:.0e})", values=values)
    seen = "differ: a loss is not finite" if difference is None else f"differ by {difference:.0e} of the loss"
    fix = f"losses of trials cannot be trusted here: {NEW_ENVIRONMENT}"
    return Finding("failed", f"{who} {seen} (allowed: {tolerance:.0e})", fix, values)


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
    devices = DevicesConfig(kind=kind, ranks=ranks, threads=1)  # type: ignore[arg-type]
    write_json(
        folder / "trial.json",
        asdict(
            TrialConfig(architecture=SHAPE, store=store["store"], seed=0, data=DATA, training=training, devices=devices)
        ),
    )
    times = _timed(bench, folder)
    write_json(folder / "times.json", times)
    return times


def _timed(bench: Bench, folder: Path) -> dict[str, Any]:
    """Train the trial; time the first step until its metrics line appears, and the others by their recorded speed."""
    seen: list[float] = []
    began = time.monotonic()

    def watch(child: TrialProcess) -> None:
        if not seen and child.new_lines():
            seen.append(time.monotonic() - began)

    result = bench.run(TRAINING, folder, "result.json", watch)
    seen.append(time.monotonic() - began)  # for a trial that ended between two polls
    lines = read_metrics(folder).of_kind("train")
    seconds = [RECIPE.global_batch_tokens / line["tokens_per_second"] for line in lines[1:]]
    return {
        "first_step_seconds": round(seen[0], 3),
        "step_seconds": round(statistics.median(seconds), 5),
        "losses": [line["loss"] for line in lines],
        "device": result["device"],
    }
