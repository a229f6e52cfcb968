"""The recipe for stable offline multi-agent RL, beside behaviour cloning, from data to a table and pictures.

    python examples/offline_mix_awr.py

Mix (a monotonic mixer over local critics) + SVN (scale-invariant value normalization) + IQL (implicit Q-learning) + AWR
(advantage-weighted regression): Lee et al. 2026. The data is recorded once by scripted policies of mixed skill; cloning
averages them, the recipe prefers the better one. Other algorithms, recorded data, grids and many seeds at once:
``marl-offline train``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch

import torchrl_marl_offline as marl
from torchrl_marl_offline import evaluation
from torchrl_marl_offline.commands.script_settings import parse_settings, plain_errors, write_config
from torchrl_marl_offline.core import ranges

TASK = "mpe/simple_spread"
METHODS = {
    "cloning": {"hidden": (64, 64)},
    "recipe": {"hidden": (64, 64), "advantage": "joint", "expectile": 0.7, "gamma": 0.95},
}


@dataclass(frozen=True)
class Args:
    """Trains the recipe and behaviour cloning on one dataset, and compares them."""

    episodes: Annotated[int, ranges.COUNT] = 4000
    """Episodes to record."""
    steps: Annotated[int, ranges.COUNT] = 6000
    """Updates of each method."""
    eval_every: Annotated[int, ranges.COUNT] = 1000
    """Updates between evaluations, and between checkpoints."""
    eval_episodes: Annotated[int, ranges.EVALUATED] = 200
    """Episodes per evaluation; the last one, which makes the table, has five times as many."""
    seed: Annotated[int, ranges.RUN_SEED] = 0
    """Seed of data, networks, batches and evaluation."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Loss and gradients as one compiled function: where measured to be faster, always, never."""
    output: Path | None = None
    """Folder of the results; by default a new one below runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, with its settings, bit for bit."""
    preset: Literal["quick"] = "quick"
    """There is one."""


def train(name: str, args: Args, data: marl.OfflineDataset, folder: Path) -> tuple[marl.OfflineMARLLoss, list]:
    """Train one method; returns its loss and the rows of its evaluations on the way."""
    torch.manual_seed(args.seed)  # of the networks
    loss = marl.make_loss(data.spec, algorithm=name, **METHODS[name])
    torch.manual_seed(args.seed)  # of the noise
    env = marl.make_env(TASK, num_envs=args.eval_episodes)
    play = partial(marl.evaluate, loss.actor_network, env, episodes=args.eval_episodes, seed=1000 + args.seed)
    trainer = marl.Trainer(
        marl.Learner(loss, lr=2e-3, compile=args.compile),
        data.replay_buffer(batch_size=256, seed=args.seed, keys=loss.in_keys),
        steps=args.steps,
        evaluators={"mode": partial(play, mode="mode"), "sampled": partial(play, mode="sample")},
        eval_every=args.eval_every,
        checkpoint_every=args.eval_every,
        keep_best=("mode", "return"),
        output=folder,
    )
    if args.resume is not None and trainer.checkpoints.checkpoints():
        trainer.resume()
    print(f"\n{name}: updates {trainer.step} to {args.steps}, results in {folder}")
    trainer.train()
    return loss, trainer.logger.eval.rows


def main(args: Args) -> None:
    """Record the data, train both methods, compare them."""
    torch.set_num_threads(1)  # small networks are fastest on one
    folder = args.output or Path("runs") / f"simple_spread-{datetime.now():%Y%m%d-%H%M%S}"
    options = {"episodes": args.episodes, "seed": args.seed, "progress": True}
    data = marl.record_mixed_skill(TASK, folder.parent / "data", **options)
    print(data.summary())
    if args.resume is None:
        write_config(folder, replace(args, output=folder))
    folders = {"cloning": folder / "cloning", "recipe": folder}
    finals, curves = {}, {}
    for name, place in folders.items():
        loss, rows = train(name, args, data, place)
        env = marl.make_env(TASK, num_envs=args.eval_episodes)
        for way, mode in (("mode", "mode"), ("sampled", "sample")):
            measured = {"episodes": 5 * args.eval_episodes, "seed": 2000 + args.seed, "mode": mode}
            finals[f"{name}, {way}"] = marl.evaluate(loss.actor_network, env, **measured)
        curves |= {f"{name}, {way}": curve for way, curve in evaluation.summarize_evaluations(rows).items()}
    data_mean = data.episode_returns().mean().item()
    evaluation.plot_learning_curves(folders, folder / "learning_curves.png", data_mean=data_mean)
    table = evaluation.write_report(folder, finals=finals, curves=curves, data=data)
    print(f"\n{table}\nPictures, CSV files and checkpoints: {folder}")


if __name__ == "__main__":
    with plain_errors():
        main(parse_settings(Args, presets={"quick": {}}))
