"""The main job's comparison: every decomposition on mixed-skill data of ``mpe/simple_spread``.

    python benchmarks/spread.py --output runs/spread_study

The dataset and the settings are those of ``examples/offline_mix_awr.py``: one good behaviour and two that a wind blows
off, a third of the episodes each. Implicit Q-learning and advantage-weighted regression with every decomposition, and
cloning; returns over 1,000 evaluation episodes, by the deterministic and the stochastic policy.
"""

from __future__ import annotations

from typing import Any

import torch
from arguments import run_script
from common import machine, make_loss, parse_method_study, plot_execution_curves, run_jobs, table, train_with_curves

from torchrl_marl_offline import AWR, IQL, WeightedBRAC, evaluate, make_env
from torchrl_marl_offline.recording import record_mixed_skill

METHODS = {
    "cloning": ("cloning", "joint"),
    "mixer": ("mixer", "joint"),
    "vdn": ("vdn", "joint"),
    "independent": ("independent", "local"),
    "frozen mixer": ("frozen mixer", "joint"),
    "mixer without SVN": ("mixer without SVN", "joint"),
    "mixer, local advantage": ("mixer", "local"),
    "mixer, weighted BRAC": ("mixer", "joint"),
}


def spread(
    method: str, seed: int, steps: int, expectile: float, temperature: float, gamma: float, lr: float, folder: str
) -> dict[str, Any]:
    """Train one method with one seed; returns the curves and the final returns."""
    torch.manual_seed(seed)
    data = record_mixed_skill("mpe/simple_spread", folder, seed=seed)
    network, advantage = METHODS[method]
    extraction = (
        WeightedBRAC(1.0, temperature=temperature)
        if method == "mixer, weighted BRAC"
        else AWR(temperature, advantage=advantage, weights="clipped")
    )
    rules = {"value_learning": IQL(expectile), "extraction": extraction}
    loss = make_loss(data.spec, network, gamma=gamma, hidden=(64, 64), **rules)
    env = make_env("mpe/simple_spread", num_envs=1000)

    def play(mode: str) -> float:
        return evaluate(loss.actor_network, env, episodes=1000, seed=1000 + seed, mode=mode).mean

    compile = "off" if method == "cloning" else "on"
    result = train_with_curves(loss, data, steps=steps, lr=lr, seed=seed, play=play, compile=compile)
    return result | {"data": data.episode_returns().mean().item()}


def main() -> None:
    """Run the study."""
    settings = {"steps": 6000, "expectile": 0.7, "temperature": 3.0, "gamma": 0.95, "lr": 2e-3}
    args, jobs, chosen = parse_method_study(__doc__, output="runs/spread_study", methods=list(METHODS), **settings)
    jobs = [job | {"folder": str(args.output / "data")} for job in jobs]
    rows = run_jobs(spread, jobs, workers=args.workers, results=args.output / "results.jsonl")
    print(machine(), chosen)
    print(table(rows, by=["method"], columns=["data", "mode", "sampled"]))
    levels = {"data": sum(row["data"] for row in rows) / len(rows)}
    plot_execution_curves(
        rows,
        args.output / "spread.png",
        levels=levels,
        ylabel="mean return of an episode",
        title="mpe/simple_spread, mixed-skill data: mean and range over seeds",
    )


if __name__ == "__main__":
    run_script(main)
