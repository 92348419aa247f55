"""Compare five methods to find the feasible set of a space: solutions per second, peak memory, time to 20 solutions.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/solver.py [--seconds 60] [--rounds 3]

Each method runs in its own process. The methods take turns, and the medians over the rounds are printed. Rates exclude
imports; the time to the first 20 solutions includes them.

- `solve`, columns: `march_search.solve`, then all members as columns of the varying fields and parameter counts;
- `solve`, objects: the same, with all members as `Architecture` objects;
- CP-SAT: OR-Tools with the same axes, rules and budget, enumerating with one worker, the only number it supports;
- rejection: uniform points of the grid, a million at a time, counted with NumPy; distinct feasible points count;
- meta: the same points built as models on torch's `meta` device and counted, as without a formula.

Every solution of CP-SAT is looked up in our set. On the small space `cpu-demo`, CP-SAT runs to completion and must find
exactly our set.
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
FIRST = 20
"""Solutions after which the time to the first solutions is taken."""


def solve_columns(space: Any, seconds: float) -> Iterator[int]:
    """Yield the number of members after each block."""
    from march_search import solve

    feasible = solve(space)
    done = 0
    for start in range(0, len(feasible), 1 << 17):
        members = feasible.decode(feasible.numbers(start, start + (1 << 17)))
        columns = [members.axis(axis) for axis in space.varying] + [members.counted]
        done += len(columns[-1])
        yield done


def solve_objects(space: Any, seconds: float) -> Iterator[int]:
    """Yield the number of `Architecture` objects after each one."""
    from march_search import solve

    for done, _ in enumerate(solve(space), 1):
        yield done


def cp_sat(space: Any, seconds: float) -> Iterator[int]:
    """Yield the number of solutions, after looking up each in our set."""
    from ortools.sat.python import cp_model

    from march_search import Architecture, solve

    model, axes = cp_model.CpModel(), space.axes
    unequal = axes["num_decoder_layers"] != (None,)
    names = ("num_layers", *(("num_decoder_layers",) if unequal else ()), "d_model", "num_heads", "d_kv", "d_ff")
    shape = {n: model.new_int_var_from_domain(cp_model.Domain.from_values(axes[n]), n) for n in names}
    gated = model.new_bool_var("gated")
    layers, d_model, heads, d_kv, d_ff = (shape[n] for n in names if n != "num_decoder_layers")
    top = {n: max(axes[n]) for n in names}
    upper_bound = 10**12

    def product(x: Any, y: Any, limit: int) -> Any:
        z = model.new_int_var(0, limit, "")
        model.add_multiplication_equality(z, [x, y])
        return z

    inner = product(heads, d_kv, top["num_heads"] * top["d_kv"])
    attention = product(d_model, inner, top["d_model"] * top["num_heads"] * top["d_kv"])
    feed_forward = product(d_model, product(gated + 2, d_ff, 3 * top["d_ff"]), 3 * top["d_model"] * top["d_ff"])
    encoder, decoder = model.new_int_var(0, upper_bound, ""), model.new_int_var(0, upper_bound, "")
    model.add(encoder == 4 * attention + feed_forward + 2 * d_model)
    model.add(decoder == 8 * attention + feed_forward + 3 * d_model)
    decoder_layers = shape.get("num_decoder_layers", layers)
    stacks = product(layers, encoder, upper_bound) + product(decoder_layers, decoder, upper_bound)
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
    feasible = solve(space)
    fixed = {n: axes[n][0] for n in ("position", "vocab_size")}
    for row in rows:
        values = dict(zip(names, row, strict=False))
        kind = "gated-gelu" if row[-1] else "relu"
        assert Architecture(**values, feed_forward_proj=kind, **fixed) in feasible
    if status == cp_model.OPTIMAL:
        assert len(set(rows)) == len(feasible)
    cp_sat.first = times_found[FIRST - 1] - START if len(rows) >= FIRST else None  # type: ignore[attr-defined]
    cp_sat.seconds = solver.wall_time  # type: ignore[attr-defined]
    yield len(set(rows))


def grid_points(space: Any, n: int, seed: int) -> dict[str, Any]:
    """Return `n` uniform points of the grid, as columns."""
    import numpy as np

    rng = np.random.default_rng(seed)
    names = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj")
    return {name: rng.choice(np.array(space.axes[name]), n) for name in names}


def rejection(space: Any, seconds: float) -> Iterator[int]:
    """Yield the number of distinct feasible points after each million points."""
    import numpy as np

    deadline, seed = time.perf_counter() + seconds, 0
    solutions: set[tuple[Any, ...]] = set()
    while time.perf_counter() < deadline:
        p = grid_points(space, 1_000_000, seed)
        depth, d_model, heads, d_kv, d_ff = (p[n].astype(np.int64) for n in list(p)[:5])
        inner, matrices = heads * d_kv, np.where(p["feed_forward_proj"] == "relu", 2, 3)
        pair = 12 * d_model * inner + 2 * matrices * d_model * d_ff + 5 * d_model
        total = (space.axes["vocab_size"][0] + 2) * d_model + depth * pair + 64 * heads
        is_feasible = (total >= space.budget.low) & (total <= space.budget.high) & (inner % 64 == 0)
        is_feasible &= (inner >= d_model) & (inner <= 2 * d_model) & (d_ff >= d_model) & (d_ff <= 8 * d_model)
        solutions |= set(zip(*(p[name][is_feasible].tolist() for name in p), strict=True))
        seed += 1
        yield len(solutions)


def meta(space: Any, seconds: float) -> Iterator[int]:
    """Yield the number of distinct feasible points after each model."""
    import torch

    from march_search import Architecture
    from march_search.model import build

    deadline, p = time.perf_counter() + seconds, grid_points(space, 100_000, 0)
    solutions = set()
    for row in zip(*(column.tolist() for column in p.values()), strict=True):
        if time.perf_counter() > deadline:
            return
        a = Architecture(**dict(zip(p, row, strict=True)))
        with torch.device("meta"):
            size = sum(x.numel() for x in build(a).parameters())
        if space.budget.low <= size <= space.budget.high and space.contains(a):
            solutions.add(a)
        yield len(solutions)


COLUMNS = "solve, columns"
METHODS = {
    COLUMNS: solve_columns,
    "solve, objects": solve_objects,
    "CP-SAT": cp_sat,
    "rejection": rejection,
    "meta": meta,
}


def run_method(method: str, name: str, seconds: float) -> None:
    """Run one method and print its figures as JSON."""
    from march_search import SearchSpace

    space, first, done, started = SearchSpace.load(name), None, 0, time.perf_counter()
    for done in METHODS[method](space, seconds):
        if first is None and done >= FIRST:
            first = time.perf_counter() - START
    duration = time.perf_counter() - started
    if method == "CP-SAT":
        first, duration = cp_sat.first, cp_sat.seconds  # type: ignore[attr-defined]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"solutions": done, "seconds": duration, "first": first, "megabytes": peak}))


def main() -> None:
    """Print the figures of each method and space, and the ratios of the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="time limit of a method (default: 60)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each method (default: 3)")
    parser.add_argument("--method", nargs=2, metavar=("METHOD", "SPACE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        run_method(*options.method, options.seconds)
        return
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for method, space, seconds in (
            *((method, "t5-220m", options.seconds) for method in METHODS),
            (COLUMNS, "t5-220m-wide", 0),
            ("CP-SAT", "t5-220m-wide", options.seconds),
            (COLUMNS, "decoder-500m-wide", 0),
            (COLUMNS, "cpu-demo", 0),
            ("CP-SAT", "cpu-demo", 10 * options.seconds),
        ):
            command = [sys.executable, __file__, "--seconds", str(seconds), "--method", method, space]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            measured.setdefault((method, space), []).append(json.loads(ended.stdout.splitlines()[-1]))
    print(
        f"{'method':16}{'space':14}{'solutions':>11}{'seconds':>9}{'per second':>12}{'peak MB':>9}{'first 20, s':>13}"
    )
    rates = {}
    for (method, space), runs in measured.items():
        rates[method, space] = statistics.median(run["solutions"] / run["seconds"] for run in runs)
        middle = {
            key: statistics.median(float("nan") if run[key] is None else run[key] for run in runs) for key in runs[0]
        }
        print(
            f"{method:16}{space:14}{middle['solutions']:11,.0f}{middle['seconds']:9.2f}"
            f"{rates[method, space]:12,.1f}"
            f"{middle['megabytes']:9,.0f}{middle['first']:13.2f}"
        )
    for (method, space), rate in rates.items():
        if method != COLUMNS:
            ratio = f"{rates[COLUMNS, space] / rate:,.0f} times" if rate else "no solutions"
            print(f"{COLUMNS} / {method} on {space}: {ratio}")


if __name__ == "__main__":
    main()
