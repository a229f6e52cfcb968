"""Milliseconds of a whole update of the recipe: forward, backward, Adam, target update; eager and compiled.

    python benchmarks/step.py --json step.json

Mixer, implicit Q-learning, advantage-weighted regression and SVN on a random batch of ``mpe/simple_spread``'s shapes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from common import machine, make_loss
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import AWR, IQL, collect, make_env
from torchrl_marl_offline.training import default_optimizer


def updater(width: int, batch_size: int, compiled: bool) -> Callable[[], None]:
    """Return a function that makes one update."""
    data = collect(make_env("mpe/simple_spread", num_envs=40), episodes=40, seed=0)
    rules = {"value_learning": IQL(0.7), "extraction": AWR(3.0, advantage="joint")}
    loss = make_loss(data.spec, "mixer", gamma=0.95, hidden=(width, width), **rules)
    batch = data.replay_buffer(batch_size=batch_size, seed=0, keys=loss.in_keys).sample()
    targets = SoftUpdate(loss, tau=0.005)
    optimizer = default_optimizer(loss, lr=1e-3)
    forward = torch.compile(loss, fullgraph=True) if compiled else loss

    def update() -> None:
        terms = forward(batch)
        (terms["loss_actor"] + terms["loss_qvalue"] + terms["loss_value"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        targets.step()

    return update


def measure(update: Callable[[], None], repeats: int) -> dict[str, float]:
    """Return the median and the 10th and 90th percentile in milliseconds, and the seconds of the first call."""
    start = time.perf_counter()
    update()
    first = time.perf_counter() - start
    times = []
    for i in range(repeats + 20):
        start = time.perf_counter()
        update()
        if i >= 20:
            times.append(1e3 * (time.perf_counter() - start))
    deciles = statistics.quantiles(times, n=10)
    return {"median": statistics.median(times), "p10": deciles[0], "p90": deciles[-1], "first_seconds": first}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for compiled in (False, True):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.compiler.reset()
            row = measure(updater(args.width, args.batch_size, compiled), args.repeats)
            rows.append({"compiled": compiled, "threads": threads} | row)
            print(
                f"{'compiled' if compiled else 'eager':8}  {threads} threads  {row['median']:6.2f} ms "
                f"({row['p10']:.2f} to {row['p90']:.2f}), first {row['first_seconds']:.1f} s",
                flush=True,
            )
    print(machine())
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": machine(), "results": rows}, indent=2))


if __name__ == "__main__":
    main()
