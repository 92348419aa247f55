"""The shape of a transformer: its fields, its name, and its parameter and FLOP counts."""

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from march_search.architecture import block as blocks
from march_search.architecture import flops, huggingface, naming, parameters
from march_search.errors import ArchitectureError

CHOICES: dict[str, tuple[Any, ...]] = {
    "structure": ("encoder-decoder", "decoder-only"),
    "feed_forward_proj": ("relu", "gelu", "silu", "gated-relu", "gated-gelu", "gated-silu", "exact-gelu"),
    "position": ("relative", "absolute", "rotary", "none"),
    "tie_word_embeddings": (True, False),
    "cross_attention": ("output", "layer", "layer-shared"),
    "head_schedule": ("constant", "more-first", "more-last", "more-first-same-width", "more-last-same-width"),
    "bottleneck": ("none", "flat", "shrinking", "growing"),
    "noop_key": ("none", "learned", "fixed"),
    "qk_norm": ("none", "head", "all"),
    "norm": ("rms", "layer"),
    "norm_position": ("pre", "post"),
    "bias": ("none", "qkv", "all"),
    "parallel_block": (False, True),
}
"""Fields with a fixed list of values."""

COUNTS = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "vocab_size", "max_length")
"""Fields that must be whole numbers of at least 1."""

OPTIONAL_COUNTS = ("num_decoder_layers", "d_bottleneck", "num_key_value_heads", "attention_window")
"""Fields that may also be None."""

NUMBERS: dict[str, tuple[float, float]] = {
    "length_reduction": (1 / 1024, 1.0),
    "rotary_fraction": (1 / 1024, 1.0),
    "rotary_base": (1.0, 1e12),
    "rotary_scaling": (1.0, 1e6),
    "logit_softcap": (1e-3, 1e6),
    "norm_epsilon": (1e-12, 1e-2),
}
"""Smallest and largest value of each field that need not be a whole number; `logit_softcap` may also be None."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shape of a transformer. The defaults are T5-base (Raffel et al. 2020): 222,903,552 parameters.

    Raises:
        ArchitectureError: If a field is out of range or the fields contradict each other.
    """

    num_layers: int = 12
    """Number of layers in the encoder, or in the only stack."""
    d_model: int = 768
    """Width of the embeddings and the residual stream."""
    num_heads: int = 12
    """Number of attention heads per layer."""
    d_kv: int = 64
    """Width of the queries, keys and values of one head."""
    d_ff: int = 3072
    """Width of the feed-forward layer, or of each of its two halves if gated."""
    structure: str = "encoder-decoder"
    """`encoder-decoder` has two stacks; `decoder-only` has one causal stack."""
    num_decoder_layers: int | None = None
    """Number of layers in the decoder; None means as many as in the encoder (an equal number is stored as None)."""
    vocab_size: int = 32128
    """Number of tokens in the vocabulary, including special tokens."""
    feed_forward_proj: str = "relu"
    """Activation; the prefix `gated-` adds a gate (Shazeer 2020), which takes three matrices instead of two. `gelu` is
    the tanh form, `exact-gelu` the one with the error function."""
    position: str = "relative"
    """Position encoding: `relative` (T5 bias, 32 buckets per head, once per stack), `absolute` (learned), `rotary`
    (Su et al. 2021), or `none`, which leaves the order to the causal mask."""
    max_length: int = 1024
    """Number of positions for `absolute`; otherwise unused."""
    tie_word_embeddings: bool = True
    """Whether the output layer shares its weights with the token embedding."""
    cross_attention: str = "output"
    """Source of the keys and values in cross-attention. `output` projects the output of the encoder. `layer` projects
    the keys and values of encoder layer i again. `layer-shared` uses those of encoder layer i without any weights."""
    head_schedule: str = "constant"
    """Heads per layer. `more-first` uses 1.5 times `num_heads` in the first half of a stack, 0.5 times in the second.
    `…-same-width` uses twice the heads at `d_kv`/2 in one half, and half the heads at twice `d_kv` in the other."""
    share_layers: int | Literal["all"] = 1
    """Number of consecutive layers in a stack that share weights, or `all` (ALBERT, Lan et al. 2020)."""
    bottleneck: str = "none"
    """Residual width in a stack: `flat` at `d_bottleneck`, or geometrically `shrinking` to it or `growing` from it."""
    d_bottleneck: int | None = None
    """Width of the bottleneck."""
    length_reduction: float = 1.0
    """Fraction of positions that the encoder keeps from its middle layer on (after Dai et al. 2020)."""
    noop_key: str = "none"
    """Extra key with a zero value in every attention: `learned`, or `fixed` at a score of zero."""
    num_key_value_heads: int | None = None
    """Number of heads of the keys and values, which groups of query heads share (Ainslie et al. 2023). It must divide
    `num_heads`; None means as many as `num_heads` (an equal number is stored as None)."""
    qk_norm: str = "none"
    """RMSNorm of queries and keys: `head` normalises each head with weights of width `d_kv` (Qwen3), `all` the whole
    width of all heads (OLMo 2)."""
    norm: str = "rms"
    """Norms of the residual stream: `rms` has a weight, `layer` subtracts the mean and has a weight and a bias."""
    norm_position: str = "pre"
    """`pre` normalises the input of each sublayer, `post` its output before the residual sum (OLMo 2)."""
    bias: str = "none"
    """Linear layers with a bias: `qkv` has those of queries, keys and values (Qwen2), `all` all of attention and
    feed-forward (GPT-2). The output layer has none."""
    parallel_block: bool = False
    """Whether attention and feed-forward of a layer read the same residual stream (GPT-NeoX), each with its norm."""
    rotary_fraction: float = 1.0
    """Fraction of the dimensions of a head that `rotary` positions turn, from the first on."""
    rotary_base: float = 10000.0
    """Base of the wavelengths of `rotary` positions."""
    rotary_scaling: float = 1.0
    """Factor by which wavelengths of `rotary` positions above 8,192 tokens are longer, as in Llama 3.1: `rope_scaling`
    of type `llama3`. Those below 2,048 stay, and those between pass from one to the other."""
    attention_window: int | None = None
    """Number of positions that self-attention sees, up to and including its own; an encoder also sees as many after it.
    None means all."""
    global_every: int = 0
    """With a window, every layer whose number, counted from 1, is a multiple of this sees all positions; 0 means that
    no layer does."""
    logit_softcap: float | None = None
    """Bound c of the logits of the output layer, c·tanh(logits / c) (Gemma 2); None means no bound."""
    norm_epsilon: float = 1e-6
    """Added to the mean square, or the variance, in every norm."""
    block: str | None = None
    """A user's block in place of every feed-forward layer, with its fields, such as `moe+num_experts=4+top_k=2`; None
    means the layer of `feed_forward_proj`."""

    def __post_init__(self) -> None:
        """Validate each field, then their combination."""
        for name in COUNTS:
            self._check_count(name)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                options = ", ".join(str(k).lower() if isinstance(k, bool) else k for k in known)
                raise ArchitectureError(f"{name} must be one of {options}, not {getattr(self, name)!r}.")
        if self.share_layers != "all":
            self._check_count("share_layers")
        for name in OPTIONAL_COUNTS:
            if getattr(self, name) is not None:
                self._check_count(name)
        self._check_count("global_every", least=0)
        for name in NUMBERS:
            self._check_number(name)
        if self.block is not None:
            object.__setattr__(self, "block", blocks.canonical(self.block))
        if self.num_key_value_heads == self.num_heads:
            object.__setattr__(self, "num_key_value_heads", None)
        if self.structure == "encoder-decoder" and self.num_decoder_layers == self.num_layers:
            object.__setattr__(self, "num_decoder_layers", None)
        for refused, sentence in chain(parameters.refusals(self), parameters.block_refusals(self)):
            if refused:
                raise ArchitectureError(f"Invalid architecture: {sentence.format(**asdict(self))}.")

    def _check_count(self, name: str, least: int = 1) -> None:
        """Check that the field is a whole number of at least `least`, and store it as an int."""
        value = getattr(self, name)
        try:
            number = operator.index(value)
        except TypeError:
            number = least - 1
        if number < least or isinstance(value, bool):
            raise ArchitectureError(f"{name} must be a whole number of at least {least}, not {value!r}.")
        object.__setattr__(self, name, number)

    def _check_number(self, name: str) -> None:
        """Check that the field lies between its bounds, and store it as a float."""
        value, (low, high) = getattr(self, name), NUMBERS[name]
        if value is None and name == "logit_softcap":
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            lowest = "1/1024" if low == 1 / 1024 else f"{low:g}"
            raise ArchitectureError(f"{name} must lie in [{lowest}, {high:g}], not {value!r}.")
        object.__setattr__(self, name, float(value))

    @property
    def decoder_layers(self) -> int:
        """Number of layers in the decoder, or in the only stack."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def key_value_heads(self) -> int:
        """Number of heads of the keys and values."""
        return self.num_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layer is a gated linear unit."""
        return self.feed_forward_proj.startswith("gated-")

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any] | str | Path) -> "Architecture":
        """Return the architecture of a model in Hugging Face transformers.

        It may be a T5, GPT-2, GPT-NeoX, Llama, Mistral, Qwen2, Qwen3 or OLMo 2.

        Args:
            config: Content of a config.json, or its path.

        Raises:
            ArchitectureError: If the file cannot be read or a key cannot be expressed. The message names the key.
        """
        return cls(**huggingface.fields_from_config(config))

    def to_huggingface(self) -> dict[str, Any]:
        """Return the config.json of a T5, or of the first decoder-only family that can express the architecture.

        Raises:
            ArchitectureError: If none can. The message names the field.
        """
        return huggingface.config_from_fields(self.name, asdict(self), DEFAULTS)

    def row(self) -> dict[str, Any]:
        """Return every field, those of the block, the name and the parameter counts as a flat dict, for tables."""
        counts = {"num_params": self.num_params, "num_active_params": self.num_active_params}
        return asdict(self) | self.block_fields | {"name": self.name} | counts

    @property
    def num_params(self) -> int:
        """Exact number of parameters; tied embeddings and shared layers count once."""
        return sum(parameters.param_groups(self).values())

    @property
    def num_params_non_embedding(self) -> int:
        """Number of parameters without token embedding, learned positions and output layer."""
        return self.num_params - int(sum(parameters.embedding_groups(self).values()))

    @property
    def num_active_params(self) -> int:
        """Number of parameters that one position is multiplied by; fewer than `num_params` only with a block."""
        return int(sum(parameters.param_groups(self, is_active=True).values()))

    @property
    def block_fields(self) -> dict[str, int | float | bool | str]:
        """Fields of the block; empty without one."""
        return {} if self.block is None else dict(blocks.parse_block(self.block)[1])

    def param_groups(self) -> dict[str, int]:
        """Return the number of parameters by group. The groups sum to `num_params`; tied embeddings count once."""
        return {group: count for group, count in parameters.param_groups(self).items() if count}

    def flops_per_token(
        self,
        sequence_length: int = 512,
        noise_density: float = 0.15,
        mean_span_length: float = 3.0,
        backward: bool = True,
    ) -> float:
        """Return the operations per token of text, with the backward pass by default; see `flops.py`."""
        return float(flops.flops_per_token(self, sequence_length, noise_density, mean_span_length, backward))

    @property
    def name(self) -> str:
        """Short, reversible name: `L12-D768-H12x64-F3072`, then one word per field that differs from its default."""
        return naming.encode(asdict(self), DEFAULTS)

    @classmethod
    def parse(cls, name: str) -> "Architecture":
        """Return the architecture with this `name`.

        Raises:
            ArchitectureError: If the name or the architecture is not valid.
        """
        return cls(**naming.decode(name))

    def __str__(self) -> str:
        return self.name


DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Architecture)}
"""Default value of each field (T5-base)."""
