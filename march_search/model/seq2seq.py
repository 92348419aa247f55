"""The complete model: embeddings, one or two stacks, output layer and loss.

Shape suffixes: B examples, I input tokens, T target tokens, S encoder output positions, N = B * T, V vocabulary,
D `d_model`.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from march_search.architecture.architecture import Architecture
from march_search.architecture.huggingface import START_TOKEN
from march_search.errors import ArchitectureError
from march_search.model.attention_path import AttentionPath
from march_search.model.block_layer import start_losses, with_auxiliary
from march_search.model.init import Kinds, initialise, recipe_of
from march_search.model.loss import mean_loss, soft_capped, token_losses
from march_search.model.stack import Stack


class Seq2Seq(nn.Module):
    """Encoder-decoder or decoder-only transformer, without padding; masks are causal, or also hide other documents.

    The whole model may be cast to bf16; norms, softmax and loss still accumulate in fp32. Each parameter is used only
    in the `forward` of the module that owns it, as ZeRO stage 3 requires.
    """

    def __init__(self, architecture: Architecture, checkpointing: bool = False, attention: str = "auto") -> None:
        """Allocate all parameters without initialising them. Use `build` to create a model."""
        super().__init__()
        a = self.architecture = architecture
        self.embedding = nn.Parameter(torch.empty(a.vocab_size, a.d_model))
        absolute = a.position == "absolute"
        self.position_embedding = nn.Parameter(torch.empty(a.max_length, a.d_model)) if absolute else None
        has_encoder = a.structure == "encoder-decoder"
        self.encoder = Stack(a, a.num_layers, False, checkpointing, attention) if has_encoder else None
        self.decoder = Stack(a, a.decoder_layers, True, checkpointing, attention)
        self.lm_head = None if a.tie_word_embeddings else nn.Parameter(torch.empty(a.vocab_size, a.d_model))
        self.start_token = START_TOKEN
        """First input token of the decoder; that of a training is `data.tokenizer.Special.start`."""
        self.z_loss = 0.0
        """Coefficient of the z-loss, which is part of the gradient of the loss but not of its value."""

    def kinds(self) -> Kinds:
        """Yield (kind, parameter, sizes) of the parameters outside the stacks."""
        yield "embedding", self.embedding, {}
        if self.position_embedding is not None:
            yield "position_embedding", self.position_embedding, {}
        if self.lm_head is not None:
            yield "lm_head", self.lm_head, {"d_model": self.architecture.d_model}

    def forward(
        self,
        inputs_BI: Tensor | None,
        targets_BT: Tensor,
        output: Literal["loss", "example_losses", "token_losses", "logits"] = "loss",
        starts_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss over all target tokens in nats, a float32 scalar.

        The decoder's input is the targets shifted right, starting with `start_token`. With `starts_BT`, each document
        is computed as if it were alone: its input starts with `start_token`, its positions with 0, and its tokens see
        no other document. All tokens count in the loss.

        Args:
            inputs_BI: Tokens for the encoder; None for a decoder-only model.
            targets_BT: Tokens to predict; for a decoder-only model, the text.
            output: Value to return: the loss, its mean per example or value per target token, or the logits.
            starts_BT: For a decoder-only model, position of the first token of each token's document; None if all text
                before a token is its context.

        Raises:
            ArchitectureError: If a sequence is longer than `max_length` with learned positions, or if inputs are
                missing for an encoder-decoder or given to a decoder-only model, or `starts_BT` for an encoder-decoder.
        """
        self._check(inputs_BI, starts_BT)
        is_trained = self.architecture.block is not None and output == "loss" and torch.is_grad_enabled()
        if is_trained:
            start_losses(self)
        memory = None
        if self.encoder is not None:
            memory = self.encoder(self._embed(cast(Tensor, inputs_BI)), None)
        read_BT = F.pad(targets_BT[:, :-1], (1, 0), value=self.start_token)
        if starts_BT is not None:
            positions_T = torch.arange(read_BT.shape[1], device=read_BT.device)
            read_BT = read_BT.masked_fill(starts_BT == positions_T, self.start_token)
        y_BTD, _ = self.decoder(self._embed(read_BT, starts_BT), memory, starts_BT)
        weight_VD = self.embedding if self.lm_head is None else self.lm_head
        if self.lm_head is None:
            y_BTD = y_BTD * self.architecture.d_model**-0.5
        softcap = self.architecture.logit_softcap
        if output == "logits":
            logits_BTV = F.linear(y_BTD, weight_VD)
            return soft_capped(logits_BTV, softcap).to(logits_BTV.dtype)
        if output in ("example_losses", "token_losses"):
            losses_N = token_losses(y_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), softcap)
            losses_BT = losses_N.view_as(targets_BT)
            return losses_BT.mean(1) if output == "example_losses" else losses_BT
        loss = mean_loss(y_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), self.z_loss, softcap)
        return with_auxiliary(loss, self) if is_trained else loss

    @torch.no_grad()
    def example_losses(self, inputs_BI: Tensor | None, targets_BT: Tensor) -> Tensor:
        """Return the mean loss per example over its target tokens in nats, float32 of shape (B,), without gradient."""
        return cast(Tensor, self(inputs_BI, targets_BT, "example_losses"))

    @property
    def stacks(self) -> dict[str, Stack]:
        """The `encoder`, if there is one, and the `decoder`."""
        return {"decoder": self.decoder} if self.encoder is None else {"encoder": self.encoder, "decoder": self.decoder}

    @property
    def attention_paths(self) -> dict[str, AttentionPath]:
        """How attention was computed in the last pass with gradients, as `encoder self`, `decoder self` and so on."""
        return {f"{name} {kind}": path for name, stack in self.stacks.items() for kind, path in stack.paths.items()}

    def logits(self, inputs_BI: Tensor | None, targets_BT: Tensor) -> Tensor:
        """Return the next-token logits of shape (B, T, V), in the parameters' dtype."""
        return cast(Tensor, self(inputs_BI, targets_BT, "logits"))

    def _embed(self, tokens_BL: Tensor, starts_BL: Tensor | None = None) -> Tensor:
        """Return the token embeddings, averaged with any learned position embeddings, as in the 2023 study."""
        x_BLD = F.embedding(tokens_BL, self.embedding)
        if self.position_embedding is None:
            return x_BLD
        length, most = tokens_BL.shape[1], self.architecture.max_length
        if length > most:
            raise ArchitectureError(f"a sequence of {length} tokens is too long: max_length is {most}. Increase it.")
        at_LD = self.position_embedding[:length]
        if starts_BL is not None:
            at_LD = F.embedding(torch.arange(length, device=starts_BL.device) - starts_BL, self.position_embedding)
        return (x_BLD + at_LD) * 0.5

    def _check(self, inputs_BI: Tensor | None, starts_BT: Tensor | None) -> None:
        """Check that inputs are given if and only if the model has an encoder; raise ArchitectureError if not.

        Where documents begin may be given only if it has none.
        """
        if (inputs_BI is None) != (self.encoder is None):
            needs = "needs inputs" if inputs_BI is None else "takes no inputs: pass None"
            raise ArchitectureError(f"{self.architecture.name} is {self.architecture.structure} and {needs}.")
        if starts_BT is not None and self.encoder is not None:
            raise ArchitectureError(f"{self.architecture.name} has an encoder and masks no documents: pass None.")


def build(
    architecture: Architecture,
    init: str = "t5",
    checkpointing: bool = False,
    base: Architecture | None = None,
    attention: str = "auto",
) -> Seq2Seq:
    """Build the model of an architecture, in float32 on the default device (`meta` allocates no memory).

    Args:
        architecture: Shape of the model, which has exactly `architecture.num_params` parameters.
        init: Recipe from `march_search.model.RECIPES`. It uses torch's global generator; call `torch.manual_seed`
            first.
        checkpointing: Whether to recompute each layer in the backward pass instead of storing its activations.
        base: Base shape for the factors by which `march_search.config.scaling` changes `init`; None for no change.
        attention: How attention with a trained bias is computed on a GPU: `auto`, `sdpa` or `flex`.

    Raises:
        ConfigError: If the recipe is unknown.
    """
    recipe = recipe_of(init)
    model = Seq2Seq(architecture, checkpointing, attention)
    initialise(model, recipe, base)
    return model
