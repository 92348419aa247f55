"""Compare logits and gradients of a device with those of a CPU in fp32, and list the attention kernels of each shape.

Shape suffixes: B examples, I input tokens, T target tokens.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_acceptance.scale import SCALES
from march_search import Architecture
from march_search.doctor.bench import in_words
from march_search.model import build

SIZE = "L2-D128-H4x32-F256"

SHAPES = {
    "relative": "",
    "relative, gated": "-geglu",
    "rotary": "-rope",
    "rotary, gated, untied": "-swiglu-rope-untied",
    "absolute": "-abs",
    "layer-shared cross-attention": "-xshared",
    "layer cross-attention, rotary": "-rope-xlayer",
    "learned no-op key": "-noop",
    "half the positions, rotary": "-rope-R0.5",
    "bottleneck, shared layers": "-S2-Bflat64",
    "decoder-only, rotary, gated": "-geglu-rope-dec",
    "decoder-only, relative": "-dec",
}
"""Twelve shapes by the property that they add to `SIZE`."""

TOLERANCE_FP32 = {"logits": 1e-4, "gradients": 1e-3}
"""Largest allowed distance from the CPU in fp32, relative to the norm of the CPU's values."""

WORSE_BF16 = 2.0
"""Largest allowed error of the device in bf16, as a multiple of the error of the CPU in bf16."""

OPERATIONS = {
    "flash": ("_scaled_dot_product_flash_attention",),
    "efficient": ("_scaled_dot_product_efficient_attention",),
    "cuDNN": ("_scaled_dot_product_cudnn_attention",),
    "flex": ("flex_attention",),
    "math": ("_scaled_dot_product_attention_math", "aten::_softmax"),
}
"""Parts of the names of torch's operations, by kind of attention. The loss uses `_log_softmax` only."""

KERNELS = ("flash", "fmha", "attention", "sdpa", "softmax")
"""Parts of the names of GPU kernels that belong to attention or replace it."""


TOLERANCE_FLEX = 2e-2
"""Largest distance of FlexAttention's results and gradients in bf16 from those in fp64, relative to the norm."""

FLEX_CASES = {
    "encoder": (12, 451, 451, 64, False),
    "decoder": (12, 118, 118, 64, True),
    "decoder, no-op key": (8, 118, 119, 64, True),
    "pooled queries, no-op key": (8, 226, 452, 64, False),
    "heads of 80": (4, 128, 128, 80, True),
    "heads of 8": (4, 100, 100, 8, False),
}
"""Heads, queries, keys, `d_kv`, and whether a causal mask applies, by name."""


def flex_agreement(_folder: Path, kind: str, **_: Any) -> dict[str, Any]:
    """Return how far FlexAttention in bf16 lies from fp64 on the same device, or its error, for each case."""
    rows: dict[str, dict[str, Any]] = {}
    for name, case in FLEX_CASES.items():
        try:
            rows[f"flex, {name}"] = _flex_distances(torch.device(kind), *case)
        except Exception as error:  # the other cases count too
            rows[f"flex, {name}"] = {"error": in_words(error)}
    return {"rows": rows}


def _flex_distances(
    device: torch.device, heads: int, length: int, keys: int, d_kv: int, is_causal: bool
) -> dict[str, float]:
    """Return how far the results and gradients of one case lie from fp64."""
    from march_search.model import flex

    generator = torch.Generator(device).manual_seed(0)
    sizes = [(32, heads, n, d_kv) for n in (length, keys, keys, length)]
    q, k, v, grad = (torch.randn(size, device=device, generator=generator).bfloat16() for size in sizes)
    bias = torch.randn(heads, length, keys, device=device, generator=generator)
    inputs = [x.requires_grad_() for x in (q, k, v, bias)]
    mask = flex.block_mask(length, keys > length, is_causal, None, device)
    found = flex.attention(q, k, v, bias, mask, d_kv**-0.5)
    values = [found, *torch.autograd.grad(found, inputs, grad)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    scores = exact[0] @ exact[1].mT * d_kv**-0.5 + exact[3]
    if is_causal:
        future = torch.full((length, length), -torch.inf, device=device, dtype=torch.float64).triu_(1)
        scores = scores + torch.nn.functional.pad(future, (0, keys - length))
    expected = torch.softmax(scores, -1) @ exact[2]
    wanted = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    names = ("logits", "queries", "keys", "values", "bias")
    return {part: _distance(x.double(), y) for part, x, y in zip(names, values, wanted, strict=True)}


def agreement(_folder: Path, scale: str, kind: str, names: list[str], **_: Any) -> dict[str, Any]:
    """Return one row per shape: distances from the CPU, and the operations and kernels of attention."""
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(kind)
    rows = {}
    for name in names:
        a = Architecture.parse(name)
        inputs, targets = _batch(a, *SCALES[scale].exact_lengths)
        reference = _values(a, inputs, targets, torch.float32, torch.device("cpu"))
        exact = _distances(_values(a, inputs, targets, torch.float32, device), reference)
        rough = _distances(_values(a, inputs, targets, torch.bfloat16, device), reference)
        rough_cpu = _distances(_values(a, inputs, targets, torch.bfloat16, torch.device("cpu")), reference)
        rows[name] = {"fp32": exact, "bf16": rough, "bf16_cpu": rough_cpu} | _kernels(a, inputs, targets, device)
    return {"rows": rows}


def verdict(row: dict[str, Any], kind: str) -> tuple[str, str]:
    """Return `ok` or `failed` and the finding for one shape."""
    faults = [f"{k} differ in fp32" for k, most in TOLERANCE_FP32.items() if not row["fp32"][k] <= most]
    faults += [
        f"{k} are worse in bf16" for k in TOLERANCE_FP32 if not row["bf16"][k] <= WORSE_BF16 * row["bf16_cpu"][k]
    ]
    if kind == "cuda" and "math" in row["attention"]:
        faults.append("attention uses the math backend")
    return ("failed", "; ".join(faults)) if faults else ("ok", "agrees")


def _batch(a: Architecture, inputs: int, targets: int) -> tuple[Tensor | None, Tensor]:
    """Return a batch of random tokens."""
    generator = torch.Generator().manual_seed(0)
    targets_BT = torch.randint(a.vocab_size, (3, targets), generator=generator)
    inputs_BI = torch.randint(a.vocab_size, (3, inputs), generator=generator)
    return (inputs_BI if a.structure == "encoder-decoder" else None), targets_BT


def _values(
    a: Architecture, inputs: Tensor | None, targets: Tensor, dtype: torch.dtype, device: torch.device
) -> dict[str, list[Tensor]]:
    """Return the logits and the gradients of all parameters, in fp32 on the CPU."""
    torch.manual_seed(0)
    model = build(a).to(device, dtype)
    inputs_BI, targets_BT = None if inputs is None else inputs.to(device), targets.to(device)
    with torch.no_grad():
        logits = model.logits(inputs_BI, targets_BT)
    model(inputs_BI, targets_BT).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return {"logits": [logits.float().cpu()], "gradients": [g.float().cpu() for g in gradients]}


def _distance(x: Tensor, y: Tensor) -> float:
    """Return the norm of the difference over the norm of `y`; 1e30 if it is not finite, which JSON cannot hold."""
    distance = float((x - y).norm() / y.norm().clamp_min(1e-12))
    return distance if math.isfinite(distance) else 1e30


def _distances(values: dict[str, list[Tensor]], reference: dict[str, list[Tensor]]) -> dict[str, float]:
    """Return the norm of the difference over the norm of the reference; for gradients, of the worst parameter."""
    worst = {}
    for kind, tensors in values.items():
        pairs = zip(tensors, reference[kind], strict=True)
        worst[kind] = max(_distance(x, y) for x, y in pairs)
    return worst


def _kernels(a: Architecture, inputs: Tensor | None, targets: Tensor, device: torch.device) -> dict[str, Any]:
    """Return the kinds of attention that a step in bf16 uses, and the GPU kernels that belong to them."""
    torch.manual_seed(0)
    model = build(a).to(device, torch.bfloat16)
    inputs_BI, targets_BT = None if inputs is None else inputs.to(device), targets.to(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        model(inputs_BI, targets_BT).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
    names = {event.key: event.count for event in profile.key_averages()}
    kinds = {k: sum(n for name, n in names.items() if any(w in name for w in words)) for k, words in OPERATIONS.items()}
    operations = {word for words in OPERATIONS.values() for word in words}
    kernels = sorted(
        name[:160]
        for name in names
        if not name.startswith("aten::")
        and any(word in name.lower() for word in KERNELS)
        and not any(word in name for word in operations)
    )
    return {"attention": [kind for kind, count in kinds.items() if count], "kernels": kernels}
