"""The cost of a planned study in words, as the first rows of its plan: phases, tokens, time, money, disk, memory."""

from typing import Any

from march_search.cost.memory import USABLE
from march_search.units import duration, si, size

Rows = list[tuple[str, str]]


def cost_rows(plan: dict[str, Any], product: str) -> Rows:
    """Return trials, phases, tokens, FLOPs, time, device-hours, money, disk and memory as (label, text) pairs.

    Totals are those of the search, and of the search with the whole confirmation.

    Args:
        plan: The plan; one of an earlier version may lack tokens and phases.
        product: What the trials are the product of: `8 architectures × 1 seed`.
    """
    is_timed = plan["device_hours"] is not None
    return [
        ("trials", _trials(plan, product)),
        *phase_rows(plan),
        *([("tokens", _tokens(plan)), ("FLOPs", _flops(plan))] if plan["tokens"] else []),
        *([("time", _time(plan))] if plan["stages"] else []),
        *([("device-hours", _device_hours(plan))] if is_timed else []),
        *([("money", _money(plan))] if is_timed and plan["rate"] is not None else []),
        ("disk", _disk(plan)),
        *([("memory", _memory(plan["memory"]))] if plan["memory"] else []),
        *([("prices", plan["basis"])] if plan["basis"] else []),
    ]


def phase_rows(plan: dict[str, Any]) -> Rows:
    """Return one row per rung of the search and one for the confirmation; none for a plan of an earlier version."""
    stages, confirm, rows = plan["stages"], plan["confirm"], []
    if not stages or not all("text" in stage for stage in stages):
        return []
    for number, stage in enumerate(stages, start=1):
        label = "search" if len(stages) == 1 else "search, end" if number == len(stages) else f"search, rung {number}"
        rows.append((label, f"{stage['text']}: {_spent(stage['trained_tokens'], stage['seconds'])}"))
    if confirm is None:
        return [*rows, ("confirm", "no further seeds: the study ends with the search")]
    most = "no limit" if confirm["tokens"] is None else f"0 to {_spent(confirm['tokens'], confirm['seconds'])}"
    return [*rows, ("confirm", f"{confirm['text']}: {most}")]


def faults(plan: dict[str, Any]) -> list[str]:
    """Return what would keep the study from running, one sentence each, without its full stop."""
    memory = plan["memory"]
    if not memory or _fits(memory):
        return []
    return [
        f"{memory['architecture']} needs {size(memory['bytes'])} per device, which has "
        f"{size(memory['device_bytes'])}: lower micro_batch_sequences, or raise zero_stage or ranks"
    ]


def _spent(tokens: float, seconds: float | None) -> str:
    """Return tokens and, where it is known, the time of one worker."""
    return f"{si(tokens)} tokens" + ("" if seconds is None else f" in {duration(seconds)}")


def _trials(plan: dict[str, Any], product: str) -> str:
    """Return how many trials search and confirm."""
    confirm, search = plan["confirm"], f"{plan['trials']:,} = {product}"
    if not confirm:
        return search
    further = "more" if confirm["trials"] is None else f"at most {confirm['trials']:,} more"
    return f"{search}; {further} to confirm"


def _range(plan: dict[str, Any], key: str) -> tuple[float, float | None]:
    """Return a total of the search, and of the search with the whole confirmation; None where that has no limit."""
    confirm = plan["confirm"]
    if not confirm:
        return plan[key], plan[key]
    return plan[key], None if confirm[key] is None else plan[key] + confirm[key]


def _words(ends: tuple[float, float | None], show: Any) -> str:
    """Return a range in words: one number, two, or the first and more."""
    least, most = ends
    if most is None:
        return f"{show(least)} and more"
    return show(least) if show(least) == show(most) else f"{show(least)} to {show(most)}"


def _tokens(plan: dict[str, Any]) -> str:
    """Return the tokens of all trials, and what they would be without rungs."""
    stages = plan["stages"]
    text = _words(_range(plan, "tokens"), si)
    if len(stages) < 2:
        return f"{text} over all trials"
    whole = stages[0]["trials"] * stages[-1]["tokens"]
    if all("trained_tokens" in stage for stage in stages):  # with decay branches, a trial trains more than its budget
        whole = stages[0]["trials"] * sum(stage["trained_tokens"] // max(1, stage["trials"]) for stage in stages)
    return f"{text} over all trials; the search would take {si(whole)} without rungs"


def _flops(plan: dict[str, Any]) -> str:
    """Return the operations of all trials."""
    per_token = plan["flops"] / plan["tokens"] if plan["tokens"] else 0.0
    least, most = _range(plan, "tokens")
    ends = (least * per_token, None if most is None else most * per_token)
    return f"{_words(ends, si)}, forward and backward"


def _time(plan: dict[str, Any]) -> str:
    """Return the time of one worker on the devices named."""
    if plan["seconds"] is None:
        return "not known: add --device 8xA5000, and --rate PRICE_PER_HOUR for the money"
    ends = tuple(plan["seconds_range"] or _range(plan, "seconds"))
    together, device = plan["parallel_trials"] or 1, plan["device"]
    at_once = f"{together} trials at a time"
    if device == "cpu":
        where = "on this CPU" + (f", {at_once}" if together > 1 else "")
    else:
        where = f"with {at_once}, each on {device}" if together > 1 else f"on {device}"
    return f"{_words(ends, duration)} {where}"


def _device_hours(plan: dict[str, Any]) -> str:
    """Return the device-hours of all trials."""
    text = _words(_range(plan, "device_hours"), lambda hours: f"{hours:,.3g}")
    return text + (" if no trial stops early" if len(plan["stages"]) == 1 and plan["confirm"] is None else "")


def _money(plan: dict[str, Any]) -> str:
    """Return the price of the device-hours."""
    least, most = _range(plan, "device_hours")
    ends = (least * plan["rate"], None if most is None else most * plan["rate"])
    return f"{_words(ends, lambda value: f'{value:,.2f}')} at {plan['rate']:g} per device-hour"


def _disk(plan: dict[str, Any]) -> str:
    """Return the peak size of the study's folder by what fills it."""
    parts = ", ".join(f"{size(value)} {key.replace('_', ' ')}" for key, value in plan["disk_bytes"].items())
    return f"{size(sum(plan['disk_bytes'].values()))} at most: {parts}"


def _fits(memory: dict[str, Any]) -> bool:
    """Return whether the largest candidate fits its device, whose memory may be unknown."""
    return not memory["device_bytes"] or memory["bytes"] <= USABLE * memory["device_bytes"]


def _memory(memory: dict[str, Any]) -> str:
    """Describe the largest candidate's memory and whether it fits."""
    words = f"{size(memory['bytes'])} at most, for {memory['architecture']} at micro batch {memory['micro_batch']}"
    if not memory["device_bytes"]:
        return words
    verdict = "fits" if _fits(memory) else "DOES NOT FIT"
    return f"{words}; a device has {size(memory['device_bytes'])}: {verdict}"
