"""Measure one part of the acceptance run, or all. `scripts/gpu_acceptance.sh` calls this module."""

import argparse
import os
import sys
import time
from pathlib import Path

from gpu_acceptance import exact, survival, throughput
from gpu_acceptance.acceptance_run import AcceptanceRun, prepared
from gpu_acceptance.scale import SCALES
from march_search.errors import MarchSearchError, TrialError
from march_search.processes import run_python

PARTS = {"exact": exact.run, "speed": throughput.run, "survival": survival.run}
"""The parts, in the order in which `all` runs them."""

_HAS_GPU = "import torch; print(int(torch.cuda.is_available()))"


def main() -> int:
    """Run one part, or all, and return 1 if a row failed, else 0."""
    parser = argparse.ArgumentParser(prog="bash scripts/gpu_acceptance.sh", description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--bundle", type=Path, help="folder that scripts/gpu_bundle.sh wrote; not needed at tiny scale")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--seconds", type=float, default=540, help="time of a part (default: 540)")
    options = parser.parse_args()
    try:
        return max([_part(name, options) for name in (PARTS if options.part == "all" else [options.part])])
    except MarchSearchError as error:
        print(f"{options.part}: {error}", file=sys.stderr)
        return error.exit_code


def _part(name: str, options: argparse.Namespace) -> int:
    """Run one part."""
    deadline = time.monotonic() + options.seconds
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    kind = options.device
    if kind != "cpu":
        printed, fault = run_python(_HAS_GPU)
        if printed is None or printed.strip() != "1":
            if kind == "cuda" or options.scale == "full":
                raise TrialError(f"torch finds no GPU {fault}; rehearse with --device cpu --scale tiny.")
            kind = "cpu"
        else:
            kind = "cuda"
    root = out / "root"
    store = prepared(out, options.bundle and options.bundle.resolve(), SCALES[options.scale].data, root)
    acceptance = AcceptanceRun(out=out, scale_name=options.scale, kind=kind, store=store, deadline=deadline)
    print(f"{name}: {acceptance.device().name}, at most {options.seconds:.0f} s", file=sys.stderr)
    return PARTS[name](acceptance)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # unloading torch may abort
