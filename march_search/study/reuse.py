"""Reuse identical complete trials of other studies under the same root instead of training them again."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from march_search.config import TrialConfig
from march_search.config.loader import build
from march_search.errors import MarchSearchError
from march_search.files import read_json
from march_search.trial.result import complete_result

OWN = ("trial.json", "outcome.json", "result.json", "checkpoints", "lock", ".fence")
"""Files that are not copied with the rest; result.json is copied last."""


def same_trial(root: Path, config: TrialConfig) -> Path | None:
    """Return the folder of a complete trial below `root` with the settings and text of `config`; None without one.

    All settings that affect the result must be equal: shape, seed, data, training, ranks and threads. The location of
    the study, its number of parallel trials and unneeded weights do not matter.
    """
    for path in sorted(root.glob(f"*/trials/*-{config.architecture}-s{config.seed}*/trial.json")):
        try:
            other = build(TrialConfig, read_json(path), str(path))
        except MarchSearchError:
            continue  # a damaged or foreign file
        has_weights = (path.parent / "weights.safetensors").is_file() or not config.training.keep_weights
        if has_weights and _what_decides(other) == _what_decides(config) and complete_result(path.parent, other):
            return path.parent
    return None


def take_over(source: Path, folder: Path, weights: bool) -> None:
    """Copy a complete trial's files into `folder`, result.json last; `weights` includes its weights."""
    left_out = shutil.ignore_patterns(*OWN, *(() if weights else ("weights.safetensors",)))
    shutil.copytree(source, folder, ignore=left_out, dirs_exist_ok=True)
    shutil.copyfile(source / "result.json", folder / "result.json")


def _what_decides(config: TrialConfig) -> dict[str, Any]:
    """Return the settings of a trial that affect its result."""
    settings = asdict(config)
    settings["store"] = Path(config.store).name
    del settings["training"]["keep_weights"]
    settings["devices"] = {key: settings["devices"][key] for key in ("kind", "ranks", "nodes", "threads")}
    return settings
