"""Measure what the cost model assumes about a device: matrix products, attention, scores, launches, copies."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_acceptance.scale import SCALES
from march_search import Architecture
from march_search.cost import speed
from march_search.cost.setup import Setup
from march_search.cost.speed import positions

if TYPE_CHECKING:
    from gpu_acceptance.acceptance_run import AcceptanceRun, Row

REPLACED = ("utilisation", "attention_utilisation", "score_seconds", "launch_seconds", "layer_seconds")
"""Fields of `march_search.cost.devices.Device` that the measurements replace."""


def measured(_folder: Path, scale: str, kind: str, **_: Any) -> dict[str, Any]:
    """Return the constants that can be measured by themselves, at the sizes of the main shape."""
    from gpu_acceptance.acceptance_run import known_device

    size, device = SCALES[scale], known_device(kind)
    a = Architecture.parse(size.shape)
    setup = Setup(device=device, micro_batch=size.middle, sequence_length=size.data.sequence_length)
    peak = device.peak(size.precision)
    with_bias, without, flops, scores = _attention(a, setup, size.precision, kind)
    return {
        "utilisation": _products(a, setup, size.precision, kind) / peak,
        "attention_utilisation": flops / without / peak,
        "score_seconds": max(0.0, with_bias - without) / scores,
        "launch_seconds": _launches(a, size.precision, kind),
        "copy_bytes_per_second": _copies(kind),
        "peak_flops": peak,
    }


def replacement(acceptance: "AcceptanceRun", sessions: "list[Row]") -> dict[str, Any]:
    """Return the constants, with what the sessions took beyond them as `layer_seconds`, and predictions with both."""
    direct, device, size = acceptance.constants, acceptance.device(), acceptance.scale
    chosen = {name: direct[name] for name in REPLACED if name in direct}
    if acceptance.kind == "cpu":  # attention is products there, and scores are not counted
        chosen |= {"attention_utilisation": 0.0, "score_seconds": 0.0}
    found = replace(device, **chosen, layer_seconds=0.0)
    setups = [(Architecture.parse(row["shape"]), row) for row in sessions]

    def setup(row: "Row", known: Any) -> Setup:
        return Setup(
            device=known,
            micro_batch=row["micro_batch"],
            sequence_length=size.data.sequence_length,
            precision=size.precision,  # type: ignore[arg-type]
        )

    rests = []
    for a, row in setups:
        layers = a.decoder_layers + (a.num_layers if a.structure == "encoder-decoder" else 0)
        rest = 1 / row["tokens_per_second"] - 1 / float(speed.tokens_per_second(a, setup(row, found)))
        rests.append(rest / layers)
    layer_seconds = max(0.0, statistics.median(rests)) if rests else 0.0
    found = replace(found, layer_seconds=layer_seconds)
    checks = [
        {
            "shape": a.name,
            "micro_batch": row["micro_batch"],
            "tokens_per_second": row["tokens_per_second"],
            "predicted_before": float(speed.tokens_per_second(a, setup(row, device))),
            "predicted_after": float(speed.tokens_per_second(a, setup(row, found))),
        }
        for a, row in setups
    ]
    return {
        "device": device.name,
        "replace": {name: getattr(found, name) for name in REPLACED},
        "assumed": {name: getattr(device, name) for name in REPLACED},
        "measured": direct,
        "sessions": checks,
    }


def seconds(work: Callable[[], object], kind: str, times: int = 10) -> float:
    """Return the median duration of a call, after two to warm up."""
    import torch

    durations = []
    for number in range(times + 2):
        if kind == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def _products(a: Architecture, setup: Setup, precision: str, kind: str) -> float:
    """Return the operations per second over the matrix products of a layer and of the output layer."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    source, _, target = positions(a, setup)
    inner, width = a.num_heads * a.d_kv, a.d_model
    sizes = [
        (setup.micro_batch * (source or target), width, 3 * inner),
        (setup.micro_batch * (source or target), inner, width),
        (setup.micro_batch * (source or target), width, a.d_ff),
        (setup.micro_batch * (source or target), a.d_ff, width),
        (min(2**26 // a.vocab_size, setup.micro_batch * target), width, a.vocab_size),
    ]
    total, taken = 0.0, 0.0
    for rows, into, out in sizes:
        x, w = (torch.randn(shape, dtype=dtype, device=kind) for shape in ((rows, into), (into, out)))
        taken += seconds(lambda x=x, w=w: x @ w, kind)
        total += 2.0 * rows * into * out
    return total / taken


def _attention(a: Architecture, setup: Setup, precision: str, kind: str) -> tuple[float, float, float, float]:
    """Return the seconds of attention with a trained bias and without, its operations, and its scores."""
    import torch

    from march_search.model import flex
    from march_search.model.attention import scaled_attention
    from march_search.model.attention_path import choose_path, platform_of

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    length = positions(a, setup).source or setup.sequence_length
    shape = (setup.micro_batch, a.num_heads, length, a.d_kv)
    q, k, v = (torch.randn(shape, dtype=dtype, device=kind, requires_grad=True) for _ in range(3))
    bias = torch.randn(a.num_heads, length, length, dtype=dtype, device=kind, requires_grad=True)
    grad = torch.randn(shape, dtype=dtype, device=kind)
    is_flex = choose_path(platform_of(q.device), dtype, a.d_kv, "trained", length).name == "flex"  # as trials choose

    def step(added: Any) -> None:
        inputs = [q, k, v] if added is None else [q, k, v, added]
        if added is not None and is_flex:
            found = flex.attention(q, k, v, added.float(), None, a.d_kv**-0.5)
        else:
            found = scaled_attention(q, k, v, added, False, a.d_kv**-0.5)
        torch.autograd.grad(found, inputs, grad)  # backward() would also add to gradients

    scores = float(setup.micro_batch * a.num_heads * length * length)
    return seconds(lambda: step(bias), kind), seconds(lambda: step(None), kind), 14 * scores * a.d_kv, scores


def _launches(a: Architecture, precision: str, kind: str) -> float:
    """Return the seconds per layer, forward and backward, of the main shape on four tokens of one example."""
    import torch

    from march_search.model import build

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build(a).to(kind, dtype)
    tokens = torch.zeros(1, 4, dtype=torch.int64, device=kind)
    inputs = tokens if a.structure == "encoder-decoder" else None
    layers = a.decoder_layers + (a.num_layers if inputs is not None else 0)
    return seconds(lambda: model(inputs, tokens).backward(), kind) / layers


def _copies(kind: str) -> float:
    """Return the bytes per second that a copy within the device's memory reads and writes."""
    import torch

    source = torch.zeros(2**28 if kind == "cuda" else 2**24, dtype=torch.uint8, device=kind)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), kind)
