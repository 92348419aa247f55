#!/usr/bin/env bash
# Everything a change has to pass: format, lint, types, tests. Arguments go to pytest.
. "$(dirname "$0")/setup.sh" test

.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
