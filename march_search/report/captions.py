"""The caption of each figure: what to see in it, with the numbers of this study."""

from collections.abc import Callable, Sequence
from typing import Any

from march_search.analysis.early_order import crossings
from march_search.analysis.effects import GATED
from march_search.analysis.evidence import Evidence
from march_search.display.answer import shares_letter
from march_search.display.wording import short_names
from march_search.report.figures import pareto_rows
from march_search.report.svg import SERIES
from march_search.units import chance, plural, si

Row = dict[str, Any]


def captions(evidence: Evidence) -> dict[str, str]:
    """Return the caption of each figure, by the figure's name; empty for a study without a ranking."""
    rows, short = list(evidence.ranking.first_rows), short_names(evidence)
    if not rows:
        return {"curves": "The curves of all trials so far; none can be ranked yet."}
    return {
        "ranking": _ranking(rows, short),
        "curves": _curves(evidence),
        "front": _front(rows, short),
        "depth": _dimension(rows, "num_layers", lambda value: plural(value, "layer")),
        "width": _dimension(rows, "d_model", lambda value: f"d_model {value}"),
        "map": f"The lowest loss, {rows[0]['loss']:.4f}, is at {plural(rows[0]['num_layers'], 'layer')} and "
        f"d_model {rows[0]['d_model']}. Each cell has the best architecture of that depth and width.",
        "effects": _effects(evidence),
        "horizon": _horizon(evidence),
    }


def _ranking(rows: Sequence[Row], short: dict[str, str]) -> str:
    """Return what to see in the figure of the ranking."""
    leader, tied = rows[0], sum(shares_letter(row, rows[0]) for row in rows[1:])
    half = f" ± {leader['half_interval']:.3f}" if leader["half_interval"] is not None else ""
    text = f"{short[leader['name']]} has the lowest loss, {leader['loss']:.4f}{half}; lower is better."
    if len(rows) == 1 or leader["letters"] is None:
        return text
    if not tied:
        return f"{text} It is separated from every other architecture."
    are = "is" if tied == 1 else "are"
    return f"{text} {plural(tied, 'architecture')} in the shaded rows {are} not separated from it."


def _curves(evidence: Evidence) -> str:
    """Return what to see in the learning curves."""
    found = evidence.ranking.pooled
    pairs, crossed = len(found) * (len(found) - 1) // 2, len(crossings(found))
    late = "No pair changed places" if not crossed else f"{crossed} of {plural(pairs, 'pair')} changed places"
    start = f"{late} in the last third of training. " if pairs else ""
    ranked = {trial.number for pooled in found[:SERIES] for trial in pooled.trials}
    is_grey = any(len(trial.evaluations) > 1 and trial.number not in ranked for trial in evidence.study.trials)
    return f"{start}{'Grey: other architectures, and trials that were stopped or are not finished.' if is_grey else ''}"


def _front(rows: Sequence[Row], short: dict[str, str]) -> str:
    """Return what to see in the loss against speed."""
    timed = [row for row in rows if row["tokens_per_second"]]
    best, rough = pareto_rows(timed), any(row["speed_is_rough"] for row in timed)
    if len(best) < 2:
        text = f"{short[best[0]['name']]} is the fastest and has the lowest loss." if best else ""
    else:
        first, last = best[0], best[-1]
        text = (
            f"{len(best)} of {len(timed)} are on the Pareto front (dashed), from {short[first['name']]}, the best, to "
            f"{short[last['name']]}: {last['tokens_per_second'] / first['tokens_per_second']:.1f} times as fast, "
            f"{last['loss'] - first['loss']:.4f} nats worse."
        )
    hollow = " Hollow: a rough speed, because trials ran side by side or seeds differ by over 10%." if rough else ""
    return f"{text}{hollow} Speeds are medians over a trial and over its seeds."


def _dimension(rows: Sequence[Row], axis: str, words: Callable[[int], str]) -> str:
    """Return the best loss at the best value of a dimension, and at the value that is worst in this respect."""
    best: dict[int, float] = {}
    for row in rows:
        if row.get(axis):
            best.setdefault(row[axis], row["loss"])  # rows are sorted by loss
    if len(best) < 2:
        return ""
    (first, low), (last, high) = next(iter(best.items())), list(best.items())[-1]
    return (
        f"The best with {words(first)} has a loss of {low:.4f}; the best with {words(last)} is "
        f"{high - low:.4f} nats worse. Other dimensions differ, too. Colours are those of the ranking."
    )


def _effects(evidence: Evidence) -> str:
    """Return which effects are significant."""
    known = [effect for effect in (evidence.effects.effects if evidence.effects else ()) if effect.interval]
    clear = [e for e in known if e.interval and (e.interval.low > 0 or e.interval.high < 0) and e.nats is not None]
    if not clear:
        return "No interval excludes 0, so no dimension has a significant effect."
    most = max(clear, key=lambda effect: abs(effect.nats or 0.0))
    unit = "nats" if most.axis == GATED else "nats per doubling"
    return (
        f"{len(clear)} of {plural(len(known), 'interval')} {'excludes' if len(clear) == 1 else 'exclude'} 0 (blue). "
        f"{most.axis} has the largest such effect, {most.nats:+.4f} {unit}, with the other dimensions fixed."
    )


def _horizon(evidence: Evidence) -> str:
    """Return how sure the order is at the longer budget."""
    found = evidence.horizon
    if found is None or found.flip_probability is None:
        return ""
    return (
        f"After {si(found.tokens)} tokens, another architecture than today's leader is the best with a probability of "
        f"{chance(found.flip_probability)}. An interval that crosses 0 may change sign."
    )
