"""Ids of the special tokens: the end of a document, and the 100 sentinels."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PAD = 0
EOS = 1
SENTINELS = 100
"""Sentinels `<extra_id_0>` to `<extra_id_99>`, with ids that follow each other."""


class Special(NamedTuple):
    """Special ids of one vocabulary."""

    eos: int
    """Id of the token that ends a document, an input and a target."""
    first_sentinel: int
    """Id of `<extra_id_0>`."""
    step: int = -1
    """What is added from one sentinel to the next: -1 in T5's order, else 1."""

    def sentinel(self, i: int) -> int:
        """Id of `<extra_id_i>`."""
        assert 0 <= i < SENTINELS
        return self.first_sentinel + self.step * i

    def is_sentinel(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of `ids` are sentinels."""
        low, high = sorted((self.first_sentinel, self.sentinel(SENTINELS - 1)))
        return (ids >= low) & (ids <= high)


def trained(vocab_size: int) -> Special:
    """Special ids of a vocabulary that is trained here: `</s>` is 1, `<extra_id_0>` the last id."""
    return Special(EOS, vocab_size - 1)
