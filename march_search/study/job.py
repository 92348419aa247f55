"""What a worker, its survey and the study's run share: the job, and the signals that stop it."""

import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import optuna

from march_search.config import StudyConfig
from march_search.study.adaptive import NextTrial
from march_search.study.study_folder import StudyFolder
from march_search.study.trial_process import TRAINING


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


@dataclass(frozen=True, kw_only=True)
class Job:
    """Study, storage and command that a worker works with."""

    config: StudyConfig
    folder: StudyFolder
    study: optuna.Study
    store: Path
    """Folder of the token store."""
    command: Sequence[str] = TRAINING
    """Command that trains a trial; the trial folder is appended to it."""
    propose: NextTrial | None = None
    """Proposes the next trial of a study with a sampler; None if there is no sampler."""
