"""The main job's comparison: every decomposition on mixed-skill data of ``mpe/simple_spread``.

    python benchmarks/spread.py --output runs/spread_study

The dataset and the settings are those of ``examples/offline_mix_awr.py``: one good behaviour and two that a wind blows
off, a third of the episodes each. Implicit Q-learning and advantage-weighted regression with every decomposition, and
cloning; returns over 1,000 evaluation episodes, executed by mode and sampled.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import execution_curves, machine, make_loss, plot_execution_curves, run_jobs, table

from torchrl_marl_offline import AWR, IQL, Trainer, evaluate, make_env
from torchrl_marl_offline.data import record_mixed_skill

METHODS = {
    "cloning": ("cloning", "joint"),
    "mixer": ("mixer", "joint"),
    "vdn": ("vdn", "joint"),
    "independent": ("independent", "local"),
    "frozen mixer": ("frozen mixer", "joint"),
    "mixer without SVN": ("mixer without SVN", "joint"),
    "mixer, local advantage": ("mixer", "local"),
}


def spread(
    method: str, seed: int, steps: int, expectile: float, temperature: float, gamma: float, lr: float, folder: str
) -> dict[str, Any]:
    """Train one method with one seed; returns the curves and the final returns."""
    torch.manual_seed(seed)
    data = record_mixed_skill("mpe/simple_spread", folder, seed=seed)
    network, advantage = METHODS[method]
    rules = {"value_learning": IQL(expectile), "extraction": AWR(temperature, advantage=advantage)}
    loss = make_loss(data.spec, network, gamma=gamma, hidden=(64, 64), **rules)
    env = make_env("mpe/simple_spread", num_envs=1000)

    def play(mode: str) -> float:
        return evaluate(loss.actor_network, env, episodes=1000, seed=1000 + seed, mode=mode).mean

    curve, measure = execution_curves(lambda: trainer.step, play)
    trainer = Trainer(
        loss,
        data.replay_buffer(batch_size=256, seed=seed, keys=loss.in_keys),
        steps=steps,
        lr=lr,
        evaluators={"return": measure},
        eval_every=steps // 6,
        compile=method != "cloning",
        progress=False,
    )
    trainer.train()
    mean = data.episode_returns().mean().item()
    return {"curve": curve, "mode": curve["mode"][-1], "sampled": curve["sampled"][-1], "data": mean}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/spread_study"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--expectile", type=float, default=0.7)
    parser.add_argument("--temperature", type=float, default=3.0)
    parser.add_argument("--gamma", type=float, default=0.95)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ("steps", "expectile", "temperature", "gamma", "lr")}
    settings["folder"] = str(args.output / "data")
    jobs = [{"method": method, "seed": seed} | settings for seed in range(args.seeds) for method in args.methods]
    rows = run_jobs(spread, jobs, workers=args.workers, results=args.output / "results.jsonl")
    print(machine(), settings)
    print(table(rows, by=["method"], columns=["data", "mode", "sampled"]))
    levels = {"data": sum(row["data"] for row in rows) / len(rows)}
    plot_execution_curves(
        rows,
        args.output / "spread.png",
        levels=levels,
        ylabel="return of an episode",
        title="mpe/simple_spread, mixed-skill data: mean and range over seeds",
    )


if __name__ == "__main__":
    main()
