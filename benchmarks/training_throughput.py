"""Our model and Hugging Face's T5, same weights, batch, precision and optimizer: tokens/s, peak memory, loss.

python benchmarks/training_throughput.py [--shapes WORD …] [--precisions fp32 bf16] [--compile no yes] [--repeats N]

Each model trains in a process of its own, and the two take their steps in turn. bf16 means what it means in a trial:
weights and activations in bf16, AdamW on fp32 copies. Memory is the peak resident size less what the imports took.
The matrix-product peak is the best of a few products of 2048 x 2048, in the same precision, on the same threads.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH, LENGTH = 8, 512
SHAPES = {
    "deep": "L12-D256-H4x64-F1024",
    "t5": "L6-D512-H8x64-F2048",
    "wide": "L2-D1024-H16x64-F4096",
}
KINDS = ("ours", "hf")


def child(kind: str, name: str, precision: str, compiled: bool, folder: Path) -> None:
    """Takes one training step for every line on stdin; then says how much memory it took at most."""
    import torch

    from march_search import Architecture
    from march_search.model import build

    if kind == "hf":
        from transformers import T5ForConditionalGeneration, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    architecture, dtype = Architecture.parse(name), {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    torch.manual_seed(0)
    if kind == "ours":
        model: Any = build(architecture).to(dtype)
        loss_of = torch.compile(model) if compiled else model
    else:
        model = T5ForConditionalGeneration.from_pretrained(folder, dtype=dtype).train()
        running = torch.compile(model) if compiled else model

        def loss_of(inputs: Any, targets: Any) -> Any:
            return running(input_ids=inputs, labels=targets, use_cache=False).loss

    optimizer, copies = adamw(list(model.parameters()))
    inputs, targets = (torch.load(folder / f"{which}.pt") for which in ("inputs", "targets"))
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = loss_of(inputs, targets)
        loss.backward()
        step(list(model.parameters()), optimizer, copies)
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": float(loss.detach())}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"bytes": peak - before}), flush=True)


def adamw(parameters: list[Any]) -> tuple[Any, list[Any]]:
    """Fused AdamW on the parameters, or on fp32 copies of bf16 ones."""
    import torch

    half = parameters[0].dtype == torch.bfloat16
    copies = [p.detach().float() for p in parameters] if half else parameters
    return torch.optim.AdamW(copies, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True), copies


def step(parameters: list[Any], optimizer: Any, copies: list[Any]) -> None:
    """One step, and no gradients left after it."""
    import torch

    if copies[0] is not parameters[0]:
        for parameter, copy in zip(parameters, copies, strict=True):
            copy.grad, parameter.grad = parameter.grad.float(), None
    optimizer.step()
    optimizer.zero_grad()
    if copies[0] is not parameters[0]:
        with torch.no_grad():
            for parameter, copy in zip(parameters, copies, strict=True):
                parameter.copy_(copy)


def matrix_peak(precision: str) -> float:
    """Most operations a second of a matrix product."""
    import torch

    a = torch.randn(2048, 2048, dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(seconds)


def compare(name: str, precision: str, compiled: bool, repeats: int, folder: Path) -> dict[str, Any]:
    """Both models, step by step in turn."""
    processes = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--child", kind, name, precision, str(int(compiled)), str(folder)]
        processes[kind] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    told: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(repeats + 2):  # two to warm up
        for kind in KINDS:
            told[kind].append(ask(processes[kind]))
    memory = {}
    for kind, process in processes.items():
        process.stdin.close()
        memory[kind] = json.loads(process.stdout.readline())["bytes"]
        process.wait()
    ratios = [hf["seconds"] / ours["seconds"] for hf, ours in zip(told["hf"][2:], told["ours"][2:], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "seconds": {kind: statistics.median(t["seconds"] for t in told[kind][2:]) for kind in KINDS},
        "bytes": memory,
        "losses": {kind: [round(t["loss"], 4) for t in told[kind]] for kind in KINDS},
    }


def ask(process: Any) -> dict[str, float]:
    """One step of this model."""
    process.stdin.write("step\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a model ended; its message is above")
    return json.loads(line)


def prepare(name: str, folder: Path) -> None:
    """Weights in Hugging Face's form, and a batch."""
    import torch

    from march_search import Architecture
    from march_search.model import build
    from march_search.model.huggingface import save_t5
    from march_search.spans import span_lengths

    a, lengths = Architecture.parse(name), span_lengths(LENGTH, 0.15, 3.0)
    torch.manual_seed(0)
    save_t5(a, build(a).state_dict(), folder)
    for which, length in (("inputs", lengths.input), ("targets", lengths.target)):
        torch.save(torch.randint(2, a.vocab_size, (BATCH, length)), folder / f"{which}.pt")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--compile", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if "yes" in options.compile and shutil.which(os.environ.get("CXX", "g++")) is None:
        print("torch.compile is left out: it needs a C++ compiler, and there is no g++ (or $CXX) here.")
        options.compile = ["no"]
    from march_search import Architecture

    peaks = {precision: matrix_peak(precision) for precision in options.precisions}
    for precision, peak in peaks.items():
        print(f"matrix-product peak, {precision}: {peak / 1e9:.0f} GFLOP/s")
    print(
        "shape  precision compile   tokens/s ours    HF  ratio   peak MB ours    HF  ratio   share of peak ours    HF   largest loss difference"
    )
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            prepare(SHAPES[shape], Path(folder))
            flops = Architecture.parse(SHAPES[shape]).flops_per_token(LENGTH)
            for precision in options.precisions:
                for compiled in options.compile:
                    r = compare(SHAPES[shape], precision, compiled == "yes", options.repeats, Path(folder))
                    speed = {kind: BATCH * LENGTH / r["seconds"][kind] for kind in KINDS}
                    share = {kind: flops * speed[kind] / peaks[precision] for kind in KINDS}
                    apart = max(abs(a - b) for a, b in zip(*r["losses"].values(), strict=True))
                    print(
                        f"{shape:<6} {precision:<9} {compiled:<7} {speed['ours']:15.0f} {speed['hf']:5.0f} {r['ratio']:6.2f} "
                        f"{r['bytes']['ours'] / 1e6:14.0f} {r['bytes']['hf'] / 1e6:5.0f} "
                        f"{r['bytes']['ours'] / r['bytes']['hf']:6.2f} {share['ours']:19.0%} {share['hf']:5.0%}   {apart:.4f}",
                        flush=True,
                    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5] == "1", Path(sys.argv[6]))
    else:
        main()
