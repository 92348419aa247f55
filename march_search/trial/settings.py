"""The settings of a trial: trial.json, and the sealed copy that the trial began with, started.json."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.architecture.block import BlockCounts, remember_counts
from march_search.config import TrialConfig
from march_search.config.changes import differences, filled, in_words
from march_search.config.loader import build, read_file
from march_search.errors import ConfigError
from march_search.files.json_tables import find_table, sealed, write_json

SETTINGS, STARTED = "trial.json", "started.json"
"""Names of the files in a trial's folder."""

FREE = frozenset({"keep_weights", "hang_seconds", "parallel_trials", "study", "number", "module"})
"""Settings that may change after a trial has started. They do not affect its result. Of a block's file, the content
matters and the path does not."""

_DEFAULTS = asdict(TrialConfig(architecture="", store=""))


def read_settings(folder: Path) -> TrialConfig:
    """Return the settings in trial.json.

    Raises:
        ConfigError: If the file is missing or damaged, or a setting is not valid.
        ArchitectureError: If the architecture's name is not valid.
    """
    path = folder / SETTINGS
    config = build(TrialConfig, read_file(path), str(path))
    a = Architecture.parse(config.architecture)
    if a.block is not None:
        if config.block is None or any(len(row) != 2 + len(BlockCounts._fields) for row in config.block.counts):
            raise ConfigError(f"{path}: the architecture has a block: add its module, sha256 and counts as block.")
        remember_counts(a.block, config.block.counts)
    if config.training.precision == "auto":
        raise ConfigError(
            f'{path}: [training]: precision "auto" is resolved when a study starts: use "bf16" or "fp32" in a trial.'
        )
    return config


def check_unchanged(folder: Path, config: TrialConfig) -> None:
    """Check that a trial still has the settings that it began with.

    Raises:
        ConfigError: If they changed, or started.json is damaged; the message names each setting that differs.
    """
    if changes := changed_settings(folder, config):
        remedy = f"Restore {SETTINGS}, or delete the folder to train the trial from its start."
        raise ConfigError(f"{changed_words(folder, changes)} {remedy}")


def keep_started(folder: Path, config: TrialConfig) -> None:
    """Write the settings that a trial begins with to started.json, unless it has begun before.

    Raises:
        StorageError: If started.json cannot be written.
    """
    if not (folder / STARTED).exists():
        write_json(folder / STARTED, sealed({"settings": _compared(config)}))


def changed_settings(folder: Path, config: TrialConfig) -> list[str]:
    """Return how `config` differs from the settings that the trial began with; empty if it has not started.

    Raises:
        ConfigError: If started.json is damaged.
    """
    expected = {"settings": dict, "sha256": str}
    remedy = "Restore it from a copy, or delete the folder to train the trial from its start."
    record = find_table(folder / STARTED, expected, remedy, ConfigError)
    return [] if record is None else list(differences(filled(record["settings"], _DEFAULTS), _compared(config), FREE))


def changed_words(folder: Path, changes: list[str]) -> str:
    """Return a sentence on settings that changed since the trial began."""
    return f"{folder / SETTINGS}: differs from the settings that the trial began with: {in_words(changes)}."


def _compared(config: TrialConfig) -> dict[str, Any]:
    """Return the settings of a trial as JSON values, with the name of its token store instead of its path."""
    table: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return table | {"store": Path(config.store).name}
