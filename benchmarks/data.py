"""Converting and loading datasets, as Markdown tables.

    python benchmarks/data.py --gib 5 --folder /tmp/data-benchmark

1. Conversion: a vault as flashbax writes it (arrays of 4 MiB chunks, gzip 5) of eight agents with the shapes of
   StarCraft's 8m, filled with random numbers of one decimal, so that it shrinks on disk about as recordings do. A fresh
   process converts it; its peak of resident memory has everything in it that Python, torch and TorchRL take.
2. The first batch from a converted set in a fresh process, with and without the comparison of checksums. The files are
   in the operating system's cache.

How fast it is sampled then, ``sampling.py`` measures.

Needs about five times ``--gib`` on the disk; the folder is removed.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import as_amount, as_count, as_few, as_folder, run_script
from measuring import benchmark_parser, fresh_process, markdown, report, spread, with_spread
from sizes import SMALL, random_transitions

AGENTS, OBSERVATION, STATE, ACTIONS, EPISODE = 8, 80, 168, 14, 50
CHUNK_BYTES = 4 * 2**20

CONVERT = """
import json, sys, time
from torchrl_marl_offline.data import convert_dataset
from measuring import resident
imported = resident("peak")
start = time.perf_counter()
convert_dataset(f"vault:{sys.argv[1]}", sys.argv[2], progress=False)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": resident("peak") / 2**20, "imported": imported / 2**20}))
"""

FIRST_BATCH = """
import json, sys, time
start = time.perf_counter()
import torchrl_marl_offline as marl
marl.OfflineDataset
imported = time.perf_counter()
dataset = marl.load_dataset(sys.argv[1], verify=sys.argv[2] == "True")
batch = dataset.replay_buffer(batch_size=256, seed=0).sample()
assert batch.shape == (256,)
print(json.dumps({"imports": imported - start, "first batch": time.perf_counter() - imported}))
"""


def write_vault(folder: Path, gib: float) -> dict[str, float]:
    """Write a vault whose arrays take ``gib`` GiB; return its rows and its size on disk in MiB."""
    import tensorstore

    row = {
        "observations": ((AGENTS, OBSERVATION), "float32"),
        "infos.state": ((STATE,), "float32"),
        "infos.legals": ((AGENTS, ACTIONS), "float32"),
        "actions": ((AGENTS,), "int32"),
        **dict.fromkeys(("rewards", "terminals", "truncations"), ((AGENTS,), "float32")),
    }
    rows = int(gib * 2**30 / sum(4 * np.prod(shape) for shape, _ in row.values())) // EPISODE * EPISODE

    def create(name: str, shape: tuple[int, ...], chunks: list[int], dtype: str):
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": folder.as_uri(), "path": name}}
        spec["metadata"] = {"compressor": {"id": "gzip", "level": 5}, "chunks": chunks}
        return tensorstore.open(spec, shape=shape, dtype=dtype, create=True, open=True).result()

    folder.mkdir(parents=True)
    arrays, structure = {}, {"infos": {}}
    for name, (shape, dtype) in row.items():
        at_once = CHUNK_BYTES // int(4 * np.prod(shape))
        arrays[name] = create(f"{name}.", (1, 10**13, *shape), [1, at_once, *shape], dtype)
        group, _, leaf = name.rpartition(".")
        (structure[group] if group else structure)[leaf] = str((1, rows, *shape))
    generator = np.random.default_rng(0)
    step = CHUNK_BYTES // (4 * AGENTS) // 8
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        for name, values in _random_rows(generator, start, stop).items():
            arrays[name][:, start:stop].write(values[None]).result()
    create("vault_index", (1,), [1], "int32").write(np.array([rows], np.int32)).result()
    (folder / "metadata.json").write_text(json.dumps({"version": 1.2, "structure_shape": structure}))
    return {"rows": rows, "disk": _mib(folder)}


def _random_rows(generator: np.random.Generator, start: int, stop: int) -> dict[str, np.ndarray]:
    count = stop - start
    legals = generator.random((count, AGENTS, ACTIONS), np.float32) < 0.5
    actions = generator.integers(0, ACTIONS, (count, AGENTS), np.int32)
    np.put_along_axis(legals, actions[..., None], True, -1)
    last = np.arange(start + 1, stop + 1) % EPISODE == 0
    flags = np.broadcast_to(last[:, None], (count, AGENTS)).astype(np.float32)
    return {
        "observations": generator.random((count, AGENTS, OBSERVATION), np.float32).round(1),
        "infos.state": generator.random((count, STATE), np.float32).round(1),
        "infos.legals": legals.astype(np.float32),
        "actions": actions,
        "rewards": generator.random((count, AGENTS), np.float32).round(1),
        "terminals": np.zeros_like(flags),
        "truncations": flags,
    }


def conversion(folder: Path, gib: float) -> dict[str, float]:
    """Convert in a fresh process, print and return."""
    vault = write_vault(folder / "vault", gib)
    result = fresh_process(CONVERT, folder / "vault", folder / "converted")
    result |= {"gib": gib, "rows": vault["rows"], "vault_mib": vault["disk"], "mib": _mib(folder / "converted")}
    header = ["arrays", "rows", "vault on disk", "converted", "time", "arrays' MiB/s", "peak memory of the process"]
    cells = [
        f"{gib:g} GiB",
        f"{result['rows']:,}",
        f"{result['vault_mib']:,.0f} MiB",
        f"{result['mib']:,.0f} MiB",
        f"{result['seconds']:.1f} s",
        f"{1024 * gib / result['seconds']:.0f}",
        f"{result['peak']:.0f} MiB, {result['imported']:.0f} of them after the imports",
    ]
    print(markdown(header, [cells]), end="\n\n", flush=True)
    shutil.rmtree(folder / "vault")
    shutil.rmtree(folder / "converted")
    return result


def first_batch(path: Path, transitions: int, repeats: int) -> list[dict[str, Any]]:
    """Load and sample in fresh processes, print and return."""
    results, rows = [], []
    for verify in (True, False):
        runs = [fresh_process(FIRST_BATCH, path, verify) for _ in range(repeats)]
        found = {name: spread([run[name] for run in runs]) for name in ("imports", "first batch")}
        results.append({"transitions": transitions, "mib": _mib(path), "verify": verify, "seconds": found})
        sizes = [f"{transitions:,}", f"{_mib(path):,.0f} MiB", "yes" if verify else "no"]
        rows.append([*sizes, *(with_spread(each, ".2f") for each in found.values())])
    header = ["transitions", "on disk", "checksums compared", "imports, s", "load and first batch of 256, s"]
    print(markdown(header, rows), flush=True)
    return results


def _mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def main() -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--gib", type=as_amount, default=1.0, help="size of the vault's arrays; 0 leaves it out")
    parser.add_argument("--transitions", type=as_count, default=1_000_000, help="of the set that is loaded")
    parser.add_argument("--repeats", type=as_few, default=5, help="fresh processes for the first batch")
    parser.add_argument("--folder", type=as_folder, default=Path("data-benchmark"))
    args = parser.parse_args()
    if args.quick:
        args.gib, args.transitions, args.repeats = min(args.gib, 0.02), 5000, 1
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = args.folder.absolute()
    folder.mkdir(parents=True)
    try:
        results = {"conversion": conversion(folder, args.gib) if args.gib else None}
        path = random_transitions(SMALL.spec, args.transitions).save(folder / "spread")
        results["first batch"] = first_batch(path, args.transitions, args.repeats)
    finally:
        shutil.rmtree(folder)
    report(args.json, results, threads=1)


if __name__ == "__main__":
    run_script(main)
