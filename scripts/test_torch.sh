#!/usr/bin/env bash
# Runs the tests of models and trials with another version of torch: `bash scripts/test_torch.sh 2.5.1`. It installs into
# a temporary virtual environment of about 5 GB, because older CPU builds are not on PyPI. With a folder as the second
# argument, `--install VERSION FOLDER` only installs, and `VERSION FOLDER` uses what is installed there.
set -eu
only_install=false
if [ "${1:-}" = --install ]; then only_install=true; shift; fi
version=${1:?use: bash scripts/test_torch.sh VERSION}
cd "$(dirname "$0")/.."
if [ $# -gt 1 ]; then
  folder=$2
else
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
python=$folder/venv/bin/python

if [ ! -e "$folder/installed" ]; then
  mkdir -p "$folder"
  grep -vE '^(torch|sympy)==' constraints.txt > "$folder/constraints.txt"
  echo "torch==$version" >> "$folder/constraints.txt"
  "${PYTHON:-python3}" -m venv "$folder/venv"
  PIP_CONSTRAINT="$folder/constraints.txt" "$python" -m pip install --quiet --disable-pip-version-check \
    --no-cache-dir -e '.[demo]' pytest pytest-xdist hypothesis
  touch "$folder/installed"
fi
if $only_install; then exit; fi
export PYTHONDONTWRITEBYTECODE=1
"$python" -c "import torch; print('torch', torch.__version__)"
"$python" -m march_search doctor
"$python" -m pytest -q -n logical --dist worksteal -p no:cacheprovider tests/test_model.py tests/test_model_properties.py \
  tests/test_training_loop.py tests/test_training_scaling.py tests/test_cost.py
