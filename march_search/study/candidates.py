"""Which architectures a study tries, in order, checked against its data and its space."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from march_search.architecture import Architecture
from march_search.closest import solve_or_explain
from march_search.config import StudyConfig
from march_search.ds_config import ds_config
from march_search.errors import ConfigError
from march_search.scaling import base_shape
from march_search.solver import FeasibleSet
from march_search.space import SearchSpace
from march_search.study.neighbours import Neighbours
from march_search.study.warm import Prior, best_members, read_priors


class Planned(NamedTuple):
    """A trial that a study wants."""

    architecture: Architecture
    seed: int
    """Of initialisation and order of the data."""
    learning_rate: float
    """Peak learning rate."""


@dataclass(frozen=True)
class Candidates:
    """What a study will train, or begins with where a sampler chooses as results come in."""

    found: FeasibleSet
    """The feasible set they come from."""
    architectures: tuple[Architecture, ...]
    """All different, in the order in which they are tried."""
    priors: tuple[Prior, ...] = ()
    """Results from elsewhere, for the sampler."""

    @property
    def off_budget(self) -> tuple[Architecture, ...]:
        """Listed architectures that are no members of the feasible set."""
        return tuple(a for a in self.architectures if a not in self.found)


def load_space(config: StudyConfig, folder: Path) -> SearchSpace:
    """The study's space with the study's budget; a TOML file is looked for beside the study's."""
    beside = folder / config.space
    space = SearchSpace.load(beside if beside.is_file() else config.space)
    if config.budget is None and config.tolerance is None and space.budget is not None:
        return space
    return space.with_budget(config.budget, config.tolerance)


def choose(config: StudyConfig, folder: Path) -> Candidates:
    """The study's architectures: the listed ones, the best of a warm start, then those its strategy takes.

    Raises:
        EmptySetError: nothing is feasible.
        ArchitectureError: a listed name cannot exist.
        ConfigError: fewer are feasible than asked for, or an architecture does not fit the data.
    """
    search = config.search
    found = solve_or_explain(load_space(config, folder))
    listed = [Architecture.parse(name) for name in search.architectures]
    if search.strategy == "list" or search.adaptive:
        picked = []
    elif search.strategy == "all":
        picked = list(found)
    elif search.strategy == "sample":
        picked = list(found.sample(min(search.trials, len(found)), search.seed))
    else:
        picked = list(found.design(min(search.trials, len(found)), search.spread, search.seed))
    priors = read_priors(search, folder)
    best = best_members(priors, found, search.warm_start_trials)
    chosen = list(dict.fromkeys(listed + best + picked))
    if search.strategy in ("sample", "design"):
        chosen = chosen[: max(search.trials, len(listed) + len(best))]
        if len(chosen) < search.trials:
            raise ConfigError(
                f"[search]: trials asks for {search.trials} architectures, and only {len(chosen)} are feasible."
            )
    ds_config(config.training, config.batch)
    base_shape(config.training)
    for architecture in chosen:
        _check_fit(architecture, config)
    if search.adaptive:
        _check_all_fit(found, config)
    if len({architecture.structure for architecture in chosen}) > 1:
        raise ConfigError(
            "the candidates are encoder-decoder and decoder-only models, whose losses do not compare: make them two "
            "studies."
        )
    return Candidates(found, tuple(chosen), priors)


def _check_all_fit(found: FeasibleSet, config: StudyConfig) -> None:
    """Refuses a set in which a sampler might choose what cannot read the study's examples."""
    values = Neighbours(found).values
    if len(values("structure")) > 1:
        raise ConfigError(
            "the space has encoder-decoder and decoder-only models, whose losses do not compare: make them two spaces."
        )
    for vocab_size, position, max_length in product(values("vocab_size"), values("position"), values("max_length")):
        fields = {"vocab_size": vocab_size, "position": position, "max_length": max_length}
        _check_fit(replace(found[0], **fields), config)


def _check_fit(a: Architecture, config: StudyConfig) -> None:
    """Refuses an architecture that cannot read the study's examples."""
    data = config.data
    if a.vocab_size != data.vocab_size:
        raise ConfigError(
            f"{a.name} has a vocabulary of {a.vocab_size:,}, [data] vocab_size is {data.vocab_size:,}; make them one."
        )
    longest = data.sequence_length if a.structure == "decoder-only" else max(data.lengths.input, data.lengths.target)
    if a.position == "absolute" and longest > a.max_length:
        raise ConfigError(f"{a.name} has {a.max_length} positions, too few for examples of {longest} tokens.")


def with_seeds(candidates: Candidates, config: StudyConfig) -> list[tuple[Architecture, int]]:
    """Every trial of the study, in order: all architectures with the first seed, then with the next."""
    return [(a, seed) for seed in config.search.seeds for a in candidates.architectures]


def planned(candidates: Candidates, config: StudyConfig) -> list[Planned]:
    """Every trial that the study begins with: as `with_seeds`, and each with every learning rate."""
    return [Planned(a, seed, rate) for a, seed in with_seeds(candidates, config) for rate in rates(config)]


def rates(config: StudyConfig) -> tuple[float, ...]:
    """The learning rates that each architecture and seed is trained with."""
    return config.search.learning_rates or (config.training.learning_rate,)


def how_many(candidates: Candidates, config: StudyConfig) -> int:
    """Architectures that the study will train; with a sampler, as many as it is allowed."""
    listed = len(candidates.architectures)
    if not config.search.adaptive:
        return listed
    return max(listed, min(config.search.trials, len(candidates.found) + len(candidates.off_budget)))
