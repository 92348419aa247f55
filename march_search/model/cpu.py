"""RMSNorm and attention kernels for training on a CPU, where torch's own are slow, with their backward passes.

Shape suffixes: B examples, L query positions, M key positions, H heads, J heads of the keys and values, N = B * J,
R = L * H / J rows of queries that share keys, K `d_kv`, W residual width.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

BLOCK_SCORES = 2**21
"""Number of attention scores computed at once: a few megabytes, which fit in the cache."""


class _RMSNorm(torch.autograd.Function):
    """`F.rms_norm` for a CPU, where torch runs a chain of operations: this takes half the time and saves one tensor."""

    @staticmethod
    def forward(ctx: Any, x_BLW: Tensor, weight_W: Tensor, epsilon: float) -> Tensor:
        square_BL1 = torch.linalg.vector_norm(
            x_BLW, dim=-1, keepdim=True, dtype=torch.promote_types(x_BLW.dtype, torch.float32)
        ).square_()
        scale_BL1 = square_BL1.div_(x_BLW.shape[-1]).add_(epsilon).rsqrt_()
        unit_BLW = (x_BLW * scale_BL1).to(x_BLW.dtype)
        ctx.save_for_backward(unit_BLW, scale_BL1, weight_W)
        y_BLW: Tensor = unit_BLW * weight_W
        return y_BLW

    @staticmethod
    def backward(ctx: Any, grad_BLW: Tensor) -> tuple[Tensor, Tensor, None]:
        unit_BLW, scale_BL1, weight_W = ctx.saved_tensors
        scaled_BLW = grad_BLW * unit_BLW
        grad_W = scaled_BLW.flatten(0, -2).sum(0)
        mean_BL1 = (scaled_BLW @ weight_W).unsqueeze(-1).mul_(-1 / len(weight_W))
        grad_BLW = torch.addcmul(grad_BLW * weight_W, unit_BLW, mean_BL1).mul_(scale_BL1)
        return grad_BLW, grad_W, None


rms_norm: Callable[..., Any] = _RMSNorm.apply


class _Attention(torch.autograd.Function):
    """Attention for short sequences on a CPU, in blocks of examples whose scores fit in the cache.

    If all examples fit in one block, the probabilities are saved in the inputs' dtype; otherwise the backward pass
    recomputes them. Softmax and the sum of a bias's gradient over examples are computed in fp32. Query heads that share
    keys and values are rows of one product, so that keys and values are not repeated. A bias of four dimensions,
    (B, H, L, M) with any H or 1, differs by example.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias_HLM: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        q_BHLK, k_BJMK, v_BJMK = q.contiguous(), k.contiguous(), v.contiguous()
        y_BHLK, probs_NRM = torch.empty_like(q_BHLK), None
        blocks = _blocks(q_BHLK, k_BJMK)
        for block in blocks:
            probs_NRM = _probabilities(q_BHLK[block], k_BJMK[block], _part(bias_HLM, block), causal, scale)
            v_NMK = v_BJMK[block].flatten(0, 1)
            torch.bmm(probs_NRM, v_NMK, out=_rows(y_BHLK[block], v_NMK))
        ctx.save_for_backward(q_BHLK, k_BJMK, v_BJMK, bias_HLM, probs_NRM if len(blocks) == 1 else None)
        ctx.causal, ctx.scale = causal, scale
        return y_BHLK

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q_BHLK, k_BJMK, v_BJMK, bias_HLM, kept_NRM = ctx.saved_tensors
        grad_BHLK, grads = grad.contiguous(), tuple(map(torch.empty_like, (q_BHLK, k_BJMK, v_BJMK)))
        grad_bias = None
        if ctx.needs_input_grad[3]:
            grad_bias = torch.zeros(bias_HLM.shape, dtype=torch.promote_types(bias_HLM.dtype, torch.float32))
        for block in _blocks(q_BHLK, k_BJMK):
            k_NMK, v_NMK, grad_k_NMK, grad_v_NMK = (x[block].flatten(0, 1) for x in (k_BJMK, v_BJMK, *grads[1:]))
            q_NRK, grad_NRK, grad_q_NRK = (_rows(x[block], k_NMK) for x in (q_BHLK, grad_BHLK, grads[0]))
            probs_NRM = kept_NRM
            if probs_NRM is None:
                probs_NRM = _probabilities(q_BHLK[block], k_BJMK[block], _part(bias_HLM, block), ctx.causal, ctx.scale)
            torch.bmm(probs_NRM.mT, grad_NRK, out=grad_v_NMK)
            grad_NRM = torch.bmm(grad_NRK, v_NMK.mT)
            grad_NRM = torch._softmax_backward_data(grad_NRM, probs_NRM, -1, probs_NRM.dtype)
            _product(grad_NRM, k_NMK, ctx.scale, out=grad_q_NRK)
            _product(grad_NRM.mT, q_NRK, ctx.scale, out=grad_k_NMK)
            if grad_bias is not None:
                grad_BHLM = grad_NRM.view(-1, *q_BHLK.shape[1:3], grad_NRM.shape[-1])
                part = cast(Tensor, _part(grad_bias, block))
                part += (grad_BHLM if part.ndim == 4 else grad_BHLM.sum(0)).sum_to_size(part.shape)
        return *grads, None if grad_bias is None else grad_bias.to(bias_HLM.dtype), None, None


attention: Callable[..., Any] = _Attention.apply


def _part(bias_HLM: Tensor | None, block: slice) -> Tensor | None:
    """Return the view of a bias, or of its gradient, that belongs to a block of examples."""
    return bias_HLM[block] if bias_HLM is not None and bias_HLM.ndim == 4 else bias_HLM


def _rows(q_BHLK: Tensor, k_NMK: Tensor) -> Tensor:
    """Return a view of queries, or of what is as large, of shape (N, R, K): rows that share keys stand together."""
    return q_BHLK.view(len(k_NMK), -1, q_BHLK.shape[-1])


def _blocks(q_BHLK: Tensor, k_BJMK: Tensor) -> list[slice]:
    """Return blocks of examples with at most `BLOCK_SCORES` scores each, but at least one example."""
    scores = q_BHLK[0, :, :, 0].numel() * k_BJMK.shape[2]
    size = max(1, BLOCK_SCORES // scores)
    return [slice(start, start + size) for start in range(0, len(q_BHLK), size)]


def _probabilities(q_BHLK: Tensor, k_BJMK: Tensor, bias_HLM: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Return the attention probabilities, (N, R, M)."""
    k_NMK = k_BJMK.flatten(0, 1)
    scores_NRM = _product(_rows(q_BHLK, k_NMK), k_NMK.mT, scale)
    scores_BHLM = scores_NRM.view(*q_BHLK.shape[:3], -1)
    if bias_HLM is not None:
        scores_BHLM += bias_HLM
    if causal:
        scores_BHLM += torch.full(scores_BHLM.shape[2:], -math.inf, dtype=q_BHLK.dtype).triu_(1)
    return torch.softmax(scores_NRM, -1)


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """Return the batched product `scale * a @ b`, without a separate pass for the scale."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale, out=out)
