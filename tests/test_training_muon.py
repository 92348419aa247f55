"""Muon: the same steps as torch's on the parts of fused matrices, whole, flattened and partitioned, and on resuming."""

from dataclasses import replace

import pytest
import torch
from helpers.trials import TINY, TINY_TRAINING, MakeTrial, lines, result, stop_at_step, train

from march_search import Architecture
from march_search.config import TrainingConfig
from march_search.config.scaling import muon_factor
from march_search.cost.memory import memory
from march_search.cost.setup import Setup
from march_search.cost.speed import flops_per_token, muon_flops
from march_search.errors import ConfigError
from march_search.model import build
from march_search.training import muon as muon_module
from march_search.training.muon import MuonAndAdamW, orthogonal
from march_search.training.optimizer import parameter_groups

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINING = TrainingConfig(optimizer="muon", learning_rate=1e-2, weight_decay=0.1)


def gradients(model: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
    """Return a random gradient for each parameter."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def optimizer_of(model: torch.nn.Module) -> MuonAndAdamW:
    """Return the optimizer of a trial for `model`."""
    groups = [
        {"params": list(group.parameters.values()), **group.settings(TRAINING)}
        for group in parameter_groups(model, None, "muon")
    ]
    return MuonAndAdamW(groups, lr=TRAINING.learning_rate, betas=TRAINING.betas, eps=TRAINING.epsilon)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon before 2.9")
@pytest.mark.parametrize("name", [TINY, "L1-D32-H2x16-F80-xlayer-V50", "L1-D48-H2x16-F64-dec-rope-untied-V50"])
def test_steps_are_those_of_torch_on_the_parts_of_fused_matrices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon_module, "CPU_DTYPE", torch.bfloat16)  # torch's own type
    torch.manual_seed(0)
    model = build(Architecture.parse(name))
    reference = {key: p.detach().clone() for key, p in model.named_parameters()}
    parts: dict[str, list[torch.Tensor]] = {}
    for key, p in reference.items():
        inner = 32
        if key.endswith(("qkv", ".kv")):
            parts[key] = list(p.split(inner))
        elif key.endswith("wi") and "geglu" in name:
            parts[key] = list(p.chunk(2))
        elif key.endswith((".q", ".o", "wi", "wo")):
            parts[key] = [p]
    muon_parts = {key: [part.clone().requires_grad_() for part in split] for key, split in parts.items()}
    others = {key: p.clone().requires_grad_() for key, p in reference.items() if key not in parts}
    every = [part for split in muon_parts.values() for part in split]
    muon = torch.optim.Muon(every, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    decayed = [p for key, p in others.items() if p.ndim == 2 and not key.endswith(("embedding", "bias"))]
    decayed += [p for key, p in others.items() if key == "embedding"]
    rest = [p for p in others.values() if not any(p is one for one in decayed)]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.95)
    )
    ours = optimizer_of(model)
    for step in range(3):
        for key, gradient in gradients(model, step).items():
            dict(model.named_parameters())[key].grad = gradient.clone()
            if key in others:
                others[key].grad = gradient.clone()
            else:
                for part, own in zip(muon_parts[key], gradient.split([len(p) for p in parts[key]]), strict=True):
                    part.grad = own.clone()
        ours.step()
        muon.step()
        adamw.step()
    for key, p in model.named_parameters():
        expected = others[key] if key in others else torch.cat(muon_parts[key])
        torch.testing.assert_close(p, expected, rtol=0, atol=0, msg=key)
    moments = [s["exp_avg"].numel() + s["exp_avg_sq"].numel() for s in ours.state.values()]
    matrices = sum(p.numel() for key, p in reference.items() if key in parts)
    assert sum(moments) == 2 * sum(p.numel() for p in reference.values()) - matrices


def test_the_iteration_in_fp32_gives_orthogonal_matrices_near_those_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    exact = orthogonal(matrix)
    assert exact.dtype == torch.float32
    singular_values = torch.linalg.svdvals(exact)
    assert singular_values.min() > 0.65
    assert singular_values.max() < 1.25
    monkeypatch.setattr(muon_module, "CPU_DTYPE", torch.bfloat16)
    assert torch.linalg.vector_norm(orthogonal(matrix).float() - exact) < 0.05 * torch.linalg.vector_norm(exact)


MUON = {"optimizer": "muon", "learning_rate": 5e-3}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("bf16", 0.05)])
def test_stages_and_ranks_train_alike_and_a_kill_changes_no_bit(
    make_trial: MakeTrial, precision: str, tolerance: float
) -> None:
    few = {**MUON, "precision": precision, "tokens": 24 * 256}
    one, two = make_trial("one", **few), make_trial("two", ranks=2, zero_stage=1, **few)
    three, stopped = make_trial("three", ranks=2, zero_stage=2, **few), make_trial("stopped", **few)
    for folder in (one, two, three):
        ended = train(folder)
        assert ended.returncode == 0, ended.stderr
    for other in (two, three):
        for line_one, line in zip(lines(one, "train"), lines(other, "train"), strict=True):
            assert line["loss"] == pytest.approx(line_one["loss"], abs=tolerance)
    assert result(one)["loss"] < lines(one, "train")[0]["loss"] - 0.3
    stop_at_step(stopped, 14)
    assert train(stopped).returncode == 0
    assert lines(stopped, "train") == lines(one, "train")
    assert (stopped / "weights.safetensors").read_bytes() == (one / "weights.safetensors").read_bytes()


def test_what_muon_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs whole matrices, but zero_stage 3 partitions them"):
        replace(TINY_TRAINING, optimizer="muon", zero_stage=3)
    assert muon_factor("q", 64, 256, {}, None) == pytest.approx(0.2 * 16)


def test_memory_and_price_count_one_moment_and_the_iterations() -> None:
    a = Architecture.parse("L2-D64-H2x32-F256-V400")
    adamw = Setup(global_batch_tokens=4096)
    muon = replace(adamw, optimizer="muon")
    with torch.device("meta"):
        groups = parameter_groups(build(a), None, "muon")
    matrices = sum(rows * columns for rows, columns, _ in groups[0].pieces)
    assert memory(a, adamw).optimizer - memory(a, muon).optimizer == pytest.approx(4 * matrices / adamw.device.count)
    operations = sum(5 * (4 * min(r, c) ** 2 * max(r, c) + 2 * min(r, c) ** 3) for r, c, _ in groups[0].pieces)
    assert muon_flops(a) == operations
    assert flops_per_token(a, muon) - flops_per_token(a, adamw) == pytest.approx(operations / 4096)
