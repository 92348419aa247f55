"""Analyse results: read trial folders back and compute rankings, noise, effects and predictions. Numbers only."""
