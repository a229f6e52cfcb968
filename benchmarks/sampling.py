"""Batches a second: our replay buffer beside TorchRL's over the same storage.

    python benchmarks/sampling.py --json sampling.json

Random transitions of ``mpe/simple_spread``'s shapes, in memory and memory-mapped; single transitions and slices of 16.
TorchRL's is its ``TensorDictReplayBuffer``, at random or by its ``SliceSampler``, padding short episodes as ours does.
The two alternate.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arguments import as_amount, as_count, as_few, as_size, run_script
from measuring import CLOCKS, alternate, benchmark_parser, markdown, rates, report, times, with_spread
from sizes import SMALL, random_transitions
from tensordict import TensorDictBase
from torchrl.data import SliceSampler, TensorDictReplayBuffer, TensorStorage

from torchrl_marl_offline import OfflineDataset
from torchrl_marl_offline.core.layout import TRAJ_IDS

SLICE = 16


def theirs(data: TensorDictBase, batch_size: int, slice_len: int | None) -> Callable[[], Any]:
    """Return TorchRL's way to draw a batch."""
    sampler = None
    if slice_len is not None:
        keys = {"traj_key": TRAJ_IDS, "cache_values": True}
        sampler = SliceSampler(slice_len=slice_len, strict_length=False, pad_output=True, **keys)
    return TensorDictReplayBuffer(
        storage=TensorStorage(data),
        sampler=sampler,
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(0),
    ).sample


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__, clock=True)
    parser.add_argument("--transitions", type=as_count, default=1_000_000)
    parser.add_argument("--batch-size", type=as_size, nargs="+", default=[256, 640])
    parser.add_argument("--repeats", type=as_few, default=15, help="turns of each buffer")
    parser.add_argument("--seconds", type=as_amount, default=0.05, help="of a turn")
    args = parser.parse_args()
    if args.quick:
        args.transitions, args.repeats, args.seconds = 5000, 2, 0.005
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        dataset = random_transitions(SMALL.spec, args.transitions)
        path = dataset.save(Path(folder) / "set")
        mapped = OfflineDataset.load(path, verify=False)
        for where, held in (("in memory", dataset), ("memory-mapped", mapped)):
            for slice_len in (None, SLICE):
                for batch_size in args.batch_size:
                    ours = held.replay_buffer(batch_size=batch_size, slice_len=slice_len, seed=0).sample
                    plays = {"ours": times(ours), "TorchRL's": times(theirs(held.data, batch_size, slice_len))}
                    found = alternate(plays, repeats=args.repeats, seconds=args.seconds, clock=CLOCKS[args.clock])
                    speed = {name: rates(seconds) for name, seconds in found.items()}
                    ratio = speed["ours"]["median"] / speed["TorchRL's"]["median"]
                    what = "transitions" if slice_len is None else f"slices of {slice_len}"
                    facts = {"storage": where, "sample": what, "batch_size": batch_size}
                    results.append(facts | {"batches_per_second": speed, "ratio": ratio})
                    rows.append([*facts.values(), *map(with_spread, speed.values()), f"{ratio:.1f}"])
    print(markdown(["storage", "sample", "batch", "ours, batches/s", "TorchRL's, batches/s", "ratio"], rows))
    report(args.json, results, transitions=args.transitions, threads=1, clock=args.clock)


if __name__ == "__main__":
    run_script(main)
