"""Kernels for training on a CPU, where torch's own are slow: RMSNorm and attention, with their backward passes.

Shape suffixes: B examples, L query positions, M key positions, H heads, N = B * H, K `d_kv`, W residual width.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
"""T5's, added to RMSNorm's mean square."""


class _RMSNorm(torch.autograd.Function):
    """`F.rms_norm`, which on a CPU is a chain of separate operations, with half of its time and one saved tensor."""

    @staticmethod
    def forward(ctx: Any, x_BLW: Tensor, weight_W: Tensor) -> Tensor:
        square_BL1 = torch.linalg.vector_norm(
            x_BLW, dim=-1, keepdim=True, dtype=torch.promote_types(x_BLW.dtype, torch.float32)
        ).square_()
        scale_BL1 = square_BL1.div_(x_BLW.shape[-1]).add_(EPSILON).rsqrt_()
        unit_BLW = (x_BLW * scale_BL1).to(x_BLW.dtype)
        ctx.save_for_backward(unit_BLW, scale_BL1, weight_W)
        y_BLW: Tensor = unit_BLW * weight_W
        return y_BLW

    @staticmethod
    def backward(ctx: Any, grad_BLW: Tensor) -> tuple[Tensor, Tensor]:
        unit_BLW, scale_BL1, weight_W = ctx.saved_tensors
        scaled_BLW = grad_BLW * unit_BLW
        grad_W = scaled_BLW.flatten(0, -2).sum(0)
        mean_BL1 = (scaled_BLW @ weight_W).unsqueeze(-1).mul_(-1 / len(weight_W))
        grad_BLW = torch.addcmul(grad_BLW * weight_W, unit_BLW, mean_BL1).mul_(scale_BL1)
        return grad_BLW, grad_W


rms_norm: Callable[..., Any] = _RMSNorm.apply


class _Attention(torch.autograd.Function):
    """Attention for short sequences on a CPU; keeps the probabilities, in the inputs' dtype. Softmax is fp32 inside."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias_HLM: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        q_NLK, k_NMK, v_NMK = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        scores_BHLM = _product(q_NLK, k_NMK.mT, scale).view(*q.shape[:2], q.shape[2], -1)
        if bias_HLM is not None:
            scores_BHLM += bias_HLM
        if causal:
            scores_BHLM += torch.full(scores_BHLM.shape[2:], -math.inf, dtype=q.dtype).triu_(1)
        probs_NLM = torch.softmax(scores_BHLM, -1).flatten(0, 1)
        ctx.save_for_backward(q_NLK, k_NMK, v_NMK, probs_NLM)
        ctx.scale, ctx.bias_shape = scale, None if bias_HLM is None else bias_HLM.shape
        return torch.bmm(probs_NLM, v_NMK).view(*q.shape[:2], q.shape[2], -1)

    @staticmethod
    def backward(ctx: Any, grad_BHLK: Tensor) -> tuple[Tensor | None, ...]:
        q_NLK, k_NMK, v_NMK, probs_NLM = ctx.saved_tensors
        batch_heads, grad_NLK = grad_BHLK.shape[:2], grad_BHLK.flatten(0, 1)
        grad_v_NMK = torch.bmm(probs_NLM.mT, grad_NLK)
        grad_NLM = torch.bmm(grad_NLK, v_NMK.mT)
        grad_NLM = torch._softmax_backward_data(grad_NLM, probs_NLM, -1, probs_NLM.dtype)
        grad_q_NLK = _product(grad_NLM, k_NMK, ctx.scale)
        grad_k_NMK = _product(grad_NLM.mT, q_NLK, ctx.scale)
        grad_bias = None
        if ctx.needs_input_grad[3]:
            grad_bias = grad_NLM.view(*batch_heads, *grad_NLM.shape[1:]).sum(0).sum_to_size(ctx.bias_shape)
        grads = (g.view(*batch_heads, *g.shape[1:]) for g in (grad_q_NLK, grad_k_NMK, grad_v_NMK))
        return *grads, grad_bias, None, None


attention: Callable[..., Any] = _Attention.apply


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`scale` a b, batched, without a pass of its own for the scale."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)
