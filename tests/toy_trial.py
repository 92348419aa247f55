"""Stands in for `python -m march_search.training DIR`: reads trial.json, writes metrics and a result, trains nothing.

The loss falls from 8 to a number that depends on the shape alone, wide models being best. Environment variables make it
misbehave: TOY_SECONDS an evaluation, TOY_FAIL / TOY_KILL / TOY_SILENT the architecture that fails, is killed, or ends
with code 0 and no result.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from march_search import Architecture
from march_search.training.ranks import die_with_parent

die_with_parent()
folder = Path(sys.argv[1])
trial = json.loads((folder / "trial.json").read_text())
name, tokens = trial["architecture"], trial["training"]["tokens"]
final = 5 - Architecture.parse(name).d_model / 1000 + 0.001 * trial["seed"]
if name == os.environ.get("TOY_FAIL"):
    (folder / "failure.json").write_text(json.dumps({"reason": "the toy was told to fail."}))
    sys.exit(1)
with (folder / "metrics.jsonl").open("w", buffering=1) as metrics:
    for part in range(1, 5):
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        loss = final + (8 - final) * (1 - part / 4)
        shared = {"step": part, "tokens": tokens * part // 4, "loss": loss}
        metrics.write(json.dumps({"kind": "train", **shared, "tokens_per_second": 1000.0}) + "\n")
        metrics.write(json.dumps({"kind": "evaluation", **shared, "context_gain": 0.01 * part}) + "\n")
        if name == os.environ.get("TOY_KILL"):
            os.kill(os.getpid(), signal.SIGKILL)
if name != os.environ.get("TOY_SILENT"):
    result = {"architecture": name, "seed": trial["seed"], "tokens": tokens, "loss": final, "context_gain": 0.04}
    (folder / "result.json").write_text(json.dumps(result | {"tokens_per_second": 1000.0}))
