"""Positional information for attention: T5's relative bias, rotary embeddings, masks, pooled positions.

With masked documents, masks and rotary angles differ by example: they have a dimension B before the others.

Shape suffixes: B examples, L query positions, M key positions, H heads, K `d_kv`, J = K / 2, W residual width,
P positions after pooling; bias_HLM has M + 1 keys if a no-op key exists, whose column is 0.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from march_search.architecture.huggingface import MAX_DISTANCE
from march_search.architecture.huggingface_decoders import LLAMA3_ROPE
from march_search.architecture.parameters import RELATIVE_BUCKETS
from march_search.model.attention_path import PathName


class PositionInfo(NamedTuple):
    """Positional information for attention, and how it is computed; shared by all layers with the same positions."""

    bias_HLM: Tensor | None
    """Bias added to the scores, including the mask unless `path` is "flex"; (B, H, L, M) with masked documents. H and B
    may be 1."""
    causal: bool
    """Whether attention must apply the causal mask, because the bias does not include it."""
    turn_L: tuple[Tensor, Tensor] | None
    """Cosine and sine of the queries' rotary angles, each (L, 1, T) for the first T dimensions of each head; with
    masked documents (B, L, 1, T)."""
    turn_M: tuple[Tensor, Tensor] | None
    """Cosine and sine of the keys' rotary angles, each (M, 1, T) or (B, M, 1, T)."""
    path: PathName | None = None
    """How self-attention is computed; None chooses by device and shape."""
    cross_path: PathName | None = None
    """How cross-attention is computed."""
    block_mask: Any = None
    """FlexAttention's mask if `path` is "flex"; None if all keys are seen."""


def relative_buckets(positions_L: Tensor, positions_M: Tensor, bidirectional: bool) -> Tensor:
    """Return T5's bucket of each (query, key) pair, int64 of shape (L, M).

    Buckets are exact for small distances and logarithmic up to `MAX_DISTANCE`. If `bidirectional`, half of the buckets
    are for keys after the query; otherwise, such keys count as distance 0.
    """
    ahead_LM = positions_M.round().long()[None, :] - positions_L.round().long()[:, None]
    buckets = RELATIVE_BUCKETS // 2 if bidirectional else RELATIVE_BUCKETS
    offset_LM = (ahead_LM > 0) * buckets if bidirectional else 0
    distance_LM = ahead_LM.abs() if bidirectional else (-ahead_LM).clamp(min=0)
    exact = buckets // 2
    steps_LM = torch.log(distance_LM.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact) * (buckets - exact)
    far_LM = (exact + steps_LM.long()).clamp(max=buckets - 1)
    return offset_LM + torch.where(distance_LM < exact, distance_LM, far_LM)


def relative_bias(
    table: Tensor, positions_L: Tensor, positions_M: Tensor, causal: bool, noop: bool, mask_1LM: Tensor | None = None
) -> Tensor:
    """Return the bias of shape (H, L, M) from a table of shape (buckets, H), plus the mask if there is one."""
    buckets_LM = relative_buckets(positions_L, positions_M, bidirectional=not causal)
    bias_HLM = F.embedding(buckets_LM, table).permute(2, 0, 1)
    if mask_1LM is not None:
        bias_HLM = bias_HLM + mask_1LM
    return F.pad(bias_HLM, (0, 1)) if noop else bias_HLM.contiguous()


def attention_mask(queries: int, keys: int, causal: bool, window: int | None, like: Tensor) -> Tensor | None:
    """Return a mask of shape (1, L, M), 0 where a query may attend and -inf elsewhere; None if it may everywhere.

    Args:
        queries, keys: Number of each.
        causal: Whether a query sees no later keys.
        window: Largest distance of a key plus 1; None for any.
        like: Tensor of the same dtype and device.
    """
    if not causal and window is None:
        return None
    mask_1LM = like.new_full((1, queries, keys), -math.inf)
    if window is None:
        return mask_1LM.triu_(1)
    outside = mask_1LM.clone().tril_(-window)
    return outside.add_(mask_1LM.triu_(1 if causal else window))


def first_seen(starts_BL: Tensor, window: int | None) -> Tensor:
    """Return the first position that each position sees in a causal stack: in its document, and in its window."""
    if window is None:
        return starts_BL
    return torch.maximum(starts_BL, torch.arange(starts_BL.shape[1], device=starts_BL.device) - (window - 1))


def document_mask(starts_BL: Tensor, window: int | None, like: Tensor) -> Tensor:
    """Return a causal mask of shape (B, 1, L, L), 0 where a query may attend and -inf elsewhere.

    Args:
        starts_BL: Position of the first token of each token's document.
        window: Largest distance of a key plus 1; None for any.
        like: Tensor of the same dtype and device.
    """
    positions_L = torch.arange(starts_BL.shape[1], device=starts_BL.device)
    is_hidden_BLL = positions_L < first_seen(starts_BL, window)[:, :, None]
    is_hidden_BLL |= positions_L > positions_L[:, None]
    mask_BLL = like.new_zeros(is_hidden_BLL.shape)
    return mask_BLL.masked_fill_(is_hidden_BLL, -math.inf)[:, None]


def rotary_turn(
    positions_L: Tensor, dims: int, base: float, dtype: torch.dtype, scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the cosine and sine of each position's angles, each (L, 1, dims). Dimensions j and j + dims/2 are a pair.

    The wavelengths are those of Su et al. 2021, section 3.2.2. With `scaling`, those above 8,192 are so many times
    longer, and those between 2,048 and that in between, by a linear weight of the frequencies (Llama 3.1).
    """
    frequencies_J = base ** (torch.arange(0, dims, 2, device=positions_L.device).float() / -dims)
    if scaling != 1.0:
        low, high, length = LLAMA3_ROPE.values()
        kept_J = ((length * frequencies_J / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        frequencies_J = frequencies_J * (kept_J + (1 - kept_J) / scaling)
    angles_LJ = positions_L.float()[:, None] * frequencies_J
    cos_LJ, sin_LJ = angles_LJ.cos(), angles_LJ.sin()
    return torch.cat((cos_LJ, cos_LJ), -1)[:, None].to(dtype), torch.cat((-sin_LJ, sin_LJ), -1)[:, None].to(dtype)


def rotate(x_BLHK: Tensor, turn_L: tuple[Tensor, Tensor]) -> Tensor:
    """Return queries or keys, rotated by the angles of their positions (Su et al. 2021), in as many dimensions."""
    cos_LK, sin_LK = turn_L
    if (dims := cos_LK.shape[-1]) < x_BLHK.shape[-1]:
        return torch.cat((rotate(x_BLHK[..., :dims], turn_L), x_BLHK[..., dims:]), -1)
    swapped_BLHK = torch.cat(x_BLHK.chunk(2, -1)[::-1], -1)
    return torch.addcmul(x_BLHK * cos_LK, swapped_BLHK, sin_LK)


def pool(x_BLW: Tensor, reduced: int) -> Tensor:
    """Pool to `reduced` positions with adaptive average pooling, whose windows may overlap by one."""
    if x_BLW.is_cuda and torch.are_deterministic_algorithms_enabled():  # the gradient there is summed in any order
        return pool_by_product(x_BLW, reduced)
    return F.adaptive_avg_pool1d(x_BLW.transpose(1, 2), reduced).transpose(1, 2)


def pool_by_product(x_BLW: Tensor, reduced: int) -> Tensor:
    """Return what `pool` returns, as a product with the matrix of the windows' weights."""
    length, device = x_BLW.shape[1], x_BLW.device
    window_P1, at_L = torch.arange(reduced, device=device)[:, None], torch.arange(length, device=device)
    is_inside_PL = (at_L >= window_P1 * length // reduced) & (at_L < -(-(window_P1 + 1) * length // reduced))
    return (is_inside_PL / is_inside_PL.sum(1, keepdim=True)).to(x_BLW.dtype) @ x_BLW


def pool_positions(positions_L: Tensor, reduced: int) -> Tensor:
    """Return the mean position of each pooled window, float32."""
    return F.adaptive_avg_pool1d(positions_L.float()[None, None], reduced)[0, 0]
