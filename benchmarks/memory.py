"""Memory of a training run on the CPU, and of a member of a population; each in a fresh process.

    python benchmarks/memory.py --json memory.json

The recipe (Mix + SVN + IQL + AWR, trained mixer, both heads) on random transitions in memory, on one thread. Resident
memory as the operating system counts it, with everything that Python, torch and TorchRL take: after the imports, with
the data, with networks and trainer, and its peak over the whole process.

A member's bytes: what the study runner estimates, and the growth of the peak from a small population to a larger one,
divided by the members between them.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from arguments import as_count, as_few, run_script
from measuring import benchmark_parser, fresh_process, markdown, report, resident, spread
from sizes import SIZES, random_transitions

from torchrl_marl_offline import make_loss
from torchrl_marl_offline.training import Learner, Trainer

POPULATIONS = {"small": (8, 40), "paper": (1, 3)}
CHILD = "import memory, sys; memory.train(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])"
STAGES = ["imports", "data", "networks", "peak"]
MIB = 2**20


def train(size_name: str, members: int, transitions: int, steps: int, compile: str) -> None:
    """Train, in a process of its own, and print the bytes at each stage as JSON; no members: an ordinary run."""
    torch.set_num_threads(1)
    size = SIZES[size_name]
    stages = {"imports": resident("now")}
    dataset = random_transitions(size.spec, transitions)
    stages["data"] = resident("now")
    torch.manual_seed(0)
    keys = make_loss(size.spec, hidden=(1,)).in_keys
    if members:
        from torchrl_marl_offline.training import PopulationBuffer, PopulationLearner

        buffer = PopulationBuffer(dataset.data, batch_size=size.batch_size, seeds=range(members), keys=keys)
        # The losses are not kept: their tensors are in the population.
        losses = {str(i): make_loss(size.spec, hidden=size.hidden) for i in range(members)}
        learner = PopulationLearner(losses, compile=compile)
        del losses
    else:
        buffer = dataset.replay_buffer(batch_size=size.batch_size, seed=0, keys=keys)
        learner = Learner(make_loss(size.spec, hidden=size.hidden), compile=compile)
    trainer = Trainer(learner, buffer, steps=steps, progress=False)
    stages["networks"] = resident("now")
    trainer.train()
    print(json.dumps(stages | {"peak": resident("peak")}))


def estimate(size_name: str) -> dict[str, int]:
    """Return what the study runner reckons with for one member, in bytes."""
    from torchrl_marl_offline.study.memory import estimate_member, made_up_batch

    size = SIZES[size_name]
    loss = make_loss(size.spec, hidden=size.hidden)
    found = estimate_member(loss, lambda rows: made_up_batch(size.spec, rows), size.batch_size)
    return vars(found) | {"total": found.total}


def single_runs(names: list[str], *, transitions: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Measure ordinary runs, eager and compiled."""
    results = []
    for name in names:
        for compile in ("off", "on"):
            runs = [fresh_process(CHILD, name, 0, transitions, steps, compile) for _ in range(repeats)]
            stages = {stage: spread([run[stage] for run in runs]) for stage in STAGES}
            results.append({"size": name, "compile": compile, "bytes": stages})
    return results


def members(names: list[str], *, transitions: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Measure what a member of a population adds, beside its estimate."""
    results = []
    for name in names:
        few, many = POPULATIONS[name]
        growths = []
        for _ in range(repeats):
            peaks = [fresh_process(CHILD, name, count, transitions, steps, "off")["peak"] for count in (few, many)]
            growths.append((peaks[1] - peaks[0]) / (many - few))
        estimated = estimate(name)
        results.append({"size": name, "populations": [few, many], "bytes": spread(growths), "estimated": estimated})
    return results


def main() -> None:
    """Measure, print, and write ``--json``."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--transitions", type=as_count, default=50_000)
    parser.add_argument("--steps", type=as_count, default=10)
    parser.add_argument("--repeats", type=as_few, default=3)
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.transitions, args.steps, args.repeats = ["small"], 2000, 2, 1
    settings = {"transitions": args.transitions, "steps": args.steps, "repeats": args.repeats}

    def mib(found: dict[str, float]) -> str:
        return f"{found['median'] / MIB:,.1f} ({found['p10'] / MIB:,.1f} to {found['p90'] / MIB:,.1f})"

    runs = single_runs(args.sizes, **settings)
    rows = [[row["size"], row["compile"], *(mib(row["bytes"][stage]) for stage in STAGES)] for row in runs]
    print(markdown(["one run", "compile", *(f"{stage}, MiB" for stage in STAGES)], rows), end="\n\n", flush=True)
    added = members(args.sizes, **settings)
    rows = []
    for row in added:
        total = row["estimated"]["total"]
        few, many = row["populations"]
        share = f"{total / row['bytes']['median']:.2f}"
        rows.append([row["size"], f"{few} and {many}", mib(row["bytes"]), f"{total / MIB:,.1f}", share])
    print(markdown(["a member", "populations", "measured, MiB", "estimated, MiB", "estimated / measured"], rows))
    report(args.json, {"runs": runs, "members": added}, threads=1, **settings)


if __name__ == "__main__":
    run_script(main)
