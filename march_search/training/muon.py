"""Muon for the matrices of layers and AdamW for all other parameters, as one optimizer that works under ZeRO 0 to 2.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by its nearest orthogonal
matrix, approximately. The steps are those of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` (Liu et al. 2025,
arXiv 2502.16982), which takes whole two-dimensional parameters only: here, the parts of a fused matrix (q, k and v;
gate and up) are separate matrices, and a parameter may be a rank's part of a flat ZeRO group. With torch's type of the
iteration, bf16, the steps are equal to the last bit; on a CPU, it runs in fp32.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from march_search.training.optimizer import ADAMW_STEP, AdamW

MOMENTUM, ITERATIONS = 0.95, 5
"""Decay rate of the momentum, and Newton-Schulz iterations, as in torch."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration, as in torch."""

CPU_DTYPE = torch.float32
"""Type of the iteration on a CPU, where products in bf16 without hardware support take up to 60 times as long."""


class MuonAndAdamW(AdamW):
    """AdamW, with Muon for the groups that have `pieces`: rows, columns and rate factor of each matrix, in order."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the gradients of all groups. Ranks with parts of a group must call it together."""
        assert closure is None, "closures are not supported"
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if "pieces" not in group]
            if self.param_groups:
                ADAMW_STEP(self)
        finally:
            self.param_groups = groups
        for group in groups:
            if "pieces" in group:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Take one step of Muon with a group: whole parameters, or this rank's part of all of them, flattened."""
        pieces, start = list(_laid_out(group["pieces"])), 0
        for parameter in group["params"]:
            numel, base = parameter.numel(), start
            if parameter.grad is not None:
                update, flat = self._update(parameter, parameter.grad).flatten(), parameter.view(-1)
                if parameter.ndim == 1 and dist.is_initialized() and dist.get_world_size() > 1:
                    start, update = dist.get_rank() * numel, _gathered(update)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                for offset, rows, columns, factor in pieces:
                    end = offset + rows * columns
                    low, high = max(start, offset), min(start + numel, end)
                    if low < high:
                        whole = orthogonal(update[offset - base : end - base].view(rows, columns)).flatten()
                        changed = whole[low - offset : high - offset]
                        flat[low - start : high - start].add_(changed, alpha=-group["lr"] * factor)
            start += numel

    def _update(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return the Nesterov momentum of a parameter in the type of the iteration."""
        state = self.state[parameter]
        if not state:  # DeepSpeed and AdamW expect the same keys in all groups
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), parameter.new_zeros(0)
        momentum: Tensor = state["exp_avg"]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM).to(_iteration_dtype(gradient))


def _laid_out(pieces: Any) -> Iterator[tuple[int, int, int, float]]:
    """Yield the offset of each matrix among all scalars of a group, its rows, columns and factor."""
    offset = 0
    for rows, columns, factor in pieces:
        yield offset, rows, columns, factor
        offset += rows * columns


def _gathered(part: Tensor) -> Tensor:
    """Return the parts of all ranks, one after the other; as bytes, which every backend transfers."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather([each.view(torch.uint8) for each in parts], part.contiguous().view(torch.uint8))
    return torch.cat(parts)


def _iteration_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type of the iteration on the device of a tensor: bf16 as in torch, except on a CPU."""
    return CPU_DTYPE if tensor.device.type == "cpu" else torch.bfloat16


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest orthogonal matrix: all singular values between about 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    x = matrix.to(_iteration_dtype(matrix), copy=True)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x.div_(x.norm().clamp(min=1e-7))
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
