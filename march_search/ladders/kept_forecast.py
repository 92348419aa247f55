"""Read the forecasts that a ladder keeps in its folder, and score them once their size is trained."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from march_search.analysis.comparison import Interval
from march_search.errors import StorageError
from march_search.files.json_tables import read_table
from march_search.ladders.ladder_record import SizeRecord, size_losses
from march_search.ladders.size_order import separated_pairs

FORECASTS = "forecasts"
"""Folder of the kept forecasts in a ladder's folder."""

_RECORD = {"ladder": str, "size": str, "parameters": int, "date": str, "version": str, "arms": list, "sha256": str}

_REMEDY = "It is not scored; restore it from a copy."


@dataclass(frozen=True, kw_only=True)
class ArmForecast:
    """What a kept forecast states of one arm."""

    arm: str
    loss: float
    """Expected loss, in nats."""
    interval: Interval
    """Interval of the mean loss over `seeds` new seeds, with their noise."""
    seeds: int


@dataclass(frozen=True, kw_only=True)
class KeptForecast:
    """A forecast as it was written down."""

    name: str
    """Name of its file, without the ending."""
    date: str
    """When it was written, in UTC (ISO 8601)."""
    version: str
    """Version of this program that wrote it."""
    size: str
    parameters: int
    arms: tuple[ArmForecast, ...]
    """Arms, lowest expected loss first."""


@dataclass(frozen=True, kw_only=True)
class ArmScore:
    """A forecast of one arm, beside the loss that was seen."""

    forecast: ArmForecast
    seen: float | None
    """Mean loss over the seeds that were trained; None if the arm has not completed."""
    seeds: int
    """Number of seeds that were trained."""

    @property
    def held(self) -> bool | None:
        """Whether the forecast interval has the loss that was seen; None if none was."""
        interval = self.forecast.interval
        return None if self.seen is None else interval.low <= self.seen <= interval.high


@dataclass(frozen=True, kw_only=True)
class ForecastScore:
    """A kept forecast, compared with its size."""

    forecast: KeptForecast
    is_trained: bool
    """Whether the size is finished; before that, nothing is compared."""
    arms: tuple[ArmScore, ...]
    """Arms, in the order of the forecast."""
    pairs: int
    """Number of pairs of arms that are separated by the losses seen."""
    pairs_held: int
    """How many of these have the order of the forecast."""


def kept_forecasts(folder: Path) -> tuple[tuple[KeptForecast, ...], tuple[str, ...]]:
    """Return the forecasts in a ladder's folder, by size and date, and one sentence per file that cannot be used."""
    found, faults = [], []
    for path in sorted((folder / FORECASTS).glob("*.json")):
        try:
            found.append(_read(path, folder.resolve().name))
        except StorageError as error:
            faults.append(str(error))
    found.sort(key=lambda one: (one.parameters, one.date, len(one.name), one.name))
    return tuple(found), tuple(faults)


def _read(path: Path, ladder: str) -> KeptForecast:
    """Read one forecast.

    Raises:
        StorageError: If it is damaged, was changed after it was written, or is that of another ladder.
    """
    table = read_table(path, _RECORD, _REMEDY)
    if table["ladder"] != ladder:
        raise StorageError(f"{path}: is a forecast of {table['ladder']}, not of {ladder}. It is not scored; move it.")
    try:
        arms = tuple(
            ArmForecast(
                arm=str(row["arm"]),
                loss=float(row["loss"]),
                interval=Interval(*map(float, row["interval_trained"])),
                seeds=int(row["seeds"]),
            )
            for row in table["arms"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path}: is damaged: {error}. {_REMEDY}") from None
    texts = {key: table[key] for key in ("date", "version", "size", "parameters")}
    return KeptForecast(name=path.stem, arms=arms, **texts)


def score(
    forecast: KeptForecast,
    arms: Sequence[str],
    finished: Iterable[tuple[SizeRecord, Mapping[str, Sequence[float]]]],
    assumed: float | None,
) -> ForecastScore:
    """Compare a forecast with the losses of its size, if that is finished.

    Args:
        forecast: The forecast.
        arms: Names of the ladder's arms.
        finished: Finished sizes, each with the losses of the seeds by architecture (`ladder_record.arm_losses`).
        assumed: Deviation over seeds of every prior, in nats; None for the recorded priors.
    """
    seen: dict[str, float] = {}
    seeds: dict[str, int] = {}
    pairs: list[tuple[float, float]] = []
    stated = {one.arm: one.loss for one in forecast.arms}
    found = next(((size, own) for size, own in finished if size.parameters == forecast.parameters), None)
    if found:
        size, own = found
        shapes = dict(zip(arms, size.architectures, strict=True))
        there = [arm for arm in arms if arm in stated and shapes[arm].name in own]
        seeds = {arm: len(own[shapes[arm].name]) for arm in there}
        if there:
            losses = size_losses(size, own, [arms.index(arm) for arm in there], assumed)
            seen = dict(zip(there, map(float, losses.means_A), strict=True))
            named = [(there[a], there[b]) for a, b in separated_pairs(losses)]
            pairs = [(stated[a] - stated[b], seen[a] - seen[b]) for a, b in named]
    return ForecastScore(
        forecast=forecast,
        is_trained=found is not None,
        arms=tuple(
            ArmScore(forecast=one, seen=seen.get(one.arm), seeds=seeds.get(one.arm, 0)) for one in forecast.arms
        ),
        pairs=len(pairs),
        pairs_held=sum(expected * difference > 0 for expected, difference in pairs),
    )
