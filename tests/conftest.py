"""Options, marks and fixtures of all tests: a small prepared store, and trials that nothing disturbed."""

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import local_postgres
import pytest
from helpers.command_line import Command, command_in_process
from helpers.trials import DATA, MakeTrial, run_trial, trial_maker

# A shell's background jobs ignore SIGINT, and so would everything that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# torch's compiler loads setuptools, which refuses to replace a distutils that another test has loaded.
os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it; tables are to be as wide as in a pipe


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --all."""
    parser.addoption("--all", action="store_true", help="also run the tests that kill, damage or train for long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip torture tests without --all."""
    if not config.getoption("--all"):
        for item in items:
            if item.get_closest_marker("torture"):
                item.add_marker(pytest.mark.skip(reason="kills, damages or trains for long: use --all to run it"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`march-search` in this process; what is not an error of the user is raised."""
    return command_in_process(capsys)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 200 small texts of made-up words."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(300)]
    for number in range(200):
        (folder / f"{number:03d}.txt").write_text(" ".join(rng.choices(words, k=120)))
    return folder


@pytest.fixture(scope="session")
def store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, tokenised."""
    from march_search.data.prepare import prepare

    return prepare(replace(DATA, corpus=str(corpus)), tmp_path_factory.mktemp("root"), corpus, tokens=1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real PostgreSQL. In CI it must be installed."""
    missing = local_postgres.why_not()
    if missing:
        assert os.environ.get("CI") != "true", missing
        pytest.skip(missing)
    with local_postgres.server() as url:
        yield url


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: small products only wait for a second one, endlessly on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def _eager_flex() -> object:
    import torch

    from march_search.model import flex

    flex.allow_recompilations(flex.KERNELS)
    return torch.compile(flex._biased, backend="eager", dynamic=False, fullgraph=True)


@pytest.fixture
def dense_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let FlexAttention run its dense forward and backward pass on a CPU, without a compiler."""
    import torch.nn.attention.flex_attention as module

    from march_search.model import flex

    monkeypatch.setattr(module, "_validate_device", lambda *_: None, raising=False)
    monkeypatch.setattr(flex, "_compiled", _eager_flex)


@pytest.fixture
def make_trial(store: Path, tmp_path: Path) -> MakeTrial:
    """A function that makes trial folders: `make_trial("name", ranks=2, zero_stage=1)`."""
    return trial_maker(store, tmp_path)


@pytest.fixture(scope="session")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial that ran from start to end in one process."""
    folder = trial_maker(store, tmp_path_factory.mktemp("trials"))("undisturbed")
    ended = run_trial(folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="session")
def undisturbed_on_two(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two ranks."""
    folder = trial_maker(store, tmp_path_factory.mktemp("trials"))("undisturbed", ranks=2)
    ended = run_trial(folder)
    assert ended.returncode == 0, ended.stderr
    return folder
