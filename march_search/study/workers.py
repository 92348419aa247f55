"""Workers of a study: the record each keeps in the storage, its heartbeat, and how others see that it has died.

Clocks of two machines are never compared. A worker counts its beats; who looks notes, on a clock of its own, when the
count last changed. On the same machine a lock that the kernel releases tells at once.
"""

import fcntl
import os
import platform
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from march_search.files import make_folder

PREFIX = "worker:"
"""User attributes of the study that are workers' records."""

SILENT = 2.5
"""Intervals without a beat after which a worker counts as dead: with the time to look, less than three."""

STOP = "stop"
"""User attribute of the study that asks all workers to save and end."""


@dataclass(frozen=True)
class Beat:
    """A worker's record."""

    host: str
    boot: str
    """Tells one start of one machine from every other; empty where nobody knows."""
    pid: int
    interval: float
    """Seconds between two beats."""
    slots: int
    """Trials it can run at a time."""
    count: int = 0
    """Beats so far."""
    at: float = 0.0
    """The last one, by the host's clock: for people only."""
    ended: bool = False
    """Whether it left by itself."""


class Heart:
    """This process as a worker."""

    def __init__(self, study: optuna.Study, folder: Path, interval: float, slots: int) -> None:
        """A worker of `study` whose lock file is in `folder`."""
        self._study, self._due = study, 0.0
        self.beat = Beat(platform.node(), boot(), os.getpid(), interval, slots)
        self.worker = f"{platform.node()[:32]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._path = make_folder(folder) / f"{self.worker}.lock"
        self._held = self._path.open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX)

    def due(self) -> bool:
        """Whether it is time to beat."""
        return time.monotonic() >= self._due

    def tick(self, ended: bool = False) -> None:
        """One beat, the last if the worker has `ended`."""
        told = asdict(self.beat) | {"count": self.beat.count + 1, "at": time.time(), "ended": ended}
        self._study.set_user_attr(PREFIX + self.worker, told)
        self.beat = Beat(**told)
        self._due = time.monotonic() + self.beat.interval

    def leave(self) -> None:
        """The last beat; nobody waits for this worker."""
        self.tick(ended=True)
        self.close()

    def close(self) -> None:
        """Lets go of the lock file."""
        with suppress(OSError):
            self._path.unlink()
        self._held.close()


class Witness:
    """What one observer has seen of the others, by its own clock."""

    def __init__(self, folder: Path, interval: float) -> None:
        """Nothing seen yet; `folder` has the workers' lock files, `interval` is for trials that nobody has."""
        self._folder, self._interval = folder, interval
        self._seen: dict[Any, tuple[Any, float]] = {}

    def silent(self, key: Any, beats: dict[str, Beat], worker: str | None) -> bool:
        """Whether `worker`, who has what `key` names, must be dead; None has it: whether it was so for long."""
        beat = beats.get(worker) if worker else None
        if worker and beat and (beat.ended or self.gone(worker, beat)):
            return True
        now, mark = time.monotonic(), (worker, beat.count if beat else 0)
        last, since = self._seen.get(key, (None, 0.0))
        if last != mark:
            self._seen[key] = (mark, now)
            return False
        return now - since > SILENT * (beat.interval if beat else self._interval)

    def gone(self, worker: str, beat: Beat) -> bool:
        """Whether a worker of this machine has ended: the kernel has released its lock."""
        if not beat.boot or beat.boot != boot():
            return False
        try:
            with (self._folder / f"{worker}.lock").open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def beats(study: optuna.Study) -> dict[str, Beat]:
    """All workers that the study has had, by name."""
    attrs = study.user_attrs
    return {key.removeprefix(PREFIX): Beat(**value) for key, value in attrs.items() if key.startswith(PREFIX)}


def boot() -> str:
    """Name of this start of this machine; empty where Linux does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
