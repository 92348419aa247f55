"""Progress of a running study on stderr: live lines on a terminal, one line per event in a pipe or a file."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from optuna.trial import FrozenTrial
from rich.live import Live
from rich.text import Text

from march_search.config import TrainingConfig
from march_search.display.tables import common_tail, console
from march_search.errors import visible
from march_search.storage.leases import Lease
from march_search.storage.study_folder import trial_number
from march_search.study.outlook import Outlook
from march_search.study.progress_lines import TrialLine, study_line, trial_event, trial_lines, wrapped
from march_search.trial.metrics import MetricsTail, branched_tokens
from march_search.units import si

NEWEST = 0.2
"""Weight of a trial's newest speed in the mean of which times are estimated, so that they do not jump."""

FRAME = 2
"""Lines of a terminal that the display leaves free, below and for a line of its own."""


@dataclass
class _Shown:
    """A running trial on the display."""

    name: str
    until: int
    """Tokens at which it pauses on its rung or ends."""
    last: dict[str, Any] = field(default_factory=dict)
    """Newest value of each key of its metric lines."""
    branches: dict[int, int] = field(default_factory=dict)
    """Tokens trained by each decay branch that starts where the stable run waits, by its end."""
    tail: MetricsTail | None = None
    """Reader of its metric lines; None for a trial of this worker."""
    speed: float | None = None
    """Mean of its speed in tokens per second, in which newer ones count more."""


class StudyProgress:
    """Display of a study and of its running trials, on all workers. A class because it keeps what was shown."""

    def __init__(self, names: list[str], tokens: int, training: TrainingConfig | None = None) -> None:
        """Prepare to display trials of `tokens` tokens each.

        Args:
            names: Architectures known so far.
            tokens: Tokens of a trial's stable run.
            training: Settings with the trials' decay branches; None if they have none.
        """
        self._tokens, self._tail, self._training = tokens, common_tail(names), training
        self._out = console(stderr=True)
        self._is_live = self._out.is_terminal
        self._trials: dict[int, _Shown] = {}
        self._evaluated: dict[int, int] = {}
        self._branched: set[tuple[int, int]] = set()
        self._phase = ""
        self._outlook: Outlook | None = None
        self._counted: dict[int, int] = {}
        self._usual_speed = 0.0
        self._lock = threading.Lock()
        self._live = Live(console=self._out, transient=True, get_renderable=self._frame, refresh_per_second=4)

    def __enter__(self) -> "StudyProgress":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays on the screen; a terminal gets it broken between words."""
        text = visible(text)
        self._out.print(wrapped(text, self._out.width) if self._is_live else text, soft_wrap=True)

    def study(self, phase: str, outlook: Callable[[Mapping[int, int]], Outlook]) -> None:
        """Show what the study has done, on all workers; in a pipe, a new phase is an event.

        Args:
            phase: Phase of the study.
            outlook: Function that returns what is done and left, given the tokens of the running trials by number.
        """
        if not self._is_live and phase == self._phase:
            return
        with self._lock:
            self._counted = self._running_tokens()
            self._outlook = outlook(self._counted)
        if not self._is_live and self._outlook.counts.left:
            self.say(study_line(self._outlook, 0.0, self._out.width))
        self._phase = phase

    def started(self, number: int, name: str, resumed: bool, until: int | None = None) -> None:
        """Show that a trial starts or resumes, to train until `until` tokens."""
        short = name.removesuffix(self._tail)
        with self._lock:
            self._trials[number] = _Shown(short, self._tokens if until is None else until)
        if not self._is_live:
            self.say(f"trial {number}: {short}: {'resumed' if resumed else 'started'}")

    def paused(self, number: int, reason: str = "") -> None:
        """Remove an unfinished trial that no longer runs here; in a pipe, `reason` is an event."""
        with self._lock:
            shown = self._trials.pop(number, None)
        if shown and reason and not self._is_live:
            self.say(f"trial {number}: {shown.name}: {reason}")

    def others(self, running: list[tuple[FrozenTrial, Path]]) -> None:
        """Show the trials of other workers, read from their folders, if stderr is a terminal."""
        if not self._is_live:
            return
        known = {trial_number(trial): (trial, folder) for trial, folder in running}
        with self._lock:
            for number in [n for n, shown in self._trials.items() if shown.tail and n not in known]:
                del self._trials[number]
            for number, (trial, folder) in known.items():
                name, until = trial.user_attrs["architecture"].removesuffix(self._tail), Lease.of(trial).until
                shown = self._trials.setdefault(number, _Shown(name, until, tail=MetricsTail(folder)))
                shown.until = until
                for line in shown.tail.new_lines() if shown.tail else ():
                    _remember(shown, line)

    def line(self, number: int, line: dict[str, Any]) -> None:
        """Show a metric line of a running trial; an evaluation is an event, once."""
        with self._lock:
            shown = self._trials[number]
            _remember(shown, line)
        if line["kind"] == "branch_evaluation" and (number, line["branch"]) not in self._branched:
            self._branched.add((number, line["branch"]))
            if not self._is_live:
                self.say(f"trial {number}: decayed to {si(line['branch'])} tokens, loss {line['loss']:.3f}")
        if line["kind"] == "evaluation" and line["tokens"] > self._evaluated.get(number, -1):
            self._evaluated[number] = line["tokens"]
            if not self._is_live:
                self.say(trial_event(self._line_of(number, shown), self._out.width))

    def ended(self, number: int, name: str, state: str, text: str) -> None:
        """Show that a trial is finished."""
        with self._lock:
            self._trials.pop(number, None)
        sign = {"complete": "✓", "pruned": "✂", "failed": "✗"}.get(state, "·")
        self.say(f"{sign} trial {number}: {name.removesuffix(self._tail)}: {state}; {text}")

    def _trained(self, before: int, tokens: int) -> int:
        """Return the tokens that a trial trains between two numbers of tokens, decay branches included."""
        return tokens - before if self._training is None else self._training.trained_tokens(before, tokens)

    def _running_tokens(self) -> dict[int, int]:
        """Return the tokens that the running trials have trained, decay branches included, by number."""
        return {
            number: self._trained(0, shown.last["tokens"]) + sum(shown.branches.values())
            for number, shown in self._trials.items() if shown.last
        }  # fmt: skip

    def _frame(self) -> Text:
        """Return the lines of the display: one of the study, then one per running trial, as many as fit."""
        with self._lock:
            shown = [self._line_of(number, trial) for number, trial in sorted(self._trials.items())]
            now, speed, tokens = self._outlook, self._speed(), self._running_tokens()
            since = sum(tokens[number] - then for number, then in self._counted.items() if number in tokens)
        width, room = self._out.width, max(1, self._out.height - FRAME)
        lines = [study_line(replace(now, tokens_done=now.tokens_done + since), speed, width)] if now else []
        lines += trial_lines(shown, width)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"and {len(lines) - room + 1} more running trials"]
        return Text("\n".join(lines), no_wrap=True, overflow="crop")

    def _speed(self) -> float:
        """Return the tokens per second of all running trials; those that start are as fast as the others."""
        speeds = [trial.speed for trial in self._trials.values() if trial.speed]
        self._usual_speed = fmean(speeds) if speeds else self._usual_speed
        return self._usual_speed * len(self._trials)

    def _line_of(self, number: int, shown: _Shown) -> TrialLine:
        """Return what is known of a running trial."""
        last = shown.last
        tokens = last.get("tokens", 0)
        decays = last.get("kind") == "branch_train"
        return TrialLine(
            number=number,
            name=visible(shown.name),
            tokens=tokens if last else None,
            until=shown.until,
            branch=(last["branch_tokens"], last["branch"]) if decays else None,
            left=self._trained(tokens, shown.until) - sum(shown.branches.values()) if tokens < shown.until else 0,
            goal="rung" if shown.until < self._tokens else "end",
            loss=last.get("evaluation_loss"),
            bits_per_byte=last.get("evaluation_bits_per_byte"),
            speed=shown.speed,
        )


def _remember(shown: _Shown, line: dict[str, Any]) -> None:
    """Add a metric line to what is known of a trial."""
    if line["tokens"] > shown.last.get("tokens", 0) or "branch" not in line:
        shown.branches.clear()
    shown.branches |= branched_tokens([line])
    own = {f"{line['kind']}_{key}": line.get(key) for key in ("loss", "bits_per_byte")}
    shown.last |= line | own
    if speed := line.get("tokens_per_second"):
        shown.speed = speed if shown.speed is None else (1 - NEWEST) * shown.speed + NEWEST * speed
