"""Worker that takes trials of a study, trains each in a separate process, and releases those of dead workers."""

import random
import shutil
import time
from contextlib import nullcontext, suppress

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial

from march_search.config import TrialConfig
from march_search.files import read_json, read_lines, write_json
from march_search.study import heartbeat, reuse, trials
from march_search.study.job import Job, Signals
from march_search.study.leases import Leases
from march_search.study.progress import StudyProgress
from march_search.study.survey import Survey
from march_search.study.trial_process import ActiveTrial
from march_search.trial import outcome
from march_search.trial.manifest import drop_damaged, resume_point
from march_search.trial.outcome import HUNG, SMALLER, TrialOutcome

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

    def __init__(self, job: Job, shown: StudyProgress, signals: Signals) -> None:
        """Create a worker on `job` that reports to `shown` and stops on `signals`."""
        config, lockers = job.config, job.folder.path / "workers"
        self.job, self.shown, self.signals = job, shown, signals
        self.heart = heartbeat.Heartbeat(job.study, lockers, config.heartbeat_seconds, config.devices.parallel_trials)
        self.leases = Leases(job.study, job.study._storage, job.folder.path / "lock", self.heart.worker)
        self.survey = Survey(job, self.leases, heartbeat.Liveness(lockers, config.heartbeat_seconds), shown)
        self.turns: list[ActiveTrial] = []
        self._todo: list[tuple[FrozenTrial, int]] = []
        self._look, self._misses, self._said = 0.0, 0, False
        url = config.storage or ""
        self._hidden = [url.removeprefix("env:")] if url.startswith("env:") else []
        self._random = random.Random(self.heart.worker)

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
        self.heart.leave()

    def _abandon(self) -> None:
        """Release all trials after an error; if the storage still works, other workers resume them at once."""
        for turn in self.turns:
            self._kill(turn)
        with suppress(Exception):
            for turn in self.turns:
                self._give_back(turn)
            self.heart.leave()
        self.heart.close()

    def _step(self) -> bool:
        """Run one iteration of the loop; return whether to continue."""
        if self.heart.due():
            self._beat()
        if self.signals.signum:
            self._stop()
        else:
            self._fill()
        for turn in list(self.turns):
            if self._follow(turn):
                self.turns.remove(turn)
        return bool(self.turns) or not (self.signals.signum or self.survey.over)

    def _beat(self) -> None:
        """Send a heartbeat, and drop trials that this worker lost because it was late."""
        self.heart.tick()
        for turn in list(self.turns):
            if not self.leases.holds(turn.trial, turn.lease):
                self._lose(turn)
                self.turns.remove(turn)
        if self.job.study.user_attrs.get(heartbeat.STOP) and not self.signals.signum:
            self.signals.ask()

    def _stop(self) -> None:
        """Ask the trials to save and stop; a second signal kills them at once."""
        if self.turns and not self._said:
            self.shown.say("stopping: saving the trials' state; press Ctrl-C again to stop at once")
        self._said = True
        for turn in self.turns:
            if turn.child:
                turn.child.ask_to_stop(hurry=self.signals.times > 1)

    def _fill(self) -> None:
        """Take trials while there are free slots and waiting trials."""
        now, beat = time.monotonic(), self.job.config.heartbeat_seconds
        free = self.job.config.devices.parallel_trials - len(self.turns)
        if now >= self._look + (0 if free > 0 and not self._todo else BUSY * beat):
            self._todo = self.survey.look({turn.trial.number for turn in self.turns}, free > 0)
            self._look = time.monotonic() + min(IDLE_SECONDS, beat / 8)
            self._misses = 0
        had_some = bool(self._todo)
        while self._todo and free > 0:
            if turn := self._take():
                self.turns.append(turn)
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
            if not self.survey.affordable(until - start):
                return None
            lease = self.leases.take(trial, start, until)
        if lease is None:
            self._misses += 1
            self._random.shuffle(self._todo)
            if self._misses == MISSES:
                self._todo.clear()
            return None
        self._misses = 0
        taken = {turn.slot for turn in self.turns}
        slot = min(set(range(len(taken) + 1)) - taken)
        turn = ActiveTrial(trial=trial, lease=lease, folder=folder, slot=slot, reported=set(trial.intermediate_values))
        return turn if self._begin(turn) else None

    def _begin(self, turn: ActiveTrial) -> bool:
        """Prepare a trial's folder; return False if the trial is finished already."""
        attrs, resumed = turn.trial.user_attrs, (turn.folder / "trial.json").is_file()
        taken = None
        if not resumed:
            trial = self.job.folder.write_trial(
                turn.folder, self.job.config, attrs["architecture"], attrs["seed"], self.job.store,
                attrs.get("learning_rate"),
            )  # fmt: skip
            if self.job.config.search.reuse_trials:
                taken = self._take_over(turn, trial)
        end = taken or read_json(turn.folder / "outcome.json") or outcome.completed_outcome(turn.folder)
        end = end or self.survey.exhausted(turn.lease)
        if end is not None:
            self._finish(turn, end)
            return False
        self.shown.started(turn.trial.number, attrs["architecture"], resumed)
        return True

    def _take_over(self, turn: ActiveTrial, trial: TrialConfig) -> TrialOutcome | None:
        """Copy a trial that another study completed and return its outcome; None if there is no identical trial."""
        source = reuse.same_trial(self.job.folder.path.parent, trial)
        if source is None:
            return None
        reuse.take_over(source, turn.folder, trial.training.keep_weights)
        for line in read_lines(turn.folder / "metrics.jsonl"):
            if line["kind"] == "evaluation" and line["tokens"] < trial.training.tokens:
                self._report(turn, line["tokens"], line["loss"])
        end, study = outcome.completed_outcome(turn.folder) or {}, source.parent.parent.name
        return end | {"taken_from": f"{study}/{source.name}", "text": f"{end['text']}; taken from {study}"}

    def _follow(self, turn: ActiveTrial) -> bool:
        """Process a trial's new output; return whether this worker is done with the trial."""
        if turn.child is None:
            if self.signals.signum:
                return self._give_back(turn)
            if not turn.start(self.job.config, self.job.command, self._hidden):
                return False
        child = turn.child
        if child is None:
            return self._finish(turn, outcome.completed_outcome(turn.folder) or {})
        stopped = child.process.poll() is not None
        try:
            end = self._read(turn, stopped)
        except UpdateFinishedTrialError:
            return self._lose(turn)
        if end is None and not stopped:
            return False
        child.kill()
        end = outcome.completed_outcome(turn.folder) or end  # a result takes precedence over the pruner
        paused = child.process.returncode == 0 and self.job.config.training.tokens > turn.lease.until <= turn.last
        hung = child.process.returncode == HUNG
        again = hung or child.process.returncode == SMALLER
        if end is None and not paused and not again and not self.signals.signum:
            end = trials.failed_outcome(child)
        if again and end is None:
            cause = "no progress for too long" if hung else "out of memory, its micro batch was reduced"
            self.shown.say(f"trial {turn.trial.number}: {cause}; it will be resumed (see trial.log)")
        return self._give_back(turn, hung) if end is None else self._finish(turn, end)

    def _read(self, turn: ActiveTrial, stopped: bool) -> TrialOutcome | None:
        """Show new metric lines and report evaluations; return the outcome if Optuna's pruner stops the trial."""
        for line in turn.lines(stopped):
            if turn.count(line):
                self.shown.line(turn.trial.number, line)
            tokens = line["tokens"]
            if line["kind"] != "evaluation" or tokens >= self.job.config.training.tokens:
                continue
            self._report(turn, tokens, line["loss"])
            newest = tokens == max(turn.reported)  # the pruner judges the newest report
            if newest and not self.signals.signum and self._prunes(turn):
                return outcome.pruned_outcome(
                    line["loss"], tokens, f"stopped by the {self.job.config.pruner.kind} pruner"
                )
        return None

    def _report(self, turn: ActiveTrial, tokens: int, loss: float) -> None:
        """Report an evaluation to Optuna once, as `Trial.report` does, but without reading the trial twice."""
        if tokens not in turn.reported:
            self.leases.storage.set_trial_intermediate_value(turn.trial._trial_id, tokens, loss)
            turn.reported.add(tokens)

    def _prunes(self, turn: ActiveTrial) -> bool:
        """Return whether Optuna's pruner, if the study has one, stops the trial now."""
        if self.job.config.pruner.kind in ("none", "rungs"):
            return False
        return Trial(self.job.study, turn.trial._trial_id).should_prune()

    def _give_back(self, turn: ActiveTrial, failed: bool = False) -> bool:
        """Release a trial so that it waits: paused at a rung, interrupted, or to be resumed because it `failed`."""
        with self.leases.alone(turn.trial):
            self.leases.give_back(turn.trial, turn.lease, turn.spent, failed)
        self.shown.paused(turn.trial.number)
        self._look = 0.0
        return True

    def _finish(self, turn: ActiveTrial, end: TrialOutcome) -> bool:
        """Write a trial's outcome and report it to Optuna, if this worker still holds the trial."""
        with self.leases.alone(turn.trial):
            if not self.leases.holds(turn.trial, turn.lease):
                return self._lose(turn)
            write_json(turn.folder / "outcome.json", end)
            self.leases.close(turn.trial, turn.lease, turn.spent)
            trials.tell_optuna(self.leases.storage, turn.trial, end)
        if end["state"] != "failed":
            shutil.rmtree(turn.folder / "checkpoints", ignore_errors=True)
        self.shown.ended(turn.trial.number, turn.trial.user_attrs["architecture"], end["state"], end["text"])
        if not self._todo:  # else the trials of the last read are still recent
            self._look = 0.0
        return True

    def _lose(self, turn: ActiveTrial) -> bool:
        """Drop a trial that this worker lost, and kill its process."""
        self._kill(turn)
        self.shown.say(f"trial {turn.trial.number}: this worker sent no heartbeat for too long and lost the trial")
        self.shown.paused(turn.trial.number)
        return True

    def _kill(self, turn: ActiveTrial) -> None:
        """Kill all processes of a trial."""
        if turn.child:
            turn.child.kill()
