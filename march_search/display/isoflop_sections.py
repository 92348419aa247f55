"""The results of a ladder with compute budgets: an answer in sentences, tables with notes, and values for JSON."""

from collections import Counter
from typing import Any

from march_search.analysis.comparison import Interval
from march_search.config.ladder_config import LEAST_SIZES
from march_search.display.sections import Section, markdown_section
from march_search.display.tables import Column
from march_search.display.wording import NAMED, listed
from march_search.ladders.isoflop import Estimate, IsoflopEvidence, Optimum
from march_search.units import plural, si

Row = dict[str, Any]


def isoflop_answer(found: IsoflopEvidence) -> str:
    """Return in sentences where the loss is lowest for each budget, and how the optimum grows.

    With many arms and budgets, the sentences are about the largest budget; the tables have all.
    """
    sizes = Counter((one.point.arm, one.point.budget) for one in found.losses)
    if not found.optima and max(sizes.values(), default=0) >= LEAST_SIZES:
        return f"No lowest loss can be stated. {' '.join(found.faults[:NAMED])}"
    if not found.optima:
        return f"No budget has {LEAST_SIZES} sizes yet, which show where the loss is lowest."
    largest = found.optima[-1].budget
    shown = [one for one in found.optima if len(found.optima) <= NAMED or one.budget == largest]
    parts = [_optimum_words(found, one) for one in shown]
    for one in found.growths:
        arm = f" of {one.arm}" if len(found.ladder.arms) > 1 else ""
        parts.append(
            f"With training FLOPs C, the optimal parameters{arm} grow as C^{_two(one.parameters)} and the tokens as "
            f"C^{_two(one.tokens)}."
        )
    for gap in (gap for gap in found.gaps if len(found.gaps) <= NAMED or gap.budget == largest):
        if gap.loss.interval.low > 0 or gap.loss.interval.high < 0:
            word = "lower" if gap.loss.value < 0 else "higher"
            parts.append(
                f"At {gap.budget} FLOPs, the lowest loss of {gap.arm} is {abs(gap.loss.value):.4f} nats {word} than "
                f"that of {gap.baseline} (95% interval of the difference {_ends(gap.loss.interval, '{:+.4f}'.format)})."
            )
        else:
            parts.append(f"At {gap.budget} FLOPs, the lowest losses of {gap.arm} and {gap.baseline} are within noise.")
    return " ".join(parts)


def _optimum_words(found: IsoflopEvidence, one: Optimum) -> str:
    """Return an optimum as a sentence, or why there is none."""
    arm = f"the loss of {one.arm} " if len(found.ladder.arms) > 1 else "the loss "
    start = f"At {one.budget} training FLOPs, {arm}"
    if one.is_inside:
        return (
            f"{start}is lowest at {si(one.parameters.value)} parameters (95% interval "
            f"{_ends(one.parameters.interval, si)}) and {si(one.tokens.value)} tokens, "
            f"{one.tokens_per_parameter.value:.3g} tokens per parameter "
            f"({_ends(one.tokens_per_parameter.interval, '{:.3g}'.format)})."
        )
    smallest, largest = si(float(one.draws.parameters_X[0])), si(float(one.draws.parameters_X[-1]))
    if all(one.is_open):
        return f"{start}shows no lowest point between {smallest} and {largest} parameters beyond noise."
    if one.is_open[0]:
        bound = one.parameters.interval.high
        words = f"below {si(bound)}" if bound > one.draws.parameters_X[0] else f"at {smallest} or below"
        return f"{start}is lowest {words} parameters, and maybe below the smallest size: add smaller sizes."
    bound = one.parameters.interval.low
    words = f"above {si(bound)}" if bound < one.draws.parameters_X[-1] else f"at {largest} or above"
    return f"{start}is lowest {words} parameters, and maybe above the largest size: add larger sizes."


def isoflop_sections(found: IsoflopEvidence) -> list[Section]:
    """Return the tables: losses by size and budget, optima, and arms against the baseline."""
    sections = [_losses_section(found)]
    if found.optima:
        sections.append(_optima_section(found))
    if found.gaps:
        sections.append(_gaps_section(found))
    return sections


def _losses_section(found: IsoflopEvidence) -> Section:
    """Return the loss of each arm at each size and budget."""
    columns = (
        Column(key="budget", heading="FLOPs", short="FLOPs", left=True),
        Column(key="arm", heading="arm", short="arm", left=True),
        Column(key="size", heading="size", short="size", left=True),
        Column(key="parameters", heading="parameters", short="params", show=si),
        Column(key="tokens", heading="tokens", short="tokens", show=si),
        Column(key="ratio", heading="tokens per parameter", short="tok/par", show="{:.3g}".format),
        Column(key="loss", heading="loss", short="loss", show="{:.4f}".format),
        Column(key="error", heading="standard error", short="s.e.", show="{:.4f}".format),
    )
    rows = [
        {
            "budget": one.point.budget,
            "arm": one.point.arm,
            "size": one.point.size,
            "parameters": one.point.parameters,
            "tokens": one.point.tokens,
            "ratio": one.point.tokens / one.point.parameters,
            "loss": one.loss,
            "error": one.error,
        }
        for one in found.losses
    ]
    seeds = sorted({one.seeds for one in found.losses})
    many = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else plural(seeds[0], "seed")
    notes = [f"Validation loss in nats, mean over {many} at a learning rate of {found.rate:g}."]
    warnings = []
    if found.rate_edge:
        warnings.append(f"{found.rate:g} is the {found.rate_edge} learning rate tried: try others.")
    if found.unfinished:
        warnings.append(f"Not finished: {listed(list(found.unfinished))}.")
    if not found.optima:  # else they stand below the optima
        warnings += found.faults
    title = f"{found.ladder.name}: losses by training FLOPs and size"
    return Section(title=title, rows=rows, columns=columns, notes=notes, warnings=warnings)


def _optima_section(found: IsoflopEvidence) -> Section:
    """Return the optimum of each arm and budget."""
    columns = (
        Column(key="budget", heading="FLOPs", short="FLOPs", left=True),
        Column(key="arm", heading="arm", short="arm", left=True),
        Column(key="parameters", heading="parameters", short="params", show=si),
        Column(key="parameters_range", heading="95% interval", short="95%"),
        Column(key="tokens", heading="tokens", short="tokens", show=si),
        Column(key="tokens_range", heading="95% interval", short="95%", wide_only=True),
        Column(key="ratio", heading="tokens per parameter", short="tok/par", show="{:.3g}".format),
        Column(key="ratio_range", heading="95% interval", short="95%", wide_only=True),
        Column(key="loss", heading="loss", short="loss", show="{:.4f}".format),
        Column(key="loss_range", heading="95% interval", short="95%", wide_only=True),
    )
    rows = []
    for one in found.optima:
        values = {
            "parameters": one.parameters.value,
            "tokens": one.tokens.value,
            "ratio": one.tokens_per_parameter.value,
            "tokens_range": _ends(one.tokens.interval, si),
            "ratio_range": _ends(one.tokens_per_parameter.interval, "{:.3g}".format),
        }
        rows.append(
            {
                "budget": one.budget,
                "arm": one.arm,
                **(values if one.is_inside else {}),
                "parameters_range": _bound(one),
                "loss": one.loss.value,
                "loss_range": _ends(one.loss.interval, "{:.4f}".format),
            }
        )
    notes = [
        "The law E + A N^-a + B D^-b of each arm, over all its budgets; intervals include the noise of seeds and all "
        "exponents that the losses allow."
    ]
    if any(not one.is_inside for one in found.optima):
        notes.append(
            "Without both ends inside the sizes that were trained there is a bound and no optimum; the loss is then "
            "the lowest within these sizes."
        )
    for grown in found.growths:
        notes.append(
            f"{grown.arm}: optimal parameters grow as C^{_two(grown.parameters)} (95% interval "
            f"{_ends(grown.parameters.interval, '{:.2f}'.format)}), tokens as C^{_two(grown.tokens)} "
            f"({_ends(grown.tokens.interval, '{:.2f}'.format)})."
        )
    warnings = [
        f"{arm}: the law misses the losses by more than the noise of seeds, so its intervals are too narrow."
        for arm in found.misfits
    ]
    return Section(
        title="compute-optimal sizes", rows=rows, columns=columns, notes=notes, warnings=[*warnings, *found.faults]
    )


def _gaps_section(found: IsoflopEvidence) -> Section:
    """Return each arm against the baseline."""
    columns = (
        Column(key="budget", heading="FLOPs", short="FLOPs", left=True),
        Column(key="arm", heading="arm", short="arm", left=True),
        Column(key="loss", heading="lowest loss", short="loss", show="{:+.4f}".format),
        Column(key="loss_range", heading="95% interval", short="95%"),
        Column(key="ratio", heading="optimal size", short="size", show="×{:.2f}".format),
        Column(key="ratio_range", heading="95% interval", short="95%"),
    )
    rows = [
        {
            "budget": gap.budget,
            "arm": gap.arm,
            "loss": gap.loss.value,
            "loss_range": _ends(gap.loss.interval, "{:+.4f}".format),
            "ratio": gap.ratio and gap.ratio.value,
            "ratio_range": gap.ratio and _ends(gap.ratio.interval, "{:.2f}".format),
        }
        for gap in found.gaps
    ]
    base = found.ladder.arms[0]
    notes = [f"Lowest loss minus that of {base}, in nats; optimal parameters divided by those of {base}."]
    return Section(title=f"arms against {base}", rows=rows, columns=columns, notes=notes)


def _bound(one: Optimum) -> str:
    """Return the interval of the optimal parameters; an end outside the sizes is named as such."""
    low, high = si(one.parameters.interval.low), si(one.parameters.interval.high)
    if one.is_inside:
        return f"{low} to {high}"
    if all(one.is_open):
        return "any"
    return f"≤ {high}" if one.is_open[0] else f"≥ {low}"


def isoflop_markdown(found: IsoflopEvidence) -> str:
    """Return the results as Markdown."""
    parts = [f"**Question:** {found.ladder.question}"] if found.ladder.question else []
    parts.append(f"**Answer:** {isoflop_answer(found)}")
    return "\n\n".join([*parts, *(markdown_section(section) for section in isoflop_sections(found))]) + "\n"


def isoflop_rows(found: IsoflopEvidence) -> list[Row]:
    """Return one row per point, with the optimum of its arm and budget, for CSV."""
    optima = {(one.budget, one.arm): one for one in found.optima}
    rows = []
    for one in found.losses:
        point, best = one.point, optima.get((one.point.budget, one.point.arm))
        inside = best if best and best.is_inside else None
        rows.append(
            {
                "budget": point.budget,
                "budget_flops": point.budget_flops,
                "size": point.size,
                "arm": point.arm,
                "name": point.architecture.name,
                "parameters": point.parameters,
                "tokens": point.tokens,
                "flops_per_token": point.flops_per_token,
                "training_flops": point.training_flops,
                "loss": one.loss,
                "standard_error": one.error,
                "seeds": one.seeds,
                "not_kept": "; ".join(point.missed),
                "optimal_parameters": inside and inside.parameters.value,
                "optimal_parameters_low": best and (None if best.is_open[0] else best.parameters.interval.low),
                "optimal_parameters_high": best and (None if best.is_open[1] else best.parameters.interval.high),
                "optimal_tokens": inside and inside.tokens.value,
                "lowest_loss": best and best.loss.value,
            }
        )
    return rows


def isoflop_values(found: IsoflopEvidence) -> Row:
    """Return the results as values that JSON supports."""
    return {
        "schema_version": 1,
        "ladder": found.ladder.name,
        "question": found.ladder.question or None,
        "answer": isoflop_answer(found),
        "learning_rate": found.rate,
        "unfinished": list(found.unfinished),
        "faults": list(found.faults),
        "misfits": list(found.misfits),
        "points": [
            {key: value for key, value in row.items() if not key.startswith(("optimal", "lowest"))}
            for row in isoflop_rows(found)
        ],
        "optima": [_optimum_values(one) for one in found.optima],
        "against_baseline": [
            {
                "arm": gap.arm,
                "baseline": gap.baseline,
                "budget": gap.budget,
                "loss_difference": _values(gap.loss),
                "parameter_ratio": gap.ratio and _values(gap.ratio),
            }
            for gap in found.gaps
        ],
        "growth": [
            {"arm": one.arm, "parameters": _values(one.parameters), "tokens": _values(one.tokens)}
            for one in found.growths
        ],
    }


def _optimum_values(one: Optimum) -> Row:
    """Return an optimum for JSON; without both ends inside the sizes, it has only the bound that is known."""
    ends = one.parameters.interval.low, one.parameters.interval.high
    low, high = (None if is_open else end for is_open, end in zip(one.is_open, ends, strict=True))
    figures = ("parameters", "tokens", "tokens_per_parameter")
    return {
        "arm": one.arm,
        "budget": one.budget,
        "flops": one.flops,
        "is_inside": one.is_inside,
        "parameter_bounds": [low, high],
        **{key: _values(getattr(one, key)) if one.is_inside else None for key in figures},
        "loss": _values(one.loss),
    }


def _values(estimate: Estimate) -> Row:
    """Return an estimate for JSON."""
    return {"value": estimate.value, "interval": [estimate.interval.low, estimate.interval.high]}


def _two(estimate: Estimate) -> str:
    """Return an estimate with two decimals."""
    return f"{estimate.value:.2f}"


def _ends(interval: Interval, show: Any) -> str:
    """Return an interval in words."""
    return f"{show(interval.low)} to {show(interval.high)}"
