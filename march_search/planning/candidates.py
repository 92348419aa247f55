"""Choose the architectures that a study tries, in order, and check them against its data and search space."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig
from march_search.config.deepspeed_check import check_deepspeed
from march_search.config.hostfile import addresses
from march_search.config.loader import refuse
from march_search.config.scaling import base_shape
from march_search.cost.setup import study_setup
from march_search.errors import ConfigError
from march_search.planning.warm_start import Prior, best_members, read_priors
from march_search.space.feasible_set import FeasibleSet
from march_search.space.infeasible import solve_or_explain
from march_search.space.named import named_space
from march_search.space.space import SearchSpace


class Planned(NamedTuple):
    """A planned trial."""

    architecture: Architecture
    seed: int
    """Seed of initialisation and data order."""
    learning_rate: float
    """Peak learning rate."""


@dataclass(frozen=True)
class Candidates:
    """Architectures that a study trains; with an Optuna sampler, those it starts with."""

    found: FeasibleSet
    """Feasible set that the architectures come from."""
    architectures: tuple[Architecture, ...]
    """Distinct architectures, in the order in which they are tried."""
    priors: tuple[Prior, ...] = ()
    """Warm-start results for the sampler."""

    @property
    def structure(self) -> str:
        """Structure of all architectures."""
        return [*self.architectures, self.found[0]][0].structure

    @property
    def off_budget(self) -> tuple[Architecture, ...]:
        """Listed architectures that are not members of the feasible set."""
        return tuple(a for a in self.architectures if a not in self.found)


def load_space(config: StudyConfig, folder: Path) -> SearchSpace:
    """Return the search space with the study's parameter budget, and its vocabulary where the space leaves that open.

    A file in `folder` precedes a shipped space. Budgets of other kinds are those of the study's own trials.

    Raises:
        ConfigError: If the space or the budget is not valid, or if space and study set different vocabularies.
    """
    beside = folder / config.space
    name = beside if beside.is_file() else config.space
    space = named_space(name, config.budget, config.tolerance, vocab_size=config.data.vocab_size)
    if space.limits:
        space = _for_trials(space, config)
    vocabulary = (config.data.vocab_size,)
    if space.vocab_size_is_open:
        space = replace(space, axes=space.axes | {"vocab_size": vocabulary})
    elif space.axes["vocab_size"] != vocabulary and config.search.strategy != "list":
        sizes = " or ".join(f"{size:,}" for size in space.axes["vocab_size"])
        raise ConfigError(
            f"[data] vocab_size is {config.data.vocab_size:,}, but [axes] vocab_size of the space {space.name} is "
            f"{sizes}: remove one of the two, or make them equal."
        )
    return space


def _for_trials(space: SearchSpace, config: StudyConfig) -> SearchSpace:
    """Return the space with budgets about the study's trials; raise ConfigError if the space describes other trials."""
    device, ranks = space.limits[0].setup.device, config.devices.ranks
    if "device" in space.trial and device.count == 1:
        device = replace(device, count=ranks)
    faults = []
    if "device" in space.trial and device.count != ranks:
        faults.append(
            f"[budget] device of the space {space.name} is {device}, but a trial has [devices] ranks = {ranks}: name "
            f"one {device.name}, or make them equal."
        )
    setup = study_setup(config, device)
    for name, value in space.trial.items():
        if name != "device" and value != (own := getattr(setup, name)):
            faults.append(
                f"[budget] {name} of the space {space.name} is {value}, but the study's trials have {own}: remove it "
                "from the space, so that the study's value counts, or make the two equal."
            )
    refuse(faults)
    return replace(space, limits=tuple(replace(limit, setup=setup) for limit in space.limits))


def structure(listed: Sequence[str], space: SearchSpace) -> str:
    """Return the structure of a study's models: that of its listed architectures, else that of its space."""
    return Architecture.parse(listed[0]).structure if listed else str(space.axes["structure"][0])


def choose(config: StudyConfig, folder: Path) -> Candidates:
    """Return the study's architectures: the listed ones, the best of a warm start, then those its strategy picks.

    Raises:
        EmptySetError: If no architecture is feasible.
        ArchitectureError: If a listed name is not a valid architecture.
        ConfigError: If DeepSpeed's settings or the host file are invalid, if fewer architectures are feasible than
            requested, or if one does not fit the data.
    """
    _check_settings(config)
    search = config.search
    priors = read_priors(search, folder)
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
    best = best_members(priors, found, search.warm_start_trials)
    chosen = list(dict.fromkeys(listed + best + picked))
    if search.strategy in ("sample", "design"):
        chosen = chosen[: max(search.trials, len(listed) + len(best))]
        if len(chosen) < search.trials:
            raise ConfigError(
                f"[search]: trials = {search.trials}, but only {len(chosen)} architectures are feasible; lower trials, "
                "or widen the space."
            )
    for architecture in chosen:
        _check_fit(architecture, config)
    if search.adaptive:
        _check_all_fit(found, config)
    if len({architecture.structure for architecture in chosen}) > 1:
        raise ConfigError(
            "the candidates include encoder-decoder and decoder-only models, whose losses are not comparable; use a "
            "separate study for each."
        )
    return Candidates(found, tuple(chosen), priors)


def _check_settings(config: StudyConfig) -> None:
    """Check what every trial would check when it starts, before solving takes time; raise one ConfigError for all."""
    faults: list[str] = []
    for check in (
        lambda: check_deepspeed(config.training, config.batch, config.search.learning_rates),
        lambda: base_shape(config.training),
        lambda: addresses(config.devices),
    ):
        try:
            check()
        except ConfigError as error:
            faults += error.faults
    refuse(faults)


def _check_all_fit(found: FeasibleSet, config: StudyConfig) -> None:
    """Check that all members of a feasible set can read the study's examples; raise ConfigError otherwise."""
    if len({combination.outer["structure"] for combination in found.combinations}) > 1:
        raise ConfigError(
            "the space has encoder-decoder and decoder-only models, whose losses are not comparable; use a separate "
            "space for each."
        )
    for architecture in _by_fit(found):
        _check_fit(architecture, config)


def _by_fit(found: FeasibleSet) -> list[Architecture]:
    """Return one member for each vocabulary, position encoding and `max_length` that members have together."""
    rows, points = dict[tuple[Any, ...], int](), found.intervals.mesh
    ends = [*found.starts[1:], len(points)]
    for combination, start, end in zip(found.combinations, found.starts, ends, strict=True):
        vocab_sizes = combination.mesh.values(points[start:end])["vocab_size"]
        for vocab_size, row in zip(*np.unique(vocab_sizes, return_index=True), strict=True):
            fit = (int(vocab_size), combination.outer["position"], combination.outer["max_length"])
            rows.setdefault(fit, int(start + row))
    return [found[int(found.begins[row])] for row in rows.values()]


def _check_fit(a: Architecture, config: StudyConfig) -> None:
    """Check that an architecture can read the study's examples; raise ConfigError otherwise."""
    data = config.data
    if a.vocab_size != data.vocab_size:
        raise ConfigError(
            f"{a.name} has a vocabulary of {a.vocab_size:,}, but [data] vocab_size is {data.vocab_size:,}; make them "
            "equal."
        )
    data.check_structure(a.structure)
    longest = data.sequence_length if a.structure == "decoder-only" else max(data.lengths.input, data.lengths.target)
    if a.position == "absolute" and longest > a.max_length:
        raise ConfigError(
            f"{a.name} has {a.max_length} positions, but examples have {longest} tokens; use a larger max_length or "
            "shorter examples."
        )


def with_seeds(candidates: Candidates, config: StudyConfig) -> list[tuple[Architecture, int]]:
    """Return the (architecture, seed) pairs of the study: all architectures with the first seed, then the next."""
    return [(a, seed) for seed in config.search.seeds for a in candidates.architectures]


def initial_trials(candidates: Candidates, config: StudyConfig) -> list[Planned]:
    """Return the trials that the study starts with: the pairs of `with_seeds`, each with every learning rate."""
    return [Planned(a, seed, rate) for a, seed in with_seeds(candidates, config) for rate in rates(config)]


def rates(config: StudyConfig) -> tuple[float, ...]:
    """Return the learning rates with which each architecture and seed is trained."""
    return config.search.learning_rates or (config.training.learning_rate,)


def how_many(candidates: Candidates, config: StudyConfig) -> int:
    """Return the number of architectures that the study trains; with an Optuna sampler, the maximum."""
    listed = len(candidates.architectures)
    if not config.search.adaptive:
        return listed
    return max(listed, min(config.search.trials, len(candidates.found) + len(candidates.off_budget)))
