"""Compare our model with Hugging Face's T5 and Llama: tokens/s, peak memory and loss with equal weights and batch.

    python benchmarks/training_throughput.py [--shapes deep t5 wide llama llama-wide] [--precisions fp32 bf16]
                                             [--compile no yes] [--batch 8] [--threads 2] [--repeats 5]

Each model trains in its own process. The two take steps in turn, so that other load affects both; the ratio is the
median over pairs of steps. As in a trial, bf16 means weights and activations in bf16 and AdamW on fp32 copies.
`--compile yes` applies torch.compile to every layer. Memory is the peak resident size of the process without the
imports. The peak speed is that of a 2048 x 2048 matrix product; `products` is the fraction of a step spent in matrix
products. Tokens are tokens of text, before corruption.
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

LENGTH = 512
SHAPES = {
    "deep": "L12-D256-H4x64-F1024",
    "t5": "L6-D512-H8x64-F2048",
    "wide": "L2-D1024-H16x64-F4096",
    "llama": "L8-D512-H8x64-F1408-swiglu-rope-untied-dec-KV2",
    "llama-wide": "L2-D1024-H16x64-F2816-swiglu-rope-untied-dec-KV4",
}
KINDS = ("ours", "hf")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "scaled_dot_product")


def child(kind: str, name: str, precision: str, compiled: bool, threads: int, folder: Path) -> None:
    """Take a training step for every line on stdin; at the end, print the memory used and the fraction in products."""
    import torch

    from march_search import Architecture
    from march_search.model import build

    a = Architecture.parse(name)
    is_decoder = a.structure == "decoder-only"
    if kind == "hf":
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, logging

        logging.disable_progress_bar()
    torch.set_num_threads(threads)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    torch.manual_seed(0)
    if kind == "ours":
        model: Any = build(a).to(dtype)
        layers = [layer for stack in model.stacks.values() for layer in stack.layers]
    elif is_decoder:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train()
        layers = list(model.model.layers)
    else:
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).train()
        layers = [*model.encoder.block, *model.decoder.block]
    for layer in layers if compiled else ():
        layer.compile()
    parameters = list(model.parameters())
    copies = [p.detach().float() for p in parameters] if dtype == torch.bfloat16 else parameters
    optimizer = torch.optim.AdamW(copies, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = (torch.load(folder / f"{which}.pt") for which in ("inputs", "targets"))
    shifted = torch.nn.functional.pad(targets[:, :-1], (1, 0))  # what our decoder reads; theirs would shift the labels

    def step() -> float:
        if kind == "ours":
            loss = model(None if is_decoder else inputs, targets)
        elif is_decoder:
            loss = model(input_ids=shifted, labels=targets, shift_labels=targets, use_cache=False).loss
        else:
            loss = model(input_ids=inputs, labels=targets, use_cache=False).loss
        loss.backward()
        if copies is parameters:
            optimizer.step()
        else:
            in_fp32(parameters, copies, optimizer)
        optimizer.zero_grad()
        return loss.item()

    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step()
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    times = {e.key: e.self_cpu_time_total for e in profile.key_averages()}
    products = sum(t for key, t in times.items() if any(name in key for name in PRODUCTS)) / sum(times.values())
    print(json.dumps({"bytes": peak - before, "products": products}), flush=True)


def in_fp32(parameters: list[Any], copies: list[Any], optimizer: Any) -> None:
    """Take a step on the fp32 copies of bf16 parameters and clear the gradients of the parameters."""
    import torch

    for parameter, copy in zip(parameters, copies, strict=True):
        copy.grad, parameter.grad = parameter.grad.float(), None
    optimizer.step()
    with torch.no_grad():
        for parameter, copy in zip(parameters, copies, strict=True):
            parameter.copy_(copy)


def peak_speed(precision: str, threads: int) -> float:
    """Return the operations per second of a matrix product."""
    import torch

    torch.set_num_threads(threads)
    a = torch.randn(2048, 2048, dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(seconds)


def compare(arguments: list[str], repeats: int) -> dict[str, dict[str, Any]]:
    """Train both models, one step each in turn, and return the figures of each."""
    environment = os.environ | {"GOMP_SPINCOUNT": "1000", "KINETO_LOG_LEVEL": "9"}  # GOMP_SPINCOUNT as in a trial
    processes = {
        kind: subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--child", kind, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for kind in KINDS
    }  # fmt: skip
    figures: dict[str, dict[str, Any]] = {kind: {"seconds": [], "losses": []} for kind in KINDS}
    for number in range(repeats + 2):  # two steps to warm up
        for kind, process in processes.items():
            process.stdin.write("step\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            figures[kind]["losses"].append(answer["loss"])
            figures[kind]["seconds"] += [answer["seconds"]] if number >= 2 else []
    for kind, process in processes.items():
        process.stdin.close()
        figures[kind] |= json.loads(process.stdout.readline())
        process.wait()
    return figures


def prepare(name: str, batch: int, folder: Path) -> None:
    """Write the weights in Hugging Face's format, and a batch."""
    import torch

    from march_search import Architecture
    from march_search.architecture.spans import span_lengths
    from march_search.model import build
    from march_search.model.huggingface_folder import save_huggingface

    a, lengths = Architecture.parse(name), span_lengths(LENGTH, 0.15, 3.0)
    target = LENGTH if a.structure == "decoder-only" else lengths.target
    torch.manual_seed(0)
    save_huggingface(a, build(a).state_dict(), folder, {"eos_token_id": 1, "pad_token_id": 0})
    for which, length in (("inputs", lengths.input), ("targets", target)):
        torch.save(torch.randint(2, a.vocab_size, (batch, length)), folder / f"{which}.pt")


def print_row(label: str, figures: dict[str, dict[str, Any]], tokens: int, flops: float, peak: float) -> None:
    """Print one row of the table."""
    ours, hf = figures["ours"], figures["hf"]
    ratio = statistics.median(hf_step / step for step, hf_step in zip(ours["seconds"], hf["seconds"], strict=True))
    speeds = [tokens / statistics.median(model["seconds"]) for model in (ours, hf)]
    loss_difference = max(abs(a - b) for a, b in zip(ours["losses"], hf["losses"], strict=True))
    cells = [f"{s:7.0f}" for s in speeds] + [f"{ratio:5.2f}"]
    cells += [f"{model['bytes'] / 1e6:6.0f}" for model in (ours, hf)] + [f"{ours['bytes'] / hf['bytes']:5.2f}"]
    cells += [f"{flops * s / peak:5.0%}" for s in speeds] + [f"{model['products']:5.0%}" for model in (ours, hf)]
    print(label, *cells, f"{loss_difference:.4f} at {ours['losses'][0]:.2f}", flush=True)


def main() -> None:
    """Print one row per shape, precision and choice of torch.compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--compile", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--batch", type=int, default=8, help="sequences of 512 tokens")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if "yes" in options.compile and not shutil.which(os.environ.get("CXX", "g++")):
        print("skipping torch.compile: it needs a C++ compiler, and neither g++ nor $CXX was found")
        options.compile = ["no"]
    from march_search import Architecture

    peaks = {precision: peak_speed(precision, options.threads) for precision in options.precisions}
    print(*(f"peak speed in {name}: {peak / 1e9:.0f} GFLOP/s." for name, peak in peaks.items()))
    heads = "tokens/s       ratio   peak MB   ratio  of peak speed   products  loss difference"
    print(" " * 30 + heads)
    print("                           ours      hf           ours     hf          ours    hf   ours    hf")
    for shape, name in ((shape, SHAPES[shape]) for shape in options.shapes):
        with tempfile.TemporaryDirectory() as folder:
            prepare(name, options.batch, Path(folder))
            flops = Architecture.parse(name).flops_per_token(LENGTH)
            for precision in options.precisions:
                for compiled in options.compile:
                    arguments = [name, precision, compiled, str(options.threads), folder]
                    figures = compare(arguments, options.repeats)
                    label = f"{shape:<10} {precision} {'compiled' if compiled == 'yes' else '        '}"
                    print_row(label, figures, options.batch * LENGTH, flops, peaks[precision])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, kind, name, precision, compiled, threads, folder = sys.argv
        child(kind, name, precision, compiled == "yes", int(threads), Path(folder))
    else:
        main()
