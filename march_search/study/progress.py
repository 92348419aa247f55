"""Progress of a running study: one live line per trial on a terminal, plain lines if stderr is piped."""

from pathlib import Path
from types import TracebackType
from typing import Any

from optuna.trial import FrozenTrial
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from march_search.display.tables import WIDE, common_tail, console, duration, si
from march_search.errors import visible
from march_search.study.study_folder import trial_number
from march_search.trial.metrics import MetricsTail


class StudyProgress:
    """Progress display of a study's trials on stderr: name, tokens done, loss, tokens/s, time left."""

    def __init__(self, names: list[str], tokens: int) -> None:
        """Prepare to display trials of `tokens` tokens each; `names` are the architectures known so far."""
        self._tokens, self._tail = tokens, common_tail(names)
        self._out = console(stderr=True)
        self._wide = self._out.width >= WIDE
        self._tasks: dict[int, TaskID] = {}
        self._last: dict[int, dict[str, Any]] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            *([BarColumn(bar_width=18)] if self._wide else []),
            TextColumn("{task.fields[text]}", markup=False),
            console=self._out,
            transient=True,
        )
        self._live = self._out.is_terminal
        self._tails: dict[int, MetricsTail] = {}

    def __enter__(self) -> "StudyProgress":
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line that stays on the screen."""
        self._out.print(visible(text), soft_wrap=True)

    def started(self, number: int, name: str, resumed: bool) -> None:
        """Show that a trial starts or resumes."""
        self._last[number] = {}
        label = visible(f"{number} {name.removesuffix(self._tail)}")
        if self._live:
            self._tasks[number] = self._bars.add_task(label, total=self._tokens, text="starting")
        else:
            self.say(f"trial {number}: {name.removesuffix(self._tail)}: {'resumed' if resumed else 'started'}")

    def paused(self, number: int) -> None:
        """Remove an unfinished trial that no longer runs here from the display."""
        if number in self._tasks:
            self._bars.remove_task(self._tasks.pop(number))

    def others(self, running: list[tuple[FrozenTrial, Path]]) -> None:
        """Show the trials of other workers, read from their folders, if stderr is a terminal."""
        if not self._live:
            return
        for number in set(self._tails) - {trial_number(trial) for trial, _ in running}:
            del self._tails[number]
            self.paused(number)
        for trial, folder in running:
            number = trial_number(trial)
            if number not in self._tails:
                self._tails[number] = MetricsTail(folder)
                self.started(number, trial.user_attrs["architecture"], resumed=True)
            for line in self._tails[number].new_lines():
                self.line(number, line)

    def line(self, number: int, line: dict[str, Any]) -> None:
        """Show a metric line of a running trial."""
        own = {f"{line['kind']}_{key}": line.get(key) for key in ("loss", "bits_per_byte")}
        last = self._last[number] = self._last[number] | line | own
        if self._live:
            self._bars.update(self._tasks[number], completed=line["tokens"], text=self._text(last))
        elif line["kind"] == "evaluation":
            self.say(f"trial {number}: {self._text(last)}")

    def ended(self, number: int, name: str, state: str, text: str) -> None:
        """Show that a trial is finished."""
        self.paused(number)
        sign = {"complete": "✓", "pruned": "✂", "failed": "✗"}.get(state, "·")
        self.say(f"{sign} trial {number}: {name.removesuffix(self._tail)}: {state}; {text}")

    def _text(self, last: dict[str, Any]) -> str:
        """Return a running trial's tokens, loss, speed and time left as text."""
        parts = [f"{si(last['tokens'])}/{si(self._tokens)}" + " tokens" * self._wide]
        if "evaluation_loss" in last:
            bits = last.get("evaluation_bits_per_byte")
            parts.append(
                f"loss {last['evaluation_loss']:.3f}" + (f" ({bits:.3f} bits/byte)" if bits and self._wide else "")
            )
        speed = last.get("tokens_per_second")
        if speed:
            left = duration((self._tokens - last["tokens"]) / speed)
            parts += [f"{si(speed)} tokens/s", f"{left} left"] if self._wide else [f"{si(speed)}/s", left]
        return ", ".join(parts)
