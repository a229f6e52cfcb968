"""Who drops and who gains when offline training goes on online: AWR and BRAC (Lee et al. 2026, figure 11).

    python benchmarks/offline_to_online.py --output runs/offline_to_online

Every run trains Mix + SVN + IQL with AWR or BRAC, or the one setting for data of every quality (VDN, TD and BRAC at
its strength, ``algorithm="brac"``), on recorded data (of mixed skill by scripted policies, a recording for each seed;
for MA-MuJoCo the medium quality of one MATD3 recording), then goes on with the same networks on its own experience
alone (a fresh buffer, as in the paper). What acts is the policy's distribution, or, "composed", the best joint action
by the critic of what it and the policy that was offline draw. Returns of evaluation episodes by the deterministic
policy: 500, for MA-MuJoCo 16.

Arithmetic: 3 tasks x 6 methods x 3 seeds = 54 runs of 6,000 updates, with 4,000 of them 128,000 steps of the task each,
and one recording of MA-MuJoCo (6 minutes): about 110 minutes of one core. Resumable: finished runs lie in ``--output``.
"""

from __future__ import annotations

import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from arguments import as_count, as_few, as_folder, as_size, run_script, script_parser
from common import draw_seeds, machine, make_loss, run_jobs, table

import torchrl_marl_offline as marl
from torchrl_marl_offline import (
    AWR,
    BRAC,
    IQL,
    OfflineDataset,
    OfflineMARLLoss,
    OnlineReplay,
    TaskSpec,
    Trainer,
    evaluate,
    make_env,
    record,
)
from torchrl_marl_offline.core.figure_style import GREY, figure_style, legend_beside, make_figure, save_figure
from torchrl_marl_offline.recording import record_mixed_skill
from torchrl_marl_offline.training import CollectorSource, ComposedPolicy, Learner

EXTRACTIONS = {
    "AWR": AWR(3.0, advantage="joint", weights="clipped"),
    "BRAC": BRAC(0.1),
}
ONE_SETTING, COMPOSED = "one setting", ", composed"
METHODS = [name + how for name in (*EXTRACTIONS, ONE_SETTING) for how in ("", COMPOSED)]
GAMMA = {"mpe/simple_spread": 0.95, "vmas/balance": 0.97, "mamujoco/2halfcheetah": 0.98}
EVAL_EPISODES = {"mamujoco/2halfcheetah": 16}
RECORDED = {
    "mamujoco/2halfcheetah": {
        "updates": 8000,
        "num_envs": 16,
        "eval_episodes": 16,
        "compile": False,
        "transitions": 64_000,
        "learner": {"gamma": 0.98, "noise": 0.2},
    }
}


def load_data(task: str, folder: str, *, episodes: int, seed: int) -> OfflineDataset:
    """Return the recorded data of a task, recorded first if it is not there."""
    if task not in RECORDED:
        return record_mixed_skill(task, folder, episodes=episodes, seed=seed)
    path = Path(folder) / task.replace("/", "-")
    return record(task, path, qualities=["medium"], progress=False, **RECORDED[task])["medium"]


def make_loss_of(method: str, spec: TaskSpec, gamma: float) -> OfflineMARLLoss:
    """Build the loss of a method, whatever acts online."""
    if method == ONE_SETTING:
        return marl.make_loss(spec, algorithm="brac", gamma=gamma)
    rules = {"value_learning": IQL(0.7), "extraction": EXTRACTIONS[method]}
    return make_loss(spec, "mixer", gamma=gamma, hidden=(64, 64), **rules)


def fine_tune(
    task: str, method: str, seed: int, offline_steps: int, online_steps: int, episodes: int, num_envs: int, folder: str
) -> dict[str, Any]:
    """Pretrain and fine-tune with one seed; returns both curves and what was measured at their ends."""
    torch.manual_seed(seed)
    data = load_data(task, folder, episodes=episodes, seed=seed)
    loss = make_loss_of(method.removesuffix(COMPOSED), data.spec, GAMMA[task])
    eval_episodes = EVAL_EPISODES.get(task, 500)
    eval_env = make_env(task, num_envs=eval_episodes)
    curve: dict[str, list[float]] = {"step": [], "return": []}

    def play(start: int) -> None:
        curve["step"].append(start + trainer.step)
        curve["return"].append(evaluate(loss.actor_network, eval_env, episodes=eval_episodes, seed=1000 + seed).mean)

    options = {"eval_at_start": True, "progress": False}
    buffer = data.replay_buffer(batch_size=256, seed=seed, keys=loss.in_keys)
    evaluators = {"offline": lambda: play(0)}
    trainer = Trainer(
        Learner(loss, lr=1e-3, compile="on"),
        buffer,
        steps=offline_steps,
        evaluators=evaluators,
        eval_every=offline_steps // 4,
        **options,
    )
    trainer.train()
    offline = curve["return"][-1]
    with tempfile.TemporaryDirectory() as journal:
        acting = loss.actor_network
        if method.endswith(COMPOSED):
            acting = ComposedPolicy(deepcopy(acting).requires_grad_(False), loss)
        source = CollectorSource(
            make_env(task, num_envs=num_envs), acting, steps_per_round=25, exploration="sample", seed=seed
        )
        replay = OnlineReplay(
            source,
            capacity=200_000,
            batch_size=256,
            update_to_data=1 / 32,
            journal=journal,
            keys=loss.in_keys,
            keep_all=False,
            seed=seed,
        )
        evaluators = {"online": lambda: play(offline_steps)}
        trainer = Trainer(
            Learner(loss, lr=1e-3, compile="on"),
            replay,
            steps=online_steps,
            evaluators=evaluators,
            eval_every=online_steps // 8,
            **options,
        )
        trainer.train()
    during = curve["return"][curve["step"].index(offline_steps) :]
    return {
        "curve": curve,
        "data": data.episode_returns().mean().item(),
        "offline": offline,
        "lowest online": min(during),
        "last online": during[-1],
        "change": during[-1] - offline,
    }


@figure_style()
def plot(rows: list[dict[str, Any]], tasks: list[str], path: Path) -> None:
    """Draw the curves of all methods for every task: mean and range over seeds."""
    figure = make_figure((5.0 * len(tasks), 4.0))
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, task in zip(axes, tasks):
        for index, method in enumerate(METHODS):
            members = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            if not members:
                continue
            curves = [row["curve"]["return"] for row in members]
            draw_seeds(axis, members[0]["curve"]["step"], curves, index=index, label=method)
        own = [row for row in rows if row["task"] == task]
        axis.axvline(own[0]["offline_steps"], color=GREY, linestyle="-.", label="online from here")
        axis.axhline(sum(row["data"] for row in own) / len(own), color=GREY, linestyle=":", label="data")
        axis.set(title=task, xlabel="updates", ylabel="mean return of an episode")
    legend_beside(figure, axes[0])
    figure.suptitle("Offline, then online: mean and range over seeds", x=0.01, ha="left")
    save_figure(figure, path)


def main() -> None:
    """Run the study."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=as_folder, default=Path("runs/offline_to_online"))
    parser.add_argument("--tasks", nargs="+", default=list(GAMMA), choices=list(GAMMA))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=as_few, default=5)
    parser.add_argument("--workers", type=as_few, default=2)
    parser.add_argument("--offline-steps", type=as_count, default=2000)
    parser.add_argument("--online-steps", type=as_count, default=4000)
    parser.add_argument("--episodes", type=as_count, default=1000)
    parser.add_argument("--num-envs", type=as_size, default=64)
    args = parser.parse_args()
    names = ("offline_steps", "online_steps", "episodes", "num_envs")
    settings = {name: getattr(args, name) for name in names} | {"folder": str(args.output / "data")}
    for task in set(args.tasks) & set(RECORDED):  # once, before the runs share it
        load_data(task, settings["folder"], episodes=args.episodes, seed=0)
    jobs = [
        {"task": task, "method": method, "seed": seed} | settings
        for task in args.tasks
        for seed in range(args.seeds)
        for method in args.methods
    ]
    rows = run_jobs(fine_tune, jobs, workers=args.workers, results=args.output / "results.jsonl")
    rows.sort(key=lambda row: (args.tasks.index(row["task"]), row["method"]))
    print(machine(), settings)
    print(table(rows, by=["task", "method"], columns=["data", "offline", "lowest online", "last online", "change"]))
    plot(rows, args.tasks, args.output / "offline_to_online.png")


if __name__ == "__main__":
    run_script(main)
