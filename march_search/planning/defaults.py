"""Settings that a study's file leaves out and that depend on the machine, the space or the tokenizer.

They are chosen once, when the study starts, and recorded with it. A started study keeps them on every machine.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from march_search.config.changes import in_current_keys
from march_search.config.counts import parse_parameters
from march_search.config.data_config import DataConfig
from march_search.config.deepspeed_config import read_deepspeed_file
from march_search.config.loader import as_count, read_file
from march_search.config.overrides import with_overrides
from march_search.config.training_config import TrainingConfig
from march_search.data.vocabulary import padded_size
from march_search.errors import MarchSearchError
from march_search.files.atomic import expanded
from march_search.planning import gpus
from march_search.space.auto import typical_vocab_size
from march_search.space.named import AUTO
from march_search.space.space import SearchSpace

DeviceType = Literal["cpu", "cuda"]

CPU_BATCH_TOKENS = 8192
"""Most tokens per optimizer step that are chosen for a CPU."""

CPU_STEPS = 1000
"""Optimizer steps per trial that the batch chosen for a CPU gives at least: those of the 2023 study."""

_BF16_FLAG = re.compile(r"^(?:flags|Features)\s*:.*\b(?:avx512_bf16|amx_bf16|bf16)\b", re.MULTILINE)
"""Line of /proc/cpuinfo of a processor that multiplies bf16 numbers, x86 or ARM."""


class Filled(NamedTuple):
    """The content of a study's file with the settings that it leaves out."""

    table: dict[str, Any]
    notes: tuple[str, ...]
    """One sentence per setting that was chosen, without its full stop."""


def study_table(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of a study's file, in the keys of today, with the file of DeepSpeed settings that it names.

    Raises:
        ConfigError: If a file cannot be read.
        UsageError: If an override is not `KEY=VALUE`.
    """
    table = with_overrides(read_file(file), overrides)
    training = table.get("training")
    if isinstance(training, dict) and isinstance(training.get("deepspeed"), str):
        training["deepspeed"] = read_deepspeed_file(file.parent / expanded(training["deepspeed"]))
    return in_current_keys(table)


def filled(table: dict[str, Any], base: Path, device_type: DeviceType | None = None) -> Filled:
    """Return the content of a study's file with batch, precision and vocabulary chosen where it leaves them out.

    Args:
        table: Content of the file; it is not changed. What is wrong in it is left for the check of all settings.
        base: Folder that relative paths in the file start from.
        device_type: Device on which the study is planned; None for the one of `[devices]` on this machine.
    """
    data, training = _table(table, "data"), _table(table, "training")
    given = device_type or _device_type(_table(table, "devices").get("kind", "auto"))
    notes: list[str] = []
    if "vocab_size" not in data and (found := _vocab_size(table, data, base)):
        data["vocab_size"], origin = found
        notes.append(f"vocab_size {data['vocab_size']:,} of {origin}")
    if training.get("precision", "auto") == "auto":
        training["precision"], reason = _precision(given)
        notes.append(f"precision {training['precision']}, because {reason}")
    if "global_batch_tokens" not in training and given == "cpu" and (batch := _cpu_batch(table, data, training)):
        training["global_batch_tokens"] = batch
        notes.append(f"global_batch_tokens {batch:,}, because trials run on a CPU")
    return Filled(_with(table, data=data, training=training), tuple(notes))


def depends_on_machine(table: Mapping[str, Any]) -> bool:
    """Return whether precision or batch of a study's file would be chosen for the CPU of a machine without GPUs.

    A study that is created on the login node of a cluster is trained elsewhere.
    """
    training = _table(table, "training")
    is_open = training.get("precision", "auto") == "auto" or "global_batch_tokens" not in training
    return is_open and _table(table, "devices").get("kind", "auto") == "auto" and not gpus.exist()


def as_started(table: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a started study's file, with the recorded settings where the file leaves them open."""
    data, training = _table(table, "data"), _table(table, "training")
    recorded = {name: dict(settings.get(name) or {}) for name in ("data", "training")}
    if "vocab_size" in recorded["data"]:
        data.setdefault("vocab_size", recorded["data"]["vocab_size"])
    if "global_batch_tokens" in recorded["training"]:
        training.setdefault("global_batch_tokens", recorded["training"]["global_batch_tokens"])
    if training.get("precision", "auto") == "auto" and "precision" in recorded["training"]:
        training["precision"] = recorded["training"]["precision"]
    return _with(table, data=data, training=training)


def _table(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a copy of a table in the file; empty if it is not a table."""
    found = table.get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def _with(table: dict[str, Any], **changed: dict[str, Any]) -> dict[str, Any]:
    """Return `table` with tables replaced; what is not a table stays as it is, to be refused later."""
    return table | {name: inner for name, inner in changed.items() if isinstance(table.get(name, {}), Mapping)}


def _device_type(kind: Any) -> DeviceType:
    """Return the device type that `kind` of `[devices]` means on this machine."""
    if kind == "auto":
        return "cuda" if gpus.exist() else "cpu"
    return "cpu" if kind == "cpu" else "cuda"


def _precision(device_type: DeviceType) -> tuple[str, str]:
    """Return the precision that is fast on a device, and the reason."""
    if device_type == "cuda":
        if gpus.support_bf16():
            return "bf16", "GPUs are fast at it"
        return "fp32", "a GPU of this machine has no bf16 in hardware"
    return ("bf16", "this CPU has it in hardware") if cpu_has_bf16() else ("fp32", "this CPU has no bf16 in hardware")


@cache
def cpu_has_bf16() -> bool:
    """Return whether this machine's CPU multiplies bf16 numbers in hardware; False where Linux does not tell."""
    try:
        return bool(_BF16_FLAG.search(Path("/proc/cpuinfo").read_text()))
    except OSError:
        return False


def _cpu_batch(table: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any]) -> int | None:
    """Return the largest batch for a CPU that divides the data budget; None if a setting that it needs is wrong."""
    tokens = as_count(training.get("tokens", TrainingConfig.tokens))
    length = as_count(data.get("sequence_length", DataConfig.sequence_length))
    ranks = as_count(_table(table, "devices").get("ranks", 1))
    return cpu_batch(tokens, length * ranks) if tokens and length and ranks else None


def cpu_batch(tokens: int, unit: int) -> int | None:
    """Return the largest divisor of `tokens` that is a multiple of `unit`, within `CPU_BATCH_TOKENS` and `CPU_STEPS`.

    `unit` is the number of tokens of one sequence on every rank, the smallest batch. Returns None if it does not divide
    `tokens`.
    """
    most = max(unit, min(CPU_BATCH_TOKENS, tokens // CPU_STEPS))
    return next((batch for batch in range(most // unit * unit, 0, -unit) if tokens % batch == 0), None)


def _vocab_size(table: Mapping[str, Any], data: Mapping[str, Any], base: Path) -> tuple[int, str] | None:
    """Return the vocabulary size that the space or the tokenizer sets, and which of them; None if neither does."""
    space, tokenizer, budget = table.get("space"), data.get("tokenizer"), table.get("budget")
    try:
        if space == AUTO and tokenizer is None and isinstance(budget, str):
            return typical_vocab_size(parse_parameters(budget)), f"the space {AUTO}"
        if isinstance(space, str) and space != AUTO:
            beside = base / space
            loaded = SearchSpace.load(beside if beside.is_file() else space)
            if not loaded.vocab_size_is_open and len(loaded.axes["vocab_size"]) == 1:
                return int(loaded.axes["vocab_size"][0]), f"the space {loaded.name}"
        if isinstance(tokenizer, str):
            return padded_size(base / expanded(tokenizer)), f"the tokenizer {tokenizer}"
    except MarchSearchError:
        pass  # found again, and reported with all other faults, when the settings are checked
    return None
