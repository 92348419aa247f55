"""The whole model: embeddings, one or two stacks, output layer, loss.

Shape suffixes: B examples, I input tokens, T target tokens, S encoder output positions, N = B * T, V vocabulary,
D `d_model`.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from march_search.architecture import Architecture
from march_search.errors import ArchitectureError
from march_search.model.init import Kinds, initialise, recipe_of
from march_search.model.loss import mean_loss, token_losses
from march_search.model.stack import Stack

START_TOKEN = 0
"""First token of every decoder input; T5's padding token."""


class Seq2Seq(nn.Module):
    """One transformer: encoder-decoder, or a causal decoder alone. There is no padding and no mask but the causal one.

    It may be cast to bf16 as a whole: norms, softmax and loss still accumulate in fp32. Every parameter is used through
    `forward` of the module that owns it, as ZeRO stage 3 needs.
    """

    def __init__(self, architecture: Architecture, checkpointing: bool = False) -> None:
        """Allocates all parameters, uninitialised: use `build`."""
        super().__init__()
        a = self.architecture = architecture
        self.embedding = nn.Parameter(torch.empty(a.vocab_size, a.d_model))
        absolute = a.position == "absolute"
        self.position_embedding = nn.Parameter(torch.empty(a.max_length, a.d_model)) if absolute else None
        has_encoder = a.structure == "encoder-decoder"
        self.encoder = Stack(a, a.num_layers, is_decoder=False, checkpointing=checkpointing) if has_encoder else None
        self.decoder = Stack(a, a.decoder_layers, is_decoder=True, checkpointing=checkpointing)
        self.lm_head = None if a.tie_word_embeddings else nn.Parameter(torch.empty(a.vocab_size, a.d_model))

    def kinds(self) -> Kinds:
        """(kind, parameter, sizes) of the parameters that belong to no stack."""
        yield "embedding", self.embedding, {}
        if self.position_embedding is not None:
            yield "position_embedding", self.position_embedding, {}
        if self.lm_head is not None:
            yield "lm_head", self.lm_head, {"d_model": self.architecture.d_model}

    def forward(
        self,
        inputs_BI: Tensor | None,
        targets_BT: Tensor,
        output: Literal["loss", "example_losses", "logits"] = "loss",
    ) -> Tensor:
        """Mean loss over all target tokens, in nats: a float32 scalar.

        The decoder reads the targets shifted right behind `START_TOKEN`.

        Args:
            inputs_BI: tokens of the encoder; None for a decoder-only model.
            targets_BT: tokens to predict; for a decoder-only model, the text.
            output: what to return instead of the loss; see `example_losses` and `logits`.

        Raises:
            ArchitectureError: a sequence of more than `max_length` tokens with learned positions, or input tokens that
                are missing, or that nothing would read.
        """
        self._check(inputs_BI)
        memory = None
        if self.encoder is not None:
            memory = self.encoder(self._embed(cast(Tensor, inputs_BI)), None)
        y_BTD, _ = self.decoder(self._embed(F.pad(targets_BT[:, :-1], (1, 0), value=START_TOKEN)), memory)
        weight_VD = self.embedding if self.lm_head is None else self.lm_head
        if self.lm_head is None:
            y_BTD = y_BTD * self.architecture.d_model**-0.5
        if output == "logits":
            return F.linear(y_BTD, weight_VD)
        if output == "example_losses":
            return token_losses(y_BTD.flatten(0, 1), weight_VD, targets_BT.flatten()).view_as(targets_BT).mean(1)
        return mean_loss(y_BTD.flatten(0, 1), weight_VD, targets_BT.flatten())

    @torch.no_grad()
    def example_losses(self, inputs_BI: Tensor | None, targets_BT: Tensor) -> Tensor:
        """Mean loss of each example over its target tokens, in nats: float32 of shape (B,), without gradient."""
        return cast(Tensor, self(inputs_BI, targets_BT, "example_losses"))

    def logits(self, inputs_BI: Tensor | None, targets_BT: Tensor) -> Tensor:
        """Scores of the next token before softmax, of shape (B, T, V), in the parameters' dtype."""
        return cast(Tensor, self(inputs_BI, targets_BT, "logits"))

    def _embed(self, tokens_BL: Tensor) -> Tensor:
        """Token embeddings; averaged with learned positions if there are any, as in the 2023 study."""
        x_BLD = F.embedding(tokens_BL, self.embedding)
        if self.position_embedding is None:
            return x_BLD
        length, most = tokens_BL.shape[1], self.architecture.max_length
        if length > most:
            raise ArchitectureError(f"A sequence of {length} tokens has no position: max_length is {most}. Raise it.")
        return (x_BLD + self.position_embedding[:length]) * 0.5

    def _check(self, inputs_BI: Tensor | None) -> None:
        """Raises if there are inputs without an encoder, or an encoder without inputs."""
        if (inputs_BI is None) != (self.encoder is None):
            needs = "needs inputs" if inputs_BI is None else "reads no inputs: pass None"
            raise ArchitectureError(f"{self.architecture.name} is {self.architecture.structure} and {needs}.")


def build(
    architecture: Architecture, init: str = "t5", checkpointing: bool = False, base: Architecture | None = None
) -> Seq2Seq:
    """The model of this architecture, in float32 on the current default device (`meta` allocates nothing).

    Args:
        architecture: its shape; the model has exactly `architecture.num_params` parameters.
        init: a recipe of `march_search.model.RECIPES`, drawn from torch's global generator: `torch.manual_seed` first.
        checkpointing: compute each layer again in the backward pass instead of keeping its activations.
        base: the shape relative to which `march_search.scaling` changes `init`; None leaves it as it is.

    Raises:
        ConfigError: an unknown recipe.
    """
    recipe = recipe_of(init)
    model = Seq2Seq(architecture, checkpointing)
    initialise(model, recipe, base)
    return model
