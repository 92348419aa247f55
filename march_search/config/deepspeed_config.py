"""Build a trial's DeepSpeed configuration: every key that affects results, merged with the user's own keys."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from march_search.config.loader import read_file
from march_search.errors import shown

if TYPE_CHECKING:
    from march_search.config import BatchPlan, TrainingConfig

BUCKET_ELEMENTS = 50_000_000
"""Gradients that ZeRO collects before it reduces them; trials pass this number to DeepSpeed."""

CLIENT_BLOCKS = ("optimizer", "scheduler")
"""Blocks that are checked but not passed on, because trials pass DeepSpeed their own optimizer and schedule."""

_SCHEDULERS = {"constant": "WarmupLR", "linear": "WarmupDecayLR", "cosine": "WarmupCosineLR"}
"""DeepSpeed's name of each schedule; it has none for `wsd`."""


class Owned(NamedTuple):
    """A DeepSpeed key that the study's settings determine."""

    accepted: tuple[Any, ...]
    """Values that agree with the study."""
    reason: str
    """Setting that determines the key, with its value as the study has it."""


def read_deepspeed_file(path: Path) -> dict[str, Any]:
    """Return the table in a DeepSpeed file, read as DeepSpeed reads it: Hjson, which includes JSON. TOML is TOML.

    Raises:
        ConfigError: If the file is missing, unreadable, or invalid, or has a key twice.
    """
    return read_file(path, None if path.suffix == ".toml" else _hjson)


def _hjson(text: str) -> Any:
    """Return the value of an Hjson text; raise ValueError if it is invalid or has a key twice."""
    import hjson

    def table(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{shown(key)} is given twice")
        return dict(pairs)

    try:
        return hjson.loads(text, object_pairs_hook=table)
    except OverflowError:
        raise ValueError("a number is too large") from None
    except LookupError:  # hjson reads past the end of some texts
        raise ValueError("the text ends too early") from None


def own_names(user_keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's keys with the old name `bfloat16` replaced by `bf16`, which takes precedence."""
    renamed = {"bf16" if key == "bfloat16" else key: value for key, value in user_keys.items()}
    return renamed | {key: value for key, value in user_keys.items() if key == "bf16"}


def ds_config(training: "TrainingConfig", plan: "BatchPlan") -> dict[str, Any]:
    """Return the configuration for `deepspeed.initialize`. The optimizer and schedule are passed as objects instead.

    The user's keys are added, except those that the study determines. `check_deepspeed` checks them before.

    - bf16 uses ZeRO 1 or higher, because DeepSpeed cannot accumulate bf16 gradients in fp32 at stage 0. On one device,
      the arithmetic is the same.
    - `gradient_clipping` is always set, because its default changed in DeepSpeed 0.19.2.
    - The bucket size is set, because ZeRO's default of 5e8 gradients takes 1 or 2 GB regardless of the model's size.
    - Gradients are reduced in fp32. By default, ZeRO 1 rounds the accumulated gradients of bf16 models to bf16 first,
      even on one rank, which changes them by up to 0.4%. The price is 4 instead of 2 bytes per parameter and step.
    - DeepSpeed's throughput timer is off, because it waits for the device twice per micro batch.
    - An offloaded optimizer is also torch's, which is fused on a CPU; DeepSpeed would compile its own.
    """
    ours = {
        "train_batch_size": plan.sequences,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": training.gradient_clipping,
        "prescale_gradients": False,
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": False},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": _zero_stage(training), "reduce_bucket_size": BUCKET_ELEMENTS},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},
    }
    return _merged(ours, own_names(training.deepspeed), owned_keys(training, plan))


def owned_keys(training: "TrainingConfig", plan: "BatchPlan", rates: Sequence[float] = ()) -> dict[str, Owned]:
    """Return the DeepSpeed keys that the study determines, by dotted name.

    Args:
        training: Settings of the study or of a trial.
        plan: How a global batch is split.
        rates: Learning rates in `[search]`, if the study has several.
    """
    bf16, micro = training.precision == "bf16", training.micro_batch_sequences
    batch = f"global_batch_tokens ({training.global_batch_tokens}) makes it {plan.sequences}"
    free = "micro_batch_sequences is not set, so each trial chooses its own micro batch"
    accumulation = free if micro is None else f"micro_batch_sequences ({micro}) makes it {plan.accumulation}"
    raised = ", which bf16 raises to 1" if _zero_stage(training) != training.zero_stage else ""
    stages = tuple({training.zero_stage, _zero_stage(training)})
    by_training = {
        "train_batch_size": ((plan.sequences,), batch),
        "train_micro_batch_size_per_gpu": (
            (() if micro is None else (micro,)),
            free if micro is None else f"micro_batch_sequences is {micro}",
        ),
        "gradient_accumulation_steps": (() if micro is None else (plan.accumulation,), accumulation),
        "gradient_clipping": ((training.gradient_clipping,), f"gradient_clipping is {training.gradient_clipping}"),
        "bf16.enabled": ((bf16,), f'precision is "{training.precision}"'),
        "fp16.enabled": ((False,), f'precision is "{training.precision}"'),
        "zero_optimization.stage": (stages, f"zero_stage is {training.zero_stage}{raised}"),
        **_optimizer_keys(training),
        **_scheduler_keys(training),
    }
    owned = {name: Owned(values, f"[training] {reason}") for name, (values, reason) in by_training.items()}
    if rates:
        reason = f"[search] learning_rates is {list(rates)}"
        both = ("optimizer.params.lr", "scheduler.params.warmup_max_lr")
        owned |= dict.fromkeys(both, Owned(tuple(rates) if len(rates) == 1 else (), reason))
    return owned | _fixed_keys(training)


def _optimizer_keys(training: "TrainingConfig") -> dict[str, tuple[tuple[Any, ...], str]]:
    """Return the keys of the optimizer block that settings of [training] determine."""
    betas = list(training.betas)
    return {
        "optimizer.params.lr": ((training.learning_rate,), f"learning_rate is {training.learning_rate}"),
        "optimizer.params.betas": ((betas,), f"betas is {betas}"),
        "optimizer.params.eps": ((training.epsilon,), f"epsilon is {training.epsilon}"),
        "optimizer.params.weight_decay": ((training.weight_decay,), f"weight_decay is {training.weight_decay}"),
    }


def _scheduler_keys(training: "TrainingConfig") -> dict[str, tuple[tuple[Any, ...], str]]:
    """Return the keys of the scheduler block that settings of [training] determine."""
    warmup = math.ceil(training.warmup_tokens / training.global_batch_tokens)
    rate, end = training.learning_rate, training.final_learning_rate
    named = (_SCHEDULERS[training.schedule],) if training.schedule in _SCHEDULERS else ()
    kind: tuple[tuple[Any, ...], str] = named, f'schedule is "{training.schedule}"'
    if training.schedule == "linear" and end:  # WarmupDecayLR always ends at 0
        kind = (), f"final_learning_rate is {end}"
    return {
        "scheduler.type": kind,
        "scheduler.params.warmup_max_lr": ((rate,), f"learning_rate is {rate}"),
        "scheduler.params.warmup_num_steps": (
            (warmup,),
            f"warmup_tokens ({training.warmup_tokens}) makes it {warmup}",
        ),
        "scheduler.params.total_num_steps": (
            (training.steps,),
            f"tokens ({training.tokens}) makes it {training.steps}",
        ),
        "scheduler.params.cos_min_ratio": ((end,), f"final_learning_rate is {end}"),
    }


def _fixed_keys(training: "TrainingConfig") -> dict[str, Owned]:
    """Return the keys whose values are the same in all studies with the same optimizer."""
    is_muon = training.optimizer == "muon"
    optimizer = '[training] optimizer is "muon"' if is_muon else "march-search trains with torch's AdamW"
    whole = '[training] optimizer is "muon", which needs the gradients of whole matrices on their device'
    muon = {
        "zero_optimization.offload_optimizer.device": Owned(("none",), whole),
        "zero_optimization.round_robin_gradients": Owned((False,), whole),
    }
    warmup = "the warm-up of march-search is linear and starts at 0"
    return (muon if is_muon else {}) | {
        "prescale_gradients": Owned((False,), "march-search sets it to false"),
        "data_types.grad_accum_dtype": Owned(("fp32",), 'march-search sets it to "fp32"'),
        "zero_allow_untested_optimizer": Owned((True,), "march-search sets it to true"),
        "zero_force_ds_cpu_optimizer": Owned((False,), optimizer),
        "zero_optimization.offload_optimizer.ratio": Owned((1,), optimizer),
        "zero_optimization.offload_optimizer.super_offload": Owned((False,), optimizer),
        "bf16.bf16_master_weights_and_grads": Owned((False,), "march-search keeps fp32 master weights"),
        "bf16.bf16_optimizer_states": Owned((False,), "march-search keeps fp32 optimizer states"),
        "fp16.fp16_master_weights_and_grads": Owned((False,), "march-search keeps fp32 master weights"),
        "optimizer.type": Owned(
            ("Muon",) if is_muon else ("AdamW", "Adam"), optimizer
        ),  # DeepSpeed's Adam decays weights as AdamW does
        "optimizer.legacy_fusion": Owned((False, True), optimizer),
        "optimizer.params.adam_w_mode": Owned((True,), optimizer),
        "optimizer.params.amsgrad": Owned((False,), optimizer),
        "optimizer.params.bias_correction": Owned((True,), optimizer),
        "optimizer.params.torch_adam": Owned((False, True), optimizer),
        "scheduler.params.last_batch_iteration": Owned((-1,), "march-search resumes from its own checkpoints"),
        "scheduler.params.warmup_min_lr": Owned((0,), warmup),
        "scheduler.params.warmup_min_ratio": Owned((0,), warmup),
        "scheduler.params.warmup_type": Owned(("linear",), warmup),
    }


def _zero_stage(training: "TrainingConfig") -> int:
    """Return the ZeRO stage of the trials; bf16 needs at least 1."""
    return max(training.zero_stage, 1) if training.precision == "bf16" else training.zero_stage


def _merged(
    ours: Mapping[str, Any], user_keys: Mapping[str, Any], owned: Mapping[str, Owned], where: str = ""
) -> dict[str, Any]:
    """Merge the user's keys into `ours`. "auto" keeps our value, or DeepSpeed's default if we set none."""
    result = dict(ours)
    for key, value in user_keys.items():
        name = where + key
        if value == "auto" or name in owned or name in CLIENT_BLOCKS:
            continue
        mine = ours.get(key)
        if isinstance(value, Mapping):
            result[key] = _merged(mine if isinstance(mine, Mapping) else {}, value, owned, f"{name}.")
        else:
            result[key] = value
    return result
