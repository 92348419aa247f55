"""Streams of documents from the Hugging Face Hub, or from a local folder with the layout of a dataset."""

import contextlib
import glob
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from march_search.config import DataConfig
from march_search.data.rows import Unusable, json_line, kind_of, text_in
from march_search.errors import DataError
from march_search.files.atomic import file_sha256, one_line

_REMEDY = "Check the name, hub_config, hub_split and the network."


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A dataset of the Hugging Face Hub, or a local folder with the layout of a dataset."""

    name: str
    hub_config: str | None
    config: DataConfig
    is_local: bool = False
    is_stream: bool = True

    def rows(self) -> Iterator[str | Unusable]:
        """Stream the text column of every row."""
        import datasets

        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it also logs some of the errors that it raises
        options = {"name": self.hub_config, "revision": self.config.hub_revision}
        split, column = self.config.hub_split, self.config.text_column
        try:
            files = (datasets.load_dataset_builder(self.name, **options).config.data_files or {}).get(split, [])
            if files and all(_is_json_lines(file) for file in files):
                for file in files:
                    yield from _json_lines(file, column)
                return
            dataset = datasets.load_dataset(self.name, split=split, streaming=True, **options)
            for number, row in enumerate(dataset, 1):
                yield text_in(row, column, f"{split} row {number:,}")
        except DataError:
            raise
        except Exception as error:  # datasets raises errors of pyarrow, fsspec and the network libraries
            raise _unreadable(self.name, error, _REMEDY) from None

    def identity(self) -> dict[str, Any]:
        """Return name, configuration, split, column and revision; for a local folder, the hash of its files instead."""
        settings = {"config": self.hub_config, "split": self.config.hub_split, "column": self.config.text_column}
        if self.is_local:
            files = sorted(file for file in Path(self.name).rglob("*") if file.is_file())
            digest = hashlib.sha256(
                "".join(f"{f.relative_to(self.name)} {file_sha256(f)}\n" for f in files).encode()
            ).hexdigest()
            return {"kind": "hub folder", **settings, "sha256": digest}
        return {"kind": "hub", "name": self.name, **settings, "revision": self.config.hub_revision}

    def newest_revision(self) -> str | None:
        """Return the git revision to read: the pinned one, or else the newest; None for an unpinned local folder.

        Raises:
            DataError: If the Hub cannot be reached or does not have the dataset.
        """
        if self.is_local or self.config.hub_revision:
            return self.config.hub_revision
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(self.name).sha
        except Exception as error:  # huggingface_hub raises errors of many libraries
            raise _unreadable(self.name, error, _REMEDY) from None

    def summary(self) -> str:
        """Return one line that describes the source."""
        if self.is_local:
            return f"the folder {self.name}, streamed"
        at = f" at {self.config.hub_revision}" if self.config.hub_revision else ""
        return f"streamed from the Hub: {self.name} {self.hub_config or ''}".rstrip() + f"{at} (network not used)"


def _is_json_lines(file: str) -> bool:
    """Return whether a data file holds one JSON object per line. A plain .json file may be an array."""
    name = Path(file)
    return kind_of(name) == "json" and name.suffix.lower() != ".json"


def _json_lines(file: str, column: str) -> Iterator[str | Unusable]:
    """Stream the lines of a data file as text, because the types of other columns may differ between rows."""
    import datasets

    escaped = file if "://" in file else glob.escape(file)
    lines = datasets.load_dataset("text", data_files=[escaped], split="train", streaming=True, encoding="utf-8-sig")
    for number, row in enumerate(lines, 1):
        yield from json_line(row["text"], column, f"{file.rpartition('/')[2]} line {number:,}")


def _unreadable(label: str, error: Exception, remedy: str) -> DataError:
    """Return the error for a dataset that is missing, damaged or unreachable."""
    return DataError(f"{label}: cannot be read ({one_line(error)}). {remedy}")


@contextlib.contextmanager
def caches(folder: Path) -> Iterator[None]:
    """Keep the caches of `datasets` and `huggingface_hub` inside `folder` while the context is open.

    Without `datasets`, which text files do not need, there are none.
    """
    if importlib.util.find_spec("datasets") is None:
        yield
        return
    import datasets
    import huggingface_hub.constants as hub

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # if it is set, a later fork does not print a warning
    attributes = [(datasets.config, "HF_DATASETS_CACHE"), (datasets.config, "HF_MODULES_CACHE")]
    attributes += [(hub, "HF_HUB_CACHE"), (hub, "HF_ASSETS_CACHE"), (hub, "HF_XET_CACHE")]
    before = [(module, name, getattr(module, name)) for module, name in attributes if hasattr(module, name)]
    try:
        for module, name, value in before:
            setattr(module, name, type(value)(folder / name.split("_")[1].lower()))
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
