"""`march-search export`: write a trained trial as a folder that other programs can load."""

import argparse
import json
import sys
from pathlib import Path

from march_search.commands import Verbs


def add(verbs: Verbs) -> None:
    """Add the command to the parser."""
    export = verbs.add_parser("export", help="write a trained trial as a folder that other programs can load")
    export.add_argument("study", metavar="STUDY", help="name of a study in the --root folder, or its folder")
    export.add_argument("trial", metavar="TRIAL", help="'best', the name of an architecture, or the number of a trial")
    export.add_argument("--root", default="runs", metavar="DIR", help="folder of the studies (default: runs)")
    export.add_argument("--format", choices=("hf",), default="hf", help="hf: a T5 model of Hugging Face transformers")
    export.add_argument("-o", "--output", required=True, metavar="DIR", help="output folder; must not exist")
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the folder of one trial."""
    from march_search.analysis.ranking import find_trial
    from march_search.analysis.study_record import read_study
    from march_search.errors import UsageError
    from march_search.files import replacing_folder
    from march_search.model.huggingface import check_t5, save_t5
    from march_search.training import weights

    study, output = read_study(options.study, Path(options.root)), Path(options.output)
    trial = find_trial(study, options.trial)
    check_t5(trial.architecture)
    tensors = weights.load(trial.folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(output) as partial:
        if partial is None:
            raise UsageError(f"{output} already exists: remove it, or choose another folder with -o.")
        save_t5(trial.architecture, tensors, partial)
        save_tokenizer(trial.store, partial)
    print(f"{output}: trial {trial.number}, {trial.architecture.name}, {trial.state}", file=sys.stderr)
    return 0


def save_tokenizer(store: Path, folder: Path) -> None:
    """Write the tokenizer of a token store in the format that `AutoTokenizer.from_pretrained` loads.

    Raises:
        DataError: If the store has no readable tokenizer.
    """
    from march_search.data import tokenizer as bpe
    from march_search.data.tokenizer import SENTINELS

    bpe.load(store / "tokenizer.json").save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "additional_special_tokens": [f"<extra_id_{i}>" for i in range(SENTINELS)],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
