"""Offline training on recorded VMAS data, then fine-tuning online in many VMAS environments at once.

    python examples/vmas_finetune.py                                   # minutes on two CPU cores
    python examples/vmas_finetune.py --device cuda --num-envs 4096

The recipe is trained on a mixture of VMAS's heuristic and random play, and goes on from there: TorchRL's collector
plays, the same loss learns from what it gathers. Other algorithms, any start, videos and logging:
``marl-offline train ALGORITHM --online TASK``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch

import torchrl_marl_offline as marl
from torchrl_marl_offline import evaluation, training
from torchrl_marl_offline.commands.script_settings import parse_settings, plain_errors, write_config
from torchrl_marl_offline.core import ranges

STEPS_PER_ROUND, UPDATES_PER_ROUND = 10, 40  # of every environment, and of the loss after them


@dataclass(frozen=True)
class Args:
    """Offline-to-online multi-agent RL: trains on recorded data and goes on in VMAS."""

    task: str = "vmas/balance"
    """family/task; any batched environment of make_env will do."""
    episodes: Annotated[int, ranges.COUNT] = 500
    """Episodes to record."""
    offline_steps: Annotated[int, ranges.COUNT] = 1500
    """Updates on the recorded data."""
    online_steps: Annotated[int, ranges.COUNT] = 1500
    """Updates on online experience."""
    num_envs: Annotated[int, ranges.SIZE] = 256
    """Environments that play at once."""
    eval_every: Annotated[int, ranges.COUNT] = 500
    """Updates between evaluations, and between checkpoints."""
    seed: Annotated[int, ranges.RUN_SEED] = 0
    """Seed of everything."""
    device: str = "cpu"
    """cpu or cuda: where environments, data and networks live."""
    output: Path | None = None
    """Folder of the results; by default a new one below runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, with its settings."""
    preset: Literal["quick"] = "quick"
    """There is only one."""


def main(args: Args) -> None:
    """Record, train offline, go on online, draw."""
    torch.set_num_threads(1)
    make = partial(marl.make_env, args.task, device=args.device)
    folder = args.output or Path("runs") / f"{args.task.replace('/', '-')}-finetune-{datetime.now():%Y%m%d-%H%M%S}"
    data = marl.record_mixed_skill(args.task, folder.parent / "data", episodes=args.episodes, seed=args.seed)
    print(data.summary())
    if args.resume is None:
        write_config(folder, replace(args, output=folder))

    torch.manual_seed(args.seed)
    loss = marl.make_loss(data.spec, expectile=0.7, gamma=0.97, hidden=(64, 64)).to(args.device)
    play = partial(marl.evaluate, loss.actor_network, make(num_envs=200), episodes=200, seed=1000 + args.seed)
    evaluators = {"mode": partial(play, mode="mode"), "sampled": partial(play, mode="sample")}
    options = {"device": args.device, "seed": args.seed, "keys": loss.in_keys}

    def train(stage: str, buffer: object, steps: int) -> None:
        learner = marl.Learner(loss, lr=1e-3)
        often = {"eval_every": args.eval_every, "checkpoint_every": args.eval_every, "eval_at_start": True}
        trainer = marl.Trainer(learner, buffer, steps=steps, evaluators=evaluators, output=folder / stage, **often)
        if trainer.checkpoints.checkpoints():  # of an earlier run that is resumed
            trainer.resume()
        print(f"\n{stage}: updates {trainer.step} to {steps}")
        trainer.train()

    train("offline", data.replay_buffer(batch_size=256, **options), args.offline_steps)

    source = training.CollectorSource(
        make(num_envs=args.num_envs),
        loss.actor_network,
        steps_per_round=STEPS_PER_ROUND,
        exploration="sample",  # on its own mode, advantage-weighted regression stands still
        seed=args.seed,
    )
    online = marl.OnlineReplay(
        source,
        capacity=200_000,
        batch_size=256,
        update_to_data=UPDATES_PER_ROUND / (STEPS_PER_ROUND * args.num_envs),
        journal=folder / "online" / "experience",
        keep_all=False,
        **options,
    )
    train("online", online, args.online_steps)

    evaluation.plot_learning_curves(
        {stage: folder / stage for stage in ("offline", "online")},
        folder / "learning_curves.png",
        data_mean=data.episode_returns().mean().item(),
        starts={"online": args.offline_steps},
        title=args.task,
    )
    print(f"curves in {folder}, checkpoints and policy.pt in {folder / 'online'}")


if __name__ == "__main__":
    with plain_errors():
        main(parse_settings(Args, presets={"quick": {}}))
