"""The gain of context of decoder-only models: what a text loses if all but its last few tokens of context are cut."""

import pytest
import torch

from march_search import Architecture
from march_search.model import build
from march_search.training.engine import RankInfo
from march_search.training.evaluation import CUT, Validation, evaluate

RANK = RankInfo(rank=0, world_size=1, device=torch.device("cpu"))


class Reader:
    """Stands in for an engine: the loss falls by 0.01 nats per token of context, up to `reach` tokens."""

    def __init__(self, reach: int) -> None:
        self.reach = reach

    def __call__(self, inputs: None, targets_BT: torch.Tensor, output: str, starts_BT: None) -> torch.Tensor:
        assert (inputs, output, starts_BT) == (None, "token_losses", None)
        context_T = torch.arange(targets_BT.shape[1]).clamp(max=self.reach)
        return (5 - 0.01 * context_T).expand(targets_BT.shape)

    def eval(self) -> None:
        """Do nothing."""

    def train(self) -> None:
        """Do nothing."""


def values(engine: object, length: int, examples: int = 5) -> dict[str, float]:
    """Return the values of an evaluation of texts of so many tokens, in batches of two."""
    texts = torch.zeros((examples, length), dtype=torch.long)
    return evaluate(engine, Validation(None, texts), 2, RANK).values


@pytest.mark.parametrize("length", [64, 70])
def test_the_gain_is_the_loss_that_distant_context_saves(length: int) -> None:
    found = values(Reader(reach=1000), length)
    assert found["loss"] == pytest.approx(5 - 0.01 * (length - 1) / 2)
    pieces = range(1, length // (2 * CUT))
    lost = [2 * CUT * piece for piece in pieces]  # tokens of context that the cut takes from a piece
    assert found["context_gain"] == pytest.approx(0.01 * sum(lost) / len(lost), abs=1e-6)


def test_models_of_ngrams_gain_nothing() -> None:
    assert values(Reader(reach=CUT), 64)["context_gain"] == pytest.approx(0.0, abs=1e-9)
    assert values(Reader(reach=2 * CUT), 64)["context_gain"] > 0.01


def test_texts_too_short_to_be_cut_have_no_gain() -> None:
    assert set(values(Reader(reach=1000), 4 * CUT - 1)) == {"loss"}
    assert set(values(Reader(reach=1000), 4 * CUT)) == {"loss", "context_gain"}


class Positions(Reader):
    """Stands in for an engine: the loss of a token is its position in its document."""

    def __call__(self, inputs: None, targets_BT: torch.Tensor, output: str, starts_BT: torch.Tensor) -> torch.Tensor:
        assert (inputs, output) == (None, "token_losses")
        assert starts_BT.shape == targets_BT.shape
        return torch.arange(targets_BT.shape[1]) - starts_BT.float()


def test_masked_documents_are_masked_in_whole_and_in_cut_texts() -> None:
    texts = torch.zeros((2, 64), dtype=torch.long)
    starts = torch.tensor([[0] * 20 + [20] * 44, [0] * 64])  # a document begins at 20, or none does
    found = evaluate(Positions(0), Validation(None, texts, starts_NT=starts), 2, RANK)
    whole = torch.stack([torch.cat([torch.arange(20), torch.arange(44)]), torch.arange(64)]).double()
    assert found.losses_N.tolist() == whole.mean(1).tolist()
    # Pieces of 16 tokens start at 16, 32 and 48; their second halves at 24, 40 and 56. The document from 20 on is
    # whole in the first of these pieces.
    lost = [[0.0, -12.0, -28.0], [-16.0, -32.0, -48.0]]
    assert found.without_N is not None
    assert (found.without_N - found.losses_N).tolist() == pytest.approx([sum(row) / 3 for row in lost])


def test_a_model_on_its_plateau_has_no_gain_and_one_that_copies_has() -> None:
    torch.manual_seed(0)
    model = build(Architecture.parse("L2-D32-H2x16-F64-abs-M32-dec-V32"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def texts(count: int) -> torch.Tensor:
        """Return random texts whose second half repeats the first."""
        half = torch.randint(4, 32, (count, 16))
        return torch.cat([half, half], dim=1)

    class Engine:
        """The model, called as DeepSpeed's engine is."""

        def __call__(self, inputs: None, targets: torch.Tensor, output: str, starts_BT: None) -> torch.Tensor:
            return model(inputs, targets, output=output, starts_BT=starts_BT)

        eval, train = model.eval, model.train

    validation, gains = Validation(None, texts(16)), {}
    for step in range(1, 151):
        loss = model(None, texts(32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (50, 150):
            gains[step] = evaluate(Engine(), validation, 16, RANK).values["context_gain"]
    assert abs(gains[50]) < 0.05  # it knows the frequencies of tokens, and no more
    assert gains[150] > 1
