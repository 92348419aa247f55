"""The tokenizer that a study asks for: trained once and kept below the root, or loaded."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from march_search.config import DataConfig
from march_search.data import corpora
from march_search.errors import DataError
from march_search.files import lock, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD_TO = 128
"""A model's vocabulary may be larger than its tokenizer's, up to the next multiple of this."""


def obtain(config: DataConfig, root: Path, base: Path) -> "Tokenizer":
    """The tokenizer of `config`; one that has to be trained is kept in `root/data/tokenizers`.

    Raises:
        DataError: it cannot be read or trained, or does not fit `vocab_size`.
    """
    from march_search.data import tokenizer as bpe

    if config.tokenizer is not None:
        return _loaded(config.tokenizer, config, base)
    file = trained_file(config, root, base)
    file.parent.mkdir(parents=True, exist_ok=True)
    with lock(file.with_suffix(".lock")):
        if not file.is_file():
            read = corpora.pinned(_trained_on(config), base)
            trained = bpe.train(texts(read, base), config.vocab_size, config.split_digits)
            write_json(file, json.loads(trained.to_str()))
        return bpe.load(file)


def _loaded(name: str, config: DataConfig, base: Path) -> "Tokenizer":
    """The tokenizer that `config` names."""
    from march_search.data import tokenizer as bpe

    path = base / Path(name).expanduser()
    loaded = bpe.load(path)
    bpe.special_of(loaded, str(path))
    _check_size(loaded.get_vocab_size(), config)
    return loaded


def trained_file(config: DataConfig, root: Path, base: Path) -> Path:
    """Where a tokenizer is kept that is trained here."""
    return root / "data" / "tokenizers" / f"{_key(config, base)}.json"


def check(config: DataConfig, base: Path) -> str:
    """A few words about the tokenizer; nothing is trained and the network is left alone.

    Raises:
        DataError: it cannot be read or does not fit `vocab_size`, or the corpus to train it on is unknown.
    """
    told = f"vocabulary {config.vocab_size:,}"
    if config.tokenizer is not None:
        size = _loaded(config.tokenizer, config, base).get_vocab_size()
        return f"{told}, {size:,} of them {config.tokenizer}'s"
    if config.tokenizer_corpus is not None:
        told += f", tokenizer trained on {corpora.check(_trained_on(config), base)}"
    return told + (", every digit a token" if config.split_digits else "")


def texts(config: DataConfig, base: Path) -> Iterator[str]:
    """The first training documents of `config.corpus`, until they hold `tokenizer_bytes` bytes."""
    left = config.tokenizer_bytes
    for text in corpora.documents(config, base):
        if left <= 0:
            return
        if not is_validation(text, config.validation_fraction):
            left -= len(text.encode())
            yield text


def is_validation(text: str, fraction: float) -> bool:
    """Whether a document belongs to the validation split: its hash decides, so copies of a text stay together."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2.0**64


def _trained_on(config: DataConfig) -> DataConfig:
    """`config`, reading the tokenizer's corpus."""
    if config.tokenizer_corpus is None:
        return config
    return dataclasses.replace(
        config, corpus=config.tokenizer_corpus, hub_config=None, hub_split="train", hub_revision=None
    )


def _key(config: DataConfig, base: Path) -> str:
    """Name of a trained tokenizer: what it is trained on and how."""
    names = ("vocab_size", "tokenizer_bytes", "split_digits", "validation_fraction")
    told = [[getattr(config, name) for name in names], corpora.source(_trained_on(config), base).identity()]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _check_size(size: int, config: DataConfig) -> None:
    """Refuses a loaded tokenizer that is larger than `vocab_size`, or a good deal smaller."""
    most = -(-size // PAD_TO) * PAD_TO
    if not size <= config.vocab_size <= most:
        raise DataError(
            f"{config.tokenizer}: has {size:,} tokens, sentinels included, and [data] vocab_size is "
            f"{config.vocab_size:,}: set it, and the architectures', to {size:,} or up to {most:,}."
        )
