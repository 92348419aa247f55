"""`python -m march_search.model.step_times JSON`: time optimizer steps of shapes on random tokens, on this CPU.

JSON has `names`, `inputs`, `targets` (lengths of an example), `sequences` (examples per step), `precision`, `threads`
and `seconds` (time per shape). It prints the median seconds per step of each shape, as a JSON list.
"""

import json
import os
import statistics
import sys
import time

from march_search.processes import die_with_parent

WARM_UP = 2
"""Steps of each shape that are not counted."""


def main(text: str) -> None:
    """Time the shapes and print the seconds per step."""
    die_with_parent()
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in training: idle threads sleep
    import torch

    from march_search.architecture.architecture import Architecture
    from march_search.model import build

    work = json.loads(text)
    torch.set_num_threads(work["threads"])
    found = []
    for name in work["names"]:
        a = Architecture.parse(name)
        model = build(a)
        if work["precision"] == "bf16":
            model.bfloat16()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        inputs, targets = (torch.randint(a.vocab_size, (work["sequences"], work[key])) for key in ("inputs", "targets"))
        times: list[float] = []
        began = time.monotonic()
        while len(times) < WARM_UP + 3 or time.monotonic() - began < work["seconds"]:
            start = time.perf_counter()
            model(inputs if a.structure == "encoder-decoder" else None, targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - start)
        found.append(statistics.median(times[WARM_UP:]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
