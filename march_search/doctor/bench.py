"""Run each check in a separate process with a time limit, and record its finding."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from march_search.config import DevicesConfig
from march_search.errors import MarchSearchError, TrialError
from march_search.files.json_tables import read_json
from march_search.storage.trial_process import TrialProcess


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    state: Literal["ok", "note", "failed"]
    """`note`: nothing is broken, but something that the user may want is missing."""
    text: str
    """What the check found, as text."""
    fix: str = ""
    """Suggested fix; empty if there is nothing to do."""
    values: dict[str, Any] = field(default_factory=dict)
    """Values behind the text, for JSON output."""


NEW_ENVIRONMENT = "create a new environment with the versions in constraints.txt"

Check = Callable[[], Finding]


def row(name: str, check: Check) -> dict[str, Any]:
    """Run a check and return its finding as a table row; a check that raises has failed."""
    start = time.monotonic()
    try:
        finding = check()
    except Exception as error:
        finding = Finding("failed", in_words(error), f"rerun with --only {name}; if it fails again, {NEW_ENVIRONMENT}")
    return {"check": name} | asdict(finding) | {"seconds": round(time.monotonic() - start, 3)}


def in_words(error: Exception) -> str:
    """Format an exception as one line."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    return text if isinstance(error, MarchSearchError) else f"{type(error).__name__}: {text}"


POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Bench:
    """Working folder of the checks, and the time limit of each of their processes."""

    folder: Path
    """Working folder."""
    seconds: float
    """Time limit of each process."""

    def work(self, name: str) -> dict[str, Any]:
        """Run `march_search.doctor.probe` for the work `name` and return its result."""
        command = (sys.executable, "-m", "march_search.doctor.probe", name)
        return self.run(command, self.folder / name, "found.json")

    def run(
        self, command: Sequence[str], folder: Path, answer: str, watch: Callable[[TrialProcess], None] | None = None
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
        child, began = TrialProcess.start(folder, DevicesConfig(), command), time.monotonic()
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


def _why(child: TrialProcess) -> str:
    """Return why the process failed."""
    code = child.process.returncode
    if (child.folder / "failure.json").is_file() or code < 0:
        return child.failure()[1]
    return f"the process exited with code {code}{'' if code else ' without a result'}{_last_words(child.folder)}"


def _last_words(folder: Path) -> str:
    """Return the last line of the log, as the end of a sentence."""
    lines = (folder / "trial.log").read_text(errors="replace").strip().splitlines()
    return f"; the last line of its log: {lines[-1][:200]}" if lines else ""
