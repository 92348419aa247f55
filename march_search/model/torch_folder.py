"""Write a model of any shape as a folder that a few lines of Python load: weights, config.json and load.py."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from march_search.architecture.architecture import Architecture
from march_search.files.atomic import save_tensors

LOAD = '''"""Load the trained model: `from load import load`, or run this file for its size. It needs march-search."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from march_search import Architecture, model
from march_search.architecture.block_file import load_block

HERE = Path(__file__).parent


def load() -> torch.nn.Module:
    """Return the model; model(inputs, targets) is its loss. A decoder-only model takes None as inputs."""
    config = json.loads((HERE / "config.json").read_text())
    if "block_module" in config:
        load_block(config["block_module"], HERE, config["block_sha256"])  # this runs the code of that file
    net = model.build(Architecture.parse(config["name"])).to(getattr(torch, config["dtype"]))
    net.load_state_dict(load_file(HERE / "model.safetensors"))
    net.start_token = config.get("bos_token_id", net.start_token)
    return net.eval()


if __name__ == "__main__":
    print(sum(parameter.numel() for parameter in load().parameters()), "parameters")
'''
"""Content of load.py."""

BLOCK_FILE = "block.py"
"""Name of the copy of the file of a user's block."""


def save_torch(a: Architecture, tensors: Mapping[str, Tensor], folder: Path, about: Mapping[str, Any]) -> None:
    """Write model.safetensors, config.json and load.py, whose function `load` returns the module.

    Args:
        a: The architecture; every shape can be written.
        tensors: Its weights, which keep their names and their dtype.
        folder: Folder of the export.
        about: Further entries of config.json. With a user's block, `block_module` is `BLOCK_FILE`, which the caller
            writes, or a module that can be imported.

    Raises:
        StorageError: If the folder is not writable or the disk is full.
    """
    dtype = str(tensors["embedding"].dtype).removeprefix("torch.")
    config = {"name": a.name, "num_params": a.num_params, "dtype": dtype, "architecture": asdict(a), **about}
    save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "load.py").write_text(LOAD, encoding="utf-8")
