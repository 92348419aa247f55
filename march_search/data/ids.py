"""Ids of the special tokens: the end token and the 100 sentinels."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
