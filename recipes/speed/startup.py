"""What ``import pnc_hub`` costs on top of ``import torch``, in fresh processes.

python recipes/speed/startup.py --runs 7
"""

import argparse
import statistics
import subprocess
import sys

PROGRAM = "import time, torch; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def main() -> None:
    """Print the median over fresh processes, beside timm's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    for module in ("pnc_hub", "pnc_hub.errors, pnc_hub.attachment", "timm"):
        command = [sys.executable, "-c", PROGRAM.format(module)]
        times = [
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(arguments.runs)
        ]
        print(f"import {module:<36} {statistics.median(times):.3f} s above import torch")


if __name__ == "__main__":
    main()
