"""Output layer and cross-entropy together, some rows at a time: no (N, V) logits, and fp32 where it matters.

Why not `F.linear_cross_entropy(..., options=LinearCrossEntropyOptions())`: with bf16 inputs torch 2.13 returns a bf16
loss (10.69 for 10.84, measured at 4096 tokens x 768 x 32128), and it is slower on a CPU in bf16. In fp32 both agree.

Matrix products run in the dtype of the inputs; softmax, logarithm and the sum over tokens in fp32.

Shape suffixes: N target tokens, C rows of a chunk, R rows of a block, V vocabulary, D `d_model`.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = {"cpu": 2**25, "other": 2**26}
"""Logits of a chunk, one matrix product: fewer rows would make the products slow, more take memory."""

BLOCK_LOGITS = {"cpu": 2**18, "other": 2**26}
"""Logits of a block, a part of a chunk that is in fp32 for a moment: on a CPU as many as its cache holds."""


def mean_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy in nats, a float32 scalar; its gradients are computed with it if anything needs one."""
    if not torch.is_grad_enabled():
        return token_losses(x_ND, weight_VD, targets_N).mean()
    return cast(Tensor, _MEAN_LOSS(x_ND, weight_VD, targets_N))


@torch.no_grad()
def token_losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy of each token in nats, float32, without gradient."""
    losses = [
        -F.log_softmax(block_RV, -1, dtype=torch.float32).gather(1, targets_N[rows, None])[:, 0]
        for chunk in _rows(len(x_ND), weight_VD, CHUNK_LOGITS)
        for rows, block_RV in _blocks(chunk, F.linear(x_ND[chunk], weight_VD), weight_VD)
    ]
    return torch.cat(losses)


def _rows(length: int, weight_VD: Tensor, logits: dict[str, int]) -> Iterator[slice]:
    """Slices that cover `length` rows, each with so many logits on this device, or one row."""
    rows = max(1, logits.get(weight_VD.device.type, logits["other"]) // len(weight_VD))
    for start in range(0, length, rows):
        yield slice(start, min(start + rows, length))


def _blocks(chunk: slice, logits_CV: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The chunk's logits a block at a time, and where those rows are among all."""
    for rows in _rows(len(logits_CV), weight_VD, BLOCK_LOGITS):
        yield slice(chunk.start + rows.start, chunk.start + rows.stop), logits_CV[rows]


class _MeanLoss(torch.autograd.Function):
    """Loss and gradients in one sweep: probabilities minus targets are at hand exactly when the loss is."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        total = torch.zeros((), device=x_ND.device)
        grad_x_ND, grad_VD = torch.empty_like(x_ND), None
        for chunk in _rows(len(x_ND), weight_VD, CHUNK_LOGITS):
            logits_CV = F.linear(x_ND[chunk], weight_VD)
            for rows, block_RV in _blocks(chunk, logits_CV, weight_VD):
                total += _to_gradient(block_RV, targets_N[rows, None], len(x_ND))
            torch.mm(logits_CV, weight_VD, out=grad_x_ND[chunk])
            part_VD = logits_CV.T @ x_ND[chunk]
            grad_VD = part_VD if grad_VD is None else grad_VD.float().add_(part_VD)
        assert grad_VD is not None, "no target tokens"
        ctx.save_for_backward(grad_x_ND, grad_VD.to(weight_VD.dtype))
        return total / len(x_ND)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x_ND, grad_VD = ctx.saved_tensors
        return grad_x_ND * grad.to(grad_x_ND.dtype), grad_VD * grad.to(grad_VD.dtype), None


_MEAN_LOSS: Callable[..., Any] = _MeanLoss.apply


def _to_gradient(logits_RV: Tensor, targets_R1: Tensor, tokens: int) -> Tensor:
    """The sum of the rows' losses; `logits_RV` become the gradient of the mean over `tokens`."""
    log_probs_RV = F.log_softmax(logits_RV, -1, dtype=torch.float32)
    loss = -log_probs_RV.gather(1, targets_R1).sum()
    grad_RV = log_probs_RV.exp_()
    grad_RV.scatter_add_(1, targets_R1, grad_RV.new_full((1, 1), -1.0).expand_as(targets_R1))
    torch.mul(grad_RV, 1 / tokens, out=logits_RV)
    return loss
