"""Optimize with plain Optuna over the architectures that meet a parameter budget, without rejections or repetitions.

    python examples/optuna_sampler.py

No model is trained: the objective is a formula that stands in for a validation loss. To train models instead, replace
`objective` by `march_search.TrainingObjective("my-study.toml", sampler.suggest)`, as docs/optuna.md explains.
"""

import optuna

from march_search import Architecture, FeasibleSampler, SearchSpace, solve

feasible = solve(SearchSpace.load("t5-220m"))
sampler = FeasibleSampler(feasible, "tpe", seed=0)  # or "gp", "cmaes", "random", "qmc", or any Optuna sampler


def objective(trial: optuna.Trial) -> float:
    """Return an artificial loss; gated models with 12 layers of width 768 are best."""
    a = sampler.suggest(trial)  # or trial.suggest_int("num_layers", 1, 24) and so on, in any order
    gated = a.feed_forward_proj == "gated-gelu"
    return 3 + abs(a.num_layers - 12) / 12 + abs(a.d_model - 768) / 768 - 0.1 * gated


def main() -> None:
    """Run 60 trials and print the best one and the importance of each dimension."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=60)
    names = [trial.user_attrs["architecture"] for trial in study.trials]
    members = sum(Architecture.parse(name) in feasible for name in names)
    print(f"{len(names)} trials: {members} meet the budget, {len(set(names))} are distinct")
    print(f"best: {study.best_trial.user_attrs['architecture']}, loss {study.best_value:.3f}")
    for axis, importance in optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    ).items():
        print(f"  {axis:<18} {importance:.2f}")


if __name__ == "__main__":
    main()
