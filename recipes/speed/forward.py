"""What a forward pass costs with clones attached.

python recipes/speed/forward.py --json forward.json              # one clone
python recipes/speed/forward.py --compile --json compiled.json   # the same under torch.compile (inductor)
python recipes/speed/forward.py --many --json many.json          # 1 to 32 clones at once

All contestants run in turn, again and again, in one process with one thread; a ratio is the median over the turns.
"by hand" computes the same without hooks: the target cut in two at the insertion point, the clone's module, gate and fusion.
"both" runs the target and the whole source.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import pnc_hub
from pnc_hub import fusion
from pnc_hub.hub.clone import Clone
from pnc_hub.models.preprocess import Preprocess
from pnc_hub.models.skeleton import Skeleton
from recipes.frame.untrained import random_model, untrained_clone

LABELS = ("new class 1", "new class 2", "new class 3")
# target, source, insertion point, cut, share of the tail that pruning leaves
PAIRS = (
    ("resnet18", "resnet18", "layer2.1", "layer2.1", 0.6),
    ("resnet18", "resnet18", "layer3.0", "layer3.0", 0.6),
    ("resnet50", "resnet50", "layer3.2", "layer3.2", 0.5),
)
COUNTS = (1, 2, 4, 8, 16, 32)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="per table, divided among its contestants")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="with --many: how many clones at once")
    parser.add_argument("--pairs", type=int, nargs="+", default=list(range(len(PAIRS))))
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.many:
        rows = _many(arguments.seconds, arguments.counts)
    else:
        rows = [
            row
            for pair in arguments.pairs
            for batch in arguments.batches
            for row in _one(PAIRS[pair], batch, arguments.seconds, arguments.compile)
        ]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _one(pair: tuple, batch: int, seconds: float, compiled: bool) -> list[dict]:
    target_name, source_name, insertion, cut, keep = pair
    target, source = random_model(target_name), random_model(source_name, 1)
    clone = untrained_clone(target, source, LABELS, insertion, cut, keep=keep)
    attached = random_model(target_name)
    pnc_hub.attach(attached, clone)
    by_hand, image = _by_hand(target, clone, insertion), torch.randn(batch, 3, 224, 224)
    contestants = {
        "target": target,
        "by hand": by_hand,
        "attached": attached,
        "both": lambda x: (target(x), source(x)),
    }
    if compiled:
        contestants = {name: torch.compile(run) for name, run in contestants.items() if name != "both"}
    rounds = _rounds({name: lambda run=run: run(image) for name, run in contestants.items()}, seconds)
    mode = "compiled" if compiled else "eager"
    print(f"\n{target_name} <- {source_name} at {insertion}, batch {batch}, {mode}, {len(rounds)} turns")
    rows = []
    for name in contestants:
        row = {
            **{"benchmark": "forward", "pair": f"{target_name} <- {source_name}", "batch": batch, "mode": mode},
            **{"contestant": name, "seconds": statistics.median(turn[name] for turn in rounds)},
            **{f"to_{other}": statistics.median(turn[name] / turn[other] for turn in rounds) for other in contestants},
        }
        rows.append(row)
        ratios = "".join(f"  {row[f'to_{other}']:.3f} of {other}" for other in contestants if other != name)
        print(f"  {name:<9}{1e3 * row['seconds']:8.2f} ms{ratios}", flush=True)
    return rows


def _by_hand(target: torch.nn.Module, clone: Clone, insertion: str) -> Callable:
    skeleton = Skeleton(target)
    before, after = skeleton.trunk(target, insertion), skeleton.tail(target, insertion)
    module, gate = clone.build(clone.config.adapters[0], Preprocess.of(target))

    def run(image: torch.Tensor) -> torch.Tensor:
        feature = before(image)
        logits, reject, features = module(feature)
        own = after(feature)
        return torch.cat([own, fusion.new_logits(own, logits, gate(own, logits, reject, features))], 1)

    return run


def _many(seconds: float, counts: Sequence[int]) -> list[dict]:
    """Clones of one source, all at one insertion point of a resnet50 or spread over all of them."""
    model, source, image = (
        random_model("resnet50"),
        random_model("mobilenetv3_small_100", 1),
        torch.randn(1, 3, 224, 224),
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        places = [name for name in Skeleton(model).points if name.startswith("layer")]
        for name in {"layer3.2", *places[: max(counts)]}:
            untrained_clone(model, source, LABELS, name, "blocks.4.1").save_pretrained(Path(folder, name))
        for spread in (False, True):
            for count in counts:
                chosen = [places[number % len(places)] if spread else "layer3.2" for number in range(count)]
                rows.append(_attached(model, [Path(folder, name) for name in chosen], image, seconds))
                rows[-1]["places"] = "different" if spread else "same"
                print(
                    f"  {count:>2} clones, {rows[-1]['places']:<9} places: attach {1e3 * rows[-1]['attach']:6.1f} ms each,"
                    f" forward {1e3 * rows[-1]['forward']:7.1f} ms, {rows[-1]['to_target']:.3f} of the target's,"
                    f" {1e3 * rows[-1]['each']:.2f} ms per clone",
                    flush=True,
                )
    return rows


def _attached(model: torch.nn.Module, clones: list[Path], image: torch.Tensor, seconds: float) -> dict:
    plain = random_model("resnet50")
    start = time.perf_counter()
    for clone in clones:
        pnc_hub.attach(model, clone, on_collision="allow")
    each = (time.perf_counter() - start) / len(clones)
    rounds = _rounds({"target": lambda: plain(image), "attached": lambda: model(image)}, seconds / len(COUNTS) / 2)
    pnc_hub.detach(model)
    return {
        "benchmark": "many clones",
        "count": len(clones),
        "attach": each,
        "forward": statistics.median(turn["attached"] for turn in rounds),
        "to_target": statistics.median(turn["attached"] / turn["target"] for turn in rounds),
        "each": statistics.median((turn["attached"] - turn["target"]) / len(clones) for turn in rounds),
    }


@torch.no_grad()
def _rounds(contestants: dict[str, Callable[[], object]], seconds: float) -> list[dict[str, float]]:
    """Seconds by contestant, turn after turn, each turn beginning with another one."""
    for run in contestants.values():
        run()
        run()
    if "by hand" in contestants:
        torch.testing.assert_close(contestants["by hand"](), contestants["attached"](), rtol=1e-3, atol=1e-3)
    names, rounds, end = list(contestants), [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < 7:
        turn = {}
        for name in names:
            start = time.process_time()
            contestants[name]()
            turn[name] = time.process_time() - start
        rounds.append(turn)
        names = names[1:] + names[:1]
    return rounds


if __name__ == "__main__":
    main()
