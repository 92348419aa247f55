"""What a ladder shows: how far a small ranking carries, which effects change, and what the next size will bring."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from march_search.analysis.noise import Array
from march_search.analysis.study_record import StudyRecord
from march_search.architecture.architecture import Architecture
from march_search.errors import UsageError
from march_search.ladders.kept_forecast import ForecastScore, kept_forecasts, score
from march_search.ladders.ladder_record import (
    LadderRecord,
    SizeRecord,
    arm_losses,
    carried_rate,
    is_finished,
    size_losses,
    size_study,
)
from march_search.ladders.size_draws import SizeLosses
from march_search.ladders.size_law import ForecastCheck, SizeForecast, check_forecast, forecast
from march_search.ladders.size_order import EffectChange, SizeAgreement, agreement, changes, detectable_turn


@dataclass(frozen=True, kw_only=True)
class DroppedArm:
    """An arm that did not train at every finished size, because smaller ones rank it below the best."""

    arm: str
    losses: dict[str, tuple[float, float, int]]
    """Mean loss, its standard error over seeds and the number of seeds, by the sizes at which it completed."""


@dataclass(frozen=True, kw_only=True)
class LadderEvidence:
    """Results of a ladder. Arms, losses and effects have the order of `arms`."""

    ladder: LadderRecord
    arms: tuple[str, ...]
    """Arms that completed at every finished size, in the order of the ladder. Effects are against the first: the
    baseline, unless that is in `left_out`."""
    left_out: tuple[str, ...]
    """Arms that did not complete at some finished size, although they were to train there."""
    dropped: tuple[DroppedArm, ...]
    """Arms that `keep` of the ladder dropped before some finished size."""
    records: tuple[SizeRecord, ...]
    """Finished sizes, smallest first."""
    studies: tuple[StudyRecord, ...]
    """Studies of the finished sizes."""
    losses: tuple[SizeLosses, ...]
    """Losses at the finished sizes."""
    counts_SA: Array
    """Number of seeds of each arm at each finished size."""
    rate: float | None
    """Learning rate of all trials that count; None before the smallest size has a complete trial."""
    rate_edge: str
    """`lowest` or `highest` if the rate is at that end of the list tried, else empty."""
    unfinished: tuple[str, ...]
    """Sizes that are not finished."""
    agreements: tuple[SizeAgreement, ...]
    """Each pair of finished sizes."""
    changes: tuple[EffectChange, ...]
    """Effect of each arm against the baseline, from the smallest to the largest finished size."""
    turns: tuple[EffectChange, ...]
    """Pairs of arms that turn from the smallest to the largest finished size, of all pairs."""
    detectable: float | None
    """Effect whose turn would be found with a probability of `size_order.POWER`, over all pairs of arms."""
    forecast: SizeForecast | None
    """Forecast for another size; None with fewer than two finished sizes."""
    no_forecast: str
    """Why there is no forecast, as a sentence."""
    check: ForecastCheck | None
    """Forecast of the largest finished size from the others; None with fewer than three, or if the smaller ones have no
    law."""
    kept_forecasts: tuple[ForecastScore, ...]
    """Forecasts that were written down, by size and date, scored if their size is finished."""
    forecast_faults: tuple[str, ...]
    """One sentence per kept forecast that is damaged or was changed, and is not used."""

    def shapes(self, record: SizeRecord) -> list[Architecture]:
        """Return the architectures of the arms at a size."""
        return [record.architectures[self.ladder.arms.index(arm)] for arm in self.arms]


def ladder_evidence(
    ladder: LadderRecord, root: Path, assumed: float | None = None, parameters: int | None = None
) -> LadderEvidence:
    """Collect the results of a ladder whose studies are in `root`.

    Args:
        ladder: The ladder.
        root: Folder of its studies.
        assumed: Deviation over seeds of every architecture's prior, in nats; None for the recorded priors.
        parameters: Parameters of the size to forecast; None for as many times the largest finished size as that is of
            the size before it.

    Raises:
        StorageError: If a study is damaged.
        UsageError: If no size is finished, or `parameters` is not above the largest finished size.
    """
    studies = [size_study(ladder, size, root) for size in ladder.sizes]
    rate = carried_rate(ladder, studies)
    done = [
        (size, study, arm_losses(study, size, rate))
        for size, study in zip(ladder.sizes, studies, strict=True)
        if rate is not None and study is not None and is_finished(study)
    ]
    records = tuple(size for size, *_ in done)
    unfinished = tuple(size.size for size in ladder.sizes if size not in records)
    if not done:
        raise UsageError(f"{ladder.name} has no finished size yet: run march-search study run {ladder.name}.")
    kept = [
        index
        for index in range(len(ladder.arms))
        if all(size.architectures[index].name in own for size, _, own in done)
    ]
    if len(kept) < 3:
        raise UsageError(
            f"{ladder.name} has {len(kept)} arms that completed at every finished size; it needs three."
            + _missing(ladder, done)
        )
    losses = [size_losses(size, own, kept, assumed) for size, _, own in done]
    if parameters is not None and parameters <= losses[-1].parameters:
        raise UsageError(
            f"--at {parameters:,}: is not above the largest finished size, {losses[-1].parameters:,}: use a larger one."
        )
    is_ladder, many = len(losses) > 1, len(kept)
    gone = [k for k, arm in enumerate(ladder.arms) if any(size.trained and arm not in size.trained for size in records)]
    found, reason = _forecast(losses, parameters)
    stated, faults = kept_forecasts(root / ladder.name)
    return LadderEvidence(
        ladder=ladder,
        arms=tuple(ladder.arms[index] for index in kept),
        left_out=tuple(arm for index, arm in enumerate(ladder.arms) if index not in [*kept, *gone]),
        dropped=tuple(_dropped(ladder, index, done, assumed) for index in gone),
        records=records,
        studies=tuple(study for _, study, _ in done),
        losses=tuple(losses),
        counts_SA=np.array([[len(own[size.architectures[index].name]) for index in kept] for size, _, own in done]),
        rate=rate,
        rate_edge=_edge(studies[0], rate),
        unfinished=unfinished,
        agreements=tuple(
            agreement(*_both(small, large, kept, gone, assumed)) for small, large in combinations(done, 2)
        ),
        changes=changes(losses[0], losses[-1], [(k, 0) for k in range(1, many)]) if is_ladder else (),
        turns=tuple(c for c in changes(losses[0], losses[-1]) if c.change == "turns") if is_ladder else (),
        detectable=detectable_turn(losses[0], losses[-1], many * (many - 1) // 2) if is_ladder else None,
        forecast=found,
        no_forecast=reason,
        check=_check(losses) if found else None,
        kept_forecasts=tuple(
            score(one, ladder.arms, [(size, own) for size, _, own in done], assumed) for one in stated
        ),
        forecast_faults=faults,
    )


Finished = tuple[SizeRecord, StudyRecord, dict[str, tuple[float, ...]]]
"""A finished size, its study and the losses of the seeds by architecture."""


def _missing(ladder: LadderRecord, done: list[Finished]) -> str:
    """Return which arms were to train at a finished size and did not complete, as a sentence after another."""
    lacks = [
        (arm, size)
        for size, _, own in done
        for arm, shape in zip(ladder.arms, size.architectures, strict=True)
        if arm in (size.trained or ladder.arms) and shape.name not in own
    ]
    if not lacks:
        return ""
    words = ", ".join(f"{arm} at {size.size}" for arm, size in lacks)
    commands = " and ".join(f"march-search study status {name}" for name in dict.fromkeys(s.study for _, s in lacks))
    return f" Not complete: {words}; see {commands}."


def _both(
    small: Finished, large: Finished, kept: list[int], gone: list[int], assumed: float | None
) -> tuple[SizeLosses, SizeLosses]:
    """Return the losses at two sizes of the arms that completed at every size or, if dropped later, at both."""
    arms = sorted(
        {*kept, *(k for k in gone if all(size.architectures[k].name in own for size, _, own in (small, large)))}
    )
    first, second = (size_losses(size, own, arms, assumed) for size, _, own in (small, large))
    return first, second


def _dropped(ladder: LadderRecord, index: int, done: list[Finished], assumed: float | None) -> DroppedArm:
    """Return an arm that was dropped, with its losses at the sizes at which it completed."""
    losses = {}
    for size, _, own in done:
        name = size.architectures[index].name
        if name in own:
            side = size_losses(size, own, [index], assumed)
            losses[size.size] = (float(side.means_A[0]), float(side.errors_A[0]), len(own[name]))
    return DroppedArm(arm=ladder.arms[index], losses=losses)


def _edge(study: StudyRecord | None, rate: float | None) -> str:
    """Return `lowest` or `highest` if the rate is at that end of the study's list, else an empty text."""
    tried = sorted(study.settings.get("search", {}).get("learning_rates") or ()) if study else []
    return {tried[0]: "lowest", tried[-1]: "highest"}.get(rate, "") if len(tried) > 1 and rate is not None else ""


def _forecast(losses: list[SizeLosses], parameters: int | None) -> tuple[SizeForecast | None, str]:
    """Return the forecast, or None and the reason."""
    if len(losses) < 2:
        return None, "A forecast needs two finished sizes: train another one."
    target = parameters or round(losses[-1].parameters ** 2 / losses[-2].parameters)
    try:
        return forecast(losses, target), ""
    except UsageError as error:
        return None, f"No forecast: {error}"


def _check(losses: list[SizeLosses]) -> ForecastCheck | None:
    """Return the check of the forecast; None with fewer than three sizes, or if the smaller ones have no law."""
    try:
        return check_forecast(losses)
    except UsageError:
        return None
