"""Compare the run time of `march-search solve` with that of `python -c "import numpy"`, and of help with `pass`.

    python benchmarks/startup.py [--repeats 15]

The commands take turns, each in a new process that finds compiled bytecode, as after an installation. The medians over
the repeats are printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "pass": ["-c", "pass"],
    "--help": ["-m", "march_search", "--help"],
    "--version": ["-m", "march_search", "--version"],
    "import numpy": ["-c", "import numpy"],
    "solve --budget 220M": ["-m", "march_search", "solve", "--budget", "220M"],
    "solve --budget 740M": ["-m", "march_search", "solve", "--budget", "740M"],
}


def main() -> None:
    """Print the median seconds of each command, and the ratio to `import numpy` or `pass`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="runs of each command (default: 15)")
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    for number in range(repeats + 1):  # the first round compiles
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
            times[name] += [time.perf_counter() - began] if number else []
    for name, values in times.items():
        base = "pass" if name.startswith(("pass", "--")) else "import numpy"
        ratio = statistics.median(values) / statistics.median(times[base])
        print(f"{name:<22} {statistics.median(values):6.3f} s  {ratio:4.1f} x {base}")


if __name__ == "__main__":
    main()
