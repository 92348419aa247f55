"""Metrics for experiment trackers through their own libraries."""
