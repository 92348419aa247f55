"""Output layer and cross-entropy together, some rows at a time: no (N, V) logits, and fp32 where it matters.

Why not `F.linear_cross_entropy(..., options=LinearCrossEntropyOptions())`: with bf16 inputs torch 2.13 returns a bf16
loss (10.69 for 10.84, measured at 4096 tokens x 768 x 32128), and it is slower on a CPU in bf16. In fp32 both agree.

Matrix products run in the dtype of the inputs; softmax, logarithm and the sum over tokens in fp32.

Shape suffixes: N target tokens, C rows of a chunk, V vocabulary, D `d_model`.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = {"cpu": 2**20, "other": 2**26}
"""Logits of a chunk: on a CPU as many as its cache holds, elsewhere 256 MB in fp32."""


def mean_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy in nats, a float32 scalar; its gradients are computed with it if anything needs one."""
    if not torch.is_grad_enabled():
        return token_losses(x_ND, weight_VD, targets_N).mean()
    return cast(Tensor, _MEAN_LOSS(x_ND, weight_VD, targets_N))


@torch.no_grad()
def token_losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy of each token in nats, float32, without gradient."""
    losses_N = torch.empty(len(x_ND), device=x_ND.device)
    for chunk, log_probs_CV in _log_probs(x_ND, weight_VD):
        losses_N[chunk] = -log_probs_CV.gather(1, targets_N[chunk, None])[:, 0]
    return losses_N


def _log_probs(x_ND: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their log-probabilities in fp32, chunk by chunk; each chunk may be overwritten."""
    budget = CHUNK_LOGITS.get(x_ND.device.type, CHUNK_LOGITS["other"])
    rows = max(1, budget // len(weight_VD))
    for start in range(0, len(x_ND), rows):
        chunk = slice(start, start + rows)
        yield chunk, F.log_softmax(F.linear(x_ND[chunk], weight_VD), -1, dtype=torch.float32)


class _MeanLoss(torch.autograd.Function):
    """Loss and gradients in one sweep: probabilities minus targets are at hand exactly when the loss is."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        total = torch.zeros((), device=x_ND.device)
        grad_x_ND, grad_VD = torch.empty_like(x_ND), None
        for chunk, log_probs_CV in _log_probs(x_ND, weight_VD):
            target_C1 = targets_N[chunk, None]
            total -= log_probs_CV.gather(1, target_C1).sum()
            grad_CV = log_probs_CV.exp_()
            grad_CV.scatter_add_(1, target_C1, grad_CV.new_full((1, 1), -1.0).expand_as(target_C1))
            grad_CV = grad_CV.div_(len(x_ND)).to(x_ND.dtype)
            torch.mm(grad_CV, weight_VD, out=grad_x_ND[chunk])
            part_VD = grad_CV.T @ x_ND[chunk]
            grad_VD = part_VD.float() if grad_VD is None else grad_VD.add_(part_VD)
        assert grad_VD is not None, "no target tokens"
        ctx.save_for_backward(grad_x_ND, grad_VD.to(weight_VD.dtype))
        return total / len(x_ND)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x_ND, grad_VD = ctx.saved_tensors
        return grad_x_ND * grad.to(grad_x_ND.dtype), grad_VD * grad.to(grad_VD.dtype), None


_MEAN_LOSS: Callable[..., Any] = _MeanLoss.apply
