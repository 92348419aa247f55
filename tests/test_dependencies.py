"""Private names of dependencies: each is listed, still exists, and its library is capped in pyproject.toml."""

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import optuna
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from march_search.config import deepspeed_check

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "march_search"

DOCUMENTED = {"_asdict", "_exit", "_fields", "_replace"}
"""Names with an underscore that the documentation of Python describes."""


def _exists(module: str, *names: str) -> Callable[[], bool]:
    """Return a check that a module has an attribute, possibly nested."""

    def check() -> bool:
        found = importlib.import_module(module)
        for name in names:
            found = getattr(found, name)
        return True

    return check


@cache
def _study() -> optuna.Study:
    """Return a study with one running trial."""
    study = optuna.create_study()
    study.ask()
    return study


def _engine_source(name: str) -> Callable[[], bool]:
    """Return a check that DeepSpeed's engine uses a name, as a method or an attribute that it sets."""

    def check() -> bool:
        engine = importlib.import_module("deepspeed.runtime.engine").DeepSpeedEngine
        return hasattr(engine, name) or f"self.{name} = " in inspect.getsource(engine)

    return check


def _norm_is_global_grad_norm() -> bool:
    """Return whether `get_global_grad_norm` returns the attribute that march_search sets."""
    engine = importlib.import_module("deepspeed.runtime.engine").DeepSpeedEngine
    return "self._global_grad_norm" in inspect.getsource(engine.get_global_grad_norm)


def _step_clips_with_method() -> bool:
    """Return whether a step without ZeRO clips gradients through the method that march_search replaces."""
    engine = importlib.import_module("deepspeed.runtime.engine").DeepSpeedEngine
    return "self.clip_fp32_gradients()" in inspect.getsource(engine._take_model_step)


def _parsed_configuration_has_the_keys() -> bool:
    """Return whether DeepSpeed's parsed configuration still lists the keys of each block where march_search looks."""
    parsed = importlib.import_module("deepspeed").DeepSpeedConfig(
        {"train_micro_batch_size_per_gpu": 1, "comms_logger": {}, "weight_quantization": {}}
    )
    known = deepspeed_check._known_keys(parsed)
    samples = {
        "activation_checkpointing": "partition_activations",
        "aio": "block_size",
        "autotuning": "enabled",
        "bf16": "enabled",
        "comms_logger": "prof_all",
        "compile": "deepcompile",
        "expert_parallel": "autoep_size",
        "flops_profiler": "profile_step",
        "fp16": "loss_scale",
        "hybrid_engine": "max_out_tokens",
        "pipeline": "stages",
        "tensor_parallel": "autotp_size",
        "tensorboard": "job_name",
        "timers": "throughput",
        "weight_quantization": "quantized_initialization",
        "zero_optimization": "stage3_max_live_parameters",
    }
    pinned = known["zero_optimization"]["offload_optimizer"]
    return "pin_memory" in pinned and all(key in known[block] for block, key in samples.items())


PRIVATE = {
    "optuna: JournalStorage._sync_with_backend": _exists("optuna.storages", "JournalStorage", "_sync_with_backend"),
    "optuna: Study._storage": lambda: isinstance(_study()._storage, optuna.storages.BaseStorage),
    "optuna: Trial._trial_id": lambda: isinstance(_study().ask()._trial_id, int),
    "optuna: FrozenTrial._trial_id": lambda: isinstance(_study().trials[0]._trial_id, int),
    "optuna: storages._grpc.server.make_server": _exists("optuna.storages._grpc.server", "make_server"),
    "deepspeed: ops.__compatible_ops__": _exists("deepspeed.ops", "__compatible_ops__"),
    "deepspeed: engine._global_grad_norm": _norm_is_global_grad_norm,
    "deepspeed: engine.clip_fp32_gradients": _step_clips_with_method,
    "deepspeed: engine.skipped_steps": _engine_source("skipped_steps"),
    "deepspeed: runtime.utils.clip_grad_norm_": _exists("deepspeed.runtime.utils", "clip_grad_norm_"),
    "deepspeed: attributes of DeepSpeedConfig": _parsed_configuration_has_the_keys,
    "torch: _softmax_backward_data": _exists("torch", "_softmax_backward_data"),
    "torch: _dynamo.config.recompile_limit": _exists("torch._dynamo.config", "recompile_limit"),
    "torch: Tensor._base": _exists("torch", "Tensor", "_base"),
    "torch: AdamW.step has a wrapped function": _exists("torch.optim", "AdamW", "step", "__wrapped__"),
    "datasets: config.HF_DATASETS_CACHE": _exists("datasets.config", "HF_DATASETS_CACHE"),
    "datasets: config.HF_MODULES_CACHE": _exists("datasets.config", "HF_MODULES_CACHE"),
    "huggingface_hub: constants.HF_HUB_CACHE": _exists("huggingface_hub.constants", "HF_HUB_CACHE"),
    "huggingface_hub: constants.HF_ASSETS_CACHE": _exists("huggingface_hub.constants", "HF_ASSETS_CACHE"),
    "huggingface_hub: constants.HF_XET_CACHE": _exists("huggingface_hub.constants", "HF_XET_CACHE"),
    "tensorboard: compat.proto.event_pb2.Event": _exists("tensorboard.compat.proto.event_pb2", "Event"),
    "tensorboard: compat.proto.summary_pb2.Summary": _exists("tensorboard.compat.proto.summary_pb2", "Summary"),
    "tensorboard: summary.writer.record_writer.RecordWriter": _exists(
        "tensorboard.summary.writer.record_writer", "RecordWriter"
    ),
}
"""A check of every private or undocumented name that march_search uses, by library and name."""


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_still_exists(name: str) -> None:
    assert PRIVATE[name]()


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    """Yield the files of the package and their syntax trees."""
    for path in PACKAGE.rglob("*.py"):
        yield path, ast.parse(path.read_text())


def _own_names() -> set[str]:
    """Return the names that the package defines: functions, classes, variables, and attributes of `self`."""
    own = set()
    for _, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") else set()
    return own


def _private_names(tree: ast.Module) -> Iterator[str]:
    """Yield names that start with an underscore: attributes, imports, and keys such as "__compatible_ops__"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            yield from [str(node.slice.value)] if str(node.slice.value).startswith("_") else []
            continue
        else:
            continue
        yield from (name for name in names if name.startswith("_") and not name.endswith("__"))


def test_every_private_name_in_use_is_listed() -> None:
    known = _own_names() | DOCUMENTED | set(re.findall(r"\w+", " ".join(PRIVATE)))
    unlisted = {
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path, tree in _sources()
        for name in _private_names(tree)
        if name not in known
    }
    assert unlisted == set()


def test_libraries_with_private_names_have_a_version_cap() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = {need.name: need.specifier for need in map(Requirement, project["dependencies"])}
    for library in {name.partition(":")[0] for name in PRIVATE}:
        assert library in requirements, library
        caps = [limit for limit in requirements[library] if limit.operator == "<"]
        assert len(caps) == 1, f"{library} needs an upper bound in pyproject.toml"
        installed = Version(importlib.import_module("importlib.metadata").version(library))
        cap = Version(caps[0].version)
        assert installed < cap
        major = (installed.major + 1,)
        minor = (installed.major, installed.minor + 1)
        assert cap.release in ((*major,), (*minor,)), f"{library} {installed} is capped at {cap}"
