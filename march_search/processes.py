"""Child processes that die with their parent, and signals that ask a process to stop."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from types import FrameType

PARENT = "MARCH_SEARCH_PARENT"
"""Environment variable with the process ID of the parent with which a child dies."""


def die_with_parent() -> None:
    """Ask Linux to kill this process when the parent given by `PARENT` dies for any reason.

    A rank started by another launcher dies with that launcher. A trial started by hand outlives its shell. On systems
    other than Linux, this does nothing.
    """
    parent = os.environ.get(PARENT)
    if not (parent or "RANK" in os.environ) or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent and os.getppid() != int(parent):  # the parent died before the prctl call
        os._exit(1)


def start_python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start Python code in a child process that dies with this one, before it imports anything else.

    `arguments` are its `sys.argv[1:]`. Its output is piped.
    """
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from march_search.processes import die_with_parent; die_with_parent()\n{code}",
            *arguments,
        ],
        env=os.environ | {PARENT: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(code: str) -> tuple[str | None, str]:
    """Run Python code in a child process that dies with this one.

    Returns:
        What it printed, or None if it failed; and the last line of its error output, which may be empty.
    """
    with start_python(code) as child:
        printed, fault = child.communicate()
    errors = fault.strip().splitlines() or [f"exit status {child.returncode}"]
    return (printed, "") if child.returncode == 0 else (None, errors[-1].strip())


class Signals:
    """Context manager that counts requests to stop, from SIGINT, SIGTERM or `ask`.

    Slurm sends SIGTERM to the job script, which passes it on, and to every process of the job. Only SIGINT can
    therefore ask a second time.
    """

    def __init__(self) -> None:
        self.signum, self.times = 0, 0
        self._old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for signum in self._old:
                signal.signal(signum, self._note)
        return self

    def ask(self, signum: int = signal.SIGTERM) -> None:
        """Request a stop, as the signal would."""
        self.times += not self.signum or signum == signal.SIGINT
        self.signum = self.signum or int(signum)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.ask(signum)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._old.items():
                signal.signal(signum, handler)
