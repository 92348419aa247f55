"""Byte-level BPE with T5's special tokens.

Ids: 0 is `<pad>`, 1 is `</s>`, 2 to 257 are the bytes, then come the merges, and the last 100 are the sentinels in T5's
order: `<extra_id_99>` is `vocab_size - 100`, `<extra_id_0>` is `vocab_size - 1`. The text `</s>` inside a document is
four characters and never the special token, so no document can forge a sentinel.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from march_search.data.ids import EOS, PAD, SENTINELS, sentinel
from march_search.errors import DataError

__all__ = ["EOS", "PAD", "SENTINELS", "load", "sentinel", "sha256", "train"]


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens; the same texts in the same order make the same one.

    A merge must occur twice. Any text survives encoding and decoding byte for byte: nothing is normalised.

    Raises:
        DataError: the texts are too few for so many merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - SENTINELS,
        min_frequency=2,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(SENTINELS))])
    made = tokenizer.get_vocab_size()
    if made != vocab_size:
        raise DataError(
            f"the text is too small for a vocabulary of {vocab_size:,}: it makes {max(made - 358, 0):,} merges and "
            f"{made:,} tokens. Set vocab_size to {made:,} or less, or give more text (tokenizer_bytes)."
        )
    return _plain(tokenizer)


def load(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json that `train` made.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return _plain(Tokenizer.from_str(path.read_text(encoding="utf-8")))
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(f"{path}: is no readable tokenizer ({error}).") from None


def sha256(tokenizer: Tokenizer) -> str:
    """Hash of the tokenizer's JSON with sorted keys and no white space, in hexadecimal."""
    text = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, taking special tokens that are written in a text as text; its JSON does not keep this."""
    tokenizer.encode_special_tokens = True
    return tokenizer
