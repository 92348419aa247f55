"""Following a direction: the nearest member of a feasible set, compared with a search over all members."""

import math
from dataclasses import replace

import pytest

from march_search import Architecture, SearchSpace, solve
from march_search.errors import ConfigError, EmptySetError
from march_search.space.directions import Direction, follow, nearest_member

SPACE = SearchSpace.load("cpu-ladder")
AIMS = {"d_model / num_layers": 16.0, "d_ff / d_model": 4.0, "num_heads * d_kv / d_model": 1.0, "d_kv": 16.0}
PLAIN = {"feed_forward_proj": "relu", "cross_attention": "output"}


def distance(a: Architecture, budget: int) -> float:
    """Return the distance of an architecture from the aims, computed by hand."""
    ratios = [a.d_model / a.num_layers / 16, a.d_ff / a.d_model / 4, a.num_heads * a.d_kv / a.d_model, a.d_kv / 16]
    ratios.append(a.num_params_non_embedding / budget)
    return math.sqrt(sum(math.log2(ratio) ** 2 for ratio in ratios))


@pytest.mark.parametrize("budget", ["0.1M", "0.19M", "0.77M"])
def test_an_arm_is_the_nearest_of_all_members(budget: str) -> None:
    space = SPACE.with_budget(budget)
    arm = follow(space, AIMS, PLAIN)
    assert space.budget is not None
    members = [a for a in solve(space) if a.feed_forward_proj == "relu" and a.cross_attention == "output"]
    assert arm.architecture in members
    assert distance(arm.architecture, space.budget.parameters) == pytest.approx(
        min(distance(a, space.budget.parameters) for a in members)
    )


def test_fields_are_exact_and_others_have_the_first_value_of_the_space() -> None:
    gated = follow(SPACE, AIMS, {"feed_forward_proj": "gated-gelu"}).architecture
    assert (gated.feed_forward_proj, gated.cross_attention, gated.position) == ("gated-gelu", "output", "rotary")
    shared = follow(SPACE, AIMS, {"cross_attention": "layer-shared"}).architecture
    assert (shared.feed_forward_proj, shared.cross_attention) == ("relu", "layer-shared")


def test_fields_are_written_as_in_a_space_file() -> None:
    axes = {"rotary_base": (10000.0, 500000.0), "attention_window": (64, None), "logit_softcap": (30.0, None)}
    space = replace(SPACE, axes=SPACE.axes | axes)
    fields = {"rotary_base": 500000, "attention_window": "none", "logit_softcap": "none", "vocab_size": "2K"}
    space = replace(space, axes=space.axes | {"vocab_size": (1024, 2000)})
    arm = follow(space, AIMS, fields).architecture
    assert (arm.rotary_base, arm.attention_window, arm.logit_softcap, arm.vocab_size) == (500000.0, None, None, 2000)


def test_what_cannot_be_kept_is_named_with_its_value() -> None:
    assert follow(SPACE.with_budget("0.19M"), AIMS, PLAIN).missed == ()
    [wide] = follow(SPACE.with_budget("0.19M"), {"d_model / num_layers": 500}, PLAIN).missed
    assert wide.startswith("d_model / num_layers is ")
    assert wide.endswith(", not 500")


def test_an_expression_may_have_lower_precedence_than_a_comparison_and_decoder_layers() -> None:
    space = SearchSpace.from_table(
        {
            "budget": {"parameters": "1M", "tolerance": "20%"},
            "axes": {
                "num_layers": [1, 2, 3], "num_decoder_layers": [1, 2, 3],
                "d_model": {"min": 32, "max": 256, "multiple_of": 8},
                "num_heads": [2, 4], "d_kv": 16, "d_ff": {"min": 32, "max": 512, "multiple_of": 8}, "vocab_size": 512,
            },
        }
    )  # fmt: skip
    arm = follow(space, {"num_layers + num_decoder_layers": 5, "num_layers / num_decoder_layers": 1.5}, {})
    assert (arm.architecture.num_layers, arm.architecture.decoder_layers) == (3, 2)
    assert arm.missed == ()


def test_equal_octaves_on_either_side_are_equally_far() -> None:
    direction = Direction.parse("d_model", 100.0)
    shapes = [Architecture(d_model=d, num_heads=1) for d in (50, 200)]
    assert [float(direction.octaves(shape)) for shape in shapes] == [-1.0, 1.0]
    assert nearest_member(solve(SPACE), [Direction.parse("d_model", 64.0)]).d_model == 64


@pytest.mark.parametrize(
    ("directions", "fields", "message"),
    [
        ({"d_modle / num_layers": 16}, {}, 'unknown field "d_modle". Did you mean "d_model"?'),
        ({"d_model > 3": 16}, {}, "not a direction"),
        ({"3": 16}, {}, "not a direction"),
        ({"d_model **": 16}, {}, "not a valid expression"),
        ({}, {"positoin": "rotary"}, 'unknown field "positoin". Did you mean "position"?'),
        ({}, {"position": "relative"}, "has no position = relative, only rotary: add it to the space"),
        ({}, {"num_layers": True}, "has no num_layers = True"),
        ({}, {"position": ["rotary"]}, "has no position = ['rotary'], only rotary"),
        ({}, {"rotary_base": 10001}, "has no rotary_base = 10001, only 10000.0: add it"),
        ({"position": 1}, {}, 'the direction "position" is text, not a number: use fields such as d_model.'),
        ({"2 * position": 1}, {}, 'the direction "2 * position" calculates with a value that is not a number.'),
    ],
)
def test_a_direction_or_field_that_is_not_one_is_refused(
    directions: dict[str, float], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        follow(SPACE, directions, fields)
    assert message in str(raised.value)


def test_fields_without_members_are_refused() -> None:
    with pytest.raises(EmptySetError, match=r"no architecture with num_layers = 12, d_model = 256 has 460,000"):
        follow(SPACE, AIMS, {"num_layers": 12, "d_model": 256})
