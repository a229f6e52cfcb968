"""From logs of a team to exported policies, without a simulator: inspect, train, compare, select, export, verify.

    python examples/from_logs.py                       # 3 to 4 minutes of one core
    python examples/from_logs.py --resume runs/from-logs-...

Three robots log how they meet. The logs are a table as a logger writes it: a row for each step, columns with names of
their own, float64, episodes of unequal lengths, no log-probabilities; a column map in TOML says what is what. Robots of
mixed skill wrote them: some drive straight to the middle, some slowly, some wander. Everything between the table and
the files for the robots uses the logs alone.

The robots' simple dynamics are known here, so that at the end, and only there, the truth is known, too: the page says
what the logged team and every policy really earn, and whether the estimates from the logs were right.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

import torchrl_marl_offline as marl
from torchrl_marl_offline import evaluation
from torchrl_marl_offline.commands.script_settings import parse_settings, plain_errors, write_config
from torchrl_marl_offline.core import ranges
from torchrl_marl_offline.core.document import Block, Heading, Picture, Table, Text, to_html, to_markdown
from torchrl_marl_offline.core.figure_style import COLOURS, GREY, figure_style, new_figure, save_figure
from torchrl_marl_offline.core.files import replacing_file, write_text_atomic
from torchrl_marl_offline.data import inspect

ROBOTS = ("alpha", "bravo", "charlie")
SPEED, LONGEST, NEAR, GAMMA = 0.5, 40, 0.15, 0.95
"""Fastest command (m/s), steps of an episode, distance from the middle (m) at which a robot has arrived, discount."""
METHODS = {
    "cloning": {"hidden": (64, 64)},
    "recipe": {"hidden": (64, 64), "expectile": 0.7, "gamma": GAMMA},
    "td3_bc": {"hidden": (64, 64), "gamma": GAMMA},
}
COLUMN_MAP = f"""\
episode = "run"
time = "tick"
observations = ["{{agent}}_v*", "{{agent}}_mate*"]
actions = ["{{agent}}_cmd_east", "{{agent}}_cmd_north"]
reward = "score"
terminal = "met"
action_bounds = [{-SPEED}, {SPEED}]
task = "rendezvous"
"""
Act = Callable[[np.ndarray], np.ndarray]
"""What all robots observe, ``[E, 3, 6]``, to their commands, ``[E, 3, 2]``."""


@dataclass(frozen=True)
class Args:
    """Logs of three robots to policies for them: inspect, train, compare, select, export, verify; one page."""

    episodes: Annotated[int, ranges.COUNT] = 600
    """Logged episodes; half are learned from, the other half judge."""
    steps: Annotated[int, ranges.COUNT] = 1500
    """Updates of each method."""
    fit_steps: Annotated[int, ranges.COUNT] = 1500
    """Updates of the critics that judge."""
    resamples: Annotated[int, ranges.FEW] = 5
    """Of the episodes, for the intervals."""
    played: Annotated[int, ranges.EVALUATED] = 2000
    """Episodes by which the truth is measured."""
    seed: Annotated[int, ranges.RUN_SEED] = 0
    """Seed of logs, networks, batches and critics."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Loss and gradients as one compiled function: where measured to be faster, always, never."""
    output: Path | None = None
    """Folder of the results; by default a new one below runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, with its settings."""
    preset: Literal["quick"] = "quick"
    """There is one."""


# ------------------------------------------------------------ the robots, which a user has and does not simulate


def play(act: Act, episodes: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Let the robots meet; returns what they saw and did, ``[T, E, 3, ...]``, scores and ends ``[T, E]``."""
    place, speed = rng.uniform(-1.5, 1.5, (episodes, 3, 2)), np.zeros((episodes, 3, 2))
    going, rows = np.ones(episodes, bool), []
    for _ in range(LONGEST):
        mates = [np.roll(place, -k, axis=1) - place for k in (1, 2)]
        observation = np.concatenate([speed, *mates], -1)
        command = np.clip(act(observation), -SPEED, SPEED)
        speed = speed + 0.5 * (command - speed) + rng.normal(0, 0.02, speed.shape)
        place = place + 0.2 * speed
        distance = np.linalg.norm(place - place.mean(1, keepdims=True), axis=-1)
        met = (distance < NEAR).all(1)
        rows.append((observation, command, -distance.mean(1), met, going))
        going = going & ~met
    return dict(zip(("observation", "command", "score", "met", "going"), map(np.array, zip(*rows, strict=True))))


def logged_team(episodes: int, rng: np.random.Generator) -> Act:
    """Return the commands of robots of mixed skill, drawn for each robot and episode."""
    skill = rng.choice(3, (episodes, 3, 1), p=[0.4, 0.3, 0.3])
    gain, noise = np.array([2.0, 0.3, 0.0])[skill], np.array([0.15, 0.15, 0.3])[skill]
    aimless = rng.normal(0, 0.3, (episodes, 3, 2)) * (skill == 2)

    def act(observation: np.ndarray) -> np.ndarray:
        to_middle = (observation[..., 2:4] + observation[..., 4:6]) / 3
        return gain * to_middle + aimless + noise * rng.normal(size=to_middle.shape)

    return act


def returns(played: dict[str, np.ndarray]) -> np.ndarray:
    """Return the discounted score of every episode."""
    return (GAMMA ** np.arange(LONGEST)[:, None] * played["score"] * played["going"]).sum(0)


def write_logs(folder: Path, args: Args) -> Path:
    """Write the table and its column map, once; returns the table's path."""
    path = folder / ("logs.parquet" if find_spec("pyarrow") else "logs.csv")
    if path.suffix == ".csv":
        print('pyarrow is missing (pip install "torchrl-marl-offline[tables]"): the logs are CSV instead of Parquet.')
    write_text_atomic(folder / "logs.toml", COLUMN_MAP)
    if path.exists():
        return path
    rng = np.random.default_rng(args.seed)
    played = play(logged_team(args.episodes, rng), args.episodes, rng)
    episode, tick = np.nonzero(played["going"].T)
    columns = {"run": [f"2031-05-{1 + e // 100:02}/{e % 100:02}" for e in episode], "tick": tick}
    parts = ("vx", "vy", "mate1_east", "mate1_north", "mate2_east", "mate2_north")
    for robot, name in enumerate(ROBOTS):
        seen, done = (played[what][tick, episode, robot] for what in ("observation", "command"))
        columns |= {f"{name}_{part}": seen[:, i] for i, part in enumerate(parts)}
        columns |= {f"{name}_cmd_{part}": done[:, i] for i, part in enumerate(("east", "north"))}
    columns |= {"score": played["score"][tick, episode], "met": played["met"][tick, episode].astype(int)}
    with replacing_file(path) as temporary:
        if path.suffix == ".csv":
            with temporary.open("w", newline="") as stream:
                csv.writer(stream).writerows([columns, *zip(*columns.values(), strict=True)])
        else:
            from pyarrow import parquet, table

            parquet.write_table(table(columns), temporary)
    return path


# ------------------------------------------------------------ what a user does with the logs


def train(name: str, args: Args, data: marl.OfflineDataset, folder: Path) -> Path:
    """Train one method; returns the folder of its run."""
    torch.manual_seed(args.seed)
    loss = marl.make_loss(data.spec, algorithm=name, **METHODS[name])
    trainer = marl.Trainer(
        marl.Learner(loss, lr=1e-3, compile=args.compile),
        data.replay_buffer(batch_size=256, seed=args.seed, keys=loss.in_keys),
        steps=args.steps,
        checkpoint_every=args.steps,
        output=folder / name,
    )
    if args.resume is not None and trainer.checkpoints.checkpoints():
        trainer.resume()
    trainer.train()
    return folder / name


def select(runs: dict[str, Path], judging: marl.OfflineDataset, args: Args) -> evaluation.OfflineSelection:
    """Compare policies with the logged team, and choose, by logged episodes that none has learned from."""
    fitting = evaluation.FittedQSettings(steps=args.fit_steps, resamples=args.resamples)
    return marl.select_offline(runs, judging, by="fqe", gamma=GAMMA, fitting=fitting, seed=args.seed, progress=True)


def export(run: Path, data: marl.OfflineDataset, folder: Path) -> evaluation.ExportCheck:
    """Write the team's policy and each robot's own, and compare all files with the policy on every logged row."""
    formats = ["torch", "onnx"]
    if not (find_spec("onnxscript") and find_spec("onnxruntime")):
        print('onnx is missing (pip install "torchrl-marl-offline[export]"): policies are exported for torch alone.')
        formats = ["torch"]
    for format in formats:
        marl.export_policy(run, folder / f"team{'.pt2' if format == 'torch' else '.onnx'}", format=format)
    marl.export_agent_policies(run, folder / "team", formats=formats)
    files = sorted([*folder.glob("team*.pt2"), *(folder.glob("team*.onnx") if "onnx" in formats else ())])
    return marl.verify_export(run, files, data)


# ------------------------------------------------------------ the truth, which a user does not have


def true_values(runs: dict[str, Path], args: Args) -> dict[str, evaluation.Interval]:
    """Return what the logged team and every policy earn in the robots' dynamics."""

    def acting(run: Path) -> Act:
        policy = marl.load_policy(run)

        @torch.no_grad()
        def act(observation: np.ndarray) -> np.ndarray:
            seen = torch.as_tensor(observation, dtype=torch.float32)
            with set_exploration_type(ExplorationType.DETERMINISTIC):
                return policy(TensorDict({("agents", "observation"): seen}, [len(seen)]))["agents", "action"].numpy()

        return act

    rng = np.random.default_rng(10_000 + args.seed)
    acts = {"logged": logged_team(args.played, rng)} | {name: acting(run) for name, run in runs.items()}
    earned = {name: returns(play(act, args.played, np.random.default_rng(7))) for name, act in acts.items()}
    return {name: evaluation.mean_confidence_interval(torch.as_tensor(each)) for name, each in earned.items()}


def findings(
    chosen: evaluation.OfflineSelection, truth: dict[str, evaluation.Interval]
) -> tuple[list[list[str]], list[str]]:
    """Return the rows of estimates beside the truth, and in sentences whether the estimates were right."""
    rows, said = [], []
    estimates = {"logged": chosen.comparison.logged} | {name: chosen.estimates[name] for name in chosen.ranking}
    for name, estimate in estimates.items():
        (low, high), true = estimate.interval, truth[name]
        covered = "yes" if low <= true.mean <= high else "no"
        rows.append([name, f"{estimate.mean:.2f}", f"[{low:.2f}, {high:.2f}]", f"{true.mean:.2f}", covered])
    best, gained = chosen.best, chosen.comparison.differences["fqe"][chosen.best]
    true_gain = truth[best].mean - truth["logged"].mean
    covers = "covers" if gained.low <= true_gain <= gained.high else "does NOT cover"
    said.append(
        f"Chosen from the logs: {best}, estimated to be better than the logged team by {gained.mean:.2f} "
        f"[{gained.low:.2f}, {gained.high:.2f}] with probability {gained.probability:.2f}."
    )
    said.append(f"In truth it is better by {true_gain:.2f}, which the interval {covers}.")
    really = max(chosen.ranking, key=lambda name: truth[name].mean)
    regret = truth[really].mean - truth[best].mean
    right = "which was chosen" if really == best else f"by {regret:.2f} better than what was chosen"
    said.append(f"The truly best of the policies is {really}, {right}.")
    wrong = [row[0] for row in rows if row[-1] == "no"]
    said.append(f"Intervals that do not cover the truth: {', '.join(wrong) or 'none'}.")
    return rows, said


@figure_style()
def draw(rows: list[list[str]], chosen: evaluation.OfflineSelection, truth: dict, path: Path) -> Path:
    """Draw the estimates with their intervals beside the truth."""
    figure, (axis,) = new_figure(1, size=(6.4, 3.0))
    for place, (name, *_) in enumerate(rows):
        estimate = chosen.comparison.logged if name == "logged" else chosen.estimates[name]
        low, high = estimate.interval
        axis.hlines(place, low, high, color=COLOURS[0], lw=2.5, label="95 % interval from logs" if not place else None)
        axis.plot(estimate.mean, place, "o", color=COLOURS[0], label="estimate from logs" if not place else None)
        axis.plot(truth[name].mean, place, "D", color=COLOURS[1], mfc="none", label="truth" if not place else None)
    axis.axvline(truth["logged"].mean, color=GREY, lw=0.8, ls=":")
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axis.set_xlabel(f"discounted return of an episode (γ = {GAMMA})")
    axis.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3)
    return save_figure(figure, path)


def write_page(
    folder: Path,
    data: marl.OfflineDataset,
    chosen: evaluation.OfflineSelection,
    check: evaluation.ExportCheck,
    truth: dict,
) -> str:
    """Write ``report.md``, ``report.html`` and their picture; returns what they say, for the terminal."""
    rows, said = findings(chosen, truth)
    picture = draw(rows, chosen, truth, folder / "comparison.png")
    header = ["policy", "estimate from logs", "95 % interval", "truth", "covered"]
    verdict = "as the policy does, on every logged row" if check.passed else "NOT as the policy does"
    files = [Path(file.file).name for file in check.files]
    blocks: list[Block] = [
        Heading("Three robots, from logs to policies", 1),
        Text(f"{data.n_episodes} logged episodes of {data.spec.n_agents} robots, {len(data)} rows. {said[0]}"),
        Heading("Estimates from the logs alone, and the truth"),
        Table(header, rows),
        Picture(picture, "What each policy earns: estimated from logs, and in truth."),
        *(Text(sentence) for sentence in said[1:]),
        Text(chosen.comparison.calibration.verdict()),
        *(Text(warning, warning=True) for warning in chosen.warnings),
        Heading("Files for the robots"),
        Text(f"In exported/: {', '.join(files)}. They act {verdict} ({check.rows} rows)."),
    ]
    write_text_atomic(folder / "report.md", to_markdown(blocks, folder))
    write_text_atomic(folder / "report.html", to_html(blocks, "Three robots, from logs to policies"))
    table = evaluation.format_table(rows, header=header)
    return "\n".join([table, *said])


def main(args: Args) -> None:
    """Write the logs, then do all that can be done with them."""
    torch.set_num_threads(1)  # small networks are fastest on one
    folder = args.output or Path("runs") / f"from-logs-{datetime.now():%Y%m%d-%H%M%S}"
    if args.resume is None:
        write_config(folder, replace(args, output=folder))
    path = write_logs(folder, args)
    data = marl.load_dataset(str(path))  # logs.toml beside it is the column map
    print(data.summary(), inspect(data), sep="\n")
    learning, judging = data.split(fraction=0.5, seed=args.seed)
    runs = {name: train(name, args, learning, folder) for name in METHODS}
    chosen = select(runs, judging, args)
    print(f"\n{chosen.comparison.table()}")
    check = export(runs[chosen.best], data, folder / "exported")
    print(f"\n{check.table()}\n\nThe truth, which logs alone do not tell:")
    print(write_page(folder, data, chosen, check, true_values(runs, args)))
    print(f"\nThe page: {folder / 'report.html'}")


if __name__ == "__main__":
    with plain_errors():
        main(parse_settings(Args, presets={"quick": {}}))
