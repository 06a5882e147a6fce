"""What attaching costs: a clone against a LoRA of as many bytes (PEFT) and against reading those bytes.

python recipes/speed/attach.py --runs 9 --json attach.json

Every contestant runs in a fresh process per repetition, all of them in turn and with one thread for torch's own operations;
imports and the target's own construction are not counted. "first" is the first attach of the process, "later" the median
of those that follow.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.frame.rows import markdown

LABELS = ("new class 1", "new class 2", "new class 3")
SHA = "0123456789abcdef" * 2 + "01234567"
# target, source, insertion point, cut, share of the tail that pruning leaves, layers of the target that get a LoRA
PAIRS = {
    "resnet50 <- resnet50": ("resnet50", "resnet50", "layer3.0", "layer3.0", 0.16, r"layer\d\.\d+\.conv\d"),
    "resnet50 <- mobilenetv3": (
        *("resnet50", "mobilenetv3_large_100", "layer2.3", "blocks.2.2", None),
        r"layer\d\.\d+\.conv\d",
    ),
    "vit_small <- vit_small": (
        *("vit_small_patch16_224", "vit_small_patch16_224", "blocks.5", "blocks.5", 0.36),
        r"blocks\.\d+\..*(qkv|proj|fc1|fc2)",
    ),
    # to see that everything runs; it is measured only if it is asked for
    "test_resnet <- test_resnet": ("test_resnet", "test_resnet", "layer3.0", "layer3.0", 0.5, r"layer\d\.\d+\.conv\d"),
}
CONTESTANTS = {
    "folder": "clone, folder",
    "cache": "clone, warm Hub cache",
    "peft": "PEFT",
    "peft (meta)": "PEFT, meta",
    "read": "read",
}
TIMES = ("first", "first_cpu", "later", "later_cpu")
LATER = 7


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Print a table of medians over repetitions, with the ratios to PEFT within each repetition beside them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS)[:-1], choices=list(PAIRS))
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)  # contestant, pair, folder
    arguments = parser.parse_args(argv)
    if arguments.worker:
        print(json.dumps(_work(*arguments.worker)))
        return []
    rows = []
    for pair in arguments.pairs:
        with tempfile.TemporaryDirectory() as folder:
            size = _prepare(PAIRS[pair], Path(folder))
            print(f"{pair}: clone {size['clone'] / 1e6:.1f} MB, LoRA {size['lora'] / 1e6:.1f} MB", flush=True)
            runs = [{name: _worker(name, pair, folder) for name in CONTESTANTS} for _ in range(arguments.runs)]
        described = {"benchmark": "attach", "pair": pair, "bytes": size}
        rows += [described | {"contestant": name, **_summary(runs, name)} for name in CONTESTANTS]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"\n{_table(rows)}")
    return rows


def _worker(contestant: str, pair: str, folder: str) -> dict[str, float]:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--worker", contestant, pair, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _summary(runs: list[dict[str, dict]], name: str) -> dict[str, float]:
    medians = {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]}
    ratios = {f"{key}_to_peft": statistics.median(run[name][key] / run["peft"][key] for run in runs) for key in TIMES}
    return medians | ratios


def _table(rows: Sequence[dict]) -> str:
    """Milliseconds, in brackets the ratio to PEFT; the peak of memory over the bytes."""
    return markdown(
        "pair | what | first | first, CPU | later | later, CPU | peak memory, first | second",
        (
            [
                *(row["pair"], CONTESTANTS[row["contestant"]]),
                *(f"{1e3 * row[key]:.0f} ({row[f'{key}_to_peft']:.2f})" for key in TIMES),
                *(f"{row[key]:.2f}" for key in ("peak_first", "peak_second")),
            ]
            for row in rows
        ),
    )


def _prepare(pair: tuple, folder: Path) -> dict[str, int]:
    """A clone, the same in the layout of the Hub's cache, and a LoRA of as many bytes; returns the bytes of both."""
    from peft import LoraConfig, get_peft_model

    from recipes.frame.untrained import random_model, untrained_clone

    target, source, insertion, cut, keep, layers = pair
    model = random_model(target)
    clone = untrained_clone(model, random_model(source, 1), LABELS, insertion, cut, keep=keep)
    clone.save_pretrained(folder / "clone")
    _ship_to_cache(folder / "clone", folder / "cache" / "models--user--clone")
    wanted = clone.nbytes("model.safetensors", clone.config.adapters[0].file)

    def lora(rank: int):
        return get_peft_model(random_model(target), LoraConfig(r=rank, target_modules=layers))

    per_rank = 4 * sum(value.numel() for name, value in lora(1).named_parameters() if "lora_" in name)
    adapted = lora(max(1, round(wanted / per_rank)))
    adapted.save_pretrained(folder / "lora")
    lora_bytes = (folder / "lora" / "adapter_model.safetensors").stat().st_size
    return {"clone": wanted, "lora": lora_bytes}


def _ship_to_cache(clone: Path, repository: Path) -> None:
    """Lay out files as huggingface_hub's cache does: blobs by the Hub's digests, and per commit a folder of links to them."""
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    for path in (path for path in clone.rglob("*") if path.is_file()):
        content = path.read_bytes()
        # tensors are large files, which the Hub knows by their sha256; it knows others as git does
        large = path.suffix == ".safetensors"
        digest = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content)
        blob, link = repository / "blobs" / digest.hexdigest(), repository / "snapshots" / SHA / path.relative_to(clone)
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


def _work(contestant: str, pair: str, folder: str) -> dict[str, float]:
    """Attach, detach, and so on, in this process; seconds, and peak extra memory over the bytes of what is attached."""
    from recipes.frame.untrained import random_model

    model, here = random_model(PAIRS[pair][0]), Path(folder)
    attach, detach, size = {
        "folder": _clone_from_folder,
        "cache": _clone_from_cache,
        "peft": _lora,
        "peft (meta)": _lora_on_meta,
        "read": _read,
    }[contestant](model, here)
    times, peaks = [], []
    for _ in range(2):  # the second beside the first, so that nothing the first has freed serves it
        before = _reset_peak()
        times.append(_timed(attach))
        peaks.append((_peak() - before) / size)
    for _ in range(LATER):
        detach()
        times.append(_timed(attach))
    return {
        **{f"first{clock}": seconds for clock, seconds in times[0].items()},
        **{f"later{clock}": statistics.median(entry[clock] for entry in times[1:]) for clock in times[0]},
        "peak_first": peaks[0],
        "peak_second": peaks[1],
    }


def _clone_from_folder(model, folder: Path) -> tuple:
    return _clone(model, folder / "clone", folder)


def _clone_from_cache(model, folder: Path) -> tuple:
    # a full commit sha needs no request
    return _clone(model, f"user/clone@{SHA}", folder, cache_dir=folder / "cache", local_files_only=True)


def _clone(model, clone: str | Path, folder: Path, **options) -> tuple:
    from huggingface_hub import hf_hub_download  # noqa: F401  (imports are not counted on any side)

    from pnc_hub.attachment import attach as join

    attached: list = []

    def attach() -> None:
        collision = "allow" if attached else "error"  # later ones bring the classes of the first again
        attached.append(join(model, clone, on_collision=collision, **options))

    return attach, lambda: attached.pop().detach(), _size(folder)


def _lora(model, folder: Path, **options) -> tuple:
    from peft import PeftModel

    wrapped: list = []

    def attach() -> None:
        if wrapped:
            wrapped[0].load_adapter(folder / "lora", "later", **options)
        else:
            wrapped.append(PeftModel.from_pretrained(model, folder / "lora", **options))

    def detach() -> None:
        wrapped[0].delete_adapter("later")

    return attach, detach, (folder / "lora" / "adapter_model.safetensors").stat().st_size


def _lora_on_meta(model, folder: Path) -> tuple:
    return _lora(model, folder, low_cpu_mem_usage=True)


def _read(_model, folder: Path) -> tuple:
    """The floor: the clone's bytes in memory, every page touched."""
    import safetensors.torch

    paths, held = [folder / "clone" / "model.safetensors", *(folder / "clone" / "adapters").iterdir()], []

    def attach() -> None:
        held.append([safetensors.torch.load_file(path) for path in paths])
        for tensors in held[-1]:
            for tensor in tensors.values():
                tensor.sum()

    return attach, held.pop, _size(folder)


def _size(folder: Path) -> int:
    paths = [folder / "clone" / "model.safetensors", *(folder / "clone" / "adapters").iterdir()]
    return sum(path.stat().st_size for path in paths)


def _timed(act: Callable[[], None]) -> dict[str, float]:
    """Seconds on the wall clock, and of all processors together, which other work on the machine disturbs less."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return {"": time.perf_counter() - wall, "_cpu": time.process_time() - cpu}


def _reset_peak() -> int:
    """Bytes resident now; the high-water mark starts here (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
