from pathlib import Path

import pytest

from march_search import Architecture, SearchSpace, solve
from march_search.config import DataConfig, StudyConfig
from march_search.errors import BudgetError, ConfigError
from march_search.planning.candidates import load_space
from march_search.space.auto import VOCAB_SIZES, automatic_space, automatic_table, typical_vocab_size
from march_search.space.budget import Budget


@pytest.mark.parametrize("structure", ["encoder-decoder", "decoder-only"])
@pytest.mark.parametrize("budget", ["50K", "456k", "1M", "3M", "60M", "220M", "3B", "70B"])
def test_every_budget_has_shapes_of_many_depths_and_widths(budget, structure):
    space = automatic_space(budget, structure)
    found = solve(space)
    shapes = [found[len(found) * part // 200] for part in range(200)]
    assert len(found) >= 40
    assert {a.structure for a in shapes} == {structure}
    assert len({a.num_layers for a in shapes}) >= 3
    assert len({a.d_model for a in shapes}) >= 2
    assert len({a.feed_forward_proj for a in shapes}) == 2
    assert all(space.budget.low <= a.num_params <= space.budget.high for a in shapes)


def test_t5_base_with_rotary_positions_is_in_the_space_around_its_budget():
    base = Architecture.parse("L12-D768-H12x64-F3072-rope")
    assert base in solve(automatic_space("t5-base"))
    assert base in solve(automatic_space("220M"))


def test_the_vocabulary_grows_with_the_budget_and_can_be_given():
    sizes = [typical_vocab_size(number) for number in (10**4, 10**6, 3 * 10**6, 60 * 10**6, 220 * 10**6, 10**12)]
    assert sizes == [384, 512, 1024, 8192, 32128, 32128]
    assert set(sizes) <= set(VOCAB_SIZES)
    assert automatic_space("10M", vocab_size=5000).axes["vocab_size"] == (5000,)


def test_a_large_vocabulary_narrows_the_range_of_widths():
    wide, narrow = automatic_space("10M", vocab_size=512), automatic_space("10M", vocab_size=32128)
    assert max(narrow.axes["d_model"]) < max(wide.axes["d_model"])
    assert len(solve(narrow)) > 1000


def test_a_budget_below_the_embedding_is_refused_with_the_least_that_works():
    with pytest.raises(BudgetError, match=r"1,000,000 .* vocabulary of 32,128: use at least 1,042,432, or a smaller"):
        automatic_space("1M", vocab_size=32128)
    with pytest.raises(BudgetError, match=r"20,000 .* vocabulary of 384: use at least 26,624\.$"):
        automatic_space("20K")
    assert len(solve(automatic_space("1_050_000", vocab_size=32128))) > 0


def test_the_table_is_a_space_file():
    table = automatic_table("3M", tolerance="2%")
    assert (
        SearchSpace.from_table(table).budget == SearchSpace.from_table(automatic_table("3M", tolerance="0.02")).budget
    )
    assert [rule.text for rule in SearchSpace.from_table(table).rules] == table["rules"]
    assert table["budget"] == {"parameters": "3M", "tolerance": "2%"}


def test_a_study_may_take_the_space_auto_with_the_vocabulary_of_its_data(tmp_path: Path) -> None:
    config = StudyConfig(space="auto", budget="3M", tolerance="1%", data=DataConfig(vocab_size=1024))
    space = load_space(config, tmp_path)
    assert space.axes["vocab_size"] == (1024,)
    assert space.budget == Budget.parse("3M", "1%")
    assert len(solve(space)) > 100
    with pytest.raises(ConfigError, match='the space "auto" is laid around a budget'):
        load_space(StudyConfig(space="auto"), tmp_path)
