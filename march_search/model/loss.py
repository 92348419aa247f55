"""Compute the output layer and cross-entropy together, in chunks of rows, without storing all (N, V) logits.

Matrix products use the dtype of the inputs. Softmax, logarithm and the sum over tokens use fp32.

`F.linear_cross_entropy(..., options=LinearCrossEntropyOptions())` is not used because torch 2.13 returns a bf16 loss
for bf16 inputs (10.69 instead of 10.84, measured with 4096 tokens x 768 x 32128) and is slower in bf16 on a CPU. In
fp32, both agree.

With a soft cap c, logits are bounded as c·tanh(logits / c) (Gemma 2: Gemma Team 2024, arXiv 2408.00118, section 2).

Shape suffixes: N target tokens, C rows of a chunk, R rows of a block, V vocabulary, D `d_model`.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = {"cpu": 2**25, "other": 2**26}
"""Logits per chunk, which is one matrix product. Smaller chunks are slow, and larger ones use more memory."""

BLOCK_LOGITS = {"cpu": 2**18, "other": 2**26}
"""Logits per block, the part of a chunk that is converted to fp32 at once. On a CPU, a block fits in the cache."""


def mean_loss(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float = 0.0, softcap: float | None = None
) -> Tensor:
    """Return the mean cross-entropy in nats, a float32 scalar. If gradients are enabled, compute them as well.

    With `z_loss`, the gradient is that of the mean over tokens of cross-entropy + z_loss · log(Z)², where Z is the sum
    of the exponentials of a token's logits, which pulls Z towards 1 (PaLM: Chowdhery et al. 2022, section 5, with
    1e-4). The returned value leaves the second term out, so that losses with different coefficients compare.
    """
    if not torch.is_grad_enabled():
        return token_losses(x_ND, weight_VD, targets_N, softcap).mean()
    return cast(Tensor, _MEAN_LOSS(x_ND, weight_VD, targets_N, z_loss, softcap))


@torch.no_grad()
def token_losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float | None = None) -> Tensor:
    """Return the cross-entropy of each token in nats, float32, without gradient."""
    losses = [
        -F.log_softmax(soft_capped(block_RV, softcap), -1, dtype=torch.float32).gather(1, targets_N[rows, None])[:, 0]
        for chunk in _rows(len(x_ND), weight_VD, CHUNK_LOGITS)
        for rows, block_RV in _blocks(chunk, F.linear(x_ND[chunk], weight_VD), weight_VD)
    ]
    return torch.cat(losses)


def soft_capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Return bounded logits, in fp32 if there is a soft cap."""
    return logits if softcap is None else torch.tanh(logits.float() / softcap) * softcap


def _rows(length: int, weight_VD: Tensor, logits: dict[str, int]) -> Iterator[slice]:
    """Yield slices that cover `length` rows, each with at most `logits` of this device, but at least one row."""
    rows = max(1, logits.get(weight_VD.device.type, logits["other"]) // len(weight_VD))
    for start in range(0, length, rows):
        yield slice(start, min(start + rows, length))


def _blocks(chunk: slice, logits_CV: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield each block of the chunk's logits, preceded by the slice of its rows among all rows."""
    for rows in _rows(len(logits_CV), weight_VD, BLOCK_LOGITS):
        yield slice(chunk.start + rows.start, chunk.start + rows.stop), logits_CV[rows]


class _MeanLoss(torch.autograd.Function):
    """Mean loss whose forward pass also computes the gradients, reusing the probabilities."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float, softcap: float | None
    ) -> Tensor:
        total = torch.zeros((), device=x_ND.device)
        grad_x_ND, grad_VD = torch.empty_like(x_ND), None
        for chunk in _rows(len(x_ND), weight_VD, CHUNK_LOGITS):
            logits_CV = F.linear(x_ND[chunk], weight_VD)
            for rows, block_RV in _blocks(chunk, logits_CV, weight_VD):
                total += _to_gradient(block_RV, targets_N[rows, None], len(x_ND), z_loss, softcap)
            torch.mm(logits_CV, weight_VD, out=grad_x_ND[chunk])
            part_VD = logits_CV.T @ x_ND[chunk]
            grad_VD = part_VD if grad_VD is None else grad_VD.float().add_(part_VD)
            del logits_CV, block_RV  # before the next chunk is computed
        assert grad_VD is not None, "no target tokens"
        ctx.save_for_backward(grad_x_ND, grad_VD.to(weight_VD.dtype))
        return total / len(x_ND)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x_ND, grad_VD = ctx.saved_tensors
        return grad_x_ND * grad.to(grad_x_ND.dtype), grad_VD * grad.to(grad_VD.dtype), None, None, None


_MEAN_LOSS: Callable[..., Any] = _MeanLoss.apply


def _to_gradient(logits_RV: Tensor, targets_R1: Tensor, tokens: int, z_loss: float, softcap: float | None) -> Tensor:
    """Return the sum of the rows' losses, and overwrite `logits_RV` with the gradient of the mean over `tokens`.

    The gradient of log(Z)² is 2 log(Z) times the probabilities; log(Z) is a logit minus its log-probability.
    """
    capped_RV = soft_capped(logits_RV, softcap)
    log_probs_RV = F.log_softmax(capped_RV, -1, dtype=torch.float32)
    targets_log_probs_R1 = log_probs_RV.gather(1, targets_R1)
    loss = -targets_log_probs_R1.sum()
    grad_RV = log_probs_RV.exp_()
    if z_loss:
        log_z_R1 = capped_RV.gather(1, targets_R1).float() - targets_log_probs_R1
        grad_RV *= 1 + 2 * z_loss * log_z_R1
    grad_RV.scatter_add_(1, targets_R1, grad_RV.new_full((1, 1), -1.0).expand_as(targets_R1))
    if softcap is not None:  # the derivative of c·tanh(z / c) is 1 - tanh²
        grad_RV *= capped_RV.div_(softcap).square_().neg_().add_(1.0)
    torch.mul(grad_RV, 1 / tokens, out=logits_RV)
    return loss
