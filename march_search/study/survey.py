"""A worker's view of the whole study: release trials of dead workers, stop trials that were not promoted."""

import shutil
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from march_search.planning import rungs
from march_search.planning.confirmation import add_round
from march_search.storage import heartbeat
from march_search.storage.leases import MAX_ORPHANED, MAX_RETRIES, Lease, Leases
from march_search.storage.study_folder import trial_number
from march_search.storage.trial_process import branch_costs, reached, unseen_cost
from march_search.storage.trials import enqueue, tell_optuna
from march_search.study.outlook import outlook, running_phase
from march_search.study.progress import StudyProgress
from march_search.trial.manifest import resume_point
from march_search.trial.outcome import TrialOutcome, pruned_outcome, write_outcome

if TYPE_CHECKING:
    from march_search.study.job import Job


class Survey:
    """One worker's view of the study."""

    def __init__(self, job: "Job", leases: Leases, liveness: heartbeat.Liveness, progress: StudyProgress) -> None:
        """Start without observations."""
        self._job, self._leases, self._liveness, self._progress = job, leases, liveness, progress
        self._batch = job.config.training.global_batch_tokens
        self.over = False
        """Whether no worker has anything left to do."""

    def look(self, own_trials: Set[int], room: bool) -> list[tuple[FrozenTrial, int]]:
        """Release trials of dead workers, close those that were not promoted, and return those that can be taken now.

        Each comes with the token count to stop at. If there are none and the worker has `room`, the study's sampler
        proposes one. `own_trials` are those of this worker.
        """
        trials = self._trials()
        running = [t for t in trials if t.state == TrialState.RUNNING]
        records = heartbeat.worker_records(self._job.study) if running else {}
        self._clear_workers(running, records)
        dead = [t for t in running if t.number not in own_trials and self._dead(t, records)]
        if dead:
            self._give_back(dead)
            trials = self._trials()
        plan = self._plan(trials)
        if plan.stopped:
            self._stop(trials, plan.stopped)
            trials = self._trials()
        if room and not plan.runnable and self._grows(trials) and self._more():
            return self.look(own_trials, room)
        by_number = {t.number: t for t in trials}
        runnable = [(by_number[number], until) for number, until in plan.runnable.items()]
        if self._job.config.search.max_tokens is not None:
            runnable = [pair for pair in runnable if self.affordable(self._cost(*pair), trials)]
        self.over = not (runnable or dead or any(t.state == TrialState.RUNNING for t in trials))
        self._progress.others([(t, self.path(t)) for t in running if t.number not in own_trials])
        self._progress.study(
            running_phase(trials), lambda tokens: outlook(trials, self._job.config, self._total, tokens)
        )
        return runnable

    def _cost(self, trial: FrozenTrial, until: int) -> int:
        """Return the tokens that a trial would train from where it would resume, decay branches included."""
        folder = self.path(trial)
        start = min(until, resume_point(folder, self._batch))
        return until - start + branch_costs(self._job.config.training, folder, start, until)[1]

    def _trials(self) -> list[FrozenTrial]:
        """Return all trials in their current state."""
        return self._job.study.get_trials(deepcopy=False)

    def path(self, trial: FrozenTrial) -> Path:
        """Return a trial's folder."""
        return self._job.folder.of_trial(trial)

    def _plan(self, trials: list[FrozenTrial]) -> rungs.Schedule:
        """Return the schedule of all trials."""
        return rungs.study_schedule(trials, self._job.config, self._total)

    @property
    def _total(self) -> int:
        """Number of trials that the sampler chooses in all; 0 without a sampler."""
        return self._job.propose.total if self._job.propose else 0

    def _grows(self, trials: list[FrozenTrial]) -> bool:
        """Return whether a trial may be added: by the sampler, or by the confirmation once all others have ended."""
        return rungs.to_come(trials, self._total) > 0 or all(t.state.is_finished() for t in trials)

    def _dead(self, trial: FrozenTrial, records: dict[str, heartbeat.WorkerRecord]) -> bool:
        """Return whether the worker of a running trial is dead.

        Without a worker in its lease, one was killed while it took or released the trial, or does so now and holds the
        trial's lock. `Leases.give_back` waits for that lock and reads the lease again.
        """
        lease = Lease.of(trial)
        if lease.worker is None:
            return True
        return self._liveness.silent((trial.number, lease.attempt), records, lease.worker)

    def _clear_workers(self, running: list[FrozenTrial], records: dict[str, heartbeat.WorkerRecord]) -> None:
        """Remove the records of dead workers, except of those whose trials are still to be released."""
        needed = {self._leases.worker, *(Lease.of(trial).worker for trial in running)}
        for name in sorted(records.keys() - needed):
            if self._liveness.silent(name, records, name):
                heartbeat.clear(self._job.study, self._job.folder.path / "workers", name)

    def _give_back(self, dead: list[FrozenTrial]) -> None:
        """Make trials of dead workers wait again, each once."""
        for trial in dead:
            lease = Lease.of(trial)
            cost = unseen_cost(self.path(trial), lease, self._batch) if lease.worker else 0
            died_at = reached(self.path(trial), self._batch)
            with self._leases.alone(trial):
                given = self._leases.give_back(trial, lease, cost, died_at, orphaned=True)
            if given and lease.worker:
                text = f"worker {lease.worker} died; its trial will be resumed"
                self._progress.say(f"trial {trial_number(trial)}: {text}")

    def _stop(self, trials: list[FrozenTrial], stopped: Mapping[int, int]) -> None:
        """Close trials that were not promoted from their rung."""
        for trial in trials:
            rung = stopped.get(trial.number)
            if rung is None:
                continue
            loss, folder = trial.intermediate_values[rung], self.path(trial)
            outcome = pruned_outcome(loss, rung, f"not promoted from the rung at {rung:,} tokens")
            with self._leases.alone(trial):
                if not self._leases.waits(trial):
                    continue
                write_outcome(folder, outcome)
                tell_optuna(self._leases.storage, trial, outcome)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            self._progress.ended(trial_number(trial), trial.user_attrs["architecture"], "pruned", outcome["text"])

    def exhausted(self, lease: Lease) -> TrialOutcome | None:
        """Return the outcome of a trial that died too often without progress; None for any other."""
        if lease.retries <= MAX_RETRIES and lease.orphaned <= MAX_ORPHANED:
            return None
        fault = f"it hung or was killed {lease.retries} times"
        if lease.retries <= MAX_RETRIES:
            fault = f"its worker died {lease.orphaned} times"
        text = f"{fault} without progress: see trial.log, then run march-search study retry."
        return {"state": "failed", "tokens": None, "loss": None, "text": text}

    def affordable(self, tokens: int, trials: list[FrozenTrial] | None = None) -> bool:
        """Return whether `tokens` more tokens stay within the study's token limit."""
        limit = self._job.config.search.max_tokens
        return limit is None or committed(self._trials() if trials is None else trials) + tokens <= limit

    def _more(self) -> bool:
        """Add the next trial of the sampler or the next round of seeds; return whether there is a trial to run."""
        with self._leases.locked():
            trials = self._trials()
            if self._plan(trials).runnable:
                return True
            study, config = self._job.study, self._job.config
            if self._job.propose and (wanted := self._job.propose(study)) is not None:
                return bool(enqueue(study, [wanted], self._job.propose.ranges, config.training.learning_rate))
            return add_round(study, config, committed(trials))


def committed(trials: list[FrozenTrial]) -> int:
    """Return the tokens spent on all trials, plus those that running trials may still spend."""
    total = 0
    for trial in trials:
        lease = Lease.of(trial)
        ahead = lease.until - lease.start + lease.branches
        total += lease.spent + (ahead if trial.state == TrialState.RUNNING and not lease.closed else 0)
    return total
