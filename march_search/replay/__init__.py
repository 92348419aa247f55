"""Search strategies run on recorded learning curves, without training."""
