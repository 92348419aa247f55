"""Builds the report of a study: an HTML page and its figures."""
