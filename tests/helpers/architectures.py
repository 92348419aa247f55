"""Random architectures."""

import random

from march_search import Architecture
from march_search.architecture.architecture import CHOICES
from march_search.errors import ArchitectureError
from march_search.model.seq2seq import UNBUILT

BUILT = {field: tuple(v for v in values if v in UNBUILT.get(field, values)) for field, values in CHOICES.items()}
"""Values of each field with a fixed list that can be built."""


def random_architectures(count: int) -> list[Architecture]:
    """Return architectures with every field drawn at random; combinations that cannot exist are drawn again."""
    draw, found = random.Random(7), []
    while len(found) < count:
        choices = {field: draw.choice(values) for field, values in BUILT.items()}
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
        }
        try:
            found.append(Architecture(**choices, **sizes))
        except ArchitectureError:
            continue
    return found
