"""The recipe for stable offline multi-agent RL, beside behaviour cloning, from data to a table and pictures.

    python examples/offline_mix_awr.py                                  # records its own data, then trains: minutes
    python examples/offline_mix_awr.py --dataset pymarl:cn-2-medium.h5  # recorded data
    python examples/offline_mix_awr.py --resume runs/mpe-simple_spread-...

Mix (a monotonic mixer over local critics) + SVN (scale-invariant value normalization) + IQL (implicit Q-learning) + AWR
(advantage-weighted regression): Lee et al. 2026. The data is recorded once by scripted policies of mixed skill; cloning
averages them, the recipe prefers the better one.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

import torch

import torchrl_marl_offline as marl
from torchrl_marl_offline import training
from torchrl_marl_offline.data import make_simulator, record_mixed_skill


@dataclass(frozen=True)
class Args:
    """Offline multi-agent RL: trains the recipe and behaviour cloning on one dataset, and compares them."""

    dataset: str | None = None
    """pymarl:FILE, or a folder that OfflineDataset.save wrote; by default the script records its own."""
    task: str | None = None
    """family/task to record where there is no --dataset; by default mpe/simple_spread."""
    episodes: int = 4000
    """Episodes to record."""
    decomposition: Literal["mixer", "vdn", "centralized", "independent"] = "mixer"
    """How the team's value is made of the agents' values."""
    frozen: bool = False
    """Leave the mixer at its random initial parameters (an ablation)."""
    value_learning: Literal["td", "sarsa", "iql"] = "iql"
    """What the next state is worth: Q at the policy's action, Q at the recorded one, or an expectile of Q."""
    extraction: Literal["awr", "brac"] = "awr"
    """How the policy follows the values: weighted cloning, or ascent on Q with a cloning penalty."""
    temperature: float = 3.0
    """AWR's weight is exp(temperature · standardized advantage)."""
    advantage: Literal["joint", "local"] = "joint"
    """AWR's advantage: the team's, through the mixer, or each agent's own."""
    alpha: float = 1.0
    """Weight of BRAC's cloning penalty."""
    expectile: float = 0.7
    """IQL's expectile: above 0.5 leans to the better actions of the data."""
    svn: bool = True
    """Scale-invariant value normalization of the critic's loss."""
    heads: Literal["all", "min"] = "all"
    """Train both critic heads, or at each row the smaller alone."""
    gamma: float = 0.95
    """Discount of the values; the return that is reported is not discounted."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    lr: float = 2e-3
    """Adam's learning rate."""
    batch_size: int = 256
    """Transitions per update."""
    steps: int = 6000
    """Updates of each method."""
    eval_every: int = 1000
    """Updates between evaluations."""
    eval_episodes: int = 200
    """Episodes per evaluation; the last one, which makes the table, has five times as many."""
    checkpoint_every: int = 1000
    """Updates between checkpoints."""
    seed: int = 0
    """Seed of data, networks, batches and evaluation."""
    device: str = "cpu"
    """Where data and networks lie: cpu or cuda."""
    threads: int = 1
    """Threads of torch; small networks are fastest on one. 0 leaves the choice to torch."""
    compile: bool = False
    """Compile the loss: pays for long runs, needs a C++ compiler."""
    wandb: bool = False
    """Also log to Weights & Biases (offline where WANDB_MODE=offline)."""
    output: Path | None = None
    """Folder of the results; by default a new one below runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, with its settings, bit for bit."""
    preset: Literal["quick", "paper"] = "quick"
    """quick fits in five minutes on two cores; paper has the paper's sizes (days on a CPU)."""


PAPER = {"hidden": (512,) * 4, "batch_size": 640, "steps": 500_000, "lr": 3e-4, "gamma": 0.99, "threads": 0}
PAPER |= {"expectile": 0.9, "temperature": 10.0, "advantage": "local", "eval_every": 50_000, "checkpoint_every": 10_000}


def make_loss(name: str, args: Args, spec: marl.TaskSpec) -> marl.OfflineMARLLoss:
    """Put the networks and the rules together."""
    torch.manual_seed(args.seed)
    actor = marl.make_actor(spec, hidden=args.hidden, scale="learned")
    if name == "cloning":
        return marl.BehaviourCloning(actor)
    options = {"decomposition": args.decomposition, "hidden": args.hidden}
    is_iql = args.value_learning == "iql"
    rules = {"td": marl.TD(), "sarsa": marl.SARSA(), "iql": marl.IQL(args.expectile)}
    extractions = {"awr": marl.AWR(args.temperature, advantage=args.advantage), "brac": marl.BRAC(args.alpha)}
    return marl.OfflineMARLLoss(
        actor,
        marl.make_critic(spec, frozen=args.frozen, **options),
        marl.make_value(spec, **options) if is_iql else None,
        value_learning=rules[args.value_learning],
        extraction=extractions[args.extraction],
        value_norm=marl.ScaleInvariantValueNorm() if args.svn else None,
        heads=args.heads,
    ).make_value_estimator(gamma=args.gamma)


def make_evaluators(loss: marl.OfflineMARLLoss, args: Args, env, held_out, *, episodes: int, seed: int) -> dict:
    """Play in the environment, by the policy's mode and sampled; without one, look at episodes kept out of training."""
    actor = loss.actor_network
    if env is not None:
        modes = {"mode": "mode", "sampled": "sample"}
        play = partial(marl.evaluate, actor, env, episodes=episodes, seed=seed)
        return {name: partial(play, mode=mode) for name, mode in modes.items()}

    def qvalue(batch):  # of the recorded actions: [b, 1] for the team, [b, n] for independent agents
        return loss.action_value(batch, batch["agents", "action"]).total_min.squeeze(-1)

    options = {"gamma": args.gamma, "device": args.device, "qvalue": qvalue if loss.value_learning else None}
    return {"held-out episodes": partial(training.evaluate_held_out, actor, held_out, **options)}


def main(args: Args) -> None:
    """Get the data, train both methods, compare them."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.dataset is not None and args.task is not None:
        raise training.SettingsError("--dataset brings a task of its own; leave --task out.")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        raise training.SettingsError("--device cuda needs an NVIDIA GPU and a CUDA build of torch; use --device cpu.")
    source = args.dataset or args.task or "mpe/simple_spread"
    folder = args.output or Path("runs") / f"{Path(source).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    if args.dataset is None:
        options = {"episodes": args.episodes, "seed": args.seed, "progress": True}
        data = record_mixed_skill(source, folder.parent / "data", **options)
    else:
        data = marl.load_dataset(source)
    print(data.summary())
    env, held_out = make_simulator(data, num_envs=args.eval_episodes, device=args.device), None
    if env is None:
        data, held_out = data.split(fraction=0.1, seed=args.seed)
        print(f"No simulator of {data.spec.task} here: {held_out.n_episodes} episodes are held out to look at instead.")
    losses = {name: make_loss(name, args, data.spec).to(args.device) for name in ("cloning", "recipe")}
    if args.resume is None:
        training.write_config(folder, replace(args, output=folder))
    folders = {"cloning": folder / "cloning", "recipe": folder}
    metric = "return" if env is not None else "agreement" if data.spec.discrete else "action_error"
    curves, finals = {}, {}

    def draw() -> None:  # after every evaluation
        runs = {name: place for name, place in folders.items() if (place / "train.csv").exists()}
        data_mean = data.episode_returns().mean().item() if metric == "return" else None
        training.plot_learning_curves(runs, folder / "learning_curves.png", metric=metric, data_mean=data_mean)

    for name, place in folders.items():
        torch.manual_seed(args.seed)
        loss = losses[name]
        evaluators = make_evaluators(loss, args, env, held_out, episodes=args.eval_episodes, seed=1000 + args.seed)
        logger = training.RunLogger(place, name=f"{folder.name}-{name}", wandb=args.wandb)
        logger.log_config(asdict(args))
        trainer = marl.Trainer(
            loss,
            data.replay_buffer(batch_size=args.batch_size, device=args.device, seed=args.seed, keys=loss.in_keys),
            steps=args.steps,
            lr=args.lr,
            evaluators={**evaluators, "picture": draw},
            eval_every=args.eval_every,
            checkpoint_every=args.checkpoint_every,
            keep_best=None if env is None else ("mode", "return"),
            output=place,
            resume_folder=folder,
            compile=args.compile,
            logger=logger,
        )
        if args.resume is not None and trainer.checkpoints.checkpoints():
            trainer.resume()
        print(f"\n{name}: updates {trainer.step} to {args.steps}, results in {place}")
        result = trainer.train()
        logger.close()
        if isinstance(result, training.TrainingInterrupted):
            sys.exit(130)
        final = make_evaluators(loss, args, env, held_out, episodes=5 * args.eval_episodes, seed=2000 + args.seed)
        finals |= {f"{name}, {way}": measure() for way, measure in final.items()}
        summary = training.summarize_evaluations(logger.eval.rows, metric, lower_is_better=metric == "action_error")
        curves |= {f"{name}, {way}": curve for way, curve in summary.items()}
    print("\n" + training.write_report(folder, finals=finals, curves=curves, data=data))
    print(f"Pictures, CSV files and checkpoints: {folder}")


if __name__ == "__main__":
    with training.plain_errors():
        main(training.parse_settings(Args, presets={"quick": {}, "paper": PAPER}))
