"""Updates a second of populations, against single runs: one after another, and as many processes as there are cores.

    python benchmarks/population.py --json population.json
    python benchmarks/population.py --members 1 8 32 --compiled
    python benchmarks/population.py --at-once 1 2 4 8 16 32 --compiled    # members of one computation
    python benchmarks/population.py --at-once 1 2 8 --members 8 --algorithm omar --compiled
    python benchmarks/population.py --device cuda --size paper --members 64 256 --compiled --repeats 1

A member's update is what a single run's is: its own minibatch, loss, backward, gradient norm, Adam, targets. Single
runs and populations are measured as they stand and compiled, on as many threads; and, with ``--processes``, as many
single runs of one thread at the same time as there are cores, and populations that share the members. The share is of
what a large matrix product reaches. A population that does not fit a GPU is left out, and named.

With ``--at-once``, a population of 32, or of each ``--members``, goes through the computation in groups of at most so
many members; the sizes of groups take turns, and nothing else is measured.
"""

from __future__ import annotations

import gc
import os
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from arguments import as_amount, as_device, as_few, as_size, as_threads, run_script
from measuring import (
    alternate,
    benchmark_parser,
    fresh_process,
    markdown,
    report,
    spread,
    times,
    wait_for_gpu,
    with_spread,
)
from sizes import SIZES, Size, random_transitions
from step import TRANSITIONS, build_loss, first_seconds, flop_of, make_trainer, matrix_peak, prepare, update

from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.training import PopulationBuffer, PopulationLearner, Trainer
from torchrl_marl_offline.training.populations.population import equal_groups
from torchrl_marl_offline.training.step.gradients import PRECISIONS, Precision

WAIT_EVERY = 50
LABELS = {"off": "as it stands", "on": "compiled"}
ALONE = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import torch
from population import single_rate
name, compile, seconds, ready, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
print(json.dumps(single_rate(name, compile, float(seconds), float(ready))))
"""
SHARE = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import torch
from population import population_rate
name, members, compile, seconds, ready = sys.argv[1:]
torch.set_num_threads(1)
print(json.dumps(population_rate(name, int(members), compile, float(seconds), float(ready))))
"""


def single_rate(name: str, compile: str, seconds: float, begin_at: float = 0.0, **options: Any) -> dict[str, float]:
    """Return the updates a second of one run over ``seconds``; it begins at a moment that several can share.

    Args:
        name: of the size.
        compile: as in :class:`Trainer`.
        seconds: how long it is measured.
        begin_at: the moment, as :func:`time.time`; 0 for at once.
        **options: of :func:`make_trainer`.
    """
    size = SIZES[name]
    trainer = make_trainer(size, random_transitions(size.spec, TRANSITIONS), compile=compile, **options)
    for _ in range(5):
        update(trainer)
    _wait_until(begin_at)
    return {"rate": _rate(lambda: update(trainer), seconds)}


def _wait_until(moment: float) -> None:
    late = time.time() - moment
    if moment and late > 0:
        raise RuntimeError(f"the warm-up ended {late:.0f} s after the common start; raise --head-start")
    time.sleep(max(0.0, -late if moment else 0.0))


def population_trainer(
    name: str | Size,
    members: int,
    compile: str,
    *,
    at_once: int | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    slices: Mapping[str, int] | None = None,
    **settings: Any,
) -> Trainer:
    """Return the trainer of a population with seeds 0, 1, ..., ready for its first step; see :func:`make_trainer`."""
    size = SIZES[name] if isinstance(name, str) else name
    data = random_transitions(size.spec, TRANSITIONS)
    losses = {f"seed={seed}": build_loss(size, seed=seed, device=device, **settings) for seed in range(members)}
    keys = losses["seed=0"].in_keys
    seeds = range(members)
    options = {"batch_size": size.batch_size, "device": device, "keys": keys} | dict(slices or {})
    buffer = PopulationBuffer(data.data, seeds=seeds, **options)
    learner = PopulationLearner(losses, compile=compile, members_at_once=at_once, precision=precision)
    trainer = Trainer(learner, buffer, steps=10**9, progress=False)
    prepare(trainer)
    return trainer


def population_rate(
    name: str, members: int, compile: str, seconds: float, begin_at: float = 0.0, **options: Any
) -> dict[str, Any]:
    """Return the member updates a second of a population, and its first step's seconds.

    Args:
        name: of the size.
        members: how many.
        compile: as in :class:`Trainer`.
        seconds: how long it is measured.
        begin_at: as of :func:`single_rate`.
        **options: of :func:`population_trainer`.
    """
    trainer = population_trainer(name, members, compile, **options)
    first = first_seconds(lambda: update(trainer))
    update(trainer)
    _wait_until(begin_at)
    return {"rate": members * _rate(lambda: update(trainer), seconds), "first_seconds": first}


def compare_groups(
    name: str, members: int, at_once: list[int], forms: list[str], *, seconds: float, repeats: int, **options: Any
) -> list[dict[str, Any]]:
    """Measure a population that goes through the computation in groups of different sizes, in turns."""
    plays, rows = {}, []
    for compile in forms:
        for count in at_once:
            trainer = population_trainer(name, members, compile, at_once=count, **options)
            row = {"members": members, "at_once": count, "computations": len(equal_groups(members, count))}
            step = partial(update, trainer)
            rows.append(row | {"compile": compile, "first_seconds": first_seconds(step)})
            plays[count, compile] = times(step)
    found = alternate(plays, repeats=repeats, seconds=seconds)
    for row in rows:
        row["ms"] = spread([1e3 * s / members for s in found[row["at_once"], row["compile"]]])
    torch.compiler.reset()
    return rows


def groups_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of what :func:`compare_groups` returned."""
    header = ["members", "at most at once", "computations a step", "", "ms a member", "first step, s"]
    names, cells = ("members", "at_once", "computations"), []
    for row in rows:
        measured = [with_spread(row["ms"], ".2f"), f"{row['first_seconds']:.1f}"]
        cells.append([*(row[name] for name in names), LABELS[row["compile"]], *measured])
    return markdown(header, cells)


def _rate(step: Any, seconds: float) -> float:
    wait_for_gpu()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        count += 1
        if count % WAIT_EVERY == 0:
            wait_for_gpu()  # else the host runs ahead of the clock
    wait_for_gpu()
    return count / (time.perf_counter() - began)


def processes(
    name: str, compile: str, seconds: float, count: int, head_start: float, *, members: int | None = None
) -> float:
    """Return the updates a second of ``count`` processes of one thread at the same time.

    Each has a single run; with ``members`` a population of its share of them.
    """
    from concurrent.futures import ThreadPoolExecutor

    begin = time.time() + head_start
    work = (ALONE, name, compile, seconds, begin, 1)
    if members is not None:
        work = (SHARE, name, members // count, compile, seconds, begin)
    with ThreadPoolExecutor(count) as pool:
        runs = [pool.submit(fresh_process, *work, OMP_NUM_THREADS="1") for _ in range(count)]
        return sum(run.result()["rate"] for run in runs)


def measure_groups(parser: ArgumentParser, args: Namespace) -> None:
    """Measure, print, and write what ``--at-once`` asks for."""
    populations = args.members or [32]
    if args.quick:
        populations, args.at_once = [2], [1, 2]
    for members in populations:
        if not 1 <= min(args.at_once) <= max(args.at_once) <= members:
            parser.error(f"--at-once must lie between 1 and the {members} members, got {args.at_once}.")
    forms = list(LABELS) if args.compiled else ["off"]
    rows = []
    for members in populations:
        settings = {"seconds": args.seconds, "repeats": args.repeats, **where(args)}
        rows += compare_groups(args.size, members, args.at_once, forms, **settings)
    print(groups_table(rows))
    report(args.json, rows, size=args.size, seconds=args.seconds, threads=args.threads, **where(args))


def where(args: Namespace) -> dict[str, str]:
    """Return the options of a trainer: of which loss it is, where and in which precision it works."""
    return {"algorithm": args.algorithm, "device": args.device, "precision": args.precision}


def main() -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument(
        "--algorithm", default="recipe", choices=sorted({*ALGORITHMS} - {"b3c"}), help="b3c wants a bound of its data"
    )
    parser.add_argument("--members", type=as_size, nargs="+", help="by default 1, 2, 4, ... 512; with --at-once, 32")
    parser.add_argument("--at-once", type=as_size, nargs="+", default=[], help="members of one computation")
    parser.add_argument("--threads", type=as_threads, default=1)
    parser.add_argument("--device", type=as_device, default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="fp32", choices=list(PRECISIONS))
    parser.add_argument("--processes", action="store_true", help="also a process for each core, all at once")
    parser.add_argument("--compiled", action="store_true", help="populations compiled, too (half a minute each)")
    parser.add_argument("--seconds", type=as_amount, default=10.0, help="of each measurement")
    parser.add_argument("--repeats", type=as_few, default=3)
    parser.add_argument("--head-start", type=as_amount, default=60.0, help="seconds that processes have to warm up")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    cores, threads = os.cpu_count(), args.threads
    torch.set_num_threads(threads)
    if args.quick:
        args.members, args.seconds, args.repeats, args.compiled = [1, 2], 0.5, 1, False
    if args.processes and where(args) != {"algorithm": "recipe", "device": "cpu", "precision": "fp32"}:
        parser.error("--processes runs the recipe on the CPU in fp32; leave out --algorithm, --device and --precision.")
    if args.at_once:
        measure_groups(parser, args)
        return
    args.members = args.members or [2**k for k in range(10)]
    rows: list[dict[str, Any]] = []
    forms = ["off"] if args.quick else ["off", "on"]
    for turn in range(args.repeats):
        for compile in forms:
            label = LABELS[compile]
            one = single_rate(args.size, compile, args.seconds, **where(args))["rate"]
            rows.append({"what": f"single run, {label}", "rate": one})
            print(f"turn {turn}: {rows[-1]['what']}: {one:.1f} updates a second", flush=True)
            if args.processes:
                together = processes(args.size, compile, args.seconds, cores, args.head_start)
                rows.append({"what": f"{cores} single runs at once, {label}, 1 thread each", "rate": together})
        for members in args.members:
            for compile in forms if args.compiled else ["off"]:
                label = LABELS[compile]
                what = f"population of {members}, {label}"
                try:
                    found = population_rate(args.size, members, compile, args.seconds, **where(args))
                    rows.append({"what": what, "members": members} | found)
                    outcome = f"{found['rate']:.1f} updates a second"
                except torch.OutOfMemoryError:
                    outcome = "not enough memory"
                print(f"turn {turn}: {what}: {outcome}", flush=True)
                if args.processes and members >= cores:
                    together = processes(args.size, compile, args.seconds, cores, args.head_start, members=members)
                    shares = f"{cores} populations of {members // cores} at once, {label}, 1 thread each"
                    rows.append({"what": shares, "members": members, "rate": together})
                torch.compiler.reset()
                gc.collect()  # here, where the error no longer holds what did not fit
    grouped: dict[str, list[float]] = {}
    for row in rows:
        grouped.setdefault(row["what"], []).append(row["rate"])
    base = spread(grouped["single run, as it stands"])["median"]
    size = SIZES[args.size]
    flop = flop_of(size, random_transitions(size.spec, TRANSITIONS))
    peak, cells = matrix_peak(args.device, args.precision), []
    for what, found in grouped.items():
        rate = spread(found)
        extremes = f"{min(found):.1f} to {max(found):.1f}"
        each = f"{1e3 / rate['median']:.2f}", f"{rate['median'] / base:.2f}", f"{flop * rate['median'] / peak:.0%}"
        cells.append([what, f"{rate['median']:.1f} ({extremes})", *each])
    print(markdown(["", "updates a second, all members", "ms an update", "× single run", "of matrix peak"], cells))
    settings = {"size": args.size, "seconds": args.seconds, "threads": threads, "gflop": flop / 1e9}
    report(args.json, rows, **settings, matrix_peak=peak, **where(args))


if __name__ == "__main__":
    run_script(main)
