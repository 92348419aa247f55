"""Results read back from trial folders."""
