"""The built model: the parameters and operations of the formulas, its initialisation, and its errors."""

import math
import random
from dataclasses import replace

import pytest
import torch
from helpers.architectures import random_architectures
from torch.utils.flop_counter import FlopCounterMode

from march_search import Architecture
from march_search.architecture.architecture import CHOICES
from march_search.architecture.flops import forward_flops
from march_search.errors import ArchitectureError, ConfigError
from march_search.model import RECIPES, build

TINY = {"num_layers": 2, "d_model": 64, "num_heads": 2, "d_kv": 16, "d_ff": 96, "vocab_size": 50, "max_length": 64}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "part", [slice(80), pytest.param(slice(80, 220), marks=pytest.mark.torture)], ids=["80", "140 more"]
)
def test_random_architectures_have_the_parameters_and_operations_of_the_formulas(part):
    draw, architectures = random.Random(1), random_architectures(220)[part]
    for field, values in CHOICES.items():
        assert {getattr(a, field) for a in architectures} == set(values)
    for a in architectures:
        with torch.device("meta"), torch.no_grad():
            model = build(a, draw.choice(list(RECIPES)))
            assert sum(p.numel() for p in model.parameters()) == a.num_params, a.name
            is_decoder = a.structure == "decoder-only"
            input_length, target_length = 0 if is_decoder else draw.randint(1, 40), draw.randint(1, 30)
            inputs = None if is_decoder else torch.zeros(1, input_length, dtype=torch.long)
            targets = torch.zeros(1, target_length, dtype=torch.long)
            with FlopCounterMode(display=False) as counter:
                model(inputs, targets)
        if a.noop_key == "none":  # the product with the no-op key is the only one that the formula omits
            masked = replace(a, attention_window=None, global_every=0)  # the counter counts what a window masks
            assert counter.get_total_flops() == forward_flops(masked, input_length, target_length), a.name


@pytest.mark.parametrize(
    ("heads", "d_kv", "layers"), [(1, 256, 1), (400, 2, 1), (1, 32, 1)], ids=["one wide head", "400 heads", "one layer"]
)
@pytest.mark.parametrize("position", ["relative", "rotary", "absolute"])
def test_unusual_shapes_train(heads, d_kv, layers, position):
    a = Architecture(**TINY | {"num_layers": layers, "num_heads": heads, "d_kv": d_kv, "position": position})
    model = build(a)
    loss = model(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_t5_base_has_the_published_parameter_count():
    with torch.device("meta"):
        assert sum(p.numel() for p in build(Architecture()).parameters()) == 222_903_552


def test_initial_weights_follow_the_seed_and_the_recipe():
    a = Architecture(**TINY | {"d_model": 256, "d_ff": 512})
    one, two = ((torch.manual_seed(3), build(a))[1].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    expected = {
        "embedding": 1.0,
        "encoder.layers.0.attention.o": 32**-0.5,
        "encoder.layers.0.feed_forward.wi": 256**-0.5,
        "decoder.layers.1.feed_forward.wo": 512**-0.5,
        "decoder.layers.1.cross_attention.q": (256 * 16) ** -0.5,
        "decoder.layers.1.cross_attention.kv": 256**-0.5,
    }
    for name, std in expected.items():
        assert one[name].std().item() == pytest.approx(std, rel=0.05), name
    assert one["decoder.layers.0.attention.qkv"][:32].std().item() == pytest.approx((256 * 16) ** -0.5, rel=0.05)
    assert one["decoder.layers.0.attention.qkv"][32:].std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert one["decoder.norm.weight"].eq(1).all()
    small = build(a, "normal-0.02").state_dict()
    assert small["embedding"].std().item() == pytest.approx(0.02, rel=0.05)
    assert small["encoder.layers.1.feed_forward.wo"].std().item() == pytest.approx(0.02 / 2, rel=0.05)
    untied = build(Architecture(**TINY | {"d_model": 256, "tie_word_embeddings": False}))
    assert untied.lm_head.std().item() == pytest.approx(256**-0.5, rel=0.05)
    tokens = torch.arange(2, 50)[None]
    assert untied(tokens, tokens).item() < 2 * math.log(50)
    rotary = build(Architecture(**TINY | {"d_model": 256, "position": "rotary"})).state_dict()
    assert rotary["encoder.layers.0.attention.qkv"].std().item() == pytest.approx(256**-0.5, rel=0.05)


def test_errors_are_one_line():
    tokens = torch.zeros(1, 65, dtype=torch.long)
    with pytest.raises(
        ArchitectureError, match=r"^a sequence of 65 tokens is too long: max_length is 64. Increase it.$"
    ):
        build(Architecture(**TINY, position="absolute"))(tokens, tokens[:, :3])
    with pytest.raises(ArchitectureError, match=r"is encoder-decoder and needs inputs.$"):
        build(Architecture(**TINY))(None, tokens)
    with pytest.raises(ArchitectureError, match=r"is decoder-only and takes no inputs: pass None.$"):
        build(Architecture(**TINY, structure="decoder-only"))(tokens, tokens)
    with pytest.raises(ConfigError, match=r"^init must be one of t5, normal-0.02, not 'xavier'.$"):
        build(Architecture(**TINY), init="xavier")
