"""The results of a ladder as an answer in sentences, tables with notes, and values for JSON."""

from typing import Any

from march_search.analysis.comparison import Interval
from march_search.display.forecast_section import arm_cells, forecast_section, forecast_values
from march_search.display.sections import Section, markdown_section
from march_search.display.tables import Column
from march_search.display.wording import listed
from march_search.ladders.ladder import LadderEvidence
from march_search.ladders.size_order import POWER, EffectChange, SizeAgreement
from march_search.units import chance, plural, si, whole_percent

Row = dict[str, Any]


def ladder_answer(found: LadderEvidence) -> str:
    """Return in sentences how far the smallest size decides as the largest finished one does."""
    if not found.agreements:
        return f"Only {found.records[0].size} is finished: a second size shows whether its order holds."
    whole = found.agreements[len(found.records) - 2]
    kept, held = round(whole.accuracy * whole.pairs), whole.accuracy_interval
    parts = [
        f"{whole.small} orders {kept} of {plural(whole.pairs, 'pair')} of arms as {whole.large} does "
        f"({whole_percent(whole.accuracy)}, 95% interval {whole_percent(held.low)} to {whole_percent(held.high)}; "
        f"Kendall's tau {whole.kendall:.2f})."
    ]
    if found.turns:
        pairs = [_turn(found, change) for change in found.turns]
        parts.append(f"{plural(len(pairs), 'pair')} turned beyond noise: {listed(pairs)}.")
    else:
        parts.append("No pair turned beyond noise.")
    for word in ("grows", "shrinks"):
        arms = [found.arms[change.arms[0]] for change in found.changes if change.change == word]
        if arms:
            verb = word.removesuffix("s") if len(arms) > 1 else word
            effects = "effects" if len(arms) > 1 else "effect"
            parts.append(f"The {effects} of {listed(arms)} against {found.arms[0]} {verb} with size.")
    return " ".join(parts)


def _turn(found: LadderEvidence, change: EffectChange) -> str:
    """Return a turned pair in words."""
    first, second = (found.arms[index] for index in change.arms)
    better, worse = (first, second) if change.effects[0] < 0 else (second, first)
    return f"{better} beats {worse} at {found.records[0].size} only"


def ladder_sections(found: LadderEvidence) -> list[Section]:
    """Return the tables of a ladder: losses with the forecast, agreement of the sizes, changes of the effects."""
    sections = [_losses_section(found)]
    if found.agreements:
        sections += [_agreement_section(found), _changes_section(found)]
    kept = forecast_section(found)
    return [*sections, kept] if kept else sections


def _losses_section(found: LadderEvidence) -> Section:
    """Return the loss of each arm at each size, and the forecast."""
    columns = [Column(key="arm", heading="arm", short="arm", left=True)]
    columns += [Column(key=r.size, heading=r.size, short=r.size, show="{:.4f}".format) for r in found.records]
    rows: list[Row] = [
        {"arm": arm} | {r.size: float(size.means_A[a]) for r, size in zip(found.records, found.losses, strict=True)}
        for a, arm in enumerate(found.arms)
    ]
    seeds = sorted({int(number) for number in found.counts_SA.ravel()})
    many = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else plural(seeds[0], "seed")
    notes = [f"Validation loss in nats, mean over {many} at a learning rate of {found.rate:g}."]
    warnings = []
    if found.forecast:
        target = si(found.forecast.parameters)
        columns += [
            Column(key="forecast", heading=f"{target}?", short=f"{target}?", show="{:.4f}".format),
            Column(key="low", heading="95% from", short="from", show="{:.4f}".format),
            Column(key="high", heading="to", short="to", show="{:.4f}".format),
            Column(key="best", heading="P(best)", short="P(best)", show=chance),
        ]
        for a, row in enumerate(rows):
            held = found.forecast.intervals[a]
            best = float(found.forecast.best_A[a])
            row |= {"forecast": float(found.forecast.losses_A[a]), "low": held.low, "high": held.high, "best": best}
        held = found.forecast.exponent_interval
        notes.append(
            f"{target}?: forecast by the law E + B N^-α of each arm, with one α for all: "
            f"{found.forecast.exponent:.2f}, 95% interval {held.low:.2f} to {held.high:.2f}."
        )
    elif found.no_forecast:
        notes.append(found.no_forecast)
    rows += [{"arm": one.arm} | {size: own[0] for size, own in one.losses.items()} for one in found.dropped]
    notes += [record.reason for record in found.records if record.reason]
    if found.check:
        last, check = found.records[-1].size, found.check
        notes.append(
            f"Check: a forecast of {last} from the smaller sizes holds for {sum(check.held)} of {len(check.held)} arms "
            f"and orders {whole_percent(check.accuracy)} of the pairs as {last} does."
        )
    if found.rate_edge:
        warnings.append(
            f"{found.rate:g} is the {found.rate_edge} learning rate tried at {found.ladder.sizes[0].size}: try others."
        )
    if found.left_out:
        warnings.append(f"Left out, because not complete at every finished size: {listed(list(found.left_out))}.")
    warnings += found.forecast_faults
    if found.unfinished:
        warnings.append(f"Not finished: {', '.join(found.unfinished)}.")
    return Section(
        title=f"{found.ladder.name}: losses by size", rows=rows, columns=tuple(columns), notes=notes, warnings=warnings
    )


def _agreement_section(found: LadderEvidence) -> Section:
    """Return how far each size decides as each larger one does."""
    columns = (
        Column(key="sizes", heading="sizes", short="sizes", left=True),
        Column(key="accuracy", heading="same order", short="same order", show=whole_percent),
        Column(key="accuracy_range", heading="95% interval", short="95% interval"),
        Column(key="kendall", heading="Kendall's tau", short="tau", show="{:.2f}".format),
        Column(key="kendall_range", heading="95% interval", short="95% interval", wide_only=True),
        Column(key="slope", heading="slope", short="slope", show="{:.2f}".format),
        Column(key="slope_range", heading="95% interval", short="95% interval"),
    )
    rows = []
    for one in found.agreements:
        held, tau, slope = one.accuracy_interval, one.kendall_interval, one.slope_interval
        rows.append(
            {
                "sizes": f"{one.small} → {one.large}",
                "accuracy": one.accuracy,
                "accuracy_range": f"{whole_percent(held.low)} to {whole_percent(held.high)}",
                "kendall": one.kendall,
                "kendall_range": f"{tau.low:.2f} to {tau.high:.2f}",
                "slope": one.slope,
                "slope_range": "any" if slope is None else f"{slope.low:.2f} to {slope.high:.2f}",
            }
        )
    pairs = [one.pairs for one in found.agreements]
    notes = [
        f"same order: share of the {pairs[0]} pairs of arms; intervals include seed noise. slope: "
        "Deming slope, effect at the large size per effect at the small one; any: noise hides it."
    ]
    if len({*pairs}) > 1:
        notes[0] = notes[0].replace(f"{pairs[0]} pairs of arms", "pairs of arms that trained at both sizes")
        counts = ", ".join(f"{one.small} → {one.large} {one.pairs}" for one in found.agreements)
        notes.append(f"Pairs: {counts}. The best arms alone are harder to order than all of them.")
    return Section(title="does a size decide as a larger one does?", rows=rows, columns=columns, notes=notes)


def _changes_section(found: LadderEvidence) -> Section:
    """Return how the effect of each arm against the baseline changes."""
    small, large, base = found.records[0].size, found.records[-1].size, found.arms[0]
    columns = (
        Column(key="arm", heading="arm", short="arm", left=True),
        Column(key="small", heading=f"effect at {small}", short=small, show="{:+.4f}".format),
        Column(key="small_half", heading="±", short="±", show="{:.4f}".format),
        Column(key="large", heading=f"effect at {large}", short=large, show="{:+.4f}".format),
        Column(key="large_half", heading="±", short="±", show="{:.4f}".format),
        Column(key="change", heading="change", short="change", left=True),
        Column(key="p", heading="p", short="p", show=lambda p: "<0.001" if p < 0.001 else f"{p:.2g}"),
    )
    rows = [
        {
            "arm": found.arms[change.arms[0]],
            "small": change.effects[0],
            "small_half": change.half_widths[0],
            "large": change.effects[1],
            "large_half": change.half_widths[1],
            "change": change.change or "not shown",
            "p": change.p,
        }
        for change in found.changes
    ]
    notes = [
        f"effect: loss minus that of {base}, in nats; below 0 is better. p: after Holm's correction over the arms."
    ]
    if found.detectable is not None:
        notes.append(
            f"A pair of arms that turns from +{found.detectable:.3f} to -{found.detectable:.3f} nats is found with a "
            f"probability of {POWER:.0%} or more; smaller turns may be missed."
        )
    return Section(title=f"effects against {base}, from {small} to {large}", rows=rows, columns=columns, notes=notes)


def ladder_markdown(found: LadderEvidence) -> str:
    """Return a ladder's results as Markdown."""
    parts = [f"**Question:** {found.ladder.question}"] if found.ladder.question else []
    parts.append(f"**Answer:** {ladder_answer(found)}")
    return "\n\n".join([*parts, *(markdown_section(section) for section in ladder_sections(found))]) + "\n"


def ladder_rows(found: LadderEvidence) -> list[Row]:
    """Return one row per arm and finished size, for CSV; an arm that was dropped has no row at larger sizes."""
    rows = [
        {
            "size": record.size,
            "parameters": record.parameters,
            "tokens": record.tokens,
            "arm": arm,
            "name": shape.name,
            "loss": float(size.means_A[a]),
            "standard_error": float(size.errors_A[a]),
            "seeds": int(found.counts_SA[s, a]),
            "not_kept": "; ".join(record.missed[found.ladder.arms.index(arm)]),
            **arm_cells(found, record, arm),
        }
        for s, (record, size) in enumerate(zip(found.records, found.losses, strict=True))
        for a, (arm, shape) in enumerate(zip(found.arms, found.shapes(record), strict=True))
    ]
    for one in found.dropped:
        index = found.ladder.arms.index(one.arm)
        rows += [
            {
                "size": record.size,
                "parameters": record.parameters,
                "tokens": record.tokens,
                "arm": one.arm,
                "name": record.architectures[index].name,
                "loss": one.losses[record.size][0],
                "standard_error": one.losses[record.size][1],
                "seeds": one.losses[record.size][2],
                "not_kept": "; ".join(record.missed[index]),
                **arm_cells(found, record, one.arm),
            }
            for record in found.records
            if record.size in one.losses
        ]
    return rows


def ladder_values(found: LadderEvidence) -> dict[str, Any]:
    """Return a ladder's results as values that JSON supports."""
    forecast, check = found.forecast, found.check
    return {
        "schema_version": 1,
        "ladder": found.ladder.name,
        "question": found.ladder.question or None,
        "answer": ladder_answer(found),
        "learning_rate": found.rate,
        "unfinished": list(found.unfinished),
        "left_out": list(found.left_out),
        "dropped": [one.arm for one in found.dropped],
        "survivors": [
            {"size": record.size, "arms": list(record.trained), "reason": record.reason}
            for record in found.records
            if record.reason
        ],
        "arms": ladder_rows(found),
        "agreement": [_agreement_values(one) for one in found.agreements],
        "changes": [_change_values(found, one) for one in found.changes],
        "turns": [_change_values(found, one) for one in found.turns],
        "detectable_turn": found.detectable,
        "forecast": forecast
        and {
            "parameters": forecast.parameters,
            "exponent": forecast.exponent,
            "exponent_interval": _ends(forecast.exponent_interval),
            "arms": [
                {
                    "arm": arm,
                    "loss": float(forecast.losses_A[a]),
                    "interval": _ends(forecast.intervals[a]),
                    "offset_interval": _ends(forecast.offsets[a]),
                    "probability_best": float(forecast.best_A[a]),
                }
                for a, arm in enumerate(found.arms)
            ],
        },
        "kept_forecasts": forecast_values(found),
        "forecast_faults": list(found.forecast_faults),
        "check": check
        and {
            "size": found.records[-1].size,
            "accuracy": check.accuracy,
            "arms": [
                {
                    "arm": arm,
                    "forecast": float(check.forecast.losses_A[a]),
                    "interval": _ends(check.intervals[a]),
                    "held": check.held[a],
                }
                for a, arm in enumerate(found.arms)
            ],
        },
    }


def _agreement_values(one: SizeAgreement) -> Row:
    """Return the agreement of two sizes as values for JSON."""
    return {
        "small": one.small,
        "large": one.large,
        "pairs": one.pairs,
        "accuracy": one.accuracy,
        "accuracy_interval": _ends(one.accuracy_interval),
        "kendall": one.kendall,
        "kendall_interval": _ends(one.kendall_interval),
        "slope": one.slope,
        "slope_interval": one.slope_interval and _ends(one.slope_interval),
    }


def _change_values(found: LadderEvidence, one: EffectChange) -> Row:
    """Return the change of an effect as values for JSON."""
    return {
        "arm": found.arms[one.arms[0]],
        "against": found.arms[one.arms[1]],
        "effects": list(one.effects),
        "half_widths": list(one.half_widths),
        "change": one.change or None,
        "p": one.p,
    }


def _ends(interval: Interval) -> list[float]:
    """Return an interval as a list."""
    return [interval.low, interval.high]
