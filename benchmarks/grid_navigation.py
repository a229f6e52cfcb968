"""Recorded data with its simulator: success on ``cn-2-medium``, by decomposition.

    TORCHRL_MARL_OFFLINE_DATA=FOLDER python benchmarks/grid_navigation.py --output runs/grid_navigation

Implicit Q-learning and advantage-weighted regression with every decomposition, beside cloning, on the 70,894 recorded
transitions of a medium policy (success .4385);
evaluated in ``games/grid_navigation``, by the deterministic and the stochastic policy.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from arguments import run_script
from common import machine, make_loss, parse_method_study, plot_execution_curves, run_jobs, table, train_with_curves

from torchrl_marl_offline import AWR, IQL, evaluate, load_dataset, make_env

FOLDER = "TORCHRL_MARL_OFFLINE_DATA"
LEVELS = {"data": 0.4385, "uniform random play": 0.781}
"""Success of what a policy should be held against."""

METHODS = ("cloning", "mixer", "vdn", "independent", "frozen mixer")


def grid_navigation(
    method: str, seed: int, steps: int, expectile: float, temperature: float, gamma: float, lr: float
) -> dict[str, Any]:
    """Train one method with one seed; returns the curves of success and the final figures."""
    torch.manual_seed(seed)
    data = load_dataset(f"pymarl:{os.environ[FOLDER]}/pymarl/cn-2-medium.h5")
    rules = {"value_learning": IQL(expectile), "extraction": AWR(temperature, weights="clipped")}
    loss = make_loss(data.spec, method, gamma=gamma, hidden=(64, 64), **rules)
    env = make_env("games/grid_navigation", agents=2, num_envs=500)

    def play(mode: str) -> float:
        return evaluate(loss.actor_network, env, episodes=500, seed=1000 + seed, mode=mode).success_rate

    return train_with_curves(loss, data, steps=steps, lr=lr, seed=seed, play=play)


def main() -> None:
    """Run the study."""
    if FOLDER not in os.environ:
        raise SystemExit(f"error: set {FOLDER} to the folder that has pymarl/cn-2-medium.h5.")
    settings = {"steps": 6000, "expectile": 0.8, "temperature": 3.0, "gamma": 0.95, "lr": 1e-3}
    args, jobs, chosen = parse_method_study(__doc__, output="runs/grid_navigation", methods=METHODS, **settings)
    rows = run_jobs(grid_navigation, jobs, workers=args.workers, results=args.output / "results.jsonl")
    print(machine(), chosen)
    print(table(rows, by=["method"], columns=["mode", "sampled"]))
    plot_execution_curves(
        rows,
        args.output / "grid_navigation.png",
        levels=LEVELS,
        ylabel="success rate (share of episodes)",
        title="games/grid_navigation, cn-2-medium: mean and range over seeds",
    )


if __name__ == "__main__":
    run_script(main)
