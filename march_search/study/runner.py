"""Runs a study: opens it, goes on with what was interrupted, starts what is left, records how each trial ended."""

import math
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from march_search import outcome
from march_search.architecture import CHOICES, Architecture
from march_search.config import StudyConfig, TrialConfig
from march_search.errors import StorageError
from march_search.files import lock, read_json, write_json
from march_search.settings import build
from march_search.study import storage
from march_search.study.child import TRAINING, Child
from march_search.study.folders import StudyFolder
from march_search.study.progress import StudyProgress

POLL_SECONDS = 0.1

CARD = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj")
"""Fields that are always Optuna parameters; others are where they vary."""


@dataclass
class Running:
    """A trial of Optuna and its process."""

    trial: Trial
    name: str
    child: Child
    slot: int
    """Which share of the devices it has."""
    reported: set[int]
    """Token counts already told to Optuna."""


@dataclass(frozen=True)
class Summary:
    """How a call of `run` ended."""

    complete: int
    pruned: int
    failed: int
    left: int
    """Trials not yet at their end."""
    signum: int
    """The signal that ended it, 0 for none."""


class StudyRun:
    """One call of `march-search study run`; a class because a signal handler and a loop share its state."""

    def __init__(
        self,
        config: StudyConfig,
        folder: StudyFolder,
        store: Path,
        wanted: list[tuple[Architecture, int]],
        command: Sequence[str] = TRAINING,
    ) -> None:
        """A run of the study in `folder` that trains `wanted` on the tokens in `store`, each with `command FOLDER`."""
        self.config, self.folder, self.store, self.wanted, self.command = config, folder, store, wanted, command
        shapes = [asdict(a) for a, _ in wanted]
        varying = [f for f in shapes[0] if len({s[f] for s in shapes}) > 1 and all(s[f] is not None for s in shapes)]
        self.axes = tuple(dict.fromkeys((*CARD, *varying)))
        self.signum = self.signals = 0

    def run(self) -> Summary:
        """Trains until nothing is left or a signal comes.

        Raises:
            StorageError: another process runs this study, its storage cannot be opened, or the disk is full.
        """
        name = self.folder.path.name
        with lock(self.folder.path / "lock", f"{name} is being run by another process: wait for it, or stop it first."):
            storage.release_stale_lock(self.folder.path)
            study = storage.open_study(
                name, self.folder.path, self.config.storage, self.config.pruner, self.config.search.seed
            )
            storage.bind(study, self.folder.id)
            self._enqueue(study)
            with StudyProgress([a.name for a, _ in self.wanted], self.config.training.tokens) as shown, self._signals():
                self._loop(study, shown)
            return self._summary(study)

    def _enqueue(self, study: optuna.Study) -> None:
        """Hands Optuna the trials it does not know yet."""
        known = {(t.user_attrs.get("architecture"), t.user_attrs.get("seed")) for t in study.get_trials(deepcopy=False)}
        for architecture, seed in self.wanted:
            if (architecture.name, seed) not in known:
                told = {"architecture": architecture.name, "seed": seed, "num_params": architecture.num_params}
                study.enqueue_trial(self._params(architecture), user_attrs=told)

    def _loop(self, study: optuna.Study, shown: StudyProgress) -> None:
        """Keeps `parallel_trials` trials going until none is left or a signal comes."""
        running: list[Running] = []
        todo = self._todo(study)
        try:
            told = False
            while self._fill(running, todo, study, shown):
                if self.signum and not told:
                    shown.say("stopping: the trials save their state; a second Ctrl-C stops them at once")
                    told = True
                for one in list(running):
                    if self.signum:
                        one.child.ask_to_stop(hurry=self.signals > 1)
                    if self._follow(one, study, shown):
                        running.remove(one)
                time.sleep(POLL_SECONDS)
        finally:
            for one in running:
                one.child.kill()

    def _fill(self, running: list[Running], todo: Iterator[Trial], study: optuna.Study, shown: StudyProgress) -> bool:
        """Starts trials while there is room; whether any is running."""
        while len(running) < self.config.devices.parallel_trials and not self.signum:
            trial = next(todo, None)
            if trial is None:
                break
            started = self._start(trial, study, shown, {r.slot for r in running})
            running += [started] if started else []
        return bool(running)

    def _todo(self, study: optuna.Study) -> Iterator[Trial]:
        """Trials that an earlier run left open, then those that wait."""
        for frozen in study.get_trials(deepcopy=False):
            if frozen.state == TrialState.RUNNING:
                trial = Trial(study, frozen._trial_id)
                self._suggest(trial)  # a kill may have come before all parameters were recorded
                yield trial
        while any(t.state == TrialState.WAITING for t in study.get_trials(deepcopy=False)):
            trial = study.ask()
            self._suggest(trial)
            yield trial

    def _suggest(self, trial: Trial) -> None:
        """Has Optuna record the architecture as one parameter a dimension."""
        for axis, value in self._params(Architecture.parse(trial.user_attrs["architecture"])).items():
            known = [getattr(a, axis) for a, _ in self.wanted]
            if axis in CHOICES:
                suggested = trial.suggest_categorical(axis, CHOICES[axis])
            elif all(type(k) is int for k in known):
                suggested = trial.suggest_int(axis, min(known), max(known))
            else:
                suggested = trial.suggest_categorical(axis, sorted(set(known), key=str))
            assert suggested == value, f"Optuna changed the enqueued {axis} from {value} to {suggested}"

    def _params(self, a: Architecture) -> dict[str, Any]:
        """An architecture as Optuna's parameters."""
        return {axis: getattr(a, axis) for axis in self.axes}

    def _start(self, trial: Trial, study: optuna.Study, shown: StudyProgress, taken: set[int]) -> Running | None:
        """Starts a trial's process; None for a trial whose end was written down but not yet told to Optuna."""
        name, seed = trial.user_attrs["architecture"], trial.user_attrs["seed"]
        folder = self.folder.trial(trial.number, name, seed)
        resumed = (folder / "trial.json").is_file()
        if not resumed:
            self.folder.write_trial(folder, self.config, name, seed, self.store)
        ended = read_json(folder / "outcome.json")
        if ended is not None:
            self._tell(study, trial, ended)
            return None
        slot = min(set(range(len(taken) + 1)) - taken)
        child = Child.start(folder, self.config.devices, self.command, slot)
        shown.started(trial.number, name, resumed)
        return Running(trial, name, child, slot, set(study.trials[trial.number].intermediate_values))

    def _follow(self, one: Running, study: optuna.Study, shown: StudyProgress) -> bool:
        """Reads what a trial has written; whether it is over, its end then recorded."""
        stopped = one.child.process.poll() is not None
        ended = self._read(one, shown)
        if ended is None and not stopped:
            return False
        one.child.kill()
        ended = self._complete(one.child) or ended or self._failed(one.child)  # a result wins over the pruner
        if ended is not None and ended["state"] != "failed":
            shutil.rmtree(one.child.folder / "checkpoints", ignore_errors=True)
        if ended is not None:  # else interrupted: the trial stays RUNNING and goes on next time
            write_json(one.child.folder / "outcome.json", ended)
            self._tell(study, one.trial, ended)
            shown.ended(one.trial.number, one.name, ended["state"], ended["text"])
        return True

    def _read(self, one: Running, shown: StudyProgress) -> dict[str, Any] | None:
        """Shows new metric lines and reports evaluations; an outcome if Optuna stops the trial."""
        for line in one.child.new_lines():
            shown.line(one.trial.number, line)
            if self._should_prune(one, line) and not self.signum:
                text = f"loss {line['loss']:.4f} after {line['tokens']:,} tokens"
                reason = f"stopped by the {self.config.pruner.kind} pruner"
                return {
                    "state": "pruned",
                    "tokens": line["tokens"],
                    "loss": line["loss"],
                    "text": text,
                    "reason": reason,
                }
        return None

    def _should_prune(self, running: Running, line: dict[str, Any]) -> bool:
        """Tells Optuna an evaluation; whether the trial should stop there."""
        tokens = line["tokens"]
        if line["kind"] != "evaluation" or tokens >= self.config.training.tokens:
            return False
        if tokens not in running.reported:
            running.trial.report(line["loss"], step=tokens)
            running.reported.add(tokens)
        return tokens == max(running.reported) and running.trial.should_prune()  # it judges the newest report

    def _complete(self, child: Child) -> dict[str, Any] | None:
        """The outcome of a process that reached its data budget; None for any other."""
        config = build(TrialConfig, read_json(child.folder / "trial.json"), str(child.folder / "trial.json"))
        result = outcome.complete(child.folder, config)
        if result is None:
            return None
        gain, speed = result.get("context_gain"), result.get("tokens_per_second")
        text = f"loss {result['loss']:.4f}" + ("" if gain is None else f", context gain {gain:.3f}")
        text += "" if speed is None else f", {speed:,.0f} tokens/s"
        return {"state": "complete", "tokens": result["tokens"], "loss": result["loss"], "text": text}

    def _failed(self, child: Child) -> dict[str, Any] | None:
        """The outcome of a process that ended without a result; None if it, or this study, was asked to stop.

        Raises:
            StorageError: it could not write; no fault of the trial's, which goes on once there is room.
        """
        if self.signum or child.process.returncode in (130, 143, -signal.SIGINT, -signal.SIGTERM):
            return None
        state, text = child.failure()
        if child.process.returncode == StorageError.exit_code:
            raise StorageError(text)
        return {"state": state, "tokens": None, "loss": None, "text": text}

    def _tell(self, study: optuna.Study, trial: Trial, ended: dict[str, Any]) -> None:
        """Closes the trial in Optuna, which would take an infinite loss for a result."""
        if ended["state"] == "complete" and math.isfinite(ended["loss"]):
            study.tell(trial, ended["loss"])
        elif ended["state"] == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr("reason", ended["text"])
            study.tell(trial, state=TrialState.FAIL)

    def _signals(self) -> "_Signals":
        return _Signals(self)

    def _summary(self, study: optuna.Study) -> Summary:
        """Counts by state."""
        states = [t.state for t in study.get_trials(deepcopy=False)]
        complete, pruned, failed = (states.count(s) for s in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        return Summary(complete, pruned, failed, len(states) - complete - pruned - failed, self.signum)


class _Signals:
    """Turns SIGINT and SIGTERM into a note for the loop while a study runs."""

    def __init__(self, run: StudyRun) -> None:
        self._run, self._old = run, {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def __enter__(self) -> None:
        for signum in self._old:
            signal.signal(signum, self._note)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self._run.signum = self._run.signum or signum
        self._run.signals += 1

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
