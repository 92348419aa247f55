#!/usr/bin/env bash
# Writes the folder of wheels and text with which scripts/gpu_acceptance.sh runs on a GPU machine without network:
# bash scripts/gpu_bundle.sh FOLDER. It needs the network, a few minutes, and 60 MB.
set -eu
folder=$(realpath -m "${1:?use: bash scripts/gpu_bundle.sh FOLDER}")
. "$(dirname "$0")/setup.sh" test
PYTHONPATH=benchmarks .venv/bin/python -m gpu_acceptance.bundle "$folder"
