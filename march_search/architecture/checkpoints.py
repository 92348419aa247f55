"""Shapes of public models by name, with which a budget, a target of `--near` or an architecture can be named."""

import json
import re
from pathlib import Path

from march_search.architecture.architecture import Architecture
from march_search.errors import ArchitectureError, nearest, shown

_T5 = {
    "small": "L6-D512-H8x64-F2048",
    "base": "L12-D768-H12x64-F3072",
    "large": "L24-D1024-H16x64-F4096",
    "3b": "L24-D1024-H32x128-F16384",
    "11b": "L24-D1024-H128x128-F65536",
}

_T5_V1_1 = {
    "small": "L8-D512-H6x64-F1024-geglu-untied",
    "base": "L12-D768-H12x64-F2048-geglu-untied",
    "large": "L24-D1024-H16x64-F2816-geglu-untied",
    "xl": "L24-D2048-H32x64-F5120-geglu-untied",
    "xxl": "L24-D4096-H64x64-F10240-geglu-untied",
}

_BYT5 = {
    "small": "L12+4-D1472-H6x64-F3584",
    "base": "L18+6-D1536-H12x64-F3968",
    "large": "L36+12-D1536-H16x64-F3840",
    "xl": "L36+12-D2560-H32x64-F6720",
    "xxl": "L36+12-D4672-H64x64-F12352",
}

_GPT2 = {
    "gpt2": "L12-D768-H12x64-F3072",
    "gpt2-medium": "L24-D1024-H16x64-F4096",
    "gpt2-large": "L36-D1280-H20x64-F5120",
    "gpt2-xl": "L48-D1600-H25x64-F6400",
}

_PYTHIA = {
    "14m": ("L6-D128-H4x32-F512", 50304),
    "31m": ("L6-D256-H8x32-F1024", 50304),
    "70m": ("L6-D512-H8x64-F2048", 50304),
    "160m": ("L12-D768-H12x64-F3072", 50304),
    "410m": ("L24-D1024-H16x64-F4096", 50304),
    "1b": ("L16-D2048-H8x256-F8192", 50304),
    "1.4b": ("L24-D2048-H16x128-F8192", 50304),
    "2.8b": ("L32-D2560-H32x80-F10240", 50304),
    "6.9b": ("L32-D4096-H32x128-F16384", 50432),
    "12b": ("L36-D5120-H40x128-F20480", 50688),
}

_QWEN2_5 = {
    "0.5b": "L24-D896-H14x64-F4864-swiglu-rope-dec-bqkv-V151936-KV2",
    "1.5b": "L28-D1536-H12x128-F8960-swiglu-rope-dec-bqkv-V151936-KV2",
    "3b": "L36-D2048-H16x128-F11008-swiglu-rope-dec-bqkv-V151936-KV2",
    "7b": "L28-D3584-H28x128-F18944-swiglu-rope-untied-dec-bqkv-V152064-KV4",
    "14b": "L48-D5120-H40x128-F13824-swiglu-rope-untied-dec-bqkv-V152064-KV8",
    "32b": "L64-D5120-H40x128-F27648-swiglu-rope-untied-dec-bqkv-V152064-KV8",
    "72b": "L80-D8192-H64x128-F29568-swiglu-rope-untied-dec-bqkv-V152064-KV8",
}

_QWEN3 = {
    "0.6b": "L28-D1024-H16x128-F3072-swiglu-rope-dec-qknorm",
    "1.7b": "L28-D2048-H16x128-F6144-swiglu-rope-dec-qknorm",
    "4b": "L36-D2560-H32x128-F9728-swiglu-rope-dec-qknorm",
    "8b": "L36-D4096-H32x128-F12288-swiglu-rope-untied-dec-qknorm",
    "14b": "L40-D5120-H40x128-F17408-swiglu-rope-untied-dec-qknorm",
    "32b": "L64-D5120-H64x128-F25600-swiglu-rope-untied-dec-qknorm",
}

_OLMO_2 = {
    "1b": "L16-D2048-H16x128-F8192",
    "7b": "L32-D4096-H32x128-F11008",
    "13b": "L40-D5120-H40x128-F13824",
    "32b": "L64-D5120-H40x128-F27648",
}

_UL2 = "L32-D4096-H16x256-F16384-swiglu"

_LLAMA_3 = {  # shape, and what follows the vocabulary and the heads of the keys
    "llama-3-8b": ("L32-D4096-H32x128-F14336-swiglu-rope-untied", ""),
    "llama-3-70b": ("L80-D8192-H64x128-F28672-swiglu-rope-untied", ""),
    "llama-3.1-8b": ("L32-D4096-H32x128-F14336-swiglu-rope-untied", "-RS8"),
    "llama-3.1-70b": ("L80-D8192-H64x128-F28672-swiglu-rope-untied", "-RS8"),
    "llama-3.1-405b": ("L126-D16384-H128x128-F53248-swiglu-rope-untied", "-RS8"),
    "llama-3.2-1b": ("L16-D2048-H32x64-F8192-swiglu-rope", "-RS32"),
    "llama-3.2-3b": ("L28-D3072-H24x128-F8192-swiglu-rope", "-RS32"),
    "llama-3.3-70b": ("L80-D8192-H64x128-F28672-swiglu-rope-untied", "-RS8"),
}

CHECKPOINTS: dict[str, str] = {
    **{f"t5-{size}": name for size, name in _T5.items()},
    **{f"{family}-{size}": name for family in ("t5-v1_1", "flan-t5") for size, name in _T5_V1_1.items()},
    **{f"mt5-{size}": f"{name}-V250112" for size, name in _T5_V1_1.items()},
    **{f"byt5-{size}": f"{name}-geglu-untied-V384" for size, name in _BYT5.items()},
    **dict.fromkeys(("ul2", "flan-ul2"), _UL2),
    **{size: f"{name}-gelu-abs-dec-ln-ball-V50257-E0.00001" for size, name in _GPT2.items()},
    **{
        f"pythia-{size}": f"{name}-rope-untied-dec-exactgelu-ln-ball-par-V{vocab_size}-RF0.25-E0.00001"
        for size, (name, vocab_size) in _PYTHIA.items()
    },
    "llama-2-7b": "L32-D4096-H32x128-F11008-swiglu-rope-untied-dec-V32000-E0.00001",
    "llama-2-13b": "L40-D5120-H40x128-F13824-swiglu-rope-untied-dec-V32000-E0.00001",
    "llama-2-70b": "L80-D8192-H64x128-F28672-swiglu-rope-untied-dec-V32000-KV8-E0.00001",
    **{model: f"{name}-dec-V128256-KV8-RB500000{scaling}-E0.00001" for model, (name, scaling) in _LLAMA_3.items()},
    "tinyllama-1.1b": "L22-D2048-H32x64-F5632-swiglu-rope-untied-dec-V32000-KV4-E0.00001",
    "mistral-7b-v0.1": "L32-D4096-H32x128-F14336-swiglu-rope-untied-dec-V32000-KV8-W4096-E0.00001",
    "smollm2-135m": "L30-D576-H9x64-F1536-swiglu-rope-dec-V49152-KV3-RB100000-E0.00001",
    "smollm2-360m": "L32-D960-H15x64-F2560-swiglu-rope-dec-V49152-KV5-RB100000-E0.00001",
    "smollm2-1.7b": "L24-D2048-H32x64-F8192-swiglu-rope-dec-V49152-RB130000-E0.00001",
    **{f"qwen2.5-{size}": f"{name}-RB1000000" for size, name in _QWEN2_5.items()},
    **{f"qwen3-{size}": f"{name}-V151936-KV8-RB1000000" for size, name in _QWEN3.items()},
    **{
        f"olmo-2-{size}": f"{name}-swiglu-rope-untied-dec-qknormall-postnorm-V100352{'-KV8' * (size == '32b')}-RB500000"
        for size, name in _OLMO_2.items()
    },
}
"""Name of the architecture of each public model. `tests/test_architecture_checkpoints.py` has published counts."""


def read_architecture(text: str) -> Architecture:
    """Return the architecture that a user names: by its name, by a public model in `CHECKPOINTS`, or by a file.

    A file is a config.json of Hugging Face transformers, or of `export --format torch`, or a folder with one.

    Raises:
        ArchitectureError: If the text is none of them, or the file cannot be read or expressed.
    """
    word = text.strip()
    if word.lower() in CHECKPOINTS:
        return Architecture.parse(CHECKPOINTS[word.lower()])
    if re.match(r"L\d", word):
        return Architecture.parse(word)
    if path := _config_file(word):
        name = _exported_name(path)
        return Architecture.from_huggingface(path) if name is None else Architecture.parse(name)
    raise ArchitectureError(
        f"{shown(word)} is not an architecture name: use one such as L12-D768-H12x64-F3072-geglu, the path of a "
        f"config.json, or a public model. {nearest_checkpoint(word)}"
    )


def _config_file(text: str) -> Path | None:
    """Return the file that the text names, or the config.json in the folder that it names; None if there is neither."""
    path = Path(text)
    try:
        path = path / "config.json" if path.is_dir() else path
        return path if path.suffix == ".json" or path.is_file() else None
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return None


def _exported_name(path: Path) -> str | None:
    """Return the name in the config.json of `export --format torch`; None if the file is another."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):  # `Architecture.from_huggingface` says what is wrong
        return None
    is_exported = isinstance(table, dict) and isinstance(table.get("architecture"), dict)
    return table["name"] if is_exported and isinstance(table.get("name"), str) else None


def nearest_checkpoint(word: str) -> str:
    """Return the end of an error message: the public model closest to `word`, or all families if none is close."""
    answer = nearest(word[:60].lower(), CHECKPOINTS)
    families = dict.fromkeys(name.rpartition("-")[0] or name for name in CHECKPOINTS if name != "flan-ul2")
    return answer if answer.startswith("Did") else f"Known: sizes of {', '.join(sorted(families))}."
