"""A sampler proposes a study's next trial from its trials, seeds, learning rates and earlier studies."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from march_search import Architecture
from march_search.config import ADAPTIVE, DataConfig, SearchConfig, StudyConfig, TrainingConfig, TrialConfig
from march_search.config.loader import build
from march_search.errors import ConfigError
from march_search.files.json_tables import sealed
from march_search.planning import candidates
from march_search.planning.adaptive import next_trial, view
from march_search.planning.candidates import Planned
from march_search.planning.warm_start import read_priors
from march_search.sampler.feasible_sampler import FeasibleSampler
from march_search.storage.study_folder import StudyFolder

optuna.logging.set_verbosity(optuna.logging.ERROR)
CONFIG = StudyConfig(
    space="cpu-demo",
    search=SearchConfig(strategy="tpe", trials=14),
    data=DataConfig(vocab_size=2048, sequence_length=64),
    training=TrainingConfig(tokens=4096, global_batch_tokens=1024, precision="bf16", evaluations=4),
)


def searching(**search: object) -> StudyConfig:
    """Return the settings of the study with changes to its search."""
    return replace(CONFIG, search=replace(CONFIG.search, **search))


def loss(wanted: Planned) -> float:
    """Return a loss that is lowest for three layers of width 96 at a learning rate of 2e-3."""
    a = wanted.architecture
    return 4 + abs(a.num_layers - 3) / 3 + abs(a.d_model - 96) / 96 + abs(wanted.learning_rate - 2e-3)


SPACE = """
[budget]
parameters = "1_074_688"
tolerance = "5%"
[axes]
num_layers = { min = 1, max = 6 }
d_model = { min = 64, max = 192, multiple_of = 32 }
num_heads = [2, 4]
d_kv = [16, 32]
d_ff = { min = 64, max = 1536, multiple_of = 8 }
vocab_size = 512
"""


@pytest.mark.parametrize(
    ("axes", "rule", "fault"),
    [
        ('position = ["rotary", "absolute"]\nrotary_base = [500000.0, 10000.0]\nmax_length = 64', "", ""),
        ('position = ["rotary", "absolute"]\nrotary_base = 500000.0\nmax_length = 16', "", ""),
        ('position = ["rotary", "absolute"]\nmax_length = [16, 64]', "position == 'rotary' or max_length >= 64", ""),
        (
            'position = ["rotary", "absolute"]\nmax_length = [16, 64]',
            "",
            "has 16 positions, but examples have 58 tokens",
        ),
    ],
    ids=["rotary_base", "no absolute member", "a rule", "too short"],
)
def test_all_shapes_that_a_sampler_may_choose_must_fit_the_examples(
    tmp_path: Path, axes: str, rule: str, fault: str
) -> None:
    (tmp_path / "own.toml").write_text(f"rules = {json.dumps([rule] if rule else [])}\n{SPACE}{axes}\n")
    config = replace(searching(), space="own.toml", data=DataConfig(vocab_size=512, sequence_length=64))
    if fault:
        with pytest.raises(ConfigError, match=fault):
            candidates.choose(config, tmp_path)
    else:
        candidates.choose(config, tmp_path)


def added(study: optuna.Study, wanted: Planned) -> optuna.Trial:
    """Add a trial as a worker does, and return it."""
    study.enqueue_trial({"d_model": wanted.architecture.d_model}, user_attrs={
        "architecture": wanted.architecture.name, "seed": wanted.seed, "learning_rate": wanted.learning_rate,
    })  # fmt: skip
    return study.ask()


def search(config: StudyConfig, folder: Path, storage: object = None) -> tuple[optuna.Study, list[Planned]]:
    """Run a study to its end, with every fourth trial pruned at half; return its trials in order too."""
    chosen = candidates.choose(config, folder)
    study = optuna.create_study(storage=storage)
    ask, order = next_trial(config, chosen), []
    todo = iter(candidates.initial_trials(chosen, config))
    while wanted := next(todo, None) or ask(study):
        trial = added(study, wanted)
        order.append(wanted)
        if trial.number % 4 == 3:
            trial.report(loss(wanted) + 1, step=2048)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, loss(wanted))
    return study, order


@pytest.mark.parametrize("strategy", [s for s in ADAPTIVE if s != "gp"])
def test_each_sampler_proposes_the_requested_number_of_trials(strategy: str, tmp_path: Path) -> None:
    config = searching(strategy=strategy)
    study, order = search(config, tmp_path)
    found = candidates.choose(config, tmp_path).found
    assert len({w.architecture for w in order}) == len(order) == len(study.trials) == 14
    assert all(w.architecture in found for w in order)
    assert search(config, tmp_path)[1] == order
    assert search(searching(strategy=strategy, seed=1), tmp_path)[1] != order


def test_a_gaussian_process_proposes_trials_too(tmp_path: Path) -> None:
    _, order = search(searching(strategy="gp", trials=12), tmp_path)
    assert len({w.architecture for w in order}) == 12


def test_a_resumed_study_proposes_what_it_would_have_proposed(tmp_path: Path) -> None:
    for strategy in ("tpe", "cmaes"):
        config = searching(strategy=strategy)
        journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / strategy))
        study, order = search(config, tmp_path, optuna.storages.JournalStorage(journal))
        part = optuna.create_study()
        part.add_trials(study.trials[:11])
        assert next_trial(config, candidates.choose(config, tmp_path))(part) == order[11]


def test_listed_shapes_come_first_with_every_seed_and_rate(tmp_path: Path) -> None:
    listed = ("L2-D64-H2x32-F100-rope-V2048",)
    config = searching(trials=4, architectures=listed, seeds=(1, 2), learning_rates=(1e-3, 2e-3))
    _, order = search(config, tmp_path)
    assert [w.architecture.name for w in order[:4]] == [*listed] * 4
    combinations = {(w.architecture.name, w.seed, w.learning_rate) for w in order}
    assert len(order) == len(combinations) == 4 * 2 * 2


def test_running_trials_are_not_proposed_again(tmp_path: Path) -> None:
    chosen = candidates.choose(CONFIG, tmp_path)
    ask, study = next_trial(CONFIG, chosen), optuna.create_study()
    shapes = set()
    for _ in range(14):
        wanted = ask(study)
        assert wanted is not None
        shapes.add(wanted.architecture)
        added(study, wanted)
    assert len(shapes) == 14
    assert ask(study) is None


def test_a_small_space_is_exhausted_before_the_trials(tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text(
        '[budget]\nparameters = "1.3M"\ntolerance = "30%"\n[axes]\nnum_layers = [1, 2]\nd_model = 128\nnum_heads = 4\n'
        "d_kv = 32\nd_ff = [256, 512, 1024]\nvocab_size = 2048\n"
    )
    config = replace(searching(trials=50), space="few.toml")
    chosen = candidates.choose(config, tmp_path)
    _, order = search(config, tmp_path)
    assert sorted(chosen.found.index(w.architecture) for w in order) == list(range(len(chosen.found)))
    assert candidates.how_many(chosen, config) == len(chosen.found) < 50


def seen_by(config: StudyConfig, study: optuna.Study, folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that the sampler of a study sees."""
    chosen = candidates.choose(config, folder)
    sampler = FeasibleSampler(chosen.found, config.search.strategy, listed=chosen.architectures)
    return view(sampler, study.trials, config, chosen.priors).trials


def test_a_sampler_sees_one_trial_per_architecture(tmp_path: Path) -> None:
    config = searching(seeds=(0, 1), learning_rates=(1e-3, 2e-3))
    shapes = candidates.choose(searching(strategy="sample"), tmp_path).architectures
    study = optuna.create_study()
    for rate, seed, value in ((1e-3, 0, 5.0), (1e-3, 1, 5.2), (2e-3, 0, 4.0), (2e-3, 1, 4.2)):
        study.tell(added(study, Planned(shapes[0], seed, rate)), value)
    stopped = added(study, Planned(shapes[1], 0, 1e-3))
    stopped.report(6.0, step=1024)
    stopped.report(5.5, step=2048)
    study.tell(stopped, state=TrialState.PRUNED)
    added(study, Planned(shapes[2], 0, 1e-3))
    study.tell(added(study, Planned(shapes[3], 0, 1e-3)), state=TrialState.FAIL)
    complete, pruned, running, failed = seen_by(config, study, tmp_path)
    assert complete.value == pytest.approx(4.1)
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {1024: 6.0, 2048: 5.5})
    assert (running.state, failed.state) == (TrialState.RUNNING, TrialState.FAIL)
    bound = seen_by(replace(config, search=replace(config.search, strategy="gp")), study, tmp_path)[1]
    assert (bound.state, bound.value) == (TrialState.COMPLETE, 5.5)


def pause(study: optuna.Study, wanted: Planned, losses: dict[int, float]) -> None:
    """Add a waiting trial with these losses by tokens."""
    attrs = {"architecture": wanted.architecture.name, "seed": wanted.seed, "learning_rate": wanted.learning_rate}
    study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attrs, intermediate_values=losses))


def test_trials_paused_at_a_rung_are_seen_with_their_mean_loss_there(tmp_path: Path) -> None:
    config = searching(seeds=(0, 1), learning_rates=(1e-3, 2e-3))
    shape, other = candidates.choose(searching(strategy="sample"), tmp_path).architectures[:2]
    study = optuna.create_study()
    for rate, seed, value in ((1e-3, 0, 5.0), (1e-3, 1, 5.2), (2e-3, 0, 4.0), (2e-3, 1, 5.6)):
        pause(study, Planned(shape, seed, rate), {1024: value + 1, 2048: value})
    pause(study, Planned(other, 0, 1e-3), {})
    seen, waits = seen_by(config, study, tmp_path)
    assert (seen.state, waits.state) == (TrialState.PRUNED, TrialState.RUNNING)
    assert seen.intermediate_values == pytest.approx({1024: 5.8, 2048: 4.8})


def test_a_sampler_learns_from_trials_paused_at_the_first_rung(tmp_path: Path) -> None:
    config = searching(trials=24)
    ask, study = next_trial(config, candidates.choose(config, tmp_path)), optuna.create_study()
    losses = []
    while wanted := ask(study):
        losses.append(loss(wanted))
        pause(study, wanted, {1024: losses[-1]})
    assert len(losses) == 24
    assert sum(losses[12:]) / 12 < sum(losses[:10]) / 10 - 0.1


def test_several_objectives_are_several_values(tmp_path: Path) -> None:
    config = searching(objectives=("loss", "flops", "-depth"), trials=12)
    study, order = search(config, tmp_path)
    seen = [t for t in seen_by(config, study, tmp_path) if t.state == TrialState.COMPLETE]
    assert len(seen) == len(order)
    assert seen[0].values[2] == -2 * order[0].architecture.num_layers
    assert len({w.architecture for w in order}) == 12


def table(folder: Path, text: str) -> str:
    """Write a CSV file of results and return its name."""
    (folder / "past.csv").write_text(text)
    return "past.csv"


def test_a_warm_start_informs_the_sampler(tmp_path: Path) -> None:
    shapes = candidates.choose(searching(strategy="sample"), tmp_path).architectures
    lines = [f"{a.name},{loss(Planned(a, 0, 2e-3)) + 3},1" for a in shapes]
    source = table(tmp_path, "\n".join(["name,loss,tokens", *lines, f"{shapes[0].name},99,0"]) + "\n")
    config = searching(warm_start=(source,))
    study = optuna.create_study()
    seen = seen_by(config, study, tmp_path)
    assert {t.user_attrs["warm_start"] for t in seen} == {source}
    assert len(seen) == 14
    assert max(t.value for t in seen) < 90
    _, warm = search(config, tmp_path)
    _, cold = search(CONFIG, tmp_path)
    assert sum(map(loss, warm)) < sum(map(loss, cold))
    first = Planned(shapes[5], 0, 2e-3)
    study.tell(added(study, first), 1.0)
    moved = sorted(t.value for t in seen_by(config, study, tmp_path) if "warm_start" in t.user_attrs)
    assert (moved[6] + moved[7]) / 2 == pytest.approx(1.0)


def test_the_best_of_a_warm_start_are_tried_first(tmp_path: Path) -> None:
    shapes = candidates.choose(searching(strategy="sample"), tmp_path).architectures
    lines = [f"{a.name},{9 - k}" for k, a in enumerate(shapes[:5])]
    source = table(tmp_path, "\n".join(["# from elsewhere", "name,loss", *lines, "L2-D65-H4x32-F100,0.1"]))
    for strategy in ("tpe", "design", "list"):
        config = searching(
            strategy=strategy, warm_start=(source,), warm_start_trials=2, architectures=(shapes[9].name,)
        )
        first = candidates.choose(config, tmp_path).architectures[:3]
        assert first == (shapes[9], shapes[4], shapes[3])


def test_a_past_study_and_the_shipped_table_are_warm_starts(tmp_path: Path) -> None:
    folder = StudyFolder.of(tmp_path, "old")
    folder.keep_settings(CONFIG, [])
    name = "L2-D96-H3x32-F256-rope-V2048"
    for number, (rate, value) in enumerate(((1e-3, 5.0), (2e-3, 4.0))):
        trial = folder.trial(number, name, 0, rate)
        folder.write_trial(trial, CONFIG, name, 0, tmp_path / "store", rate)
        written = build(TrialConfig, json.loads((trial / "trial.json").read_text()), "x")
        assert written.training.learning_rate == rate
        assert trial.name.endswith(f"-s0-lr{rate:g}")
        result = {"architecture": name, "seed": 0, "tokens": 4096, "loss": value}
        (trial / "result.json").write_text(json.dumps(sealed(result)))
    [prior] = read_priors(SearchConfig(strategy="tpe", warm_start=("old",)), tmp_path)
    assert (prior.architecture.name, prior.loss, prior.source) == (name, 4.0, "old")
    recorded = read_priors(SearchConfig(strategy="tpe", warm_start=("march-2023",)), tmp_path)
    assert len(recorded) == 25
    assert recorded[0].loss == min(p.loss for p in recorded)
    assert Architecture.parse("L12-D768-H12x64-F3072-abs-xlayer-V30000") in [p.architecture for p in recorded]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "must have the columns name and loss"),
        ("name,loss\nL2,4\n", "'L2' is not an architecture name"),
        (
            "name,loss\nL2-D96-H3x32-F256,inf\n",
            r"past\.csv: row 2, column loss: must be a finite number, not \"inf\"\.",
        ),
        ("name,loss\n#\nL2-D96-H3x32-F256,x\n", r"row 3, column loss: must be a finite number, not \"x\"\."),
        ("name,loss\nL2-D96-H3x32-F256,\n", r"row 2, column loss: must be a finite number, not empty\."),
        ("name,loss\nL2-D96-H3x32-F256,3,14\n", "row 2 has 3 cells, but the first row has 2"),
        ("name,loss\nL2-D96-H3x32-F256\n", "row 2 has 1 cells, but the first row has 2"),
        ("name,loss,loss\n", 'separated by commas; its first row is "name,loss,loss"'),
        ("name;loss\nL2-D96-H3x32-F256;3\n", 'separated by commas; its first row is "name;loss"'),
        ("", "separated by commas; it is empty"),
        (
            "name,loss,tokens\nL2-D96-H3x32-F256,3,\n",
            "row 2, column tokens: must be a count of at least 0, .* not empty",
        ),
        ("name,loss,tokens\nL2-D96-H3x32-F256,3,-1\n", 'row 2, column tokens: must be a count of at least 0, .* "-1"'),
        (
            "name,loss,tokens\nL2-D96-H3x32-F256,3,nan\n",
            'row 2, column tokens: must be a count of at least 0, .* "nan"',
        ),
        ("name,loss\nL2-D96-H3x32-F256\0,3\n", "row 2"),
        (f"name,loss\n{'x' * 200_000},3\n", r"row 2: field larger than field limit"),
        ("name,loss\n", "which holds no complete trial"),
    ],
)
def test_a_bad_warm_start_table_is_a_one_line_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_priors(SearchConfig(strategy="tpe", warm_start=(table(tmp_path, text),)), tmp_path)


def test_a_csv_file_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    text = (
        "\ufeffname, loss , remark, tokens\r\n\r\nL2-D96-H3x32-F256 , 3.5, Fu\xdfnote, 1e6\r\n"
        'L2-D96-H3x32-F256, 3.25, "a, b", 2 M\r\n,,,\r\n'
    )
    (tmp_path / "past.csv").write_bytes(text.encode("utf-8").replace(b"\xc3\x9f", b"\xdf"))  # a Latin-1 letter
    [prior] = read_priors(SearchConfig(strategy="tpe", warm_start=("past.csv",)), tmp_path)
    assert (prior.architecture.name, prior.loss) == ("L2-D96-H3x32-F256", 3.25)


def test_all_faulty_rows_of_a_warm_start_are_told_at_once(tmp_path: Path) -> None:
    rows = ["name,loss", "L2-D96-H3x32-F256,3", "L2,nan", *(f"L2-D96-H3x32-F{n},x" for n in range(1, 60))]
    with pytest.raises(ConfigError) as caught:
        read_priors(SearchConfig(strategy="tpe", warm_start=(table(tmp_path, "\n".join(rows)),)), tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("past.csv: 61 faults:")
    assert lines[1].strip().startswith("row 3, column name: 'L2' is not an architecture name")
    assert lines[2].strip() == 'row 3, column loss: must be a finite number, not "nan".'
    assert lines[-1].strip() == "and 41 more."


def test_faults_of_a_row_of_a_warm_start_have_a_fixed_order(tmp_path: Path) -> None:
    past = table(tmp_path, "name,tokens,loss\nL2,x,y")
    with pytest.raises(ConfigError, match=r"(?s)column name.*column loss.*column tokens"):
        read_priors(SearchConfig(strategy="tpe", warm_start=(past,)), tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected a table of keys at the top level"),
        ({}, "expected a file of learning curves"),
        ({"runs": [3]}, r"runs\[0\] needs an architecture and evaluations"),
        ({"runs": [{"architecture": 3, "evaluations": []}]}, r"runs\[0\] needs an architecture and evaluations"),
        ({"runs": [{"architecture": "L2", "evaluations": [[1, 2]]}]}, r"runs\[0\]: 'L2' is not an architecture name"),
        (
            {"runs": [{"architecture": "L2-D96-H3x32-F256", "evaluations": [[1, float("nan")]]}]},
            "finite number, not nan",
        ),
        ({"runs": [{"architecture": "L2-D96-H3x32-F256", "evaluations": [[1, 10**400]]}]}, "finite number, not 1000"),
        ({"runs": [{"architecture": "L2-D96-H3x32-F256", "evaluations": [[1, "x"]]}]}, 'finite number, not "x"'),
    ],
    ids=range(8),
)
def test_bad_learning_curves_are_refused_with_their_run(tmp_path: Path, value: object, message: str) -> None:
    (tmp_path / "past.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=message):
        read_priors(SearchConfig(strategy="tpe", warm_start=("past.json",)), tmp_path)


def test_a_warm_start_is_read_before_the_space_is_solved(tmp_path: Path) -> None:
    wide = "num_layers = { min = 1, max = 1024 }\nnum_decoder_layers = { min = 1, max = 1024 }"
    (tmp_path / "wide.toml").write_text(f'[budget]\nparameters = "220M"\n[axes]\n{wide}\n')
    config = replace(searching(warm_start=(table(tmp_path, "a,b\n"),)), space="wide.toml", budget=None)
    with pytest.raises(ConfigError, match="must have the columns name and loss"):
        candidates.choose(config, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": (1e-3, 1e-3)}, "learning_rates must be distinct numbers"),
        ({"objectives": ("flops",)}, 'objectives must start with "loss"'),
        ({"objectives": ("loss", "flop")}, "of params, flops, memory, depth, tokens_per_second, each once, not"),
        ({"strategy": "cmaes", "objectives": ("loss", "flops")}, '"cmaes" takes one objective'),
        ({"strategy": "design", "warm_start": ("x",)}, 'strategy "design" does not use warm_start'),
        ({"warm_start_trials": 2}, "warm_start_trials must not be negative, and needs warm_start"),
    ],
)
def test_invalid_search_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        searching(**settings)


def test_a_missing_warm_start_and_a_wrong_vocabulary_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'warm_start has "march-2022", .* Did you mean "march-2023"\?'):
        candidates.choose(searching(warm_start=("march-2022",)), tmp_path)
    with pytest.raises(
        ConfigError, match=r"vocab_size is 4,096, but \[axes\] vocab_size of the space cpu-demo is 2,048"
    ):
        candidates.choose(replace(CONFIG, data=DataConfig(vocab_size=4096)), tmp_path)


def test_learning_rates_are_in_the_plan_and_in_the_settings(tmp_path: Path) -> None:
    config = searching(strategy="design", trials=3, learning_rates=(1e-3, 4e-3), seeds=(0, 1))
    wanted = candidates.initial_trials(candidates.choose(config, tmp_path), config)
    assert len(wanted) == 3 * 2 * 2
    assert {w.learning_rate for w in wanted} == {1e-3, 4e-3}
    assert asdict(config)["search"]["learning_rates"] == (1e-3, 4e-3)
