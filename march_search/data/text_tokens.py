"""The most training tokens that a study's text can have, before the text is prepared, to warn of settings beyond it."""

from pathlib import Path
from typing import NamedTuple

from march_search.config import DataConfig
from march_search.data import corpora
from march_search.data.rows import is_compressed
from march_search.data.sources import Embedded, Local
from march_search.data.store import Store
from march_search.errors import DataError

BYTES_PER_TOKEN = ((8000, 2.5), (2000, 2.0), (0, 1.3))
"""Fewest bytes per token that text has from a vocabulary size on; English has 1.6 times as many or more."""


class TextTokens(NamedTuple):
    """Tokens of the training text."""

    most: int | None
    """Their number, or an upper bound; None if nothing is known."""
    is_exact: bool = False
    """Whether it is their number."""


def text_tokens(config: DataConfig, base: Path, store: Path | None = None) -> TextTokens:
    """Return the tokens of a study's training text: those of its store, else a bound by the size of local text.

    Args:
        config: The study's data.
        base: Folder that relative paths start from.
        store: Token store of a started study.

    Raises:
        DataError: If the corpus does not exist.
    """
    if store is not None:
        try:
            return TextTokens(Store.read(store).num_tokens("train"), is_exact=True)
        except DataError:
            return TextTokens(None)
    num_bytes = _num_bytes(config, base)
    if num_bytes is None:
        return TextTokens(None)
    fewest = next(fewest for size, fewest in BYTES_PER_TOKEN if config.vocab_size >= size)
    return TextTokens(int(num_bytes * (1 - config.validation_fraction) / fewest))


def _num_bytes(config: DataConfig, base: Path) -> int | None:
    """Return the bytes of a local corpus, of which some may not be text; None for the Hub and compressed files."""
    source = corpora.source(config, base)
    if isinstance(source, Embedded):
        return source.num_bytes()
    if isinstance(source, Local) and not any(is_compressed(file) for file in source.files):
        return source.num_bytes()
    return None
