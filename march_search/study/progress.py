"""Progress of a running study on stderr: live lines on a terminal, one line per event in a pipe or a file."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from optuna.trial import FrozenTrial
from rich.live import Live
from rich.text import Text

from march_search.config import TrainingConfig
from march_search.display.tables import WIDE, common_tail, console, duration, si
from march_search.errors import visible
from march_search.study.leases import Lease
from march_search.study.outlook import Outlook
from march_search.study.study_folder import trial_number
from march_search.trial.metrics import MetricsTail, branched_tokens

LEAST_NAME = 12
"""Characters of an architecture's name that a narrow terminal shows at least."""

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
        """Print a line that stays on the screen."""
        self._out.print(visible(text), soft_wrap=True)

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
            self.say(_study_line(self._outlook, 0.0))
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
                self.say(f"trial {number}: {', '.join(self._parts(shown))}")

    def ended(self, number: int, name: str, state: str, text: str) -> None:
        """Show that a trial is finished."""
        with self._lock:
            self._trials.pop(number, None)
        sign = {"complete": "✓", "pruned": "✂", "failed": "✗"}.get(state, "·")
        self.say(f"{sign} trial {number}: {name.removesuffix(self._tail)}: {state}; {text}")

    def _parts(self, shown: _Shown) -> list[str]:
        """Return a running trial's tokens, loss, speed and time left to its rung or its end; each may be missing."""
        last, speed = shown.last, shown.last.get("tokens_per_second")
        parts = [f"{si(last.get('tokens', 0))} of {si(shown.until)} tokens"]
        if "evaluation_loss" in last:
            bits = last.get("evaluation_bits_per_byte")
            shown_bits = bits is not None and self._out.width >= WIDE
            parts.append(f"loss {last['evaluation_loss']:.3f}" + (f" ({bits:.3f} bits/byte)" if shown_bits else ""))
        if last.get("kind") == "branch_train":
            parts.insert(1, f"decay branch at {si(last['branch_tokens'])} of {si(last['branch'])}")
        if speed and last["tokens"] < shown.until:
            goal = "its rung" if shown.until < self._tokens else "its end"
            left = self._trained(last["tokens"], shown.until) - sum(shown.branches.values())
            parts += [f"{si(speed)} tokens/s", f"{duration(left / speed)} to {goal}"]
        return parts

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
            trials = sorted(self._trials.items())
            speed = sum(shown.last.get("tokens_per_second") or 0.0 for _, shown in trials)
            now, tokens = self._outlook, self._running_tokens()
            since = sum(tokens[number] - then for number, then in self._counted.items() if number in tokens)
        width, room = self._out.width, max(1, self._out.height - FRAME)
        lines = [_cut(_study_line(replace(now, tokens_done=now.tokens_done + since), speed), width)] if now else []
        lines += [self._trial_line(number, shown, width) for number, shown in trials]
        if len(lines) > room:
            lines = [*lines[: room - 1], f"and {len(lines) - room + 1} more running trials"]
        return Text("\n".join(lines), no_wrap=True, overflow="crop")

    def _trial_line(self, number: int, shown: _Shown, width: int) -> str:
        """Return the line of a running trial: the speed is left out and the name cut short if it is too wide."""
        parts = self._parts(shown) if shown.last else ["starting"]
        head, name = f"  trial {number}: ", visible(shown.name)
        if len(head) + len(name) + 2 + len(", ".join(parts)) > width:
            parts = [part for part in parts if not part.endswith(" tokens/s")]
        room = width - len(head) - 2 - len(", ".join(parts))
        return _cut(f"{head}{_cut(name, max(LEAST_NAME, room))}: {', '.join(parts)}", width)


def _remember(shown: _Shown, line: dict[str, Any]) -> None:
    """Add a metric line to what is known of a trial."""
    if line["tokens"] > shown.last.get("tokens", 0) or "branch" not in line:
        shown.branches.clear()
    shown.branches |= branched_tokens([line])
    own = {f"{line['kind']}_{key}": line.get(key) for key in ("loss", "bits_per_byte")}
    shown.last |= line | own


def _study_line(now: Outlook, speed: float) -> str:
    """Return the line of the study: phase, trials, tokens, and the time left for all of them."""
    counts = now.counts
    text = f"{now.phase}: {counts.ended} of {counts.total} trials ended"
    text += f", {si(now.tokens_done)} of {si(now.tokens_expected)} tokens"
    seconds = now.seconds_left(speed)
    return text if seconds is None else f"{text}, {duration(seconds)} left for all"


def _cut(text: str, width: int) -> str:
    """Return text of at most `width` characters, with an ellipsis if it was longer."""
    return text if len(text) <= width else f"{text[: width - 1]}…"
