"""One transformer shape, frozen: its fields, its name, its parameters by group. Arithmetic only."""

import operator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from march_search import flops, naming, parameters
from march_search.errors import ArchitectureError

CHOICES: dict[str, tuple[Any, ...]] = {
    "structure": ("encoder-decoder", "decoder-only"),
    "feed_forward_proj": ("relu", "gelu", "silu", "gated-relu", "gated-gelu", "gated-silu"),
    "position": ("relative", "absolute", "rotary"),
    "tie_word_embeddings": (True, False),
    "cross_attention": ("output", "layer", "layer-shared"),
    "head_schedule": ("constant", "more-first", "more-last", "more-first-same-width", "more-last-same-width"),
    "bottleneck": ("none", "flat", "shrinking", "growing"),
    "noop_key": ("none", "learned", "fixed"),
}
"""Fields that take one of a few values."""

COUNTS = ("num_layers", "num_decoder_layers", "d_model", "num_heads", "d_kv", "d_ff", "vocab_size", "max_length")
"""Fields that are whole numbers of at least 1."""


@dataclass(frozen=True)
class Architecture:
    """A transformer's shape. The defaults are T5-base (Raffel et al. 2020): 222,903,552 parameters.

    Raises:
        ArchitectureError: a value outside its field's range, or a combination that is no transformer.
    """

    num_layers: int = 12
    """Layers of the encoder, or of the only stack."""
    d_model: int = 768
    """Width of embeddings and residual stream."""
    num_heads: int = 12
    """Attention heads a layer."""
    d_kv: int = 64
    """Width of one head's queries, keys and values."""
    d_ff: int = 3072
    """Width of the feed-forward layer; of each of its two halves if gated."""
    structure: str = "encoder-decoder"
    """`encoder-decoder`: two stacks. `decoder-only`: one causal stack."""
    num_decoder_layers: int | None = None
    """Layers of the decoder; None for as many as the encoder (an equal number is stored as None)."""
    vocab_size: int = 32128
    """Tokens of the vocabulary, special tokens included."""
    feed_forward_proj: str = "relu"
    """Activation, with `gated-` for a gated linear unit (Shazeer 2020), which has three matrices instead of two."""
    position: str = "relative"
    """`relative`: T5's bias of 32 buckets a head, once per stack. `absolute`: learned. `rotary`: Su et al. 2021."""
    max_length: int = 1024
    """Positions of `absolute`; without meaning otherwise."""
    tie_word_embeddings: bool = True
    """Whether the output layer is the embedding."""
    cross_attention: str = "output"
    """Where cross-attention's keys and values come from. `output`: projected from the encoder's output. `layer`: those
    of encoder layer i, projected again. `layer-shared`: those of encoder layer i as they are, without weights."""
    head_schedule: str = "constant"
    """Heads by layer; `more-first`: 1.5 times `num_heads` in the first half of a stack, 0.5 times in the second;
    `…-same-width`: 2 times heads of `d_kv`/2 in one half, half as many of 2 times `d_kv` in the other."""
    share_layers: int | Literal["all"] = 1
    """k consecutive layers of a stack share one set of weights; `all` of them do (ALBERT, Lan et al. 2020)."""
    bottleneck: str = "none"
    """Residual width: `flat` at `d_bottleneck`, or geometrically `shrinking` to it or `growing` from it in a stack."""
    d_bottleneck: int | None = None
    """The narrow residual width."""
    length_reduction: float = 1.0
    """Fraction of positions that the encoder keeps from its middle layer on (after Dai et al. 2020)."""
    noop_key: str = "none"
    """An extra key with a zero value in every attention: `learned`, or `fixed` at a score of zero."""

    def __post_init__(self) -> None:
        """Checks each field, then their combination."""
        for name in COUNTS:
            self._check_count(name)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                options = ", ".join(str(k).lower() if isinstance(k, bool) else k for k in known)
                raise ArchitectureError(f"{name} must be one of {options}, not {getattr(self, name)!r}.")
        if self.share_layers != "all":
            self._check_count("share_layers")
        if self.d_bottleneck is not None:
            self._check_count("d_bottleneck")
        if not isinstance(self.length_reduction, int | float) or not 1 / 1024 <= self.length_reduction <= 1:
            raise ArchitectureError(f"length_reduction must lie in [1/1024, 1], not {self.length_reduction!r}.")
        object.__setattr__(self, "length_reduction", float(self.length_reduction))
        if self.structure == "encoder-decoder" and self.num_decoder_layers == self.num_layers:
            object.__setattr__(self, "num_decoder_layers", None)
        for refused, sentence in parameters.refusals(self):
            if refused:
                raise ArchitectureError(f"No such architecture: {sentence.format(**asdict(self))}.")

    def _check_count(self, name: str) -> None:
        """Stores the field as an int of at least 1."""
        value = getattr(self, name)
        if value is None and name == "num_decoder_layers":
            return
        try:
            number = operator.index(value)
        except TypeError:
            number = 0
        if number < 1 or isinstance(value, bool):
            raise ArchitectureError(f"{name} must be a whole number of at least 1, not {value!r}.")
        object.__setattr__(self, name, number)

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder, or of the only stack."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layer is a gated linear unit."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def num_params(self) -> int:
        """Parameters, exactly; tied embeddings and shared layers count once."""
        return sum(parameters.param_groups(self).values())

    @property
    def num_params_non_embedding(self) -> int:
        """Parameters without token embedding, learned positions and output layer."""
        return self.num_params - int(sum(parameters.embedding_groups(self).values()))

    def param_groups(self) -> dict[str, int]:
        """Parameters by group, in numbers of scalars. The groups sum to `num_params`; tied embeddings count once."""
        return {group: count for group, count in parameters.param_groups(self).items() if count}

    def flops_per_token(
        self,
        sequence_length: int = 512,
        noise_density: float = 0.15,
        mean_span_length: float = 3.0,
        backward: bool = True,
    ) -> float:
        """Operations per token of text, forward and backward unless `backward` is False; see `march_search.flops`."""
        return float(flops.flops_per_token(self, sequence_length, noise_density, mean_span_length, backward))

    @property
    def name(self) -> str:
        """Short, reversible name: `L12-D768-H12x64-F3072`, then one word for each field that is not the default."""
        return naming.encode(asdict(self), DEFAULTS)

    @classmethod
    def parse(cls, name: str) -> "Architecture":
        """The architecture whose `name` this is.

        Raises:
            ArchitectureError: a part of `name` that means nothing, or an architecture that cannot exist.
        """
        return cls(**naming.decode(name))

    def __str__(self) -> str:
        return self.name


DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Architecture)}
"""The default of each field: T5-base."""
