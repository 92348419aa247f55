"""Format rows as rich tables, JSON, CSV or Markdown."""
