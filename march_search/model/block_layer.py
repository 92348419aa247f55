"""The layer of a user's block: it holds the user's module, and decides how its parameters are initialised and trained.

Initialisation and learning rates follow from the dimensions of each parameter, as for other matrices:

| parameter | kind in `init` |
| --- | --- |
| two dimensions or more, the last of which is `d_ff` and not the layer's width | `wo` |
| any other of two dimensions or more; its last dimension counts as its number of inputs | `wi` |
| one dimension or none, with a name that ends in `bias` | `bias`: starts at 0 |
| any other of one dimension or none | `norm`: starts at 1 |

A module with a method `kinds`, which yields (kind, parameter, sizes) as those of `march_search.model.layers` do,
decides otherwise. AdamW trains all of them, also where Muon trains the matrices of attention.

`forward` takes the (B, L, W) input of the layer and returns what is added to the residual stream. It may return a pair:
the second item is an auxiliary loss, a scalar. The sum over all layers is part of the gradient of the training loss,
but not of any loss that is printed, so that the losses of different blocks can be compared.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from march_search.architecture.block import find_block, parse_block
from march_search.model.init import Kinds


class BlockLayer(nn.Module):
    """Feed-forward layer that a user's module computes."""

    def __init__(self, text: str, width: int, d_ff: int, layers: int) -> None:
        """Build the module of a block, in a stack of `layers` layers.

        Raises:
            ArchitectureError: If the block is not registered.
        """
        super().__init__()
        name, fields = parse_block(text)
        self.module = find_block(name).build(width, d_ff, **fields)
        self.width, self.d_ff, self.num_layers = width, d_ff, layers
        self.keeps_losses = False
        """Whether to keep auxiliary losses; off in evaluations and while a backward pass recomputes a layer."""
        self.losses: list[Tensor] = []
        """Auxiliary losses of this forward pass, one per use of the layer."""

    def kinds(self) -> Kinds:
        """Yield the parameters, for `init`, unless the module does."""
        if hasattr(self.module, "kinds"):
            return
        for name, parameter in self.module.named_parameters():
            sizes = {"width": self.width, "d_ff": self.d_ff, "layers": self.num_layers}
            if parameter.ndim < 2:
                yield "bias" if name.endswith("bias") else "norm", parameter, sizes
            elif parameter.shape[-1] == self.d_ff != self.width:
                yield "wo", parameter, sizes
            else:
                yield "wi", parameter, sizes | {"width": parameter.shape[-1]}

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Return the addition to the residual stream, and keep the auxiliary loss, if there is one."""
        added = self.module(x_BLW)
        if isinstance(added, tuple):
            added, loss = added
            if self.keeps_losses:
                self.losses.append(loss)
        return cast(Tensor, added)


def start_losses(model: nn.Module) -> None:
    """Let the layers of blocks keep their auxiliary losses from now on."""
    for layer in _layers(model):
        layer.keeps_losses = True
        layer.losses.clear()  # of a forward pass that failed


def with_auxiliary(loss: Tensor, model: nn.Module) -> Tensor:
    """Return `loss` with the gradient, but not the value, of the auxiliary losses kept so far; keep no more."""
    kept: list[Tensor] = []
    for layer in _layers(model):
        kept += layer.losses
        layer.keeps_losses = False
        layer.losses.clear()
    if not kept:
        return loss
    auxiliary = torch.stack([own.float() for own in kept]).sum()
    return loss + (auxiliary - auxiliary.detach())


def _layers(model: nn.Module) -> Iterator[BlockLayer]:
    """Yield the layers of blocks; shared ones once."""
    return (layer for layer in model.modules() if isinstance(layer, BlockLayer))
