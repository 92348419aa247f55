"""Predicted against measured tokens a second of training steps on this CPU, by a fit that has not seen the shape.

python benchmarks/cpu_pricing.py

Eight shapes, fp32 and bf16, all cores, alternating, medians over rounds. The fit has two numbers, the `utilisation` and
`layer_seconds` of `march_search.cost.speed.devices.Device`, on every second shape; the others are predicted.
"""

import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import nnls

from march_search import Architecture
from march_search.architecture.spans import span_lengths
from march_search.cost import speed
from march_search.cost.devices import this_cpu
from march_search.cost.setup import Setup
from march_search.model import build

ROUNDS = 3
SEQUENCE, BATCH = 128, 16
SHAPES = (
    "L1-D192-H6x32-F768-rope-V4096",
    "L2-D128-H4x32-F512-geglu-rope-V4096",
    "L2-D256-H8x32-F1024-rope-V4096",
    "L4-D128-H8x32-F512-rope-V4096",
    "L4-D256-H4x64-F1024-geglu-rope-V4096",
    "L6-D192-H6x32-F512-rope-V4096",
    "L2-D384-H6x64-F1536-geglu-rope-V4096",
    "L8-D256-H4x64-F640-rope-V4096",
)


class Steps:
    """Training steps of one shape."""

    def __init__(self, name: str, precision: str) -> None:
        torch.manual_seed(0)
        self.precision, lengths = precision, span_lengths(SEQUENCE)
        self.model = build(Architecture.parse(name)).to(torch.bfloat16 if precision == "bf16" else torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.batch = [torch.randint(4096, (BATCH, n)) for n in (lengths.input, lengths.target)]
        self.seconds: list[float] = []

    def run(self, steps: int = 6) -> None:
        started = time.perf_counter()
        for _ in range(steps):
            self.model(*self.batch).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.seconds.append((time.perf_counter() - started) / steps)


def main() -> None:
    for precision in ("fp32", "bf16"):
        device = replace(this_cpu(), utilisation=1.0, layer_seconds=0.0)
        setup = Setup(device=device, precision=precision, sequence_length=SEQUENCE, micro_batch=BATCH)
        shapes = [Architecture.parse(name) for name in SHAPES]
        measured = [Steps(name, precision) for name in SHAPES]
        for _ in range(ROUNDS + 1):
            for steps in measured:
                steps.run()
        recorded = np.array([statistics.median(s.seconds[1:]) for s in measured]) / (SEQUENCE * BATCH)
        terms = np.array([[1 / speed.tokens_per_second(a, setup), 2 * a.num_layers] for a in shapes])
        seen = np.arange(len(shapes)) % 2 == 0
        size = terms.mean(axis=0)
        fits = [
            nnls(terms[k] / size / recorded[k, None], np.ones(k.sum()))[0] / size for k in (seen, ~seen, seen | True)
        ]
        predicted = np.where(seen, terms @ fits[1], terms @ fits[0])
        print(f"{precision}: peak {device.peak(precision) / 1e9:.0f} GFLOP/s")
        for a, truth, guess in zip(shapes, 1 / recorded, 1 / predicted, strict=True):
            print(f"  {a.name:40}{truth:10,.0f} tokens/s{guess:10,.0f} predicted{guess / truth - 1:+7.0%}")
        error = statistics.median(abs(recorded / predicted - 1))
        utilisation, layer_seconds = 1 / fits[2][0], fits[2][1]
        print(f"  median absolute error, held out: {error:.0%}; {utilisation=:.2f}, {layer_seconds=:.1e}")


if __name__ == "__main__":
    main()
