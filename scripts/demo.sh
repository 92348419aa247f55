#!/usr/bin/env bash
# List the architectures with 220M parameters, train the demo study on a CPU, and rank it. Run it again to resume.
. "$(dirname "$0")/setup.sh" demo

.venv/bin/march-search solve --budget 220M
status=0
.venv/bin/march-search study run studies/cpu-demo.toml || status=$?
if [ "$status" -le 1 ]; then  # 1: some trials failed
  .venv/bin/march-search rank cpu-demo
fi
exit "$status"
