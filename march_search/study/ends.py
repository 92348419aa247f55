"""Build the outcome of a trial from its folder or process, and report it to Optuna."""

import math
import signal
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from march_search import outcome
from march_search.config import TrialConfig
from march_search.errors import StorageError
from march_search.files import read_json
from march_search.settings import build
from march_search.study.child import Child

INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of a process that was asked to stop."""

End = dict[str, Any]
"""Content of outcome.json."""


def complete(folder: Path) -> End | None:
    """Return the outcome of a trial that reached its data budget; None for any other trial."""
    config = build(TrialConfig, read_json(folder / "trial.json"), str(folder / "trial.json"))
    result = outcome.complete(folder, config)
    if result is None:
        return None
    gain, speed = result.get("context_gain"), result.get("tokens_per_second")
    text = f"loss {result['loss']:.4f}" + ("" if gain is None else f", context gain {gain:.3f}")
    text += "" if speed is None else f", {speed:,.0f} tokens/s"
    return {"state": "complete", "tokens": result["tokens"], "loss": result["loss"], "text": text}


def failed(child: Child) -> End | None:
    """Return the outcome of a process that exited without a result; None if it was asked to stop.

    Raises:
        StorageError: If it could not write. The trial has not failed; it resumes once there is disk space.
    """
    if child.process.returncode in INTERRUPTED:
        return None
    state, text = child.failure()
    if child.process.returncode == StorageError.exit_code:
        raise StorageError(text)
    return {"state": state, "tokens": None, "loss": None, "text": text}


def pruned(loss: float, tokens: int, reason: str) -> End:
    """Return the outcome of a trial that was stopped because of its loss."""
    text = f"loss {loss:.4f} after {tokens:,} tokens"
    return {"state": "pruned", "tokens": tokens, "loss": loss, "text": text, "reason": reason}


def tell(storage: BaseStorage, trial: FrozenTrial, end: End) -> None:
    """Close the trial in Optuna, as failed if its loss is not finite; raise if it is already closed.

    `Study.tell` accepts an infinite loss, and makes twice as many storage calls under a lock that all workers share.
    """
    state, values = TrialState.FAIL, None
    if end["state"] in ("complete", "pruned") and math.isfinite(end["loss"]):
        state = TrialState.COMPLETE if end["state"] == "complete" else TrialState.PRUNED
        values = [float(end["loss"])]
    else:
        storage.set_trial_user_attr(trial._trial_id, "reason", end["text"])
    storage.set_trial_state_values(trial._trial_id, state, values)
