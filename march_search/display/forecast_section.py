"""The forecasts that a ladder keeps, beside what was trained: a table, values for JSON, and cells for CSV."""

from typing import Any

from march_search.display.sections import Section
from march_search.display.tables import Column
from march_search.ladders.kept_forecast import ArmScore, ForecastScore
from march_search.ladders.ladder import LadderEvidence
from march_search.ladders.ladder_record import SizeRecord
from march_search.units import plural

Row = dict[str, Any]

COLUMNS = (
    Column(key="file", heading="forecast", short="forecast", left=True),
    Column(key="arm", heading="arm", short="arm", left=True),
    Column(key="forecast", heading="loss", short="loss", show="{:.4f}".format),
    Column(key="low", heading="95% from", short="from", show="{:.4f}".format),
    Column(key="high", heading="to", short="to", show="{:.4f}".format),
    Column(key="seen", heading="trained", short="trained", show="{:.4f}".format),
    Column(key="held", heading="interval", short="interval", left=True, show=lambda held: "hit" if held else "miss"),
)


def forecast_section(found: LadderEvidence) -> Section | None:
    """Return the kept forecasts with their scores; None if the ladder has none."""
    if not found.kept_forecasts:
        return None
    rows = [{"file": one.forecast.name, **_cells(arm)} for one in found.kept_forecasts for arm in one.arms]
    notes = [_score(one) for one in found.kept_forecasts]
    notes.append(
        "95%: interval of the mean over as many new seeds as the smaller sizes had. hit: the trained loss is in it."
    )
    warnings = [text for one in found.kept_forecasts if (text := _other_seeds(one))]
    return Section(title="forecasts written down", rows=rows, columns=COLUMNS, notes=notes, warnings=warnings)


def _score(one: ForecastScore) -> str:
    """Return the score of a forecast in words."""
    start, size = f"{one.forecast.name}, written {one.forecast.date[:10]}", one.forecast.size
    if not one.is_trained:
        return f"{start}: {size} is not finished."
    hits = [arm.held for arm in one.arms if arm.held is not None]
    order = f"{one.pairs_held} of {plural(one.pairs, 'pair')} that {size} separates came in the forecast order"
    return f"{start}: {sum(hits)} of {plural(len(hits), 'interval')} held; {order}."


def _other_seeds(one: ForecastScore) -> str:
    """Return a warning if an arm was trained with another number of seeds than its interval is for, else nothing."""
    arms = [
        f"{arm.forecast.arm} ({arm.seeds}, not {arm.forecast.seeds})"
        for arm in one.arms
        if arm.seeds and arm.seeds != arm.forecast.seeds
    ]
    return f"{one.forecast.name} is for other numbers of seeds: {', '.join(arms)}." if arms else ""


def _cells(arm: ArmScore) -> Row:
    """Return the cells of one arm."""
    one = arm.forecast
    row = {"arm": one.arm, "forecast": one.loss, "low": one.interval.low, "high": one.interval.high}
    return row | {"seen": arm.seen, "held": arm.held}


def arm_cells(found: LadderEvidence, record: SizeRecord, arm: str) -> Row:
    """Return the cells that the last forecast of an arm adds to its row for a size; empty cells without one."""
    row: dict[str, Row] = {}
    for one in found.kept_forecasts:
        if one.forecast.parameters == record.parameters:
            row |= {scored.forecast.arm: _cells(scored) | {"file": one.forecast.name} for scored in one.arms}
    cells = row.get(arm, {})
    keys = {"forecast": "forecast", "forecast_low": "low", "forecast_high": "high", "forecast_held": "held"}
    return {name: cells.get(key) for name, key in {**keys, "forecast_file": "file"}.items()}


def forecast_values(found: LadderEvidence) -> list[Row]:
    """Return the kept forecasts as values for JSON."""
    return [
        {
            "file": f"{one.forecast.name}.json",
            "date": one.forecast.date,
            "version": one.forecast.version,
            "size": one.forecast.size,
            "parameters": one.forecast.parameters,
            "is_trained": one.is_trained,
            "arms": [_cells(arm) | {"seeds": arm.forecast.seeds, "seeds_seen": arm.seeds} for arm in one.arms],
            "intervals_held": sum(bool(arm.held) for arm in one.arms) if one.is_trained else None,
            "pairs_separated": one.pairs if one.is_trained else None,
            "pairs_held": one.pairs_held if one.is_trained else None,
        }
        for one in found.kept_forecasts
    ]
