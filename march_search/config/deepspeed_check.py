"""Check the user's DeepSpeed keys: DeepSpeed knows them, accepts their values, and none contradicts the study."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from march_search.config import BatchPlan, TrainingConfig
from march_search.config.deepspeed_config import CLIENT_BLOCKS, Owned, ds_config, own_names, owned_keys
from march_search.config.loader import refuse
from march_search.errors import nearest, shown
from march_search.files.atomic import one_line

KNOWN = frozenset(
    {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"}
    | {"bf16", "bfloat16", "fp16", "zero_optimization", "optimizer", "scheduler"}
    | {"steps_per_print", "wall_clock_breakdown", "prescale_gradients", "data_types", "zero_allow_untested_optimizer"}
    | {"activation_checkpointing", "aio", "amp", "autotuning", "checkpoint", "comms_logger", "communication_data_type"}
    | {"compile", "compression_training", "csv_monitor", "comet", "curriculum_learning", "data_efficiency"}
    | {"dataloader_drop_last", "datastates_ckpt", "disable_allgather", "disable_python_gc", "dump_state", "elasticity"}
    | {"expert_parallel", "flops_profiler", "gradient_allreduce_op", "gradient_predivide_factor", "graph_harvesting"}
    | {"hybrid_engine", "log_level", "managed_gradient_accumulation", "memory_breakdown", "nebula", "pipeline"}
    | {"progressive_layer_drop", "seq_parallel_communication_data_type", "sparse_attention", "sparse_gradients"}
    | {"tensor_parallel", "tensorboard", "timers", "torch_autocast", "use_data_before_expert_parallelism"}
    | {"vocabulary_size", "wandb", "weight_quantization", "zero_force_ds_cpu_optimizer"}
)
"""Top-level keys that DeepSpeed 0.19 reads. It silently ignores all others."""

PARSED = {
    "activation_checkpointing": "activation_checkpointing_config",
    "aio": "aio_config",
    "autotuning": "autotuning_config",
    "bf16": "bfloat16_config",
    "compile": "compile_config",
    "expert_parallel": "expert_parallel_config",
    "flops_profiler": "flops_profiler_config",
    "fp16": "float16_config",
    "hybrid_engine": "hybrid_engine",
    "pipeline": "pipeline",
    "tensor_parallel": "tensor_parallel_config",
    "weight_quantization": "weight_quantization_config",
    "zero_optimization": "zero_config",
}
"""Attribute of DeepSpeed's parsed configuration that holds each block, and with it the keys that the block can have."""

UNPARSED = {
    "checkpoint": dict.fromkeys(
        (
            *("tag_validation", "load_universal", "use_node_local_storage", "parallel_write"),
            *("checkpoint_serialization", "writer"),
        )
    ),
    "data_types": dict.fromkeys(("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules")),
    "torch_autocast": dict.fromkeys(("enabled", "dtype", "lower_precision_safe_modules")),
}
"""Keys of the blocks that DeepSpeed's parsed configuration does not hold as a whole."""

_BATCH = {"train_micro_batch_size_per_gpu": 1}
"""A batch that DeepSpeed accepts for any number of ranks."""

_NEEDS_DEVICE = "aio"
"""Block that DeepSpeed accepts on some devices only; a plan is checked on any machine."""

_REMEDY = 'remove it or use "auto"'

_Tree = Mapping[str, Any]
"""Known keys of a block: each maps to the keys of its own block, or to None."""


def check_deepspeed(training: TrainingConfig, plan: BatchPlan, rates: Sequence[float] = ()) -> None:
    """Check `training.deepspeed` against DeepSpeed and against the study's settings.

    Args:
        training: Settings of the study, or of a trial as its trial.json has them.
        plan: How a global batch is split.
        rates: Learning rates in `[search]`, if the study has several.

    Raises:
        ConfigError: If DeepSpeed does not know a key or rejects its value, or if a value contradicts the study. The
            error lists all faults.
    """
    if not training.deepspeed:
        return
    user_keys, owned = own_names(training.deepspeed), owned_keys(training, plan, rates)
    with _quiet():
        from deepspeed import DeepSpeedConfig

        parsed = DeepSpeedConfig(_BATCH | {"comms_logger": {}, "weight_quantization": {}})
        known = _known_keys(parsed)
        faults = [*_unknown(user_keys, known | _client_tree(owned)), *_contradictions(user_keys, owned)]
        faults += [*_old_name(training.deepspeed), *_wrong_types(user_keys, parsed)]
        given = {name for name in user_keys if name in known and name not in owned} - {*CLIENT_BLOCKS, _NEEDS_DEVICE}
        merged = {name: value for name, value in ds_config(training, plan).items() if name in given}
        for name, value in merged.items():
            if isinstance(value, dict) or not known[name]:
                faults += _rejected({name: value}, known, name)
        faults += [] if faults else _rejected(merged, known)
    refuse(f"[training.deepspeed]: {fault}" for fault in faults)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress log messages: DeepSpeed prints them to stdout when it is imported."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _known_keys(parsed: Any) -> dict[str, Any]:
    """Return the keys that DeepSpeed knows, from its parsed configuration."""
    blocks = {name: _keys(getattr(parsed, attribute)) for name, attribute in PARSED.items()}
    monitors = _keys(parsed.monitor_config)
    more = {
        "comms_logger": _keys(parsed.comms_config.comms_logger),
        "timers": {"throughput": _keys(parsed.timers_config)},
    }
    return dict.fromkeys(KNOWN) | monitors | UNPARSED | blocks | more


def _keys(block: Any) -> dict[str, Any]:
    """Return the keys of one parsed block: a pydantic model, an object with an attribute per key, or a dict."""
    if hasattr(type(block), "model_fields"):
        return _model_keys(type(block))
    return dict.fromkeys(block if isinstance(block, dict) else vars(block))


def _model_keys(model: Any) -> dict[str, Any]:
    """Return the names and aliases of a pydantic model's fields, with the keys of the models in them."""
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        inner = next((_model_keys(kind) for kind in kinds if hasattr(kind, "model_fields")), None)
        keys |= dict.fromkeys((name, field.alias or name), inner)
    return keys


def _client_tree(owned: Mapping[str, Owned]) -> dict[str, Any]:
    """Return the keys that the optimizer and scheduler blocks can have."""
    tree = {}
    for block in CLIENT_BLOCKS:
        names = [name.removeprefix(f"{block}.") for name in owned if name.startswith(f"{block}.")]
        params = dict.fromkeys(name.removeprefix("params.") for name in names if name.startswith("params."))
        tree[block] = dict.fromkeys(name for name in names if "." not in name) | {"params": params}
    return tree


def _unknown(user_keys: Mapping[str, Any], known: _Tree, where: str = "") -> Iterator[str]:
    """Yield one sentence for each key that DeepSpeed does not know, at any depth."""
    for key, value in user_keys.items():
        if key not in known:
            yield f"{where.rstrip('.') or 'DeepSpeed'} has no key {shown(key)}. {nearest(key, known)}"
        elif known[key] and isinstance(value, Mapping):
            yield from _unknown(value, known[key], f"{where}{key}.")
        elif known[key] and value != "auto" and (value is not None or not where):
            yield f'"{where}{key}" must be a table, not {_json(value)}.'


def _contradictions(user_keys: Mapping[str, Any], owned: Mapping[str, Owned], where: str = "") -> Iterator[str]:
    """Yield one sentence for each value that differs from what the study's settings make it."""
    for key, value in user_keys.items():
        name = where + key
        if value == "auto":
            continue
        if name in owned and not any(_agree(value, accepted) for accepted in owned[name].accepted):
            yield f'"{name}" is {_json(value)}, but {owned[name].reason}: {_REMEDY}.'
            if key == "type":  # the parameters of another optimizer or schedule mean nothing here
                return
        elif isinstance(value, Mapping):
            yield from _contradictions(_type_first(value), owned, f"{name}.")


def _type_first(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a block with its key `type`, if any, in front."""
    return {key: block[key] for key in sorted(block, key=lambda key: key != "type")}


def _agree(value: Any, accepted: Any) -> bool:
    """Return whether a value of the file is the accepted one; the case of a name does not matter."""
    if isinstance(value, bool) or isinstance(accepted, bool):
        return value is accepted
    if isinstance(value, str) and isinstance(accepted, str):
        return value.lower() == accepted.lower()
    return bool(value == accepted)


def _old_name(user_keys: Mapping[str, Any]) -> list[str]:
    """Return one sentence if `bf16` stands under its old name too, with another value."""
    if "bf16" in user_keys and "bfloat16" in user_keys and user_keys["bf16"] != user_keys["bfloat16"]:
        return ['"bfloat16" is the old name of "bf16", and the two differ: keep one.']
    return []


def _wrong_types(user_keys: Mapping[str, Any], parsed: Any) -> Iterator[str]:
    """Yield one sentence for each value of another type than its default, in blocks that DeepSpeed does not check."""
    for block, attribute in PARSED.items():
        holder, given = getattr(parsed, attribute), user_keys.get(block)
        if hasattr(type(holder), "model_fields") or not isinstance(given, Mapping):
            continue
        defaults = holder if isinstance(holder, dict) else vars(holder)
        for key, value in given.items():
            default = defaults.get(key)
            kind, words = (bool, "true or false") if isinstance(default, bool) else (int | float, "a number")
            wrong = not isinstance(value, kind) or isinstance(value, bool) != isinstance(default, bool)
            if isinstance(default, int | float) and value != "auto" and wrong:
                yield f'"{block}.{key}" must be {words}, not {_json(value)}.'


def _rejected(config: Mapping[str, Any], known: _Tree, block: str = "") -> list[str]:
    """Return one sentence for each value that DeepSpeed rejects; unknown keys are left to `_unknown`."""
    from deepspeed import DeepSpeedConfig

    faults = []
    for name in ("offload_optimizer", "offload_param"):
        offload = config[block].get(name) if block == "zero_optimization" and isinstance(config[block], dict) else None
        if isinstance(offload, dict) and offload.get("device") == "nvme" and not offload.get("nvme_path"):
            faults.append(f'"{block}.{name}.device" is "nvme": set nvme_path beside it.')
    try:
        DeepSpeedConfig(_BATCH | dict(config))
    except Exception as error:  # DeepSpeed raises errors of many types
        if not hasattr(error, "errors"):
            return [*faults, f"{f'{json.dumps(block)}: ' if block else ''}DeepSpeed rejects it: {one_line(error)}."]
        for detail in error.errors():
            faults += _sentence(detail, known, block)
    return faults


def _sentence(detail: Mapping[str, Any], known: _Tree, block: str) -> list[str]:
    """Return pydantic's description of one fault as a sentence, or nothing for an unknown key."""
    path = [str(part) for part in detail["loc"]]
    prefix = [] if path[:1] == [block] else ["timers", "throughput"] if block == "timers" else [block]
    path = [part for part in [*prefix, *path] if part]
    name = ".".join(path)
    if detail["type"] == "extra_forbidden":
        for part in path:
            if part not in (known or {}):
                return []
            known = known[part]
        return [f'"{name}" is given twice, under two names: keep one.']
    message = detail["msg"].removeprefix("Assertion failed, ").removeprefix("Value error, ").rstrip(".")
    value = f" is {_json(detail['input'])}" if isinstance(detail["input"], str | int | float | None) else ""
    return [f'"{name}"{value}: {message}.']


def _json(value: Any) -> str:
    """Return a value for an error message, as JSON and TOML spell it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)
