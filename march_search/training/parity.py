"""Compare a trial's DeepSpeed engine with plain torch on a few tiny steps.

The steps cover gradient accumulation, clipping and precision.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from march_search.architecture.architecture import Architecture
from march_search.config import DataConfig, DevicesConfig, TrainingConfig, TrialConfig
from march_search.model import build
from march_search.training import loop
from march_search.training.engine import join_ranks

STEPS = 4

SEQUENCES = 4
"""Examples per step, in two micro batches."""

SHAPE = "L1-D32-H2x16-F64-geglu-rope-V400"

Batches = list[list[tuple[Tensor, Tensor]]]
"""Inputs and targets, by step and micro batch."""


def settings(precision: str, zero_stage: int) -> TrialConfig:
    """Return a trial config in which an error in any part of a step changes the next loss.

    AdamW normalises gradients, which would hide a wrong scale, so `epsilon` is large compared with the gradients. They
    are clipped to a quarter of their norm or less.
    """
    data = DataConfig(vocab_size=400, sequence_length=32)
    training = TrainingConfig(
        tokens=STEPS * SEQUENCES * data.sequence_length,
        global_batch_tokens=SEQUENCES * data.sequence_length,
        micro_batch_sequences=SEQUENCES // 2,
        learning_rate=0.05,
        epsilon=0.02,
        gradient_clipping=0.5,
        precision=precision,  # type: ignore[arg-type]
        zero_stage=zero_stage,  # type: ignore[arg-type]
    )
    return TrialConfig(architecture=SHAPE, store="", data=data, training=training, devices=DevicesConfig(threads=1))


def compare(precision: str, zero_stage: int) -> dict[str, Any]:
    """Return both losses and the gradient norms before clipping at each step, and how far the updates are apart.

    Plain torch takes over the engine's weights after each step: otherwise, a last digit that differs would round a few
    bf16 weights differently, and all later losses with them. `update_difference` is the norm of the difference between
    the fp32 weights of both after a step, relative to the norm of the update; the largest of all steps. Call the
    function only once per process.
    """
    config = settings(precision, zero_stage)
    rank_info = join_ranks(config.devices)
    batches = _batches(config, rank_info.device)
    with tempfile.TemporaryDirectory() as folder:
        engine = loop._engine(Path(folder), config, Architecture.parse(config.architecture), rank_info)
    theirs, weights = _engine_steps(engine, batches)
    ours, norms, apart = _plain_steps(config, batches, weights)
    results = {"engine": theirs, "torch": ours, "gradient_norms": norms, "update_difference": max(apart)}
    return results | {"clipping": config.training.gradient_clipping, "device": str(rank_info.device)}


def _batches(config: TrialConfig, device: torch.device) -> Batches:
    """Return batches of random tokens, one more than `STEPS`; the last shows the effect of the final step."""
    generator, lengths = torch.Generator().manual_seed(0), config.data.lengths

    def draw(length: int) -> Tensor:
        shape = (config.batch.micro_batch, length)
        return torch.randint(config.data.vocab_size, shape, generator=generator).to(device)

    micros = range(config.batch.accumulation)
    return [[(draw(lengths.input), draw(lengths.target)) for _ in micros] for _ in range(STEPS + 1)]


def _engine_steps(engine: Any, batches: Batches) -> tuple[list[float], list[list[Tensor]]]:
    """Return the mean loss of each batch under DeepSpeed, which takes a step after each, and the fp32 weights then."""
    means, weights = [], []
    for batch in batches:
        losses = []
        for inputs, targets in batch:
            loss = engine(inputs, targets)
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
        weights.append([_fp32_weight(parameter) for parameter in engine.module.parameters()])
    return means, weights


def _fp32_weight(parameter: torch.nn.Parameter) -> Tensor:
    """Return a copy of the fp32 weights that the engine's optimizer holds for a parameter."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = safe_get_full_fp32_param(parameter)  # None without ZeRO
    return (parameter if whole is None else whole).detach().clone()


def plain_losses(config: TrialConfig, batches: Batches | None = None) -> tuple[list[float], list[float]]:
    """Return the mean loss and unclipped gradient norm of each batch in plain torch, taking a step after each.

    The optimizer holds fp32 copies of the model's initial weights, and gradients are summed in fp32.
    """
    means, norms, _ = _plain_steps(config, batches or _batches(config, torch.device("cpu")), [])
    return means, norms


def _plain_steps(
    config: TrialConfig, batches: Batches, followed: list[list[Tensor]]
) -> tuple[list[float], list[float], list[float]]:
    """Return losses and norms as `plain_losses` does, and the distances from the weights that are `followed`."""
    training, device = config.training, batches[0][0][0].device
    torch.manual_seed(config.seed)
    model = build(Architecture.parse(config.architecture), init=training.init).to(device)
    if training.precision == "bf16":
        model.bfloat16()
    masters = [torch.nn.Parameter(p.detach().float().clone()) for p in model.parameters()]
    optimizer = _adamw(masters, config)
    means, norms, apart = [], [], []
    for batch, weights in zip_longest(batches, followed):
        means.append(_accumulate(model, masters, batch))
        limit = training.gradient_clipping or float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(masters, limit)))
        before = [master.detach().clone() for master in masters]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            if weights is not None:
                apart.append(_distance(masters, weights) / _distance(masters, before))
                for master, weight in zip(masters, weights, strict=True):
                    master.copy_(weight)
            for parameter, master in zip(model.parameters(), masters, strict=True):
                parameter.copy_(master)
    return means, norms, apart


def _distance(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the norm of the difference of two lists of tensors."""
    return math.hypot(*(float((a - b).norm()) for a, b in zip(tensors, others, strict=True)))


def _adamw(masters: list[torch.nn.Parameter], config: TrialConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices; this shape has no position tables."""
    recipe = asdict(config.training)
    matrices, vectors = ([p for p in masters if (p.ndim > 1) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": recipe["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=recipe["learning_rate"],
        betas=recipe["betas"],
        eps=recipe["epsilon"],
        fused=masters[0].is_cuda,  # as in the engine; torch's default rounds differently there
    )


def _accumulate(model: torch.nn.Module, masters: list[torch.nn.Parameter], batch: Any) -> float:
    """Add the gradients of a batch's mean loss to the masters' gradients and return the loss."""
    total = 0.0
    for inputs, targets in batch:
        loss = model(inputs, targets)
        (loss / len(batch)).backward()
        total += loss.item() / len(batch)
        for parameter, master in zip(model.parameters(), masters, strict=True):
            assert parameter.grad is not None
            grad = parameter.grad.float()
            master.grad = grad if master.grad is None else master.grad + grad
            parameter.grad = None
    return total
