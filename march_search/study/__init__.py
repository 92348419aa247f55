"""Studies: Optuna over a feasible set, with one child process per trial."""
