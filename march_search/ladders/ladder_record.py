"""Read a ladder back: its record, the studies of its sizes, and the losses of its arms."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from march_search.analysis.noise import seed_noise
from march_search.analysis.study_record import StudyRecord, TrialRecord, started_study
from march_search.architecture.architecture import Architecture
from march_search.errors import StorageError
from march_search.files.json_tables import find_table
from march_search.ladders.size_draws import SizeLosses

LADDER_FILE = "ladder.json"
"""Record of a ladder in its folder."""

WAITING = ("unfinished", "paused")
"""States of trials that may still complete."""

_RECORD = {"question": str, "arms": list, "sizes": list}


@dataclass(frozen=True, kw_only=True)
class SizeRecord:
    """One size of a ladder, as recorded."""

    size: str
    study: str
    """Name of its study."""
    parameters: int
    tokens: int
    architectures: tuple[Architecture, ...]
    """Architecture of each arm."""
    missed: tuple[tuple[str, ...], ...]
    """Directions of each arm that could not be kept."""
    trained: tuple[str, ...] = ()
    """Arms that train at this size; empty for all."""
    reason: str = ""
    """Why these, as one sentence; empty if all arms train at all sizes."""
    risk: float | None = None
    """Probability that the best arm is among those that `keep` would drop; None if it is not known."""


@dataclass(frozen=True, kw_only=True)
class LadderRecord:
    """A ladder, as recorded in its folder."""

    name: str
    question: str
    arms: tuple[str, ...]
    """Names of the arms; the first is the baseline."""
    sizes: tuple[SizeRecord, ...]
    """Sizes, smallest first."""
    overrides: tuple[str, ...] = ()
    """Settings that the command line gave, as `KEY=VALUE`."""


def find_ladder(folder: Path) -> LadderRecord | None:
    """Return the ladder that is recorded in `folder`; None if there is none.

    Raises:
        StorageError: If its record is damaged.
    """
    remedy = "Restore it from a copy, or delete it and run the ladder again."
    record = find_table(folder / LADDER_FILE, _RECORD, remedy)
    if record is None:
        return None
    try:
        return LadderRecord(
            name=folder.resolve().name,
            question=record["question"],
            arms=tuple(map(str, record["arms"])),
            sizes=tuple(_size(table) for table in record["sizes"]),
            overrides=tuple(map(str, record.get("overrides", ()))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{folder / LADDER_FILE}: is damaged: {error}. {remedy}") from None


def _size(table: Mapping[str, Any]) -> SizeRecord:
    """Return one size of a record."""
    return SizeRecord(
        size=str(table["size"]),
        study=str(table["study"]),
        parameters=int(table["parameters"]),
        tokens=int(table["tokens"]),
        architectures=tuple(map(Architecture.parse, table["architectures"])),
        missed=tuple(tuple(map(str, texts)) for texts in table["missed"]),
        trained=tuple(map(str, table.get("trained", ()))),
        reason=str(table.get("reason", "")),
        risk=None if table.get("risk") is None else float(table["risk"]),
    )


def size_study(ladder: LadderRecord, size: SizeRecord, root: Path) -> StudyRecord | None:
    """Return the study of a size; None if it has no trials yet.

    Raises:
        StorageError: If its record is damaged.
    """
    return started_study(root / size.study)


def is_finished(study: StudyRecord) -> bool:
    """Return whether no trial of the plan may still complete."""
    started = len(study.trials) + len(study.damaged)
    return started >= study.planned_trials and not any(trial.state in WAITING for trial in study.trials)


def arm_trials(
    study: StudyRecord, architectures: Sequence[Architecture], rate: float
) -> dict[str, tuple[TrialRecord, ...]]:
    """Return the complete trials at a learning rate, by the name of the architecture and in the order of the seeds."""
    found: dict[str, dict[int, TrialRecord]] = defaultdict(dict)
    for trial in study.trials:
        is_wanted = trial.state == "complete" and trial.config.training.learning_rate == rate
        if is_wanted and trial.loss is not None and trial.architecture in architectures:
            found[trial.architecture.name].setdefault(trial.seed, trial)
    return {name: tuple(own[seed] for seed in sorted(own)) for name, own in found.items()}


def arm_losses(study: StudyRecord, size: SizeRecord, rate: float) -> dict[str, tuple[float, ...]]:
    """Return the losses of `arm_trials`."""
    found = arm_trials(study, size.architectures, rate)
    return {name: tuple(trial.loss for trial in own if trial.loss is not None) for name, own in found.items()}


def carried_rate(ladder: LadderRecord, studies: Sequence[StudyRecord | None]) -> float | None:
    """Return the learning rate of the trials that count; None if no trial of the smallest size is complete.

    It is the rate of the larger sizes once one of them has trials, also if a retry at the smallest size would change
    the choice. Before that, it is the rate with the lowest mean loss over the arms there, of the rates with which most
    arms completed. All arms get the same rate, so that their choice cannot favour one of them.

    Args:
        ladder: The ladder.
        studies: Studies of its sizes, smallest first, or of the first of them; None for one without trials.
    """
    smallest = studies[0]
    if smallest is None:
        return None
    losses = {rate: arm_losses(smallest, ladder.sizes[0], rate) for rate in trial_rates(smallest)}
    most = max((len(own) for own in losses.values()), default=0)
    means = {rate: fmean(map(fmean, own.values())) for rate, own in losses.items() if own and len(own) == most}
    carried = [rates[0] for study in studies[1:] if study and len(rates := trial_rates(study)) == 1]
    if carried and losses.get(carried[0]):
        return carried[0]
    return min(means, key=lambda rate: (means[rate], rate)) if means else None


def trial_rates(study: StudyRecord) -> list[float]:
    """Return the learning rates of a study's trials, ascending."""
    return sorted({trial.config.training.learning_rate for trial in study.trials})


def size_losses(
    size: SizeRecord, losses: Mapping[str, Sequence[float]], arms: Sequence[int], assumed: float | None
) -> SizeLosses:
    """Return the losses of some arms at one size with their noise.

    Args:
        size: The size.
        losses: Result of `arm_losses`.
        arms: Indices of the arms, all of which have losses.
        assumed: Deviation over seeds of every prior, in nats; None for the recorded priors.
    """
    shapes = [size.architectures[index] for index in arms]
    own = [losses[shape.name] for shape in shapes]
    noise = seed_noise(shapes, own, assumed)
    return SizeLosses(
        size=size.size,
        parameters=size.parameters,
        means_A=np.array([fmean(values) for values in own]),
        errors_A=np.array([d / math.sqrt(len(values)) for d, values in zip(noise.deviations, own, strict=True)]),
        degrees_A=np.array(noise.degrees, float),
    )
