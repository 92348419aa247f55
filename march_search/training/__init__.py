"""Train one trial in its own process: `python -m march_search.training DIR` reads trial.json and writes its results."""
