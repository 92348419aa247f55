"""One trial as its own process: `python -m march_search.training DIR`, trial.json in, metrics and result out."""
