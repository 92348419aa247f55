"""Lines of the live display, fitted to a terminal: what does not fit is left out as a whole, so no number is cut."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from march_search.display.tables import WIDE
from march_search.study.outlook import Outlook
from march_search.units import duration, si

NAME_PARTS = 3
"""Parts of an architecture's name, between hyphens, that a narrow terminal shows: layers, width and heads."""


@dataclass(frozen=True, kw_only=True)
class TrialLine:
    """What is known of a running trial."""

    number: int
    name: str
    tokens: int | None
    """Tokens trained; None while it starts."""
    until: int
    """Tokens at which it pauses on its rung or ends."""
    goal: str
    """`rung` or `end`."""
    left: int
    """Tokens to train until then, decay branches included."""
    branch: tuple[int, int] | None = None
    """Tokens reached in a decay branch, and the tokens of its end; None outside of one."""
    loss: float | None = None
    bits_per_byte: float | None = None
    speed: float | None = None
    """Tokens per second."""

    @property
    def seconds_left(self) -> float | None:
        """Time left to its rung or its end; None if it is not known or there is none."""
        if not self.speed or self.tokens is None or self.left <= 0:
            return None
        return self.left / self.speed

    @property
    def so_far(self) -> str:
        """Its tokens of those up to its rung or end; those of a decay branch while it trains one."""
        reached, end = self.branch or (self.tokens or 0, self.until)
        return f"{si(reached)} of {si(end)} tokens"


def study_line(now: Outlook, speed: float, width: int) -> str:
    """Return the line of the study, with the parts that fit: phase, trials, tokens, and the time left for all of them.

    Args:
        now: What is done and left.
        speed: Tokens per second of all running trials; 0 if it is not known.
        width: Characters of the terminal.
    """
    counts, seconds = now.counts, now.seconds_left(speed)
    trials = f"{now.phase}: {counts.ended} of {counts.total} trials ended"
    on_rung = f", {now.on_rung} on a rung" if now.on_rung else ""
    tokens = f", {si(now.tokens_done)} of {si(now.tokens_expected)} tokens"
    left = "" if seconds is None else f", {duration(seconds)} left"
    together = f" at {si(speed)} tokens/s" if left and width >= WIDE else ""
    for text in (
        trials + on_rung + tokens + left + (" for all" if left else "") + together,
        trials + on_rung + tokens + left,
        trials + tokens + left,
        trials + left,
    ):
        if len(text) <= width:
            return text
    return trials


def trial_event(trial: TrialLine, width: int) -> str:
    """Return what a log file is told of an evaluation: tokens, loss, speed and time left."""
    parts = [trial.so_far, _phase(trial), _loss(trial)]
    if trial.bits_per_byte is not None and width >= WIDE:
        parts[-1] += f" {_bits(trial)}"
    if trial.seconds_left is not None:
        parts += [_speed(trial), _left(trial)]
    return f"trial {trial.number}: {', '.join(filter(None, parts))}"


Cells = tuple[str, ...]
Column = Callable[[TrialLine], str]


def trial_lines(trials: Sequence[TrialLine], width: int) -> list[str]:
    """Return one line per running trial, in columns.

    If they are too wide, all of them leave out the bits per byte, then the speed, then the ends of the names, the loss
    and the time left.
    """
    if not trials:
        return []
    digits = max(len(str(trial.number)) for trial in trials)

    def number(trial: TrialLine) -> str:
        return f"  trial {trial.number:>{digits}}"

    tokens, left, full, short = _tokens(trials), _times(trials), _names(None), _names(NAME_PARTS)
    layouts: list[tuple[Column, ...]] = [
        *([(number, full, tokens, _phase, _loss, _bits, _speed, left)] if width >= WIDE else []),
        (number, full, tokens, _phase, _loss, _speed, left),
        (number, full, tokens, _phase, _loss, left),
        *((number, _names(parts), tokens, _phase, _loss, left) for parts in (NAME_PARTS + 2, NAME_PARTS + 1)),
        (number, short, tokens, _phase, _loss, left),
        (number, _names(NAME_PARTS - 1), tokens, _phase, _loss, left),
        (number, short, tokens, _phase, left),
        (number, short, tokens, _phase),
        (number, tokens, _phase),
        (number, tokens),
    ]
    for layout in layouts:
        lines = _aligned([tuple(column(trial) for column in layout) for trial in trials])
        if max(map(len, lines)) <= width:
            return lines
    return lines


def _tokens(trials: Sequence[TrialLine]) -> Column:
    """Return the column of the tokens, with the numbers under one another."""
    done = {trial.number: trial.so_far for trial in trials if trial.tokens is not None}
    digits = max((text.index(" ") for text in done.values()), default=0)

    def column(trial: TrialLine) -> str:
        if trial.number not in done:
            return "starting"
        reached, rest = done[trial.number].split(" ", 1)
        return f"{reached:>{digits}} {rest}"

    return column


def _times(trials: Sequence[TrialLine]) -> Column:
    """Return the column of the time left, with the times under one another."""
    width = max(len(_left(trial).partition(" ")[0]) for trial in trials)

    def column(trial: TrialLine) -> str:
        time, _, rest = _left(trial).partition(" ")
        return f"{time:>{width}} {rest}" if rest else ""

    return column


def _phase(trial: TrialLine) -> str:
    """Return what a trial does beside its stable run."""
    return "decaying" if trial.branch else ""


def _loss(trial: TrialLine) -> str:
    """Return the loss of the last evaluation."""
    return "" if trial.loss is None else f"loss {trial.loss:.3f}"


def _bits(trial: TrialLine) -> str:
    """Return the bits per byte of the last evaluation."""
    return "" if trial.bits_per_byte is None else f"({trial.bits_per_byte:.3f} bits/byte)"


def _speed(trial: TrialLine) -> str:
    """Return the speed."""
    return f"{si(trial.speed)} tokens/s" if trial.speed else ""


def _left(trial: TrialLine) -> str:
    """Return the time left."""
    return "" if trial.seconds_left is None else f"{duration(trial.seconds_left)} to its {trial.goal}"


def _names(parts: int | None) -> Column:
    """Return the column of the names, of at most so many parts between hyphens."""

    def column(trial: TrialLine) -> str:
        words = trial.name.split("-")
        return trial.name if parts is None or len(words) <= parts else "-".join([*words[:parts], "…"])

    return column


def _aligned(rows: Sequence[Cells]) -> list[str]:
    """Return rows with their cells under one another, two spaces apart; an empty column takes no room."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width).rstrip() for row in rows
    ]


def wrapped(text: str, width: int) -> str:
    """Return text in lines of at most `width` characters, broken between words, the further ones indented."""
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
