"""Where documents begin in sequences that are packed from several.

Shape suffixes: B examples, T tokens.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def document_starts(tokens_BT: NDArray[Any], end_token: int) -> NDArray[np.int64]:
    """Return for each token the position of its document's first token in the same sequence, int64 of shape (B, T).

    A document ends with `end_token`, which no document contains elsewhere. A sequence may begin within a document,
    whose first token is then at position 0.
    """
    positions_T = np.arange(tokens_BT.shape[1])
    starts_BT = np.zeros(tokens_BT.shape, np.int64)
    starts_BT[:, 1:] = np.where(tokens_BT[:, :-1] == end_token, positions_T[1:], 0)
    return np.maximum.accumulate(starts_BT, axis=1, out=starts_BT)
