"""Attention with a trained bias, or with masked documents, through FlexAttention.

SDPA writes the gradient of a trained bias for every example, (B, H, L, M), and cannot use a flash kernel.
FlexAttention's compiled kernel reads the bias from an (H, L, M) tensor and adds each tile's gradient to an fp32 tensor
of that shape. With masked documents, SDPA reads a mask for every example, (B, 1, L, M), and computes all scores;
FlexAttention skips the blocks of scores that no query of an example sees.

Shape suffixes: B examples, L query positions, M key positions, H heads, J heads of the keys and values, K `d_kv`,
W residual width, Q blocks of queries, N blocks of keys.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from march_search.model.attention_path import padded_width
from march_search.model.positions import PositionInfo, attention_mask, document_mask, first_seen

TOLERANCE = 0.05
"""Largest distance from SDPA, relative to the norm, with which FlexAttention counts as right. In bf16, both are about
0.005 from the exact values; a wrong mask or sum is further away."""

BLOCK = 128
"""Queries, and keys, of one block of a mask."""

KERNELS = 64
"""Shapes of inputs for which one process may compile FlexAttention; by default, torch allows 8."""


def attention(
    q_BHLK: Tensor, k_BJMK: Tensor, v_BJMK: Tensor, bias_HLM: Tensor | None, block_mask: Any, scale: float
) -> Tensor:
    """Return softmax(scale q k' + bias) v where the mask allows it, in a compiled kernel.

    Inside a compiled layer, it becomes a part of the layer's graph.

    Args:
        q_BHLK, k_BJMK, v_BJMK: Queries, keys and values.
        bias_HLM: Bias in fp32, without the mask; None for none.
        block_mask: Mask from `block_mask` or `document_block_mask`; None to attend everywhere.
        scale: Factor of the products of queries and keys.
    """
    d_kv = q_BHLK.shape[-1]
    zeros = (0, padded_width("flex", d_kv) - d_kv)
    if zeros[1]:
        q_BHLK, k_BJMK, v_BJMK = (F.pad(x, zeros) for x in (q_BHLK, k_BJMK, v_BJMK))
    compute = _biased if torch.compiler.is_compiling() else _compiled()
    y_BHLK: Tensor = compute(q_BHLK, k_BJMK, v_BJMK, bias_HLM, block_mask, scale)
    return y_BHLK[..., :d_kv] if zeros[1] else y_BHLK


def _biased(
    q_BHLK: Tensor, k_BJMK: Tensor, v_BJMK: Tensor, bias_HLM: Tensor | None, block_mask: Any, scale: float
) -> Tensor:
    """Call FlexAttention, with a function that adds the bias if there is one."""
    from torch.nn.attention.flex_attention import flex_attention

    is_grouped = q_BHLK.shape[1] != k_BJMK.shape[1]
    if bias_HLM is None:
        return flex_attention(q_BHLK, k_BJMK, v_BJMK, None, block_mask, scale, enable_gqa=is_grouped)
    added_HLM = bias_HLM

    def add_bias(score: Tensor, _example: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + added_HLM[head, query, key]

    return flex_attention(q_BHLK, k_BJMK, v_BJMK, add_bias, block_mask, scale, enable_gqa=is_grouped)


@cache
def _compiled() -> Callable[..., Any]:
    """Return the compiled function: one kernel for each shape of the inputs. `fullgraph` turns limits into errors."""
    allow_recompilations(KERNELS)
    return torch.compile(_biased, dynamic=False, fullgraph=True)


def allow_recompilations(number: int) -> None:
    """Let torch.compile compile one function so many times, for as many shapes, before it gives up."""
    import torch._dynamo

    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.6
    setattr(config, name, max(getattr(config, name), number))


@cache
def block_mask(length: int, has_noop: bool, is_causal: bool, window: int | None, device: torch.device) -> Any:
    """Return FlexAttention's mask for `length` queries and as many keys, followed by a no-op key that all may see.

    It is None if all keys may be seen.
    """
    if not is_causal and window is None:
        return None
    from torch.nn.attention.flex_attention import create_block_mask

    before, after = length if window is None else window, 1 if is_causal else cast(int, window)

    def is_seen(_example: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_near = (query - key < before) & (key - query < after)
        return is_near | (key == length) if has_noop else is_near

    return create_block_mask(is_seen, None, None, length, length + has_noop, device=str(device))


def document_block_mask(starts_BL: Tensor, has_noop: bool, window: int | None) -> Any:
    """Return FlexAttention's causal mask that hides other documents, for as many queries as keys, then any no-op key.

    It equals torch's `create_block_mask`, which would compute all (B, L, M) entries first. Blocks follow from the first
    position that each query sees, which never decreases within a sequence.

    Args:
        starts_BL: Position of the first token of each token's document.
        has_noop: Whether there is a no-op key, which all see.
        window: Number of positions that a query sees; None for any.
    """
    from torch.nn.attention.flex_attention import BlockMask

    (examples, length), device = starts_BL.shape, starts_BL.device
    first_BL = first_seen(starts_BL, window).int()

    def is_seen(example: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_own = (key <= query) & (key >= first_BL[example, query])
        return is_own | (key == length) if has_noop else is_own

    query_blocks, key_blocks = -(-length // BLOCK), -(-(length + has_noop) // BLOCK)
    heads_Q = torch.arange(0, length, BLOCK, device=device)  # the first query of each block
    tails_Q = (heads_Q + BLOCK - 1).clamp(max=length - 1)
    keys_N = torch.arange(key_blocks, device=device) * BLOCK
    least_BQ1, most_BQ1 = first_BL[:, heads_Q, None], first_BL[:, tails_Q, None]
    any_BQN = (keys_N <= tails_Q[:, None]) & (keys_N + BLOCK > least_BQ1)
    if has_noop:
        any_BQN = any_BQN | (keys_N == length // BLOCK * BLOCK)
    is_whole_Q1 = (heads_Q + BLOCK <= length)[:, None]
    all_BQN = (keys_N < heads_Q[:, None]) & (keys_N >= most_BQ1) & is_whole_Q1
    partial = _ordered((any_BQN & ~all_BQN).view(examples, 1, query_blocks, key_blocks))
    full = _ordered(all_BQN.view(examples, 1, query_blocks, key_blocks))
    lengths = length, length + has_noop
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=is_seen, seq_lengths=lengths)


def _ordered(is_in_BHQN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of true entries of each row, and the indices of all with the true ones first; both int32."""
    indices_BHQN = torch.argsort(is_in_BHQN.int(), dim=-1, descending=True, stable=True)
    return is_in_BHQN.sum(-1).int(), indices_BHQN.int()


def fault(
    attention: Callable[..., Any],
    info: PositionInfo,
    is_causal: bool,
    sizes: Sequence[tuple[int, int, int]],
    dtype: torch.dtype,
    window: int | None = None,
    starts_BL: Tensor | None = None,
) -> str:
    """Return why FlexAttention cannot compute a layer; empty if it agrees with SDPA, forward and backward.

    The examples repeat two random ones, so that the reference needs the memory of two only.

    Args:
        attention: The layer's `SelfAttention`.
        info: Positional information for FlexAttention.
        is_causal: Whether the layer has a causal mask.
        sizes: (B, L, W) of its input, and (B, M, W) of the source of its keys if only queries are pooled.
        dtype: Type of the activations.
        window: The layer's window; None if it sees all positions.
        starts_BL: Where documents begin if they are masked.

    Raises:
        torch.OutOfMemoryError: If memory runs out.
    """
    try:
        return _difference(attention, info, is_causal, sizes, dtype, window, starts_BL)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and kernels raise errors of many types
        words = " ".join(str(error).split()) or "no message"
        return f"{type(error).__name__}: {words[:200]}"


def _difference(
    attention: Callable[..., Any],
    info: PositionInfo,
    is_causal: bool,
    sizes: Sequence[tuple[int, int, int]],
    dtype: torch.dtype,
    window: int | None,
    starts_BL: Tensor | None,
) -> str:
    """Return how far FlexAttention and SDPA lie apart if that is too far; empty if not."""
    layer = cast(Any, attention)
    examples, length, device = *sizes[0][:2], layer.qkv.device
    two, noop = min(2, examples), int(layer.has_noop)
    generator = torch.Generator(device).manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    few = [random(two, *size[1:]) for size in sizes]
    of = torch.arange(examples, device=device) % two
    times = torch.bincount(of, minlength=two).view(-1, 1, 1)
    reference = info
    if starts_BL is not None:
        reference, info = (_of_examples(info, rows) for rows in (slice(two), of))
        info = info._replace(block_mask=document_block_mask(starts_BL[of], bool(noop), window))
        mask: Tensor | None = document_mask(starts_BL[:two], window, random())
    else:
        mask = attention_mask(length, sizes[-1][1], is_causal, window, random())
    mask = mask if mask is None else F.pad(mask, (0, noop))
    biases: list[Tensor] = []
    if info.bias_HLM is not None:
        biases = [info.bias_HLM.detach().clone().requires_grad_() for _ in range(2)]
        mask = biases[1] if mask is None else biases[1] + mask.to(biases[1].dtype)
        info = info._replace(bias_HLM=biases[0])
    mask = None if mask is None else mask.to(dtype)
    reference = reference._replace(bias_HLM=mask, path="efficient", block_mask=None)
    with torch.enable_grad():
        inputs = [x[of].requires_grad_() for x in few], [x.requires_grad_() for x in few]
        both = zip(inputs, (info, reference), strict=True)
        found, expected = (attention(*(*xs, None)[:2], i)[0] for xs, i in both)
        grad = random(*expected.shape)
        flex_grads = torch.autograd.grad(found, [*inputs[0], *biases[:1]], grad[of])
        grads = torch.autograd.grad(expected, [*inputs[1], *biases[1:]], grad * times)
    pairs = [(found, expected[of]), *zip(flex_grads[len(few) :], grads[len(few) :], strict=True)]
    pairs += [(x, (y / times)[of]) for x, y in zip(flex_grads, grads[: len(few)], strict=False)]
    pairs = [(x.detach().float(), y.detach().float()) for x, y in pairs]
    distances = [float((x - y).norm() / y.norm().clamp_min(1e-20)) for x, y in pairs]
    wrong = [distance for distance in distances if not distance <= TOLERANCE]  # also if it is not a number
    return f"it differs from SDPA by {wrong[0]:.1%}" if wrong else ""


def _of_examples(info: PositionInfo, rows: slice | Tensor) -> PositionInfo:
    """Return the positional information of these examples, whose rotary angles differ."""
    turn_L, turn_M = (turn and (turn[0][rows], turn[1][rows]) for turn in (info.turn_L, info.turn_M))
    return info._replace(turn_L=turn_L, turn_M=turn_M)
