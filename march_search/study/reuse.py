"""Reuse identical complete trials of other studies under the same root instead of training them again."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from march_search.config import TrialConfig
from march_search.errors import MarchSearchError, StorageError
from march_search.files.atomic import DISK_TROUBLE, discard_folder
from march_search.trial.metrics import read_metrics
from march_search.trial.own_trials import foreign, study_id
from march_search.trial.result import RESULT, VALIDATION_SEAL, WEIGHTS_SEAL, check_file, read_result, validation_file
from march_search.trial.settings import SETTINGS, changed_settings, read_settings

WEIGHTS = "weights.safetensors"
"""Name of the file with a complete trial's weights."""

OWN = (
    "trial.json", "started.json", "outcome.json", "result.json", "checkpoints", "lock", ".fence", "tracking-*",
    ".tracking-*",
)  # fmt: skip
"""Files that are not copied with the rest; result.json is copied last."""


def same_trial(root: Path, config: TrialConfig) -> Path | None:
    """Return the folder of a complete trial below `root` with the settings and text of `config`; None without one.

    All settings that affect the result must be equal: shape, seed, data, training, ranks and threads. The location of
    the study, its number of parallel trials and unneeded weights do not matter.
    """
    for path in sorted(root.glob(f"*/trials/*-{config.architecture}-s{config.seed}*/trial.json")):
        try:
            other = read_settings(path.parent)
            if _what_decides(other) == _what_decides(config) and _is_intact(path.parent, other, config):
                return path.parent
        except MarchSearchError:
            continue  # a damaged file
    return None


def _is_intact(folder: Path, other: TrialConfig, config: TrialConfig) -> bool:
    """Return whether the trial `other` in `folder` is complete, its study's own, and has all files that `config` needs.

    Raises:
        MarchSearchError: If a file is damaged.
    """
    if foreign(folder, other, study_id(folder.parent.parent)) or changed_settings(folder, other):
        return False
    result = read_result(folder, other)
    if result is None or read_metrics(folder).damaged:
        return False
    check_file(validation_file(folder, result["tokens"]), result, VALIDATION_SEAL)
    if not config.training.keep_weights:
        return True
    check_file(folder / WEIGHTS, result, WEIGHTS_SEAL)
    return (folder / WEIGHTS).is_file()


def take_over(source: Path, folder: Path, weights: bool) -> bool:
    """Copy a complete trial's files into `folder`, result.json last; `weights` includes its weights.

    If they cannot be read, such as those of a study that is deleted meanwhile, return False and leave trial.json only.

    Raises:
        StorageError: If the disk is full.
    """
    left_out = shutil.ignore_patterns(*OWN, *(() if weights else (WEIGHTS,)))
    try:
        shutil.copytree(source, folder, ignore=left_out, copy_function=_copy, dirs_exist_ok=True)
        _copy(str(source / RESULT), str(folder / RESULT))
    except (OSError, StorageError) as error:
        for path in folder.iterdir():
            if path.is_dir():
                discard_folder(path)
            elif path.name != SETTINGS:
                path.unlink()
        if isinstance(error, StorageError):
            raise
        return False
    return True


def _copy(source: str, target: str) -> None:
    """Copy a file; raise a StorageError if the disk is full, which `copytree` does not add to a list of errors."""
    try:
        shutil.copy2(source, target)
    except OSError as error:
        if error.errno in DISK_TROUBLE:
            raise StorageError(f"{target}: cannot be written: {error.strerror}.") from None
        raise


def _what_decides(config: TrialConfig) -> dict[str, Any]:
    """Return the settings of a trial that affect its result."""
    settings = asdict(config)
    settings["store"] = Path(config.store).name
    del settings["study"], settings["number"]
    settings["block"] = config.block and config.block.sha256
    del settings["training"]["keep_weights"]
    settings["devices"] = {key: settings["devices"][key] for key in ("kind", "ranks", "nodes", "threads")}
    return settings
