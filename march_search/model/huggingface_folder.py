"""Write and read the folder of a Hugging Face model, a T5 or of a decoder-only family: config.json and safetensors."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from march_search.architecture.architecture import Architecture
from march_search.errors import StorageError
from march_search.files.atomic import save_tensors
from march_search.model.decoder_weights import decoder_factors, decoder_views
from march_search.model.seq2seq import Seq2Seq
from march_search.model.t5_weights import t5_tensors

WEIGHTS = "model.safetensors"

INDEX = "model.safetensors.index.json"
"""Names the files of a model whose weights are in several."""

IGNORED = re.compile(
    r".*(\.inv_freq|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias)|(en|de)coder\.embed_tokens\.weight|"
    r"(lm_head|embed_out)\.weight"
)
"""Tensors in files that are not parameters, or copies of tied embeddings."""


def save_huggingface(
    a: Architecture, tensors: Mapping[str, Tensor], folder: Path, token_ids: Mapping[str, int]
) -> dict[str, Any]:
    """Write config.json and model.safetensors for `from_pretrained`, and return the config.

    Args:
        a: The architecture.
        tensors: Its weights.
        folder: Folder of the export.
        token_ids: `eos_token_id`, `pad_token_id` and so on of the tokenizer.

    Raises:
        ArchitectureError: If transformers cannot express this architecture.
        StorageError: If the folder is not writable or the disk is full.
    """
    dtype = str(tensors["embedding"].dtype).removeprefix("torch.")
    config = a.to_huggingface() | {**token_ids, "dtype": dtype}
    save_tensors(to_huggingface(a, tensors), folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config


def to_huggingface(a: Architecture, tensors: Mapping[str, Tensor], are_gradients: bool = False) -> dict[str, Tensor]:
    """Return our weights under the names of transformers, with the values that give equal logits there.

    Args:
        a: The architecture.
        tensors: Its weights, or their gradients.
        are_gradients: Whether to return the gradients of their weights.

    Raises:
        ArchitectureError: If transformers cannot express this architecture.
    """
    named = {}
    for name, view, factor in _views(a, a.to_huggingface()["model_type"], tensors):
        scale = 1 / factor if are_gradients else factor
        theirs = _as_theirs(view)
        named[name] = (theirs if scale == 1.0 else (theirs.float() * scale).to(view.dtype)).contiguous()
    return named


def from_huggingface(folder: str | Path) -> Seq2Seq:
    """Return the model in a folder with config.json and safetensors files, in the dtype of its weights.

    Raises:
        ArchitectureError: If the model cannot be expressed here. The message names the key.
        StorageError: If a file cannot be read, or its tensors are not those of the model.
    """
    folder = Path(folder)
    config = folder / "config.json"
    a = Architecture.from_huggingface(config)
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type", "t5")
    found, model = _read(folder), Seq2Seq(a)
    dtype = next(iter(found.values())).dtype
    with torch.no_grad():
        for name, view, factor in _views(a, kind, model.state_dict()):
            short = name.partition(".")[2]  # the files of GPT-2 omit the first part
            theirs = found.pop(name if name in found else short, None)
            if theirs is None or theirs.numel() != view.numel():
                what = "is missing" if theirs is None else f"has the shape {tuple(theirs.shape)}"
                raise StorageError(
                    f"{folder}: {name} {what}, but {a.name} needs it as {tuple(_as_theirs(view).shape)}."
                )
            view.copy_(theirs.reshape(view.shape).to(view.dtype) / factor)
    strange = [name for name in found if not IGNORED.fullmatch(name)]
    if strange:
        raise StorageError(f"{folder}: {strange[0]} is not a parameter of {a.name}, which its config.json describes.")
    return model.to(dtype)


def _views(a: Architecture, kind: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, float]]:
    """Yield their names, views of our tensors, and their weight as a multiple of ours."""
    if a.structure == "encoder-decoder":
        yield from ((name, view, 1.0) for name, view in t5_tensors(a, tensors).items())
        return
    factors = decoder_factors(a, kind)
    for name, view in decoder_views(a, kind, tensors):
        yield name, view, factors.get(name, 1.0)


def _as_theirs(view: Tensor) -> Tensor:
    """Return a view in the shape that it has in a file; more than two dimensions stand for rows."""
    return view.flatten(0, 2) if view.ndim > 2 else view


def _read(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder's safetensors files."""
    index = folder / INDEX
    try:
        table = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {"weight_map": {"": WEIGHTS}}
        files = sorted(set(table["weight_map"].values()))
        return {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    except FileNotFoundError as error:
        raise StorageError(f"{error.filename or folder / WEIGHTS} does not exist: only safetensors are read.") from None
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise StorageError(f"{folder}: its weights cannot be read ({error}).") from None
