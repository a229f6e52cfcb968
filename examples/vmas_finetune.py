"""Offline pretraining on recorded VMAS data, then fine-tuning online in many VMAS environments at once.

    python examples/vmas_finetune.py                                   # minutes on two CPU cores
    python examples/vmas_finetune.py --device cuda --num-envs 4096
    python examples/vmas_finetune.py --resume runs/vmas-balance-...

Records a mixture of VMAS's heuristic and random play, trains the recipe on it, and goes on online from where offline
training ended: TorchRL's collector plays, the same loss learns. Nothing explores unless --exploration says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch

import torchrl_marl_offline as marl
from torchrl_marl_offline import evaluation, training
from torchrl_marl_offline.commands.script_settings import SettingsError, parse_settings, plain_errors, write_config
from torchrl_marl_offline.core.ranges import (
    CAPACITY,
    COUNT,
    DISCOUNT,
    EVALUATED,
    LEARNING_RATE,
    NON_NEGATIVE,
    OPEN_UNIT,
    RUN_SEED,
    SHARE,
    SIZE,
    THREADS_OR_AUTO,
    WIDTHS,
)
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.recording import record_mixed_skill


@dataclass(frozen=True)
class Args:
    """Offline-to-online multi-agent RL: pretrains on recorded data and fine-tunes in VMAS."""

    task: str = "vmas/balance"
    """family/task; any batched environment of make_env will do."""
    episodes: Annotated[int, COUNT] = 500
    """Episodes to record."""
    offline_steps: Annotated[int, COUNT] = 1500
    """Updates on the recorded data."""
    online_steps: Annotated[int, COUNT] = 1500
    """Updates on online experience."""
    num_envs: Annotated[int, SIZE] = 256
    """Environments that play at once."""
    steps_per_round: Annotated[int, SIZE] = 10
    """Steps of every environment between two bouts of learning."""
    updates_per_round: Annotated[int, COUNT] = 40
    """Updates between two rounds: update-to-data ratio = updates_per_round / (steps_per_round * num_envs)."""
    capacity: Annotated[int, CAPACITY] = 200_000
    """Online transitions that are kept for sampling."""
    offline_fraction: Annotated[float, SHARE] = 0.0
    """Share of recorded data in the online batches; 0 is pure online training with a fresh buffer (the paper's)."""
    anneal: Annotated[bool, ReadWith("offline_fraction", above=0)] = True
    """Let that share fall to 0 over the first half of the online updates."""
    exploration: Literal["mode", "sample"] = "sample"
    """mode: the policy's mode acts, no exploration at all, and AWR stands still; sample: its distribution acts."""
    extraction: Literal["awr", "brac"] = "awr"
    """How the policy follows the values."""
    temperature: Annotated[float, NON_NEGATIVE, ReadWith("extraction", "awr")] = marl.AWR.temperature
    """How strongly AWR prefers better actions: its weight is exp(temperature · standardized advantage), bounded."""
    weights: Annotated[Literal["bounded", "softmax", "clipped"], ReadWith("extraction", "awr")] = marl.AWR.weights
    """How AWR's weights are made of advantages; clipped: as released."""
    alpha: Annotated[float, NON_NEGATIVE, ReadWith("extraction", "brac")] = 0.1
    """Weight of BRAC's cloning penalty."""
    expectile: Annotated[float, OPEN_UNIT] = 0.7
    """IQL's expectile."""
    gamma: Annotated[float, DISCOUNT] = 0.97
    """Discount."""
    hidden: Annotated[tuple[int, ...], WIDTHS] = (64, 64)
    """Widths of the hidden layers."""
    lr: Annotated[float, LEARNING_RATE] = 1e-3
    """Adam's learning rate."""
    batch_size: Annotated[int, SIZE] = 256
    """Transitions per update."""
    eval_every: Annotated[int, COUNT] = 500
    """Updates between evaluations."""
    eval_episodes: Annotated[int, EVALUATED] = 200
    """Episodes of an evaluation."""
    seed: Annotated[int, RUN_SEED] = 0
    """Seed of everything."""
    device: str = "cpu"
    """cpu or cuda: where environments, data and networks live."""
    threads: Annotated[int, THREADS_OR_AUTO] = 1
    """Threads of torch; 0 leaves the choice to torch."""
    compile: Literal["auto", "on", "off"] = "auto"
    """One compiled function for the loss and its gradients: always, never, or where that is measured to be faster."""
    output: Path | None = None
    """Folder of the results; by default a new one below runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, with its settings."""
    preset: Literal["quick"] = "quick"
    """There is only one."""


def make_loss(args: Args, spec: marl.TaskSpec) -> marl.OfflineMARLLoss:
    """Put the recipe together: Mix + SVN + IQL + AWR (or BRAC)."""
    torch.manual_seed(args.seed)
    weights = ("temperature", "weights") if args.extraction == "awr" else ("alpha",)
    names = ("extraction", *weights, "expectile", "gamma", "hidden")
    return marl.make_loss(spec, **{name: getattr(args, name) for name in names}).to(args.device)


def main(args: Args) -> None:
    """Record, pretrain, fine-tune, draw."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.capacity < args.steps_per_round * args.num_envs:
        raise SettingsError("--capacity must hold a round, --steps-per-round times --num-envs; raise it.")
    make_loss(args, marl.make_env(args.task).task_spec)  # before anything is recorded: wrong settings are found here
    folder = args.output or Path("runs") / f"{args.task.replace('/', '-')}-finetune-{datetime.now():%Y%m%d-%H%M%S}"
    data = record_mixed_skill(args.task, folder.parent / "data", episodes=args.episodes, seed=args.seed, progress=True)
    print(data.summary())
    if args.resume is None:
        write_config(folder, replace(args, output=folder))
    loss = make_loss(args, data.spec)
    make = partial(marl.make_env, args.task, device=args.device)
    eval_env = make(num_envs=args.eval_episodes)
    play = partial(marl.evaluate, loss.actor_network, eval_env, episodes=args.eval_episodes, seed=1000 + args.seed)
    common = {
        "evaluators": {"mode": partial(play, mode="mode"), "sampled": partial(play, mode="sample")},
        "eval_every": args.eval_every,
        "eval_at_start": True,
        "checkpoint_every": args.eval_every,
    }

    offline = data.replay_buffer(batch_size=args.batch_size, device=args.device, seed=args.seed, keys=loss.in_keys)
    learner = marl.Learner(loss, lr=args.lr, compile=args.compile)
    run(marl.Trainer(learner, offline, steps=args.offline_steps, output=folder / "offline", **common), "offline")

    source = training.CollectorSource(
        make(num_envs=args.num_envs),
        loss.actor_network,
        steps_per_round=args.steps_per_round,
        exploration=args.exploration,
        seed=args.seed,
    )
    online = marl.OnlineReplay(
        source,
        capacity=args.capacity,
        batch_size=args.batch_size,
        update_to_data=args.updates_per_round / (args.steps_per_round * args.num_envs),
        journal=folder / "online" / "experience",
        offline=data if args.offline_fraction > 0 else None,
        offline_fraction=args.offline_fraction,
        offline_until=args.online_steps // 2 if args.anneal else None,
        keys=loss.in_keys,
        keep_all=False,
        device=args.device,
        seed=args.seed,
    )
    learner = marl.Learner(loss, lr=args.lr, compile=args.compile)
    began, trainer = (
        time.perf_counter(),
        marl.Trainer(learner, online, steps=args.online_steps, output=folder / "online", **common),
    )
    explores = {"mode": "none, the policy's mode acts", "sample": "actions are drawn from the policy's distribution"}
    print(f"\nexploration: {explores[args.exploration]}")
    before = run(trainer, "online")
    seconds = time.perf_counter() - began
    print(
        f"online, evaluations included: {(online.transitions - before[1]) / seconds:,.0f} environment steps and "
        f"{(trainer.step - before[0]) / seconds:,.1f} updates a second"
    )
    rows = {stage: training.read_csv(folder / stage / "eval.csv") for stage in ("offline", "online")}
    for stage, table in rows.items():
        for evaluator in ("mode", "sampled"):
            curve = [f"{row['return']:.3g}" for row in table if row["evaluator"] == evaluator]
            print(f"{stage:8} {evaluator:8} return by step: {' '.join(curve)}")
    stages = {stage: folder / stage for stage in ("offline", "online")}
    mean = data.episode_returns().mean().item()
    starts = {"online": args.offline_steps}
    evaluation.plot_learning_curves(
        stages, folder / "learning_curves.png", data_mean=mean, starts=starts, title=args.task
    )
    print(f"the recorded data: {mean:.3g}; curves in {folder}, checkpoints and policy.pt in {folder / 'online'}")


def run(trainer: marl.Trainer, stage: str) -> tuple[int, int]:
    """Train, from the newest checkpoint if there is one; return how far it was before."""
    if trainer.checkpoints.checkpoints():
        trainer.resume()
    before = trainer.step, getattr(trainer.buffer, "transitions", 0)
    print(f"\n{stage}: updates {trainer.step} to {trainer.steps}")
    trainer.train()
    return before


if __name__ == "__main__":
    with plain_errors():
        main(parse_settings(Args, presets={"quick": {}}))
