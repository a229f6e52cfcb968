"""The recipe for stable offline multi-agent RL, beside behaviour cloning, from data to a table and pictures.

    python examples/offline_mix_awr.py                                  # records its own data, then trains: minutes
    python examples/offline_mix_awr.py --dataset pymarl:cn-2-medium.h5  # recorded data
    python examples/offline_mix_awr.py --seeds 8                        # eight runs as one computation
    python examples/offline_mix_awr.py --grid temperature=1,3,10 expectile=0.7,0.9 --seeds 4
    python examples/offline_mix_awr.py --resume runs/mpe-simple_spread-...

Mix (a monotonic mixer over local critics) + SVN (scale-invariant value normalization) + IQL (implicit Q-learning) + AWR
(advantage-weighted regression): Lee et al. 2026. The data is recorded once by scripted policies of mixed skill; cloning
averages them, the recipe prefers the better one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch

import torchrl_marl_offline as marl
from torchrl_marl_offline import make_simulator, record_mixed_skill, training
from torchrl_marl_offline.algorithms import ALGORITHMS, is_read, members_settings, settings_of
from torchrl_marl_offline.algorithms.algorithm import OF_ALGORITHM
from torchrl_marl_offline.core import ranges
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.modules.critics import Decomposition


@dataclass(frozen=True)
class Args:
    """Offline multi-agent RL: trains the recipe and behaviour cloning on one dataset, and compares them."""

    dataset: str | None = None
    """pymarl:FILE, or a folder that OfflineDataset.save wrote; by default the script records its own."""
    algorithm: Literal[tuple(ALGORITHMS)] = "recipe"
    """What is trained beside cloning."""
    task: Annotated[str | None, ReadWith("dataset", None)] = None
    """family/task to record where there is no --dataset; by default mpe/simple_spread."""
    episodes: Annotated[int, ranges.COUNT, ReadWith("dataset", None)] = 4000
    """Episodes to record."""
    decomposition: Annotated[Decomposition | None, OF_ALGORITHM] = None
    """How the team's value is made of the agents' values; this and the next settings without a default have that of
    --algorithm: of the recipe mixer, joint, expectile 0.7, gamma 0.95."""
    frozen: Annotated[bool, OF_ALGORITHM] = False
    """Leave the mixer at its random initial parameters (an ablation)."""
    value_learning: Annotated[Literal["td", "sarsa", "iql"], OF_ALGORITHM] = "iql"
    """What the next state is worth: Q at the policy's action, Q at the recorded one, or an expectile of Q."""
    extraction: Annotated[Literal["awr", "brac"], OF_ALGORITHM] = "awr"
    """How the policy follows the values: weighted cloning, or ascent on Q with a cloning penalty."""
    temperature: Annotated[float | None, ranges.NON_NEGATIVE, OF_ALGORITHM] = None
    """How strongly AWR prefers better actions: its weight is exp(temperature · standardized advantage), bounded."""
    weights: Annotated[Literal["bounded", "softmax", "clipped"] | None, OF_ALGORITHM] = None
    """How AWR's weights are made of advantages; clipped: as released."""
    advantage: Annotated[Literal["joint", "local"] | None, OF_ALGORITHM] = None
    """AWR's advantage: the team's, through the mixer, or each agent's own."""
    alpha: Annotated[float | None, ranges.NON_NEGATIVE, OF_ALGORITHM] = None
    """Weight of BRAC's cloning penalty, or another algorithm's alpha."""
    expectile: Annotated[float | None, ranges.OPEN_UNIT, OF_ALGORITHM] = None
    """IQL's expectile: above 0.5 leans to the better actions of the data."""
    svn: Annotated[bool | None, OF_ALGORITHM] = None
    """Scale-invariant value normalization of the critic's loss."""
    heads: Annotated[Literal["all", "min"], OF_ALGORITHM] = "all"
    """Train both critic heads, or at each row the smaller alone."""
    max_next_value: Annotated[float | None, ranges.REAL, OF_ALGORITHM] = None
    """Upper bound of the next value in the critic's target, such as the data's largest return; b3c needs one."""
    gamma: Annotated[float | None, ranges.DISCOUNT, OF_ALGORITHM] = None
    """Discount of the values; the return that is reported is not discounted."""
    hidden: Annotated[tuple[int, ...], ranges.WIDTHS] = (64, 64)
    """Widths of the hidden layers."""
    lr: Annotated[float, ranges.LEARNING_RATE] = 2e-3
    """Adam's learning rate."""
    batch_size: Annotated[int, ranges.SIZE] = 256
    """Transitions per update."""
    steps: Annotated[int, ranges.COUNT] = 6000
    """Updates of each method."""
    eval_every: Annotated[int, ranges.COUNT] = 1000
    """Updates between evaluations."""
    eval_episodes: Annotated[int, ranges.EVALUATED] = 200
    """Episodes per evaluation; the last one, which makes the table, has five times as many."""
    checkpoint_every: Annotated[int, ranges.COUNT] = 1000
    """Updates between checkpoints."""
    seed: Annotated[int, ranges.RUN_SEED] = 0
    """Seed of data, networks, batches and evaluation."""
    device: str = "cpu"
    """Where data and networks lie: cpu or cuda."""
    threads: Annotated[int, ranges.THREADS_OR_AUTO] = 1
    """Threads of torch; small networks are fastest on one. 0 leaves the choice to torch."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Loss and gradients as one compiled function: where measured to be faster, always (a C++ compiler), never."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the matrix products."""
    profile: bool = False
    """Write an account of where a step's time goes, and a trace, to the run's folder profile/."""
    seeds: Annotated[int, ranges.FEW] = 1
    """Train seed, seed + 1, ... at once, as one computation; the table's intervals are then across seeds."""
    grid: tuple[str, ...] = ()
    """NAME=VALUE,VALUE,...: every combination, with all seeds each, as one computation."""
    wandb: Annotated[bool, ReadWith("seeds", 1), ReadWith("grid", ())] = False
    """Also log to Weights & Biases (offline where WANDB_MODE=offline)."""
    output: Path | None = None
    """Folder of the results; by default a new one below runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, with its settings, bit for bit."""
    preset: Literal["quick", "paper"] = "quick"
    """quick fits in five minutes on two cores; paper has the paper's sizes (days on a CPU)."""


PAPER = {"hidden": (512,) * 4, "batch_size": 640, "steps": 500_000, "lr": 3e-4, "threads": 0}
PAPER |= {"eval_every": 50_000, "checkpoint_every": 10_000}

RECIPE = {
    "quick": {"advantage": "joint", "expectile": 0.7, "gamma": 0.95},
    "paper": {"advantage": "local", "expectile": 0.9, "gamma": 0.99},
}
"""The recipe's settings by preset; other algorithms have those that were published with them."""
COMMON = ("steps", "eval_every", "checkpoint_every", "profile")


def make_loss(name: str, args: Args, spec: marl.TaskSpec) -> marl.OfflineMARLLoss:
    """Put the networks and the rules together; compose_losses.py shows how they are composed by hand."""
    torch.manual_seed(args.seed)
    return marl.make_loss(spec, algorithm=name, **method_settings(name, args)).to(args.device)


def method_settings(name: str, args: Args) -> dict:
    """Return the settings of a method: those asked for, and the preset's of the recipe."""
    asked = {key: v for key, v in asdict(args).items() if key in settings_of(name) and v is not None}
    asked = (RECIPE[args.preset] | asked) if name == "recipe" else asked
    return {key: value for key, value in asked.items() if is_read(name, key, asked)}


def members(args: Args, grid: tuple[str, ...]) -> dict[str, Args]:
    """Return the settings of every run of a population, by its name."""
    asked = {key: value for key, value in asdict(args).items() if value is not None}
    differing = ["lr", *(n for n in sorted(members_settings(args.algorithm)) if is_read(args.algorithm, n, asked))]
    return training.expand_settings(args, seeds=args.seeds, grid=grid, may_differ=differing)


def check_methods(args: Args, spec: marl.TaskSpec) -> None:
    """Make both methods' losses and forget them: wrong settings are found here."""
    for name in ("cloning", args.algorithm):
        make_loss(name, args, spec)


def make_evaluators(
    name: str, loss: marl.OfflineMARLLoss, args: Args, env, held_out, *, episodes: int, seed: int
) -> dict:
    """Play in the environment, by the policy's mode and sampled; without one, look at episodes kept out of training."""
    actor = loss.actor_network
    if env is not None:
        modes = {"mode": "mode", "sampled": "sample"}
        play = partial(marl.evaluate, actor, env, episodes=episodes, seed=seed)
        return {name: partial(play, mode=mode) for name, mode in modes.items()}

    gamma = ({"gamma": 1.0} | settings_of(name) | method_settings(name, args))["gamma"]  # cloning has none
    options = {"gamma": gamma, "device": args.device, "qvalue": loss.qvalue if loss.value_learning else None}
    return {"held-out episodes": partial(training.evaluate_held_out, actor, held_out, **options)}


def train_one(
    name: str, args: Args, folder: Path, place: Path, data, held_out, metric: str, draw, processes
) -> tuple[dict, dict]:
    """Train one run; returns its evaluations after training, and what its curves came to."""
    loss = make_loss(name, args, data.spec)
    env = make_simulator(data, num_envs=args.eval_episodes, device=args.device)
    torch.manual_seed(args.seed)
    evaluators = make_evaluators(name, loss, args, env, held_out, episodes=args.eval_episodes, seed=1000 + args.seed)
    logger = training.RunLogger(place, name=f"{folder.name}-{name}", wandb=args.wandb and processes.is_main)
    logger.log_config(asdict(args))
    trainer = marl.Trainer(
        marl.Learner(loss, lr=args.lr, compile=args.compile, precision=args.precision),
        data.replay_buffer(batch_size=args.batch_size, device=args.device, seed=args.seed, keys=loss.in_keys),
        evaluators={**evaluators, "picture": draw},
        keep_best=None if env is None else ("mode", "return"),
        output=place,
        logger=logger,
        distributed=processes,
        **{option: getattr(args, option) for option in COMMON},
    )
    go_on(trainer, name, args, place)
    logger.close()
    if not processes.is_main:
        return {}, {}
    final = make_evaluators(name, loss, args, env, held_out, episodes=5 * args.eval_episodes, seed=2000 + args.seed)
    finals = {f"{name}, {way}": measure() for way, measure in final.items()}
    summary = training.summarize_evaluations(logger.eval.rows, metric)
    return finals, {f"{name}, {way}": curve for way, curve in summary.items()}


def train_population(name: str, args: Args, folder: Path, place: Path, data, held_out) -> tuple[dict, dict]:
    """Train every seed and grid point as one computation; returns the members' evaluations, and who fell out when."""
    differing = [word for word in args.grid if word.partition("=")[0] in (*settings_of(name), "lr")]
    runs = members(args, differing)
    losses = {member: make_loss(name, own, data.spec) for member, own in runs.items()}
    keys, seeds = next(iter(losses.values())).in_keys, [own.seed for own in runs.values()]
    buffer = marl.PopulationBuffer(data.data, batch_size=args.batch_size, seeds=seeds, device=args.device, keys=keys)
    learner = marl.PopulationLearner(
        losses, lr=[own.lr for own in runs.values()], compile=args.compile, precision=args.precision
    )
    trainer = marl.Trainer(
        learner,
        buffer,
        output=place,
        **{option: getattr(args, option) for option in COMMON},
    )
    slots = max(1, min(args.eval_episodes, 4096 // len(runs)))  # of each member, in one batched environment
    env = make_simulator(data, num_envs=slots * len(runs), device=args.device)

    def evaluators(episodes: int, seed: int) -> dict:
        if env is not None:
            play = partial(training.evaluate_population, learner.population, env, episodes=episodes, seed=seed)
            return {"mode": partial(play, mode="mode"), "sampled": partial(play, mode="sample")}

        def look() -> dict:
            options = {"env": None, "held_out": held_out, "episodes": 0, "seed": 0}
            looks = {m: make_evaluators(name, loss, runs[m], **options) for m, loss in learner.member_losses()}
            return {member: measure() for member, look in looks.items() for measure in look.values()}

        return {"held-out episodes": look}

    trainer.evaluators |= evaluators(args.eval_episodes, 1000 + args.seed)
    go_on(trainer, f"{name}, {len(runs)} members at once", args, place)
    training.split_population(trainer)  # each member's folder can be resumed alone
    finals = {f"{name}, {way}": f() for way, f in evaluators(5 * args.eval_episodes, 2000 + args.seed).items()}
    return finals, {f"{name}/{member}": at for member, at in trainer.left_out.items()}


def go_on(trainer: marl.Trainer, name: str, args: Args, place: Path) -> None:
    """Train to the end, from where an earlier run stopped; leave where this one is stopped."""
    if args.resume is not None and trainer.checkpoints.checkpoints():
        trainer.resume()
    if trainer.processes.is_main:
        print(f"\n{name}: updates {trainer.step} to {args.steps}, results in {place}")
    trainer.train()


def main(args: Args) -> None:
    """Get the data, train both methods, compare them."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    members(args, args.grid)
    processes = training.distributed_from_environment(args.device)  # one, unless torchrun started several
    are_many = args.seeds > 1 or bool(args.grid)
    if processes.count > 1 and are_many:
        raise training.SettingsError("Several processes share one run; leave --seeds and --grid out.")
    args = replace(args, device=str(processes.device))
    source = args.dataset or args.task or "mpe/simple_spread"
    folder = args.output or Path("runs") / f"{Path(source).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = processes.from_main(folder)
    if args.dataset is None:  # before anything is recorded: wrong settings are found here
        check_methods(args, marl.make_env(source).task_spec)
    with processes.main_first():
        if args.dataset is None:
            options = {"episodes": args.episodes, "seed": args.seed, "progress": processes.is_main}
            data = record_mixed_skill(source, folder.parent / "data", **options)
        else:
            data = marl.load_dataset(source)
    if processes.is_main:
        print(data.summary())
    has_env, held_out = make_simulator(data, num_envs=1) is not None, None
    if not has_env:
        data, held_out = data.split(fraction=0.1, seed=args.seed)
        if processes.is_main:
            print(f"No simulator of {data.spec.task} here: {held_out.n_episodes} episodes are held out instead.")
    folders = {"cloning": folder / "cloning", args.algorithm: folder}
    check_methods(args, data.spec)  # before anything is written
    if args.resume is None and processes.is_main:
        training.write_config(folder, replace(args, output=folder, device=processes.device.type))
    metric = "return" if has_env else "agreement" if data.spec.discrete else "action_error"
    found, more = {}, {}

    def draw() -> None:  # after every evaluation
        runs = {name: place for name, place in folders.items() if (place / "train.csv").exists()}
        data_mean = data.episode_returns().mean().item() if metric == "return" else None
        training.plot_learning_curves(runs, folder / "learning_curves.png", metric=metric, data_mean=data_mean)

    for name, place in folders.items():
        if are_many:
            finals, notes = train_population(name, args, folder, place, data, held_out)
        else:
            finals, notes = train_one(name, args, folder, place, data, held_out, metric, draw, processes)
        found, more = found | finals, more | notes
    if not processes.is_main:
        return
    if are_many:
        text = training.write_population_report(folder, finals=found, metric=metric, data=data, frozen=more)
    else:
        text = training.write_report(folder, finals=found, curves=more, data=data)
    print(f"\n{text}\nPictures, CSV files and checkpoints: {folder}")


if __name__ == "__main__":
    with training.plain_errors():
        main(training.parse_settings(Args, presets={"quick": {}, "paper": PAPER}))
