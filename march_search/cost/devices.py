"""Devices for cost predictions: peak speeds from data sheets, and measured speeds where they are known."""

import os
import re
import statistics
import time
from dataclasses import dataclass, replace

from march_search.errors import UsageError, nearest

ASSUMED_UTILISATION = 0.4
"""Fraction of the peak that training a large dense transformer is assumed to reach on a GPU without measurements."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A number of equal devices that train one trial together, and their speeds.

    The time per token is `FLOPs / (utilisation * peak) + layers * layer_seconds + scores * score_seconds` for one
    device, divided by `count`.
    """

    name: str
    """Name of the device type, as used on the command line."""
    memory_bytes: int
    """Memory of one device; 0 if unknown."""
    bf16_flops: float
    """Peak operations per second of one device for dense bf16 matrix products with fp32 accumulation."""
    fp32_flops: float
    """Peak operations per second of one device for fp32 matrix products."""
    utilisation: float
    """Fraction of the peak that matrix products reach."""
    layer_seconds: float = 0.0
    """Seconds per layer and token in addition to matrix products: elementwise operations and kernel launches."""
    score_seconds: float = 0.0
    """Seconds per attention score (one query and key of one head), where scores pass through memory."""
    keeps_scores: bool = False
    """Whether attention keeps its scores for the backward pass, as on a CPU."""
    basis: str = ""
    """Source of the speeds, as one clause for notes."""
    count: int = 1
    """Number of devices."""

    def peak(self, precision: str) -> float:
        """Return the peak operations per second of all devices together."""
        return self.count * (self.bf16_flops if precision == "bf16" else self.fp32_flops)

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.count}x{self.name}"


_ASSUMED = f"assuming matrix products at {ASSUMED_UTILISATION:.0%} of the peak, not measured"

GPUS = (
    Device(
        name="A5000",
        memory_bytes=24 * 10**9,
        bf16_flops=111.1e12,
        fp32_flops=27.8e12,
        utilisation=0.5,
        layer_seconds=9.3e-7,
        score_seconds=4.2e-11,
        basis="calibrated on 25 recorded runs of 2023; median error 14% on shape families left out of the fit",
    ),
    Device(
        name="A100",
        memory_bytes=80 * 10**9,
        bf16_flops=312e12,
        fp32_flops=19.5e12,
        utilisation=ASSUMED_UTILISATION,
        basis=_ASSUMED,
    ),
    Device(
        name="H100",
        memory_bytes=80 * 10**9,
        bf16_flops=989e12,
        fp32_flops=67e12,
        utilisation=ASSUMED_UTILISATION,
        basis=_ASSUMED,
    ),
)
"""GPUs with peaks from NVIDIA's data sheets (A100 and H100: SXM, 80 GB), without structured sparsity."""

CPU_UTILISATION = 0.8
"""Fraction of a CPU's peak that matrix products reach. It was fitted together with `CPU_LAYER_SECONDS` on steps of
eight shapes with 1M to 8M parameters, on two cores with 201 GFLOP/s in fp32. The median error on shapes left out of the
fit is 11% in fp32 and 14% in bf16 (`benchmarks/cpu_pricing.py`)."""

CPU_LAYER_SECONDS = 3.7e-6 * 201e9
"""`Device.layer_seconds` times the fp32 peak: elementwise operations are assumed to scale with matrix products."""


def products_per_second(precision: str, device: str, size: int) -> list[float]:
    """Return the operations per second of six products of `size` x `size` matrices, after two warm-up products."""
    import torch

    x = torch.ones(size, size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32, device=device)
    speeds = []
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(x, x)
        if x.is_cuda:
            torch.cuda.synchronize()
        speeds.append(2 * size**3 / (time.perf_counter() - start))
    return speeds[2:]


def this_cpu() -> Device:
    """Return this machine as a device; measure its peaks with 1024 x 1024 matrix products, in about half a second."""
    fp32_flops, bf16_flops = (statistics.median(products_per_second(p, "cpu", 1024)) for p in ("fp32", "bf16"))
    return Device(
        name="cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        bf16_flops=bf16_flops,
        fp32_flops=fp32_flops,
        utilisation=CPU_UTILISATION,
        layer_seconds=CPU_LAYER_SECONDS / fp32_flops,
        keeps_scores=True,
        basis="matrix products measured now, the rest fitted on another CPU with a median error of 14% on new shapes",
    )


_NAME = re.compile(r"(?:(\d{1,6})\s*[x×])?\s*([A-Za-z]\w*)", re.ASCII)


def parse_device(text: str) -> Device:
    """Parse a device such as `8xA5000`, `H100` or `cpu` (this machine).

    Raises:
        UsageError: If the device is unknown, the number is 0, or more than one `cpu` is requested.
    """
    known: dict[str, Device | None] = {gpu.name.lower(): gpu for gpu in GPUS} | {"cpu": None}
    match = _NAME.fullmatch(text.strip())
    word = match[2].lower() if match else text
    if not match or word not in known:
        raise UsageError(f'unknown device "{text}": use 8xA5000, H100 or cpu. {nearest(word, known)}')
    count = int(match[1] or 1)
    if not count or (word == "cpu" and count > 1):
        raise UsageError(f'"{text}": the number of devices must be at least 1, and exactly 1 for cpu.')
    return replace(known[word] or this_cpu(), count=count)
