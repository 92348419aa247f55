"""Train the trial in DIR: `python -m march_search.training [--once] DIR [--until TOKENS]`.

The trial trains to the end of its data budget. With --until, it pauses after TOKENS: it is evaluated, writes a
checkpoint, and resumes when it is started again.

Exit codes:
    0: the trial is complete, or has reached TOKENS.
    1: the trial failed; failure.json contains the reason. Also 4 for a storage error and 5 for a data error.
    2: trial.json or TOKENS is invalid.
    75, 76: with --once only, the trial ran out of memory or hung, and should be started again.
    137: a rank was killed; the same command resumes the trial.
    130, 143: the trial was interrupted after a checkpoint; the same command resumes it.

After running out of memory, the trial restarts from its last checkpoint with half the micro batch, up to six times. A
trial that hangs is restarted once. With --once, the caller restarts it instead. This process only supervises; each rank
runs in a child process.
"""

import logging
import os
import shutil
import signal
import sys
import traceback
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from march_search.config import TrainingConfig, TrialConfig
from march_search.errors import ConfigError, MarchSearchError, StorageError, UsageError, visible
from march_search.files.atomic import DISK_TROUBLE, lock
from march_search.files.json_tables import read_json, set_aside, write_json
from march_search.processes import die_with_parent
from march_search.training import launch, ranks, supervisor
from march_search.trial import outcome, result, settings

_LOGGER = logging.getLogger("march_search.training")  # `__name__` is "__main__" when it runs

OUT_OF_MEMORY = "out_of_memory"
"""State of a failure that a smaller micro batch may fix."""


def main(arguments: list[str]) -> int:
    """Run one trial and return its exit code."""
    parsed = _parse(arguments)
    if parsed is None:
        print(
            "usage: python -m march_search.training [--once] DIR [--until TOKENS]   (DIR contains trial.json)",
            file=sys.stderr,
        )
        return 2
    folder, until, once = parsed
    _log_to_stderr()
    launch.adopt_slurm_rank()
    die_with_parent()  # before importing torch, which takes seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to save yet, so exit without a traceback
    if "RANK" in os.environ:
        ranks.start_heartbeat()
    # Idle OpenMP threads spin by default; make them sleep after a moment instead. Next to one other busy process, two
    # spinning threads on two cores trained at 7k instead of 12k tokens/s, at worst at a seventh of the speed. The
    # variable is read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    environment = dict(os.environ)  # joining a process group changes os.environ
    code = _guarded(folder, until, once)
    if code and "RANK" not in environment and _should_restart(folder):
        if once:
            return outcome.SMALLER
        # Replace the program: this frees all memory but keeps the process id and the parent.
        os.execve(sys.executable, [sys.executable, "-m", "march_search.training", *arguments], environment)
    return code


def _log_to_stderr() -> None:
    """Write the messages of march_search to stderr, which may be a file on a full disk: errors are ignored."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("march-search: %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    logger = logging.getLogger("march_search")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _parse(arguments: list[str]) -> tuple[Path, int | None, bool] | None:
    """Parse the trial folder, the tokens to pause after, and --once; return None if the arguments are invalid."""
    once = "--once" in arguments
    match [argument for argument in arguments if argument != "--once"]:
        case [folder] if not folder.startswith("-"):
            return Path(folder), None, once
        case [folder, "--until", tokens] if not folder.startswith("-") and tokens.isdecimal():
            return Path(folder), int(tokens), once
    return None


def _guarded(folder: Path, until: int | None, once: bool) -> int:
    """Run the trial, record any failure, and return the exit code."""
    try:
        return _run(folder, until, once)
    except ranks.InterruptedTrialError as stop:
        return stop.exit_code
    except MarchSearchError as error:
        return _failed(folder, " ".join(str(error).split()), error.exit_code, getattr(error, "state", "failed"))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            where = error.filename or folder
            return _failed(folder, f"{where}: cannot be written: {error.strerror}.", StorageError.exit_code)
        from march_search.training.micro_batch import is_out_of_memory

        if is_out_of_memory(error):
            return _failed(folder, f"out of memory: {_in_words(error)}", 1, OUT_OF_MEMORY)
        with suppress(OSError):
            traceback.print_exc()
        return _failed(folder, _in_words(error), 1)


def _run(folder: Path, until: int | None, once: bool) -> int:
    """Run one rank in this process, or supervise one process per rank."""
    config = settings.read_settings(folder)
    try:
        _ = config.batch
    except ConfigError as error:
        raise ConfigError(f"{folder / 'trial.json'}: {error}") from None
    os.environ.update(launch.allocator_environment(config.devices.kind, os.environ, version("torch")))
    settings.check_unchanged(folder, config)
    last = _last_step(config.training, until)
    if result.complete_result(folder, config) is not None:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # left over if the trial was killed before
        print(f"{folder}: the trial is already complete.", file=sys.stderr)
        return 0
    if "RANK" in os.environ:
        if os.environ["RANK"] == "0":  # ranks that were started by hand have no supervisor
            settings.keep_started(folder, config)
        return _train(folder, config, last)
    with lock(folder / "lock", f"{folder} is being trained by another process: wait for it to end, or stop it first."):
        settings.keep_started(folder, config)
        (folder / "failure.json").unlink(missing_ok=True)
        _set_aside_result(folder, config)
        more = [] if until is None else ["--until", str(until)]
        return supervisor.supervise(folder, config.devices, more, once)


def _set_aside_result(folder: Path, config: TrialConfig) -> None:
    """Rename a damaged result.json, before a new one is written."""
    try:
        result.read_result(folder, config)
    except StorageError as error:
        kept = set_aside(folder / result.RESULT)
        _LOGGER.warning(f"{error} It is now {kept.name}, and the trial trains again.")


def _last_step(training: TrainingConfig, until: int | None) -> int:
    """Return the step to stop after: the step at `until` tokens, or the last step of the trial."""
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
    """Train in this process."""
    from march_search.training.loop import train

    train(folder, config, last_step)
    return 0


def _should_restart(folder: Path) -> bool:
    """Return whether the trial can restart with half its micro batch; if not, mark it infeasible in failure.json."""
    from march_search.training import micro_batch

    failure = read_json(folder / "failure.json")
    if not isinstance(failure, dict) or failure.get("state") != OUT_OF_MEMORY:
        return False
    try:
        if micro_batch.halve_micro_batch(folder, settings.read_settings(folder)):
            _LOGGER.warning("out of memory: restarting with half the micro batch.")
            return True
        times = micro_batch.halvings(folder)
    except MarchSearchError as error:
        _failed(folder, str(error), error.exit_code)
        return False
    write_json(folder / "failure.json", failure | {"state": "infeasible_memory", "halvings": times})
    return False


def _failed(folder: Path, reason: str, code: int, state: str = "failed") -> int:
    """Report the reason on stderr and in failure.json, or in failure.rankN.json if this process is a rank."""
    name = f"failure.rank{os.environ['RANK']}.json" if "RANK" in os.environ else "failure.json"
    reason = visible(reason)
    _LOGGER.warning(reason)
    try:
        write_json(folder / name, {"state": state, "reason": reason, "exit_code": code})
    except MarchSearchError:
        if code != StorageError.exit_code:  # otherwise the line above already reports it
            _LOGGER.warning(f"{folder}: {name} cannot be written.")
    return code


def _in_words(error: Exception) -> str:
    """Format an unexpected exception as one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the log may be on a full disk
            stream.flush()
    # Exit without unloading torch. After gloo was used, unloading aborts now and then ("terminate called without an
    # active exception", in one of six runs with two ranks), and a complete trial would exit with code 134.
    os._exit(code)
