"""Compare predicted with measured training speed on this CPU, for shapes that the fit has not seen.

    python benchmarks/cpu_pricing.py [--rounds 3] [--steps 6]

The benchmark trains eight shapes in fp32 and in bf16 on all cores. The shapes take turns, and the medians over the
rounds are compared. The fit has two parameters, `utilisation` and `layer_seconds` of
`march_search.cost.devices.Device`. It uses every second shape and predicts the others.
"""

import argparse
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
    """Model, optimizer and batch of one shape, and the measured seconds per step."""

    def __init__(self, name: str, precision: str) -> None:
        torch.manual_seed(0)
        self.precision, lengths = precision, span_lengths(SEQUENCE)
        self.model = build(Architecture.parse(name)).to(torch.bfloat16 if precision == "bf16" else torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.batch = [torch.randint(4096, (BATCH, n)) for n in (lengths.input, lengths.target)]
        self.seconds: list[float] = []

    def run(self, steps: int) -> None:
        """Take some training steps and record the mean duration."""
        started = time.perf_counter()
        for _ in range(steps):
            self.model(*self.batch).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.seconds.append((time.perf_counter() - started) / steps)


def main() -> None:
    """Print measured and predicted tokens per second of each shape, and the median error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, after one to warm up (default: 3)")
    parser.add_argument("--steps", type=int, default=6, help="training steps of a shape per round (default: 6)")
    options = parser.parse_args()
    for precision in ("fp32", "bf16"):
        device = replace(this_cpu(), utilisation=1.0, layer_seconds=0.0)
        setup = Setup(device=device, precision=precision, sequence_length=SEQUENCE, micro_batch=BATCH)
        shapes = [Architecture.parse(name) for name in SHAPES]
        measured = [Steps(name, precision) for name in SHAPES]
        for _ in range(options.rounds + 1):
            for steps in measured:
                steps.run(options.steps)
        recorded = np.array([statistics.median(s.seconds[1:]) for s in measured]) / (SEQUENCE * BATCH)
        terms = np.array([[1 / speed.tokens_per_second(a, setup), 2 * a.num_layers] for a in shapes])
        is_even = np.arange(len(shapes)) % 2 == 0
        size = terms.mean(axis=0)
        fits = [
            nnls(terms[rows] / size / recorded[rows, None], np.ones(rows.sum()))[0] / size
            for rows in (is_even, ~is_even, is_even | True)
        ]
        predicted = np.where(is_even, terms @ fits[1], terms @ fits[0])
        print(f"{precision}: peak {device.peak(precision) / 1e9:.0f} GFLOP/s")
        for a, speed_measured, speed_predicted in zip(shapes, 1 / recorded, 1 / predicted, strict=True):
            error = speed_predicted / speed_measured - 1
            print(f"  {a.name:40}{speed_measured:10,.0f} tokens/s{speed_predicted:10,.0f} predicted{error:+7.0%}")
        median_error = statistics.median(abs(recorded / predicted - 1))
        utilisation, layer_seconds = 1 / fits[2][0], fits[2][1]
        print(
            f"  median absolute error on held-out shapes: {median_error:.0%}; {utilisation=:.2f}, {layer_seconds=:.1e}"
        )


if __name__ == "__main__":
    main()
