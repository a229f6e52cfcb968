"""OMAR (Pan et al. 2022) on multi-particle data, from data to a normalized score beside the published one.

    python examples/omar_mpe.py                       # records a MATD3 up to a medium level, learns from it: 3 minutes
    python examples/omar_mpe.py --quality expert      # trains the MATD3 to its end first (4 to 17 minutes, once)
    python examples/omar_mpe.py --rectification 0     # MA-CQL
    python examples/omar_mpe.py --dataset omar:mpe/simple_spread/Random --quality random --preset paper
    python examples/omar_mpe.py --resume runs/omar-...

OMAR is conservative Q-learning whose policy, beside the critic's gradient, follows the best action that a search finds:
for each quality of data with a weight tau of that search and a weight alpha of the conservatism.

The quick preset shows every part at work in minutes; --preset paper has the paper's batches and amount of data.
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
from torchrl_marl_offline.commands.script_settings import SettingsError, parse_settings, plain_errors, write_config
from torchrl_marl_offline.core.ranges import (
    COUNT,
    DISCOUNT,
    EVALUATED,
    FEW,
    LEARNING_RATE,
    NON_NEGATIVE,
    RATE,
    RUN_SEED,
    SEVERAL,
    SIZE,
    THREADS_OR_AUTO,
    UNIT,
    WIDTHS,
)
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.evaluation import make_simulator
from torchrl_marl_offline.objectives import CEMSampler, RandomSampler, SoftmaxSampler

QUALITIES = ("random", "medium-replay", "medium", "expert")
PUBLISHED = {
    "mpe/simple_spread": ((1.0, 0.5), (1.0, 1.0), (1.0, 5.0), (1.0, 5.0)),
    "mpe/simple_tag": ((0.9, 0.5), (0.9, 0.5), (0.7, 5.0), (0.9, 5.0)),
    "mpe/simple_world": ((1.0, 0.5), (0.7, 1.0), (0.1, 0.5), (0.9, 5.0)),
}
"""(tau, alpha) of the released code for each of QUALITIES; the paper's text has tau 0.5, 0.5, 0.7, 0.9 everywhere."""

TABLE_1 = {
    "mpe/simple_spread": (34.4, 37.9, 47.9, 114.9),
    "mpe/simple_tag": (11.1, 47.1, 66.7, 116.2),
    "mpe/simple_world": (5.9, 42.9, 74.6, 110.4),
}
"""The normalized scores of the paper's table 1, on its own data."""

SAMPLERS = {"softmax": SoftmaxSampler, "cem": CEMSampler, "random": RandomSampler}

RECORDS = ReadWith("dataset", None)


@dataclass(frozen=True)
class Args:
    """OMAR on multi-particle data: trains on one dataset, and compares with the data and the paper's table 1."""

    dataset: str | None = None
    """A name of list_datasets() such as omar:mpe/simple_spread/Random, or a folder; by default the script records."""
    task: Annotated[Literal["mpe/simple_spread", "mpe/simple_tag", "mpe/simple_world"], RECORDS] = "mpe/simple_spread"
    """What to record where there is no --dataset."""
    quality: Literal["random", "medium-replay", "medium", "expert"] = "medium-replay"
    """Of the data: what to record, and whose tau and alpha to take. All but random train a behaviour policy first."""
    transitions: Annotated[int, COUNT, RECORDS, ReadWith("quality", "random", "medium", "expert")] = 100_000
    """Transitions to record (medium-replay: what the behaviour's training gathered)."""
    record_updates: Annotated[int, COUNT, RECORDS, ReadWith("quality", *QUALITIES[1:])] = 40_000
    """Updates of the behaviour policy, at most."""
    rectification: Annotated[float | None, UNIT] = None
    """tau: share of the search in the policy's loss; 0 is MA-CQL. By default the released code's for the quality."""
    min_q_weight: Annotated[float | None, NON_NEGATIVE] = None
    """alpha: weight of the conservatism. By default the released code's for the quality."""
    sampler: Literal["softmax", "cem", "random"] = "softmax"
    """The search: OMAR's own, the cross-entropy method, or random actions (the paper's table 2)."""
    iterations: Annotated[int, FEW, ReadWith("sampler", "softmax", "cem")] = 3
    """Iterations of the search."""
    samples: Annotated[int, SEVERAL] = 10
    """Candidates of an iteration."""
    decomposition: Literal["independent", "centralized", "mixer", "vdn"] = "independent"
    """independent: the paper's tables 1 to 3; centralized: its table 8."""
    gamma: Annotated[float, DISCOUNT] = 0.95
    """Discount: the released code's; the text has 0.99."""
    tau: Annotated[float, RATE] = 0.01
    """Rate of the target networks."""
    hidden: Annotated[tuple[int, ...], WIDTHS] = (64, 64)
    """Widths of the hidden layers."""
    lr: Annotated[float, LEARNING_RATE] = 0.01
    """Adam's learning rate: the paper's; with a fifth of it, nothing is learned of expert data in 2,000 updates."""
    batch_size: Annotated[int, SIZE] = 256
    """Transitions per update."""
    steps: Annotated[int, COUNT] = 2000
    """Updates; the released code makes 2,000 of spread and tag, 1,000 of world, 6,000 of random spread."""
    eval_every: Annotated[int, COUNT] = 500
    """Updates between evaluations."""
    eval_episodes: Annotated[int, EVALUATED] = 200
    """Episodes of an evaluation; the last one has five times as many."""
    checkpoint_every: Annotated[int, COUNT] = 1000
    """Updates between checkpoints."""
    seed: Annotated[int, RUN_SEED] = 0
    """Seed of data, networks, batches and evaluation."""
    device: str = "cpu"
    """Where data and networks lie: cpu or cuda."""
    threads: Annotated[int, THREADS_OR_AUTO] = 1
    """Threads of torch; small networks are fastest on one. 0 leaves the choice to torch."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Loss and gradients as one compiled function: where measured to be faster, always, never."""
    output: Path | None = None
    """Folder of the results; by default a new one below runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, with its settings, bit for bit."""
    preset: Literal["quick", "paper"] = "quick"
    """quick: minutes on two cores; paper: its batches, updates and amount of data."""


PAPER = {"transitions": 1_000_000, "batch_size": 1024, "steps": 2000, "eval_every": 200, "checkpoint_every": 500}


def load(args: Args, place: Path) -> marl.OfflineDataset:
    """Load the dataset, or record one of the quality below ``place``, once."""
    if args.dataset is not None:
        return marl.load_dataset(args.dataset)
    levels = marl.recording.published_levels(args.task)
    if levels and args.quality != "expert":
        levels["expert"] = levels["medium"]  # where the behaviour's training may end
    level = "expert" if args.quality == "expert" else "medium"
    name = f"{args.task.replace('/', '-')}-{level}-{args.transitions}-{args.record_updates}-seed{args.seed}"
    options = {"transitions": args.transitions, "updates": args.record_updates, "seed": args.seed}
    options |= {"levels": levels, "compile": args.compile != "off"}
    return marl.record(args.task, place / name, qualities=[args.quality], **options)[args.quality]


def with_published_weights(args: Args, task: str) -> Args:
    """Fill in the weights that were not given."""
    if task not in PUBLISHED:
        raise SettingsError(
            f"OMAR's weights are published for {', '.join(PUBLISHED)}, not for {task}: take marl-offline train omar."
        )
    rectification, min_q_weight = PUBLISHED[task][QUALITIES.index(args.quality)]
    return replace(
        args,
        rectification=rectification if args.rectification is None else args.rectification,
        min_q_weight=min_q_weight if args.min_q_weight is None else args.min_q_weight,
    )


def make_loss(args: Args, spec: marl.TaskSpec) -> marl.OfflineMARLLoss:
    """Put networks and rules together: an actor and two critic heads for each agent, none of them shared."""
    torch.manual_seed(args.seed)
    network = {"hidden": args.hidden, "share_params": False, "activation": "relu", "batch_norm": True}
    # the policy acts by its mode; its deviation is that of conservative Q-learning's samples of it
    actor = marl.make_actor(spec, distribution="tanh_gaussian", scale=0.2, **network)
    critic = marl.make_critic(spec, decomposition=args.decomposition, layer_norm=False, **network)
    search = SAMPLERS[args.sampler](iterations=args.iterations, samples=args.samples)
    loss = marl.OfflineMARLLoss(
        actor,
        critic,
        value_learning=marl.CQL(min_q_weight=args.min_q_weight, noise=0.2),
        extraction=marl.RectifiedGradient(rectification=args.rectification, sampler=search),
    )
    return loss.make_value_estimator(gamma=args.gamma).to(args.device)


def report(folder: Path, final: evaluation.Evaluation, data: marl.OfflineDataset, args: Args) -> str:
    """Say what the policy came to beside the data and the paper, in ``summary.json`` and in a table."""
    recorded = evaluation.mean_confidence_interval(data.episode_returns())
    reached, (random, expert) = final.confidence_interval(), final.reference_returns
    method = "MA-CQL" if args.rectification == 0 else "OMAR"
    rows, summary = [], {}
    for name, interval in (("data", recorded), (method, reached)):
        score = evaluation.Interval(*(100 * (value - random) / (expert - random) for value in interval))
        rows.append([name, interval.mean, score.mean, f"[{score.low:.4g}, {score.high:.4g}]"])
        summary[name] = {"return": interval.mean, "normalized": score.mean, "low": score.low, "high": score.high}
    published = TABLE_1[data.spec.task][QUALITIES.index(args.quality)]
    rows.append(["OMAR, table 1, its own data", None, published, None])
    summary |= {"published": published, "rectification": args.rectification, "min_q_weight": args.min_q_weight}
    evaluation.write_json_atomic(folder / "summary.json", summary)
    table = evaluation.format_table(rows, header=[args.quality, "return", "normalized", "95 % interval"])
    note = f"tau {args.rectification:g}, alpha {args.min_q_weight:g}; normalized: 0 random play, 100 the expert; "
    return f"{table}\n{note}intervals across {len(final.returns)} episodes of one run, not across seeds."


def main(args: Args) -> None:
    """Get the data, train, compare."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.dataset is None:  # before anything is recorded: wrong settings are found here
        make_loss(with_published_weights(args, args.task), marl.make_env(args.task).task_spec)
    folder = args.output or Path("runs") / f"omar-{args.quality}-{datetime.now():%Y%m%d-%H%M%S}"
    data = load(args, folder.parent / "data")
    print(data.summary())
    env = make_simulator(data, num_envs=args.eval_episodes, device=args.device)
    if env is None:
        raise SettingsError(f"There is no simulator of {data.spec.task}: take marl-offline train omar.")
    args = with_published_weights(args, data.spec.task)
    loss = make_loss(args, data.spec)
    if args.resume is None:
        write_config(folder, replace(args, output=folder))
    play = partial(marl.evaluate, loss.actor_network, env)
    trainer = marl.Trainer(
        marl.Learner(loss, lr=args.lr, tau=args.tau, compile=args.compile),
        data.replay_buffer(batch_size=args.batch_size, device=args.device, seed=args.seed, keys=loss.in_keys),
        steps=args.steps,
        evaluators={"mode": partial(play, episodes=args.eval_episodes, seed=1000 + args.seed)},
        eval_every=args.eval_every,
        eval_at_start=True,
        checkpoint_every=args.checkpoint_every,
        output=folder,
    )
    if args.resume is not None and trainer.checkpoints.checkpoints():
        trainer.resume()
    print(f"\nOMAR: updates {trainer.step} to {args.steps}, results in {folder}")
    trainer.train()
    evaluation.plot_learning_curves(
        {"OMAR": folder},
        folder / "learning_curves.png",
        data_mean=data.episode_returns().mean().item(),
        panels={"qvalue_abs": "mean |Q| (discounted return)", "rectified_qvalue": "Q of the best action found"},
        title=f"{data.spec.task}, {args.quality}",
    )
    final = play(episodes=5 * args.eval_episodes, seed=2000 + args.seed)
    print(f"\n{report(folder, final, data, args)}\nPicture, CSV files, checkpoints and policy.pt: {folder}")


if __name__ == "__main__":
    with plain_errors():
        main(parse_settings(Args, presets={"quick": {}, "paper": PAPER}))
