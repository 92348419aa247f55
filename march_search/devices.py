"""Devices a trial can be priced on: peaks from data sheets, speeds from recorded runs where there are any."""

import os
import re
import statistics
import time
from dataclasses import dataclass, replace

from march_search.errors import UsageError
from march_search.settings import nearest

ASSUMED_UTILISATION = 0.4
"""Share of the peak that a large dense transformer's training step reaches on a GPU nobody has measured here."""


@dataclass(frozen=True)
class Device:
    """Some equal devices that train one trial together, and how fast its parts are on each.

    A token takes `FLOPs / (utilisation * peak) + layers * layer_seconds + scores * score_seconds`, divided by `count`.
    """

    name: str
    """As a person writes it."""
    memory_bytes: int
    """Of one device; 0 where nobody knows."""
    bf16_flops: float
    """Peak of dense bf16 matrix products with fp32 accumulation, operations per second of one device."""
    fp32_flops: float
    """The same in fp32."""
    utilisation: float
    """Share of the peak that matrix products reach."""
    layer_seconds: float = 0.0
    """Seconds for each layer and token besides its matrix products: elementwise work, launches."""
    score_seconds: float = 0.0
    """Seconds for each attention score, one query and key of one head, where scores go through memory."""
    keeps_scores: bool = False
    """Whether attention keeps its scores for the backward pass, as it does here on a CPU."""
    basis: str = ""
    """Where the speeds come from, one clause."""
    count: int = 1
    """How many."""

    def peak(self, precision: str) -> float:
        """Operations per second of all devices together."""
        return self.count * (self.bf16_flops if precision == "bf16" else self.fp32_flops)

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.count}x{self.name}"


_ASSUMED = f"matrix products at {ASSUMED_UTILISATION:.0%} of the peak assumed, not measured"

GPUS = (
    Device(
        "A5000",
        memory_bytes=24 * 10**9,
        bf16_flops=111.1e12,
        fp32_flops=27.8e12,
        utilisation=0.5,
        layer_seconds=9.3e-7,
        score_seconds=4.2e-11,
        basis="calibrated on 25 recorded runs of 2023; families left out of the fit: median error 14%",
    ),
    Device("A100", 80 * 10**9, 312e12, 19.5e12, ASSUMED_UTILISATION, basis=_ASSUMED),
    Device("H100", 80 * 10**9, 989e12, 67e12, ASSUMED_UTILISATION, basis=_ASSUMED),
)
"""By NVIDIA's data sheets (A100 and H100: SXM, 80 GB), without structured sparsity."""

CPU_UTILISATION = 0.8
"""Share of a CPU's peak that matrix products reach, fitted with the next on steps of eight shapes of 1 to 8M
parameters on two cores with 201 GFLOP/s in fp32; shapes left out of the fit: median error 11 % in fp32, 14 % in bf16
(`benchmarks/cpu_pricing.py`)."""

CPU_LAYER_SECONDS = 3.7e-6 * 201e9
"""`Device.layer_seconds` times the fp32 peak: elementwise work is taken to be as fast as products are."""


def products_per_second(precision: str, device: str, size: int) -> list[float]:
    """Operations a second of six products of `size` x `size` matrices, two more left out that warm up."""
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
    """This machine, its peaks measured now, in half a second: products of 1024 x 1024 matrices on all its cores."""
    fp32_flops, bf16_flops = (statistics.median(products_per_second(p, "cpu", 1024)) for p in ("fp32", "bf16"))
    return Device(
        "cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        bf16_flops=bf16_flops,
        fp32_flops=fp32_flops,
        utilisation=CPU_UTILISATION,
        layer_seconds=CPU_LAYER_SECONDS / fp32_flops,
        keeps_scores=True,
        basis="products measured now, the rest fitted on another CPU; shapes left out of the fit: median error 14%",
    )


_NAME = re.compile(r"(?:(\d{1,6})\s*[x×])?\s*([A-Za-z]\w*)", re.ASCII)


def parse_device(text: str) -> Device:
    """A device from `8xA5000`, `H100` or `cpu`, which is this machine.

    Raises:
        UsageError: no such device, or none of it.
    """
    known: dict[str, Device | None] = {gpu.name.lower(): gpu for gpu in GPUS} | {"cpu": None}
    match = _NAME.fullmatch(text.strip())
    word = match[2].lower() if match else text
    if not match or word not in known:
        raise UsageError(f'"{text}" is no device: write 8xA5000, H100 or cpu. {nearest(word, known)}')
    count = int(match[1] or 1)
    if not count or (word == "cpu" and count > 1):
        raise UsageError(f'"{text}": there must be at least one device, and this machine is one cpu.')
    return replace(known[word] or this_cpu(), count=count)
