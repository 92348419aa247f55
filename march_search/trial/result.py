"""The sealed result of a trial.

A trial is complete if its result.json is intact and its tokens equal the data budget. Exit codes do not count.
"""

import math
from pathlib import Path
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.config import TrialConfig
from march_search.errors import DataError, StorageError
from march_search.files.atomic import file_sha256
from march_search.files.json_tables import MAYBE_NUMBER, NUMBER, Kinds, find_table

RESULT = "result.json"
"""Name of the file in a trial's folder."""

VALIDATION_SEAL, WEIGHTS_SEAL = "validation_sha256", "weights_sha256"
"""Keys of a result: the SHA-256 of the losses of the last evaluation, and of the weights."""

_EXPECTED: dict[str, Kinds] = {
    "architecture": str, "seed": int, "tokens": int, "loss": NUMBER, "bits_per_byte?": MAYBE_NUMBER,
    "context_gain?": MAYBE_NUMBER,
    "tokens_per_second?": MAYBE_NUMBER, "train_seconds?": MAYBE_NUMBER, "versions?": dict, "training?": dict,
    "branches?": list, "sha256?": str, VALIDATION_SEAL + "?": str, WEIGHTS_SEAL + "?": str,
}  # fmt: skip

_REMEDY = "Restore it from a copy, or train the trial again."


def read_result(folder: Path, config: TrialConfig) -> dict[str, Any] | None:
    """Return the result of the trial in `folder`; None if it has not written one.

    Results of version 1 have no hash. They are accepted, because retraining is expensive: they were renamed into place
    after fsync, so they are never half-written, but later changes go unnoticed.

    Raises:
        StorageError: If the result is damaged, or is not that of a trial with the settings `config`.
    """
    path = folder / RESULT
    result = find_table(path, _EXPECTED, _REMEDY)
    if result is None:
        return None
    if "sha256" not in result and result.get("schema_version") != 1:
        raise StorageError(f"{path}: is damaged: it has no sha256. {_REMEDY}")
    expected = {
        "architecture": Architecture.parse(config.architecture).name,
        "seed": config.seed,
        "tokens": config.training.tokens,
    }
    for key, value in expected.items():
        if result[key] != value:
            raise StorageError(f"{path}: {key} is {result[key]!r}, but trial.json requires {value!r}. {_REMEDY}")
    if not math.isfinite(result["loss"]):
        raise StorageError(f"{path}: the loss is {result['loss']}. {_REMEDY}")
    return result


def complete_result(folder: Path, config: TrialConfig) -> dict[str, Any] | None:
    """Return the result if it is intact and the trial reached its data budget with a finite loss, else None."""
    try:
        return read_result(folder, config)
    except StorageError:
        return None


def validation_file(folder: Path, tokens: int, is_branch: bool = False) -> Path:
    """Return the file with the losses of the validation examples after `tokens` tokens, or at the end of a branch."""
    return folder / "validation" / f"{'branch-' * is_branch}{tokens:015d}.npy"


def check_file(path: Path, result: dict[str, Any], seal: str) -> None:
    """Check a file of a complete trial against its SHA-256 in `result`; results of earlier versions do not have it.

    Raises:
        DataError: If the file was changed or cannot be read.
    """
    if seal in result and file_sha256(path) != result[seal]:
        raise DataError(f"{path}: does not match its sha256 in {RESULT}, so it was changed. {_REMEDY}")
