"""Studies: Optuna over the feasible set, one child process a trial."""
