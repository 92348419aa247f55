"""Devices for cost predictions: peak speeds from data sheets, and measured speeds where they are known."""

import os
import re
import time
from dataclasses import dataclass, replace

from march_search.errors import UsageError, shown

SLOW_BF16 = 2.0
"""Times that bf16 may take longer than fp32 on a CPU. Without instructions for bf16 it takes 10 to 60 times as long."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A number of equal devices that train one trial together, and their speeds; `cost/speed.py` has the formula.

    Speeds of several devices add up: communication is assumed to overlap with arithmetic, as it does within a machine.
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
    attention_utilisation: float = 0.0
    """Fraction of the peak that fused attention reaches; 0 where attention is matrix products over all scores."""
    bandwidth: float = 0.0
    """Bytes per second of one device that reach the operations counted by `speed.moved_bytes`; 0 to leave them out."""
    memory_bandwidth: float = 0.0
    """Bytes per second of one device by its data sheet, for `cost/inference.py`; 0 to leave out the time of reading."""
    compiled_share: float = 1.0
    """Fraction of the bytes between operations that torch.compile leaves."""
    score_seconds: float = 0.0
    """Seconds per bf16 attention score (one query and key of one head) that passes through memory."""
    all_scores: bool = False
    """Whether every attention score passes through memory, as in the software of 2023, or only those with a bias."""
    launch_seconds: float = 0.0
    """Seconds to launch the kernels of one layer, forward and backward; they bound the speed of small micro batches."""
    layer_seconds: float = 0.0
    """Seconds per layer and token in addition, where they were measured."""
    keeps_scores: bool = False
    """Whether attention keeps its scores for the backward pass, as on a CPU."""
    basis: str = ""
    """Source of the speeds, as one clause for notes."""
    count: int = 1
    """Number of devices."""

    def peak(self, precision: str) -> float:
        """Return the peak operations per second of all devices together."""
        return self.count * (self.bf16_flops if precision == "bf16" else self.fp32_flops)

    @property
    def bf16_slowdown(self) -> float:
        """Time of matrix products in bf16, relative to fp32."""
        return self.fp32_flops / self.bf16_flops

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.count}x{self.name}"


@dataclass(frozen=True, kw_only=True)
class GpuConstants:
    """What data sheets do not tell about speed. All GPUs share these numbers; `benchmarks/pricing.py` fits them."""

    products: float
    """Fraction of the peak that matrix products reach on a GPU with 312 TFLOP/s, such as the A100."""
    decline: float
    """Exponent by which this fraction falls as the peak rises, because power and memory keep up only partly."""
    attention: float
    """Fraction of the peak that fused attention reaches, relative to `products`."""
    passes: float
    """Bytes that pass through memory per byte that `speed.moved_bytes` counts, at the bandwidth of the data sheet."""
    compiled: float
    """Fraction of these bytes that is left when torch.compile fuses the operations of a layer."""
    score_bytes: float
    """Bytes that pass through memory per attention score in bf16, where scores are kept or their bias is trained."""


FITTED = GpuConstants(products=0.685, decline=0.138, attention=0.58, passes=1.26, compiled=0.44, score_bytes=53.0)
"""The fit on all rows of `tests/reference/published-throughput.json` and the 25 runs of 2023."""

STUDY_LAYER_SECONDS = 6.85e-7
"""Seconds per layer and token that the runs of 2023 took in addition, fitted together with `FITTED`."""

A100_FLOPS = 312e12
"""Peak at which `GpuConstants.products` holds."""

LAUNCH_SECONDS = 5e-4
"""Seconds to launch the kernels of a layer, forward and backward: about 60 of 8 microseconds, assumed."""

BASIS = (
    "fitted on 44 published speeds on A100 and H100; median error 11% on a program left out; "
    "this program has not been timed on a GPU"
)
"""Source of the prices, as one clause."""

_PER_BYTE = 200
"""Peak operations per byte of bandwidth that are assumed where the bandwidth is unknown, as on an A100 of 40 GB."""


def gpu(
    name: str,
    memory_bytes: float,
    bf16_flops: float,
    fp32_flops: float | None = None,
    bandwidth: float | None = None,
    constants: GpuConstants = FITTED,
) -> Device:
    """Return a GPU from the figures of its data sheet: bytes, dense operations per second, and bytes per second.

    Without them, fp32 is assumed to reach an eighth of bf16, and the bandwidth to be a byte per 200 operations.
    """
    basis = BASIS
    if fp32_flops is None:
        basis += "; fp32 assumed at 1/8 of bf16"
    if bandwidth is None:
        basis += f"; bandwidth assumed as {bf16_flops / _PER_BYTE / 1e12:.3g}TB/s"
    bandwidth = bandwidth or bf16_flops / _PER_BYTE
    utilisation = min(1.0, constants.products * (A100_FLOPS / bf16_flops) ** constants.decline)
    return Device(
        name=name,
        memory_bytes=int(memory_bytes),
        bf16_flops=bf16_flops,
        fp32_flops=fp32_flops or bf16_flops / 8,
        utilisation=utilisation,
        attention_utilisation=utilisation * constants.attention,
        bandwidth=bandwidth / constants.passes,
        memory_bandwidth=bandwidth,
        compiled_share=constants.compiled,
        score_seconds=constants.score_bytes / bandwidth,
        launch_seconds=LAUNCH_SECONDS,
        basis=basis,
    )


DATA_SHEETS = {
    "A5000": (24e9, 111.1e12, 27.8e12, 0.768e12),
    "A6000": (48e9, 154.8e12, 38.7e12, 0.768e12),
    "A10G": (24e9, 70e12, 31.5e12, 0.600e12),
    "RTX4090": (24e9, 165.2e12, 82.6e12, 1.008e12),
    "L40S": (48e9, 362e12, 91.6e12, 0.864e12),
    "A100-40GB": (40e9, 312e12, 19.5e12, 1.555e12),
    "A100": (80e9, 312e12, 19.5e12, 2.039e12),
    "H100-PCIe": (80e9, 756e12, 51e12, 2.0e12),
    "H100": (80e9, 989e12, 67e12, 3.35e12),
    "H200": (141e9, 989e12, 67e12, 4.8e12),
    "B200": (180e9, 2250e12, 75e12, 8.0e12),
}
"""Memory, dense bf16 peak with fp32 accumulation, fp32 peak without tensor cores, and bandwidth, from NVIDIA's data
sheets, without structured sparsity. A100, H100, H200 and B200 are the SXM modules; A100 has 80 GB. A5000 and A6000 are
the Ampere generation."""

A5000 = replace(
    gpu("A5000", *DATA_SHEETS["A5000"]),
    all_scores=True,
    layer_seconds=STUDY_LAYER_SECONDS,
    basis="calibrated on 25 recorded runs of 2023, whose software was slower; median error 13% on shapes left out",
)
"""The GPU of the 2023 study, as fast as that software was."""

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


def read_bytes_per_second() -> list[float]:
    """Return the bytes per second of four sums over 128 MB, after a warm-up sum."""
    import torch

    x, speeds = torch.ones(2**25), []
    for _ in range(5):
        start = time.perf_counter()
        x.sum()
        speeds.append(x.numel() * x.element_size() / (time.perf_counter() - start))
    return speeds[1:]


def this_cpu() -> Device:
    """Return this machine as a device; measure its peaks and its memory, in about half a second."""
    from statistics import median

    fp32_flops, bf16_flops = (median(products_per_second(p, "cpu", 1024)) for p in ("fp32", "bf16"))
    return Device(
        name="cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        bf16_flops=bf16_flops,
        fp32_flops=fp32_flops,
        utilisation=CPU_UTILISATION,
        memory_bandwidth=median(read_bytes_per_second()),
        layer_seconds=CPU_LAYER_SECONDS / fp32_flops,
        keeps_scores=True,
        basis="matrix products measured now, the rest fitted on another CPU with a median error of 14% on new shapes",
    )


GPUS = (A5000, *(gpu(name, *figures) for name, figures in DATA_SHEETS.items() if name != "A5000"))
"""GPUs that `--device` knows by name."""

_NAME = re.compile(r"(?:(\d{1,6})\s*[x×]\s*)?(.+)", re.ASCII)
_NUMBER = r"(\d{1,6}(?:\.\d{1,6})?)"
_FIGURES = re.compile(rf"{_NUMBER}TFLOPs?(?:/s)?,{_NUMBER}GB(?:,{_NUMBER}TB/s)?", re.ASCII | re.IGNORECASE)
_UNITS = {"TFLOPs": 1e12, "GB": 1e9, "TB/s": 1e12}
_DECORATION = re.compile(r"nvidia|geforce|rtx|sxm\d?|hbm\d\w?|[\s_-]")
"""Parts of a GPU's full name, as torch prints it, that the known names leave out."""


def _key(name: str) -> str:
    """Return a name without decoration; 80 GB is the default memory of A100 and H100."""
    return re.sub(r"^([ah]100)80gb", r"\1", _DECORATION.sub("", name.lower()))


def _by_name(word: str) -> Device | None:
    """Return the known GPU of this name, if there is one."""
    return next((known for known in GPUS if _key(known.name) == _key(word)), None)


def _by_figures(word: str) -> Device | None:
    """Return the GPU with these figures, such as `312TFLOPs,80GB,2.0TB/s`, or None if they are not figures above 0."""
    match = _FIGURES.fullmatch(re.sub(r"\s", "", word))
    figures = [float(figure) for figure in match.groups() if figure] if match else []
    if not figures or min(figures) <= 0:
        return None
    name = ",".join(f"{figure:g}{unit}" for figure, unit in zip(figures, _UNITS, strict=False))
    flops, memory, *bandwidth = (figure * unit for figure, unit in zip(figures, _UNITS.values(), strict=False))
    return gpu(name, memory, flops, bandwidth=bandwidth[0] if bandwidth else None)


def parse_device(text: str) -> Device:
    """Parse a device such as `8xA5000`, `H100`, `cpu` (this machine), or figures such as `8x312TFLOPs,80GB,2.0TB/s`.

    Raises:
        UsageError: If the device is unknown, a number is 0, or more than one `cpu` is requested.
    """
    match = _NAME.fullmatch(text.strip())
    word = match[2].strip() if match else ""
    device = _by_name(word) or _by_figures(word)
    if not match or not (device or word.lower() == "cpu"):
        names = ", ".join([*(known.name for known in GPUS), "cpu"])
        raise UsageError(
            f"unknown device {shown(text)}. Known: {names}. For any other GPU, give its dense bf16 peak, its memory "
            "and, if you know it, its bandwidth: 8x312TFLOPs,80GB,2.0TB/s."
        )
    count = int(match[1] or 1)
    if not count or (device is None and count > 1):
        raise UsageError(f'"{text}": the number of devices must be at least 1, and exactly 1 for cpu.')
    return replace(device or this_cpu(), count=count)
