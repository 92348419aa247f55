"""`march-search export`: write a trained trial, or the learning curves of a study, for other programs."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.architecture.architecture import Architecture
from march_search.commands.options import add_examples, add_study
from march_search.errors import ArchitectureError, UsageError
from march_search.files.atomic import discard_folder, one_line, replacing_folder

_LOGGER = logging.getLogger(__name__)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from march_search.analysis.study_record import StudyRecord, TrialRecord
    from march_search.commands.studies import NamedStudy


def add(export: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_study(export)
    export.add_argument(
        "trial", metavar="TRIAL", nargs="?", help="for a model: 'best', an architecture name or a trial number"
    )
    export.add_argument(
        "--format",
        choices=(*MODELS, "curves"),
        default="hf",
        help="hf: folder with config.json, model.safetensors and tokenizer for Hugging Face transformers: a T5, Llama, "
        "Mistral, Qwen, OLMo 2, GPT-NeoX or GPT-2, whichever has this shape; "
        "torch: folder with the weights of any shape, config.json, tokenizer and load.py, which loads them; "
        "curves: JSON with the losses of all complete trials of a study, or of all sizes of a ladder, for replay "
        "(default: hf)",
    )
    add_examples(
        export,
        "march-search export cpu-demo best -o model",
        "march-search export cpu-demo best --format torch -o model",
        "march-search export cpu-demo --format curves -o curves.json",
        "march-search export cpu-ladder --format curves -o ladder.json",
    )
    export.add_argument(
        "-o", "--output", metavar="PATH", help="model: folder to make; curves: JSON file (default: standard output)"
    )
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the model of one trial, or a study's learning curves as a table for `replay`."""
    from march_search.commands.studies import named_study

    named = named_study(options.study, options.root)
    if options.format == "curves":
        if options.trial is not None:
            raise UsageError("--format curves writes all complete trials of the study: remove TRIAL.")
        _export_curves(named, options.output)
    else:
        study = named.record()
        if options.trial is None or options.output is None:
            example = "best" + ("" if options.format == "hf" else f" --format {options.format}") + " -o DIR"
            raise UsageError(
                f"--format {options.format} needs a TRIAL and an output folder: march-search export STUDY {example}."
            )
        _export_model(study, options.trial, Path(options.output), MODELS[options.format])
    return 0


def _export_curves(named: "NamedStudy", output: str | None) -> None:
    """Write the learning curves of the complete trials of a study, or of all sizes of a ladder."""

    from march_search.commands.output import print_or_write
    from march_search.files.json_tables import json_text
    from march_search.replay.study_curves import ladder_study_curves, study_curves

    named.refuse_isoflop("--format curves")
    ladder = named.ladder()
    curves = ladder_study_curves(ladder, named.folder.path.parent) if ladder else study_curves(named.record())
    value = asdict(curves)
    print_or_write(output or "-", json_text(value))


@dataclass(frozen=True)
class _Format:
    """A format in which models are written."""

    check: Callable[[Architecture], object]
    """Raises an ArchitectureError if the format cannot express a shape."""
    save: "Callable[[TrialRecord, Mapping[str, Tensor], Path, Mapping[str, int]], None]"
    """Writes the weights of a trial into a folder; the last argument holds the tokenizer's token IDs."""


def _check_huggingface(a: Architecture) -> None:
    """Raise an ArchitectureError that names `--format torch` if no class of transformers can express a shape."""
    try:
        a.to_huggingface()
    except ArchitectureError as error:
        raise ArchitectureError(f"{one_line(error)}. Use --format torch, which writes every shape.") from None


def _save_huggingface(
    trial: "TrialRecord", tensors: "Mapping[str, Tensor]", folder: Path, token_ids: Mapping[str, int]
) -> None:
    """Write a model of Hugging Face transformers."""
    from march_search.model.huggingface_folder import save_huggingface

    save_huggingface(trial.architecture, tensors, folder, token_ids)


def _save_torch(
    trial: "TrialRecord", tensors: "Mapping[str, Tensor]", folder: Path, token_ids: Mapping[str, int]
) -> None:
    """Write our own module, with what its inputs look like."""
    from march_search.architecture.block_file import read_block
    from march_search.model.torch_folder import BLOCK_FILE, save_torch

    data, training = trial.config.data, trial.config.training
    about: dict[str, Any] = {
        "sequence_length": data.sequence_length,
        "noise_density": data.noise_density,
        "mean_span_length": data.mean_span_length,
        "documents": data.documents,
        "tokens": training.tokens,
        "seed": trial.seed,
        "loss": trial.loss,
    }
    if (block := trial.config.block) is not None:
        _, content = read_block(block.module, trial.folder, block.sha256)
        is_file = block.module.endswith(".py")
        about |= {"block_module": BLOCK_FILE if is_file else block.module, "block_sha256": block.sha256}
        if is_file:
            (folder / BLOCK_FILE).write_bytes(content)
    save_torch(trial.architecture, tensors, folder, {**token_ids, **about})


MODELS = {"hf": _Format(_check_huggingface, _save_huggingface), "torch": _Format(lambda a: None, _save_torch)}
"""Formats of a model by their names."""


def _export_model(study: "StudyRecord", text: str, output: Path, model_format: _Format) -> None:
    """Write the model and the tokenizer of one trial into a new folder."""
    from march_search.analysis.ranking import find_trial
    from march_search.training import weights

    trial = find_trial(study, text)
    model_format.check(trial.architecture)  # before anything is read or written
    existing = UsageError(f"{output} already exists: remove it, or choose another folder with -o.")
    if os.path.lexists(output):
        raise existing
    tensors = weights.load(trial.folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(output) as partial:
        if partial is None:
            raise existing
        discard_folder(partial)  # an export that was stopped may have left files of another format
        partial.mkdir()
        model_format.save(trial, tensors, partial, save_tokenizer(trial.store, partial, trial.architecture.structure))
    print(f"{output}: trial {trial.number}, {trial.architecture.name}, {trial.state}", file=sys.stderr)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") == "qwen2":
        _LOGGER.warning(
            "AutoTokenizer of transformers 5 gives every Qwen2 the rules of Qwen's own tokenizer: load this one with "
            "PreTrainedTokenizerFast.from_pretrained."
        )


def save_tokenizer(store: Path, folder: Path, structure: str) -> dict[str, int]:
    """Write the tokenizer of a token store in the format that `AutoTokenizer.from_pretrained` loads.

    For a decoder-only model, it begins each text with the start token, as in training. It pads on the left with its end
    token, as the start token may be the padding token, and `generate` takes a padding token in a prompt for padding.

    Returns:
        `eos_token_id` and `pad_token_id`, and `bos_token_id` of a decoder-only model. A tokenizer without a padding
        token is padded with its end token.

    Raises:
        DataError: If the store has no readable tokenizer, or it has changed.
    """
    from march_search.config.data_config import SENTINELS
    from march_search.data import tokenizer as bpe
    from march_search.data.store import Store

    opened = Store.read(store)
    opened.check_tokenizer()
    tokenizer, special = bpe.load(store / "tokenizer.json", opened.vocab_size), opened.special
    is_decoder = structure == "decoder-only"
    pad = special.eos if is_decoder else bpe.padding(tokenizer, special)
    if is_decoder:
        _begin_with(tokenizer, special.start)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": tokenizer.id_to_token(pad),
        "eos_token": tokenizer.id_to_token(special.eos),
        "clean_up_tokenization_spaces": False,
    }
    if special.first_sentinel is not None:
        config["additional_special_tokens"] = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    if is_decoder:
        config["padding_side"] = "left"
        start = tokenizer.get_added_tokens_decoder().get(special.start)
        if start is not None and start.special:
            config["bos_token"] = start.content
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return {"eos_token_id": special.eos, "pad_token_id": pad} | ({"bos_token_id": special.start} if is_decoder else {})


def _begin_with(tokenizer: "Tokenizer", token_id: int) -> None:
    """Let a tokenizer begin each text with this token."""
    from tokenizers.processors import TemplateProcessing

    token = tokenizer.id_to_token(token_id)
    tokenizer.post_processor = TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", "$B"], special_tokens=[(token, token_id)]
    )
