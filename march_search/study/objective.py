"""Train architectures under the settings of a study's file, as the objective of any Optuna study."""

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import optuna

from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig
from march_search.config.loader import build
from march_search.config.shipped import shipped_path
from march_search.data.prepare import prepare
from march_search.errors import TrialError
from march_search.files.atomic import lock
from march_search.planning import defaults
from march_search.storage.study_folder import StudyFolder
from march_search.storage.trial_process import TrialProcess
from march_search.tracking.trackers import Trackers, check_libraries
from march_search.trial.outcome import (
    OUTCOME,
    TrialOutcome,
    completed_outcome,
    pruned_outcome,
    write_outcome,
)
from march_search.trial.own_trials import find_trials

_COMMAND = (sys.executable, "-m", "march_search.training")
"""Command that trains a trial, and restarts it if it hangs or runs out of memory."""

_POLL_SECONDS = 0.1

_LOGGER = logging.getLogger(__name__)


class TrainingObjective:
    """Objective of an Optuna study: trains one architecture per trial and returns its validation loss.

    A trial trains in a process of its own, in `ROOT/NAME/trials/`. An architecture that was trained before, in this or
    an earlier process, is not trained again, and one that was interrupted resumes from its last checkpoint.

    Metrics go to the trackers of `[tracking]`, from processes beside the training, which may end seconds after this
    one. A failing tracker changes no trial; it is a warning of this module's logger. What it lacks of trials that ended
    is sent when the objective is created again.
    """

    def __init__(
        self,
        study: str | Path,
        suggest: Callable[[optuna.Trial], Architecture],
        *,
        root: str | Path = "runs",
        name: str | None = None,
        seed: int = 0,
    ) -> None:
        """Read the settings and prepare the text.

        Args:
            study: A study's TOML file, or the name of a shipped study. `[data]`, `[training]`, `[devices]` and
                `[tracking]` count.
            suggest: Returns the architecture of a trial, such as `sampler.suggest` of a `FeasibleSampler`. It may
                suggest a `learning_rate`, too, which replaces that of the file.
            root: Folder in which studies are kept.
            name: Name of the folder in `root`; by default that of the file with `-optuna`.
            seed: Training seed.

        Raises:
            ConfigError: If the file is invalid, the folder was started with different settings, or the library of a
                tracker is missing.
            DataError: If the text cannot be prepared.
        """
        file = shipped_path("studies", str(study))
        self.suggest, self.seed = suggest, seed
        self.folder = StudyFolder.of(Path(root), name or f"{file.stem}-optuna")
        table = defaults.study_table(file)
        is_started = (self.folder.path / "study.json").is_file()
        table = (
            defaults.as_started(table, self.folder.settings)
            if is_started
            else defaults.filled(table, file.parent).table
        )
        self.config = build(StudyConfig, table, str(file))
        check_libraries(self.config.tracking)
        self.folder.keep_settings(replace(self.config, storage=None), [])
        self.store = prepare(self.config.data, Path(root), file.parent, tokens=self.config.training.tokens)
        self.folder.keep_store(self.store)
        later = "The next start of this script"
        self._trackers = Trackers(self.config.tracking, self.folder.path, _LOGGER.warning, later)
        self._trackers.send_missing(with_parent=False)
        self._taken: set[int] = set()
        """Shares of the devices on which a trial trains."""
        self._lock = threading.Lock()

    def __call__(self, trial: optuna.Trial) -> float:
        """Train the architecture of `trial` and return its validation loss, in nats per target token; NaN if it failed.

        Evaluations are reported to the trial, so that a pruner of Optuna can stop it.

        Raises:
            TrialPruned: If the pruner stops the trial.
            TrialError: If the trial fails for another reason than divergence or lack of memory.
        """
        architecture = self.suggest(trial)
        folder = self._folder(architecture, trial.params.get("learning_rate"))
        trial.set_user_attr("folder", str(folder))
        self._trackers.look()  # a process may have failed after its trial
        outcome = completed_outcome(folder)
        if outcome is None:
            (folder / OUTCOME).unlink(missing_ok=True)  # of a trial that another pruner stopped
            self._trackers.start(folder)
            try:
                outcome = self._train(trial, folder)
                write_outcome(folder, outcome)
            finally:
                self._trackers.stop(folder)
        else:
            write_outcome(folder, outcome)
        if outcome["state"] == "pruned":
            raise optuna.TrialPruned(outcome["text"])
        if outcome["state"] == "failed":
            raise TrialError(f"{folder}: {outcome['text']}")
        return math.nan if outcome["loss"] is None else float(outcome["loss"])

    def _folder(self, architecture: Architecture, rate: float | None) -> Path:
        """Return the folder of the trial with this shape and rate, created if it is new."""
        with lock(self.folder.path / "lock"):
            found = find_trials(self.folder.path).trials
            wanted = (architecture.name, self.seed, self.config.training.learning_rate if rate is None else rate)
            for known in found:
                if (known.config.architecture, known.config.seed, known.config.training.learning_rate) == wanted:
                    return known.folder
            number = max((known.number for known in found), default=-1) + 1
            folder = self.folder.trial(number, architecture.name, self.seed, rate)
            self.folder.write_trial(folder, self.config, architecture.name, self.seed, self.store, rate)
        return folder

    def _train(self, trial: optuna.Trial, folder: Path) -> TrialOutcome:
        """Train until the trial ends or is pruned; if this process is interrupted, save its state first."""
        with self._slot() as slot:
            return self._follow(trial, TrialProcess.start(folder, self.config.devices, _COMMAND, slot))

    @contextmanager
    def _slot(self) -> Iterator[int]:
        """Reserve a share of the devices, so that the trials of several threads use different GPUs."""
        with self._lock:
            slot = min(set(range(len(self._taken) + 1)) - self._taken)
            self._taken.add(slot)
        try:
            yield slot % self.config.devices.parallel_trials
        finally:
            with self._lock:
                self._taken.remove(slot)

    def _follow(self, trial: optuna.Trial, child: TrialProcess) -> TrialOutcome:
        """Report the evaluations of a trial's process until it ends or is pruned."""
        reported: set[int] = set()
        try:
            ended = False
            while not ended:
                ended = child.process.poll() is not None
                self._trackers.look()
                for line in child.new_lines():
                    if line["kind"] == "evaluation" and line["tokens"] not in reported:
                        reported.add(line["tokens"])
                        if len(trial.study.directions) == 1 and self._prunes(trial, line["tokens"], line["loss"]):
                            text = "stopped by the pruner of the Optuna study"
                            return pruned_outcome(line["loss"], line["tokens"], text)
                time.sleep(0 if ended else _POLL_SECONDS)
        except BaseException:
            while child.process.poll() is None:
                child.ask_to_stop()
                time.sleep(_POLL_SECONDS)
            raise
        finally:
            child.kill()
        if outcome := completed_outcome(child.folder):
            return outcome
        state, text = child.failure()
        return {"state": state, "tokens": None, "loss": None, "text": text}

    def _prunes(self, trial: optuna.Trial, tokens: int, loss: float) -> bool:
        """Report an evaluation, and return whether the pruner stops the trial; it never stops a complete one."""
        if tokens == self.config.training.tokens:
            return False
        trial.report(loss, tokens)
        return trial.should_prune()
