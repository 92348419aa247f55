"""Runs the work of a check in a separate process, started like a trial, with a time limit."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from march_search.config import DevicesConfig
from march_search.errors import TrialError
from march_search.files import read_json
from march_search.study.child import Child

POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Bench:
    """Working folder of the checks, and the time limit of each of their processes."""

    folder: Path
    """Working folder."""
    seconds: float
    """Time limit of each process."""

    def work(self, name: str) -> dict[str, Any]:
        """Run `march_search.doctor.worker` for the work `name` and return its result."""
        command = (sys.executable, "-m", "march_search.doctor.worker", name)
        return self.run(command, self.folder / name, "found.json")

    def run(
        self, command: Sequence[str], folder: Path, answer: str, watch: Callable[[Child], None] | None = None
    ) -> dict[str, Any]:
        """Run `command FOLDER` and return the content of the file `answer` that it writes to `folder`.

        Args:
            command: program and arguments; it writes `answer`, or failure.json.
            folder: folder of the process, created if it does not exist; the output goes to trial.log there.
            answer: name of a JSON file.
            watch: function that is called with the running child at every poll.

        Raises:
            TrialError: If the process did not write `answer`, or exceeded the time limit. All its processes are killed.
        """
        folder.mkdir(exist_ok=True)
        child, began = Child.start(folder, DevicesConfig(), command), time.monotonic()
        try:
            while child.process.poll() is None:
                if watch:
                    watch(child)
                if time.monotonic() - began > self.seconds:
                    raise TrialError(
                        f"did not finish within {self.seconds:g} s and was killed (see --timeout){_last_words(folder)}"
                    )
                time.sleep(POLL_SECONDS)
        finally:
            child.kill()
        result = read_json(folder / answer)
        if child.process.returncode or not isinstance(result, dict):
            raise TrialError(_why(child))
        return result


def _why(child: Child) -> str:
    """Return why the process failed."""
    code = child.process.returncode
    if (child.folder / "failure.json").is_file() or code < 0:
        return child.failure()[1]
    return f"the process exited with code {code}{'' if code else ' without a result'}{_last_words(child.folder)}"


def _last_words(folder: Path) -> str:
    """Return the last line of the log, as the end of a sentence."""
    lines = (folder / "trial.log").read_text(errors="replace").strip().splitlines()
    return f"; the last line of its log: {lines[-1][:200]}" if lines else ""
