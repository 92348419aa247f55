"""Stands in for `python -m march_search.training DIR [--until TOKENS]`: writes metrics and a result, trains nothing.

It needs only the standard library, so that it starts in milliseconds. The loss falls from 8 to a number that depends
on the shape alone: the wider, the lower. Environment variables make it misbehave. TOY_SECONDS is how long an evaluation
takes. TOY_FAIL, TOY_KILL and TOY_SILENT name the architecture that fails, is killed, or exits with code 0 and no
result. Decay branches end 0.2 below the stable run.
With TOY_DIES, every trial is killed once at each evaluation. TOY_HANGS is how often each trial hangs at three
quarters. A trial paused at TOKENS resumes there; a killed one starts again.
"""

import ctypes
import hashlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

HUNG = 76  # march_search.trial.outcome.HUNG
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # dies with its parent
if os.getppid() != int(os.environ.get("MARCH_SEARCH_PARENT", os.getppid())):
    os._exit(1)  # the parent died before
folder = Path(sys.argv[1])
trial = json.loads((folder / "trial.json").read_text())
name, tokens = trial["architecture"], trial["training"]["tokens"]
final = 5 - int(re.search(r"-D(\d+)", name)[1]) / 1000 + 0.001 * trial["seed"]
if name == os.environ.get("TOY_FAIL"):
    (folder / "failure.json").write_text(json.dumps({"reason": "TOY_FAIL names this architecture."}))
    sys.exit(1)
training, branches = trial["training"], []
for end in sorted(training.get("branch_tokens", [])):
    batch = training["global_batch_tokens"]
    start = end - max(1, round(end * training["decay_fraction"] / batch)) * batch
    decayed = final + (8 - final) * (1 - end / tokens) - 0.2
    branches.append({"tokens": end, "start_tokens": start, "loss": decayed})


def take_branch(branch: dict) -> None:
    """Write the lines of a decay branch."""
    shared = {"step": branch["start_tokens"], "tokens": branch["start_tokens"], "branch": branch["tokens"]}
    shared |= {"branch_step": branch["tokens"], "branch_tokens": branch["tokens"], "loss": branch["loss"]}
    metrics.write(json.dumps({"kind": "branch_train", **shared, "tokens_per_second": 1000.0}) + "\n")
    metrics.write(json.dumps({"kind": "branch_evaluation", **shared, "context_gain": 0.02}) + "\n")


until = int(sys.argv[3]) if sys.argv[2:3] == ["--until"] else tokens
pause = folder / "toy_paused"
done = int(pause.read_text()) if pause.is_file() else 0
with (folder / "metrics.jsonl").open("a" if done else "w", buffering=1) as metrics:
    before = done
    for seen in sorted({tokens * part // 4 for part in range(1, 5)} | {until}):
        if not done < seen <= until:
            continue
        for branch in branches:
            if before <= branch["start_tokens"] < seen:
                take_branch(branch)
        before = seen
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        loss = final + (8 - final) * (1 - seen / tokens)
        shared = {"step": seen, "tokens": seen, "loss": loss}
        metrics.write(json.dumps({"kind": "train", **shared, "tokens_per_second": 1000.0}) + "\n")
        metrics.write(json.dumps({"kind": "evaluation", **shared, "context_gain": 0.04 * seen / tokens}) + "\n")
        hung = folder / "toy_hung"
        times = len(hung.read_text()) if hung.is_file() else 0
        if 4 * seen == 3 * tokens and times < int(os.environ.get("TOY_HANGS", "0")):
            hung.write_text("x" * (times + 1))
            sys.exit(HUNG)
        died = folder / f"toy_died_{seen}"
        if name == os.environ.get("TOY_KILL") or ("TOY_DIES" in os.environ and not died.is_file()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
if until < tokens:
    pause.write_text(str(max(done, until)))
elif name != os.environ.get("TOY_SILENT"):
    result = {"architecture": name, "seed": trial["seed"], "tokens": tokens, "loss": final, "context_gain": 0.04}
    result["tokens_per_second"] = 1000.0
    result |= {"branches": branches} if branches else {}
    text = json.dumps(result, sort_keys=True, separators=(",", ":"))
    result["sha256"] = hashlib.sha256(text.encode()).hexdigest()  # as march_search.files.json_tables.sealed
    (folder / "result.new").write_text(json.dumps(result))
    (folder / "result.new").replace(folder / "result.json")
