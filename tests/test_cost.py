"""Predicted time and memory, compared with recorded runs, DeepSpeed and autograd."""

import operator
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.reference import march_architecture, march_runs

from march_search import Architecture, SearchSpace, solve
from march_search.architecture.flops import reduced_length
from march_search.architecture.spans import span_lengths
from march_search.config.deepspeed_config import BUCKET_ELEMENTS
from march_search.cost.devices import BASIS, DATA_SHEETS, FITTED, GPUS, STUDY_LAYER_SECONDS, parse_device
from march_search.cost.memory import (
    BLOCK_LOGITS,
    CHUNK_LOGITS,
    activation_bytes,
    memory,
    memory_bytes,
    transient_bytes,
)
from march_search.cost.setup import STUDY_DEVICES, Setup
from march_search.cost.speed import (
    Seconds,
    attention_flops,
    flops_per_token,
    hours,
    scores_per_token,
    seconds_per_token,
    tokens_per_second,
)
from march_search.errors import ConfigError, UsageError
from march_search.model import build, loss

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import pricing

T5_BASE = Architecture()
DECODER = {"structure": "decoder-only", "num_decoder_layers": None}
SMALL = Architecture(num_layers=3, num_decoder_layers=2, d_model=256, num_heads=6, d_kv=64, d_ff=512, vocab_size=4096)


def test_held_out_training_times_are_predicted_within_15_percent() -> None:
    errors, rows = pricing.by_source(), pricing.rows()
    published = [row.source for row in rows if not row.is_march]
    assert (len(published), len(rows)) == (44, 69)
    by_program = [pricing.median_size(errors, [row.source == name for row in rows]) for name in sorted(set(published))]
    march = pricing.median_size(errors, [row.is_march for row in rows])
    assert max(statistics.median(by_program), march, pricing.median_size(errors, [True] * len(rows))) < 0.15
    assert f"median error {statistics.median(by_program):.0%}" in BASIS
    assert f"median error {march:.0%}" in STUDY_DEVICES.basis


def test_the_shipped_constants_are_the_fit_on_all_rows() -> None:
    fitted = np.exp(pricing.fit(pricing.rows()))
    shipped = [getattr(FITTED, name) for name in pricing.NAMES[:-1]]
    assert [*shipped, STUDY_LAYER_SECONDS] == pytest.approx(fitted, rel=0.01)


def test_the_price_of_a_recorded_run_is_near_its_minutes() -> None:
    runs = march_runs()
    setup = Setup(sequence_length=1024, tokens=1000 * 1_048_576)
    errors = [60 * float(hours(march_architecture(run), setup)) / run["minutes"] - 1 for run in runs]
    assert statistics.median(map(abs, errors)) < 0.12
    assert max(map(abs, errors)) < 0.2


def test_hours_are_tokens_over_speed_and_shrink_with_more_devices() -> None:
    eight, sixteen = (Setup(device=replace(GPUS[0], count=n)) for n in (8, 16))
    speed = tokens_per_second(T5_BASE, eight)
    assert hours(T5_BASE, eight) == pytest.approx(eight.tokens / speed / 3600)
    assert tokens_per_second(T5_BASE, sixteen) == pytest.approx(2 * speed)
    assert tokens_per_second(T5_BASE, replace(eight, checkpointing=True)) == pytest.approx(0.75 * speed)


def test_time_is_the_sum_of_its_parts_unless_launching_kernels_takes_longer() -> None:
    setup = Setup(device=parse_device("A100"), micro_batch=64)
    parts = seconds_per_token(T5_BASE, setup)
    assert parts.total == pytest.approx(sum(parts) - parts.launches, rel=0.005)
    assert tokens_per_second(T5_BASE, setup) == pytest.approx(1 / parts.total)
    tiny = Architecture.parse("L2-D64-H4x16-F256-V512")
    one = seconds_per_token(tiny, replace(setup, micro_batch=1))
    assert one.total == pytest.approx(one.launches, rel=0.005)
    assert one.launches == pytest.approx(4 * 5e-4 / 512)
    assert seconds_per_token(tiny, setup).total < one.total / 10


def test_what_a_part_of_the_time_depends_on() -> None:
    def parts(a: Architecture, device: str = "A100", **fields: object) -> Seconds:
        return seconds_per_token(a, Setup(device=parse_device(device), micro_batch=64, **fields))

    rotary = replace(T5_BASE, position="rotary")
    assert parts(rotary).scores == 0 < parts(T5_BASE).scores
    assert parts(T5_BASE, sequence_length=1024).scores == pytest.approx(2 * parts(T5_BASE).scores, rel=0.02)
    assert parts(rotary, compiled=True).traffic == pytest.approx(FITTED.compiled * parts(rotary).traffic)
    assert parts(rotary, precision="fp32").traffic == pytest.approx(2 * parts(rotary).traffic)
    assert parts(rotary, "A100-40GB").products == parts(rotary).products
    assert parts(rotary, "A100-40GB").traffic / parts(rotary).traffic == pytest.approx(2.039 / 1.555)
    assert parts(rotary, "H100").products < parts(rotary).products < 3.17 * parts(rotary, "H100").products
    wide = replace(rotary, feed_forward_proj="gated-gelu")
    assert parts(wide).products > parts(rotary).products
    assert parts(wide).attention == parts(rotary).attention


def test_a_causal_mask_halves_the_operations_of_fused_self_attention() -> None:
    setup = Setup()
    for a in (T5_BASE, replace(T5_BASE, structure="decoder-only"), replace(T5_BASE, num_decoder_layers=3)):
        plain, fused = (attention_flops(a, setup, is_fused) for is_fused in (False, True))
        assert plain < 0.2 * flops_per_token(a, setup)
        assert (fused / plain < 0.6) is (a.structure == "decoder-only")
        assert attention_flops(a, Setup(sequence_length=1024), is_fused=False) == pytest.approx(2 * plain, rel=0.02)


@pytest.mark.parametrize("cross", ["output", "layer", "layer-shared"])
@pytest.mark.parametrize("layers", [1, 4, 5])
def test_operations_of_attention_are_counted_at_the_positions_of_each_layer(cross: str, layers: int) -> None:
    a = Architecture(num_layers=layers, d_model=256, num_heads=4, cross_attention=cross, length_reduction=0.25)
    setup, lengths = Setup(sequence_length=512), span_lengths(512)
    source, reduced, target = lengths.input, reduced_length(lengths.input, 0.25), lengths.target
    queries = [source if layer < layers // 2 else reduced for layer in range(layers)]  # as `model.stack` pools
    keys = [source if layer <= layers // 2 else reduced for layer in range(layers)]
    read = [reduced] * layers if cross == "output" else keys
    scores = sum(map(operator.mul, queries, keys)) + target * sum(target + positions for positions in read)
    assert attention_flops(a, setup, is_fused=False) == pytest.approx(12 * 4 * 64 * scores / 512)
    assert scores_per_token(a, setup) == pytest.approx(4 * scores / 512)


def test_each_zero_stage_partitions_what_it_should() -> None:
    def parts(stage: int, count: int, precision: str = "bf16") -> list[float]:
        setup = Setup(device=replace(GPUS[0], count=count), zero_stage=stage, precision=precision)
        weights, gradients, optimizer, *_ = memory(T5_BASE, setup)
        bucket = 50_000_000 * setup.scalar_bytes if setup.stage else 0
        return [x / T5_BASE.num_params for x in (weights, gradients - bucket, optimizer)]

    assert parts(0, 8, "fp32") == [4, 4, 8]
    assert parts(1, 8, "fp32") == [4, 4, 1.5]
    assert parts(0, 8) == parts(1, 8) == [2, 6, 1.5]
    assert parts(2, 8) == [2, 0.5, 1.5]
    assert parts(3, 8) == [0.25, 0.5, 1.5]


@pytest.mark.parametrize(
    ("precision", "stage", "ranks"), [("fp32", 0, 1), ("fp32", 2, 2), ("fp32", 3, 2), ("bf16", 1, 2), ("bf16", 2, 1)]
)
def test_a_rank_of_deepspeed_uses_the_predicted_memory(precision: str, stage: int, ranks: int, tmp_path: Path) -> None:
    if precision == "bf16" and ranks > 1 and torch.__version__.startswith("2.5."):
        pytest.skip("gloo of torch 2.5 cannot gather bf16 weights (a view made without gradients)")
    script, meeting = Path(__file__).parent / "helpers" / "engine_memory.py", tmp_path / "meeting"
    settings = {"WORLD_SIZE": str(ranks), "MARCH_SEARCH_MEETING": str(meeting)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), precision, str(stage)],
            env=os.environ | settings | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    live = [int(line.split()[1]) for line in outputs[0].splitlines() if line.startswith("live ")]
    a = Architecture.parse("L2-D256-H4x64-F1024-V8192")
    setup = Setup(device=replace(GPUS[0], count=ranks), precision=precision, zero_stage=stage, micro_batch=1)
    parts = memory(a, setup)
    bucket = BUCKET_ELEMENTS * setup.scalar_bytes if stage else 0
    assert live == [pytest.approx(parts.total - parts.activations - parts.transients - bucket, rel=0.06)]


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the largest number of bytes that tensors on the CPU take while `work` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [50, 1000])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"vocab_size": 512},
        DECODER,
        {**DECODER, "num_key_value_heads": 2, "qk_norm": "head"},
        {**DECODER, "norm_position": "post", "logit_softcap": 30.0},
    ],
    ids=["encoder-decoder", "small vocabulary", "decoder", "grouped", "soft cap"],
)
def test_the_peak_of_a_step_is_predicted(
    fields: dict, rows: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = replace(SMALL, position="rotary", **fields)
    chunk, block = {"cpu": rows * a.vocab_size, "other": 0}, {"cpu": 2 * a.vocab_size, "other": 0}
    monkeypatch.setattr("march_search.model.attention_path.CPU_KEYS", {"fp32": 0, "other": 0})  # SDPA, as on a GPU
    for module in ("model.loss", "cost.memory"):
        monkeypatch.setattr(f"march_search.{module}.CHUNK_LOGITS", chunk)
        monkeypatch.setattr(f"march_search.{module}.BLOCK_LOGITS", block)
    setup = Setup(device=replace(GPUS[0], keeps_scores=True), precision=precision, micro_batch=4)
    model = build(a).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    inputs, targets = batch_of(a, setup)
    peak = peak_bytes(lambda: model(inputs, targets))
    scores = scores_per_token(a, setup) * setup.sequence_length * setup.scalar_bytes * setup.micro_batch
    assert activation_bytes(a, setup) - scores + transient_bytes(a, setup) == pytest.approx(peak, rel=0.06)


def test_the_loss_holds_as_many_logits_as_the_prediction_assumes() -> None:
    assert (loss.CHUNK_LOGITS, loss.BLOCK_LOGITS) == (CHUNK_LOGITS, BLOCK_LOGITS)


def test_a_trained_bias_adds_the_gradient_of_every_example_and_head() -> None:
    shape = (2, 12, 128, 64)
    q, k, v, y = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for _ in range(4))
    bias = torch.empty(1, 12, 128, 128, dtype=torch.bfloat16, device="meta").expand(2, -1, -1, -1)
    sums = torch.empty(2, 12, 128, device="meta")
    seed = torch.empty((), dtype=torch.long, device="meta")
    backward = torch.ops.aten._scaled_dot_product_efficient_attention_backward
    *_, grad_bias = backward(y, q, k, v, bias, y, sums, seed, seed, 0.0, [True] * 4)
    assert (grad_bias.shape, grad_bias.dtype) == ((2, 12, 128, 128), torch.bfloat16)
    many = Architecture(structure="decoder-only", num_heads=64, d_kv=8, d_model=512, vocab_size=512)
    setup = Setup(micro_batch=16)
    assert (
        transient_bytes(many, setup)
        == 16 * 64 * 512 * 512 * 2
        > transient_bytes(replace(many, position="rotary"), setup)
    )
    assert transient_bytes(T5_BASE, setup) == transient_bytes(replace(T5_BASE, position="rotary"), setup)


def batch_of(a: Architecture, setup: Setup) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return the input tokens and target tokens of one micro batch."""
    lengths, batch = span_lengths(setup.sequence_length), setup.micro_batch
    decoder_only = a.structure == "decoder-only"
    inputs = None if decoder_only else torch.zeros(batch, lengths.input, dtype=torch.long)
    return inputs, torch.zeros(batch, setup.sequence_length if decoder_only else lengths.target, dtype=torch.long)


def saved_bytes(a: Architecture, setup: Setup) -> int:
    """Return the bytes that autograd saves in one forward pass, without parameters."""
    model = build(a, checkpointing=setup.checkpointing)
    model = model.to(torch.bfloat16) if setup.precision == "bf16" else model
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return x

    inputs, targets = batch_of(a, setup)
    starts = None
    if setup.masks_documents:
        starts = (torch.arange(targets.shape[1]) // 100 * 100).expand(targets.shape)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(inputs, targets, starts_BT=starts)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "fields",
    [
        {"position": "rotary"},
        {"position": "absolute", "feed_forward_proj": "gated-gelu"},
        {"position": "rotary", "feed_forward_proj": "silu", "num_decoder_layers": 3, "cross_attention": "layer"},
        {"position": "absolute", "num_decoder_layers": 3, "cross_attention": "layer-shared"},
        {"position": "rotary", "structure": "decoder-only", "num_decoder_layers": None},
        {"position": "rotary", "length_reduction": 0.5, "tie_word_embeddings": False},
        {"position": "rotary", "length_reduction": 0.1, "num_layers": 8},
        {"position": "rotary", "length_reduction": 0.1, "num_decoder_layers": 3, "cross_attention": "layer"},
        {"position": "absolute", "bottleneck": "shrinking", "d_bottleneck": 64},
        {"position": "rotary", "share_layers": "all"},
        {"position": "rotary", **DECODER, "num_key_value_heads": 1, "qk_norm": "head"},
        {"position": "rotary", **DECODER, "qk_norm": "all", "norm_position": "post", "rotary_fraction": 0.5},
        {"position": "rotary", **DECODER, "norm": "layer", "bias": "all", "parallel_block": True},
        {"position": "none", **DECODER, "attention_window": 64, "global_every": 2, "feed_forward_proj": "exact-gelu"},
        {"position": "rotary", "num_key_value_heads": 1, "qk_norm": "head", "norm": "layer"},
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()),
)
def test_activations_are_what_autograd_saves(fields: dict, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("march_search.model.attention_path.CPU_KEYS", {"fp32": 0, "other": 0})  # SDPA, as on a GPU
    a = replace(SMALL, **fields)
    setup = Setup(precision=precision, micro_batch=2)
    assert activation_bytes(a, setup) == pytest.approx(saved_bytes(a, setup), rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "fields",
    [
        {"position": "rotary"},
        {"position": "rotary", "rotary_fraction": 0.5, "attention_window": 64, "global_every": 2},
        {"position": "none", "attention_window": 600, "global_every": 2},
        {"position": "absolute", "attention_window": 64},
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()),
)
def test_masked_documents_add_what_autograd_saves_of_them(fields: dict, precision: str, monkeypatch) -> None:
    monkeypatch.setattr("march_search.model.attention_path.CPU_KEYS", {"fp32": 0, "other": 0})  # SDPA, as on a GPU
    a = replace(SMALL, structure="decoder-only", num_decoder_layers=None, **fields)
    setup = Setup(precision=precision, micro_batch=2)
    masked = replace(setup, masks_documents=True)
    kept = saved_bytes(a, masked)
    assert activation_bytes(a, masked) == pytest.approx(kept, rel=0.03)
    added = activation_bytes(a, masked) - activation_bytes(a, setup)
    if fields["position"] == "none":  # the others keep masks of windows or rotary angles in joined sequences too
        assert added == pytest.approx(kept - saved_bytes(a, setup), rel=0.01)
    assert activation_bytes(a, replace(masked, sums_bias=True)) < activation_bytes(a, masked)


def test_a_relative_bias_of_masked_documents_differs_by_example_and_head() -> None:
    setup = Setup(micro_batch=4, masks_documents=True, sequence_length=256)
    a = Architecture.parse("L2-D64-H4x16-F64-dec-V400")
    added = activation_bytes(a, setup) - activation_bytes(a, replace(setup, masks_documents=False))
    assert added == 2 * 4 * 4 * 256 * 256 * 2  # bias and gradient, of examples and heads, in bf16
    picked = solve(SearchSpace.load("cpu-decoder")).sample(20, seed=0)
    assert picked.members().measure("memory", setup).tolist() == pytest.approx(
        [memory_bytes(a, setup) for a in picked], rel=1e-12
    )


def test_with_checkpointing_each_layer_saves_its_input() -> None:
    setup = Setup(precision="fp32", micro_batch=2, checkpointing=True)
    a = replace(SMALL, position="rotary", num_layers=8, num_decoder_layers=8)
    largest = activation_bytes(replace(a, num_layers=1, num_decoder_layers=1), setup)
    saved = saved_bytes(a, setup)
    assert saved < activation_bytes(a, setup) < saved + largest
    assert activation_bytes(a, setup) < activation_bytes(a, replace(setup, checkpointing=False)) / 2


def test_costs_of_a_selection_equal_those_of_its_architectures() -> None:
    picked = solve(SearchSpace.load("t5-220m")).sample(50, seed=3)
    for setup in (Setup(), Setup(checkpointing=True, precision="fp32", zero_stage=2)):
        for name, function in (("memory", memory_bytes), ("hours", hours), ("flops", flops_per_token)):
            assert picked.members().measure(name, setup).tolist() == pytest.approx(
                [function(a, setup) for a in picked], rel=1e-12
            )


def test_the_speed_of_a_cpu_is_measured() -> None:
    cpu = parse_device("cpu")
    assert cpu.memory_bytes > 2**28
    assert min(cpu.bf16_flops, cpu.fp32_flops) > 1e8
    assert "measured now" in cpu.basis
    fast, slow = (Setup(device=replace(cpu, fp32_flops=x), precision="fp32") for x in (2e11, 1e11))
    assert tokens_per_second(SMALL, slow) < tokens_per_second(SMALL, fast)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("8xA5000", "8xA5000"),
        ("a100", "A100"),
        ("16 x H100", "16xH100"),
        ("2×A100", "2xA100"),
        ("A100-80GB", "A100"),
        ("8xA100-40GB", "8xA100-40GB"),
        ("RTX 4090", "RTX4090"),
        ("4x4090", "4xRTX4090"),
        ("h100-pcie", "H100-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA RTX A6000", "A6000"),
        ("8x312TFLOPs,80GB", "8x312TFLOPs,80GB"),
        ("8 x 312 tflops, 80 GB, 2.0 TB/s", "8x312TFLOPs,80GB,2TB/s"),
    ],
)
def test_device_names_are_parsed(text: str, name: str) -> None:
    assert str(parse_device(text)) == name


def test_a_device_given_by_its_figures_has_the_price_of_the_same_device_by_name() -> None:
    named, figures = (Setup(device=parse_device(d)) for d in ("8xA100", "8x312TFLOPs,80GB,2.039TB/s"))
    assert tokens_per_second(T5_BASE, figures) == pytest.approx(tokens_per_second(T5_BASE, named))
    assert memory_bytes(T5_BASE, figures) == memory_bytes(T5_BASE, named)
    assert "fp32 assumed" in figures.device.basis
    assert "bandwidth assumed as 1.56TB/s" in parse_device("312TFLOPs,80GB").basis


def test_every_gpu_has_plausible_figures_and_a_faster_one_is_faster() -> None:
    speeds = {gpu.name: tokens_per_second(T5_BASE, Setup(device=gpu, micro_batch=64)) for gpu in GPUS}
    assert list(speeds) == [*DATA_SHEETS]
    for name in ("A100-40GB", "H100-PCIe", "H200", "B200", "L40S", "A6000", "RTX4090", "A10G"):
        gpu = parse_device(name)
        assert 50e12 < gpu.bf16_flops < 3e15
        assert 20e9 < gpu.memory_bytes < 200e9
        assert 0.4 < gpu.utilisation < 0.9
        assert "not been timed on a GPU" in gpu.basis
    assert speeds["A10G"] < speeds["A6000"] < speeds["A100-40GB"] < speeds["A100"] < speeds["H100-PCIe"]
    assert speeds["H100-PCIe"] < speeds["H100"] < speeds["H200"] < speeds["B200"]


def test_the_guide_lists_every_gpu_with_its_figures() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "solve.md").read_text()
    lines = [re.split(r"\s*\|\s*", line) for line in guide.splitlines() if "TFLOP/s |" in line and "`" in line]
    found = {line[1].split("`")[1]: [float(re.sub(r"[^\d.]", "", cell)) for cell in line[2:5]] for line in lines}
    assert found == {
        name: [memory / 1e9, pytest.approx(peak / 1e12, abs=0.5), pytest.approx(bandwidth / 1e12, abs=0.005001)]
        for name, (memory, peak, _, bandwidth) in DATA_SHEETS.items()
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8xB300", 'unknown device "8xB300". Known: A5000, A6000, A10G, RTX4090, L40S, A100-40GB, A100, H100-PCIe, '),
        ("a500", "its bandwidth: 8x312TFLOPs,80GB,2.0TB/s."),
        ("8x312TFLOPs", "For any other GPU, give its dense bf16 peak, its memory and, "),
        ("0TFLOPs,80GB", 'unknown device "0TFLOPs,80GB"'),
        ("312TFLOPs,80GB,-1TB/s", "unknown device"),
        ("0xA100", "the number of devices must be at least 1"),
        ("2xcpu", "exactly 1 for cpu"),
        ("", 'unknown device ""'),
        ("A100\nB", "unknown device"),
    ],
)
def test_an_unknown_device_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_device(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_invalid_setup_is_refused() -> None:
    with pytest.raises(ConfigError, match="micro_batch must be at least 1"):
        Setup(micro_batch=0)
    with pytest.raises(ConfigError, match="sequence_length >= 2"):
        Setup(sequence_length=1)
