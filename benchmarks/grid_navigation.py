"""Recorded data with its simulator: success on ``cn-2-medium``, by decomposition.

    TORCHRL_MARL_OFFLINE_DATA=FOLDER python benchmarks/grid_navigation.py --output runs/grid_navigation

Implicit Q-learning and advantage-weighted regression with every decomposition, beside cloning, on the 70,894 recorded
transitions of a medium policy (success .4385); evaluated in ``games/grid_navigation``, executed by mode and sampled.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from common import execution_curves, machine, make_loss, plot_execution_curves, run_jobs, table

from torchrl_marl_offline import AWR, IQL, Trainer, evaluate, load_dataset, make_env

METHODS = ("cloning", "mixer", "vdn", "independent", "frozen mixer")


def grid_navigation(
    method: str, seed: int, steps: int, expectile: float, temperature: float, gamma: float, lr: float
) -> dict[str, Any]:
    """Train one method with one seed; returns the curves of success and the final figures."""
    torch.manual_seed(seed)
    data = load_dataset("pymarl:" + os.environ["TORCHRL_MARL_OFFLINE_DATA"] + "/pymarl/cn-2-medium.h5")
    rules = {"value_learning": IQL(expectile), "extraction": AWR(temperature)}
    loss = make_loss(data.spec, method, gamma=gamma, hidden=(64, 64), **rules)
    env = make_env("games/grid_navigation", agents=2, num_envs=500)

    def play(mode: str) -> float:
        return evaluate(loss.actor_network, env, episodes=500, seed=1000 + seed, mode=mode).success_rate

    curve, measure = execution_curves(lambda: trainer.step, play)
    buffer = data.replay_buffer(batch_size=256, seed=seed, keys=loss.in_keys)
    trainer = Trainer(
        loss,
        buffer,
        steps=steps,
        lr=lr,
        evaluators={"success": measure},
        eval_every=steps // 6,
        compile=True,
        progress=False,
    )
    trainer.train()
    return {"curve": curve, "mode": curve["mode"][-1], "sampled": curve["sampled"][-1]}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/grid_navigation"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--expectile", type=float, default=0.8)
    parser.add_argument("--temperature", type=float, default=3.0)
    parser.add_argument("--gamma", type=float, default=0.95)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ("steps", "expectile", "temperature", "gamma", "lr")}
    jobs = [{"method": method, "seed": seed} | settings for seed in range(args.seeds) for method in args.methods]
    rows = run_jobs(grid_navigation, jobs, workers=args.workers, results=args.output / "results.jsonl")
    print(machine(), settings)
    print(table(rows, by=["method"], columns=["mode", "sampled"]))
    levels = {"data": 0.4385, "uniform random play": 0.781}
    plot_execution_curves(
        rows,
        args.output / "grid_navigation.png",
        levels=levels,
        ylabel="success rate",
        title="cn-2-medium: success, mean and range over seeds",
    )


if __name__ == "__main__":
    main()
