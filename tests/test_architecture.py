"""Architectures: exact parameter counts, names that parse back, and refused combinations."""

import string
from dataclasses import replace

import pytest
from helpers.reference import march_architecture, march_runs, t5_checkpoints
from hypothesis import given
from hypothesis import strategies as st

from march_search import Architecture
from march_search.architecture.architecture import CHOICES
from march_search.errors import ArchitectureError

BASELINE_2023 = Architecture(vocab_size=30_000, position="absolute", cross_attention="layer")


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Any valid architecture with at most 6 layers per stack."""
    values = {name: draw(st.sampled_from(known)) for name, known in CHOICES.items()}
    values |= {
        "num_layers": draw(st.integers(1, 6)),
        "num_decoder_layers": draw(st.none() | st.integers(1, 6)),
        "d_model": 64 * draw(st.integers(2, 8)),
        "num_heads": draw(st.integers(1, 12)),
        "d_kv": draw(st.sampled_from([4, 16, 64])),
        "d_ff": draw(st.integers(1, 500)),
        "vocab_size": draw(st.integers(1, 999)),
        "max_length": draw(st.sampled_from([512, 1024])),
        "share_layers": draw(st.sampled_from([1, 2, 3, "all"])),
        "d_bottleneck": draw(st.none() | st.just(64)),
        "length_reduction": draw(st.sampled_from([1.0, 0.5, 0.25])),
    }
    if draw(st.booleans()):
        values |= {
            "num_key_value_heads": draw(st.none() | st.sampled_from(divisors(values["num_heads"]))),
            "rotary_fraction": draw(st.sampled_from([1.0, 0.5])),
            "rotary_base": draw(st.sampled_from([10000.0, 500000.0, 1.5e6])),
            "rotary_scaling": draw(st.sampled_from([1.0, 8.0, 1.25])),
            "attention_window": draw(st.none() | st.integers(1, 64)),
            "global_every": draw(st.sampled_from([0, 2, 3])),
            "logit_softcap": draw(st.none() | st.sampled_from([30.0, 0.5])),
            "norm_epsilon": draw(st.sampled_from([1e-6, 1e-5, 1e-12])),
        }
    try:
        return Architecture(**values)
    except ArchitectureError:
        return Architecture(**values | repairs(values))


def divisors(number: int) -> list[int]:
    """All divisors of a number."""
    return [d for d in range(1, number + 1) if number % d == 0]


def repairs(values: dict) -> dict:
    """Values of the fields that would otherwise contradict each other."""
    repaired = {"structure": "encoder-decoder", "head_schedule": "constant", "cross_attention": "output"}
    repaired |= {"parallel_block": False, "length_reduction": 1.0, "rotary_fraction": 1.0}
    repaired["d_bottleneck"] = None if values["bottleneck"] == "none" else values["d_bottleneck"] or 64
    depth = min(values["num_layers"], values["num_decoder_layers"] or 6)
    if values["bottleneck"] != "none" or (values["share_layers"] != "all" and values["share_layers"] > depth):
        repaired["share_layers"] = 1
    if values["position"] == "none":
        repaired["position"] = "relative"
    if values["position"] != "rotary":
        repaired |= {"rotary_base": 10000.0, "rotary_scaling": 1.0}
    if values.get("attention_window") is None or values["global_every"] > depth:
        repaired["global_every"] = 0
    return repaired


def test_the_default_is_t5_base() -> None:
    assert Architecture().num_params == 222_903_552
    assert Architecture().name == "L12-D768-H12x64-F3072"


@pytest.mark.parametrize("run", march_runs(), ids=lambda run: run["name"])
def test_parameter_counts_of_the_2023_runs_are_exact(run: dict) -> None:
    assert march_architecture(run).num_params == run["num_params"]


@pytest.mark.parametrize("checkpoint", t5_checkpoints(), ids=lambda checkpoint: checkpoint["name"])
def test_parameter_counts_of_t5_checkpoints_are_exact(checkpoint: dict) -> None:
    shape = {key: value for key, value in checkpoint.items() if key not in ("name", "num_params")}
    assert Architecture(**shape).num_params == checkpoint["num_params"]


@pytest.mark.parametrize(
    ("schedule", "num_params"),
    [
        ("more-first", 225_593_856),
        ("more-last", 225_593_856),
        ("more-first-same-width", 222_054_912),
        ("more-last-same-width", 222_054_912),
    ],
)
def test_parameter_counts_of_head_schedules_match_the_2023_logs(schedule: str, num_params: int) -> None:
    assert replace(BASELINE_2023, head_schedule=schedule).num_params == num_params


@given(architectures())
def test_parameter_groups_are_positive_and_sum_to_the_total(a: Architecture) -> None:
    assert sum(a.param_groups().values()) == a.num_params
    assert min(a.param_groups().values()) > 0


@given(architectures())
def test_a_name_parses_back_and_is_safe_as_a_file_name(a: Architecture) -> None:
    assert Architecture.parse(a.name) == a
    assert set(a.name) <= set(string.ascii_letters + string.digits + "-+.")


@given(architectures(), st.integers(1, 100))
def test_parameters_are_linear_in_d_ff(a: Architecture, step: int) -> None:
    counts = [replace(a, d_ff=a.d_ff + k * step).num_params for k in range(3)]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


@given(architectures())
def test_untying_adds_one_embedding(a: Architecture) -> None:
    tied, untied = (replace(a, tie_word_embeddings=tied).num_params for tied in (True, False))
    assert untied - tied == a.vocab_size * a.d_model


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"num_key_value_heads": 4}, "KV4"),
        ({"qk_norm": "head", "norm": "layer", "norm_position": "post", "bias": "qkv"}, "qknorm-ln-postnorm-bqkv"),
        (
            {"qk_norm": "all", "bias": "all", "structure": "decoder-only", "position": "none"},
            "dec-nopos-qknormall-ball",
        ),
        ({"position": "rotary", "rotary_fraction": 0.25, "rotary_base": 500000}, "rope-RF0.25-RB500000"),
        (
            {"attention_window": 512, "global_every": 6, "logit_softcap": 30, "norm_epsilon": 1e-5},
            "W512-G6-C30-E0.00001",
        ),
        ({"feed_forward_proj": "exact-gelu", "parallel_block": True, "structure": "decoder-only"}, "dec-exactgelu-par"),
    ],
)
def test_a_field_of_current_families_adds_a_word(fields: dict, name: str) -> None:
    a = Architecture(**fields)
    assert a.name == f"{Architecture().name}-{name}"
    assert Architecture.parse(a.name) == a


def test_as_many_key_value_heads_as_heads_changes_nothing() -> None:
    assert Architecture(num_key_value_heads=12) == Architecture()


def test_sharing_all_layers_counts_the_weights_of_one_layer() -> None:
    one = Architecture(num_layers=1).num_params
    assert Architecture(num_layers=12, share_layers="all").num_params == one


def test_layer_shared_cross_attention_saves_two_square_matrices_per_layer() -> None:
    shared = replace(BASELINE_2023, cross_attention="layer-shared")
    assert BASELINE_2023.num_params - shared.num_params == 12 * 2 * 768**2


def test_a_flat_bottleneck_adds_one_projection_down_and_one_up_in_each_stack() -> None:
    flat = Architecture(bottleneck="flat", d_bottleneck=256).param_groups()
    assert flat["encoder.projection"] == flat["decoder.projection"] == 2 * 768 * 256


def test_widths_of_a_bottleneck_are_multiples_of_64() -> None:
    from march_search.architecture.parameters import layer_widths

    assert layer_widths(Architecture(num_layers=3, bottleneck="shrinking", d_bottleneck=192), 3) == [768, 384, 192]
    assert layer_widths(Architecture(num_layers=3, bottleneck="growing", d_bottleneck=192), 3) == [192, 384, 768]


def test_a_learned_no_op_key_adds_one_key_to_every_attention() -> None:
    assert Architecture(noop_key="learned").num_params - Architecture().num_params == (12 + 24) * 768


def test_stating_an_equal_decoder_depth_changes_nothing() -> None:
    assert Architecture(num_layers=6, num_decoder_layers=6) == Architecture(num_layers=6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 0}, "d_model must be a whole number of at least 1, not 0"),
        ({"d_ff": 1.5}, "d_ff must be a whole number of at least 1, not 1.5"),
        ({"feed_forward_proj": "geglu"}, "feed_forward_proj must be one of relu, gelu, silu, gated-relu"),
        ({"num_decoder_layers": 6, "cross_attention": "layer"}, "num_decoder_layers \\(6\\) must equal num_layers"),
        ({"structure": "decoder-only", "cross_attention": "layer"}, "a decoder-only model has no cross-attention"),
        ({"head_schedule": "more-first", "num_heads": 3}, "num_heads must be even, not 3"),
        ({"share_layers": 13}, "share_layers=13 exceeds the number of layers in a stack"),
        ({"share_layers": "all", "head_schedule": "more-last"}, "would share one set of weights"),
        ({"bottleneck": "flat"}, "bottleneck='flat' needs d_bottleneck"),
        ({"bottleneck": "flat", "d_bottleneck": 768}, "must be smaller than d_model"),
        ({"bottleneck": "growing", "d_bottleneck": 100}, "needs multiples of 64"),
        ({"length_reduction": 0.0}, "length_reduction must lie in"),
        ({"position": "rotary", "d_kv": 5}, "d_kv must be a multiple of 2, not 5"),
        ({"num_key_value_heads": 5}, r"num_key_value_heads \(5\) must divide num_heads \(12\)"),
        ({"num_key_value_heads": 24}, r"num_key_value_heads \(24\) must divide num_heads \(12\)"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be a whole number of at least 1, not 0"),
        ({"num_key_value_heads": 6, "head_schedule": "more-first"}, "leave num_key_value_heads at None"),
        ({"qk_norm": "head", "cross_attention": "layer-shared"}, "qk_norm='head' needs cross_attention='output'"),
        ({"parallel_block": True}, "parallel_block needs structure='decoder-only'"),
        ({"position": "none"}, "position='none' needs structure='decoder-only'"),
        ({"rotary_fraction": 0.5}, "rotary_fraction=0.5 needs position='rotary', not 'relative'"),
        ({"rotary_scaling": 8.0}, "rotary_scaling=8.0 needs position='rotary', not 'relative'"),
        ({"rotary_scaling": 0.5, "position": "rotary"}, r"rotary_scaling must lie in \[1, 1e\+06\], not 0.5"),
        ({"rotary_base": 1e6}, "rotary_base=1000000.0 needs position='rotary', not 'relative'"),
        ({"rotary_base": True, "position": "rotary"}, r"rotary_base must lie in \[1, 1e\+12\], not True"),
        (
            {"rotary_fraction": 0.3, "position": "rotary"},
            r"rotary_fraction \(0.3\) times d_kv \(64\) must be a multiple",
        ),
        ({"rotary_fraction": 0.01, "position": "rotary"}, "must be a multiple of 2"),
        ({"attention_window": 0}, "attention_window must be a whole number of at least 1, not 0"),
        ({"global_every": 4}, "global_every=4 needs an attention_window"),
        ({"global_every": -1}, "global_every must be a whole number of at least 0, not -1"),
        ({"attention_window": 64, "global_every": 1}, "global_every=1 leaves no layer with a window"),
        ({"attention_window": 64, "global_every": 13}, "global_every=13 exceeds the number of layers"),
        ({"attention_window": 64, "length_reduction": 0.5}, "use one of the two"),
        ({"logit_softcap": 0.0}, r"logit_softcap must lie in \[0.001, 1e\+06\], not 0.0"),
        ({"norm_epsilon": "1e-6"}, "norm_epsilon must lie in"),
    ],
)
def test_an_invalid_architecture_is_refused_in_one_line(fields: dict, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message) as caught:
        Architecture(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "t5", "L12-D768", "L12-D768-H12x64-F3072-swi", "L1-D2-H3x4-F5-abs-rope", "L0-D2-H3x4-F5"]
)
def test_text_that_is_not_a_name_is_refused(name: str) -> None:
    with pytest.raises(ArchitectureError):
        Architecture.parse(name)


def test_flops_of_short_sequences_are_near_six_per_weight() -> None:
    a = Architecture(num_layers=2, d_model=512, d_ff=2048, vocab_size=512)
    assert a.flops_per_token(64) == 3 * a.flops_per_token(64, backward=False)
    weights = a.num_params - 2 * 32 * 12
    assert 0.5 * 6 * weights < a.flops_per_token(64) < 6 * weights
