"""A started study can be extended with --extend, and never loses trials, values or shapes unnoticed."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.toy_studies import TOY_COMMAND, TOY_CONFIG

from march_search.analysis.study_record import read_study
from march_search.config import ConfirmConfig, SearchConfig, StudyConfig
from march_search.errors import ConfigError, StorageError
from march_search.planning import candidates, extension, study_state
from march_search.storage.study_folder import StudyFolder
from march_search.study.runner import StudyRun

SPACE = """
[budget]
parameters = "1.3M"
tolerance = "{tolerance}"
[axes]
num_layers = {layers}
d_model = [96, 128, 192]
num_heads = 4
d_kv = 32
d_ff = {{ min = 64, max = 2048, multiple_of = 64 }}
vocab_size = 2048
position = "rotary"
"""


def write_space(folder: Path, layers: str = "[1, 2, 3]", tolerance: str = "5%", rules: str = "") -> None:
    """Write the file of a small space."""
    (folder / "own.toml").write_text(rules + SPACE.format(layers=layers, tolerance=tolerance))


def run(root: Path, extend: bool = False, config: StudyConfig = TOY_CONFIG, **search: object) -> list[str]:
    """Run the study as the command does, with toy trials, and return the names of its trials in order."""
    config = replace(config, space="own.toml", search=replace(SearchConfig(trials=3), **search))
    folder = StudyFolder.of(root, "toy")
    drawn = candidates.choose(config, root)
    chosen = extension.extended_candidates(folder.path, config, drawn, extend)
    if extend:
        extension.adopt(folder, config, chosen, drawn)
    folder.keep_settings(config, chosen.architectures)
    study_state.keep_candidates(folder.path, chosen)
    folder.keep_store(root / "store")
    StudyRun(config, folder, root / "store", candidates.with_seeds(chosen, config), TOY_COMMAND).run()
    return [f"{t.architecture.name}-s{t.seed}" for t in read_study(root / "toy").trials]


def test_an_extended_study_keeps_its_trials_and_gets_more(tmp_path: Path) -> None:
    write_space(tmp_path)
    first = run(tmp_path)
    with pytest.raises(
        ConfigError, match=r"toy was started with \[search\] trials = 3, but its file now has 5; use --extend"
    ):
        run(tmp_path, trials=5)
    more = run(tmp_path, extend=True, trials=5)
    assert more[:3] == first
    assert len(set(more)) == 5
    assert run(tmp_path, trials=5) == more  # later runs need no --extend
    seeds = run(tmp_path, extend=True, trials=5, seeds=(0, 1))
    assert seeds[:5] == more
    assert len(seeds) == 10


def test_an_extended_study_may_confirm_and_a_further_seed_is_not_trained_again(tmp_path: Path) -> None:
    write_space(tmp_path)
    first = run(tmp_path)
    config = replace(TOY_CONFIG, confirm=ConfirmConfig(max_seeds=2))
    further = run(tmp_path, extend=True, config=config)
    assert further[:3] == first
    assert {name.rpartition("-")[2] for name in further[3:]} == {"s1"}
    assert StudyFolder(tmp_path / "toy").config().confirm == config.confirm
    both = run(tmp_path, extend=True, config=config, seeds=(0, 1))
    assert len(set(both)) == len(both) == 6


def test_an_extension_removes_nothing(tmp_path: Path) -> None:
    write_space(tmp_path)
    run(tmp_path, seeds=(0, 1))
    for search, message in (
        ({"trials": 2, "seeds": (0, 1)}, r"cannot lower \[search\] trials of toy from 3 to 2; use 3 or more"),
        ({"seeds": (1,)}, r"cannot remove values from \[search\] seeds of toy; add back: 0"),
        (
            {"seeds": (0, 1), "learning_rates": (1e-2,)},
            r"cannot remove values from \[search\] learning_rates of toy; add back: 0\.0001",
        ),
    ):
        with pytest.raises(ConfigError, match=f"--extend {message}"):
            run(tmp_path, extend=True, **search)
    other = replace(TOY_CONFIG, training=replace(TOY_CONFIG.training, learning_rate=1e-2))
    with pytest.raises(ConfigError, match=r"learning_rates of toy; add back: 0\.0001"):
        run(tmp_path, extend=True, config=other, seeds=(0, 1))
    other = replace(TOY_CONFIG, training=replace(TOY_CONFIG.training, weight_decay=0.5))
    with pytest.raises(ConfigError, match=r"different settings: training\.weight_decay was 0\.1 and is now 0\.5"):
        run(tmp_path, extend=True, config=other, trials=5, seeds=(0, 1))
    assert len(run(tmp_path, seeds=(0, 1))) == 6


def test_a_wider_space_is_allowed_and_a_narrower_one_is_refused(tmp_path: Path) -> None:
    write_space(tmp_path)
    first = run(tmp_path)
    write_space(tmp_path, layers="[1, 2, 3, 4]", tolerance="8%")
    with pytest.raises(
        ConfigError, match=r"wider than when the study started: num_layers now also has 4; the budget was 1,300,000 p"
    ):
        run(tmp_path)
    assert run(tmp_path, extend=True, trials=4)[:3] == first
    write_space(tmp_path, layers="[1, 2, 4]", tolerance="8%")
    with pytest.raises(
        ConfigError, match=r"the space of toy is narrower than when the study started: num_layers no longer has 3\. Re"
    ):
        run(tmp_path, extend=True, trials=4)
    write_space(tmp_path, layers="[1, 2, 3, 4]", tolerance="8%", rules='rules = ["d_ff >= 128"]\n')
    with pytest.raises(ConfigError, match='narrower than when the study started: the rule "d_ff >= 128" was added'):
        run(tmp_path, extend=True, trials=4)


def test_a_study_that_was_not_started_cannot_be_extended(tmp_path: Path) -> None:
    write_space(tmp_path)
    with pytest.raises(ConfigError, match="toy has not been started, so there is nothing to extend"):
        run(tmp_path, extend=True)


def test_a_worker_restores_the_candidates_without_the_space_file(tmp_path: Path) -> None:
    write_space(tmp_path, rules='rules = ["d_ff >= 128"]\n')
    (tmp_path / "past.csv").write_text("name,loss\nL2-D128-H4x32-F512-rope-V2048,4.5\n")
    run(tmp_path, warm_start=("past.csv",), warm_start_trials=1)
    config = replace(
        TOY_CONFIG, space="own.toml", search=SearchConfig(trials=3, warm_start=("past.csv",), warm_start_trials=1)
    )
    chosen = candidates.choose(config, tmp_path)
    (tmp_path / "own.toml").unlink()
    (tmp_path / "past.csv").unlink()
    again = study_state.restored_candidates(tmp_path / "toy")
    assert (list(again.found), again.architectures, again.priors) == (
        list(chosen.found), chosen.architectures, chosen.priors,
    )  # fmt: skip
    with pytest.raises(StorageError, match=r"study\.json has no space"):
        study_state.restored_candidates(tmp_path)
