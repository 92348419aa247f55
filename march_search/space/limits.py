"""Budgets of other kinds than parameters: FLOPs, hours on devices, bytes on a device, and key/value cache.

FLOPs are met within the tolerance, or at most if the number starts with `<=`. Hours, bytes and cache are at most. The
measure of every kind never falls as `d_ff` rises, so the widths that meet a budget at one grid point are one interval,
whose ends `Limit.inside` finds: the budget is inverted, and no architecture is left out. Only the formula of
a user's block may fall; `grid.py` then checks every width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.config.counts import parse_bytes, parse_count, parse_hours, parse_operations
from march_search.cost import inference, memory, speed
from march_search.cost.devices import Device, parse_device
from march_search.cost.setup import Setup
from march_search.errors import ConfigError, nearest

Ints = NDArray[np.int64]
Numbers = NDArray[np.float64]

TRIAL = ("device", "tokens", "sequence_length", "micro_batch", "precision", "zero_stage", "checkpointing")
"""Settings of a trial that a budget may set, as in `Setup`; `device` and `tokens` may be text."""

UNMEASURED_CPU = Device(name="cpu", memory_bytes=0, bf16_flops=1.0, fp32_flops=1.0, utilisation=1.0, keeps_scores=True)
"""The CPU of a budget in bytes, which do not depend on its speed."""

AT_MOST = "<="
"""Start of a number that is an upper limit, not a target."""

GUESSES = 3
"""Rounds in which a search for the end of an interval interpolates, before it bisects."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of budget."""

    measure: Callable[[Any, Setup], Any]
    """Measure of a shape, whose numbers may be arrays; it never falls as `d_ff` rises."""
    parse: Callable[[str, str], Fraction]
    """Parses the amount; the second argument is its name in error messages."""
    text: str
    """Amount in words: `{amount}`, and the fields of `Setup`."""
    shown: Callable[[float], str]
    """Formats an amount."""
    has_target: bool = False
    """Whether an amount is a target with a tolerance, unless it starts with `<=`."""
    by_tokens: bool = False
    """Whether the measure depends on the tokens of a trial."""
    on_device: bool = False
    """Whether the measure depends on the device."""


def _number(value: float) -> str:
    """Format an amount in full, or with a power of ten if it is large."""
    return f"{value:,.0f}" if value == int(value) and value < 1e15 else f"{value:.6g}"


def _bytes(value: float) -> str:
    """Format bytes: `24GB`."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.6g}{letter}B"
    return f"{value:.6g}B"


def _hours(value: float) -> str:
    """Format hours: `48 hours`."""
    return f"{value:.6g} hour{'s' if value != 1 else ''}"


def _training_flops(a: Any, setup: Setup) -> Any:
    """Return the operations of a whole trial."""
    return speed.flops_per_token(a, setup) * setup.tokens


KINDS: dict[str, Kind] = {
    "flops_per_token": Kind(
        measure=speed.flops_per_token,
        parse=parse_operations,
        text="{amount} FLOPs per token",
        shown=_number,
        has_target=True,
    ),
    "training_flops": Kind(
        measure=_training_flops,
        parse=parse_operations,
        text="{amount} FLOPs for {tokens:,} tokens",
        shown=_number,
        has_target=True,
        by_tokens=True,
    ),
    "hours": Kind(
        measure=speed.hours,
        parse=parse_hours,
        text="{amount} for {tokens:,} tokens on {device}",
        shown=_hours,
        by_tokens=True,
        on_device=True,
    ),
    "bytes_per_device": Kind(
        measure=memory.memory_bytes,
        parse=parse_bytes,
        text="{amount} per device in training on {device}",
        shown=_bytes,
        on_device=True,
    ),
    "kv_cache_bytes_per_token": Kind(
        measure=inference.cache_bytes_per_token,
        parse=parse_bytes,
        text="{amount} of key/value cache per token",
        shown=_bytes,
    ),
}
"""Kinds of budgets by their key in `[budget]`. Without a parameter budget, differences are from the first one here."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The values that one measure of an architecture may have."""

    kind: str
    """Key of `KINDS`."""
    aim: float
    """Target, or the largest value."""
    low: float
    """Smallest value allowed; 0 for an upper limit."""
    high: float
    """Largest value allowed."""
    setup: Setup
    """The trial that the measure is about."""

    @classmethod
    def parse(cls, kind: str, text: str, tolerance: Fraction, setup: Setup) -> "Limit":
        """Parse the amount of a kind in `KINDS`, with the tolerance of a target.

        Raises:
            BudgetError: If the amount is not valid.
        """
        word, has_target = text.strip(), KINDS[kind].has_target
        if word.startswith(AT_MOST):
            word, has_target = word.removeprefix(AT_MOST), False
        aim = KINDS[kind].parse(word, kind)
        low, high = (aim * (1 - tolerance), aim * (1 + tolerance)) if has_target else (Fraction(0), aim)
        return cls(kind=kind, aim=float(aim), low=float(low), high=float(high), setup=setup)

    def with_tolerance(self, tolerance: Fraction) -> "Limit":
        """Return a copy of a target with another tolerance; an upper limit is unchanged."""
        aim = Fraction(self.aim)
        low, high = float(aim * (1 - tolerance)), float(aim * (1 + tolerance))
        return replace(self, low=low, high=high) if self.low else self

    def measure(self, shape: Any) -> Any:
        """Return the measure of an architecture, or of a shape whose numbers are arrays."""
        return KINDS[self.kind].measure(shape, self.setup)

    def holds(self, shape: Any) -> bool:
        """Return whether an architecture meets the budget."""
        return bool(self.low <= self.measure(shape) <= self.high)

    def words(self, value: float) -> str:
        """Return a value of the measure in words, such as `61.2 hours for 1,000,000,000 tokens on 8xH100`."""
        kind = KINDS[self.kind]
        setup = {field.name: getattr(self.setup, field.name) for field in fields(self.setup)}
        return kind.text.format(amount=kind.shown(value), **setup)

    def __str__(self) -> str:
        if not self.low:
            return f"at most {self.words(self.aim)}"
        return f"{self.words(self.aim)} ± {100 * (self.high - self.aim) / self.aim:.6g}%"

    def inside(self, measured: Callable[[Ints, Ints], Numbers], first: Ints, stop: Ints) -> tuple[Ints, Ints]:
        """Return the part of each interval of `d_ff` that meets the budget, as its first index and its end.

        Args:
            measured: Returns the measure of some intervals (m,) at one index (m,) of the `d_ff` axis each.
            first: (n,) first index of each interval.
            stop: (n,) index after its last, above `first`.
        """
        below = np.nextafter(self.low, 0.0)  # the first value above it is at least `low`
        begin = _first_above(measured, below, first, stop) if self.low else first
        return begin, _first_above(measured, self.high, begin, stop)


def trial_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of `Setup` from the settings of a trial; the device and the tokens may be text.

    Raises:
        ConfigError: If a name is not in `TRIAL`.
        BudgetError: If the tokens are not valid.
        UsageError: If the device is unknown.
    """
    for name in given:
        if name not in TRIAL:
            raise ConfigError(f'unknown budget or setting of a trial "{name}". {nearest(name, (*KINDS, *TRIAL))}')
    trial = dict(given)
    if isinstance(device := trial.get("device"), str):
        trial["device"] = UNMEASURED_CPU if device.strip().lower() == "cpu" else parse_device(device)
    if isinstance(tokens := trial.get("tokens"), str):
        trial["tokens"] = parse_count(tokens, "data budget")
    return trial


def parse_limits(
    amounts: Mapping[str, str], tolerance: Fraction, trial: Mapping[str, Any], kept: Sequence[Limit] = ()
) -> tuple[Limit, ...]:
    """Return the budgets with these amounts by kind, and those of the other kinds in `kept`, all about one trial.

    Raises:
        BudgetError: If an amount is not valid.
        ConfigError: If a setting of the trial is not valid.
    """
    setup = Setup(**trial)
    limits = {limit.kind: replace(limit, setup=setup) for limit in kept}
    limits |= {kind: Limit.parse(kind, text, tolerance, setup) for kind, text in amounts.items()}
    return tuple(limits[kind] for kind in KINDS if kind in limits)


def needs_device(limits: Sequence[Limit], trial: Mapping[str, Any]) -> str:
    """Return why the trial's device does not suit the budgets, as a sentence; empty if it does."""
    for limit in limits:
        if KINDS[limit.kind].on_device and "device" not in trial:
            return (
                f"a budget of {limit.kind} depends on the device: name one with --device 8xH100, or with device = "
                '"8xH100" in [budget].'
            )
        if limit.kind == "hours" and limit.setup.device == UNMEASURED_CPU:
            return (
                "hours on a cpu differ from measurement to measurement, so the set would too: name a GPU in [budget]."
            )
    return ""


def _first_above(measured: Callable[[Ints, Ints], Numbers], bound: float, first: Ints, stop: Ints) -> Ints:
    """Return the (n,) first index in each interval at which the measure is above `bound`, or else its end.

    The measure is nearly a straight line in `d_ff`, so most ends are found by interpolation, the rest by bisection.
    """
    low, high = first.astype(np.int64), stop.astype(np.int64)  # the index is in [low, high]
    below, above = np.zeros(len(low)), np.zeros(len(low))  # values at low - 1 and at high

    def probe(rows: Ints, index: Ints) -> Ints:
        """Narrow the range of these rows by their values at one index each; return the rows that are still open."""
        values = np.asarray(measured(rows, index), dtype=np.float64)
        is_above = values > bound
        at, under = rows[is_above], rows[~is_above]
        high[at], above[at] = index[is_above], values[is_above]
        low[under], below[under] = index[~is_above] + 1, values[~is_above]
        return rows[low[rows] < high[rows]]

    rows = np.flatnonzero(low < high)
    rows = probe(rows, low[rows])
    rows = probe(rows, high[rows] - 1)
    guesses = GUESSES
    while len(rows):
        width = high[rows] - low[rows]
        if guesses:
            share = (bound - below[rows]) / (above[rows] - below[rows])
            index = low[rows] + np.minimum(np.floor(share * (width + 1)).astype(np.int64), width - 1)
        else:
            index = low[rows] + width // 2
        before = high[rows]
        still = probe(rows, index)
        if guesses:  # the end is most often beside the guess
            was_above = (high[rows] < before)[low[rows] < high[rows]]
            still = probe(still, np.where(was_above, high[still] - 1, low[still]))
        rows = still
        guesses = max(guesses - 1, 0)
    return low
