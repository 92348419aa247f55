"""Whole-process time of `march-search solve` against `python -c "import numpy"`, alternating, medians.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time

REPEATS = 15
COMMANDS = {
    "import numpy": ["-c", "import numpy"],
    "solve --budget 220M": ["-m", "march_search", "solve", "--budget", "220M"],
    "solve --budget 740M": ["-m", "march_search", "solve", "--budget", "740M"],
}


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - began)
    base = statistics.median(times["import numpy"])
    for name, values in times.items():
        print(f"{name:<22} {statistics.median(values):6.3f} s  {statistics.median(values) / base:4.1f} x import numpy")


if __name__ == "__main__":
    main()
