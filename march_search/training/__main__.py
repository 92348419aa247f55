"""`python -m march_search.training DIR [--ranks N]`: trains the trial in DIR to its end, or says why not.

Exit codes: 0 complete; 1 failed, reason in failure.json; 2 trial.json cannot be meant; 130 and 143 interrupted after a
checkpoint: the same command goes on from it.
"""

import os
import sys
import traceback
from pathlib import Path

from march_search import outcome
from march_search.config import TrialConfig
from march_search.errors import ConfigError, MarchSearchError
from march_search.files import lock, write_json
from march_search.settings import build, read_file
from march_search.training import ranks


def main(arguments: list[str]) -> int:
    """Runs one trial; returns the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m march_search.training DIR   (DIR holds trial.json)", file=sys.stderr)
        return 2
    ranks.die_with_parent()  # before torch is loaded: that takes seconds
    folder = Path(arguments[0])
    # Idle OpenMP threads wait a moment and then sleep. By default they spin: beside one other busy process, two threads
    # on two cores trained at 7k instead of 12k tokens/s, at worst at a seventh. Read when torch is loaded: set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        return _run(folder)
    except ranks.InterruptedTrialError as stop:
        return stop.exit_code
    except MarchSearchError as error:
        return _failed(folder, str(error), error.exit_code)
    except MemoryError:
        return _failed(folder, "out of memory: make micro_batch_sequences smaller.", 1)
    except Exception as error:
        traceback.print_exc()
        return _failed(folder, _in_words(error), 1)


def _run(folder: Path) -> int:
    """The trial, in this process or in one process a rank."""
    config = build(TrialConfig, read_file(folder / "trial.json"), str(folder / "trial.json"))
    try:
        plan = config.batch
    except ConfigError as error:
        raise ConfigError(f"{folder / 'trial.json'}: {error}") from None
    if outcome.complete(folder, config) is not None:
        print(f"{folder}: is complete already.", file=sys.stderr)
        return 0
    if "RANK" in os.environ:
        return _train(folder, config)
    with lock(folder / "lock", f"{folder} is being trained by another process: wait for it, or stop it first."):
        (folder / "failure.json").unlink(missing_ok=True)
        return ranks.supervise(folder, plan.ranks) if plan.ranks > 1 else _train(folder, config)


def _train(folder: Path, config: TrialConfig) -> int:
    """The trial, in this process."""
    from march_search.training.loop import train

    train(folder, config)
    return 0


def _failed(folder: Path, reason: str, code: int) -> int:
    """Says why, on stderr and beside the trial; one of several ranks in a file of its own."""
    name = f"failure.rank{os.environ['RANK']}.json" if os.environ.get("WORLD_SIZE", "1") != "1" else "failure.json"
    print(f"march-search: {reason}", file=sys.stderr)
    try:
        write_json(folder / name, {"reason": reason, "exit_code": code})
    except MarchSearchError:
        print(f"march-search: {folder}: failure.json cannot be written.", file=sys.stderr)
    return code


def _in_words(error: Exception) -> str:
    """An unexpected exception as one line."""
    text = " ".join(str(error).split())[:300]
    if "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return f"out of memory: make micro_batch_sequences smaller ({text})"
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Past this point nothing is left to write. Unloading torch after gloo was used aborts now and then (one run of two
    # ranks in six: "terminate called without an active exception") and would turn a complete trial's code into 134.
    os._exit(code)
