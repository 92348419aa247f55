"""Format numbers with their units, as every table, page and message shows them."""

import math


def count(value: float) -> str:
    """Format a whole number with separators: `222,903,552`."""
    return f"{value:,.0f}"


def plural(number: int, noun: str) -> str:
    """Format a number with its noun: `1 seed`, `3 seeds`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def percent(value: float) -> str:
    """Format a signed percentage: `+1.32%`."""
    return f"{value:+.2f}%"


def whole_percent(share: float) -> str:
    """Format a share in percent, rounded half up to a whole number: `46%`."""
    return f"{math.floor(100 * share + 0.5)}%"


def chance(value: float) -> str:
    """Format an estimated probability: `46%`, but `<1%` and `>99%` at the ends, because no estimate is certain."""
    return "<1%" if value <= 0.005 else ">99%" if value >= 0.995 else f"{value:.0%}"


def si(value: float) -> str:
    """Format a number with three significant digits and an SI prefix: `1.05M`."""
    for limit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Format a size in bytes with three significant digits: `7.02GB`."""
    return f"{si(value)}B"


def duration(seconds: float) -> str:
    """Format seconds as `48s`, `3m05s` or `2h07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
