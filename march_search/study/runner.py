"""Run a study: open it, add its trials to Optuna, and train until none is left."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import TrialState

from march_search.analysis.trial_counts import TrialCounts
from march_search.config import StudyConfig
from march_search.errors import StorageError
from march_search.files.atomic import discard_folder, lock
from march_search.planning import study_state
from march_search.planning.adaptive import NextTrial, next_trial
from march_search.planning.confirmation import confirmation_note
from march_search.processes import Signals
from march_search.storage import heartbeat, study_storage
from march_search.storage.leases import Lease
from march_search.storage.study_folder import StudyFolder, find_record
from march_search.storage.trial_process import TRAINING
from march_search.storage.trials import WantedTrial, distributions, enqueue, newest_attempts
from march_search.study.job import Job
from march_search.study.outlook import trial_counts
from march_search.study.progress import StudyProgress
from march_search.study.survey import committed
from march_search.study.worker import Worker
from march_search.tracking.trackers import Trackers, check_libraries
from march_search.trial.manifest import keep_newest


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Result of `StudyRun.run`."""

    complete: int
    pruned: int
    failed: int
    left: int
    """Number of trials that have not ended, with those that a sampler has not chosen yet."""
    signum: int
    """Signal that ended the run; 0 for none."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Further messages for the user, one sentence each."""


class StudyRun:
    """One call of `march-search study run` or `march-search study worker`."""

    def __init__(
        self,
        config: StudyConfig,
        folder: StudyFolder,
        store: Path,
        wanted: Sequence[WantedTrial] | None = None,
        command: Sequence[str] = TRAINING,
        propose: NextTrial | None = None,
    ) -> None:
        """Set up a run of the study in `folder`.

        Args:
            config: The study's settings.
            folder: The study folder.
            store: Folder of the token store.
            wanted: Trials to enqueue first; None for a worker, which only takes trials that are already enqueued.
            command: Command that trains a trial; the trial folder is appended to it.
            propose: Proposes the next trial when none is left; None for the study's own sampler, if it has one.
        """
        self.config, self.folder, self.store, self.wanted = config, folder, store, wanted
        if find_record(folder.path) is not None:
            folder.load_block()
        if propose is None and config.search.adaptive:
            propose = next_trial(config, study_state.restored_candidates(folder.path))
        self.command, self.propose = command, propose

    def run(self) -> Summary:
        """Train until no trial is left for any worker or a signal arrives.

        Raises:
            ConfigError: If the library of a tracker is missing.
            StorageError: If the storage cannot be opened or fails, the study was stopped, or the disk is full.
        """
        check_libraries(self.config.tracking)
        with study_storage.guarded():
            study = self._opened()
            names = [t.user_attrs["architecture"] for t in study.get_trials(deepcopy=False)]
            job = Job(
                config=self.config,
                folder=self.folder,
                study=study,
                store=self.store,
                command=self.command,
                propose=self.propose,
            )
            with (
                StudyProgress(names, self.config.training.tokens, self.config.training) as progress,
                Trackers(self.config.tracking, self.folder.path, progress.say) as trackers,
                Signals() as signals,
            ):
                Worker(job, progress, signals, trackers).run()
                trackers.finish(signals)
            self._clean_up(study)
            return self._summary(study, signals.signum)

    def create(self) -> TrialCounts:
        """Open the study and add its trials, without training, and return their counts.

        Raises:
            StorageError: If the storage cannot be opened or fails.
        """
        with study_storage.guarded():
            return trial_counts(self._opened().get_trials(deepcopy=False), self._planned)

    @property
    def _planned(self) -> int:
        """Number of trials that a sampler chooses; 0 if there is no sampler."""
        return self.propose.total if self.propose else 0

    def _opened(self) -> optuna.Study:
        """Open the study and enqueue its trials, one process at a time."""
        with lock(self.folder.path / "lock"):
            study = open_study(self.folder, self.config)
            if self.wanted is None and study.user_attrs.get(heartbeat.STOP):
                raise StorageError(f"{study.study_name} was stopped: run march-search study resume {study.study_name}.")
            if self.wanted is not None:
                if study.user_attrs.get(heartbeat.STOP):
                    study.set_user_attr(heartbeat.STOP, None)
                ranges = self.propose.ranges if self.propose else distributions([w[0] for w in self.wanted])
                enqueue(study, self.wanted, ranges, self.config.training.learning_rate)
        return study

    def _clean_up(self, study: optuna.Study) -> None:
        """Delete the checkpoints that no trial resumes from, and clear the workers that left or died."""
        with lock(self.folder.path / "lock"):
            trials = study.get_trials(deepcopy=False)
            newest = {self.folder.of_trial(trial): trial for trial in newest_attempts(trials)}
            for folder in {self.folder.of_trial(trial) for trial in trials}:
                state = newest[folder].state if folder in newest else None
                if state == TrialState.FAIL:
                    keep_newest(folder)
                elif state is None or state.is_finished():
                    discard_folder(folder / "checkpoints")
            needed = {Lease.of(trial).worker for trial in trials if trial.state == TrialState.RUNNING}
            heartbeat.clear_dead(study, self.folder.path / "workers", needed)

    def _summary(self, study: optuna.Study, signum: int) -> Summary:
        """Return the number of trials by the state of their newest attempt, with notes on confirmation and tokens."""
        trials, search = study.get_trials(deepcopy=False), self.config.search
        counts = trial_counts(trials, self._planned)
        waiting = any(not t.state.is_finished() for t in trials)
        note = "" if waiting else confirmation_note(trials, self.config)
        notes = [note] if note else []
        if search.max_tokens is not None:
            left = counts.left if waiting and not signum else 0
            rest = f"; trials that would exceed the limit were not started ({left} left)" if left else ""
            notes.append(f"tokens: {committed(trials):,} of at most {search.max_tokens:,}{rest}.")
        return Summary(
            complete=counts.complete, pruned=counts.pruned, failed=counts.failed, left=counts.left, signum=signum,
            notes=tuple(notes),
        )  # fmt: skip


def open_study(folder: StudyFolder, config: StudyConfig) -> optuna.Study:
    """Open the Optuna study of a folder and bind it to the folder."""
    name = folder.path.name
    study = study_storage.open_study(name, folder.path, config.storage, config.pruner, config.search.seed)
    study_storage.bind(study, folder.id)
    return study
