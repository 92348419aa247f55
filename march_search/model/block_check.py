"""Check a user's block: build and run its module at random shapes, and compare it with the block's formulas."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from march_search.architecture.block import Block, BlockCounts, layer_refusals, parse_block, register_block
from march_search.errors import ConfigError
from march_search.model.block_layer import BlockLayer
from march_search.model.init import RECIPES, all_kinds, initialise

EXAMPLES, POSITIONS = 4, 16
"""Size of the random inputs."""

TOLERANCE = 1e-4
"""Largest difference of outputs of about 1 that counts as rounding."""


@dataclass(frozen=True, kw_only=True)
class BlockFinding:
    """What a check found."""

    num_shapes: int
    """Number of shapes that were built."""
    unreached: tuple[str, ...]
    """Parameters that no gradient reached in any shape that has them, such as experts without a token."""
    mixes_examples: bool
    """Whether the output of one sequence depends on the others in its batch."""

    def __str__(self) -> str:
        text = f"{self.num_shapes} random shapes have the parameters of the formula; outputs and gradients are sound"
        if self.unreached:
            text += f"; no gradient reached {', '.join(self.unreached)}"
        if self.mixes_examples:
            text += "; a sequence depends on the others in its batch, so its loss depends on the micro batch"
        return text


def check_block(block: Block, num_shapes: int = 12, seed: int = 0) -> BlockFinding:
    """Return what holds for a block's module at random shapes of small size.

    Raises:
        ConfigError: If the module has more or fewer parameters than the formula, returns another shape or numbers
            that are not finite, is not deterministic, or lets a position see later ones. The message names the shape.
    """
    register_block(block)
    shapes, unreached, reached, mixes = list(_shapes(block, num_shapes, seed)), set[str](), set[str](), False
    if not shapes:
        raise ConfigError(f"the block {block.name}: refuse leaves none of {num_shapes} random shapes.")
    for text, d_model, d_ff in shapes:
        where = f"the block {text} at d_model={d_model}, d_ff={d_ff}"
        try:
            _check_counts(block, text, d_model, d_ff, where)
            names, mixed = _check_run(text, d_model, d_ff, where)
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's module raises
            raise ConfigError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}") from None
        unreached |= {name for name, is_reached in names.items() if not is_reached}
        reached |= {name for name, is_reached in names.items() if is_reached}
        mixes |= mixed
    return BlockFinding(num_shapes=len(shapes), unreached=tuple(sorted(unreached - reached)), mixes_examples=mixes)


def _shapes(block: Block, number: int, seed: int) -> Iterator[tuple[str, int, int]]:
    """Yield the text, `d_model` and `d_ff` of random shapes that the block does not refuse."""
    rng, texts = np.random.default_rng(seed), block.combinations({})
    for text in rng.permutation(np.array(texts * -(-number // len(texts))))[:number]:
        d_model, d_ff = 8 * int(rng.integers(1, 9)), 8 * int(rng.integers(1, 17))
        if not any(np.any(refused) for refused, _ in layer_refusals(str(text), d_model, d_ff)):
            yield str(text), d_model, d_ff


def _check_counts(block: Block, text: str, d_model: int, d_ff: int, where: str) -> None:
    """Check the formulas against each other and against the module, which is built without memory."""
    fields = parse_block(text)[1]
    counts = block.counts(d_model, d_ff, fields)
    many = block.counts(np.array([d_model, 8]), np.array([d_ff, 8]), fields)
    for name, one, several in zip(BlockCounts._fields, counts, many, strict=True):
        if np.broadcast_to(several, 2)[0] != one:
            raise ConfigError(f"{where}: {name} is {one:,} for whole numbers and {several[0]:,} for arrays.")
    if counts.active > counts.params:
        raise ConfigError(f"{where}: active_params is {counts.active:,}, more than num_params, {counts.params:,}.")
    with torch.device("meta"):
        real = sum(parameter.numel() for parameter in block.build(d_model, d_ff, **fields).parameters())
    if real != counts.params:
        raise ConfigError(f"{where}: num_params is {counts.params:,}, but its module has {real:,} parameters.")


def _check_run(text: str, d_model: int, d_ff: int, where: str) -> tuple[dict[str, bool], bool]:
    """Return whether a gradient reached each parameter, and whether sequences of a batch depend on each other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = BlockLayer(text, d_model, d_ff, 2)
        known = {id(weight if weight._base is None else weight._base) for _, weight, _ in all_kinds(layer)}
        if left := [name for name, parameter in layer.module.named_parameters() if id(parameter) not in known]:
            raise ConfigError(f"{where}: kinds of its module leaves out {', '.join(left)}.")
        initialise(layer, RECIPES["t5"])
        x_BLW = torch.randn(EXAMPLES, POSITIONS, d_model, requires_grad=True)
        layer.keeps_losses = True
        y_BLW = layer(x_BLW)
        _check_output(y_BLW, x_BLW, where)
        if any(loss.numel() != 1 or not torch.isfinite(loss).all() for loss in layer.losses):
            raise ConfigError(f"{where}: the auxiliary loss must be one finite number.")
        target: Any = (y_BLW * torch.randn_like(y_BLW)).sum() + sum(loss.sum() for loss in layer.losses)
        target.backward()
        reached = {
            name: parameter.grad is not None and bool(parameter.grad.any())
            for name, parameter in layer.module.named_parameters()
        }
        layer.keeps_losses = False
        with torch.no_grad():
            if not torch.equal(layer(x_BLW), y_BLW):
                raise ConfigError(f"{where}: the same input gave two outputs: remove dropout and other noise.")
            later_BLW = x_BLW.clone()
            later_BLW[:, -1] += 1.0
            if _differ(layer(later_BLW)[:, :-1], y_BLW[:, :-1]):
                raise ConfigError(f"{where}: a position sees later ones, which a decoder has to predict.")
            return reached, _differ(layer(x_BLW[:1]), y_BLW[:1])


def _check_output(y_BLW: Any, x_BLW: Tensor, where: str) -> None:
    """Check the shape, type and values of an output."""
    if not isinstance(y_BLW, Tensor) or y_BLW.shape != x_BLW.shape or y_BLW.dtype != x_BLW.dtype:
        got = f"{tuple(y_BLW.shape)} of {y_BLW.dtype}" if isinstance(y_BLW, Tensor) else type(y_BLW).__name__
        raise ConfigError(f"{where}: must return {tuple(x_BLW.shape)} of {x_BLW.dtype}, not {got}.")
    if not torch.isfinite(y_BLW).all():
        raise ConfigError(f"{where}: returned numbers that are not finite.")


def _differ(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs differ by more than rounding."""
    return bool((one - other).abs().max() > TOLERANCE * max(1.0, float(other.abs().max())))
