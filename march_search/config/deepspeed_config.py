"""Build a trial's DeepSpeed configuration: every key that affects results, merged with the user's own keys."""

from collections.abc import Mapping
from typing import Any

from march_search.config import BatchPlan, TrainingConfig
from march_search.errors import ConfigError, nearest

BUCKET_ELEMENTS = 50_000_000
"""Gradients that ZeRO collects before it reduces them; trials pass this number to DeepSpeed."""

OWNERS = {
    "train_batch_size": "global_batch_tokens",
    "train_micro_batch_size_per_gpu": "micro_batch_sequences",
    "gradient_accumulation_steps": "micro_batch_sequences",
    "gradient_clipping": "gradient_clipping",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
    "zero_optimization.stage": "zero_stage",
    "optimizer": "learning_rate, betas, epsilon and weight_decay",
    "scheduler": "schedule, warmup_tokens and final_learning_rate",
}
"""Setting of [training] that determines each of these DeepSpeed keys."""

FREE = (
    *("steps_per_print", "wall_clock_breakdown", "zero_optimization.reduce_bucket_size"),
    "zero_force_ds_cpu_optimizer",
)
"""Keys set by march-search that the user may override."""

KNOWN = frozenset(
    {name.split(".")[0] for name in OWNERS}
    | {"steps_per_print", "wall_clock_breakdown", "prescale_gradients", "data_types", "zero_allow_untested_optimizer"}
    | {"activation_checkpointing", "aio", "amp", "autotuning", "checkpoint", "comms_logger", "communication_data_type"}
    | {"compile", "compression_training", "csv_monitor", "comet", "curriculum_learning", "data_efficiency"}
    | {"dataloader_drop_last", "disable_allgather", "disable_python_gc", "dump_state", "elasticity", "expert_parallel"}
    | {"flops_profiler", "gradient_allreduce_op", "gradient_predivide_factor", "graph_harvesting", "hybrid_engine"}
    | {"log_level", "managed_gradient_accumulation", "memory_breakdown", "nebula", "pipeline", "progressive_layer_drop"}
    | {"seq_parallel_communication_data_type", "sparse_attention", "sparse_gradients", "tensor_parallel", "tensorboard"}
    | {"timers", "torch_autocast", "use_data_before_expert_parallelism", "wandb", "weight_quantization"}
    | {"zero_force_ds_cpu_optimizer"}
)
"""Top-level keys that DeepSpeed 0.19 reads. It silently ignores all others."""


def ds_config(training: TrainingConfig, plan: BatchPlan) -> dict[str, Any]:
    """Return the configuration for `deepspeed.initialize`. The optimizer and schedule are passed as objects instead.

    - bf16 uses ZeRO 1 or higher, because DeepSpeed cannot accumulate bf16 gradients in fp32 at stage 0. On one device,
      the arithmetic is the same.
    - `gradient_clipping` is always set, because its default changed in DeepSpeed 0.19.2.
    - Unknown keys are rejected, because DeepSpeed would silently ignore them.
    - The bucket size is set, because ZeRO's default of 5e8 gradients takes 1 or 2 GB regardless of the model's size.
    - An offloaded optimizer is also torch's, which is fused on a CPU; DeepSpeed would compile its own.

    Raises:
        ConfigError: If `training.deepspeed` has a key that DeepSpeed does not know or that contradicts the study.
    """
    bf16 = training.precision == "bf16"
    ours = {
        "train_batch_size": plan.sequences,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": training.gradient_clipping,
        "prescale_gradients": False,
        "bf16": {"enabled": bf16},
        "fp16": {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": max(training.zero_stage, 1) if bf16 else training.zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    _check_keys(training.deepspeed)
    return _merged(ours, training.deepspeed)


def _check_keys(user_keys: Mapping[str, Any]) -> None:
    """Check that DeepSpeed knows the top-level keys and those of zero_optimization; raise ConfigError if not."""
    for key in user_keys:
        if key not in KNOWN:
            raise ConfigError(f'[training.deepspeed]: DeepSpeed has no key "{key}". {nearest(key, KNOWN)}')
    zero = user_keys.get("zero_optimization")
    if isinstance(zero, Mapping):
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        for key in zero:
            if key not in DeepSpeedZeroConfig.model_fields:
                close = nearest(key, DeepSpeedZeroConfig.model_fields)
                raise ConfigError(f'[training.deepspeed]: zero_optimization has no key "{key}". {close}')


def _merged(ours: Mapping[str, Any], user_keys: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Merge the user's keys `user_keys` into `ours`. "auto" keeps our value, or DeepSpeed's default if we set none."""
    result = dict(ours)
    for key, value in user_keys.items():
        name, own = where + key, ours.get(key)
        if value == "auto":
            continue
        if isinstance(value, Mapping) and (own is None or isinstance(own, Mapping)) and name not in OWNERS:
            result[key] = _merged(own or {}, value, f"{name}.")
        elif name in FREE or (key not in ours and name not in OWNERS):
            result[key] = value
        elif value != own:
            required = f"set to {own!r}" if key in ours else "set"
            owner = f"[training] {OWNERS[name]}" if name in OWNERS else "march-search"
            conflict = f'"{name}" is {value!r}, but it is {required} by {owner}'
            raise ConfigError(f'[training.deepspeed]: {conflict}: remove it or use "auto".')
    return result
