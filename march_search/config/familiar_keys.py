"""Keys in the wrong place: those of another table, and those of other training programs with what to set instead."""

import dataclasses
import typing
from collections.abc import Mapping

_TOKENS = "training.tokens"
_BATCH = "training.global_batch_tokens"
_LENGTH = "data.sequence_length"
_MICRO = "training.micro_batch_sequences"

_STEPS = f"{_TOKENS} to {{key}} × {_BATCH}"
_EXAMPLES = f"{_BATCH} to {{key}} × {_LENGTH}, where {{key}} counts the examples of one step on all devices"
_PER_DEVICE = f"{_MICRO} to {{key}}, and {_BATCH} to {{key}} × devices.ranks × gradient accumulation steps × {_LENGTH}"
_ACCUMULATION = f"{_BATCH} to {{key}} × {_MICRO} × devices.ranks × {_LENGTH}"
_EPOCHS = f"{_TOKENS} to {{key}} × the tokens of the training text, which march-search data inspect STUDY prints"
_LENGTHS = f"{_LENGTH} to the same number"
_RATE = "training.learning_rate to the same number"
_CLIP = "training.gradient_clipping to the same number"
_RANKS = "devices.ranks to the same number"
_PRECISION = 'training.precision to "bf16" or "fp32"'

FAMILIAR = {
    **dict.fromkeys(("max_steps", "num_steps", "train_steps", "total_steps", "max_iters", "steps"), _STEPS),
    **dict.fromkeys(("batch_size", "global_batch_size", "train_batch_size"), _EXAMPLES),
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_batch_size",
            "local_batch_size",
            "micro_batch_size",
            "train_micro_batch_size_per_gpu",
        ),
        _PER_DEVICE,
    ),
    "gradient_accumulation_steps": _ACCUMULATION,
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_epochs"), _EPOCHS),
    **dict.fromkeys(
        ("seq_len", "seq_length", "max_length", "max_seq_length", "block_size", "context_length"), _LENGTHS
    ),
    **dict.fromkeys(("lr", "max_lr", "peak_lr"), _RATE),
    "warmup_steps": f"training.warmup_tokens to {{key}} × {_BATCH}",
    "warmup_ratio": f"training.warmup_tokens to {{key}} × {_TOKENS}",
    **dict.fromkeys(("max_grad_norm", "grad_clip", "clip_grad", "gradient_clip_val"), _CLIP),
    **dict.fromkeys(
        ("lr_scheduler", "lr_scheduler_type", "scheduler"),
        'training.schedule to "constant", "linear", "cosine" or "wsd"',
    ),
    "eval_steps": f"training.evaluations to {_TOKENS} / (eval_steps × {_BATCH})",
    "save_steps": f"training.checkpoints to {_TOKENS} / (save_steps × {_BATCH})",
    **dict.fromkeys(("gpus", "num_gpus", "n_gpus", "world_size", "nproc_per_node"), _RANKS),
    "num_nodes": "devices.nodes to the same number",
    **dict.fromkeys(("bf16", "fp16", "mixed_precision", "dtype"), _PRECISION),
    "num_trials": "search.trials to the same number",
    "n_trials": "search.trials to the same number",
    "dataset": "data.corpus to a file, a folder or hub:OWNER/NAME",
}
"""What to set instead of a key of another program, with the arithmetic between the two; `{key}` is the key itself."""


REFUSED_VALUES = {
    ("training.precision", "fp16"): "fp16 gradients underflow and need a loss scale, which skips steps, so that shapes "
    'would not train on the same tokens: use "bf16", which is as fast and as small, or "fp32".',
}
"""Why a value that other programs take is refused, and what to use instead, by key and value."""


def other_place(key: str, paths: Mapping[str, str]) -> str:
    """Return the end of the sentence about an unknown key: what to use instead; empty if that is not known.

    Args:
        key: The key.
        paths: Result of `paths_of`.
    """
    if key in paths:
        return f". Did you mean {paths[key]}?"
    is_study = paths.get("tokens") == "training.tokens"
    return f": set {FAMILIAR[key.lower()].format(key=key)}." if is_study and key.lower() in FAMILIAR else ""


def paths_of(cls: type) -> dict[str, str]:
    """Return the dotted path of every key in the tables of a settings class, but for names that several tables have."""
    found: dict[str, list[str]] = {}
    for name, hint in typing.get_type_hints(cls).items():
        for field in dataclasses.fields(hint) if dataclasses.is_dataclass(hint) else ():
            found.setdefault(field.name, []).append(f"{name}.{field.name}")
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}
