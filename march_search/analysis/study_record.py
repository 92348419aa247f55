"""Read the trials of a study from their folders, without Optuna or a running process."""

import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

from march_search.architecture.architecture import Architecture
from march_search.config import PrunerConfig, StudyConfig, TrialConfig
from march_search.config.changes import differences, in_current_keys
from march_search.config.loader import build
from march_search.errors import DataError, MarchSearchError, NoTrialsError, StorageError
from march_search.files.atomic import one_line
from march_search.files.json_tables import NUMBER, find_table, read_table
from march_search.trial.metrics import Metrics, read_metrics
from march_search.trial.outcome import read_outcome
from march_search.trial.own_trials import DamagedTrial, OwnTrial, find_trials
from march_search.trial.result import VALIDATION_SEAL, check_file, read_result, validation_file
from march_search.trial.settings import FREE, changed_settings, changed_words

State = Literal["complete", "pruned", "failed", "diverged", "infeasible_memory", "paused", "unfinished", "damaged"]

STATES = ("complete", "pruned", "failed", "diverged", "infeasible_memory")
"""States that outcome.json can have."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial, as recorded in its folder."""

    folder: Path
    """Trial folder."""
    store: Path
    """Folder of the token store."""
    number: int
    """Trial number in Optuna."""
    architecture: Architecture
    config: TrialConfig
    """Configuration of the trial."""
    seed: int
    state: State
    """`complete` requires a result whose tokens equal the data budget; a `paused` trial waits on a rung; the files of a
    `damaged` trial do not show its result."""
    tokens: int
    """Tokens at the last evaluation."""
    loss: float | None
    """Validation loss at the last evaluation, in nats per target token; None before the first."""
    bits_per_byte: float | None
    """Validation loss at the last evaluation, in bits per byte of text; None if it was not recorded."""
    context_gain: float | None
    """Increase in loss without the context, in nats; None if it was not measured (decoder-only, recorded earlier)."""
    tokens_per_second: float | None
    """Training speed: the median over the log lines, which a pause or a compilation does not change; without log lines
    that of the result, else None."""
    reason: str
    """Why the trial is not complete; empty if it is."""
    evaluations: tuple[dict[str, Any], ...]
    """All evaluation lines, in order."""
    result: dict[str, Any] | None
    """Full result of a complete trial."""
    notes: tuple[str, ...] = ()
    """One line for each damaged file or line that was left out."""
    branches: tuple[dict[str, Any], ...] = ()
    """Evaluation of each decay branch: `branch` is the data budget at which it ends. Ascending."""
    branched_tokens: int = 0
    """Tokens that decay branches trained."""
    is_branch: bool = False
    """Whether this record shows a decay branch as a trial of the shorter budget (`shorter_budgets.at_budget`)."""

    def loss_at(self, tokens: int) -> float | None:
        """Return the validation loss after `tokens` tokens; None if it was not evaluated there."""
        loss = self.loss if tokens == self.tokens else self._at(tokens, "loss")
        return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None

    def gain_at(self, tokens: int) -> float | None:
        """Return the context gain after `tokens` tokens; None if it was not measured there."""
        return self.context_gain if tokens == self.tokens else self._at(tokens, "context_gain")

    @property
    def curve(self) -> dict[int, float]:
        """Loss by tokens at each evaluation; a complete trial ends with its result, even if the evaluation is lost."""
        found = {int(line["tokens"]): float(line["loss"]) for line in self.evaluations}
        return found if self.loss is None else found | {self.tokens: self.loss}

    @property
    def bits_per_nat(self) -> float | None:
        """Factor from the loss of any evaluation to bits per byte; None if none was recorded."""
        return self.bits_per_byte / self.loss if self.bits_per_byte and self.loss else None

    def _at(self, tokens: int, key: str) -> Any:
        """Return a value of the evaluation after `tokens` tokens; None without one."""
        return next((line.get(key) for line in self.evaluations if line["tokens"] == tokens), None)


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study, as recorded in its folder."""

    name: str
    settings: dict[str, Any]
    """Settings as in the study's TOML file, with defaults filled in."""
    reference: dict[str, Any]
    """Losses of n-gram models; keys are `target_` or `text_` followed by `unigram_nats`, `bigram_nats`, or
    `bits_per_nat`, the factor from these to bits per byte."""
    trials: tuple[TrialRecord, ...]
    """Trials, by number."""
    planned_trials: int = 0
    """Number of trials of the search in the plan that the study was started with; 0 if it has none."""
    damaged: tuple[DamagedTrial, ...] = ()
    """Trials of which not even the settings can be read."""
    notes: tuple[str, ...] = ()
    """One line for each damaged file or line that was left out, and one for what the study's trials did not write."""
    whole: "StudyRecord | None" = None
    """The study itself, if this record shows its decay branches (`shorter_budgets.at_budget`)."""

    @cached_property
    def config(self) -> StudyConfig:
        """The settings as configuration.

        Raises:
            ConfigError: If a setting is not valid.
        """
        return _config(self.settings, self.name)

    @property
    def decay(self) -> str:
        """Learning rate schedule if it decays, else empty; with decay, a curve does not show losses of shorter runs."""
        schedule = str(self.settings.get("training", {}).get("schedule", "constant"))
        return "" if schedule == "constant" else schedule


def read_study(folder: Path) -> StudyRecord:
    """Read a started study from its folder. A damaged file costs only its own trial, and is named in the notes.

    Raises:
        ConfigError: If a setting in study.json is not valid.
        NoTrialsError: If the study has no trials yet.
        StorageError: If its study.json is damaged.
    """
    path = folder / "study.json"
    settings = in_current_keys(read_table(path, {"settings": dict}, "Restore it from a copy.")["settings"], True)
    pruner = _config(settings, str(path)).pruner
    found = find_trials(folder)
    trials, copies = _without_copies([_read_trial(trial, pruner) for trial in found.trials])
    if not trials and not found.damaged:
        text = f"{folder}: the study has no trials yet; use march-search study run {folder.name}."
        raise NoTrialsError(" ".join([text, *found.notes]))
    found.strays += copies
    reference, notes = _read_reference(folder)
    notes += [f"trial {trial.number}: {note}" for trial in trials for note in trial.notes]
    return StudyRecord(
        name=folder.resolve().name,
        settings=settings,
        reference=reference,
        trials=tuple(trials),
        planned_trials=_planned_trials(folder),
        damaged=tuple(found.damaged),
        notes=(*notes, *found.notes),
    )


def started_study(folder: Path) -> StudyRecord | None:
    """Read a study as `read_study` does; return None if it was not started or has no trials yet.

    Raises:
        ConfigError: If a setting in study.json is not valid.
        StorageError: If its study.json is damaged.
    """
    try:
        return read_study(folder) if (folder / "study.json").is_file() else None
    except NoTrialsError:
        return None


def _planned_trials(folder: Path) -> int:
    """Return the number of trials in plan.json; 0 if there is none or it is damaged."""
    try:
        return int((find_table(folder / "plan.json", {"trials": int}, "") or {"trials": 0})["trials"])
    except StorageError:
        return 0


def _config(settings: dict[str, Any], source: str) -> StudyConfig:
    """Return the settings in study.json as configuration; `source` is named in errors."""
    chosen = {key: value for key, value in settings.items() if key != "architectures"}
    return build(StudyConfig, {"space": ""} | chosen, source)


def _without_copies(trials: list[TrialRecord]) -> tuple[list[TrialRecord], list[str]]:
    """Return the trials without copies under other numbers, and the names of the copies.

    A study never completes two trials with the same architecture, seed and learning rate.
    """
    kept: list[TrialRecord] = []
    copies: list[str] = []
    complete: dict[tuple[Architecture, int, float], int] = {}
    for trial in trials:
        identity = trial.architecture, trial.seed, trial.config.training.learning_rate
        if trial.state == "complete" and identity in complete:
            copies.append(f"{trial.folder.name} (the same trial as {complete[identity]})")
            continue
        if trial.state == "complete":
            complete[identity] = trial.number
        kept.append(trial)
    return kept, copies


def _read_reference(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the losses of n-gram models, empty if they are damaged, and a note on the damage."""
    keys = ("unigram_nats", "bigram_nats", "bits_per_nat")
    names = [f"{kind}_{key}?" for kind in ("target", "text") for key in keys]
    remedy = "The losses of n-gram models are left out; run the study again to write them."
    try:
        reference = find_table(folder / "reference.json", dict.fromkeys(names, NUMBER), remedy) or {}
    except StorageError as error:
        return {}, [str(error)]
    return {key: reference[key] for key in (name.removesuffix("?") for name in names) if key in reference}, []


def _read_trial(trial: OwnTrial, pruner: PrunerConfig) -> TrialRecord:
    """Read the folder of one trial; `pruner` is that of its study."""
    folder, config, metrics = trial.folder, trial.config, read_metrics(trial.folder)
    notes = [metrics.fault] if metrics.fault else []
    result, fault = _read_result(folder, config)
    ended: dict[str, Any] = {}
    try:
        ended = read_outcome(folder) or {}
    except StorageError as error:
        fault = fault or ("" if result else str(error))
        notes += [str(error)] if result else []
    state: State = ended["state"] if ended.get("state") in STATES else "complete" if result else "unfinished"
    if fault:
        state, ended = "damaged", {"text": fault}
    elif state == "complete" and result is None:
        state, ended = "failed", {"text": "result.json is missing."}
    evaluations = metrics.of_kind("evaluation")
    if state == "complete" and result:
        evaluations, contradictions = _consistent(metrics, result)
        notes += contradictions + _validation_notes(folder, result)
    branches, contradictions = _branches(metrics, result if state == "complete" else None)
    notes += contradictions
    last = evaluations[-1] if evaluations else {}
    if state == "unfinished" and _on_rung(int(last.get("tokens", 0)), config, pruner):
        state, ended = "paused", {"text": f"waiting on the rung at {last['tokens']:,} tokens, or just promoted"}
    source = result if state == "complete" and result else last
    loss = source.get("loss")
    speeds = [line["tokens_per_second"] for line in metrics.of_kind("train") if line.get("tokens_per_second")]
    return TrialRecord(
        folder=folder,
        store=folder / config.store,
        number=trial.number,
        architecture=Architecture.parse(config.architecture),
        config=config,
        seed=config.seed,
        state=state,
        tokens=int(source.get("tokens", 0)),
        loss=float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None,
        bits_per_byte=source.get("bits_per_byte"),
        context_gain=source.get("context_gain"),
        tokens_per_second=median(speeds) if speeds else source.get("tokens_per_second"),
        reason="" if state == "complete" else _reason(state, ended),
        evaluations=evaluations,
        result=result if state == "complete" else None,
        notes=tuple(notes),
        branches=branches,
        branched_tokens=metrics.branched_tokens,
    )


def _branches(metrics: Metrics, result: dict[str, Any] | None) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    """Return the evaluations of decay branches, and a note if some contradict the sealed result, which counts then."""
    lines = {int(line["branch"]): line for line in metrics.of_kind("branch_evaluation")}
    sealed = {int(row["tokens"]): row for row in (result or {}).get("branches") or ()}
    wrong = [tokens for tokens, row in sealed.items() if lines.get(tokens, row).get("loss") != row["loss"]]
    found = lines | {tokens: lines.get(tokens, {}) | row | {"branch": tokens} for tokens, row in sealed.items()}
    note = f"{metrics.path}: the branches to {wrong} tokens contradict result.json, whose losses are used."
    return tuple(found[tokens] for tokens in sorted(found)), [note] if wrong else []


def _read_result(folder: Path, config: TrialConfig) -> tuple[dict[str, Any] | None, str]:
    """Return the result of a trial, and why its files do not show a result; at least one of them is empty."""
    try:
        if changes := changed_settings(folder, config):
            return None, changed_words(folder, changes)
        result = read_result(folder, config)
    except MarchSearchError as error:
        return None, f"{one_line(error)}."
    if result is None:
        return None, ""
    recorded, now = result.get("training", {}), asdict(config.training)
    shared = {key: value for key, value in json.loads(json.dumps(now)).items() if key in recorded}
    free = FREE | {"micro_batch_sequences"} | (recorded.keys() - shared.keys())  # it was chosen when the trial started
    changes = list(differences(recorded, shared, free, "training."))
    return (None, changed_words(folder, changes)) if changes else (result, "")


def _consistent(metrics: Metrics, result: dict[str, Any]) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    """Return the evaluations of a complete trial without one that contradicts its sealed result, and a note on it."""
    evaluations = metrics.of_kind("evaluation")
    last = evaluations[-1] if evaluations else None
    if last is None or last["tokens"] != result["tokens"]:
        return evaluations, [f"{metrics.path}: has no evaluation after {result['tokens']:,} tokens."]
    if any(last.get(key) != result.get(key) for key in ("loss", "context_gain")):
        fault = f"the evaluation after {result['tokens']:,} tokens contradicts result.json and was left out"
        return evaluations[:-1], [f"{metrics.path}: {fault}."]
    return evaluations, []


def _validation_notes(folder: Path, result: dict[str, Any]) -> list[str]:
    """Return a note if the losses of the validation examples were changed."""
    try:
        check_file(validation_file(folder, result["tokens"]), result, VALIDATION_SEAL)
    except DataError as error:
        return [f"{error} Data noise is measured without it."]
    return []


def _on_rung(tokens: int, config: TrialConfig, pruner: PrunerConfig) -> bool:
    """Return whether a trial with so many tokens is at a rung before its end."""
    return pruner.kind == "rungs" and tokens in pruner.rung_tokens(config.training)[:-1]


def _reason(state: State, ended: dict[str, Any]) -> str:
    """Return why a trial is not complete."""
    return (
        ended.get("reason") or ended.get("text") or ("interrupted or still running" if state == "unfinished" else state)
    )
