"""What a study would do, in rows of words: the dry run, and the head of a real one."""

import os
from pathlib import Path
from statistics import fmean

from march_search.budget import Budget
from march_search.config import DataConfig, StudyConfig, TrainingConfig
from march_search.report.tables import count, plural, si
from march_search.study.candidates import Candidates, how_many, rates
from march_search.study.price import stand_ins
from march_search.study.rungs import in_words as pruning


def plan_rows(config: StudyConfig, chosen: Candidates, text: str, root: Path) -> list[tuple[str, str]]:
    """(what, value) pairs: candidates, tokens, batch arithmetic, data, devices, files."""
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
        ("tokens", f"{count(training.tokens)} a trial = {training.steps:,} steps × {training.global_batch_tokens:,}; "
                   f"{si(training.tokens * trials)} in all"),
        ("FLOPs", f"{si(flops * training.tokens * trials)} in all, forward and backward"),
        ("batch", _batch(config)),
        ("example", _example(data, chosen)),
        ("data", text),
        ("recipe", _recipe(training, learning_rates)),
        ("evaluations", f"{len(training.evaluation_steps)} a trial, {data.validation_sequences} sequences each; "
                        f"{len(training.checkpoint_steps)} checkpoints"),
        ("pruner", pruning(config, many * len(learning_rates))),
        ("devices", _devices(config)),
        ("files", str(root)),
    ]  # fmt: skip


def _batch(config: StudyConfig) -> str:
    """How a global batch is cut."""
    batch, told = config.batch, config.training.micro_batch_sequences
    cut = f"{batch.accumulation} accumulation × {told} micro batch"
    if told is None:
        cut = f"{batch.micro_batch} sequences; micro batch and accumulation as its memory allows"
    return f"{batch.sequences} sequences × {config.data.sequence_length} tokens = {plural(batch.ranks, 'rank')} × {cut}"


def _example(data: DataConfig, chosen: Candidates) -> str:
    """What a model reads."""
    if [*chosen.architectures, chosen.found[0]][0].structure == "decoder-only":
        return f"{data.sequence_length} tokens of text as they are, each predicted from those before"
    lengths = data.lengths
    return (
        f"{data.sequence_length} tokens of text -> input {lengths.input}, target {lengths.target} "
        f"({lengths.spans} spans, {lengths.noise} tokens of noise)"
    )


def _recipe(t: TrainingConfig, learning_rates: tuple[float, ...]) -> str:
    """Optimizer and precision."""
    scaled = t.learning_rate_scaling == "width"
    rate = " or ".join(f"{rate:g}" for rate in learning_rates) + (
        f" at {t.base_shape}, scaled by width and depth," if scaled else ""
    )
    return (
        f"AdamW {rate} {t.schedule}, betas {t.betas[0]:g} {t.betas[1]:g}, "
        f"weight decay {t.weight_decay:g}, clipping {t.gradient_clipping:g}, {t.precision}, ZeRO {t.zero_stage}"
    )


def _candidates(config: StudyConfig, chosen: Candidates, budget: Budget) -> str:
    """Where the architectures come from."""
    off, first = len(chosen.off_budget), len(chosen.architectures)
    told = f", {off} listed from outside" if off else ""
    if config.search.adaptive:
        told = f" chooses as results come in{f', after {first} that are given' if first else ''}{told}"
    return f"{how_many(chosen, config)} of {len(chosen.found):,} feasible for {budget} ({config.search.strategy}{told})"


def _warm_start(config: StudyConfig, chosen: Candidates) -> str:
    """What the study knows from elsewhere."""
    members = sum(prior.architecture in chosen.found for prior in chosen.priors)
    return f"{plural(len(chosen.priors), 'result')} of {', '.join(config.search.warm_start)}, {members} feasible here"


def _devices(config: StudyConfig) -> str:
    """Planned ranks, and what this machine has."""
    devices = config.devices
    noun = {"cuda": "GPU", "cpu": "CPU process", "auto": "GPU or CPU process"}[devices.kind]
    many = "" if devices.ranks == 1 else "es" if noun.endswith("s") else "s"
    together = f", {devices.parallel_trials} trials at a time" if devices.parallel_trials > 1 else ""
    return f"{devices.ranks} {noun}{many} a trial{together}; this machine has {os.cpu_count()} CPU cores"
