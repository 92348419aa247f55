"""Complete trials of other studies under the same root that are the same: taken over instead of trained again."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from march_search.config import TrialConfig
from march_search.errors import MarchSearchError
from march_search.files import read_json
from march_search.outcome import complete
from march_search.settings import build

OWN = ("trial.json", "outcome.json", "result.json", "checkpoints", "lock", ".fence")
"""What stays where it is; the result follows when all else is there."""


def same_trial(root: Path, config: TrialConfig) -> Path | None:
    """The folder of a complete trial below `root` that was trained as `config` says, on the same text; None without.

    All that decides the bits must be equal: shape, seed, data, training, ranks and threads. Where a study is kept, how
    many of its trials ran side by side, and whether weights were kept beyond need do not.
    """
    for path in sorted(root.glob(f"*/trials/*-{config.architecture}-s{config.seed}*/trial.json")):
        try:
            other = build(TrialConfig, read_json(path), str(path))
        except MarchSearchError:
            continue  # a damaged or foreign file is nobody's result
        has_weights = (path.parent / "weights.safetensors").is_file() or not config.training.keep_weights
        if has_weights and _what_decides(other) == _what_decides(config) and complete(path.parent, other):
            return path.parent
    return None


def take_over(source: Path, folder: Path, weights: bool) -> None:
    """Copies a complete trial's files into `folder`, the result last."""
    left_out = shutil.ignore_patterns(*OWN, *(() if weights else ("weights.safetensors",)))
    shutil.copytree(source, folder, ignore=left_out, dirs_exist_ok=True)
    shutil.copyfile(source / "result.json", folder / "result.json")


def _what_decides(config: TrialConfig) -> dict[str, Any]:
    """The settings of a trial that change what comes out."""
    told = asdict(config)
    told["store"] = Path(config.store).name
    del told["training"]["keep_weights"]
    told["devices"] = {key: told["devices"][key] for key in ("kind", "ranks", "nodes", "threads")}
    return told
