"""Measure march-search on a GPU, in three parts of nine minutes each; `scripts/gpu_acceptance.sh` runs it."""
