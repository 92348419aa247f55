"""The DeepSpeed configuration of a trial: every key that touches numbers, and a person's own keys beside them."""

from collections.abc import Mapping
from typing import Any

from march_search.config import BatchPlan, TrainingConfig
from march_search.errors import ConfigError
from march_search.memory import BUCKET_ELEMENTS
from march_search.settings import nearest

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
"""What [training] says, by the key that DeepSpeed has for it."""

FREE = (
    *("steps_per_print", "wall_clock_breakdown", "zero_optimization.reduce_bucket_size"),
    "zero_force_ds_cpu_optimizer",
)
"""Keys written here that a person may set otherwise."""

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
"""Keys that DeepSpeed 0.19 reads at the top; any other it passes over in silence."""


def ds_config(training: TrainingConfig, plan: BatchPlan) -> dict[str, Any]:
    """Configuration for `deepspeed.initialize`; the optimizer and its schedule are handed over as objects.

    bf16 needs ZeRO 1 or more, which on one device is the same arithmetic: at stage 0 DeepSpeed cannot accumulate bf16
    gradients in fp32. `gradient_clipping` changed its default in DeepSpeed 0.19.2, and a mistyped key would be ignored
    in silence. ZeRO's default bucket of 5e8 gradients would take 1 or 2 GB, whatever the model's size. An offloaded
    optimizer is torch's too, which is fused on a CPU: DeepSpeed would compile its own.

    Raises:
        ConfigError: a key of `training.deepspeed` that DeepSpeed does not know or that contradicts the study.
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


def _check_keys(told: Mapping[str, Any]) -> None:
    """Refuses keys that DeepSpeed does not read, at the top and of ZeRO."""
    for key in told:
        if key not in KNOWN:
            raise ConfigError(f'[training.deepspeed]: DeepSpeed has no key "{key}". {nearest(key, KNOWN)}')
    zero = told.get("zero_optimization")
    if isinstance(zero, Mapping):
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        for key in zero:
            if key not in DeepSpeedZeroConfig.model_fields:
                close = nearest(key, DeepSpeedZeroConfig.model_fields)
                raise ConfigError(f'[training.deepspeed]: zero_optimization has no key "{key}". {close}')


def _merged(ours: Mapping[str, Any], told: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`ours` with what a person told besides; "auto" is what it says here, or DeepSpeed's default."""
    result = dict(ours)
    for key, value in told.items():
        name, own = where + key, ours.get(key)
        if value == "auto":
            continue
        if isinstance(value, Mapping) and (own is None or isinstance(own, Mapping)) and name not in OWNERS:
            result[key] = _merged(own or {}, value, f"{name}.")
        elif name in FREE or (key not in ours and name not in OWNERS):
            result[key] = value
        elif value != own:
            here = f" {own!r}" if key in ours else " otherwise"
            owner = f"[training] {OWNERS[name]}" if name in OWNERS else "the trial"
            told_so = f'"{name}" is {value!r}, and {owner} makes it{here}'
            raise ConfigError(f'[training.deepspeed]: {told_so}: leave it out or write "auto".')
    return result
