"""Files on disk: atomic writes, locks, and JSON tables."""
