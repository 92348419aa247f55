"""`python -m march_search.training [--once] DIR [--until TOKENS]`: trains the trial in DIR, or says why not.

To its end, or until TOKENS: it is evaluated there, leaves a checkpoint, and goes on when it is started again.
Exit codes: 0 complete, or at TOKENS; 1 failed, reason in failure.json; 2 trial.json or TOKENS cannot be meant; 130 and
143 interrupted after a checkpoint: the same command goes on from it. Out of memory is no failure at first: the trial
starts again from its last checkpoint with half the micro batch, up to six times; one that hangs starts again, too.
With --once it leaves that to who started it, and ends with 75 or 76. This process only watches: each rank is a process
below it.
"""

import os
import shutil
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from march_search import outcome
from march_search.config import TrainingConfig, TrialConfig
from march_search.errors import ConfigError, MarchSearchError, StorageError, UsageError
from march_search.files import DISK_TROUBLE, lock, read_json, write_json
from march_search.settings import build, read_file
from march_search.training import launch, ranks, supervisor

OUT_OF_MEMORY = "out_of_memory"
"""State of a failure that a smaller micro batch may mend."""


def main(arguments: list[str]) -> int:
    """Runs one trial; returns the exit code."""
    told_so = _understood(arguments)
    if told_so is None:
        print(
            "usage: python -m march_search.training [--once] DIR [--until TOKENS]   (DIR holds trial.json)",
            file=sys.stderr,
        )
        return 2
    folder, until, once = told_so
    launch.take_part()
    ranks.die_with_parent()  # before torch is loaded: that takes seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is to be saved yet, and a traceback would help nobody
    if "RANK" in os.environ:
        ranks.answer()
    # Idle OpenMP threads wait a moment and then sleep. By default they spin: beside one other busy process, two threads
    # on two cores trained at 7k instead of 12k tokens/s, at worst at a seventh. Read when torch is loaded: set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    told = dict(os.environ)  # joining a process group changes it
    code = _guarded(folder, until, once)
    if code and "RANK" not in told and _goes_on(folder):
        if once:
            return outcome.SMALLER
        # A new program in this process: what held the memory is gone; its number and its parent stay.
        os.execve(sys.executable, [sys.executable, "-m", "march_search.training", *arguments], told)
    return code


def _understood(arguments: list[str]) -> tuple[Path, int | None, bool] | None:
    """The trial's folder, after how many tokens to pause, and whether to start once; None for anything else."""
    once = "--once" in arguments
    match [argument for argument in arguments if argument != "--once"]:
        case [folder] if not folder.startswith("-"):
            return Path(folder), None, once
        case [folder, "--until", tokens] if not folder.startswith("-") and tokens.isdecimal():
            return Path(folder), int(tokens), once
    return None


def _guarded(folder: Path, until: int | None, once: bool) -> int:
    """The exit code of the trial, its failure written down."""
    try:
        return _run(folder, until, once)
    except ranks.InterruptedTrialError as stop:
        return stop.exit_code
    except MarchSearchError as error:
        return _failed(folder, str(error), error.exit_code, getattr(error, "state", "failed"))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            where = error.filename or folder
            return _failed(folder, f"{where}: cannot be written: {error.strerror}.", StorageError.exit_code)
        from march_search.training.fitting import is_out_of_memory

        if is_out_of_memory(error):
            return _failed(folder, f"out of memory: {_in_words(error)}", 1, OUT_OF_MEMORY)
        with suppress(OSError):
            traceback.print_exc()
        return _failed(folder, _in_words(error), 1)


def _run(folder: Path, until: int | None, once: bool) -> int:
    """The trial, in this process or in one process a rank."""
    config = build(TrialConfig, read_file(folder / "trial.json"), str(folder / "trial.json"))
    try:
        _ = config.batch
    except ConfigError as error:
        raise ConfigError(f"{folder / 'trial.json'}: {error}") from None
    last = _last_step(config.training, until)
    if outcome.complete(folder, config) is not None:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a kill may have come before they were removed
        print(f"{folder}: is complete already.", file=sys.stderr)
        return 0
    if "RANK" in os.environ:
        return _train(folder, config, last)
    with lock(folder / "lock", f"{folder} is being trained by another process: wait for it, or stop it first."):
        (folder / "failure.json").unlink(missing_ok=True)
        more = [] if until is None else ["--until", str(until)]
        return supervisor.supervise(folder, config.devices, more, once)


def _last_step(training: TrainingConfig, until: int | None) -> int:
    """The step after which to stop: that of `until` tokens, or the trial's last."""
    if until is None:
        return training.steps
    batch = training.global_batch_tokens
    if not 0 < until <= training.tokens or until % batch:
        near = min(max(1, round(until / batch)), training.steps) * batch
        raise UsageError(
            f"--until {until}: must be a multiple of global_batch_tokens ({batch:,}) up to tokens "
            f"({training.tokens:,}); the nearest is {near}."
        )
    return until // batch


def _train(folder: Path, config: TrialConfig, last_step: int) -> int:
    """The trial, in this process."""
    from march_search.training.loop import train

    train(folder, config, last_step)
    return 0


def _goes_on(folder: Path) -> bool:
    """Whether a trial that failed may start again with half its micro batch; where not, failure.json says so."""
    from march_search.training import fitting

    told = read_json(folder / "failure.json")
    if not isinstance(told, dict) or told.get("state") != OUT_OF_MEMORY:
        return False
    config = build(TrialConfig, read_file(folder / "trial.json"), str(folder / "trial.json"))
    if fitting.halve(folder, config):
        ranks.say("out of memory: starting again with half the micro batch.")
        return True
    times = fitting.halvings(folder)
    write_json(folder / "failure.json", told | {"state": "infeasible_memory", "halvings": times})
    return False


def _failed(folder: Path, reason: str, code: int, state: str = "failed") -> int:
    """Says why, on stderr and beside the trial; a rank in a file of its own."""
    name = f"failure.rank{os.environ['RANK']}.json" if "RANK" in os.environ else "failure.json"
    ranks.say(reason)
    try:
        write_json(folder / name, {"state": state, "reason": reason, "exit_code": code})
    except MarchSearchError:
        if code != StorageError.exit_code:  # else that is what the line above says
            ranks.say(f"{folder}: {name} cannot be written.")
    return code


def _in_words(error: Exception) -> str:
    """An unexpected exception as one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a log on a full disk
            stream.flush()
    # Past this point nothing is left to write. Unloading torch after gloo was used aborts now and then (one run of two
    # ranks in six: "terminate called without an active exception") and would turn a complete trial's code into 134.
    os._exit(code)
