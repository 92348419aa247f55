"""What `learning_rate_scaling = "width"` does to each kind of parameter, relative to the shape that the rate is for.

| parameter | learning rate | initialisation |
| --- | --- | --- |
| q, k, v, wi, projection of a bottleneck | base's / own fan-in | as it is: `t5` divides by √fan-in |
| o, wo: what a branch adds to the residual stream | base's / own fan-in · base's / own layers | base's / own layers |
| final norm of the decoder, in front of the output layer | √(base's / own d_model) | likewise |
| lm_head (untied output layer) | √(base's / own d_model) | as it is |
| embedding, positions, other norms, relative bias, no-op key | as it is | as it is |

Width: Yang et al. 2021 (Tensor Programs V, arXiv 2203.03466), tables 3 and 8, for Adam. A step moves each weight by
about the learning rate, and the moves of one row add up over its inputs: a matrix takes a rate of one over its fan-in;
what reads a token or a position has a fan-in of one. Table 8, the form for tied embeddings, gives the output layer a
rate of one and logits a factor of one over d_model, where T5 has one over its root. The missing root cannot go into a
shared matrix, so it stands in the norm in front, whose initial value and rate it multiplies: for Adam that is the same
model, and the trained weights are those of any T5. An untied output layer lies behind the same norm.

Depth: Dey et al. 2025 (CompleteP, arXiv 2505.01618), table 1, alpha = 1: a branch is divided by the depth of its stack,
rates stay. Here the divisor is in o and wo themselves, in their initialisation and their rate, which for Adam is the
same. Yang et al. 2023 (arXiv 2310.02244) divide by the root of the depth and find that rates then do not transfer for
transformers, which have more than one matrix a branch; and layers that share weights add up without cancelling, which
alpha = 1 allows and the root does not. Depth counts layers that are applied, shared ones each time.

Left out: the factor 1/d_kv for attention's scores, since queries, keys and values are one matrix with one rate (more
heads are covered, wider ones are not), and AdamW's epsilon. Factors make widths and depths comparable; they say
nothing of constants, such as those between a gated and a plain feed-forward layer.
"""

from collections.abc import Mapping
from typing import NamedTuple

from march_search.architecture import Architecture
from march_search.config import TrainingConfig
from march_search.errors import ConfigError

FAN_IN = {
    "q": "width",
    "q_unscaled": "width",
    "kv": "width",
    "kv_layer": "inner",
    "o": "inner",
    "wi": "width",
    "wo": "d_ff",
    "projection": "width",
}
"""The number of inputs of each kind of matrix."""

BRANCH_ENDS = ("o", "wo")
"""Matrices whose output is added to the residual stream, once a layer."""

UNSCALED = ("embedding", "position_embedding", "relative_bias", "noop_key", "norm")
"""Kinds whose fan-in does not grow with the model."""


class Factors(NamedTuple):
    """What multiplies a parameter's settings."""

    rate: float
    """Of the learning rate."""
    init: float
    """Of the initial standard deviation, or constant."""


def base_shape(training: TrainingConfig) -> Architecture | None:
    """The shape that `learning_rate` is for; None where it is for all.

    Raises:
        ArchitectureError: its name means nothing.
        ConfigError: it has layers of several shapes, so that there is no one width, depth or number of heads.
    """
    if training.learning_rate_scaling == "fixed":
        return None
    base = Architecture.parse(training.base_shape)
    if base.bottleneck != "none" or base.head_schedule != "constant" or base.num_decoder_layers is not None:
        raise ConfigError(
            "[training]: base_shape needs one depth, width and number of heads throughout, as in "
            f"L12-D768-H12x64-F3072, not {training.base_shape}."
        )
    return base


def factors(kind: str, sizes: Mapping[str, int], base: Architecture | None) -> Factors:
    """Factors of a parameter of this kind and these sizes, both as `march_search.model.init` has them.

    All are 1 for a `base` of None, and for the parameters of a model of the base shape.
    """
    if base is None or kind in UNSCALED:
        return Factors(1.0, 1.0)
    if kind in ("output_norm", "lm_head"):
        root = (base.d_model / sizes["d_model"]) ** 0.5
        return Factors(root, root if kind == "output_norm" else 1.0)
    inputs, base_inputs = FAN_IN[kind], {"width": base.d_model, "inner": base.num_heads * base.d_kv, "d_ff": base.d_ff}
    depth = base.num_layers / sizes["layers"] if kind in BRANCH_ENDS else 1.0
    return Factors(base_inputs[inputs] / sizes[inputs] * depth, depth)
