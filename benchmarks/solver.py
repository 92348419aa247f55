"""The feasible set of a space, found in five ways: solutions a second, peak memory, time to a first table of 20.

pip install -c constraints.txt -e '.[bench]'
python benchmarks/solver.py [--seconds 60]

Each way runs in its own process, alternating, medians over the rounds. Rates leave out imports; the time to the first
20 begins with the process.

- ours: `solve`, then every member as columns of all fields that vary and of parameters; and as `Architecture` objects;
- OR-tools CP-SAT, told the same axes, rules and budget, enumerating with one worker (it enumerates with one only);
- rejection: uniform points of the grid by the million, counted with NumPy's arithmetic, different ones kept;
- meta: the same points built as models on torch's `meta` device and counted, as one does who has no formula.

Every solution of CP-SAT is looked up in our set, and on the small space `cpu-demo` it runs to its end and must find
just that set.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

START = time.perf_counter()
ROUNDS = 3
FIRST = 20


def ours(space: Any, seconds: float) -> Iterator[int]:
    """Yields the number of members after each block."""
    from march_search import solve

    found = solve(space)
    done = 0
    for start in range(0, len(found), 1 << 17):
        members = found.decode(found.numbers(start, start + (1 << 17)))
        columns = [members.axis(axis) for axis in space.varying] + [members.counted]
        done += len(columns[-1])
        yield done


def objects(space: Any, seconds: float) -> Iterator[int]:
    """Yields the number of `Architecture` objects after each."""
    from march_search import solve

    for done, _ in enumerate(solve(space), 1):
        yield done


def cp_sat(space: Any, seconds: float) -> Iterator[int]:
    """Yields the number of solutions, each looked up in our set afterwards."""
    from ortools.sat.python import cp_model

    from march_search import Architecture, solve

    model, axes = cp_model.CpModel(), space.axes
    unequal = axes["num_decoder_layers"] != (None,)
    names = ("num_layers", *(("num_decoder_layers",) if unequal else ()), "d_model", "num_heads", "d_kv", "d_ff")
    shape = {n: model.new_int_var_from_domain(cp_model.Domain.from_values(axes[n]), n) for n in names}
    gated = model.new_bool_var("gated")
    layers, d_model, heads, d_kv, d_ff = (shape[n] for n in names if n != "num_decoder_layers")
    top = {n: max(axes[n]) for n in names}
    most = 10**12

    def product(x: Any, y: Any, limit: int) -> Any:
        z = model.new_int_var(0, limit, "")
        model.add_multiplication_equality(z, [x, y])
        return z

    inner = product(heads, d_kv, top["num_heads"] * top["d_kv"])
    attention = product(d_model, inner, top["d_model"] * top["num_heads"] * top["d_kv"])
    feed_forward = product(d_model, product(gated + 2, d_ff, 3 * top["d_ff"]), 3 * top["d_model"] * top["d_ff"])
    encoder, decoder = model.new_int_var(0, most, ""), model.new_int_var(0, most, "")
    model.add(encoder == 4 * attention + feed_forward + 2 * d_model)
    model.add(decoder == 8 * attention + feed_forward + 3 * d_model)
    stacks = product(layers, encoder, most) + product(shape.get("num_decoder_layers", layers), decoder, most)
    bias = 64 * heads if axes["position"] == ("relative",) else 0
    total = (axes["vocab_size"][0] + 2) * d_model + stacks + bias
    model.add_linear_constraint(total, space.budget.low, space.budget.high)
    if space.rules:
        model.add_modulo_equality(0, inner, 32 if space.name == "cpu-demo" else 64)
        model.add((2 if space.name == "cpu-demo" else 1) * inner >= d_model)
        model.add(inner <= 2 * d_model)
        model.add(d_ff >= d_model)
        model.add(d_ff <= 8 * d_model)

    rows: list[tuple[int, ...]] = []
    times_found: list[float] = []

    class Collect(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            rows.append(tuple(self.value(x) for x in (*shape.values(), gated)))
            times_found.append(time.perf_counter())

    solver = cp_model.CpSolver()
    solver.parameters.enumerate_all_solutions = True
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = seconds
    status = solver.solve(model, Collect())
    found = solve(space)
    fixed = {n: axes[n][0] for n in ("position", "vocab_size")}
    for row in rows:
        values = dict(zip(names, row, strict=False))
        kind = "gated-gelu" if row[-1] else "relu"
        assert Architecture(**values, feed_forward_proj=kind, **fixed) in found
    if status == cp_model.OPTIMAL:
        assert len(set(rows)) == len(found)
    cp_sat.first = times_found[FIRST - 1] - START if len(rows) >= FIRST else None  # type: ignore[attr-defined]
    cp_sat.took = solver.wall_time  # type: ignore[attr-defined]
    yield len(set(rows))


def grid_points(space: Any, n: int, seed: int) -> dict[str, Any]:
    """`n` uniform points of the grid, as columns."""
    import numpy as np

    rng = np.random.default_rng(seed)
    names = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj")
    return {name: rng.choice(np.array(space.axes[name]), n) for name in names}


def rejection(space: Any, seconds: float) -> Iterator[int]:
    """Yields the number of different accepted points after each million of points."""
    import numpy as np

    ended, seed = time.perf_counter() + seconds, 0
    kept: set[tuple[Any, ...]] = set()
    while time.perf_counter() < ended:
        p = grid_points(space, 1_000_000, seed)
        depth, d_model, heads, d_kv, d_ff = (p[n].astype(np.int64) for n in list(p)[:5])
        inner, matrices = heads * d_kv, np.where(p["feed_forward_proj"] == "relu", 2, 3)
        pair = 12 * d_model * inner + 2 * matrices * d_model * d_ff + 5 * d_model
        total = (space.axes["vocab_size"][0] + 2) * d_model + depth * pair + 64 * heads
        good = (total >= space.budget.low) & (total <= space.budget.high) & (inner % 64 == 0)
        good &= (inner >= d_model) & (inner <= 2 * d_model) & (d_ff >= d_model) & (d_ff <= 8 * d_model)
        kept |= set(zip(*(p[name][good].tolist() for name in p), strict=True))
        seed += 1
        yield len(kept)


def meta(space: Any, seconds: float) -> Iterator[int]:
    """Yields the number of different accepted points after each model."""
    import torch

    from march_search import Architecture
    from march_search.model import build

    ended, p = time.perf_counter() + seconds, grid_points(space, 100_000, 0)
    kept = set()
    for row in zip(*(column.tolist() for column in p.values()), strict=True):
        if time.perf_counter() > ended:
            return
        a = Architecture(**dict(zip(p, row, strict=True)))
        with torch.device("meta"):
            size = sum(x.numel() for x in build(a).parameters())
        if space.budget.low <= size <= space.budget.high and space.contains(a):
            kept.add(a)
        yield len(kept)


WAYS = {"ours, columns": ours, "ours, objects": objects, "CP-SAT": cp_sat, "rejection": rejection, "meta": meta}


def one(way: str, name: str, seconds: float) -> None:
    """Runs one way and prints its figures as JSON."""
    from march_search import SearchSpace

    space, first, done, started = SearchSpace.load(name), None, 0, time.perf_counter()
    for done in WAYS[way](space, seconds):
        if first is None and done >= FIRST:
            first = time.perf_counter() - START
    took = time.perf_counter() - started
    if way == "CP-SAT":
        first, took = cp_sat.first, cp_sat.took  # type: ignore[attr-defined]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"solutions": done, "seconds": took, "first": first, "megabytes": peak}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SPACE"))
    options = parser.parse_args()
    if options.one:
        one(*options.one, options.seconds)
        return
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(ROUNDS):
        for way, space, seconds in (
            *((way, "t5-220m", options.seconds) for way in WAYS),
            ("ours, columns", "t5-220m-wide", 0),
            ("CP-SAT", "t5-220m-wide", options.seconds),
            ("ours, columns", "cpu-demo", 0),
            ("CP-SAT", "cpu-demo", 10 * options.seconds),
        ):
            command = [sys.executable, __file__, "--seconds", str(seconds), "--one", way, space]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            measured.setdefault((way, space), []).append(json.loads(ended.stdout.splitlines()[-1]))
    print(f"{'way':16}{'space':14}{'solutions':>11}{'seconds':>9}{'a second':>12}{'peak MB':>9}{'first 20, s':>13}")
    rates = {}
    for (way, space), runs in measured.items():
        rates[way, space] = statistics.median(run["solutions"] / run["seconds"] for run in runs)
        middle = {
            key: statistics.median(float("nan") if run[key] is None else run[key] for run in runs) for key in runs[0]
        }
        print(
            f"{way:16}{space:14}{middle['solutions']:11,.0f}{middle['seconds']:9.2f}{rates[way, space]:12,.1f}"
            f"{middle['megabytes']:9,.0f}{middle['first']:13.2f}"
        )
    for (way, space), rate in rates.items():
        if way != "ours, columns":
            times = f"{rates['ours, columns', space] / rate:,.0f} times" if rate else "it found none"
            print(f"ours, columns / {way} on {space}: {times}")


if __name__ == "__main__":
    main()
