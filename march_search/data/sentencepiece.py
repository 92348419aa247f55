"""Reads spiece.model, the vocabulary of T5's own repositories, into a tokenizer of `tokenizers`.

The file is a protocol buffer: pieces with scores and kinds, and a table of character replacements. Reading these few
fields here keeps out a library of protocol buffers, whose versions exclude each other.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

_UNKNOWN, _CONTROL = 2, 3
"""Kinds of pieces that are no text; a piece without a kind is a normal one."""


def read(path: Path) -> Tokenizer:
    """The tokenizer, without sentinels.

    Raises:
        ValueError: the file is damaged or is no unigram vocabulary.
    """
    pieces, replacements = [], b""
    for number, value in _fields(path.read_bytes()):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, b"\1")[0]))
        elif number == 3:
            replacements = dict(_fields(value)).get(2, b"")
    unknown = [i for i, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN]
    if len(unknown) != 1:
        raise ValueError("it has no unknown piece: it is damaged, or no unigram vocabulary")
    tokenizer = Tokenizer(models.Unigram([(text, score) for text, score, _ in pieces], unknown[0], False))
    tokenizer.normalizer = normalizers.Precompiled(replacements) if replacements else None
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = [text for text, _, kind in pieces if kind in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    return tokenizer


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and values of a message; a whole number is given by its lowest byte."""
    at = 0
    while at < len(data):
        key, at = _whole(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _whole(data, at)
            yield key >> 3, bytes([value & 255])
            continue
        if kind not in (1, 2, 5):
            raise ValueError("it is no protocol buffer")
        size, at = _whole(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if at + size > len(data):
            raise ValueError("it is cut")
        yield key >> 3, data[at : at + size]
        at += size


def _whole(data: bytes, at: int) -> tuple[int, int]:
    """The whole number at a place, seven bits a byte, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("it is cut")
