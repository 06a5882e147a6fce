"""The demo's digits over several seeds: what is lost on either side, at which size, and whether the target is restored.

python recipes/digits.py --seeds 0 1 2 3 4 --json digits.json
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from pnc_hub import demo

COLUMNS = ("ori_drop", "tar_drop", "auroc", "diverted", "kept", "seconds")


def main() -> None:
    """Run the demo once per seed and print a row for each, then the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows = []
    print(f"{'clone':<8}{'seed':>5}" + "".join(f"{name:>10}" for name in COLUMNS) + "  restored  insertion -> cut")
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            report = demo.run(Path(folder), seed, say=lambda _text: None, progress=False)
        for name, row in report["clones"].items():
            found = {
                **row,
                "benchmark": "digits",
                "clone": name,
                "seed": seed,
                "regime": "R4",
                "ori_drop": report["target_accuracy"] - row["ori"],
                "tar_drop": row["source_alone"] - row["tar"],
            }
            rows.append(found)
            print(
                _line(found, str(seed)) + f"  {found['restored']!s:<9} {row['insertion']} -> {row['cut']}", flush=True
            )
    for name in demo.CLONED:
        own = [row for row in rows if row["clone"] == name]
        print(_line({"clone": name, **{c: statistics.mean(row[c] for row in own) for c in COLUMNS}}, "mean"))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _line(row: dict, seed: str) -> str:
    return f"{row['clone']:<8}{seed:>5}" + "".join(f"{row[name]:>10.4f}" for name in COLUMNS)


if __name__ == "__main__":
    main()
