"""What makes a trial complete: a result.json whose tokens equal the data budget. An exit code never does."""

import math
from pathlib import Path
from typing import Any

from march_search.config import TrialConfig
from march_search.files import read_json


def complete(folder: Path, config: TrialConfig) -> dict[str, Any] | None:
    """The result of a trial that reached its data budget with a finite loss; None for any other."""
    result = read_json(folder / "result.json")
    if not isinstance(result, dict) or result.get("architecture") != config.architecture:
        return None
    loss = result.get("loss")
    whole = result.get("tokens") == config.training.tokens and result.get("seed") == config.seed
    finite = isinstance(loss, int | float) and not isinstance(loss, bool) and math.isfinite(loss)
    return result if whole and finite else None
