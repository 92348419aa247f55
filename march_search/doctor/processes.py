"""Work done in a process of its own, started like a trial, with an end after so many seconds whatever happens."""

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
    """Where the checks work, and how long each of their processes may take."""

    folder: Path
    seconds: float

    def work(self, name: str) -> dict[str, Any]:
        """What `worker` found, asked for this piece of work."""
        command = (sys.executable, "-m", "march_search.doctor.worker", name)
        return self.run(command, self.folder / name, "found.json")

    def run(
        self, command: Sequence[str], folder: Path, answer: str, watch: Callable[[Child], None] | None = None
    ) -> dict[str, Any]:
        """What `command FOLDER` wrote to the file `answer` in `folder`, which is made if it is not there.

        Args:
            command: a program that leaves `answer`, or failure.json.
            folder: its own; its output goes to trial.log there.
            answer: a JSON file.
            watch: is called with the running child now and then.

        Raises:
            TrialError: it ended without an answer, or did not end; none of its processes is left.
        """
        folder.mkdir(exist_ok=True)
        child, began = Child.start(folder, DevicesConfig(), command), time.monotonic()
        try:
            while child.process.poll() is None:
                if watch:
                    watch(child)
                if time.monotonic() - began > self.seconds:
                    raise TrialError(
                        f"did not end within {self.seconds:g} s and was killed (--timeout){_last_words(folder)}"
                    )
                time.sleep(POLL_SECONDS)
        finally:
            child.kill()
        told = read_json(folder / answer)
        if child.process.returncode or not isinstance(told, dict):
            raise TrialError(_why(child))
        return told


def _why(child: Child) -> str:
    """How the process failed."""
    code = child.process.returncode
    if (child.folder / "failure.json").is_file() or code < 0:
        return child.failure()[1]
    return f"the process ended with code {code}{'' if code else ' and no answer'}{_last_words(child.folder)}"


def _last_words(folder: Path) -> str:
    """The end of the log, as the end of a sentence."""
    lines = (folder / "trial.log").read_text(errors="replace").strip().splitlines()
    return f"; the last line of its log: {lines[-1][:200]}" if lines else ""
