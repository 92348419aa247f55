"""The DeepSpeed configuration of a trial, every key that touches numbers written out, none left to a default."""

from typing import Any

from march_search.config import BatchPlan, TrainingConfig
from march_search.memory import BUCKET_ELEMENTS


def ds_config(training: TrainingConfig, plan: BatchPlan) -> dict[str, Any]:
    """Configuration for `deepspeed.initialize`; the optimizer and its schedule are handed over as objects.

    bf16 needs ZeRO 1 or more, which on one device is the same arithmetic: at stage 0 DeepSpeed cannot accumulate bf16
    gradients in fp32. `gradient_clipping` changed its default in DeepSpeed 0.19.2, and a mistyped key would be ignored
    in silence. ZeRO's default bucket of 5e8 gradients would take 1 or 2 GB, whatever the model's size.
    """
    bf16 = training.precision == "bf16"
    return {
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
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
