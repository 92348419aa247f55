"""Tokenizers: trained byte-level BPE with T5's special tokens, and loaded tokenizers.

A trained vocabulary has these ids: 0 is `<pad>`, 1 is `</s>`, 2 to 257 are the bytes, followed by the merges, and the
last 100 are the sentinels in T5's order, from `<extra_id_99>` at `vocab_size - 100` to `<extra_id_0>` at
`vocab_size - 1`. Special tokens that are spelled out in a document, such as `</s>`, are encoded as ordinary text,
so no document can forge a sentinel.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from march_search.errors import DataError
from march_search.files import one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD = 0

EOS = 1

SENTINELS = 100
"""Number of sentinels, `<extra_id_0>` to `<extra_id_99>`. Their ids are consecutive."""


class Special(NamedTuple):
    """Special token ids of a vocabulary."""

    eos: int
    """Id of the end token of documents, inputs and targets."""
    first_sentinel: int
    """Id of `<extra_id_0>`."""
    step: int = -1
    """Id of `<extra_id_1>` minus that of `<extra_id_0>`: -1 in T5's order, otherwise 1."""

    def sentinel(self, i: int) -> int:
        """Return the id of `<extra_id_i>`."""
        assert 0 <= i < SENTINELS
        return self.first_sentinel + self.step * i

    def is_sentinel(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Return a mask of the `ids` that are sentinels."""
        low, high = sorted((self.first_sentinel, self.sentinel(SENTINELS - 1)))
        return (ids >= low) & (ids <= high)


def trained(vocab_size: int) -> Special:
    """Return the special ids of a trained vocabulary: `</s>` is 1 and `<extra_id_0>` is the last id."""
    return Special(EOS, vocab_size - 1)


ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]")
"""Candidates for the end token. The first one in the vocabulary is used."""


def train(texts: Iterable[str], vocab_size: int, split_digits: bool = False) -> "Tokenizer":
    """Train a tokenizer of exactly `vocab_size` tokens. The same texts in the same order give the same tokenizer.

    A pair must occur at least twice to be merged. Text is not normalised, so decoding restores every text exactly.

    Raises:
        DataError: If the texts do not have enough pairs to merge.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of_words]) if split_digits else bytes_of_words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - SENTINELS,
        min_frequency=2,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    _add_sentinels(tokenizer)
    made = tokenizer.get_vocab_size()
    if made != vocab_size:
        raise DataError(
            f"the text is too small for a vocabulary of {vocab_size:,}: it gives {max(made - 358, 0):,} merges and "
            f"{made:,} tokens. Set vocab_size to {made:,} or less, or use more text (tokenizer_bytes)."
        )
    return _plain(tokenizer)


def load(path: Path) -> "Tokenizer":
    """Load a tokenizer.json, or the one in a folder. Sentinels are appended if the vocabulary has none.

    Raises:
        DataError: If the file is missing or damaged, or is a spiece.model, which has to be converted first.
    """
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    spiece = path / "spiece.model" if path.is_dir() else path
    if spiece.name == "spiece.model" and spiece.is_file() and not (path / "tokenizer.json").is_file():
        folder = spiece.parent
        raise DataError(
            f"{spiece}: expected a tokenizer.json. Convert the file once, in a separate environment "
            f"(pip install 'transformers[sentencepiece]'), and set [data] tokenizer to {folder}: "
            f"python -c \"from transformers import T5Tokenizer as T; T.from_pretrained('{folder}')"
            f".save_pretrained('{folder}')\""
        )
    try:
        return _plain(Tokenizer.from_str(file.read_text(encoding="utf-8")))
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(f"{path}: not a readable tokenizer ({one_line(error)}).") from None


def special_of(tokenizer: "Tokenizer", label: str) -> Special:
    """Return the ids of the end token and the sentinels.

    Raises:
        DataError: If there is no end token, or the ids of the sentinels are not consecutive.
    """
    eos = next((i for token in ENDS if (i := tokenizer.token_to_id(token)) is not None), None)
    if eos is None:
        raise DataError(f"{label}: the vocabulary has no end token; add one of: {', '.join(ENDS)}.")
    ids = [tokenizer.token_to_id(f"<extra_id_{i}>") for i in range(SENTINELS)]
    first = ids[0]
    for step in (-1, 1):
        if first is not None and ids == [first + step * i for i in range(SENTINELS)]:
            return Special(eos, first, step)
    raise DataError(f"{label}: the ids of <extra_id_0> to <extra_id_99> must be consecutive, ascending or descending.")


def sha256(tokenizer: "Tokenizer") -> str:
    """Return the SHA-256 of the tokenizer's JSON, with sorted keys and without white space, in hexadecimal."""
    text = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _add_sentinels(tokenizer: "Tokenizer") -> None:
    """Append the sentinels in T5's order."""
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(SENTINELS))])


def _plain(tokenizer: "Tokenizer") -> "Tokenizer":
    """Add missing sentinels, disable truncation and padding, and encode spelled-out special tokens as text."""
    if tokenizer.token_to_id("<extra_id_0>") is None:
        _add_sentinels(tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
