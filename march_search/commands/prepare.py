"""Prepare a study's text and show the progress: a progress bar on a terminal, plain lines if stderr is piped."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from march_search.config import StudyConfig

if TYPE_CHECKING:
    from march_search.data.store import Store
    from march_search.storage.study_folder import StudyFolder


def prepared_store(
    config: StudyConfig,
    root: Path,
    folder: Path,
    workers: int | None = None,
    repaired: Callable[[list[str]], None] | None = None,
) -> "Store":
    """Return the token store of a study whose file is in `folder`; prepare it if needed (see `data.prepare`)."""
    from march_search.data.prepare import prepare
    from march_search.data.store import Store

    print("preparing the text (studies with the same text share it) ...", file=sys.stderr, flush=True)
    with _Shown() as shown:
        path = prepare(
            config.data,
            root,
            folder,
            tokens=config.training.tokens,
            workers=workers,
            progress=shown.tell,
            repaired=repaired,
        )
    return Store.open(path)


def verified_store(folder: "StudyFolder") -> Path:
    """Return the token store of a started study, so that a damaged store is one error and not one failed trial each.

    Raises:
        DataError: If the store is damaged.
    """
    from march_search.data.store import Store

    store = Store.open(folder.store)
    store.verify()
    return store.folder


def repeats(config: StudyConfig, store: "Store") -> str:
    """Describe how often a trial reads the training text with its data budget."""
    from march_search.units import si

    length = config.data.sequence_length
    times = config.training.tokens / (store.num_tokens("train") // length * length)
    text = f"{si(config.training.tokens)} tokens per trial, {si(store.num_tokens('train'))} tokens of training text"
    return f"{text}: " + (f"every trial reads {times:.0%} of it once" if times <= 1 else f"repeated {times:.1f} times")


class _Shown:
    """Progress display on stderr: the number of tokens written so far."""

    PLAIN_SECONDS = 10.0
    """Seconds between two lines if stderr is not a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        from march_search.display.tables import console

        out = console(stderr=True)
        self._bars = Progress(
            BarColumn(bar_width=18), TextColumn("{task.description}", markup=False), console=out, transient=True
        )
        self._live, self._began = out.is_terminal, 0.0
        self._last, self._first_tokens = 0.0, 0
        self._task = self._bars.add_task("reading the text; a new tokenizer is trained first", total=None)

    def __enter__(self) -> "_Shown":
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def tell(self, tokens: int, text_bytes: int, wanted: int | None) -> None:
        """Update the display with the counts of the writer."""
        from march_search.units import si

        now = time.monotonic()
        if not self._began:
            self._began = self._last = now
            self._first_tokens = tokens
        speed = (tokens - self._first_tokens) / max(now - self._began, 1e-3)
        text = f"read {si(text_bytes)}B of text so far: {si(tokens)} tokens, {si(speed)} tokens/s"
        if self._live:
            self._bars.update(self._task, description=text, completed=min(tokens, wanted or 0), total=wanted)
        elif now - self._last >= self.PLAIN_SECONDS:
            self._last = now
            print(text, file=sys.stderr, flush=True)
