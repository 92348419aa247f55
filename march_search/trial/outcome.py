"""How a trial ended: exit codes of its process, the states of failed trials, and the content of outcome.json."""

from pathlib import Path
from typing import Any

from march_search.config import TrialConfig
from march_search.config.loader import build
from march_search.files import read_json
from march_search.trial.result import complete_result

SMALLER, HUNG = 75, 76
"""Exit codes of a trial that must be restarted: with a smaller micro batch, or because no rank made progress."""

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


def kill_reason(kills_before: int | None) -> str:
    """Return the likely cause of a SIGKILL, as the end of a sentence.

    Args:
        kills_before: `memory_kills()` at the start of the process.
    """
    kills = memory_kills()
    if kills is None or kills_before is None:
        return "the machine may have run out of memory"
    if kills > kills_before:
        return "the machine ran out of memory; decrease micro_batch_sequences or add memory"
    return "another process sent it; the machine did not run out of memory"


TrialOutcome = dict[str, Any]
"""Content of outcome.json."""


def completed_outcome(folder: Path) -> TrialOutcome | None:
    """Return the outcome of a trial that reached its data budget; None for any other trial."""
    config = build(TrialConfig, read_json(folder / "trial.json"), str(folder / "trial.json"))
    result = complete_result(folder, config)
    if result is None:
        return None
    gain, speed = result.get("context_gain"), result.get("tokens_per_second")
    text = f"loss {result['loss']:.4f}" + ("" if gain is None else f", context gain {gain:.3f}")
    text += "" if speed is None else f", {speed:,.0f} tokens/s"
    return {"state": "complete", "tokens": result["tokens"], "loss": result["loss"], "text": text}


def pruned_outcome(loss: float, tokens: int, reason: str) -> TrialOutcome:
    """Return the outcome of a trial that was stopped because of its loss."""
    text = f"loss {loss:.4f} after {tokens:,} tokens"
    return {"state": "pruned", "tokens": tokens, "loss": loss, "text": text, "reason": reason}
