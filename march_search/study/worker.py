"""Worker that takes trials of a study, trains each in a separate process, and releases those of dead workers."""

import random
import shutil
import time
from contextlib import nullcontext, suppress

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial

from march_search.analysis.finals import baseline
from march_search.config import TrialConfig
from march_search.errors import StorageError
from march_search.files.json_tables import set_aside
from march_search.planning.confirmation import is_confirmation
from march_search.processes import Signals
from march_search.storage import trials
from march_search.storage.heartbeat import STOP, Heartbeat, Liveness
from march_search.storage.leases import Leases
from march_search.storage.trial_process import ActiveTrial, branch_costs, reached
from march_search.study import reuse
from march_search.study.job import Job
from march_search.study.progress import StudyProgress
from march_search.study.survey import Survey
from march_search.tracking.trackers import Trackers
from march_search.trial.manifest import drop_damaged, keep_newest, resume_point
from march_search.trial.metrics import read_metrics
from march_search.trial.outcome import (
    HUNG,
    OUTCOME,
    SMALLER,
    TrialOutcome,
    completed_outcome,
    pruned_outcome,
    read_outcome,
    write_outcome,
)

POLL_SECONDS = 0.1
"""Seconds between two checks of the trials that run here."""

IDLE_SECONDS = 1.0
"""Seconds between two reads of the storage while no trial can be taken; fewer if the heartbeat interval is short."""

BUSY = 0.25
"""Heartbeat intervals between two reads of the storage while the worker has no free slot or has trials left from the
last read, because a read covers every unfinished trial."""

MISSES = 4
"""Consecutive trials found taken by other workers after which a worker reads the storage again."""


class Worker:
    """One worker; a class because its loop, signals and heartbeat share state."""

    def __init__(self, job: Job, progress: StudyProgress, signals: Signals, trackers: Trackers) -> None:
        """Create a worker on `job` that reports to `progress` and `trackers`, and stops on `signals`."""
        config, lockers = job.config, job.folder.path / "workers"
        self.job, self.progress, self.signals, self.trackers = job, progress, signals, trackers
        self.heartbeat = Heartbeat(job.study, lockers, config.heartbeat_seconds, config.devices.parallel_trials)
        self.leases = Leases(job.study, job.study._storage, job.folder.path / "lock", self.heartbeat.worker)
        self.survey = Survey(job, self.leases, Liveness(lockers, config.heartbeat_seconds), progress)
        self.active_trials: list[ActiveTrial] = []
        self._todo: list[tuple[FrozenTrial, int]] = []
        self._look, self._misses, self._said = 0.0, 0, False
        url = config.storage or ""
        self._hidden = [url.removeprefix("env:")] if url.startswith("env:") else []
        self._random = random.Random(self.heartbeat.worker)

    def run(self) -> None:
        """Work until the study is finished or a signal arrives; running trials are then released.

        Raises:
            StorageError: If the storage cannot be used or the disk is full.
        """
        try:
            while self._step():
                time.sleep(POLL_SECONDS)
        except BaseException:
            self._abandon()
            raise
        self.heartbeat.leave()

    def _abandon(self) -> None:
        """Release all trials after an error; if the storage still works, other workers resume them at once."""
        for active in self.active_trials:
            self._kill(active)
        with suppress(Exception):
            for active in self.active_trials:
                self._give_back(active)
            self.heartbeat.leave()
        self.heartbeat.close()

    def _step(self) -> bool:
        """Run one iteration of the loop; return whether to continue."""
        if self.heartbeat.due():
            self._beat()
        if self.signals.signum:
            self._stop()
        else:
            self._fill()
        for active in list(self.active_trials):
            if self._follow(active):
                self.active_trials.remove(active)
        self.trackers.look()
        return bool(self.active_trials) or not (self.signals.signum or self.survey.over)

    def _beat(self) -> None:
        """Send a heartbeat, and drop trials that this worker lost because it was late."""
        self.heartbeat.tick()
        for active in list(self.active_trials):
            if not self.leases.holds(active.trial, active.lease):
                self._lose(active)
                self.active_trials.remove(active)
        if self.job.study.user_attrs.get(STOP) and not self.signals.signum:
            self.signals.ask()

    def _stop(self) -> None:
        """Ask the trials to save and stop; a second signal kills them at once."""
        if self.active_trials and not self._said:
            self.progress.say("stopping: saving the trials' state; press Ctrl-C again to stop at once")
        self._said = True
        for active in self.active_trials:
            if active.child:
                active.child.ask_to_stop(hurry=self.signals.times > 1)

    def _fill(self) -> None:
        """Take trials while there are free slots and waiting trials."""
        now, beat = time.monotonic(), self.job.config.heartbeat_seconds
        free = self.job.config.devices.parallel_trials - len(self.active_trials)
        if now >= self._look + (0 if free > 0 and not self._todo else BUSY * beat):
            self._todo = self.survey.look({active.trial.number for active in self.active_trials}, free > 0)
            self._look = time.monotonic() + min(IDLE_SECONDS, beat / 8)
            self._misses = 0
        had_some = bool(self._todo)
        while self._todo and free > 0:
            if active := self._take():
                self.active_trials.append(active)
                free -= 1
        if had_some and free > 0:  # other workers were faster, and there may be new trials
            self._look = 0.0

    def _take(self) -> ActiveTrial | None:
        """Take the first trial of the list; None if it cannot be taken."""
        trial, until = self._todo.pop(0)
        folder = self.survey.path(trial)
        limited = self.job.config.search.max_tokens is not None
        with self.leases.locked() if limited else nullcontext(), self.leases.alone(trial):
            if limited and self.leases.waits(trial):
                drop_damaged(folder)  # else it would resume earlier and cost more than estimated
            start = min(until, resume_point(folder, self.job.config.training.global_batch_tokens))
            branched, branches = branch_costs(self.job.config.training, folder, start, until)
            if not self.survey.affordable(until - start + branches):
                return None
            lease = self.leases.take(trial, start, until, branched, branches)
        if lease is None:
            self._misses += 1
            self._random.shuffle(self._todo)
            if self._misses == MISSES:
                self._todo.clear()
            return None
        self._misses = 0
        taken = {active.slot for active in self.active_trials}
        slot = min(set(range(len(taken) + 1)) - taken)
        active = ActiveTrial(
            trial=trial, lease=lease, folder=folder, slot=slot, reported=set(trial.intermediate_values)
        )
        return active if self._begin(active) else None

    def _begin(self, active: ActiveTrial) -> bool:
        """Prepare a trial's folder; return False if the trial is finished already."""
        attrs, resumed = active.trial.user_attrs, (active.folder / "trial.json").is_file()
        taken = None
        if not resumed:
            trial = self.job.folder.write_trial(
                active.folder, self.job.config, attrs["architecture"], attrs["seed"], self.job.store,
                attrs.get("learning_rate"),
            )  # fmt: skip
            if self.job.config.search.reuse_trials:
                taken = self._take_over(active, trial)
        outcome = taken or self._known_outcome(active) or completed_outcome(active.folder)
        outcome = outcome or self.survey.exhausted(active.lease)
        if outcome is not None:
            self._finish(active, outcome)
            return False
        self.progress.started(active.number, attrs["architecture"], resumed, active.lease.until)
        self.trackers.start(active.folder)
        return True

    def _known_outcome(self, active: ActiveTrial) -> TrialOutcome | None:
        """Return the outcome that an earlier worker wrote before it died; a damaged file is set aside."""
        try:
            return read_outcome(active.folder)
        except StorageError as error:
            kept = set_aside(active.folder / OUTCOME)
            self.progress.say(f"trial {active.number}: {error} It is now {kept.name}, and the trial is resumed.")
            return None

    def _take_over(self, active: ActiveTrial, trial: TrialConfig) -> TrialOutcome | None:
        """Copy a trial that another study completed and return its outcome; None if there is no identical trial."""
        source = reuse.same_trial(self.job.folder.path.parent, trial)
        if source is None or not reuse.take_over(source, active.folder, trial.training.keep_weights):
            return None
        for line in read_metrics(active.folder).of_kind("evaluation"):
            if line["tokens"] < trial.training.tokens:
                self._report(active, line["tokens"], line["loss"])
        outcome, study = completed_outcome(active.folder) or {}, source.parent.parent.name
        return outcome | {"taken_from": f"{study}/{source.name}", "text": f"{outcome['text']}; taken from {study}"}

    def _follow(self, active: ActiveTrial) -> bool:
        """Process a trial's new output; return whether this worker is done with the trial."""
        if active.child is None:
            if self.signals.signum:
                return self._give_back(active)
            if not active.start(self.job.config, self.job.command, self._hidden):
                return False
        child = active.child
        if child is None:
            return self._finish(active, completed_outcome(active.folder) or {})
        stopped = child.process.poll() is not None
        try:
            outcome = self._read(active, stopped)
        except UpdateFinishedTrialError:
            return self._lose(active)
        if outcome is None and not stopped:
            return False
        child.kill()
        outcome = completed_outcome(active.folder) or outcome  # a result takes precedence over the pruner
        paused = child.process.returncode == 0 and self.job.config.training.tokens > active.lease.until <= active.last
        hung, stopping = child.process.returncode == HUNG, bool(self.signals.signum)
        died = hung or (child.was_killed and not stopping)  # a second Ctrl-C kills, too
        again = died or child.process.returncode == SMALLER
        if outcome is None and not paused and not again and not stopping:
            outcome = trials.failed_outcome(child)
        if again and outcome is None:
            cause = "its process was killed" if died else "out of memory, its micro batch was reduced"
            cause = "no progress for too long" if hung else cause
            self.progress.say(f"trial {active.number}: {cause}; it will be resumed (see trial.log)")
        return self._give_back(active, died) if outcome is None else self._finish(active, outcome)

    def _read(self, active: ActiveTrial, stopped: bool) -> TrialOutcome | None:
        """Show new metric lines and report evaluations; return the outcome if Optuna's pruner stops the trial."""
        for line in active.lines(stopped):
            if active.count(line):
                self.progress.line(active.number, line)
            tokens = line["tokens"]
            if line["kind"] != "evaluation" or tokens >= self.job.config.training.tokens:
                continue
            self._report(active, tokens, line["loss"])
            newest = tokens == max(active.reported)  # the pruner judges the newest report
            if newest and not self.signals.signum and self._prunes(active):
                return pruned_outcome(line["loss"], tokens, f"stopped by the {self.job.config.pruner.kind} pruner")
        return None

    def _report(self, active: ActiveTrial, tokens: int, loss: float) -> None:
        """Report an evaluation to Optuna once, as `Trial.report` does, but without reading the trial twice."""
        if tokens not in active.reported:
            self.leases.storage.set_trial_intermediate_value(active.trial._trial_id, tokens, loss)
            active.reported.add(tokens)

    def _prunes(self, active: ActiveTrial) -> bool:
        """Return whether Optuna's pruner, if the study has one, stops the trial now; it never stops a finalist."""
        config = self.job.config
        if config.pruner.kind in ("none", "rungs") or is_confirmation(active.trial):
            return False
        if config.pruner.finalists > 1:
            names = [t.user_attrs["architecture"] for t in self.job.study.get_trials(deepcopy=False)]
            if active.trial.user_attrs["architecture"] == baseline(config, names):
                return False
        return Trial(self.job.study, active.trial._trial_id).should_prune()

    def _give_back(self, active: ActiveTrial, died: bool = False) -> bool:
        """Release a trial so that it waits: paused at a rung, interrupted, or to be resumed because it `died`."""
        died_at = reached(active.folder, self.job.config.training.global_batch_tokens) if died else None
        with self.leases.alone(active.trial):
            self.leases.give_back(active.trial, active.lease, active.spent, died_at)
        self.trackers.stop(active.folder)
        until = active.lease.until
        is_on_rung = not died and active.last >= until < self.job.config.training.tokens
        self.progress.paused(active.number, f"waits on its rung at {until:,} tokens" if is_on_rung else "")
        self._look = 0.0
        return True

    def _finish(self, active: ActiveTrial, outcome: TrialOutcome) -> bool:
        """Write a trial's outcome and report it to Optuna, if this worker still holds the trial."""
        if outcome["state"] == "failed" and self.leases.holds(active.trial, active.lease):
            keep_newest(active.folder)
        with self.leases.alone(active.trial):
            if not self.leases.holds(active.trial, active.lease):
                return self._lose(active)
            write_outcome(active.folder, outcome)
            active.lease = self.leases.close(active.trial, active.lease, active.spent)
            trials.tell_optuna(self.leases.storage, active.trial, outcome)
        if outcome["state"] != "failed":
            shutil.rmtree(active.folder / "checkpoints", ignore_errors=True)
        self.trackers.stop(active.folder)
        self.progress.ended(active.number, active.trial.user_attrs["architecture"], outcome["state"], outcome["text"])
        if not self._todo:  # else the trials of the last read are still recent
            self._look = 0.0
        return True

    def _lose(self, active: ActiveTrial) -> bool:
        """Drop a trial that this worker lost, and kill its process."""
        self._kill(active)
        self.progress.say(f"trial {active.number}: this worker sent no heartbeat for too long and lost the trial")
        self.trackers.stop(active.folder)
        self.progress.paused(active.number)
        return True

    def _kill(self, active: ActiveTrial) -> None:
        """Kill all processes of a trial."""
        if active.child:
            active.child.kill()
