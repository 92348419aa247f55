"""Checks of the installation. Each check is a function that returns one finding; a failure does not stop the others."""
