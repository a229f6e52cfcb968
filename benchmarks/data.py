"""Converting, loading and sampling datasets, as Markdown tables.

    python benchmarks/data.py --gib 5 --folder /tmp/data-benchmark

1. Conversion: a vault as flashbax writes it (arrays of 4 MiB chunks, gzip 5) of eight agents with the shapes of
   StarCraft's 8m, filled with random numbers of one decimal, so that it shrinks on disk about as recordings do. A fresh
   process converts it; its peak is ``ru_maxrss``, with everything that Python, torch and TorchRL take in it.
2. The first batch from a converted set in a fresh process, with and without the comparison of checksums. The files are
   in the operating system's cache.
3. Batches a second of our buffer and of TorchRL's over the same storage, in turns; medians of the rounds.

Needs about five times ``--gib`` on the disk; the folder is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import machine
from torchrl.data import SliceSampler, TensorDictReplayBuffer, TensorStorage

from torchrl_marl_offline import OfflineDataset, from_arrays

AGENTS, OBSERVATION, STATE, ACTIONS, EPISODE = 8, 80, 168, 14, 50
CHUNK_BYTES = 4 * 2**20

CONVERT = """
import json, resource, sys, time
from torchrl_marl_offline.data import convert_dataset
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
convert_dataset(f"vault:{sys.argv[1]}", sys.argv[2], progress=False)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak": peak / 1024, "imported": imported / 1024}))
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


def conversion(folder: Path, gib: float) -> None:
    """Convert in a fresh process and print."""
    vault = write_vault(folder / "vault", gib)
    result = _python(CONVERT, folder / "vault", folder / "converted")
    print("| arrays | rows | vault on disk | converted | time | arrays' MiB/s | peak memory of the process |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {gib:g} GiB | {vault['rows']:,} | {vault['disk']:,.0f} MiB | {_mib(folder / 'converted'):,.0f} MiB | "
        f"{result['seconds']:.1f} s | {1024 * gib / result['seconds']:.0f} | {result['peak']:.0f} MiB (ru_maxrss, "
        f"{result['imported']:.0f} of them after the imports; nothing subtracted) |\n",
        flush=True,
    )
    shutil.rmtree(folder / "vault")
    shutil.rmtree(folder / "converted")


def spread_like(transitions: int) -> OfflineDataset:
    """Return random transitions of ``mpe/simple_spread``'s shapes."""
    generator = torch.Generator().manual_seed(0)
    observation = torch.rand(transitions, 3, 18, generator=generator)
    ends = torch.arange(1, transitions + 1) % 25 == 0
    return from_arrays(
        observations=observation,
        next_observations=observation.roll(-1, 0),
        actions=2 * torch.rand(transitions, 3, 2, generator=generator) - 1,
        rewards=torch.rand(transitions, 3, generator=generator),
        terminals=torch.zeros(transitions),
        truncations=ends,
    )


def first_batch(path: Path, transitions: int, repeats: int) -> None:
    """Load and sample in fresh processes and print medians."""
    print("| transitions | on disk | checksums compared | imports | load and first batch of 256 | together |")
    print("| --- | --- | --- | --- | --- | --- |")
    for verify in (True, False):
        runs = [_python(FIRST_BATCH, path, verify) for _ in range(repeats)]
        imports, batch = (statistics.median(run[name] for run in runs) for name in ("imports", "first batch"))
        size, compared = f"{transitions:,} | {_mib(path):,.0f} MiB", "yes" if verify else "no"
        print(f"| {size} | {compared} | {imports:.2f} s | {batch:.2f} s | {imports + batch:.2f} s |")
    print(flush=True)


def sampling(dataset: OfflineDataset, path: Path, *, rounds: int, batches: int) -> None:
    """Sample in turns and print medians."""
    memory = dataset.data
    mapped = OfflineDataset.load(path, verify=False)
    print("| storage | sample of 256 | ours | TorchRL's buffer | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for where, data in (("in memory", memory), ("memory-mapped", mapped.data)):
        holder = OfflineDataset(data, dataset.spec, check=False)
        for what, slice_len in (("transitions", None), ("16 slices of 16", 16)):
            sampler = None
            if slice_len is not None:
                keys = {"traj_key": ("collector", "traj_ids"), "cache_values": True}
                sampler = SliceSampler(slice_len=slice_len, strict_length=False, pad_output=True, **keys)
            generator = torch.Generator().manual_seed(0)
            theirs = TensorDictReplayBuffer(
                storage=TensorStorage(data), sampler=sampler, batch_size=256, generator=generator
            )
            ours = holder.replay_buffer(batch_size=256, slice_len=slice_len, seed=0)
            rates = {"ours": [], "theirs": []}
            for _ in range(rounds):
                for name, buffer in (("ours", ours), ("theirs", theirs)):
                    rates[name].append(_rate(buffer.sample, batches))
            here, there = (statistics.median(rates[name]) for name in ("ours", "theirs"))
            print(f"| {where} | {what} | {here:,.0f}/s | {there:,.0f}/s | {here / there:.1f} |", flush=True)
    print()


def _rate(sample: Callable[[], object], batches: int) -> float:
    start = time.perf_counter()
    for _ in range(batches):
        sample()
    return batches / (time.perf_counter() - start)


def _python(code: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def _mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the vault's arrays; 0 leaves it out")
    parser.add_argument("--transitions", type=int, default=1_000_000, help="of the set that is loaded and sampled")
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes for the first batch")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each buffer")
    parser.add_argument("--batches", type=int, default=200, help="of each turn")
    parser.add_argument("--folder", type=Path, default=Path("data-benchmark"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = args.folder.absolute()
    folder.mkdir(parents=True)
    try:
        print(f"{machine()}; torch on one thread\n", flush=True)
        if args.gib:
            conversion(folder, args.gib)
        dataset = spread_like(args.transitions)
        path = dataset.save(folder / "spread")
        first_batch(path, args.transitions, args.repeats)
        sampling(dataset, path, rounds=args.rounds, batches=args.batches)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
