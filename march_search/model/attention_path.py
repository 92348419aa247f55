"""Choose how attention is computed. `choose_path` is the only place that decides; `attention.py` and `flex.py` compute.

The names of the paths:

    cpu-products  products of matrices, for short sequences on a CPU (`march_search.model.cpu`)
    sdpa          torch's `scaled_dot_product_attention` on a CPU, or on a device that is neither a CPU nor CUDA
    flash         SDPA on a GPU without a mask: its flash kernel, or cuDNN's where torch prefers it
    efficient     SDPA on a GPU with its memory-efficient kernel. It takes masks; with a trained bias, its backward pass
                  writes the bias gradient of every example
    flex          FlexAttention, which sums the gradient of a trained bias over the examples while it runs, and skips
                  what masked documents do not see
    math          SDPA on a GPU without a fused kernel, which stores all scores
"""

import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from packaging.version import Version

PathName = Literal["cpu-products", "sdpa", "flash", "efficient", "flex", "math"]

Bias = Literal["none", "causal", "fixed", "trained"]
"""What is added to the scores: nothing, a causal mask that the kernel knows, a tensor without gradient, or one with."""

CPU_KEYS = {"fp32": 64, "other": 512}
"""Number of keys up to which plain products are faster than SDPA on a CPU (measured with torch 2.13)."""

FLEX_VERSION = Version("2.6")
"""First torch whose FlexAttention computes the gradient of a tensor that `score_mod` reads (pytorch#137452)."""

DOCUMENTS_VERSION = Version("2.7")
"""First version of torch with which FlexAttention computes masked documents, whose masks cut through blocks."""

WIDEST_HEAD = 256
"""Largest `d_kv` of the flash kernels, and of FlexAttention here."""

NARROW_FLASH = {(8, 6), (8, 9), (12, 0), (12, 1)}
"""Compute capabilities whose flash kernel cannot train heads wider than 192: their shared memory is small."""


class AttentionPath(NamedTuple):
    """How attention is computed, and why."""

    name: PathName
    reason: str
    """A sentence without a full stop."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What the choice depends on besides the shape."""

    device: str
    """Type of the device, such as `cpu` or `cuda`."""
    torch_version: Version
    """Version of torch."""
    capability: tuple[int, int] = (0, 0)
    """Compute capability of the GPU; (0, 0) without one."""
    has_compiler: bool = False
    """Whether Triton and a C compiler, which FlexAttention needs, are installed."""
    is_deterministic: bool = False
    """Whether only operations with repeatable results may be used."""


def platform_of(device: torch.device) -> Platform:
    """Return the platform of a device of this process."""
    return _platform(device, torch.are_deterministic_algorithms_enabled())


@cache
def _platform(device: torch.device, is_deterministic: bool) -> Platform:
    """Return the platform of a device."""
    is_cuda = device.type == "cuda"
    return Platform(
        device=device.type,
        torch_version=Version(torch.__version__),
        capability=torch.cuda.get_device_capability(device) if is_cuda else (0, 0),
        has_compiler=is_cuda and missing_compiler("cuda") == "",
        is_deterministic=is_deterministic,
    )


def missing_compiler(device: str) -> str:
    """Return what torch.compile lacks on this type of device, as a noun; empty if nothing."""
    named = [os.environ[name] for name in ("CXX", "CC") if os.environ.get(name)]
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton"
    compilers = ("gcc", "clang", "cc") if device == "cuda" else ("g++", "clang++", "c++")
    if not any(shutil.which(name.split()[0]) for name in (*named, *compilers)):
        return "a C compiler" if device == "cuda" else "a C++ compiler"
    if device == "cuda" and not Path(sysconfig.get_path("include"), "Python.h").is_file():  # for Triton
        return "Python's header files (python3-dev)"
    return ""


def choose_path(
    platform: Platform,
    dtype: torch.dtype,
    d_kv: int,
    bias: Bias,
    keys: int,
    setting: str = "auto",
    has_documents: bool = False,
) -> AttentionPath:
    """Return the path of one attention.

    Args:
        platform: Device and torch.
        dtype: Type of queries, keys and values.
        d_kv: Width of one head.
        bias: What is added to the scores.
        keys: Number of keys, including a no-op key.
        setting: `attention` of `[training]`.
        has_documents: Whether a mask that differs by example hides other documents, in training.
    """
    if platform.device == "cpu":
        return _cpu_path(dtype, bias, keys)
    if platform.device != "cuda":
        return AttentionPath("sdpa", f"torch chooses the kernel on {platform.device}")
    if dtype == torch.float64:
        return AttentionPath("math", "fused kernels do not compute in fp64")
    if bias == "trained":
        obstacle = _flex_obstacle(platform, dtype, d_kv, setting, has_documents)
        if not obstacle:
            return AttentionPath("flex", "it sums the gradient of the trained bias while it runs")
        return AttentionPath("efficient", f"the bias is trained, and {obstacle}")
    if has_documents:
        obstacle = _flex_obstacle(platform, dtype, d_kv, setting, has_documents)
        if not obstacle:
            return AttentionPath("flex", "it skips the scores of other documents")
        return AttentionPath("efficient", f"documents are masked, and {obstacle}")
    if bias == "fixed":
        return AttentionPath("efficient", "flash attention takes no mask")
    if dtype == torch.float32:
        return AttentionPath("efficient", "flash attention does not compute in fp32")
    if platform.capability < (8, 0):
        return AttentionPath("efficient", "flash attention needs compute capability 8.0")
    if d_kv > WIDEST_HEAD or (d_kv > 192 and platform.capability in NARROW_FLASH):
        return AttentionPath("efficient", f"flash attention cannot train heads of width {d_kv} on this GPU")
    return AttentionPath("flash", "there is no mask besides a causal one")


def _cpu_path(dtype: torch.dtype, bias: Bias, keys: int) -> AttentionPath:
    """Return the path on a CPU.

    For short sequences, SDPA's backward pass takes 2 to 10 times as long in bf16. SDPA stores the scores anyway if the
    bias needs a gradient.
    """
    short = CPU_KEYS["fp32" if dtype == torch.float32 and bias != "trained" else "other"]
    if keys <= short:
        return AttentionPath("cpu-products", f"a CPU is faster with plain products up to {short} keys")
    return AttentionPath("sdpa", f"a CPU is faster with SDPA beyond {short} keys")


def _flex_obstacle(platform: Platform, dtype: torch.dtype, d_kv: int, setting: str, has_documents: bool) -> str:
    """Return why FlexAttention does not compute attention with a trained bias or masked documents; empty if it does."""
    if setting == "sdpa":
        return 'attention = "sdpa" is set'
    if platform.is_deterministic:
        return "FlexAttention may sum gradients in a varying order"
    if platform.torch_version < FLEX_VERSION:
        return f"FlexAttention of torch {platform.torch_version} cannot train it"
    if has_documents and platform.torch_version < DOCUMENTS_VERSION:
        return f"FlexAttention is used with them from torch {DOCUMENTS_VERSION} on"
    if platform.capability < (8, 0):
        return "FlexAttention is used from compute capability 8.0 on"
    if d_kv > WIDEST_HEAD:
        return f"FlexAttention is used up to heads of width {WIDEST_HEAD}, not {d_kv}"
    if not platform.has_compiler:
        return "FlexAttention needs Triton and a C compiler"
    if dtype == torch.float32 and setting == "auto":
        return "FlexAttention is used in bf16"
    return ""


def groups_without_copies(path: PathName, device: str) -> bool:
    """Return whether SDPA reads keys and values of fewer heads than queries as they are, if it computes this path.

    The memory-efficient kernel takes equal numbers only (torch 2.13), and torch would take the math backend instead.
    """
    return path == "flash" or device == "cpu"


def padded_width(path: PathName, d_kv: int) -> int:
    """Return the head width that the kernel of a path needs: zeros fill up narrower heads and change no score.

    The memory-efficient kernel needs a multiple of 8 in bf16; torch would otherwise take the math backend.
    FlexAttention needs at least 16, and before torch 2.7 a power of two. The flash kernel pads by itself.
    """
    if path == "efficient":
        return -(-d_kv // 8) * 8
    if path == "flex":
        return max(16, 1 << (d_kv - 1).bit_length())
    return d_kv
