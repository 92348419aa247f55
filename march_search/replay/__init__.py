"""Recorded learning curves, and search strategies run on them without training."""
