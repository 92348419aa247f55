"""Time optimizer steps of shapes on random tokens, on this CPU, in a process of its own.

The work is a JSON object with `names`, `blocks` (module and SHA-256 of the users' own blocks in them), `inputs` and
`targets` (lengths of an example), `sequences` (examples per step), `micro_batches` (examples of a step that are timed,
per shape), `precision`, `threads` and `seconds` (time per shape).
It prints a JSON object: `steps`, the seconds per step of each shape, and the operations per second of matrix products,
`fp32_flops` and `bf16_flops`.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

WARM_UP = 2
"""Steps of each shape that are not counted."""

PRODUCT_SIZE = 512
"""Rows and columns of the matrices whose products are timed."""


def main(text: str) -> None:
    """Time the shapes and the matrix products, and print the results."""
    import torch

    from march_search.architecture.block_file import load_block

    work = json.loads(text)
    torch.set_num_threads(work["threads"])
    for module, sha256 in work["blocks"]:
        load_block(module, Path(), sha256)
    shapes = zip(work["names"], work["micro_batches"], strict=True)
    steps = [_step_seconds(name, micro_batch, work) for name, micro_batch in shapes]
    fp32_flops = _product_flops(torch.float32)
    bf16_flops = _product_flops(torch.bfloat16) if work["precision"] == "bf16" else fp32_flops
    print(json.dumps({"steps": steps, "fp32_flops": fp32_flops, "bf16_flops": bf16_flops}))


def _step_seconds(name: str, micro_batch: int, work: dict[str, Any]) -> float:
    """Return the seconds of a step: those of a timed micro batch, as often as a step has it, and of the optimizer."""
    import torch

    from march_search.architecture.architecture import Architecture
    from march_search.model import build

    a = Architecture.parse(name)
    model = build(a)
    if work["precision"] == "bf16":
        model.bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs, targets = (torch.randint(a.vocab_size, (micro_batch, work[key])) for key in ("inputs", "targets"))
    passes: list[float] = []
    updates: list[float] = []
    began = time.monotonic()
    while _needs_more(len(passes), time.monotonic() - began, work["seconds"]):
        start = time.perf_counter()
        model(inputs if a.structure == "encoder-decoder" else None, targets).backward()
        middle = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        passes.append(middle - start)
        updates.append(time.perf_counter() - middle)
    counted = min(WARM_UP, len(passes) - 1)
    once, update = (statistics.median(times[counted:]) for times in (passes, updates))
    return float(once * work["sequences"] / micro_batch + update)


def _needs_more(steps: int, seconds: float, planned: float) -> bool:
    """Return whether another step is timed: for the planned time with five steps, but at most twice as long."""
    return steps < 2 or seconds < planned or (steps < WARM_UP + 3 and seconds < 2 * planned)


def _product_flops(dtype: Any) -> float:
    """Return the operations per second of products of two square matrices."""
    import torch

    x, times = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype), []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(x, x)
        times.append(time.perf_counter() - start)
    return 2 * PRODUCT_SIZE**3 / statistics.median(times[1:])
