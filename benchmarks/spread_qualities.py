"""The recipe on the four recorded qualities of ``mpe/simple_spread``, beside cloning and the data itself.

    python benchmarks/spread_qualities.py --output runs/spread_qualities

``record`` trains MATD3 and records random, medium-replay, medium and expert data, one recording for each seed; then
implicit Q-learning and advantage-weighted regression, and cloning, train on each. Scores are normalized as in OMAR:
100 * (return - 159.8) / (516.8 - 159.8), over 1,000 evaluation episodes, by both kinds of policy.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from arguments import run_script
from common import draw_seeds, machine, make_loss, parse_method_study, run_jobs, table, train_with_curves

from torchrl_marl_offline import AWR, IQL, evaluate, make_env, record
from torchrl_marl_offline.core.figure_style import GREY, figure_style, legend_beside, make_figure, save_figure
from torchrl_marl_offline.recording.graded import QUALITIES
from torchrl_marl_offline.training import read_csv

TASK = "mpe/simple_spread"
RANDOM, EXPERT = 159.8, 516.8
METHODS = {"cloning": ("cloning", None), "recipe": ("mixer", None), "recipe, temperature 0.5": ("mixer", 0.5)}
"""Name -> networks, and a temperature of its own."""
PURE = ("medium", "expert")
"""The qualities of one policy, where a method with a temperature of its own is run."""


def normalized(episode_return: float) -> float:
    return 100 * (episode_return - RANDOM) / (EXPERT - RANDOM)


def recording(seed: int, folder: str) -> dict[str, Any]:
    """Record all qualities with one seed; returns their mean returns and what it took."""
    began = time.perf_counter()
    found = record(TASK, Path(folder) / f"seed{seed}", seed=seed, progress=False)
    rows = read_csv(Path(folder) / f"seed{seed}" / "behaviour" / "eval.csv")
    means = {quality: dataset.episode_returns().mean().item() for quality, dataset in found.items()}
    replay = len(found["medium-replay"])
    facts = {"seconds": time.perf_counter() - began, "updates": rows[-1]["step"], "replay transitions": replay}
    return means | facts


def learning(
    method: str,
    seed: int,
    quality: str,
    steps: int,
    expectile: float,
    temperature: float,
    gamma: float,
    lr: float,
    folder: str,
) -> dict[str, Any]:
    """Train one method on one quality with one seed; returns the curves and the final normalized scores."""
    torch.manual_seed(seed)
    data = record(TASK, Path(folder) / f"seed{seed}", seed=seed, qualities=[quality], progress=False)[quality]
    networks, own_temperature = METHODS[method]
    extraction = AWR(own_temperature or temperature, advantage="joint", weights="clipped")
    rules = {"value_learning": IQL(expectile), "extraction": extraction}
    loss = make_loss(data.spec, networks, gamma=gamma, hidden=(64, 64), **rules)
    env = make_env(TASK, num_envs=1000)

    def play(mode: str) -> float:
        return normalized(evaluate(loss.actor_network, env, episodes=1000, seed=1000 + seed, mode=mode).mean)

    compile = "off" if method == "cloning" else "on"
    result = train_with_curves(loss, data, steps=steps, lr=lr, seed=seed, play=play, compile=compile)
    return result | {"data": normalized(data.episode_returns().mean().item())}


@figure_style()
def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw a panel for every quality: mean and range over seeds of each method, deterministic, and the data."""
    qualities = [quality for quality in QUALITIES if any(row["quality"] == quality for row in rows)]
    figure = make_figure((4.0 * len(qualities), 4.0))
    axes = figure.subplots(1, len(qualities), squeeze=False)[0]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for axis, quality in zip(axes, qualities):
        members = [row for row in rows if row["quality"] == quality]
        for method in dict.fromkeys(row["method"] for row in members):
            curves = [row["curve"] for row in members if row["method"] == method]
            draw_seeds(
                axis, curves[0]["step"], [curve["mode"] for curve in curves], index=methods.index(method), label=method
            )
        axis.axhline(sum(row["data"] for row in members) / len(members), color=GREY, linestyle="--", label="data")
        axis.set(title=quality, xlabel="updates")
    axes[0].set_ylabel("normalized score (0 random, 100 expert)")
    fullest = max(axes, key=lambda axis: len(axis.get_lines()))
    legend_beside(figure, fullest)
    figure.suptitle(f"{TASK}, recorded qualities: mean and range over seeds", x=0.01, ha="left")
    save_figure(figure, path)


def main() -> None:
    """Run the study."""
    settings = {"steps": 6000, "expectile": 0.7, "temperature": 3.0, "gamma": 0.95, "lr": 2e-3}
    args, jobs, chosen = parse_method_study(__doc__, output="runs/spread_qualities", methods=list(METHODS), **settings)
    folder = str(args.output / "data")
    seeds = [{"seed": seed, "folder": folder} for seed in range(args.seeds)]
    recorded = run_jobs(recording, seeds, workers=args.workers, results=args.output / "recordings.jsonl")
    jobs = [job | {"quality": quality, "folder": folder} for quality in QUALITIES for job in jobs]
    jobs = [job for job in jobs if METHODS[job["method"]][1] is None or job["quality"] in PURE]
    rows = run_jobs(learning, jobs, workers=args.workers, results=args.output / "results.jsonl")
    rows.sort(key=lambda row: (QUALITIES.index(row["quality"]), row["method"]))
    print(machine(), chosen)
    facts = ["updates", "replay transitions", "seconds"]
    print(table([row | {"task": TASK} for row in recorded], by=["task"], columns=[*QUALITIES, *facts]))
    print(table(rows, by=["quality", "method"], columns=["data", "mode", "sampled"]))
    plot(rows, args.output / "spread_qualities.png")


if __name__ == "__main__":
    run_script(main)
