"""Plain Optuna over the architectures that meet a parameter budget: nothing is rejected, nothing is tried twice.

Run it: `python examples/optuna_sampler.py`. No model is trained; the objective is a formula that stands for one.
"""

import optuna

from march_search import Architecture, SearchSpace, solve
from march_search.sampler.feasible_sampler import FeasibleSampler

found = solve(SearchSpace.load("t5-220m"))
sampler = FeasibleSampler(found, "tpe", seed=0)  # also "gp", "cmaes", "random", "qmc", or any sampler of Optuna's


def objective(trial: optuna.Trial) -> float:
    """A made-up loss: best are 12 layers of width 768, and gated."""
    a: Architecture = sampler.suggest(trial)  # or trial.suggest_int("num_layers", 1, 24), ... one by one, in any order
    gated = a.feed_forward_proj == "gated-gelu"
    return 3 + abs(a.num_layers - 12) / 12 + abs(a.d_model - 768) / 768 - 0.1 * gated


def main() -> None:
    """Sixty trials, and what they say about each dimension."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=60)
    names = [trial.user_attrs["architecture"] for trial in study.trials]
    members = sum(Architecture.parse(name) in found for name in names)
    print(f"{len(names)} trials: {members} on the budget, {len(set(names))} different")
    print(f"best: {study.best_trial.user_attrs['architecture']}, loss {study.best_value:.3f}")
    for axis, importance in optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    ).items():
        print(f"  {axis:<18} {importance:.2f}")


if __name__ == "__main__":
    main()
