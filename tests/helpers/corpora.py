"""Made-up texts, and folders of other programs that hold texts and tokenizers."""

import json
import random
from pathlib import Path

from march_search.config import DataConfig

TEXTS_CONFIG = DataConfig(
    corpus="texts.jsonl", vocab_size=400, sequence_length=16, validation_fraction=0.2, validation_sequences=8
)
"""Settings for a corpus of `numbered_texts`."""


def numbered_texts(count: int = 100) -> list[str]:
    """Return texts of 20 made-up words, each starting with its number; some contain `</s>`."""
    rng = random.Random(0)
    names = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 7))) for _ in range(50)] + ["</s>"]
    return [f"{i}: " + " ".join(rng.choices(names, k=20)) for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> None:
    """Write one JSON object per text."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_hub_folder(folder: Path, rows: list[dict], name: str = "en") -> Path:
    """Write a folder laid out like a dataset repository on the Hugging Face Hub, and return it."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "part-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"- config_name: {name}\n  data_files:\n  - split: train\n    path: data/*.jsonl\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    return folder


def write_t5_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of transformers' T5 class with 26 letters, saved by transformers, and return the folder."""
    from transformers import T5Tokenizer

    letters = [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]).save_pretrained(folder)
    return folder
