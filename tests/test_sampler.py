"""Whatever Optuna proposes, the sampler tries only feasible shapes, and each only once."""

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
from helpers.forks import forks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from march_search import Architecture, SearchSpace, solve
from march_search.config import ADAPTIVE
from march_search.errors import ConfigError, EmptySetError
from march_search.sampler.dimensions import axis_value
from march_search.sampler.feasible_sampler import FeasibleSampler
from march_search.sampler.neighbours import Neighbours
from march_search.space.axes import AXES
from march_search.space.feasible_set import FeasibleSet

REPOSITORY = Path(__file__).parent.parent
optuna.logging.set_verbosity(optuna.logging.ERROR)


def space(**axes: object) -> SearchSpace:
    """Return a space of small models with changed axes."""
    table = {
        "num_layers": [1, 2, 3],
        "d_model": [64, 96, 128],
        "num_heads": [2, 4],
        "d_kv": [16, 32],
        "d_ff": {"min": 64, "max": 1024, "multiple_of": 64},
        "feed_forward_proj": ["relu", "gated-gelu"],
        "vocab_size": 2048,
    }
    budget = {"parameters": "500k", "tolerance": "5%"}
    return SearchSpace.from_table({"budget": budget, "axes": table | axes})


FOUND = solve(space())
SMALL = solve(space(d_model=96, d_kv=32))


def loss(a: Architecture) -> float:
    """Return a loss that is lowest for two wide layers."""
    return abs(a.num_layers - 2) + abs(a.d_model - 128) / 64 + 0.3 * (a.feed_forward_proj == "relu")


def optimized(found: FeasibleSet, inner: object, n: int, **options: object) -> optuna.Study:
    """Run a study of `n` trials."""
    sampler = FeasibleSampler(found, inner, **options)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: loss(sampler.suggest(trial)), n_trials=n)
    return study


def tried(study: optuna.Study) -> list[Architecture]:
    """Return the architectures that a study tried, in order."""
    return [Architecture.parse(t.user_attrs["architecture"]) for t in study.trials]


@pytest.mark.parametrize("inner", ADAPTIVE)
def test_every_sampler_tries_members_only_and_each_once(inner: str) -> None:
    many = 13 if inner == "gp" else 25  # a Gaussian process is fitted from the 11th on, which is slow
    study = optimized(FOUND, inner, many)
    shapes = tried(study)
    assert len(shapes) == len(set(shapes)) == many
    assert all(a in FOUND for a in shapes)
    sampler = study.sampler
    for trial, shape in zip(study.trials, shapes, strict=True):
        assert trial.params == sampler.dimensions.params(shape)
        assert all(type(value) in (int, str) for value in trial.params.values())
    assert len({tuple(sorted(t.distributions.items(), key=str)) for t in study.trials}) == 1


@pytest.mark.parametrize("inner", [s for s in ADAPTIVE if s != "gp"])
@pytest.mark.parametrize(
    "axes",
    [
        {
            "structure": ["encoder-decoder", "decoder-only"],
            "num_decoder_layers": [1, 2],
            "tie_word_embeddings": [True, False],
        },
        {"bottleneck": ["none", "flat"], "d_bottleneck": [32, 64], "share_layers": [1, 2, "all"]},
        {"length_reduction": [1.0, 0.5], "position": ["relative", "absolute"], "max_length": [128, 256]},
        {"num_layers": 1, "d_model": 96, "num_heads": 4, "d_kv": 32, "feed_forward_proj": "relu"},
        {"num_key_value_heads": [1, 2, 4], "qk_norm": ["none", "all"], "bias": ["qkv", "all"], "norm": "layer"},
        {
            "structure": "decoder-only",
            "position": ["rotary", "none"],
            "rotary_base": [10000, 1e6],
            "attention_window": ["none", 16, 32],
            "global_every": [0, 2],
            "parallel_block": [False, True],
            "logit_softcap": ["none", 30],
        },
    ],
    ids=["structure", "bottleneck", "floats", "one axis", "groups", "windows"],
)
def test_every_axis_of_a_space_can_vary(axes: dict[str, object], inner: str) -> None:
    found = solve(space(**axes).with_budget(tolerance="30%"))
    shapes = tried(optimized(found, inner, 20))
    assert len(set(shapes)) == len(shapes) == min(20, len(found))
    assert all(a in found for a in shapes)
    dimensions = FeasibleSampler(found).dimensions
    assert all(dimensions.architecture(dimensions.params(a)) == a for a in shapes)


@pytest.mark.parametrize("inner", ADAPTIVE)
def test_a_study_ends_when_every_member_has_been_tried(inner: str) -> None:
    study = optimized(SMALL, inner, len(SMALL) + 10)
    assert sorted(SMALL.index(a) for a in tried(study)) == list(range(len(SMALL)))
    assert {t.state for t in study.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize(
    "inner",
    [
        optuna.samplers.NSGAIISampler(seed=0),
        optuna.samplers.TPESampler(seed=0, multivariate=False, n_startup_trials=5),
    ],
    ids=["NSGA-II", "univariate TPE"],
)
def test_any_sampler_of_optuna_can_be_used(inner: optuna.samplers.BaseSampler) -> None:
    shapes = tried(optimized(FOUND, inner, 15))
    assert len(set(shapes)) == 15
    assert all(a in FOUND for a in shapes)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([32, 64, 96, 128]), min_size=1, max_size=3, unique=True),
    st.booleans(),
    st.sampled_from(["tpe", "random", "qmc"]),
    st.integers(0, 99),
)
def test_small_spaces_are_exhausted_without_repetition(
    layers: list[int], widths: list[int], unequal: bool, inner: str, seed: int
) -> None:
    axes = {"num_layers": layers, "d_model": widths, "num_heads": 2, "d_ff": [64, 256, 320, 640]}
    found = solve(space(**axes, **({"num_decoder_layers": [1, 2]} if unequal else {})).with_budget(tolerance="30%"))
    if len(found):
        shapes = tried(optimized(found, inner, 30, seed=seed))
        assert len(set(shapes)) == len(shapes) == min(30, len(found))
        assert all(a in found for a in shapes)


def test_tpe_finds_better_shapes_than_random_search() -> None:
    found = solve(SearchSpace.load("cpu-demo"))
    mean = {inner: np.mean([loss(a) for s in range(3) for a in tried(optimized(found, inner, 40, seed=s))[20:]])
            for inner in ("tpe", "random")}  # fmt: skip
    assert mean["tpe"] < 0.8 * mean["random"]


def test_the_same_seed_gives_the_same_study() -> None:
    assert tried(optimized(FOUND, "tpe", 15, seed=3)) == tried(optimized(FOUND, "tpe", 15, seed=3))
    assert tried(optimized(FOUND, "tpe", 15, seed=3)) != tried(optimized(FOUND, "tpe", 15, seed=4))


@pytest.mark.parametrize("order", [1, -1])
def test_parameters_suggested_one_by_one_are_feasible_in_any_order(order: int) -> None:
    def objective(trial: Trial) -> float:
        ways = {
            "num_layers": lambda: trial.suggest_int("num_layers", 1, 3),
            "d_model": lambda: trial.suggest_int("d_model", 32, 512, step=32),
            "num_heads": lambda: trial.suggest_int("num_heads", 1, 8),
            "d_kv": lambda: trial.suggest_int("d_kv", 16, 32),
            "d_ff": lambda: trial.suggest_int("d_ff", 64, 1024, step=64),
            "feed_forward_proj": lambda: trial.suggest_categorical("feed_forward_proj", ["relu", "gated-gelu"]),
        }
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        values = {axis: way() for axis, way in list(ways.items())[::order]}
        shapes.append(Architecture(**values, vocab_size=2048))
        return loss(shapes[-1]) + rate

    shapes: list[Architecture] = []
    study = optuna.create_study(sampler=FeasibleSampler(FOUND, "tpe", seed=1))
    study.optimize(objective, n_trials=20)
    assert all(a in FOUND for a in shapes)
    assert len(set(shapes)) == 20


def test_a_range_without_the_chosen_value_is_refused_by_name() -> None:
    study = optuna.create_study(sampler=FeasibleSampler(FOUND, "random"))
    with pytest.raises(
        ConfigError, match=r"the range given for d_ff, .*, does not contain the value of L\d-D\d+-.*: use"
    ):
        study.optimize(lambda trial: trial.suggest_int("d_ff", 1, 8), n_trials=1)


def test_distributions_are_those_of_the_members() -> None:
    ranges = FeasibleSampler(FOUND).distributions
    assert ranges["d_model"] == IntDistribution(64, 128, step=32)
    assert ranges["d_ff"] == IntDistribution(FOUND.members().d_ff.min(), FOUND.members().d_ff.max(), step=64)
    assert ranges["feed_forward_proj"] == CategoricalDistribution(["relu", "gated-gelu"])
    assert ranges["vocab_size"].single()
    listed = FeasibleSampler(FOUND, listed=[Architecture(d_model=100, vocab_size=2048)])
    assert listed.distributions["d_model"] == IntDistribution(64, 128, step=4)


def test_enqueued_shapes_and_partial_shapes_are_respected() -> None:
    sampler = FeasibleSampler(FOUND, "tpe")
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(sampler.dimensions.params(FOUND[7]))
    study.enqueue_trial({"d_model": 128, "num_layers": 1})
    study.optimize(lambda trial: loss(sampler.suggest(trial)), n_trials=12)
    first, second = study.trials[:2]
    assert sampler.dimensions.architecture(first.params) == FOUND[7]
    assert (second.params["d_model"], second.params["num_layers"]) == (128, 1)
    shapes = [sampler.dimensions.architecture(t.params) for t in study.trials]
    assert len(set(shapes)) == 12
    assert all(a in FOUND for a in shapes)
    study.enqueue_trial({"d_model": 65})
    with pytest.raises(ConfigError, match="no feasible architecture has d_model = 65, which the enqueued"):
        sampler.suggest(study.ask())


def test_an_exhausted_set_ends_the_study_with_one_message(caplog: pytest.LogCaptureFixture) -> None:
    study = optuna.create_study(sampler=(sampler := FeasibleSampler(SMALL, "random")))
    study.optimize(lambda trial: loss(sampler.suggest(trial)), n_trials=len(SMALL) + 5)
    assert len(study.trials) == len(SMALL)
    assert [record.message for record in caplog.records if record.name.startswith("march_search")] == [
        f"All {len(SMALL):,} feasible architectures are taken: the study ends after the running trials. For more, "
        "widen the space or the tolerance, or set replicates."
    ]


def test_the_sampler_of_the_package_loads_without_torch() -> None:
    code = "import sys; from march_search import FeasibleSampler; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_an_exhausted_partial_shape_does_not_end_the_study() -> None:
    sampler = FeasibleSampler(SMALL, "random")
    study = optuna.create_study(sampler=sampler)
    layers = [a.num_layers for a in SMALL]
    for _ in range(layers.count(1) + 1):
        study.enqueue_trial({"num_layers": 1})
    study.optimize(lambda trial: loss(sampler.suggest(trial)), n_trials=layers.count(1) + 3)
    states = [t.state for t in study.trials]
    assert states.count(TrialState.PRUNED) == 1
    assert states[-2:] == [TrialState.COMPLETE] * 2
    study.enqueue_trial({"num_layers": 1})
    with pytest.raises(optuna.TrialPruned, match="every feasible architecture with num_layers = 1 has been tried"):
        sampler.suggest(study.ask())


def test_replicates_are_as_many_as_asked_for() -> None:
    few = solve(space(num_layers=1, d_model=96, d_kv=32))
    study = optimized(few, "tpe", 1000, replicates=3)
    assert set(Counter(tried(study)).values()) == {3}
    assert len(set(tried(study))) == len(few)


def test_suggesting_after_exhaustion_prunes_the_trial_with_a_reason() -> None:
    few = solve(space(num_layers=1, d_model=96, d_kv=32))
    study = optimized(few, "random", len(few))
    with pytest.raises(optuna.TrialPruned, match=f"all {len(few)} feasible architectures have been tried"):
        study.sampler.suggest(study.ask())


def test_several_objectives_and_pruned_trials_are_supported() -> None:
    sampler = FeasibleSampler(FOUND, "tpe")
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(lambda t: (loss(a := sampler.suggest(t)), a.flops_per_token()), n_trials=15)
    assert len(set(tried(study))) == 15
    study = optuna.create_study(sampler=sampler)
    for number in range(15):
        trial = study.ask()
        trial.report(loss(sampler.suggest(trial)), step=1)
        study.tell(trial, state=TrialState.PRUNED if number % 2 else TrialState.FAIL)
    assert len(set(tried(study))) == 15


def test_threads_never_try_one_shape_twice() -> None:
    sampler = FeasibleSampler(SMALL, "random")
    study, barrier = optuna.create_study(sampler=sampler), threading.Barrier(4, timeout=30)

    def work() -> None:
        barrier.wait()
        for _ in range(len(SMALL) // 4):
            trial = study.ask()
            study.tell(trial, loss(sampler.suggest(trial)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(tried(study))) == len(tried(study)) == len(SMALL) // 4 * 4


def _exhaust(journal: Path) -> None:
    """Work on the study in a journal until all its shapes are tried."""
    few = solve(space(num_layers=[1, 2], d_model=96, d_kv=32))
    sampler, storage = FeasibleSampler(few, "random", seed=0), JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.load_study(study_name="s", storage=storage, sampler=sampler)
    study.optimize(lambda trial: loss(sampler.suggest(trial)), n_trials=1000)


def test_processes_on_one_storage_never_try_one_shape_twice(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    study = optuna.create_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(journal))))
    workers = [forks().Process(target=_exhaust, args=(journal,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    few = solve(space(num_layers=[1, 2], d_model=96, d_kv=32))
    names = [t.user_attrs["architecture"] for t in study.trials if t.state == TrialState.COMPLETE]
    assert sorted(names) == sorted(a.name for a in few)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(16, 300), st.integers(1, 1500), st.booleans())
def test_the_nearest_untried_member_is_the_nearest_of_all(
    seed: int, n: int, width: int, d_ff: int, gated: bool
) -> None:
    target = Architecture(num_layers=n, d_model=width, d_ff=d_ff, num_heads=3, d_kv=20, vocab_size=2048,
                          feed_forward_proj="gated-gelu" if gated else "silu")  # fmt: skip
    taken = set(np.random.default_rng(seed).choice(len(FOUND), len(FOUND) // 2, replace=False).tolist())
    wanted = {axis: axis_value(target, axis) for axis in AXES}
    number = Neighbours(FOUND).nearest(wanted, taken, {})
    distances = FOUND.members().octaves_from(target)
    assert number not in taken
    assert np.isclose(distances[number], min(d for k, d in enumerate(distances) if k not in taken))
    assert Neighbours(FOUND).nearest(wanted, range(len(FOUND)), {}) is None


def test_bad_choices_are_one_line_errors() -> None:
    with pytest.raises(ConfigError, match=r'unknown sampler "tpee"\. Did you mean "tpe"\?'):
        FeasibleSampler(FOUND, "tpee")
    with pytest.raises(EmptySetError, match="nothing to sample: no architecture has 1 parameter"):
        FeasibleSampler(solve(space().with_budget("1")))


def test_the_example_runs() -> None:
    command = [sys.executable, str(REPOSITORY / "examples" / "optuna_sampler.py")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("60 trials: 60 meet the budget, 60 are distinct\nbest: L12-D768-")
    assert ended.stderr == ""


def test_studies_of_earlier_versions_can_get_further_trials() -> None:
    from march_search.storage.trials import distributions, enqueue

    recorded = ("relu", "gelu", "silu", "gated-relu", "gated-gelu", "gated-silu")
    shapes = list(FOUND[:2])
    ranges = distributions(shapes)
    assert ranges["feed_forward_proj"] == CategoricalDistribution(recorded)
    study = optuna.create_study()
    assert enqueue(study, [(a, 0) for a in shapes], ranges, 1e-3) == 2
    newer = Architecture.parse("L2-D64-H2x16-F96-exactgelu")
    assert distributions([newer])["feed_forward_proj"].choices == (*recorded, "exact-gelu")
