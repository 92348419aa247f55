"""`march-search study create`: prepare a study on a machine without GPUs, so that workers elsewhere can train it."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs
from march_search.commands.options import STUDY_HELP, add_action, add_examples, add_root, amount, root_option

if TYPE_CHECKING:
    from march_search.commands.studies import NamedStudy
    from march_search.config.study_config import StudyConfig
    from march_search.planning.candidates import Candidates
    from march_search.study.runner import StudyRun


def add_start_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `study run` and `study create` share."""
    parser.add_argument("study", metavar="STUDY", nargs="?", help=STUDY_HELP)
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        help="settings that replace those of the file, e.g. training.tokens=2M devices.ranks=4 "
        "(all keys: march-search keys)",
    )
    parser.add_argument("--config", metavar="FILE", help="the study's TOML file, instead of STUDY")
    add_root(parser)
    parser.add_argument(
        "--device", metavar="D", help="device of a trial, for the cost estimate: A5000, 8xH100, 312TFLOPs,80GB, cpu"
    )
    parser.add_argument("--rate", type=amount, metavar="X", help="price of one device per hour, in any currency")


def add_actions(actions: Verbs, run: Callable[[argparse.Namespace], int]) -> None:
    """Add the action to `march-search study`.

    Args:
        actions: The actions of `march-search study`.
        run: The function of `study run`; with `options.create` it returns before training.
    """
    creating = add_action(
        actions,
        "create",
        "check a study, prepare its text and record its trials, without training: for the login node of a cluster",
    )
    add_start_options(creating)
    add_examples(
        creating,
        "march-search study create my.toml --root /shared/runs",
        "march-search study create my.toml devices.kind=cuda --device 4xA100",
    )
    creating.set_defaults(run=run, create=True, dry_run=False, extend=False, up_to=None)


def recorded_run(
    study: "NamedStudy", config: "StudyConfig", base: Path, chosen: "Candidates", plan: dict[str, Any]
) -> "StudyRun":
    """Record a study in its folder, prepare its text, and return its run, which has not started."""
    from march_search.commands.prepare import prepared_store, repeats
    from march_search.data.ngrams import reference_nats
    from march_search.display.tables import console
    from march_search.files.atomic import make_folder
    from march_search.files.json_tables import read_json, sealed, write_json
    from march_search.planning import study_state
    from march_search.planning.candidates import initial_trials
    from march_search.study.runner import StudyRun

    folder, block = study.folder, chosen.found.space.block
    if block is not None:
        from march_search.model.block_check import check_block

        print(f"Block {block.name}: {check_block(block)}.", file=sys.stderr, flush=True)
    root = make_folder(folder.path.parent)
    folder.keep_settings(config, chosen.architectures, study.overrides)
    study_state.keep_candidates(folder.path, chosen)
    write_json(folder.path / "plan.json", sealed(plan))
    store = prepared_store(config, root, base)
    console(stderr=True).print(repeats(config, store))
    folder.keep_store(store.folder)
    write_json(folder.path / "tokenizer.json", read_json(store.folder / "tokenizer.json"))
    write_json(folder.path / "reference.json", sealed(reference_nats(store, config.data)))
    return StudyRun(config, folder, store.folder, initial_trials(chosen, config))


def create(run: "StudyRun") -> int:
    """Add the trials of a recorded study to its storage, and print the commands that train them."""
    number, name = run.create().total, run.folder.path.name
    root = root_option(run.folder.path.parent)
    print(f"{name}: created with {number} trials; nothing was trained.", file=sys.stderr)
    print(f"To train on this machine: march-search study worker {name}{root}", file=sys.stderr)
    print(f"To train with Slurm: march-search study worker {name}{root} --sbatch | sbatch", file=sys.stderr)
    return 0
