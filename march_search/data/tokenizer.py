"""Tokenizers: byte-level BPE trained here with T5's special tokens, or one that is loaded.

Trained ids: 0 is `<pad>`, 1 is `</s>`, 2 to 257 are the bytes, then come the merges, and the last 100 are the sentinels
in T5's order: `<extra_id_99>` is `vocab_size - 100`, `<extra_id_0>` is `vocab_size - 1`. The text `</s>` inside a
document is four characters and never the special token, so no document can forge a sentinel.
"""

import hashlib
import importlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from march_search.data.files import one_line
from march_search.data.ids import SENTINELS, Special
from march_search.errors import DataError

ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]")
"""Tokens that may end a document, the first that a vocabulary has."""


def train(texts: Iterable[str], vocab_size: int, split_digits: bool = False) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens; the same texts in the same order make the same one.

    A merge must occur twice. Any text survives encoding and decoding byte for byte: nothing is normalised.

    Raises:
        DataError: the texts are too few for so many merges.
    """
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
            f"the text is too small for a vocabulary of {vocab_size:,}: it makes {max(made - 358, 0):,} merges and "
            f"{made:,} tokens. Set vocab_size to {made:,} or less, or give more text (tokenizer_bytes)."
        )
    return _plain(tokenizer)


def load(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, or in the folder of a T5 tokenizer: its tokenizer.json or spiece.model.

    One without sentinels gets them behind its last id.

    Raises:
        DataError: the file is missing or damaged.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        if path.is_dir() and not file.is_file() and (path / "spiece.model").is_file():
            return _plain(_sentencepiece(path))
        return _plain(Tokenizer.from_str(file.read_text(encoding="utf-8")))
    except DataError:
        raise
    except Exception as error:  # tokenizers and transformers raise errors of many kinds
        raise DataError(f"{path}: is no readable tokenizer ({one_line(error)}).") from None


def _sentencepiece(folder: Path) -> Tokenizer:
    """A folder with spiece.model alone, read by transformers."""
    try:
        for module in ("transformers", "sentencepiece", "google.protobuf"):
            importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{folder}: holds spiece.model and no tokenizer.json, and {error.name} is not installed: pip install "
            '"march-search[t5]"'
        ) from None
    import transformers

    tokenizer: Tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer
    return tokenizer


def special_of(tokenizer: Tokenizer, label: str) -> Special:
    """Ids of the end and the sentinels.

    Raises:
        DataError: there is no end token, or the sentinels' ids do not follow each other.
    """
    eos = next((i for token in ENDS if (i := tokenizer.token_to_id(token)) is not None), None)
    if eos is None:
        raise DataError(f"{label}: has no token that ends a document; add one of: {', '.join(ENDS)}.")
    ids = [tokenizer.token_to_id(f"<extra_id_{i}>") for i in range(SENTINELS)]
    first = ids[0]
    for step in (-1, 1):
        if first is not None and ids == [first + step * i for i in range(SENTINELS)]:
            return Special(eos, first, step)
    raise DataError(f"{label}: the ids of <extra_id_0> to <extra_id_99> must follow each other, up or down.")


def sha256(tokenizer: Tokenizer) -> str:
    """Hash of the tokenizer's JSON with sorted keys and no white space, in hexadecimal."""
    text = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _add_sentinels(tokenizer: Tokenizer) -> None:
    """Appends the sentinels in T5's order."""
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(SENTINELS))])


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with sentinels, which cuts no text and takes special tokens that are written in it as text."""
    if tokenizer.token_to_id("<extra_id_0>") is None:
        _add_sentinels(tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
