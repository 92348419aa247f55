"""Random architectures."""

import random

from march_search import Architecture
from march_search.architecture.architecture import CHOICES
from march_search.errors import ArchitectureError


def random_architectures(count: int) -> list[Architecture]:
    """Return architectures with every field drawn at random; combinations that cannot exist are drawn again."""
    draw, found = random.Random(7), []
    while len(found) < count:
        choices = {field: draw.choice(values) for field, values in CHOICES.items()}
        sizes = {
            "num_layers": draw.randint(1, 5),
            "num_decoder_layers": draw.choice([None, None, None, 1, 2, 4]),
            "d_model": draw.choice([128, 192, 40]),
            "num_heads": draw.choice([1, 2, 4, 6]),
            "d_kv": draw.choice([4, 8, 32]),
            "d_ff": draw.choice([16, 96, 101]),
            "vocab_size": draw.choice([32, 101]),
            "max_length": 64,
            "share_layers": draw.choice([1, 1, 2, "all"]),
            "d_bottleneck": None if choices["bottleneck"] == "none" else draw.choice([64, 24]),
            "length_reduction": draw.choice([1.0, 1.0, 0.5, 0.3]),
            "num_key_value_heads": draw.choice([None, None, 1, 2, 3]),
            "attention_window": draw.choice([None, None, 1, 3, 500]),
            "global_every": draw.choice([0, 0, 2, 3]),
            "logit_softcap": draw.choice([None, None, 5.0]),
            "norm_epsilon": draw.choice([1e-6, 1e-5]),
        }
        if choices["position"] == "rotary":
            sizes |= {"rotary_fraction": draw.choice([1.0, 0.25, 0.5]), "rotary_base": draw.choice([10000.0, 500.0])}
            sizes["rotary_scaling"] = draw.choice([1.0, 1.0, 8.0])
        try:
            found.append(Architecture(**choices, **sizes))
        except ArchitectureError:
            continue
    return found
