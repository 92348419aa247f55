"""Ids of the special tokens: `<pad>` and `</s>` are the first two, the 100 sentinels the last, in T5's order."""

PAD = 0
EOS = 1
SENTINELS = 100
"""Sentinels `<extra_id_0>` (id `vocab_size - 1`) to `<extra_id_99>` (id `vocab_size - 100`)."""


def sentinel(i: int, vocab_size: int) -> int:
    """Id of `<extra_id_i>`."""
    assert 0 <= i < SENTINELS
    return vocab_size - 1 - i
