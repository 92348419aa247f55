"""Predicted time and memory, compared with recorded runs, DeepSpeed and autograd."""

import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.reference import march_runs

from march_search import Architecture, SearchSpace, solve
from march_search.architecture.spans import span_lengths
from march_search.config.deepspeed_config import BUCKET_ELEMENTS
from march_search.cost.devices import GPUS, parse_device
from march_search.cost.memory import activation_bytes, memory, memory_bytes
from march_search.cost.setup import STUDY_DEVICES, Setup
from march_search.cost.speed import flops_per_token, hours, tokens_per_second
from march_search.errors import ConfigError, UsageError
from march_search.model import build

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import pricing

T5_BASE = Architecture()
SMALL = Architecture(num_layers=3, num_decoder_layers=2, d_model=256, num_heads=6, d_kv=64, d_ff=512, vocab_size=4096)


def test_held_out_training_times_are_predicted_within_15_percent() -> None:
    runs = march_runs()
    for fold in (lambda index: index % 2, lambda index: runs[index]["family"]):
        errors = pricing.errors(runs, pricing.held_out(runs, fold))
        assert statistics.median(map(abs, errors)) < 0.15
    assert f"{statistics.median(map(abs, errors)):.0%}" in STUDY_DEVICES.basis


def test_the_shipped_speeds_are_the_fit_on_all_recorded_runs() -> None:
    layer_seconds, score_seconds = pricing.fit(march_runs())
    assert STUDY_DEVICES.layer_seconds == pytest.approx(layer_seconds, rel=0.02)
    assert STUDY_DEVICES.score_seconds == pytest.approx(score_seconds, rel=0.02)


def test_hours_are_tokens_over_speed_and_shrink_with_more_devices() -> None:
    eight, sixteen = (Setup(device=replace(GPUS[0], count=n)) for n in (8, 16))
    speed = tokens_per_second(T5_BASE, eight)
    assert hours(T5_BASE, eight) == pytest.approx(eight.tokens / speed / 3600)
    assert tokens_per_second(T5_BASE, sixteen) == pytest.approx(2 * speed)
    assert tokens_per_second(T5_BASE, replace(eight, checkpointing=True)) == pytest.approx(0.75 * speed)


def test_speed_is_the_stated_share_of_the_peak() -> None:
    setup = Setup(device=replace(GPUS[2], count=4))
    reached = tokens_per_second(T5_BASE, setup) * T5_BASE.flops_per_token()
    assert reached / (4 * GPUS[2].bf16_flops) == pytest.approx(GPUS[2].utilisation)


def test_each_zero_stage_partitions_what_it_should() -> None:
    def parts(stage: int, count: int, precision: str = "bf16") -> list[float]:
        setup = Setup(device=replace(GPUS[0], count=count), zero_stage=stage, precision=precision)
        weights, gradients, optimizer, _ = memory(T5_BASE, setup)
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
    assert live == [pytest.approx(parts.total - parts.activations - bucket, rel=0.06)]


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

    lengths, batch = span_lengths(setup.sequence_length), setup.micro_batch
    decoder_only = a.structure == "decoder-only"
    inputs = None if decoder_only else torch.zeros(batch, lengths.input, dtype=torch.long)
    targets = torch.zeros(batch, setup.sequence_length if decoder_only else lengths.target, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(inputs, targets)
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
        {"position": "absolute", "bottleneck": "shrinking", "d_bottleneck": 64},
        {"position": "rotary", "share_layers": "all"},
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()),
)
def test_activations_are_what_autograd_saves(fields: dict, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("march_search.model.attention.CPU_KEYS", {"fp32": 0, "other": 0})  # SDPA, as on a GPU
    a = replace(SMALL, **fields)
    setup = Setup(precision=precision, micro_batch=2)
    assert activation_bytes(a, setup) == pytest.approx(saved_bytes(a, setup), rel=0.1)


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
    ("text", "name"), [("8xA5000", "8xA5000"), ("a100", "A100"), ("16 x H100", "16xH100"), ("2×A100", "2xA100")]
)
def test_device_names_are_parsed(text: str, name: str) -> None:
    assert str(parse_device(text)) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8xB200", 'unknown device "8xB200": use 8xA5000, H100 or cpu.'),
        ("a500", 'Did you mean "a5000"?'),
        ("0xA100", "the number of devices must be at least 1"),
        ("2xcpu", "exactly 1 for cpu"),
        ("", 'unknown device ""'),
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
