"""Turn rows into rich tables, JSON, CSV or Markdown, and results into sentences."""
