"""Collect everything that the trials of a study show: ranking, regime, predictions, effects and findings."""

from collections import defaultdict
from dataclasses import dataclass

from march_search.analysis.early_order import EarlyOrder, early_orders
from march_search.analysis.effects import Effects, effects
from march_search.analysis.findings import Answer, findings
from march_search.analysis.horizon import Horizon, horizon
from march_search.analysis.measurement import Trials
from march_search.analysis.ranking import Ranking, rank
from march_search.analysis.regime import Regime, regime
from march_search.analysis.shorter_budgets import BudgetOrder, budget_orders
from march_search.analysis.study_record import StudyRecord
from march_search.architecture.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Results of a study and what can be concluded from them."""

    study: StudyRecord
    ranking: Ranking
    regime: Regime | None
    early_orders: tuple[EarlyOrder, ...]
    horizon: Horizon | None
    """Predicted ranking at a longer budget; None unless requested."""
    effects: Effects | None
    """Effect of each dimension; None unless requested."""
    answers: tuple[Answer, ...]
    """Answers to the named findings; empty unless requested."""
    budget_orders: tuple[BudgetOrder, ...] = ()
    """The order at each data budget at which decay branches ended; empty without them."""


def study_evidence(
    study: StudyRecord,
    assumed: float | None = None,
    with_seed_noise: bool = True,
    tokens: int | None = None,
    with_effects: bool = False,
) -> Evidence:
    """Collect the results of a study.

    Args:
        study: The study.
        assumed: Deviation over seeds of every architecture's prior, in nats; None for the recorded priors.
        with_seed_noise: Whether ties and probabilities cover the choice of seeds.
        tokens: Data budget at which to predict the ranking; None for no prediction.
        with_effects: Whether to estimate effects and test the named findings.
    """
    ranking = rank(study, assumed, with_seed_noise)
    shapes, means = [p.architecture for p in ranking.pooled], [p.loss for p in ranking.pooled]
    found = regime(study, ranking)
    return Evidence(
        study=study,
        ranking=ranking,
        regime=found,
        early_orders=early_orders(ranking.pooled),
        horizon=None if tokens is None else horizon(study, ranking, found, tokens),
        effects=effects(shapes, means, with_importance=True) if with_effects else None,
        answers=findings(_trials(study, ranking)) if with_effects else (),
        budget_orders=budget_orders(study.whole or study),
    )


def _trials(study: StudyRecord, ranking: Ranking) -> Trials:
    """Return the losses of the ranked architectures, with those at other learning rates."""
    rates: dict[Architecture, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trial in study.trials:
        if trial.state == "complete" and trial.loss is not None:
            rates[trial.architecture][trial.config.training.learning_rate].append(trial.loss)
    return Trials(
        architectures=[p.architecture for p in ranking.pooled],
        means=[p.loss for p in ranking.pooled],
        counts=[len(p.trials) for p in ranking.pooled],
        rates=[rates[p.architecture] for p in ranking.pooled],
        seeds=ranking.seeds,
        data=ranking.data,
    )
