"""With scaled learning rates, a step changes wide and narrow, deep and shallow models equally."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.architectures import random_architectures
from helpers.trials import TINY, TINY_TRAINING, MakeTrial, lines, result, stop_at_step, train
from safetensors.torch import load_file

from march_search import Architecture
from march_search.config import TrainingConfig
from march_search.config.scaling import base_shape
from march_search.errors import ArchitectureError, ConfigError
from march_search.model import build
from march_search.training.muon import MuonAndAdamW
from march_search.training.optimizer import parameter_groups

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTHS = (64, 128, 256, 512)
DEPTHS = (2, 4, 8, 16)
BASE = Architecture(num_layers=2, d_model=64, num_heads=4, d_kv=16, d_ff=128)
RATE = 4e-3
GENERATOR = torch.Generator().manual_seed(3)
INPUTS = torch.randint(2, 64, (8, 12), generator=GENERATOR)
TARGETS = torch.randint(2, 64, (8, 9), generator=GENERATOR)
KINDS = {
    "T5": {},
    "untied, gated": {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
    "rotary, keys and values by layer": {"position": "rotary", "cross_attention": "layer"},
    "absolute, shared layers": {"position": "absolute", "share_layers": "all"},
    "decoder-only, no-op key": {"structure": "decoder-only", "noop_key": "learned", "position": "rotary"},
    "flat bottleneck": {"bottleneck": "flat", "d_bottleneck": 0.5},
}
"""Fields that differ from T5's; `d_bottleneck` as a share of d_model."""


def shape(kind: str, width: int = 64, depth: int = 2) -> Architecture:
    """Return a model of this kind, `width` wide everywhere."""
    fields = {"d_model": width, "num_heads": width // 16, "d_kv": 16, "d_ff": 2 * width, "num_layers": depth}
    more = dict(KINDS[kind])
    if "d_bottleneck" in more:
        more["d_bottleneck"] = int(more["d_bottleneck"] * width)
    return Architecture(**fields | {"vocab_size": 64, "max_length": 16} | more)


def changes(
    a: Architecture, base: Architecture | None, trained: str = "", optimizer: str = "adamw"
) -> tuple[float, float]:
    """Return the root mean square change of the logits and of the last decoder layer's output over four steps.

    Only parameters whose name ends in `trained` are trained.
    """
    torch.manual_seed(0)
    model, inputs = build(a, base=base), None if a.structure == "decoder-only" else INPUTS
    seen: list[torch.Tensor] = []
    model.decoder.layers[-1].register_forward_hook(lambda *call: seen.append(call[2][0].detach()))
    logits, training = [model.logits(inputs, TARGETS).detach()], TrainingConfig(learning_rate=4e-3)
    groups = [
        {"params": [p for name, p in group.parameters.items() if name.endswith(trained)], **group.settings(training)}
        for group in parameter_groups(model, base, optimizer)
    ]
    kind = MuonAndAdamW if optimizer == "muon" else torch.optim.AdamW
    stepping = kind([group for group in groups if group["params"]], betas=(0.9, 0.95))
    for _ in range(4):
        model.zero_grad()
        model(inputs, TARGETS).backward()
        stepping.step()
    logits.append(model.logits(inputs, TARGETS).detach())
    return rms(logits[-1] - logits[0]), rms(seen[-1] - seen[0])


def rms(x: torch.Tensor) -> float:
    """Return the root mean square."""
    return float(x.square().mean().sqrt())


LOGITS, STREAM = 0, 1


def growth(what: int, small: Architecture, large: Architecture, base: Architecture | None, trained: str = "") -> float:
    """Return a change of `large` as a multiple of that of `small`."""
    return changes(large, base, trained)[what] / changes(small, base, trained)[what]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_change_wide_models_as_much_as_narrow_ones_and_more_at_a_fixed_rate(kind):
    logits, stream = zip(*(changes(shape(kind, width), BASE) for width in WIDTHS), strict=True)
    assert max(stream) / min(stream) < 1.3
    assert max(logits) / min(logits) < 2
    assert logits[-1] < logits[0]
    fixed = changes(shape(kind, WIDTHS[-1]), None)
    assert fixed[LOGITS] / logits[0] > 1.6
    assert fixed[STREAM] / stream[0] > 2.5


@pytest.mark.parametrize("kind", KINDS)
def test_steps_change_deep_models_as_much_as_shallow_ones_and_more_at_a_fixed_rate(kind):
    logits, stream = zip(*(changes(shape(kind, depth=depth), BASE) for depth in DEPTHS), strict=True)
    assert max(stream) / min(stream) < 2
    assert max(logits) / min(logits) < 1.4
    assert changes(shape(kind, depth=DEPTHS[-1]), None)[STREAM] / stream[0] > 3


@pytest.mark.parametrize("kind", ["T5", "untied, gated", "decoder-only, no-op key"])
def test_muon_changes_wide_and_deep_models_as_much_as_small_ones(kind):
    by_width = [changes(shape(kind, width), BASE, optimizer="muon")[STREAM] for width in WIDTHS]
    by_depth = [changes(shape(kind, depth=depth), BASE, optimizer="muon")[STREAM] for depth in DEPTHS]
    fixed_wide = changes(shape(kind, WIDTHS[-1]), None, optimizer="muon")[STREAM]
    fixed_deep = changes(shape(kind, depth=DEPTHS[-1]), None, optimizer="muon")[STREAM]
    assert max(by_width) / min(by_width) < 1.5
    assert max(by_depth) / min(by_depth) < 2.5
    assert fixed_wide / by_width[0] > 1.6
    assert fixed_deep / by_depth[0] > 3


@pytest.mark.parametrize("trained", ["qkv", ".q", ".kv", ".o", "wi", "wo"])
def test_each_kind_of_matrix_moves_the_stream_by_as_much_at_four_times_the_width(trained):
    for kind in ("T5", "rotary, keys and values by layer"):
        small, large = shape(kind), shape(kind, 256)
        assert 0.7 < growth(STREAM, small, large, BASE, trained) < 1.3
        assert growth(STREAM, small, large, None, trained) > 1.4


@pytest.mark.parametrize("trained", ["embedding", "decoder.norm.weight", "lm_head"])
def test_parameters_next_to_the_logits_move_them_by_no_more_at_four_times_the_width(trained):
    kind = "untied, gated" if trained == "lm_head" else "T5"
    small, large = shape(kind), shape(kind, 256)
    assert 0.5 < growth(LOGITS, small, large, BASE, trained) < 1.1
    assert growth(LOGITS, small, large, None, trained) > 1.2


def test_every_parameter_of_every_kind_of_model_is_in_one_group():
    for a in random_architectures(150):
        with torch.device("meta"):
            model = build(a, base=BASE)
        groups, names = parameter_groups(model, BASE), [name for name, _ in model.named_parameters()]
        assert sorted(name for group in groups for name in group.parameters) == sorted(names), a.name
        assert sum(group.describe(TINY_TRAINING)["num_params"] for group in groups) == a.num_params
        assert len({(group.decays, group.factor) for group in groups}) == len(groups)
        assert [(group.decays, group.factor) for group in parameter_groups(model, None)] == [(True, 1.0), (False, 1.0)]


def test_factors_are_those_of_the_papers():
    a = Architecture.parse("L3-D128-H2x16-F512-untied-xlayer-noop-V50-Bflat64")
    with torch.device("meta"):
        model = build(a, base=BASE)
    found = {name: group.factor for group in parameter_groups(model, BASE) for name in group.parameters}
    layer = "decoder.layers.0"
    assert found["embedding"] == found[f"{layer}.norm.weight"] == found["decoder.relative_bias"] == 1
    assert found[f"{layer}.attention.noop_key"] == found["encoder.norm.weight"] == 1
    assert found[f"{layer}.attention.qkv"] == found[f"{layer}.feed_forward.wi"] == 64 / 64
    assert found["decoder.projections.0.weight"] == 64 / 128
    assert found["decoder.projections.3.weight"] == 64 / 64
    assert found[f"{layer}.cross_attention.kv"] == 64 / 32
    assert found[f"{layer}.attention.o"] == found[f"{layer}.cross_attention.o"] == pytest.approx(64 / 32 * 2 / 3)
    assert found[f"{layer}.feed_forward.wo"] == pytest.approx(128 / 512 * 2 / 3)
    assert found["lm_head"] == found["decoder.norm.weight"] == pytest.approx(0.5**0.5)


def test_all_matrices_have_the_same_weight_decay_per_step():
    training = TrainingConfig(learning_rate=3e-3, weight_decay=0.2)
    for group in parameter_groups(build(shape("T5", 256, 4), base=BASE), BASE):
        settings = group.settings(training)
        assert settings["lr"] * settings["weight_decay"] == pytest.approx(6e-4 if group.decays else 0)


def test_the_base_shape_trains_to_the_same_bits_as_at_a_fixed_rate(make_trial: MakeTrial, undisturbed: Path) -> None:
    folder = make_trial("base", learning_rate_scaling="width", base_shape=TINY)
    ended = train(folder)
    assert ended.returncode == 0, ended.stderr
    for kind in ("train", "evaluation"):
        assert lines(folder, kind) == lines(undisturbed, kind)
    assert (folder / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()
    assert parameter_group_rows(folder) == parameter_group_rows(undisturbed)
    assert [group["name"] for group in parameter_group_rows(folder)] == [
        "with weight decay, rate x 1",
        "no weight decay, rate x 1",
    ]


SCALED = {"learning_rate_scaling": "width", "base_shape": "L2-D64-H2x16-F128"}
"""The tiny model is half as wide and half as deep: rates 4, 2, √2 and 1 times the trial's."""


def parameter_group_rows(folder: Path) -> list[dict]:
    """Return the parameter groups that a trial wrote to its folder."""
    return json.loads((folder / "optimizer_groups.json").read_text())


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_deepspeed_moves_every_parameter_at_its_own_rate(make_trial: MakeTrial, zero_stage: int) -> None:
    folder = make_trial("one", ranks=2, tokens=256, zero_stage=zero_stage, checkpoints=0, evaluations=1, **SCALED)
    ended = train(folder)
    assert ended.returncode == 0, ended.stderr
    torch.manual_seed(0)
    before = dict(build(Architecture.parse(TINY), base=Architecture.parse(SCALED["base_shape"])).named_parameters())
    after, groups = load_file(folder / "weights.safetensors"), parameter_group_rows(folder)
    assert {round(group["rate_factor"], 4) for group in groups} == {4.0, 2.0, 1.4142, 1.0}
    assert sorted(name for group in groups for name in group["parameters"]) == sorted(before)
    for group in groups:
        decayed = 1 - group["learning_rate"] * group["weight_decay"]
        for name in group["parameters"]:  # Adam's first step is the learning rate, whatever the gradient
            moved = (after[name] - decayed * before[name].detach()).abs()
            assert float(moved.max()) == pytest.approx(1e-2 * group["rate_factor"], rel=1e-3), name
            assert float(moved.median()) == pytest.approx(float(moved.max()), rel=0.02), name
    assert [line["learning_rate"] for line in lines(folder, "train")] == [1e-2]


def test_scaled_rates_train_alike_on_one_and_two_ranks_and_after_a_kill(
    make_trial: MakeTrial,
) -> None:
    recipe = {**SCALED, "learning_rate": 2e-3, "schedule": "linear", "warmup_tokens": 1024}
    one, two, stopped = (make_trial(name, ranks, **recipe, zero_stage=stage)
                         for name, ranks, stage in (("one", 1, 0), ("two", 2, 2), ("stopped", 1, 0)))  # fmt: skip
    for folder in (one, two):
        ended = train(folder)
        assert ended.returncode == 0, ended.stderr
    for line_one, line_two in zip(lines(one, "train"), lines(two, "train"), strict=True):
        assert line_two["loss"] == pytest.approx(line_one["loss"], abs=1e-4)
        assert line_two["learning_rate"] == line_one["learning_rate"]
    assert result(two)["loss"] == pytest.approx(result(one)["loss"], abs=1e-4)
    assert max(line["learning_rate"] for line in lines(one, "train")) == 2e-3
    stop_at_step(stopped, 14)
    assert train(stopped).returncode == 0
    assert lines(stopped, "train") == lines(one, "train")
    assert (stopped / "weights.safetensors").read_bytes() == (one / "weights.safetensors").read_bytes()


def test_an_invalid_base_shape_is_refused():
    scaled = replace(TINY_TRAINING, learning_rate_scaling="width")
    assert base_shape(TINY_TRAINING) is None
    assert base_shape(scaled) == Architecture()
    for name in ("L4-D128-H4x32-F512-Bflat64", "L4-D128-H4x32-F512-morefirst", "L4+2-D128-H4x32-F512"):
        with pytest.raises(ConfigError) as caught:
            base_shape(replace(scaled, base_shape=name))
        assert str(caught.value) == (
            "[training]: base_shape must have a single depth, width and number of heads, as in "
            f"L12-D768-H12x64-F3072, not {name}."
        )
    with pytest.raises(ArchitectureError):
        base_shape(replace(scaled, base_shape="wide"))
    with pytest.raises(ConfigError, match='"width" needs init "t5", which scales matrices by their fan-in, not "nor'):
        replace(scaled, init="normal-0.02")
