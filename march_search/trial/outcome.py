"""How a trial ended: exit codes of its process, the states of failed trials, and the content of outcome.json."""

import signal
from pathlib import Path
from types import NoneType
from typing import Any

from march_search.errors import MarchSearchError
from march_search.files.json_tables import MAYBE_NUMBER, Kinds, find_table, sealed, write_json
from march_search.trial.result import complete_result
from march_search.trial.settings import read_settings

SMALLER, HUNG = 75, 76
"""Exit codes of a trial that must be restarted: with a smaller micro batch, or because no rank made progress."""

KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Exit codes of a trial whose own process or one of whose ranks was killed."""

FAILURES = ("failed", "diverged", "infeasible_memory")
"""States in failure.json of a trial that ended without a result. A study may retry trials in state `failed`."""

_KERNEL_COUNTS = Path("/proc/vmstat")


def memory_kills() -> int | None:
    """Return how many processes the Linux OOM killer has killed since boot; None if the kernel does not count them."""
    try:
        lines = _KERNEL_COUNTS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def ran_out_of_memory(kills_before: int | None) -> bool | None:
    """Return whether the OOM killer was active since `kills_before`, from `memory_kills()`; None if that is unknown."""
    kills = memory_kills()
    return None if kills is None or kills_before is None else kills > kills_before


def kill_reason(kills_before: int | None) -> str:
    """Return the likely cause of a SIGKILL, as the end of a sentence.

    Args:
        kills_before: `memory_kills()` at the start of the process.
    """
    is_memory = ran_out_of_memory(kills_before)
    if is_memory is None:
        return "the machine may have run out of memory"
    if is_memory:
        return "the machine ran out of memory; decrease micro_batch_sequences or add memory"
    return "another process sent it; the machine did not run out of memory"


TrialOutcome = dict[str, Any]
"""Content of outcome.json."""

OUTCOME = "outcome.json"
"""Name of the file in a trial's folder."""

_EXPECTED: dict[str, Kinds] = {
    "state": str, "text?": str, "reason?": str, "taken_from?": str, "loss?": MAYBE_NUMBER, "tokens?": (int, NoneType),
}  # fmt: skip


def write_outcome(folder: Path, outcome: TrialOutcome) -> None:
    """Write outcome.json with its seal, atomically.

    Raises:
        StorageError: If it cannot be written.
    """
    write_json(folder / OUTCOME, sealed(outcome))


def read_outcome(folder: Path) -> TrialOutcome | None:
    """Return the outcome of the trial in `folder`; None if it has not ended.

    Raises:
        StorageError: If outcome.json is damaged.
    """
    outcome = find_table(folder / OUTCOME, _EXPECTED)
    return outcome and {key: value for key, value in outcome.items() if key != "sha256"}


def completed_outcome(folder: Path) -> TrialOutcome | None:
    """Return the outcome of a trial that reached its data budget; None for any other trial."""
    try:
        result = complete_result(folder, read_settings(folder))
    except MarchSearchError:  # trial.json is damaged; the process that trains the trial reports it
        return None
    if result is None:
        return None
    bits, gain, speed = (result.get(key) for key in ("bits_per_byte", "context_gain", "tokens_per_second"))
    text = f"loss {result['loss']:.4f}" + ("" if bits is None else f" ({bits:.4f} bits/byte)")
    text += "" if gain is None else f", context gain {gain:.3f}"
    text += "" if speed is None else f", {speed:,.0f} tokens/s"
    return {"state": "complete", "tokens": result["tokens"], "loss": result["loss"], "text": text}


def pruned_outcome(loss: float, tokens: int, reason: str) -> TrialOutcome:
    """Return the outcome of a trial that was stopped because of its loss."""
    text = f"loss {loss:.4f} after {tokens:,} tokens"
    return {"state": "pruned", "tokens": tokens, "loss": loss, "text": text, "reason": reason}
