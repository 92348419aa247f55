"""Let a rank be supervised: stop on a signal, and send heartbeats."""

import contextlib
import faulthandler
import os
import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

PULSE = "MARCH_SEARCH_PULSE"
"""Environment variable with the file descriptor of the heartbeat pipe to the supervisor."""

STARTING, TRAINING = b"s", b"t"
"""Heartbeat bytes sent before the first step, and from then on."""

SHOW_STACK = signal.SIGUSR1
"""Signal that makes a rank write the stack traces of its threads to stderr."""


class InterruptedTrialError(Exception):
    """Raised when the trial was asked to stop and has saved its state."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.exit_code = 128 + signum


def start_heartbeat() -> None:
    """Install the stack trace handler and send the first heartbeat."""
    faulthandler.register(SHOW_STACK, all_threads=True)
    beat(STARTING)


def beat(sign: bytes = TRAINING) -> None:
    """Send a heartbeat to the supervisor, if any, through a pipe, which works even on a full disk."""
    pipe = os.environ.get(PULSE)
    if pipe:
        with contextlib.suppress(OSError):  # the supervisor has died
            os.write(int(pipe), sign)


def send_heartbeats_from(stacks: Iterable[Any]) -> None:
    """Send a heartbeat after each layer of these `Stack`s, forward and backward, as a micro batch may take an hour.

    The stacks call it between their layers: a system call inside a layer would break its graph in torch.compile.
    """

    def ran(output: Any) -> None:
        beat()
        if output.requires_grad:
            output.register_hook(lambda _: beat())

    for stack in stacks:
        stack.after_layer = ran


class StopRequest:
    """The first SIGTERM or SIGINT received, to be obeyed between two micro batches."""

    def __init__(self, orders: Callable[[], int] | None = None) -> None:
        """Install the signal handlers. `orders` returns stop signals for ranks that real signals do not reach."""
        self.signum, self._orders = 0, orders
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._remember)

    def look(self) -> int:
        """Return the signal to obey, or 0."""
        self.signum = self.signum or (self._orders() if self._orders else 0)
        return self.signum

    def _remember(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = self.signum or signum
