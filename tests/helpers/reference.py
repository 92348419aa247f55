"""Numbers from runs outside this project, to compare with."""

import json
from pathlib import Path
from typing import Any

from march_search import Architecture

FOLDER = Path(__file__).parents[1] / "reference"


def march_runs() -> list[dict[str, Any]]:
    """Return the 25 runs of the 2023 study: shape and exact parameter count."""
    return json.loads((FOLDER / "march-2023-shapes.json").read_text())["runs"]


def march_architecture(run: dict[str, Any]) -> Architecture:
    """Return the architecture of a run, whose layers are counted over both stacks."""
    return Architecture(
        num_layers=run["num_layers"] // 2,
        d_model=run["d_model"],
        num_heads=run["num_heads"],
        d_kv=run["d_kv"],
        d_ff=run["d_ff"],
        feed_forward_proj=run["act"],
        vocab_size=30_000,
        position="absolute",
        max_length=1024,
        cross_attention="layer" if run["cross_kv"] else "layer-shared",
    )


def t5_checkpoints() -> list[dict[str, Any]]:
    """Return public T5 checkpoints: shape and exact parameter count."""
    return json.loads((FOLDER / "t5-checkpoints.json").read_text())["checkpoints"]


def decoder_checkpoints() -> list[dict[str, Any]]:
    """Return public decoder-only models: `model_type`, fields of their config.json, exact parameter count."""
    return json.loads((FOLDER / "decoder-checkpoints.json").read_text())["checkpoints"]


def march_curves() -> list[list[tuple[int, float]]]:
    """Return the curves of the 25 runs, in the order of `march_runs`: (tokens, evaluation loss) every 20 steps."""
    runs = json.loads((FOLDER / "march-2023-curves.json").read_text())["runs"]
    return [[(20 * n * 1_048_576, loss) for n, loss in enumerate(run["eval_loss"], 1)] for run in runs]
