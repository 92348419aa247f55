"""Bytes of text per token, from the tokenizer of a store: what turns nats per token into bits per byte.

The bytes of a token are those of its text in the vocabulary. Special tokens, such as the end token and the sentinels,
have none. Where a tokenizer changes the text (normalisation, an added space, WordPiece), these do not add up to the
bytes of the text, so they are scaled to do so over the validation split. With byte-level BPE without a normaliser,
which march-search trains, the scale is 1 and the bytes of any tokens are exact.
"""

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.data.store import Store

SPACE = "▁"
"""Stands for a space in the vocabulary of SentencePiece."""


def bits_per_nat(store: Store, targets: NDArray[Any]) -> float | None:
    """Return the factor from nats per token of `targets` to bits per byte of their text.

    It is tokens / bytes / ln 2. Tokens without text count as tokens, because their nats are part of the loss. Returns
    None if the targets have no text, or the store has no tokenizer that tells.
    """
    if not (store.folder / "tokenizer.json").is_file():
        return None
    num_bytes = float(token_bytes(store)[targets].sum())
    return targets.size / num_bytes / math.log(2) if num_bytes else None


def token_bytes(store: Store) -> NDArray[np.float64]:
    """Return the bytes of text of each id of the vocabulary, an array of shape (V,)."""
    tokenizer = json.loads((store.folder / "tokenizer.json").read_text(encoding="utf-8"))
    bytes_V = _bytes(tokenizer, store)
    if _keeps_text(tokenizer):
        return bytes_V
    ids = store.tokens("validation")
    counted = sum(float(bytes_V @ np.bincount(part, minlength=len(bytes_V))) for part in ids.parts)
    return bytes_V * (store.index["splits"]["validation"]["text_bytes"] / counted if counted else 0.0)


def _bytes(tokenizer: dict[str, Any], store: Store) -> NDArray[np.float64]:
    """Return the bytes of the text of each id, as the vocabulary spells it."""
    vocabulary, special = tokenizer["model"]["vocab"], store.special
    pieces = vocabulary.items() if isinstance(vocabulary, dict) else ((p[0], i) for i, p in enumerate(vocabulary))
    is_byte_level = "ByteLevel" in _types(tokenizer.get("pre_tokenizer"))
    bytes_V = np.zeros(store.vocab_size)
    for piece, token in pieces:
        if is_byte_level:
            bytes_V[token] = len(piece)  # one character per byte
        elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            bytes_V[token] = 1  # byte fallback of SentencePiece
        else:
            bytes_V[token] = len(piece.removeprefix("##").replace(SPACE, " ").encode())
    for added in tokenizer.get("added_tokens") or ():
        bytes_V[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    ids_V = np.arange(store.vocab_size)
    bytes_V[special.is_sentinel(ids_V) | (ids_V == special.eos)] = 0
    return bytes_V


def _keeps_text(tokenizer: dict[str, Any]) -> bool:
    """Return whether the tokens of a text spell exactly its bytes."""
    types = _types(tokenizer.get("pre_tokenizer"))
    adds_space = types.get("ByteLevel", {}).get("add_prefix_space", True)
    return "ByteLevel" in types and not adds_space and not _types(tokenizer.get("normalizer"))


def _types(part: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the steps of a part of a tokenizer by type, without sequences of steps, which are opened."""
    if not part:
        return {}
    if part["type"] == "Sequence":
        inner = part.get("pretokenizers") or part.get("normalizers") or ()
        return {name: step for one in inner for name, step in _types(one).items()}
    return {part["type"]: part}
