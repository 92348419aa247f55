"""The cost of generating text: cache, prompt and token against figures worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from march_search import Architecture, SearchSpace, solve
from march_search.architecture.checkpoints import read_architecture
from march_search.cli import main
from march_search.cost.devices import parse_device
from march_search.cost.inference import cache_bytes_per_token, decode_ms, prefill_ms
from march_search.cost.setup import Setup

H100 = Setup(device=parse_device("H100"), sequence_length=1024)


@pytest.mark.parametrize(
    ("name", "cache_bytes"),
    [("llama-2-7b", 524_288), ("llama-3-8b", 131_072), ("qwen2.5-0.5b", 12_288), ("gpt2", 36_864), ("t5-base", 73_728)],
)
def test_the_cache_has_a_key_and_a_value_per_layer_and_token(name: str, cache_bytes: int) -> None:
    a = read_architecture(name)
    assert cache_bytes_per_token(a, H100) == cache_bytes
    assert cache_bytes_per_token(a, replace(H100, precision="fp32")) == 2 * cache_bytes


def test_a_window_bounds_the_cache_of_its_layers() -> None:
    a = Architecture.parse("L12-D768-H12x64-F3072-rope-dec")
    windowed, mixed = replace(a, attention_window=256), replace(a, attention_window=256, global_every=6)
    full = cache_bytes_per_token(a, H100)
    assert cache_bytes_per_token(windowed, H100) == full / 4
    assert cache_bytes_per_token(mixed, H100) == full * (10 / 12 / 4 + 2 / 12)
    assert cache_bytes_per_token(replace(a, attention_window=2048), H100) == full


def test_cross_attention_by_layer_keeps_all_positions_of_layers_that_are_not_pooled() -> None:
    a = Architecture(num_layers=4, num_decoder_layers=4, length_reduction=0.25)  # 768 wide, 2 bytes
    kept = {"output": 4 * 256, "layer": 3 * 1024 + 256, "layer-shared": 3 * 1024 + 256}
    for cross, positions in kept.items():
        cached = cache_bytes_per_token(replace(a, cross_attention=cross), H100)
        assert cached == 2 * 2 * 768 * (4 * 1024 + positions) / 1024


def test_a_token_takes_the_time_to_read_the_weights_and_the_cache() -> None:
    a = read_architecture("llama-2-7b")
    weights = a.num_params - 32000 * 4096 - 65 * 4096  # the token embedding is looked up, and norms are not products
    read = 2 * weights + 1024 * 524_288
    assert decode_ms(a, H100) == pytest.approx(1e3 * read / 3.35e12)
    assert decode_ms(replace(a, num_key_value_heads=4), H100) < decode_ms(a, H100)


def test_a_prompt_takes_two_operations_per_weight_and_token() -> None:
    a = read_architecture("llama-2-7b")
    device = H100.device
    layers = a.num_params - 2 * 32000 * 4096 - 65 * 4096
    scores = 32 * 2 * 1024 * 1024 * 4096
    operations = 2 * 1024 * layers + 2 * 32000 * 4096 + scores
    assert prefill_ms(a, H100) == pytest.approx(1e3 * operations / (device.utilisation * device.bf16_flops))
    assert prefill_ms(a, replace(H100, sequence_length=2)) == pytest.approx(1e3 * 2 * (layers + 32000 * 4096) / 3.35e12)


@pytest.mark.parametrize("space", ["cpu-1m-decoder-only", "cpu-demo"])
@pytest.mark.parametrize("measure", [cache_bytes_per_token, prefill_ms, decode_ms])
def test_members_have_the_measures_of_their_architectures(space: str, measure) -> None:
    found = solve(SearchSpace.load(space)).sample(40, seed=0)
    values = found.members().measure(measure.__name__, H100)
    assert values.tolist() == pytest.approx([float(measure(a, H100)) for a in found])
    assert np.all(values > 0)


def test_solve_filters_sorts_and_prints_the_measures(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["solve", "--space", "cpu-demo", "--device", "A100", "--format", "csv"]
    columns = ["--columns", "name,cache_bytes_per_token,prefill_ms,decode_ms"]
    where = ["--where", "cache_bytes_per_token < 4000", "--sort", "decode_ms", "--top", "0"]
    assert main([*base, *columns, *where]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["name", "cache_bytes_per_token", "prefill_ms", "decode_ms"]
    assert len(rows) > 3
    assert all(float(row[1]) < 4000 for row in rows[1:])
    times = [float(row[3]) for row in rows[1:]]
    assert times == sorted(times)
    assert main([*base, "--pareto", "decode_ms,-depth"]) == 0
    assert main(["solve", "--space", "cpu-demo", "--where", "decode_ms < 3"]) == 2
    assert "decode_ms depends on the device: add one" in capsys.readouterr().err
