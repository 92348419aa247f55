"""Tokenizers: trained byte-level BPE with T5's special tokens, and loaded tokenizers.

A trained vocabulary has these ids: 0 is `<pad>`, 1 is `</s>`, 2 to 257 are the bytes, followed by the merges, and the
last 100 are the sentinels in T5's order, from `<extra_id_99>` at `vocab_size - 100` to `<extra_id_0>` at
`vocab_size - 1`. Special tokens that are spelled out in a document, such as `</s>`, are encoded as ordinary text,
so no document can forge a sentinel.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from march_search.architecture.huggingface import START_TOKEN
from march_search.config.data_config import SENTINELS
from march_search.errors import DataError, nearest
from march_search.files.atomic import one_line
from march_search.files.json_tables import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD = 0

EOS = 1


class Special(NamedTuple):
    """Special token ids of a vocabulary."""

    eos: int
    """Id of the end token of documents, inputs and targets."""
    first_sentinel: int | None
    """Id of `<extra_id_0>`; None for a vocabulary without sentinels, which only decoder-only models can use."""
    step: int = -1
    """Id of `<extra_id_1>` minus that of `<extra_id_0>`: -1 in T5's order, otherwise 1."""

    @property
    def start(self) -> int:
        """Id of the token that a decoder starts with: 0, T5's padding, or the end token without sentinels, as GPT-2."""
        return START_TOKEN if self.first_sentinel is not None else self.eos

    def sentinel(self, i: int) -> int:
        """Return the id of `<extra_id_i>`, of a vocabulary with sentinels."""
        assert 0 <= i < SENTINELS
        assert self.first_sentinel is not None
        return self.first_sentinel + self.step * i

    def is_sentinel(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Return a mask of the `ids` that are sentinels."""
        if self.first_sentinel is None:
            return np.zeros(np.shape(ids), np.bool_)
        low, high = sorted((self.first_sentinel, self.sentinel(SENTINELS - 1)))
        return (ids >= low) & (ids <= high)


def trained(vocab_size: int) -> Special:
    """Return the special ids of a trained vocabulary: `</s>` is 1 and `<extra_id_0>` is the last id."""
    return Special(EOS, vocab_size - 1)


ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]")
"""Candidates for the end token. The first one in the vocabulary is used."""

PADS = ("<pad>", "<|padding|>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")
"""Candidates for the padding token of an export. The first one in the vocabulary is used."""


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
    tokenizer = _with_sentinels(tokenizer)
    made = tokenizer.get_vocab_size()
    if made != vocab_size:
        raise DataError(
            f"the text is too small for a vocabulary of {vocab_size:,}: it gives {max(made - 358, 0):,} merges and "
            f"{made:,} tokens. Set vocab_size to {made:,} or less, or use more text (tokenizer_bytes)."
        )
    return _plain(tokenizer)


def load(path: Path, vocab_size: int | None = None) -> "Tokenizer":
    """Load a tokenizer.json, or the one in a folder.

    Sentinels are appended if the vocabulary has none, unless it would then exceed `vocab_size`.

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
        text = file.read_text(encoding="utf-8-sig")
        with _no_stderr():
            return _plain(Tokenizer.from_str(text), vocab_size)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises plain Exception, and PanicException for an error in Rust
        raise DataError(f"{path}: not a readable tokenizer ({one_line(error)}).") from None


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Discard what is written to the stderr of the process: Rust prints a stack trace where tokenizers panics."""
    try:
        before = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    if sys.stderr:
        sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)


def size(tokenizer: "Tokenizer") -> int:
    """Return the largest id plus 1. Ids may have gaps, so this can exceed the number of entries."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def end_token(path: Path) -> str | None:
    """Return the `eos_token` in the tokenizer_config.json beside a tokenizer.json; None without one."""
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / "tokenizer_config.json")
    token = config.get("eos_token") if isinstance(config, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def special_of(tokenizer: "Tokenizer", label: str, end: str | None = None, fallback: str | None = None) -> Special:
    """Return the ids of the end token and, if there are any, of the sentinels.

    Args:
        tokenizer: A loaded tokenizer.
        label: Name of the tokenizer in errors.
        end: End token; None uses the first of `ENDS` in the vocabulary.
        fallback: Token to use if `end` is None and the vocabulary has none of `ENDS`.

    Raises:
        DataError: If there is no end token, or the ids of the sentinels are not consecutive.
    """
    if end is not None and tokenizer.token_to_id(end) is None:
        known = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        raise DataError(f'{label}: the vocabulary has no token "{end}". Set end_token. {nearest(end, known)}')
    candidates = [end] if end is not None else [*ENDS, *([fallback] if fallback else [])]
    eos = next((i for token in candidates if (i := tokenizer.token_to_id(token)) is not None), None)
    if eos is None:
        raise DataError(f"{label}: the vocabulary has no end token ({', '.join(ENDS)}); set end_token.")
    ids = [tokenizer.token_to_id(f"<extra_id_{i}>") for i in range(SENTINELS)]
    if all(i is None for i in ids):
        return Special(eos, None)
    first = ids[0]
    for step in (-1, 1):
        if first is not None and ids == [first + step * i for i in range(SENTINELS)]:
            return Special(eos, first, step)
    raise DataError(f"{label}: the ids of <extra_id_0> to <extra_id_99> must be consecutive, ascending or descending.")


def padding(tokenizer: "Tokenizer", special: Special) -> int:
    """Return the id of the padding token: the first of `PADS` in the vocabulary, else the end token."""
    return next((i for token in PADS if (i := tokenizer.token_to_id(token)) is not None), special.eos)


def sha256(tokenizer: "Tokenizer") -> str:
    """Return the SHA-256 of the tokenizer's JSON, with sorted keys and without white space, in hexadecimal."""
    text = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _with_sentinels(tokenizer: "Tokenizer") -> "Tokenizer":
    """Return the tokenizer with sentinels after its largest id, in T5's order."""
    from tokenizers import Tokenizer

    names = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    first = size(tokenizer)
    if first != tokenizer.get_vocab_size():
        # The ids have gaps. New tokens would get the ids of others, so their ids are put into the model's vocabulary.
        content = json.loads(tokenizer.to_str())
        content["model"]["vocab"] |= {name: first + i for i, name in enumerate(names)}
        tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens(names)
    return tokenizer


def _plain(tokenizer: "Tokenizer", vocab_size: int | None = None) -> "Tokenizer":
    """Add missing sentinels that fit, disable truncation and padding, and encode spelled-out special tokens as text."""
    has_room = vocab_size is None or size(tokenizer) + SENTINELS <= vocab_size
    if has_room and tokenizer.token_to_id("<extra_id_0>") is None:
        tokenizer = _with_sentinels(tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
