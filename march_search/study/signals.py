"""Record SIGINT and SIGTERM for a loop to check."""

import signal
import threading
from types import FrameType


class Signals:
    """Context manager that counts requests to stop, from SIGINT, SIGTERM or `ask`."""

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
        self.signum = self.signum or int(signum)
        self.times += 1

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.ask(signum)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._old.items():
                signal.signal(signum, handler)
