"""Devices as torch sees them, and DeepSpeed against plain torch on them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from march_search.doctor.findings import NEW_ENVIRONMENT, Finding
from march_search.doctor.processes import Bench
from march_search.errors import TrialError
from march_search.report.tables import plural

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
"""Largest relative difference of a loss. Seen on a CPU: 4e-8 in fp32; in bf16 3e-4 at ZeRO 1, where DeepSpeed rounds
the summed gradients to bf16, and 0 at ZeRO 2 and 3. Without clipping it is 1e-2 in both precisions."""

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def devices(bench: Bench) -> Finding:
    """GPUs, cores, and the CPU's matrix products."""
    told = bench.work("devices")
    gpus = ", ".join(f"{gpu['name']} of {gpu['memory_bytes'] / 1e9:.3g} GB" for gpu in told["gpus"])
    if not gpus and _NVIDIA_DRIVER.exists():
        way_out = "install the torch build for this driver's CUDA, and look at CUDA_VISIBLE_DEVICES"
        return Finding("failed", f"an NVIDIA driver is here, and torch {told['torch']} finds no GPU", way_out, told)
    peaks = " and ".join(f"{told[f'{kind}_flops'] / 1e9:.3g} GFLOP/s in {kind}" for kind in TOLERANCE)
    cores = f"{plural(told['cores'], 'core')} with {told['memory_bytes'] / 1e9:.3g} GB"
    cpu = f"{cores}; matrix products on {plural(told['threads'], 'thread')}: {peaks}"
    return Finding("ok", f"{gpus}; {cpu}" if gpus else f"no GPU: trials run on the CPU; {cpu}", values=told)


def parity(bench: Bench, precision: str, zero_stage: int) -> Finding:
    """The engine of a trial against plain torch.

    Raises:
        TrialError: the process failed, or its gradients were too small to be clipped.
    """
    told = bench.work(f"parity-{precision}-{zero_stage}")
    if min(told["gradient_norms"]) <= told["clipping"]:
        raise TrialError(f"clipping at {told['clipping']} was not reached: gradient norms {told['gradient_norms']}.")
    return agreement(f"DeepSpeed and plain torch on {told['device']}", told["engine"], told["torch"], precision, told)


def agreement(
    who: str, losses: Sequence[float], expected: Sequence[float], precision: str, values: dict[str, Any]
) -> Finding:
    """Whether no two losses of the same step differ by more than the precision explains."""
    differences = [abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)]
    difference = max(differences) if all(map(math.isfinite, differences)) else None
    tolerance = TOLERANCE[precision]
    values = {"difference": difference, "tolerance": tolerance} | values
    if difference is not None and difference <= tolerance:
        seen = f"differ by {difference:.0e} of the loss" if difference else "have equal losses"
        return Finding("ok", f"{who} {seen} (allowed: {tolerance:.0e})", values=values)
    seen = "differ: a loss is not finite" if difference is None else f"differ by {difference:.0e} of the loss"
    way_out = f"losses of trials cannot be trusted here: {NEW_ENVIRONMENT}"
    return Finding("failed", f"{who} {seen} (allowed: {tolerance:.0e})", way_out, values)
