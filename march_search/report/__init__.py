"""Rows become rich tables, JSON, CSV or Markdown."""
