"""The sealed result of a trial.

A trial is complete if its result.json is intact and its tokens equal the data budget. Exit codes do not count.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.config import TrialConfig
from march_search.files import read_json


def seal_result(result: dict[str, Any]) -> dict[str, Any]:
    """Return `result` with the key `sha256`: the hash of all other keys as JSON, sorted and without spaces."""
    content = {name: value for name, value in result.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def _is_whole(result: dict[str, Any]) -> bool:
    """Return whether a result matches its hash.

    Results of version 1 have no hash. They are accepted, because retraining is expensive: they were renamed into place
    after fsync, so they are never half-written, but later changes go unnoticed.
    """
    if result.get("schema_version") == 1 and "sha256" not in result:
        return True
    try:
        return seal_result(result) == result
    except ValueError:  # NaN or infinity
        return False


def complete_result(folder: Path, config: TrialConfig) -> dict[str, Any] | None:
    """Return the result if it is intact and the trial reached its data budget with a finite loss, else None."""
    result = read_json(folder / "result.json")
    if not isinstance(result, dict) or not _is_whole(result):
        return None
    if result.get("architecture") != Architecture.parse(config.architecture).name:
        return None
    loss = result.get("loss")
    whole = result.get("tokens") == config.training.tokens and result.get("seed") == config.seed
    finite = isinstance(loss, int | float) and not isinstance(loss, bool) and math.isfinite(loss)
    return result if whole and finite else None
