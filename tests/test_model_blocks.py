"""The module of one's own block: checked against its formulas, initialised, and trained with an auxiliary loss."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from march_search import Architecture, Block
from march_search.architecture import block as blocks
from march_search.architecture.block_file import load_block
from march_search.errors import ConfigError
from march_search.model import build
from march_search.model.block_check import check_block
from march_search.model.block_layer import BlockLayer
from march_search.training.optimizer import parameter_groups

EXAMPLES = Path(__file__).parent.parent / "examples"
FIELDS = {"num_layers": 2, "d_model": 32, "num_heads": 2, "d_kv": 16, "d_ff": 24, "vocab_size": 50}
MOE = Architecture(**FIELDS, block="moe+num_experts=4+top_k=2")
TOKENS = torch.randint(2, 50, (3, 10), generator=torch.Generator().manual_seed(1))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def moe(monkeypatch: pytest.MonkeyPatch) -> Block:
    """The block of the worked example; what a test registers is forgotten."""
    monkeypatch.setattr(blocks, "_BLOCKS", {})
    return load_block("moe.py", EXAMPLES)


def model_of(a: Architecture, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    return build(a, **settings)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradient of the training loss of each parameter."""
    model.zero_grad()
    model(None if model.encoder is None else TOKENS, TOKENS).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "special",
    [
        {},
        {"structure": "decoder-only"},
        {"structure": "decoder-only", "share_layers": 2, "norm_position": "post", "bias": "all"},
        {"bottleneck": "flat", "d_bottleneck": 16},
    ],
    ids=str,
)
def test_the_model_has_the_parameters_of_the_formula_and_trains(special: dict) -> None:
    a = Architecture(**FIELDS, **special, block=MOE.block)
    model = model_of(a)
    assert sum(parameter.numel() for parameter in model.parameters()) == a.num_params
    assert all(bool(gradient.any()) for gradient in gradients(model).values())


def test_the_auxiliary_loss_is_trained_on_and_not_printed() -> None:
    model = model_of(MOE)
    layers = [layer for layer in model.modules() if isinstance(layer, BlockLayer)]
    loss, own = model(TOKENS, TOKENS), gradients(model)
    kept: list[torch.Tensor] = []
    for layer in layers:
        forward = layer.module.forward
        layer.module.forward = lambda x, forward=forward: kept.append(forward(x)) or kept[-1][0]
    without = gradients(model)
    assert (
        loss.item() == model(TOKENS, TOKENS).item() == pytest.approx(model.example_losses(TOKENS, TOKENS).mean().item())
    )
    kept.clear()
    model.zero_grad()
    auxiliary = (model(TOKENS, TOKENS), sum(loss for _, loss in kept))[1]
    auxiliary.backward()
    assert len(kept) == 4
    assert auxiliary.item() > 0.03
    for name, parameter in model.named_parameters():
        added = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(own[name], without[name] + added, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(
        own["decoder.layers.0.feed_forward.module.router"], without["decoder.layers.0.feed_forward.module.router"]
    )
    assert all(not layer.losses and not layer.keeps_losses for layer in layers)


def test_checkpointing_changes_no_gradient() -> None:
    one, other = gradients(model_of(MOE)), gradients(model_of(MOE, checkpointing=True))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_parameters_start_and_are_trained_by_their_dimensions() -> None:
    model, base = model_of(MOE), Architecture(**FIELDS | {"d_model": 8, "d_ff": 12, "d_kv": 4})
    own = model.decoder.layers[0].feed_forward.module
    assert own.wi.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert own.wo.std().item() == pytest.approx(24**-0.5, rel=0.1)
    small = dict(model_of(MOE, init="normal-0.02").named_parameters())
    assert small["decoder.layers.0.feed_forward.module.wi"].std().item() == pytest.approx(0.02, rel=0.1)
    rates = {n: g.factor for g in parameter_groups(model, base) for n in g.parameters}
    assert [rates[f"decoder.layers.0.feed_forward.module.{n}"] for n in ("router", "wi", "wo")] == [0.25, 0.25, 0.5]
    muon = parameter_groups(model, None, "muon")
    assert muon[0].pieces
    assert not any("module" in name for name in muon[0].parameters)
    assert {n for g in muon for n in g.parameters} == {n for n, _ in model.named_parameters()}


def test_the_operations_are_those_that_torch_counts(moe: Block) -> None:
    layer = BlockLayer(MOE.block, 32, 24, 1)
    torch.nn.init.normal_(layer.module.router)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(2, 9, 32))
    assert counter.get_total_flops() == 18 * moe.counts(32, 24, MOE.block_fields).flops


class Changed(nn.Module):
    """A linear layer that a test changes in one way."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.empty(width, width))
        self.scale = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width + (how == "one parameter more")))

    def forward(self, x: torch.Tensor) -> object:
        y = (x @ self.weight.T) * self.scale + (0 if self.how == "unused" else self.bias[: x.shape[-1]])
        return {
            "another shape": lambda: y[:, :-1],
            "no tensor": lambda: [y],
            "not finite": lambda: y / 0,
            "noise": lambda: y + torch.randn_like(y),
            "later positions": lambda: y + x.mean(1, keepdim=True),
            "the batch": lambda: y + x.mean((0, 2))[0],
            "raises": lambda: y.nothing,
            "auxiliary": lambda: (y, y),
        }.get(self.how, lambda: y)()


def changed(how: str) -> Block:
    def build(d_model: int, d_ff: int) -> nn.Module:
        return Changed(d_model, how)

    return Block(name="changed", num_params=lambda d_model, d_ff: d_model * (d_model + 2), build=build)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("one parameter more", r"num_params is [\d,]+, but its module has [\d,]+ parameters"),
        ("another shape", r"must return \(4, 16, \d+\) of torch.float32, not \(4, 15, \d+\)"),
        ("no tensor", "must return .* not list"),
        ("not finite", "returned numbers that are not finite"),
        ("noise", "the same input gave two outputs"),
        ("later positions", "a position sees later ones"),
        ("raises", "AttributeError"),
        ("auxiliary", "the auxiliary loss must be one finite number"),
    ],
)
def test_a_module_that_breaks_the_contract_is_refused(how: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"the block changed\+ at d_model=\d+, d_ff=\d+: {message}"):
        check_block(changed(how))


def test_a_sound_module_passes_and_oddities_are_named(moe: Block) -> None:
    assert str(check_block(changed("sound"))).endswith("outputs and gradients are sound")
    assert check_block(changed("unused")).unreached == ("bias",)
    assert check_block(changed("the batch")).mixes_examples
    found = check_block(moe)
    assert found.num_shapes >= 8
    assert (found.unreached, found.mixes_examples) == ((), False)


def test_formulas_that_disagree_are_refused() -> None:
    def block(**formulas: object) -> Block:
        return Block(name="odd", build=lambda d_model, d_ff: nn.Linear(d_model, d_model, bias=False), **formulas)

    def square(d_model, d_ff):
        return d_model * d_model

    with pytest.raises(ConfigError, match=r"active_params is .* more than num_params"):
        check_block(block(num_params=square, active_params=lambda d_model, d_ff: d_model**3))
    with pytest.raises(ConfigError, match=r"params is .* for whole numbers and .* for arrays"):
        check_block(block(num_params=lambda d_model, d_ff: d_model**2 if isinstance(d_model, int) else d_model))
