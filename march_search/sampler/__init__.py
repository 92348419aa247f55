"""An Optuna sampler over a feasible set."""
