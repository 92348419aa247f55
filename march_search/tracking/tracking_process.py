"""Send the metrics of trials to a tracker: `python -m march_search.tracking.tracking_process NAME PROJECT FOLDER ...`.

A worker starts one such process per running trial and tracker, so that training neither waits for a tracker nor fails
with it. The process reads metrics.jsonl as it grows. The end of its standard input, also by the death of the worker,
means that the trial stopped: it sends the rest and closes the run. `tracking-NAME.json` in the trial's folder has the
last step that was sent, and the state of the outcome once all is sent.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from march_search.errors import MarchSearchError, StorageError
from march_search.files.atomic import lock, one_line
from march_search.files.json_tables import read_json, write_json
from march_search.processes import die_with_parent
from march_search.tracking.libraries import OPENERS, Rows, RunInfo
from march_search.trial.metrics import MetricsTail
from march_search.trial.outcome import TrialOutcome, read_outcome

LIMIT_SECONDS = 60.0
"""Seconds that a tracker may take to send the rest of a trial that stopped; then its process is killed."""

POLL_SECONDS = 1.0
"""Seconds between two reads of metrics.jsonl."""


def state_file(tracker: str, folder: Path) -> Path:
    """Return the file in a trial's folder that says what was sent: `step`, and `ended` once all was sent."""
    return folder / f"tracking-{tracker}.json"


def _outcome(folder: Path) -> TrialOutcome | None:
    """Return a trial's outcome; None if it has none that can be read."""
    try:
        return read_outcome(folder)
    except StorageError:
        return None


def is_missing(tracker: str, folder: Path) -> bool:
    """Return whether the tracker lacks something of a trial with an outcome."""
    outcome, sent = _outcome(folder), read_json(state_file(tracker, folder)) or {}
    return outcome is not None and sent.get("ended") != outcome["state"]


class _Stop(threading.Thread):
    """Waits for the end of standard input, and then kills this session unless a trial is sent in time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.asked = threading.Event()
        """Set at the end of standard input."""
        self.begun = 0.0
        """Time from which the limit counts."""

    def run(self) -> None:
        """Wait."""
        while os.read(0, 64):
            pass
        self.begun = time.monotonic()
        self.asked.set()
        while time.monotonic() < self.begun + LIMIT_SECONDS:
            time.sleep(0.2)
        os.killpg(0, signal.SIGKILL)


def follow(tracker: str, project: str, folder: Path, asked: threading.Event) -> None:
    """Send the metrics of a trial until `asked` is set, then the rest, and close the run.

    The newest step is sent once a later one exists or the trial has an outcome, because an evaluation may still be
    added to it. Steps that a resumed trial repeats are not sent again.
    """
    with lock(folder / f".tracking-{tracker}"):  # an earlier process may still send the rest
        known: dict[str, Any] = read_json(state_file(tracker, folder)) or {}
        if _outcome(folder) and not is_missing(tracker, folder):
            return
        run = OPENERS[tracker](RunInfo.of(folder, project))
        sent = known.get("step", -1) if run.step is None else run.step
        write_json(state_file(tracker, folder), {"step": sent})
        tail, steps = MetricsTail(folder), dict[int, dict[str, float]]()
        stopped = False
        while not stopped:
            stopped = asked.wait(POLL_SECONDS)
            outcome = _outcome(folder) if stopped else None
            is_whole = outcome is not None and outcome["state"] != "failed"  # else it may repeat its newest step
            resets, lines = tail.resets, tail.new_lines()
            if tail.resets > resets:
                steps.clear()
            for line in lines:
                if line.get("step", -1) > sent:
                    steps.setdefault(line["step"], {}).update(_values(line))
            ready: Rows = sorted(steps.items())[: None if is_whole else -1]
            if ready:
                run.log(ready)
                sent = ready[-1][0]
                steps = {step: values for step, values in steps.items() if step > sent}
                if run.is_safe:
                    write_json(state_file(tracker, folder), {"step": sent})
        run.end(outcome["state"] if outcome else "interrupted")
        write_json(state_file(tracker, folder), {"step": sent} | ({"ended": outcome["state"]} if outcome else {}))


def _values(line: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a line, such as `train/loss`, and its tokens.

    Of a decay branch, only the evaluation is sent, as `branch_500000/loss` at the step at which the branch begins.
    """
    if line["kind"] == "branch_train":
        return {}
    kind = f"branch_{line['branch']}" if "branch" in line else line["kind"]
    numbers = {name: value for name, value in line.items() if type(value) in (int, float) and name != "step"}
    return {f"{kind}/{name}" if name != "tokens" else name: value for name, value in numbers.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Send the metrics of the trials in FOLDER ... to the tracker NAME, and return the exit code."""
    tracker, project, *folders = sys.argv[1:] if arguments is None else arguments
    os.nice(10)
    die_with_parent()
    with suppress(ImportError):  # follow reports it
        import_module(tracker)  # takes seconds, which are not the server's
    stop = _Stop()
    stop.start()
    for folder in map(Path, folders):
        stop.begun = time.monotonic()
        try:
            follow(tracker, project, folder, stop.asked)
        except Exception as error:  # of whatever library
            traceback.print_exc()
            file = state_file(tracker, folder)
            known = read_json(file) or {}
            try:
                write_json(file, known | {"error": one_line(error)})
            except MarchSearchError:
                traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a library whose server does not answer may wait at exit
