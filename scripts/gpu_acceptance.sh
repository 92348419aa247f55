#!/usr/bin/env bash
# Measures march-search on one GPU, without network, in three parts of at most nine minutes:
#   bash scripts/gpu_acceptance.sh exact    --bundle FOLDER --out OUT
#   bash scripts/gpu_acceptance.sh speed    --bundle FOLDER --out OUT
#   bash scripts/gpu_acceptance.sh survival --bundle FOLDER --out OUT
# `all` runs the three in turn. FOLDER is what scripts/gpu_bundle.sh wrote; what the Python at hand lacks is installed
# from it into OUT/site. A rehearsal on a CPU: bash scripts/gpu_acceptance.sh all --out OUT --device cpu --scale tiny
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
out='' bundle='' previous=''
for argument in "$@"; do
  case $previous in --out) out=$argument ;; --bundle) bundle=$argument ;; esac
  case $argument in --out=*) out=${argument#*=} ;; --bundle=*) bundle=${argument#*=} ;; esac
  previous=$argument
done
export PYTHONPATH="$here:$here/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -n "$bundle" ] && [ -n "$out" ]; then
  mkdir -p "$out"
  site=$(cd "$out" && pwd)/site
  "$python" -m gpu_acceptance.install "$bundle" "$site"
  export PYTHONPATH="$PYTHONPATH:$site"
fi
exec "$python" -m gpu_acceptance "$@"
