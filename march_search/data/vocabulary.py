"""The tokenizer of a study: loaded, or trained once and stored below the root."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from march_search.config import DataConfig
from march_search.config.data_config import SENTINELS
from march_search.data import corpora
from march_search.errors import DataError
from march_search.files.atomic import expanded, lock, read_text, write_text
from march_search.files.json_tables import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from march_search.data.tokenizer import Special


PADDING = 0.05
"""Fraction by which the vocabulary of a model may exceed that of its tokenizer: phi-2 has 50,295 of 51,200 tokens."""

PAD_TO = 128
"""The largest vocabulary of a model is rounded up to a multiple of this number."""


def obtain(config: DataConfig, root: Path, base: Path) -> "Tokenizer":
    """Return the tokenizer of `config`. Trained tokenizers are stored in `root/data/tokenizers` and reused.

    Raises:
        DataError: If the tokenizer cannot be read or trained, or does not match `vocab_size`.
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
            write_text(_hash_file(file), bpe.sha256(trained))
            write_json(file, json.loads(trained.to_str()))
        loaded = bpe.load(file)
    if _hash_file(file).is_file() and read_text(_hash_file(file)) != bpe.sha256(loaded):  # older files have no hash
        raise DataError(f"{file} has changed since it was written; delete it to train it again.")
    return loaded


def _loaded(name: str, config: DataConfig, base: Path) -> "Tokenizer":
    """Load the tokenizer at the path `name`; check its special tokens and its size."""
    from march_search.data import tokenizer as bpe

    path = base / expanded(name)
    loaded = bpe.load(path, config.vocab_size)
    found = bpe.special_of(loaded, str(path), config.end_token, bpe.end_token(path))
    _check_size(bpe.size(loaded), config, found)
    return loaded


def special(tokenizer: "Tokenizer", config: DataConfig, base: Path) -> "Special":
    """Return the special ids of the tokenizer that `obtain` returned.

    Raises:
        DataError: If the tokenizer has no end token.
    """
    from march_search.data import tokenizer as bpe

    fallback = bpe.end_token(base / expanded(config.tokenizer)) if config.tokenizer else None
    return bpe.special_of(tokenizer, config.tokenizer or "the tokenizer", config.end_token, fallback)


def padded_size(path: Path) -> int:
    """Return the usual vocabulary size of a model for the tokenizer at `path`: its size, rounded up to `PAD_TO`.

    Raises:
        DataError: If the tokenizer cannot be read.
    """
    from march_search.data import tokenizer as bpe

    return math.ceil(bpe.size(bpe.load(path)) / PAD_TO) * PAD_TO


def trained_file(config: DataConfig, root: Path, base: Path) -> Path:
    """Return the file of a trained tokenizer."""
    return root / "data" / "tokenizers" / f"{_key(config, base)}.json"


def _hash_file(file: Path) -> Path:
    """Return the file that holds the hash of a trained tokenizer."""
    return file.with_suffix(".sha256")


def check(config: DataConfig, base: Path, structure: str = "decoder-only") -> str:
    """Return a short description of the tokenizer, without training it or using the network.

    Args:
        config: The study's data.
        base: Folder that relative paths start from.
        structure: Structure of the models. Encoder-decoders need sentinels.

    Raises:
        DataError: If the tokenizer cannot be read or does not match `vocab_size` or the models, or its training corpus
            is unknown.
    """
    description = f"vocabulary {config.vocab_size:,}"
    if config.tokenizer is not None:
        from march_search.data import tokenizer as bpe

        loaded = _loaded(config.tokenizer, config, base)
        size, own = bpe.size(loaded), special(loaded, config, base)
        if own.first_sentinel is None and structure != "decoder-only":
            raise DataError(
                f"{config.tokenizer}: encoder-decoders need {SENTINELS} sentinels after its {size:,} tokens, so "
                f"vocab_size must be at least {size + SENTINELS:,}, got {config.vocab_size:,}: change it in [data] and "
                "in the architectures."
            )
        without = ", without sentinels" if own.first_sentinel is None else ""
        return f"{description}, of which {size:,} from {config.tokenizer}{without}"
    if config.tokenizer_corpus is not None:
        description += f", tokenizer trained on {corpora.check(_trained_on(config), base)}"
    return description + (", one token per digit" if config.split_digits else "")


def texts(config: DataConfig, base: Path) -> Iterator[str]:
    """Yield the first training documents of `config.corpus`, about `tokenizer_bytes` bytes in total."""
    left = config.tokenizer_bytes
    for text in corpora.documents(config, base):
        if left <= 0:
            return
        if not is_validation(text, config.validation_fraction):
            left -= len(text.encode())
            yield text


def is_validation(text: str, fraction: float) -> bool:
    """Return whether a document belongs to the validation split. Its hash decides, so copies share a split."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2.0**64


def _trained_on(config: DataConfig) -> DataConfig:
    """Return `config` with the training corpus of the tokenizer as its corpus."""
    if config.tokenizer_corpus is None:
        return config
    return dataclasses.replace(
        config, corpus=config.tokenizer_corpus, hub_config=None, hub_split="train", hub_revision=None
    )


def _key(config: DataConfig, base: Path) -> str:
    """Return the file name of a trained tokenizer, a hash of its corpus and settings."""
    names = ("vocab_size", "tokenizer_bytes", "split_digits", "validation_fraction")
    identity = [[getattr(config, name) for name in names], corpora.source(_trained_on(config), base).identity()]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _check_size(size: int, config: DataConfig, special: "Special") -> None:
    """Check that `vocab_size` is at least `size`, and not more than the padding that is usual."""
    is_bare = special.first_sentinel is None  # `vocab_size` has no room for sentinels
    most = math.ceil((size + SENTINELS * is_bare) * (1 + PADDING) / PAD_TO) * PAD_TO
    if not size <= config.vocab_size <= most:
        least = f"from {size:,}" + (f" (encoder-decoders: {size + SENTINELS:,}, with sentinels)" if is_bare else "")
        raise DataError(
            f"{config.tokenizer}: the tokenizer has {size:,} tokens{' with sentinels' * (not is_bare)}, so vocab_size "
            f"must be {least} to {most:,}, got {config.vocab_size:,}: change it in [data] and in the architectures."
        )
