"""Read a ladder with compute budgets back: its record, the studies of its points, and their losses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from march_search.analysis.study_record import StudyRecord, TrialRecord, started_study
from march_search.architecture.architecture import Architecture
from march_search.errors import StorageError
from march_search.files.json_tables import find_table
from march_search.ladders.ladder_record import arm_trials, trial_rates

ISOFLOP_FILE = "isoflop.json"
"""Record of a ladder with compute budgets in its folder."""

_RECORD = {"question": str, "arms": list, "sizes": list, "points": list}


@dataclass(frozen=True, kw_only=True)
class PointRecord:
    """One arm at one size and one compute budget, as recorded."""

    study: str
    """Name of its study."""
    budget: str
    """Name of the compute budget."""
    budget_flops: float
    """Training FLOPs of the budget."""
    size: str
    arm: str
    architecture: Architecture
    parameters: int
    """Parameters of the shape, as the budget of the space counts them."""
    tokens: int
    flops_per_token: float
    training_flops: float
    """Training FLOPs of a trial, whose tokens are whole steps."""
    missed: tuple[str, ...]
    """Directions that could not be kept."""


@dataclass(frozen=True, kw_only=True)
class IsoflopRecord:
    """A ladder with compute budgets, as recorded in its folder."""

    name: str
    question: str
    arms: tuple[str, ...]
    """Names of the arms; the first is the baseline."""
    sizes: tuple[str, ...]
    """Names of the sizes, smallest first."""
    points: tuple[PointRecord, ...]
    """By budget, then by size, smallest first, then by arm."""
    first: tuple[str, str]
    """Names of the budget and the size at which learning rates are tried and whose warm-up the settings have: the
    smallest when the ladder was started."""
    overrides: tuple[str, ...] = ()
    """Settings that the command line gave, as `KEY=VALUE`."""

    @property
    def budgets(self) -> dict[str, float]:
        """Training FLOPs of each compute budget by its name, smallest first."""
        return {point.budget: point.budget_flops for point in self.points}


def find_isoflop(folder: Path) -> IsoflopRecord | None:
    """Return the ladder with compute budgets that is recorded in `folder`; None if there is none.

    Raises:
        StorageError: If its record is damaged.
    """
    remedy = "Restore it from a copy, or delete it and run the ladder again."
    record = find_table(folder / ISOFLOP_FILE, _RECORD, remedy)
    if record is None:
        return None
    try:
        points = tuple(_point(table) for table in record["points"])
        budget, size = record.get("first") or (points[0].budget, points[0].size)
        return IsoflopRecord(
            name=folder.resolve().name,
            question=record["question"],
            arms=tuple(map(str, record["arms"])),
            sizes=tuple(map(str, record["sizes"])),
            points=points,
            first=(str(budget), str(size)),
            overrides=tuple(map(str, record.get("overrides", ()))),
        )
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{folder / ISOFLOP_FILE}: is damaged: {error}. {remedy}") from None


def _point(table: Mapping[str, Any]) -> PointRecord:
    """Return one point of a record."""
    return PointRecord(
        study=str(table["study"]),
        budget=str(table["budget"]),
        budget_flops=float(table["budget_flops"]),
        size=str(table["size"]),
        arm=str(table["arm"]),
        flops_per_token=float(table["flops_per_token"]),
        training_flops=float(table["training_flops"]),
        architecture=Architecture.parse(table["architecture"]),
        parameters=int(table["parameters"]),
        tokens=int(table["tokens"]),
        missed=tuple(map(str, table["missed"])),
    )


def point_studies(record: IsoflopRecord, root: Path) -> dict[str, StudyRecord]:
    """Return the studies of the points that have trials, by name.

    Raises:
        StorageError: If a study is damaged.
    """
    found = {point.study: started_study(root / point.study) for point in record.points}
    return {name: study for name, study in found.items() if study}


def first_points(record: IsoflopRecord) -> tuple[PointRecord, ...]:
    """Return the points at which learning rates are tried: all arms at one size of one budget."""
    return tuple(point for point in record.points if (point.budget, point.size) == record.first)


def point_trials(study: StudyRecord, point: PointRecord, rate: float) -> tuple[TrialRecord, ...]:
    """Return the complete trials of a point at a learning rate, in the order of the seeds."""
    return arm_trials(study, (point.architecture,), rate).get(point.architecture.name, ())


def chosen_rate(record: IsoflopRecord, studies: Mapping[str, StudyRecord]) -> float | None:
    """Return the learning rate of the trials that count; None if no trial is complete where the rates are tried.

    It is the rate of the other points once one of them has trials, also if a retry or another arm would change the
    choice. Before that, it is the rate with the lowest mean loss over the arms, of those with which most arms
    completed. All arms get the same rate, so that its choice cannot favour one of them.
    """
    first = first_points(record)
    found = [(studies[point.study], point) for point in first if point.study in studies]
    means: dict[float, list[float]] = {}
    for rate in sorted({rate for study, _ in found for rate in trial_rates(study)}):
        trials = [point_trials(study, point, rate) for study, point in found]
        means[rate] = [fmean(t.loss for t in own if t.loss is not None) for own in trials if own]
    others = [studies[point.study] for point in record.points if point not in first and point.study in studies]
    carried = [rates[0] for study in others if len(rates := trial_rates(study)) == 1]
    if carried and means.get(carried[0]):
        return carried[0]
    most = max(map(len, means.values()), default=0)
    full = {rate: fmean(own) for rate, own in means.items() if most and len(own) == most}
    return min(full, key=lambda rate: (full[rate], rate)) if full else None
