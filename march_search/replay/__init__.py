"""Replays search strategies on recorded learning curves, without training."""
