"""Checks of the devices that torch finds, and of DeepSpeed against plain torch on them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from march_search.doctor.findings import NEW_ENVIRONMENT, Finding
from march_search.doctor.processes import Bench
from march_search.errors import TrialError
from march_search.report.tables import plural

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
"""Largest allowed relative difference of a loss. Measured on a CPU: 4e-8 in fp32; in bf16, 3e-4 at ZeRO 1, where
DeepSpeed rounds the summed gradients to bf16, and 0 at ZeRO 2 and 3. Without clipping, 1e-2 in both precisions."""

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
    return agreement(
        f"DeepSpeed and plain torch on {measured['device']}", measured["engine"], measured["torch"], precision, measured
    )


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
