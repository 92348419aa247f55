"""`march-search study new`: write a study whose plan fits a number of minutes."""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs
from march_search.commands.options import add_action, add_examples, amount

if TYPE_CHECKING:
    from march_search.config import StudyConfig
    from march_search.planning.measured_cpu import MeasuredCpu


def add_actions(actions: Verbs) -> None:
    """Add the action to `march-search study`."""
    new = add_action(actions, "new", "write a study that fits a number of minutes, with every setting explained")
    new.add_argument("file", metavar="FILE", help="TOML file to write; it must not exist")
    new.add_argument("--budget", metavar="N", required=True, help="parameters of every shape: 500K, 3M, t5-base")
    new.add_argument(
        "--corpus",
        metavar="TEXT",
        default="wikipedia-summaries",
        help="file, folder, glob, known corpus or hub:OWNER/NAME (default: wikipedia-summaries)",
    )
    time = new.add_mutually_exclusive_group(required=True)
    time.add_argument("--minutes", type=amount, metavar="X", help="minutes that the whole study may take")
    time.add_argument("--hours", type=amount, metavar="X", help="the same in hours")
    new.add_argument("--device", metavar="D", help="devices of the study: 8xH100, A5000, ... (default: this CPU)")
    add_examples(
        new,
        "march-search study new my.toml --budget 0.5M --corpus texts --minutes 10",
        "march-search study new big.toml --budget 220M --corpus wikipedia --device 8xH100 --hours 40",
    )
    new.set_defaults(run=run_new)


def run_new(options: argparse.Namespace) -> int:
    """Size the study, write it, and print what it does and the next commands."""
    from march_search.config.counts import parse_parameters
    from march_search.cost.devices import parse_device
    from march_search.errors import UsageError
    from march_search.files.atomic import write_output
    from march_search.planning import beginning, candidates, defaults, plan_cost, price
    from march_search.planning.measured_cpu import UNCERTAINTY, measured_cpu
    from march_search.storage.study_folder import StudyFolder
    from march_search.units import duration, plural, si

    path = Path(options.file)
    _check_target(path)
    StudyFolder.of(Path(), path.stem)
    seconds = options.hours * 3600 if options.hours else options.minutes * 60
    corpus = _from(options.corpus, path.parent)
    num_bytes = beginning.text_bytes(corpus, path.parent)
    device = None if options.device is None else parse_device(options.device)
    is_cpu = device is None or device.name == "cpu"
    wish = beginning.Wish(
        budget=options.budget,
        corpus=corpus,
        seconds=seconds,
        parallel=min(os.cpu_count() or 1, beginning.SHAPES[-1]) if device is None or is_cpu else device.count,
        is_cpu=is_cpu,
        precision="bf16" if not is_cpu or defaults.cpu_has_bf16() else "fp32",
    )
    config = beginning.draft(wish, num_bytes)
    measured: MeasuredCpu | None = None
    if device is None or is_cpu:
        measured = measured_cpu(config, candidates.choose(config, path.parent).architectures)
        if measured is None:
            raise UsageError("this machine's CPU could not be measured; see march-search doctor --only devices.")
        one = measured.device
    else:
        one = price.device_of(config, device.name)

    def most(sized: "StudyConfig", plan: dict[str, Any]) -> float:
        if measured is not None:
            return measured.seconds(sized, plan)[2]
        return float(plan["seconds"] + plan["confirm"]["seconds"]) * UNCERTAINTY

    config = beginning.fitted(config, wish, num_bytes, one, most)
    plan = price.priced_plan(config, candidates.choose(config, path.parent), one)
    if found := plan_cost.faults(plan):
        raise UsageError(
            f"{found[0].partition(':')[0]}: use a smaller --budget than {options.budget}, or a larger --device."
        )
    basis = f"{measured.device.basis}, {si(measured.tokens_per_second)} tokens/s together" if measured else str(one)
    write_output(path, _text(config, wish, num_bytes, basis, most(config, plan)))
    print(
        f"Wrote {path}: {plural(config.search.trials, 'shape')} of {options.budget} parameters, "
        f"{si(config.training.tokens)} tokens per trial "
        f"({config.training.tokens / parse_parameters(options.budget):.2g} per parameter), "
        f"at most {duration(most(config, plan))} by {basis}."
    )
    named = f" --device {shlex.quote(one.name)}" if measured is None else ""
    print(f"\nNext:\n  march-search study run {path} --dry-run{named}\n  march-search study run {path}")
    print(f"  march-search rank {path.stem}")
    return 0


def _check_target(path: Path) -> None:
    """Raise a UsageError if the file cannot be a new study."""
    from march_search.errors import UsageError

    if path.suffix != ".toml":
        raise UsageError(f"{path}: a study's file ends in .toml: use {path}.toml.")
    if path.exists():
        raise UsageError(f"{path} exists: use another name, or delete it.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist: create it.")


def _from(corpus: str, folder: Path) -> str:
    """Return a corpus as the study in `folder` has to name it: paths are given relative to the current folder."""
    here = Path(corpus).expanduser()
    if here.is_absolute() or not here.exists():
        return corpus
    return os.path.relpath(here, folder)


def _text(config: "StudyConfig", wish: Any, num_bytes: int | None, basis: str, most: float) -> str:
    """Return the study as TOML, every key with a comment."""
    from march_search.planning import beginning
    from march_search.units import duration, size

    data, training, pruner = config.data, config.training, config.pruner
    finalists = pruner.finalists
    text = "unknown size" if num_bytes is None else size(num_bytes)
    hardware = (
        "a CPU or GPU with bf16 in hardware is faster with it"
        if training.precision == "bf16"
        else ("this CPU has no bf16 in hardware")
    )
    lengths = (
        "small models learn to use short inputs first" if wish.is_cpu else "T5's; attention costs more with longer ones"
    )
    cores = "trials at a time, one per core" if wish.is_cpu else "trials at a time, each on a GPU of its own"
    lines = f"""\
# Planned for at most {duration(most)}: {basis}.
# All keys and their defaults: march-search keys
question = {_quoted(f"Which shape of {wish.budget} parameters has the lowest loss on {wish.corpus}?")}
space = "auto"                   # ranges of depth, width, heads and d_ff around the budget
budget = {_quoted(wish.budget)}                  # parameters of every shape
tolerance = {_quoted(str(config.tolerance))}                 # allowed difference from the budget

[search]
strategy = "design"              # shapes that are as different as possible
trials = {config.search.trials}                       # shapes to compare
seeds = [0]                      # the search trains each shape once; [confirm] adds seeds
seed = 0                         # chooses the shapes

[pruner]
kind = "rungs"                   # all shapes train to the first rung, and only the best to the end
rungs = {list(pruner.rungs)}                    # fraction of the tokens at which shapes are compared
finalists = {finalists}                    # shapes that train to the end, besides the first one, the baseline

[confirm]
confidence = 0.95                # further seeds, until the leader is separated from the other finalists
max_seeds = {config.confirm.max_seeds}                    # most seeds per shape

[data]
corpus = {_quoted(data.corpus)}   # {text} of text
vocab_size = {data.vocab_size}                 # trained on the corpus; the space takes it from here
sequence_length = {data.sequence_length}             # tokens per example; {lengths}
noise_density = {data.noise_density}              # part of an example that the model has to restore
validation_fraction = {data.validation_fraction}       # part of the documents that only evaluates
validation_sequences = {data.validation_sequences}       # examples per evaluation

[training]
tokens = {training.tokens:_}               # per trial: {training.steps:,} steps; what fits the time
global_batch_tokens = {training.global_batch_tokens:_}        # tokens per optimizer step
learning_rate = {training.learning_rate:g}            # usual for this size; [search] learning_rates tries several
schedule = "linear"              # falls to 0 at the end
warmup_tokens = {training.warmup_tokens:_}           # rises from 0 over {beginning.WARMUP_STEPS} steps
precision = {_quoted(training.precision)}               # {hardware}
evaluations = {training.evaluations}                  # per trial
checkpoints = {training.checkpoints}                  # per trial; an interrupted trial resumes from the last

[devices]
kind = {_quoted(config.devices.kind)}  # cpu, or cuda for GPUs
ranks = 1                        # processes per trial
parallel_trials = {config.devices.parallel_trials}              # {cores}
"""
    return "\n".join(_aligned(line) for line in lines.splitlines()) + "\n"


def _quoted(text: str) -> str:
    """Return a text as TOML writes it. TOML refuses the pairs of escapes by which JSON writes an emoji."""
    import json

    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _aligned(line: str) -> str:
    """Return a line of TOML with its comment in a column of its own."""
    setting, sign, comment = line.partition("  # ")
    return f"{setting.rstrip():<32} # {comment.strip()}" if sign else line
