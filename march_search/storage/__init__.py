"""Where a study is kept: its folder, its Optuna storage, and who runs which trial."""
