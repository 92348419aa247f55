"""Initialise weights from a normal distribution with mean 0 and the standard deviation in this table.

Norms start at 1 and biases at 0.

| parameter | `t5` | `normal-0.02` |
| --- | --- | --- |
| embedding, position_embedding | 1 | 0.02 |
| lm_head (untied output layer, whose input is not scaled) | d_model^-½ | 0.02 |
| q of self- and cross-attention | relative, no qk_norm: (width · d_kv)^-½; else width^-½ | 0.02 |
| k, v; those of `output` cross-attention | width^-½; d_model^-½ | 0.02 |
| k, v of `layer` cross-attention (computed from keys and values) | inner^-½ | 0.02 |
| o of self- and cross-attention | inner^-½ | 0.02 · (2 · layers)^-½ |
| wi (gate and up) | width^-½ | 0.02 |
| wo | d_ff^-½ | 0.02 · (2 · layers)^-½ |
| relative position bias | d_model^-½ | 0.02 |
| projection of a bottleneck | (its input's width)^-½ | 0.02 |
| learned no-op key | width^-½ (as for rows of k) | 0.02 |
| norm; output_norm (the decoder's final norm); branch_norm (`post`) | the constant 1 | the constant 1 |
| bias; branch_bias (of o and wo); biases of norms | 0 | 0 |

Here, width is the layer's residual width, inner is its heads · d_kv, and layers is the depth of its stack. With
`learning_rate_scaling = "width"`, `march_search.config.scaling` multiplies `t5` for o, wo, output_norm and branch_norm
by a factor.

`t5` follows mesh-tensorflow and Hugging Face's T5 (`T5PreTrainedModel._init_weights`, factor 1). With relative
positions, attention does not scale its scores, so q includes the factor 1/sqrt(d_kv) (Raffel et al. 2020), unless
qk_norm would undo it. The two
sources differ for lm_head: as in mesh-tensorflow, it is initialised here like any dense layer; with Hugging Face's
value of 1, losses start at 20 or more.
`normal-0.02` follows Radford et al. 2019 (GPT-2), section 2.3, and its published code.
"""

from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.nn.init import constant_, normal_

from march_search.architecture.architecture import Architecture
from march_search.config.scaling import factors
from march_search.errors import ConfigError

Sizes = dict[str, int]
"""Dimensions that a formula may use: width, d_kv, inner, d_ff, layers, and so on."""

Kinds = Iterator[tuple[str, Tensor, Sizes]]
"""Kind, parameter (or a slice of it) and sizes of each of a module's parameters."""

Recipe = dict[str, Callable[[Sizes], float]]


def _constant(std: float) -> Callable[[Sizes], float]:
    return lambda sizes: std


def _residual(std: float) -> Callable[[Sizes], float]:
    """Scale by (2n)^-½, as n layers add 2n outputs to the residual stream (Radford et al. 2019, section 2.3)."""
    return lambda sizes: std * (2 * sizes["layers"]) ** -0.5


def _fan_in(name: str) -> Callable[[Sizes], float]:
    """Return one over the square root of the number of inputs."""
    return lambda sizes: sizes[name] ** -0.5


RECIPES: dict[str, Recipe] = {
    "t5": {
        "embedding": _constant(1.0),
        "position_embedding": _constant(1.0),
        "lm_head": _fan_in("d_model"),
        "q": _fan_in("width"),
        "q_unscaled": lambda sizes: (sizes["width"] * sizes["d_kv"]) ** -0.5,
        "kv": _fan_in("width"),
        "kv_layer": _fan_in("inner"),
        "o": _fan_in("inner"),
        "wi": _fan_in("width"),
        "wo": _fan_in("d_ff"),
        "relative_bias": _fan_in("d_model"),
        "projection": _fan_in("width"),
        "noop_key": _fan_in("width"),
    },
    "normal-0.02": {
        **dict.fromkeys(
            (
                "embedding",
                "position_embedding",
                "lm_head",
                "q",
                "q_unscaled",
                "kv",
                "kv_layer",
                "wi",
                "relative_bias",
                "projection",
            ),
            _constant(0.02),
        ),
        "noop_key": _constant(0.02),
        "o": _residual(0.02),
        "wo": _residual(0.02),
    },
}
"""Standard deviation of each kind of weight, by recipe."""


def recipe_of(name: str) -> Recipe:
    """Return the recipe with this name.

    Raises:
        ConfigError: If the recipe does not exist.
    """
    if name not in RECIPES:
        raise ConfigError(f"init must be one of {', '.join(RECIPES)}, not {name!r}.")
    return RECIPES[name]


def all_kinds(model: nn.Module) -> Kinds:
    """Yield the kind, weight and sizes of every parameter of `model`, in the order of its modules."""
    for module in model.modules():
        kinds: Callable[[], Kinds] | None = getattr(module, "kinds", None)
        yield from kinds() if kinds else ()


def initialise(model: nn.Module, recipe: Recipe, base: Architecture | None = None) -> None:
    """Initialise every parameter of `model`, in the order of its modules, with torch's global generator."""
    for kind, weight, sizes in all_kinds(model):
        factor = factors(kind, sizes, base).init
        if kind.endswith("norm"):
            constant_(weight, factor)
        elif kind.endswith("bias") and kind != "relative_bias":
            constant_(weight, 0.0)
        else:
            normal_(weight, std=recipe[kind](sizes) * factor)
