#!/usr/bin/env bash
# Checks format, lint, types and tests, on all cores. Arguments go to pytest: `bash scripts/test.sh --all` also runs the
# tests that kill, damage or train for long; `-n 0` runs all tests in one process.
. "$(dirname "$0")/setup.sh" test

.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal "$@"
