"""Factors of `learning_rate_scaling = "width"` on the learning rate and initialisation of each kind of parameter.

A ratio is the value of the base shape, for which the learning rate was chosen, divided by the value of the model.

| parameter | learning rate | initialisation |
| --- | --- | --- |
| q, k, v, wi, projection of a bottleneck | fan-in ratio | unchanged: `t5` divides by √fan-in |
| o, wo (added to the residual stream) | fan-in ratio · layers ratio | layers ratio |
| biases of o and wo; norms after a sublayer (`norm_position = "post"`) | layers ratio | layers ratio |
| final norm of the decoder, before the output layer | √(d_model ratio) | √(d_model ratio) |
| lm_head (untied output layer) | √(d_model ratio) | unchanged |
| embedding, positions, other norms, other biases, relative bias, no-op key | unchanged | unchanged |

Width: Yang et al. 2021 (Tensor Programs V, arXiv 2203.03466), tables 3 and 8, for Adam. One step changes each weight by
about the learning rate, and the changes in a row add up over its inputs. The rate of a matrix is therefore proportional
to 1/fan-in; an embedding or position table has a fan-in of one. Table 8, the form for tied embeddings, gives the output
layer a rate of 1 and scales the logits by 1/d_model, whereas T5 scales them by 1/√d_model. The missing root cannot go
into a shared matrix, so it multiplies the initial value and the rate of the norm before the output layer. For Adam this
is the same model, and the trained weights load into any T5. The same norm precedes an untied output layer.

Depth: Dey et al. 2025 (CompleteP, arXiv 2505.01618), table 1, alpha = 1: the output of a branch is divided by the depth
of its stack, and rates do not change. Here the divisor is applied to the initialisation and rate of o and wo, which for
Adam is equivalent. Yang et al. 2023 (arXiv 2310.02244) divide by the root of the depth; they find that rates then do
not transfer for transformers, which have more than one matrix per branch. Also, the outputs of layers that share
weights add up without cancelling, for which alpha = 1 is right and the root is not. Depth counts applied layers: a
shared layer counts each time.

Muon (`optimizer = "muon"`): an orthogonal update has a spectral norm of 1, whatever the size of the matrix. A layer
then moves its output by as much at all widths if the norm is proportional to √(fan-out / fan-in) (Yang et al. 2023,
arXiv 2310.17813). Its step in torch is 0.2 √max(fan-in, fan-out) · learning rate, which is as large as AdamW's, so one
rate serves both (Liu et al. 2025, arXiv 2502.16982). `muon_factor` is this at the base shape, and follows
√(fan-out / fan-in) from there; depth is as above. Parameters that AdamW trains have the factors of the table.

Not included: the factor 1/d_kv on attention scores, because queries, keys and values share one matrix and one rate (so
more heads are covered, wider heads are not), and scaling of AdamW's epsilon. The factors make widths and depths
comparable. They do not correct constant differences, such as between gated and plain feed-forward layers.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from march_search.architecture.architecture import Architecture
from march_search.config.training_config import TrainingConfig
from march_search.errors import ArchitectureError, ConfigError

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
"""Size that determines the fan-in of each kind of matrix."""

FAN_OUT = {"q": "inner", "q_unscaled": "inner", "kv": "inner", "kv_layer": "inner", "wi": "d_ff"}
"""Size that determines the outputs of each kind of matrix; `width` for the others."""

BRANCH_ENDS = ("o", "wo")
"""Matrices whose output is added to the residual stream."""

UNSCALED = ("embedding", "position_embedding", "relative_bias", "noop_key", "norm", "norm_bias", "bias")
"""Kinds of parameters whose fan-in does not grow with the model."""


BRANCH_SCALES = ("branch_norm", "branch_norm_bias", "branch_bias")
"""Parameters with a fan-in of one that scale or shift what is added to the residual stream."""


class Factors(NamedTuple):
    """Factors on the settings of a parameter."""

    rate: float
    """Factor on the learning rate."""
    init: float
    """Factor on the initial standard deviation, or on the initial constant of a norm."""


def base_shape(training: TrainingConfig) -> Architecture | None:
    """Return the shape for which `learning_rate` was chosen; None if rates are not scaled.

    Raises:
        ArchitectureError: If `base_shape` is not a valid architecture name.
        ConfigError: If its layers differ in shape, so that width, depth or number of heads is not unique.
    """
    if training.learning_rate_scaling == "fixed":
        return None
    try:
        base = Architecture.parse(training.base_shape)
    except ArchitectureError as error:
        raise ArchitectureError(f"[training]: base_shape: {error}") from None
    if base.bottleneck != "none" or base.head_schedule != "constant" or base.num_decoder_layers is not None:
        raise ConfigError(
            "[training]: base_shape must have a single depth, width and number of heads, as in "
            f"L12-D768-H12x64-F3072, not {training.base_shape}."
        )
    return base


def factors(kind: str, sizes: Mapping[str, int], base: Architecture | None) -> Factors:
    """Return the factors of a parameter; all are 1 if `base` is None or the model has the base shape.

    Args:
        kind: kind of parameter, as in `march_search.model.init`.
        sizes: sizes of its layer, as in `march_search.model.init`.
        base: base shape; None if rates are not scaled.
    """
    if base is None or kind in UNSCALED:
        return Factors(1.0, 1.0)
    if kind in BRANCH_SCALES:
        return Factors(base.num_layers / sizes["layers"], base.num_layers / sizes["layers"])
    if kind in ("output_norm", "output_norm_bias", "lm_head"):
        root = (base.d_model / sizes["d_model"]) ** 0.5
        return Factors(root, root if kind == "output_norm" else 1.0)
    inputs, base_inputs = FAN_IN[kind], {"width": base.d_model, "inner": base.num_heads * base.d_kv, "d_ff": base.d_ff}
    depth = base.num_layers / sizes["layers"] if kind in BRANCH_ENDS else 1.0
    return Factors(base_inputs[inputs] / sizes[inputs] * depth, depth)


def muon_factor(kind: str, rows: int, columns: int, sizes: Mapping[str, int], base: Architecture | None) -> float:
    """Return the factor on the learning rate of an orthogonal update of a matrix of (rows, columns).

    Args:
        kind: kind of parameter, one of `FAN_IN`.
        rows: outputs of the matrix.
        columns: inputs of the matrix.
        sizes: sizes of its layer, as in `march_search.model.init`.
        base: base shape; None if rates are not scaled.
    """
    if base is None:
        return 0.2 * math.sqrt(max(rows, columns))
    known = {"width": base.d_model, "inner": base.num_heads * base.d_kv, "d_ff": base.d_ff}
    base_rows, base_columns = known[FAN_OUT.get(kind, "width")], known[FAN_IN[kind]]
    depth = base.num_layers / sizes["layers"] if kind in BRANCH_ENDS else 1.0
    at_base = 0.2 * math.sqrt(max(base_rows, base_columns))
    return at_base * math.sqrt((rows / columns) / (base_rows / base_columns)) * depth
