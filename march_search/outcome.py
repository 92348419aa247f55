"""What makes a trial complete: a whole result.json whose tokens equal the data budget. An exit code never does."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from march_search.architecture import Architecture
from march_search.config import TrialConfig
from march_search.files import read_json

FAILURES = ("failed", "diverged", "infeasible_memory")
"""States of a trial that ended without a result, as its failure.json says; a study may train `failed` ones again."""

SMALLER, HUNG = 75, 76
"""Exit codes of a trial that is to be started again: it has a smaller micro batch now, or no rank got on any more."""

_KERNEL_COUNTS = Path("/proc/vmstat")


def memory_kills() -> int | None:
    """Processes that Linux has killed because memory ran out, since the machine started; None where nobody counts."""
    try:
        lines = _KERNEL_COUNTS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def killed(kills_before: int | None) -> str:
    """Whose SIGKILL it was, as the end of a sentence, by `memory_kills` when the process started."""
    kills = memory_kills()
    if kills is None or kills_before is None:
        return "the machine may have run out of memory"
    if kills > kills_before:
        return "the machine ran out of memory and Linux chose it: make micro_batch_sequences smaller, or add memory"
    return "somebody sent it; the machine did not run out of memory"


def sealed(result: dict[str, Any]) -> dict[str, Any]:
    """`result` with `sha256`, the hash of all else in it as JSON: keys sorted, no spaces."""
    content = {name: value for name, value in result.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def _is_whole(result: dict[str, Any]) -> bool:
    """Whether a result is what was written.

    Version 1 had no seal. Those are taken as they are, for what they cost to train: renamed into place after fsync,
    they were never half-written, and nothing can tell whether they were changed since.
    """
    if result.get("schema_version") == 1 and "sha256" not in result:
        return True
    try:
        return sealed(result) == result
    except ValueError:  # a number that is none
        return False


def complete(folder: Path, config: TrialConfig) -> dict[str, Any] | None:
    """The result of a trial that reached its data budget with a finite loss; None for any other, or a damaged one."""
    result = read_json(folder / "result.json")
    if not isinstance(result, dict) or not _is_whole(result):
        return None
    if result.get("architecture") != Architecture.parse(config.architecture).name:
        return None
    loss = result.get("loss")
    whole = result.get("tokens") == config.training.tokens and result.get("seed") == config.seed
    finite = isinstance(loss, int | float) and not isinstance(loss, bool) and math.isfinite(loss)
    return result if whole and finite else None
