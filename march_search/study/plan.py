"""Describe a study before it runs, as rows for `--dry-run` and for the start of a run."""

import os
from pathlib import Path
from statistics import fmean

from march_search.config import DataConfig, StudyConfig, TrainingConfig
from march_search.config.search_config import LEAST_STEPS
from march_search.cost.devices import SLOW_BF16, Device
from march_search.display.tables import count, plural, si
from march_search.space.budget import Budget
from march_search.study.candidates import Candidates, how_many, rates
from march_search.study.price import stand_ins
from march_search.study.rungs import notes


def plan_rows(config: StudyConfig, chosen: Candidates, text: str, root: Path) -> list[tuple[str, str]]:
    """Return (label, value) pairs: candidates, tokens, batch arithmetic, data, devices, files."""
    training, data = config.training, config.data
    budget = chosen.found.budget
    many, seeds, learning_rates = how_many(chosen, config), config.search.seeds, rates(config)
    trials = many * len(seeds) * len(learning_rates)
    flops = fmean(
        a.flops_per_token(data.sequence_length, data.noise_density, data.mean_span_length)
        for a in stand_ins(config, chosen)
    )
    product = [plural(many, "architecture"), plural(len(seeds), "seed")]
    product += [plural(len(learning_rates), "learning rate")] if len(learning_rates) > 1 else []
    return [
        ("question", config.question or "–"),
        *([("answer", config.answer)] if config.answer else []),
        ("candidates", _candidates(config, chosen, budget)),
        *([("warm start", _warm_start(config, chosen))] if chosen.priors else []),
        ("trials", f"{trials} = {' × '.join(product)}"),
        ("tokens", f"{count(training.tokens)} per trial = {training.steps:,} steps × {training.global_batch_tokens:,}; "
                   f"{si(training.tokens * trials)} if all train to the end"),
        ("FLOPs", f"{si(flops * training.tokens)} per trial, forward and backward"),
        ("batch", _batch(config)),
        ("example", _example(data, chosen)),
        ("data", text),
        ("recipe", _recipe(training, learning_rates)),
        ("evaluations", f"{len(training.evaluation_steps)} per trial, {data.validation_sequences} sequences each; "
                        f"{len(training.checkpoint_steps)} checkpoints"),
        *([("pruner", config.pruner.kind)] if config.pruner.kind != "rungs" else []),
        *([("rungs", note)] if (note := notes(config, many * len(learning_rates))) else []),
        ("devices", _devices(config)),
        ("files", str(root)),
    ]  # fmt: skip


def warning_rows(config: StudyConfig, device: Device | None) -> list[tuple[str, str]]:
    """Return one (label, text) pair for each setting with which trials would be slow or hardly train.

    Args:
        config: The study's settings.
        device: Device of a trial; None if it is unknown.
    """
    training, texts = config.training, []
    if training.steps < LEAST_STEPS:
        texts.append(
            f"a trial has {plural(training.steps, 'optimizer step')}, fewer than {LEAST_STEPS}: lower "
            "global_batch_tokens or raise tokens in [training]"
        )
    if device is not None and training.precision == "bf16" and device.bf16_slowdown > SLOW_BF16:
        texts.append(
            f'bf16 is {device.bf16_slowdown:.0f} times slower than fp32 on this CPU: set precision = "fp32" in '
            "[training]"
        )
    return [("warning", text) for text in texts]


def _batch(config: StudyConfig) -> str:
    """Return how a global batch is divided into ranks, accumulation steps and micro batches."""
    batch, micro_batch = config.batch, config.training.micro_batch_sequences
    cut = f"accumulation {batch.accumulation} × micro batch {micro_batch}"
    if micro_batch is None:
        cut = f"{batch.micro_batch} sequences; micro batch and accumulation chosen to fit its memory"
    return f"{batch.sequences} sequences × {config.data.sequence_length} tokens = {plural(batch.ranks, 'rank')} × {cut}"


def _example(data: DataConfig, chosen: Candidates) -> str:
    """Describe one training example."""
    if [*chosen.architectures, chosen.found[0]][0].structure == "decoder-only":
        return f"{data.sequence_length} tokens of plain text, each predicted from the preceding ones"
    lengths = data.lengths
    return (
        f"{data.sequence_length} tokens of text -> input {lengths.input}, target {lengths.target} "
        f"({lengths.spans} spans, {lengths.noise} noise tokens)"
    )


OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon and AdamW"}
"""Optimizers in words."""


def _recipe(t: TrainingConfig, learning_rates: tuple[float, ...]) -> str:
    """Describe the optimizer and the precision."""
    scaled = t.learning_rate_scaling == "width"
    rate = " or ".join(f"{rate:g}" for rate in learning_rates) + (
        f" at {t.base_shape}, scaled by width and depth" if scaled else ""
    )
    return (
        f"{OPTIMIZERS[t.optimizer]}, learning rate {rate}, {_schedule(t)}, betas {t.betas[0]:g} and {t.betas[1]:g}, "
        f"weight decay {t.weight_decay:g}, gradient clipping {t.gradient_clipping:g}, "
        f"{t.precision}, ZeRO {t.zero_stage}" + (f", z-loss {t.z_loss:g}" if t.z_loss else "")
    )


def _schedule(t: TrainingConfig) -> str:
    """Describe the learning rate after the warm-up."""
    decay = f" ({t.decay_shape} decay over the last {si(t.decay_tokens(t.tokens))} tokens)"
    return f"{t.schedule} schedule{decay if t.schedule == 'wsd' else ''}"


def _candidates(config: StudyConfig, chosen: Candidates, budget: Budget) -> str:
    """Describe how the architectures are chosen."""
    off, first = len(chosen.off_budget), len(chosen.architectures)
    details = f", {off} off budget" if off else ""
    if config.search.adaptive:
        details = f" picks candidates as results arrive{f', after {first} fixed ones' if first else ''}{details}"
    chosen_by = f"{config.search.strategy}{details}"
    return f"{how_many(chosen, config)} of {len(chosen.found):,} feasible for {budget} ({chosen_by})"


def _warm_start(config: StudyConfig, chosen: Candidates) -> str:
    """Describe the results of earlier studies that the sampler starts with."""
    members = sum(prior.architecture in chosen.found for prior in chosen.priors)
    sources = ", ".join(config.search.warm_start)
    return f"{plural(len(chosen.priors), 'result')} from {sources}, {members} in the feasible set"


def _devices(config: StudyConfig) -> str:
    """Describe the planned ranks and this machine's CPU cores."""
    devices = config.devices
    noun = {"cuda": "GPU", "cpu": "CPU process", "auto": "GPU or CPU process"}[devices.kind]
    many = "" if devices.ranks == 1 else "es" if noun.endswith("s") else "s"
    together = f", {devices.parallel_trials} trials at a time" if devices.parallel_trials > 1 else ""
    return f"{devices.ranks} {noun}{many} per trial{together}; this machine has {os.cpu_count()} CPU cores"
