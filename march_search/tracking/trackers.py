"""Send the metrics of a worker's trials to experiment trackers, from processes beside the training."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from march_search.config import TrackingConfig
from march_search.errors import ConfigError
from march_search.files.json_tables import read_json
from march_search.processes import PARENT, Signals
from march_search.tracking.tracking_process import LIMIT_SECONDS, is_missing, state_file
from march_search.trial.own_trials import find_trials

LONGEST_FAULT = 200
"""Number of characters of a library's error that a warning quotes."""


def check_libraries(config: TrackingConfig) -> None:
    """Check that the libraries of the trackers are installed.

    Raises:
        ConfigError: If one is missing. The message has the command that installs it.
    """
    specs = {name: find_spec(name) for name in config.to}
    missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]  # None: a mere folder
    if missing:
        extras = ",".join(missing)
        raise ConfigError(
            f"[tracking]: to has {' and '.join(missing)}, not installed here: pip install 'march-search[{extras}]'."
        )


@dataclass(kw_only=True)
class _Process:
    """A process that sends metrics."""

    tracker: str
    folders: Sequence[Path]
    log: Path
    process: "subprocess.Popen[bytes]"

    def fault(self) -> str:
        """Return why the process failed, in one line; empty if it did not."""
        code = self.process.poll()
        if not code:
            return ""
        if code == -signal.SIGKILL:
            return f"it did not answer within {LIMIT_SECONDS:.0f} s"
        errors = [str((read_json(state_file(self.tracker, folder)) or {}).get("error", "")) for folder in self.folders]
        error = next(filter(None, errors), f"its process ended with code {code}")
        return error if len(error) <= LONGEST_FAULT else f"{error[:LONGEST_FAULT]}…"


class Trackers:
    """Context manager of the processes that send the metrics of a worker's trials. Threads may share it.

    Without `with`, the processes of trials that stopped end by themselves, at most `LIMIT_SECONDS` later.
    """

    def __init__(
        self,
        config: TrackingConfig,
        study: Path,
        say: Callable[[str], None],
        later: str = "The end of the study or the same command again",
    ) -> None:
        """Prepare to send to the trackers of `config` what the study in the folder `study` trains.

        Args:
            config: The trackers; none of them is loaded in this process.
            study: Folder of the study.
            say: Prints a warning. There is at most one per tracker.
            later: What sends later what is missing, as the beginning of a sentence.
        """
        self._config, self._study, self._say, self._later = config, study, say, later
        self._processes: list[_Process] = []
        self._warned: set[str] = set()
        self._lock = threading.RLock()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for running in self._processes:
            _close(running)

    def start(self, folder: Path) -> None:
        """Start to send the metrics of a trial that starts or resumes."""
        with self._lock:
            for name in self._config.to:
                self._start(name, [folder], folder / f"tracking-{name}.log")

    def stop(self, folder: Path) -> None:
        """Close the runs of a trial that no longer runs here; does not wait."""
        with self._lock:
            for running in self._processes:
                if folder in running.folders:
                    _close(running)

    def look(self) -> None:
        """Forget processes that ended, and warn of the first one of each tracker that failed."""
        with self._lock:
            for running in [running for running in self._processes if running.process.poll() is not None]:
                self._processes.remove(running)
                _close(running)
                if (fault := running.fault()) and running.tracker not in self._warned:
                    self._warned.add(running.tracker)
                    self._say(
                        f"{running.tracker}: metrics were not sent: {fault}. No trial is affected. {self._later} "
                        f"sends what is missing (see {running.log})"
                    )

    def send_missing(self, with_parent: bool = True) -> None:
        """Start to send what the trackers lack of trials with an outcome; does not wait.

        Args:
            with_parent: Whether the processes die with this one.
        """
        folders = [trial.folder for trial in find_trials(self._study).trials] if self._config.to else []
        with self._lock:
            for name in self._config.to:
                missing = [folder for folder in folders if is_missing(name, folder)]
                if missing:
                    self._start(name, missing, self._study / f"tracking-{name}.log", with_parent)
                    self.stop(missing[0])

    def finish(self, signals: Signals) -> None:
        """Wait until all runs are closed; at the end of a study, send what is missing of trials with an outcome.

        A signal during a wait kills the processes. After a signal, what is missing is not sent.
        """
        self._wait(signals)
        if signals.signum:
            return
        self.send_missing()
        self._wait(signals)

    def _start(self, name: str, folders: Sequence[Path], log: Path, with_parent: bool = False) -> None:
        """Start a process that sends the metrics of trials; `with_parent` if it dies with this one."""
        command = [sys.executable, "-m", "march_search.tracking.tracking_process", name, self._config.project]
        parent = {PARENT: str(os.getpid())} if with_parent else {}
        environment = {key: value for key, value in os.environ.items() if key != PARENT} | parent
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [*command, *map(str, folders)], stdin=subprocess.PIPE, stdout=output, stderr=output,
                    env=environment | {"CUDA_VISIBLE_DEVICES": ""}, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            if name not in self._warned:
                self._warned.add(name)
                self._say(f"{name}: metrics were not sent: {log}: {error.strerror}. No trial is affected")
            return
        self._processes.append(_Process(tracker=name, folders=folders, log=log, process=process))

    def _wait(self, signals: Signals) -> None:
        """Wait until no process is left, or for a further signal, which kills them."""
        for running in self._processes:
            _close(running)
        times = signals.times
        while self._processes:
            self.look()
            if signals.times > times:
                for running in self._processes:
                    running.process.kill()
                    running.process.wait()
                self._processes.clear()
            time.sleep(0.05 if self._processes else 0)


def _close(running: _Process) -> None:
    """Tell a process that its trial stopped."""
    if running.process.stdin:
        running.process.stdin.close()
