#!/usr/bin/env bash
# The main job on this machine: the 220M table, the CPU study on real text, its ranking. Safe to run again after a break.
. "$(dirname "$0")/setup.sh" demo

.venv/bin/march-search solve --budget 220M
status=0
.venv/bin/march-search study run studies/cpu-demo.toml || status=$?
if [ "$status" -le 1 ]; then
  .venv/bin/march-search rank cpu-demo
fi
exit "$status"
