"""Attention with a trained bias through FlexAttention, which sums the bias's gradient over the examples as it runs.

SDPA writes this gradient for every example, (B, H, L, M), and cannot use a flash kernel. FlexAttention's compiled
kernel reads the bias from an (H, L, M) tensor and adds each tile's gradient to an fp32 tensor of that shape.

Shape suffixes: B examples, L query positions, M key positions, H heads, J heads of the keys and values, K `d_kv`,
W residual width.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from march_search.model.attention_path import padded_width
from march_search.model.positions import PositionInfo, attention_mask

TOLERANCE = 0.05
"""Largest distance from SDPA, relative to the norm, with which FlexAttention counts as right. In bf16, both are about
0.005 from the exact values; a wrong mask or sum is further away."""

KERNELS = 64
"""Shapes of inputs for which one process may compile FlexAttention; by default, torch allows 8."""


def attention(
    q_BHLK: Tensor, k_BJMK: Tensor, v_BJMK: Tensor, bias_HLM: Tensor, block_mask: Any, scale: float
) -> Tensor:
    """Return softmax(scale q k' + bias) v where the mask allows it, in a compiled kernel.

    Inside a compiled layer, it becomes a part of the layer's graph.

    Args:
        q_BHLK, k_BJMK, v_BJMK: Queries, keys and values.
        bias_HLM: Bias in fp32, without the mask.
        block_mask: Mask from `block_mask`; None to attend everywhere.
        scale: Factor of the products of queries and keys.
    """
    d_kv = q_BHLK.shape[-1]
    zeros = (0, padded_width("flex", d_kv) - d_kv)
    if zeros[1]:
        q_BHLK, k_BJMK, v_BJMK = (F.pad(x, zeros) for x in (q_BHLK, k_BJMK, v_BJMK))
    compute = _biased if torch.compiler.is_compiling() else _compiled()
    y_BHLK: Tensor = compute(q_BHLK, k_BJMK, v_BJMK, bias_HLM, block_mask, scale)
    return y_BHLK[..., :d_kv] if zeros[1] else y_BHLK


def _biased(q_BHLK: Tensor, k_BJMK: Tensor, v_BJMK: Tensor, bias_HLM: Tensor, block_mask: Any, scale: float) -> Tensor:
    """Call FlexAttention with a function that adds the bias."""
    from torch.nn.attention.flex_attention import flex_attention

    def add_bias(score: Tensor, _example: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias_HLM[head, query, key]

    is_grouped = q_BHLK.shape[1] != k_BJMK.shape[1]
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


def fault(
    attention: Callable[..., Any],
    info: PositionInfo,
    is_causal: bool,
    sizes: Sequence[tuple[int, int, int]],
    dtype: torch.dtype,
    window: int | None = None,
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

    Raises:
        torch.OutOfMemoryError: If memory runs out.
    """
    try:
        return _difference(attention, info, is_causal, sizes, dtype, window)
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
) -> str:
    """Return how far FlexAttention and SDPA lie apart if that is too far; empty if not."""
    bias_HLM = cast(Tensor, info.bias_HLM).detach()
    examples, device = sizes[0][0], bias_HLM.device
    two = min(2, examples)
    generator = torch.Generator(device).manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    masked_HLM, length = bias_HLM, bias_HLM.shape[1]
    mask_1LL = attention_mask(length, length, is_causal, window, bias_HLM)
    if mask_1LL is not None:
        masked_HLM = bias_HLM + F.pad(mask_1LL, (0, bias_HLM.shape[2] - length))
    biases = bias_HLM.clone().requires_grad_(), masked_HLM.to(dtype).clone().requires_grad_()
    infos = info._replace(bias_HLM=biases[0]), info._replace(bias_HLM=biases[1], path="efficient", block_mask=None)
    few = [random(two, *size[1:]) for size in sizes]
    of = torch.arange(examples, device=device) % two
    times = torch.bincount(of, minlength=two).view(-1, 1, 1)
    with torch.enable_grad():
        inputs = [x[of].requires_grad_() for x in few], [x.requires_grad_() for x in few]
        found, expected = (attention(*(*xs, None)[:2], i)[0] for xs, i in zip(inputs, infos, strict=True))
        grad = random(*expected.shape)
        *flex_grads, flex_grad_bias = torch.autograd.grad(found, [*inputs[0], biases[0]], grad[of])
        *grads, grad_bias = torch.autograd.grad(expected, [*inputs[1], biases[1]], grad * times)
    pairs = [(found, expected[of]), (flex_grad_bias, grad_bias)]
    pairs += [(x, (y / times)[of]) for x, y in zip(flex_grads, grads, strict=True)]
    pairs = [(x.detach().float(), y.detach().float()) for x, y in pairs]
    distances = [float((x - y).norm() / y.norm().clamp_min(1e-20)) for x, y in pairs]
    wrong = [distance for distance in distances if not distance <= TOLERANCE]  # also if it is not a number
    return f"it differs from SDPA by {wrong[0]:.1%}" if wrong else ""
