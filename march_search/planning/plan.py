"""Describe a study before it runs, as rows for `--dry-run` and for the start of a run; `plan_cost.py` has its cost."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from march_search.architecture.block import parse_block
from march_search.config import DataConfig, StudyConfig, TrainingConfig
from march_search.config.search_config import LEAST_STEPS
from march_search.config.study_config import public_storage
from march_search.cost.devices import SLOW_BF16, Device
from march_search.data.text_tokens import TextTokens
from march_search.planning import gpus
from march_search.planning.candidates import Candidates, how_many, rates
from march_search.planning.plan_cost import faults
from march_search.planning.rungs import notes
from march_search.space.space import SearchSpace
from march_search.units import count, plural, si


def product(config: StudyConfig, chosen: Candidates) -> str:
    """Return what the trials of the search are the product of: `8 architectures × 1 seed`."""
    learning_rates = rates(config)
    words = [plural(how_many(chosen, config), "architecture"), plural(len(config.search.seeds), "seed")]
    words += [plural(len(learning_rates), "learning rate")] if len(learning_rates) > 1 else []
    return " × ".join(words)


def plan_rows(config: StudyConfig, chosen: Candidates, text: str, root: Path) -> list[tuple[str, str]]:
    """Return (label, value) pairs: candidates, batch arithmetic, recipe, data, devices, files, trackers."""
    training, data = config.training, config.data
    learning_rates = rates(config)
    return [
        *([("answer", config.answer)] if config.answer else []),
        ("candidates", _candidates(config, chosen, chosen.found.condition)),
        *([("warm start", _warm_start(config, chosen))] if chosen.priors else []),
        *([("pruner", config.pruner.kind)] if config.pruner.kind != "rungs" else []),
        *([("rungs", note)] if (note := notes(config, how_many(chosen, config) * len(learning_rates))) else []),
        ("trial", f"{count(training.tokens)} tokens = {training.steps:,} steps × {training.global_batch_tokens:,}"),
        *([("branches", _branches(training))] if training.branches else []),
        ("batch", _batch(config)),
        ("example", _example(data, chosen)),
        ("recipe", f"{OPTIMIZERS[training.optimizer]}, {_rates(training, learning_rates)}, {_schedule(training)}"),
        ("numerics", _numerics(training)),
        ("evaluations", f"{len(training.evaluation_steps)} per trial, {data.validation_sequences} sequences each; "
                        f"{len(training.checkpoint_steps)} checkpoints"),
        ("data", text),
        ("devices", _devices(config)),
        ("files", str(root)),
        *([("storage", storage)] if (storage := public_storage(config.storage)) else []),
        *([("tracking", _tracking(config))] if config.tracking.to else []),
    ]  # fmt: skip


def warnings(config: StudyConfig, plan: dict[str, Any], device: Device | None, text_tokens: TextTokens) -> list[str]:
    """Return one sentence without its full stop for each setting with which trials would fail, be slow or learn little.

    Args:
        config: The study's settings.
        plan: The study's plan.
        device: Device of a trial; None if it is unknown.
        text_tokens: Tokens of the training text.
    """
    training, texts = config.training, faults(plan)
    if training.steps < LEAST_STEPS:
        texts.append(
            f"a trial has {plural(training.steps, 'optimizer step')}, fewer than {LEAST_STEPS}: lower "
            "global_batch_tokens or raise tokens in [training]"
        )
    if text_tokens.most is not None and training.global_batch_tokens > text_tokens.most:
        about = "" if text_tokens.is_exact else "at most about "
        texts.append(
            f"one batch of {si(training.global_batch_tokens)} tokens is larger than the whole training text, "
            f"{about}{si(text_tokens.most)} tokens: lower global_batch_tokens in [training], or use more text"
        )
    if device is not None and training.precision == "bf16" and device.bf16_slowdown > SLOW_BF16:
        texts.append(
            f'bf16 is {device.bf16_slowdown:.0f} times slower than fp32 on this CPU: set precision = "fp32" in '
            "[training]"
        )
    return texts


def _batch(config: StudyConfig) -> str:
    """Return how a global batch is divided into ranks, accumulation steps and micro batches."""
    batch, micro_batch = config.batch, config.training.micro_batch_sequences
    cut = f"accumulation {batch.accumulation} × micro batch {micro_batch}"
    if micro_batch is None:
        cut = f"{batch.micro_batch} sequences; micro batch and accumulation chosen to fit its memory"
    return f"{batch.sequences} sequences × {config.data.sequence_length} tokens = {plural(batch.ranks, 'rank')} × {cut}"


def _example(data: DataConfig, chosen: Candidates) -> str:
    """Describe one training example."""
    if chosen.structure == "decoder-only":
        text = f"{data.sequence_length} tokens of plain text, each predicted from the preceding ones"
        return f"{text} of its document" if data.documents == "masked" else text
    lengths = data.lengths
    return (
        f"{data.sequence_length} tokens of text -> input {lengths.input}, target {lengths.target} "
        f"({lengths.spans} spans, {lengths.noise} noise tokens)"
    )


OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon and AdamW"}
"""Optimizers in words."""


def _rates(t: TrainingConfig, learning_rates: tuple[float, ...]) -> str:
    """Describe the learning rates."""
    scaled = f" at {t.base_shape}, scaled by width and depth" if t.learning_rate_scaling == "width" else ""
    return f"learning rate {' or '.join(f'{rate:g}' for rate in learning_rates)}{scaled}"


def _numerics(t: TrainingConfig) -> str:
    """Describe the constants of the optimizer and the precision."""
    return (
        f"betas {t.betas[0]:g} and {t.betas[1]:g}, weight decay {t.weight_decay:g}, gradient clipping "
        f"{t.gradient_clipping:g}, {t.precision}, ZeRO {t.zero_stage}" + (f", z-loss {t.z_loss:g}" if t.z_loss else "")
    )


def _schedule(t: TrainingConfig) -> str:
    """Describe the learning rate after the warm-up."""
    decay = f" ({t.decay_shape} decay over the last {si(t.decay_tokens(t.tokens))} tokens)"
    return f"{t.schedule} schedule{decay if t.schedule == 'wsd' else ''}"


def _branches(t: TrainingConfig) -> str:
    """Describe the decay branches of a trial."""
    ends = ", ".join(si(branch.tokens) for branch in t.branches)
    more = t.trained_tokens(0, t.tokens) - t.tokens
    return f"the trial also decays to {ends} tokens, for {si(more)} tokens more ({more / t.tokens:.0%})"


def _candidates(config: StudyConfig, chosen: Candidates, budget: str) -> str:
    """Describe how the architectures are chosen."""
    off, first = len(chosen.off_budget), len(chosen.architectures)
    details = f", {off} off budget" if off else ""
    if config.search.adaptive:
        details = f" picks candidates as results arrive{f', after {first} fixed ones' if first else ''}{details}"
    spread = config.search.spread
    if config.search.strategy == "design" and spread:
        skipped = [axis for axis in _varying(chosen.found.space, spread) if axis not in (*spread, "d_ff")]
        details += f", not over {', '.join(skipped)}: see [search] spread" if skipped else ""
    chosen_by = f"{config.search.strategy}{details}"
    return f"{how_many(chosen, config)} of {len(chosen.found):,} feasible for {budget} ({chosen_by})"


def _varying(space: SearchSpace, spread: Sequence[str]) -> list[str]:
    """Return the axes of a space that vary; instead of `block` its fields that do, if the spread names one of them."""
    names = list(space.varying)
    if "block" in names and "block" not in spread:
        texts = [parse_block(text)[1] for text in space.axes["block"]]
        own = [name for name in texts[0] if len({str(fields[name]) for fields in texts}) > 1]
        if set(own) & set(spread):
            index = names.index("block")
            names[index : index + 1] = own
    return names


def _warm_start(config: StudyConfig, chosen: Candidates) -> str:
    """Describe the results of earlier studies that the sampler starts with."""
    members = sum(prior.architecture in chosen.found for prior in chosen.priors)
    sources = ", ".join(config.search.warm_start)
    return f"{plural(len(chosen.priors), 'result')} from {sources}, {members} in the feasible set"


def _devices(config: StudyConfig) -> str:
    """Describe the planned ranks and this machine's devices."""
    devices = config.devices
    noun = {"cuda": "GPU", "cpu": "CPU process", "auto": "GPU or CPU process"}[devices.kind]
    many = "" if devices.ranks == 1 else "es" if noun.endswith("s") else "s"
    together = f", {devices.parallel_trials} trials at a time" if devices.parallel_trials > 1 else ""
    here = plural(os.cpu_count() or 1, "CPU core")
    if devices.kind == "cuda":
        number, wanted = gpus.number(), devices.ranks // devices.nodes * devices.parallel_trials
        here += f" and {min(number, wanted)} of the {plural(wanted, 'GPU')} needed"
    return f"{devices.ranks} {noun}{many} per trial{together}; this machine has {here}"


def _tracking(config: StudyConfig) -> str:
    """Describe where metrics are sent."""
    return f"one run per trial to {' and '.join(config.tracking.to)}, project {config.tracking.project}"
