"""Layers compiled by torch: no graph breaks, one compilation per shape of input, and equal losses."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from helpers.trials import MakeTrial, result, train, trial_config
from torch._dynamo.utils import counters

from march_search import Architecture
from march_search.config import TrainingConfig
from march_search.cost.devices import parse_device
from march_search.cost.setup import Setup, study_setup
from march_search.cost.speed import tokens_per_second
from march_search.errors import ConfigError
from march_search.model import build
from march_search.model.attention_path import missing_compiler
from march_search.training import ranks

TINY = {"num_layers": 2, "d_model": 32, "num_heads": 2, "d_kv": 16, "d_ff": 64, "vocab_size": 50, "max_length": 32}
KINDS = {
    "relative": {},
    "rotary, gated": {"position": "rotary", "feed_forward_proj": "gated-gelu"},
    "absolute, gated": {"position": "absolute", "feed_forward_proj": "gated-silu"},
    "learned no-op key": {"noop_key": "learned"},
    "fixed no-op key, rotary": {"noop_key": "fixed", "position": "rotary"},
    "keys and values of layers": {"cross_attention": "layer"},
    "no cross key/value weights": {"cross_attention": "layer-shared", "position": "rotary"},
    "half the positions, shared pairs": {"num_layers": 4, "length_reduction": 0.5, "share_layers": 2},
    "half the positions, rotary": {"num_layers": 3, "length_reduction": 0.5, "position": "rotary"},
    "bottleneck, shared layers": {"bottleneck": "flat", "d_bottleneck": 16, "share_layers": 2},
    "decoder-only": {"structure": "decoder-only"},
    "decoder-only, rotary, gated": {
        "structure": "decoder-only", "position": "rotary", "feed_forward_proj": "gated-gelu"
    },
}  # fmt: skip
GENERATOR = torch.Generator().manual_seed(2)
INPUTS = torch.randint(2, 50, (4, 12), generator=GENERATOR)
TARGETS = torch.randint(2, 50, (4, 9), generator=GENERATOR)
TOLERANCE = 1e-2
"""Largest difference of a loss of about 4 nats between plain and compiled layers in bf16, over three steps."""
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # torch's compiler warns of its own code
]
needs_compiler = pytest.mark.skipif(missing_compiler("cpu") != "", reason=f"needs {missing_compiler('cpu')}")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Forget what was compiled."""
    torch._dynamo.reset()
    counters.clear()


def graphs() -> int:
    """Return the number of graphs compiled so far; there must be no breaks."""
    assert dict(counters["graph_break"]) == {}
    return counters["stats"]["unique_graphs"]


def steps(
    architecture: Architecture, number: int, backend: str | None, dtype: torch.dtype, **more: bool
) -> list[float]:
    """Return the losses of some steps of gradient descent on one batch, with heartbeats as in a trial."""
    torch.manual_seed(0)
    model = build(architecture, **more).to(dtype)
    ranks.send_heartbeats_from(model.stacks.values())
    if backend:
        for stack in model.stacks.values():
            stack.compile_layers(backend)
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(number):
        loss = model(None if model.encoder is None else INPUTS, TARGETS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("kind", "checkpointing"),
    [*((kind, False) for kind in KINDS), *((kind, True) for kind in ("relative", "half the positions, shared pairs"))],
)
def test_layers_compile_without_graph_breaks_and_once_per_shape(kind: str, checkpointing: bool) -> None:
    architecture = Architecture(**TINY | KINDS[kind])
    expected = steps(architecture, 1, None, torch.float32, checkpointing=checkpointing)
    found = steps(architecture, 1, "aot_eager", torch.float32, checkpointing=checkpointing)
    assert found == pytest.approx(expected, abs=1e-5)
    after_one, most = graphs(), 2 * architecture.num_layers
    assert 1 <= after_one <= most
    torch._dynamo.reset()
    counters.clear()
    steps(architecture, 3, "aot_eager", torch.float32, checkpointing=checkpointing)
    assert graphs() == after_one


def test_another_shape_compiles_once_more_and_evaluations_do_not() -> None:
    torch.manual_seed(0)
    model = build(Architecture(**TINY))
    for stack in model.stacks.values():
        stack.compile_layers("aot_eager")
    seen = []
    for examples in (4, 4, 2, 4, 2):
        model(INPUTS[:examples], TARGETS[:examples]).backward()
        seen.append(graphs())
    assert seen == [seen[0], seen[0], 2 * seen[0], 2 * seen[0], 2 * seen[0]]
    model.example_losses(INPUTS[:3], TARGETS[:3])
    assert graphs() == seen[-1]


def test_more_shapes_than_torch_allows_by_default_are_compiled() -> None:
    torch.manual_seed(0)
    model = build(Architecture(**TINY | {"structure": "decoder-only", "num_layers": 1}))
    with torch._dynamo.config.patch(recompile_limit=2):
        model.decoder.compile_layers("eager")
        for number, length in enumerate((3, 5, 7, 9), 1):
            model(None, TARGETS[:, :length])
            assert graphs() == number


@needs_compiler
@pytest.mark.torture
@pytest.mark.parametrize("kind", ["relative", "rotary, gated", "bottleneck, shared layers"])
def test_compiled_layers_have_nearly_the_same_losses_in_bf16(kind: str) -> None:
    architecture = Architecture(**TINY | KINDS[kind])
    plain, compiled = (steps(architecture, 3, backend, torch.bfloat16) for backend in (None, "inductor"))
    assert compiled == pytest.approx(plain, abs=TOLERANCE)
    assert plain[-1] < plain[0]


@needs_compiler
@pytest.mark.torture
def test_a_trial_with_compiled_layers_ends_with_nearly_the_same_loss(make_trial: MakeTrial, monkeypatch) -> None:
    losses = []
    for compile in ("none", "layers"):
        folder = make_trial(compile, tokens=12 * 256, evaluations=1, checkpoints=1, compile=compile)
        command = [sys.executable, "-m", "march_search.training", str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ, check=False)
        assert ended.returncode == 0, ended.stderr
        losses.append(result(folder)["loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_without_a_compiler_the_trial_is_refused_in_one_line(make_trial: MakeTrial) -> None:
    ended = train(make_trial("compiled", tokens=256, checkpoints=0, evaluations=1, compile="layers"))
    assert ended.returncode == 1
    assert 'compile = "layers" needs a C++ compiler, which is not installed.' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_compiling_is_refused_where_weights_are_gathered_inside_layers() -> None:
    with pytest.raises(ConfigError, match="needs zero_stage 0, 1 or 2, not 3"):
        TrainingConfig(compile="layers", zero_stage=3)


def test_prices_follow_the_setting(make_trial: MakeTrial) -> None:
    config = trial_config(make_trial("compiled", compile="layers", attention="flex"))
    setup = study_setup(config, parse_device("H100"))
    assert setup.compiled
    assert setup.sums_bias
    plain = Setup(device=parse_device("H100"), micro_batch=64)
    assert tokens_per_second(Architecture(), replace(plain, compiled=True)) > tokens_per_second(Architecture(), plain)
