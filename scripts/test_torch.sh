#!/usr/bin/env bash
# Runs the tests of models and trials with another version of torch, in a temporary virtual environment:
# `bash scripts/test_torch.sh 2.5.1`. It needs several GB of disk, because older CPU builds are not on PyPI.
set -eu
version=${1:?use: bash scripts/test_torch.sh VERSION}
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
grep -v '^torch==' constraints.txt > "$folder/constraints.txt"
echo "torch==$version" >> "$folder/constraints.txt"
"${PYTHON:-python3}" -m venv "$folder/venv"
PIP_CONSTRAINT="$folder/constraints.txt" "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --no-cache-dir -e '.[demo]' pytest pytest-xdist hypothesis
export PYTHONDONTWRITEBYTECODE=1
"$folder/venv/bin/python" -c "import torch; print('torch', torch.__version__)"
"$folder/venv/bin/python" -m march_search doctor
"$folder/venv/bin/python" -m pytest -q -n logical --dist worksteal -p no:cacheprovider tests/test_model.py tests/test_model_properties.py \
  tests/test_training_loop.py tests/test_training_scaling.py tests/test_cost.py
