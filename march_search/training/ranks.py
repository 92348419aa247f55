"""A rank's side of supervision: it dies with its parent, stops when it is asked, shows that it gets on."""

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

PULSE = "MARCH_SEARCH_PULSE"
"""Environment variable: the pipe to the supervisor, a byte wherever a rank gets on."""

STARTING, TRAINING = b"s", b"t"
"""Bytes before the first step is taken, and from then on."""

SHOW_STACK = signal.SIGUSR1
"""The signal on which a rank writes the stacks of its threads to stderr."""


class InterruptedTrialError(Exception):
    """The trial was asked to stop, and its state is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.exit_code = 128 + signum


def die_with_parent() -> None:
    """Asks Linux to kill this process when the one that MARCH_SEARCH_PARENT names dies, however that happens.

    A rank that another launcher started dies with that. A trial started by hand has neither and outlives its shell.
    Elsewhere than on Linux nothing is done.
    """
    parent = os.environ.get("MARCH_SEARCH_PARENT")
    if not (parent or "RANK" in os.environ) or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent and os.getppid() != int(parent):  # it died before we asked
        os._exit(1)


def say(text: str) -> None:
    """Tells a person on stderr; in silence where that is a file on a full disk."""
    with contextlib.suppress(OSError):
        print(f"march-search: {text}", file=sys.stderr, flush=True)


def answer() -> None:
    """Gets this rank ready to be watched."""
    faulthandler.register(SHOW_STACK, all_threads=True)
    beat(STARTING)


def beat(sign: bytes = TRAINING) -> None:
    """Tells the supervisor, if there is one, that this rank gets on. A pipe: it works on a full disk too."""
    pipe = os.environ.get(PULSE)
    if pipe:
        with contextlib.suppress(OSError):  # nobody reads
            os.write(int(pipe), sign)


def beat_at(modules: Iterable[Any]) -> None:
    """Beats whenever one of these modules of torch has run, forward or backward: a micro batch may take an hour."""

    def ran(_module: Any, _inputs: Any, output: Any) -> None:
        beat()
        if output.requires_grad:
            output.register_hook(lambda _: beat())

    for module in modules:
        module.register_forward_hook(ran)


class StopRequest:
    """Remembers the first SIGTERM or SIGINT, to be obeyed between two micro batches."""

    def __init__(self, orders: Callable[[], int] | None = None) -> None:
        """Also asks `orders`, where signals do not come through."""
        self.signum, self._orders = 0, orders
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._remember)

    def look(self) -> int:
        """The signal to obey, 0 for none."""
        self.signum = self.signum or (self._orders() if self._orders else 0)
        return self.signum

    def _remember(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = self.signum or signum
