"""Simulated families of arms with known laws, as a ladder with two seeds sees them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.studies import write_study
from march_search.analysis.noise import seed_noise
from march_search.architecture.architecture import Architecture
from march_search.config.ladder_config import flops_name
from march_search.files.json_tables import sealed, write_json
from march_search.ladders.size_draws import SizeLosses

ARM = Architecture(num_layers=2, d_model=128, num_heads=4, d_kv=32, d_ff=600, vocab_size=512, position="rotary")

SIZES = (250_000, 500_000, 1_000_000)
"""Parameters of the simulated sizes."""

NOISE, DEGREES = 0.0069, 7.75
"""Distribution of seed deviations that was fitted to recorded arms (`benchmarks/seed_prior.py`)."""


@dataclass(frozen=True)
class Family:
    """Arms whose losses follow a law with an offset."""

    offsets_A: np.ndarray
    scales_A: np.ndarray
    """Loss above the offset at the smallest size."""
    exponents_A: np.ndarray

    @classmethod
    def drawn(
        cls, rng: np.random.Generator, arms: int, exponent: float, spread: float, variation: float = 0.0
    ) -> "Family":
        """Draw a family whose arms differ by `spread` nats, and in their exponents by the share `variation`."""
        exponents_A = exponent * (1 + variation * rng.standard_normal(arms))
        return cls(1.5 + rng.normal(0, spread, arms), 0.9 + rng.normal(0, spread, arms), exponents_A)

    def losses(self, sizes: Sequence[int]) -> np.ndarray:
        """Return the (S, A) expected losses at some sizes."""
        ratios_S1 = (np.array(sizes, float) / SIZES[0])[:, None]
        return np.asarray(self.offsets_A + self.scales_A * ratios_S1**-self.exponents_A)


def observed(truth_SA: np.ndarray, rng: np.random.Generator, seeds: int = 2) -> list[SizeLosses]:
    """Return what a ladder with some seeds per arm sees of the expected losses."""
    sizes = []
    for index, truth_A in enumerate(truth_SA):
        many = len(truth_A)
        deviations_A = NOISE * np.sqrt(DEGREES / rng.chisquare(DEGREES, many))
        losses = truth_A[:, None] + deviations_A[:, None] * rng.standard_normal((many, seeds))
        noise = seed_noise([ARM] * many, losses.tolist())
        sizes.append(
            SizeLosses(
                size=str(index),
                parameters=SIZES[index],
                means_A=losses.mean(axis=1),
                errors_A=np.array(noise.deviations) / math.sqrt(seeds),
                degrees_A=np.array(noise.degrees, float),
            )
        )
    return sizes


SHAPES = ("L2-D160-H4x32-F256-rope-V2048", "L3-D128-H6x32-F256-rope-V2048", "L4-D96-H4x32-F256-rope-V2048")

LOSSES = {
    "1M": [[3.0, 3.001], [3.1, 3.1], [3.201, 3.2]],
    "2M": [[2.7, 2.701], [2.85, 2.85], [2.601, 2.6]],
    "4M": [[2.5, 2.501], [2.7, 2.7], [2.21, 2.2]],
}
PARAMETERS = {"1M": 1_000_000, "2M": 2_000_000, "4M": 4_000_000}


def train_size(root: Path, size: str, arms: list[list[float]]) -> None:
    """Write the study of a size of a made-up ladder: the losses of the seeds of each arm."""
    write_study(root, dict(zip(SHAPES, arms, strict=True)), name=f"made-{size}", rates=(1e-3, 2e-3))


def write_ladder(
    root: Path, losses: dict[str, list[list[float]]], parameters: dict[str, int], untrained: tuple[str, ...] = ()
) -> None:
    """Write a ladder: for each size the losses of the seeds of each arm; sizes in `untrained` have no trials."""
    (root / "made").mkdir()
    sizes = []
    for size, arms in losses.items():
        if size not in untrained:
            train_size(root, size, arms)
        sizes.append({"size": size, "study": f"made-{size}", "parameters": parameters[size], "tokens": 1 << 20})
        sizes[-1] |= {"architectures": list(SHAPES), "missed": [[], [], ["d_ff / d_model is 3, not 4"]]}
    record = {"schema_version": 1, "question": "Which?", "arms": ["plain", "gated", "wide"], "sizes": sizes}
    write_json(root / "made" / "ladder.json", sealed(record))


FOUR = ("L2-D64-H2x32-F256-rope-V2048", "L2-D96-H3x32-F384-rope-V2048", "L3-D128-H4x32-F512-rope-V2048",
        "L4-D192-H6x32-F768-rope-V2048", "L6-D256-H8x32-F1024-rope-V2048")  # fmt: skip
"""Shapes of the sizes of a made-up ladder with compute budgets."""


def isoflop_loss(parameters: float, flops: float, best: float, a: float = 0.34, b: float = 0.28) -> float:
    """Return a loss by a law whose optimum at 1e14 FLOPs is `best`, with 6 FLOPs per parameter and token."""
    tokens = flops / parameters / (1e14 / best)
    return float(1.5 + 0.8 * (parameters / best) ** -a + 0.8 * a / b * tokens**-b)


def write_isoflop(
    root: Path, bests: dict[str, float], budgets: Sequence[float] = (1e14,), seeds: int = 2, noise: float = 0.004
) -> None:
    """Write a ladder with compute budgets named `equal`, of arms with the given optima at 1e14 FLOPs.

    Arms differ in their names and shapes: those of the second arm are gated.
    """
    rng, points = np.random.default_rng(0), []
    (root / "equal").mkdir()
    for flops in budgets:
        for number, name in enumerate(FOUR):
            for index, (arm, best) in enumerate(bests.items()):
                shape = Architecture.parse(name.replace("-rope", "-geglu-rope") if index else name)
                count, size = shape.num_params, f"S{number}"
                study = f"equal-{flops_name(flops)}-{size}-{arm}"
                losses = isoflop_loss(count, flops, best) + noise * rng.standard_normal(seeds)
                write_study(root, {shape.name: losses.tolist()}, name=study)
                points.append(
                    {
                        "study": study,
                        "budget": flops_name(flops),
                        "budget_flops": flops,
                        "size": size,
                        "arm": arm,
                        "architecture": shape.name,
                        "parameters": count,
                        "tokens": round(flops / 6 / count),
                        "flops_per_token": 6.0 * count,
                        "training_flops": flops,
                        "missed": [],
                    }
                )
    record = {"schema_version": 1, "question": "How many parameters?", "arms": list(bests)}
    record |= {"sizes": [f"S{number}" for number in range(len(FOUR))], "points": points}
    write_json(root / "equal" / "isoflop.json", sealed(record))


SPACE = """[budget]
parameters = "30K"
tolerance = "3%"
count = "non-embedding"
[axes]
num_layers = { min = 1, max = 4 }
d_model = { min = 16, max = 128, multiple_of = 8 }
num_heads = { min = 1, max = 8 }
d_kv = [8, 16]
d_ff = { min = 16, max = 512, multiple_of = 8 }
feed_forward_proj = ["relu", "gated-gelu"]
position = "rotary"
vocab_size = 512
"""
"""Space of a tiny ladder."""

LADDER = """question = "Does the order hold?"
space = "space.toml"
[search]
seeds = [0]
learning_rates = [1e-3, 4e-3]
[pruner]
kind = "none"
[confirm]
max_seeds = 1
[ladder]
budgets = ["30K", "60K"]
tokens_per_parameter = 0.05
directions = { "d_model / num_layers" = 16, "d_ff / d_model" = 3, "num_heads * d_kv / d_model" = 1, d_kv = 16 }
[[ladder.arms]]
name = "plain"
[[ladder.arms]]
name = "gated"
fields = { feed_forward_proj = "gated-gelu" }
[[ladder.arms]]
name = "wide"
directions = { "d_model / num_layers" = 64 }
[data]
corpus = "CORPUS"
vocab_size = 512
sequence_length = 16
validation_sequences = 32
noise_density = 0.5
[training]
global_batch_tokens = 128
learning_rate = 4e-3
warmup_tokens = 128
precision = "fp32"
evaluations = 2
checkpoints = 0
[devices]
kind = "cpu"
threads = 1
parallel_trials = 2
"""
"""File of a tiny ladder."""
