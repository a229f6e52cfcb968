"""Train an algorithm, and behaviour cloning beside it, from data to a table and pictures.

    marl-offline train recipe                        # records its own data
    marl-offline train omar --dataset FOLDER --rectification 0.7
    marl-offline train recipe --seeds 8              # eight runs at once
    marl-offline train recipe --grid temperature=1,3,10 --seeds 4
    marl-offline train recipe --online vmas/balance  # offline, then online
    marl-offline train --online vmas/balance --from runs/balance-...
    marl-offline train --resume runs/spread-...

Every algorithm has the settings of its class as options: marl-offline train
ALGORITHM --help. Without a simulator, runs are held against episodes that are
kept out of training.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from torchrl_marl_offline.commands.algorithm_sources import (
    DeclaredAlgorithm,
    DeclaredSetting,
    declared_algorithms,
    range_in,
)
from torchrl_marl_offline.commands.online_settings import OnlineSettings
from torchrl_marl_offline.commands.options import Once, SwitchOnce, add_options, flag, reader_of, shown_value
from torchrl_marl_offline.commands.parser import OneSentenceParser
from torchrl_marl_offline.core import ranges
from torchrl_marl_offline.core.docstrings import plain_text
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.figure_style import FigureFormat
from torchrl_marl_offline.core.goal_choices import WITH_HINDSIGHT, HindsightKind
from torchrl_marl_offline.core.outputs import LoggerName, VideoFormat
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.regular_files import read_json
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.core.run_presets import preset_of


@dataclass(frozen=True)
class TrainSettings(OnlineSettings):
    """What a run has beside its algorithm's settings."""

    dataset: str | None = None
    """pymarl:FILE or another format, a folder that OfflineDataset.save wrote, or a published name; by default the
    command records its own."""
    task: Annotated[str | None, ReadWith("dataset", None)] = None
    """family/task to record where there is no --dataset; by default mpe/simple_spread."""
    episodes: Annotated[int, ranges.COUNT, ReadWith("dataset", None)] = 4000
    """Episodes to record."""
    cloning: Annotated[bool, ReadWith("online", None)] = True
    """Train behaviour cloning beside the algorithm, on the same data."""
    lr: Annotated[float, ranges.LEARNING_RATE] = 2e-3
    """Adam's learning rate."""
    tau: Annotated[float, ranges.RATE] = 0.005
    """Rate of the target networks."""
    actor_every: Annotated[int, ranges.COUNT, ranges.AtMost("steps", above="critic_first")] = 1
    """Updates between two of the actor and the targets."""
    critic_first: Annotated[int, ranges.COUNT_OR_NONE, ranges.AtMost("steps", strict=True), ReadWith("from_", None)] = 0
    """So many of the steps train all networks but the actor, the others the actor alone."""
    lr_schedule: Annotated[Literal["constant", "cosine"], ReadWith("from_", None)] = "constant"
    """The learning rate stays, or falls to 0 by a cosine over the steps that follow --critic-first."""
    clip_grad_norm: Annotated[float | None, ranges.POSITIVE] = None
    """Largest norm of the gradient."""
    batch_size: Annotated[int, ranges.ROWS] = 256
    """Transitions per update."""
    bounds: Literal["declared", "data"] = "declared"
    """Of continuous actions: those of the dataset, or, for each agent and component, the range of what was recorded,
    which the policies then never leave."""
    normalize_inputs: Literal["auto", "on", "off"] = "auto"
    """Let networks see observations and states by the dataset's mean and deviation, which policies keep: where a
    component is badly scaled (auto: a root mean square of 30 or more), always, never."""
    hindsight: Annotated[HindsightKind, ReadWith("online", None)] = "off"
    """In tasks with goals, the goal that some of the steps of a batch get: what was achieved later in their episode, at
    its end, or anywhere in the dataset."""
    hindsight_share: Annotated[float, ranges.RATE, WITH_HINDSIGHT] = 0.8
    """Share of the steps that get one; the others keep their goal."""
    hindsight_per: Annotated[Literal["team", "agent"], WITH_HINDSIGHT] = "team"
    """The goals of all agents were achieved at one time, or each agent's is drawn for itself."""
    steps: Annotated[int, ranges.COUNT, ReadWith("from_", None)] = 6000
    """Updates of each method on recorded data."""
    eval_every: Annotated[int, ranges.COUNT] = 1000
    """Updates between evaluations."""
    eval_episodes: Annotated[int, ranges.EVALUATED] = 200
    """Episodes per evaluation; the last one, which makes the table, has five times as many."""
    checkpoint_every: Annotated[int, ranges.COUNT] = 1000
    """Updates between checkpoints."""
    seed: Annotated[int, ranges.RUN_SEED] = 0
    """Seed of data, networks, batches and evaluation."""
    seeds: Annotated[int, ranges.FEW, ReadWith("online", None)] = 1
    """Train seed, seed + 1, ... at once, as one computation; the table's intervals are then across seeds."""
    grid: Annotated[tuple[str, ...], ReadWith("online", None)] = ()
    """NAME=VALUE,VALUE,...: every combination, with all seeds each, as one computation."""
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
    logger: tuple[LoggerName, ...] = ("csv",)
    """Where the numbers go beside the CSV files, which are written in any case; wandb is offline where
    WANDB_MODE=offline."""
    video_every: Annotated[int | None, ranges.COUNT] = None
    """Evaluations between two videos of an episode, in the run's folder videos/ and in the loggers."""
    video_size: Annotated[int, ranges.PIXELS, ReadWith("video_every", given=True)] = 256
    """Height of their picture in pixels."""
    video_format: Annotated[VideoFormat, ReadWith("video_every", given=True)] = "gif"
    """mp4 needs the extra video."""
    figures: tuple[FigureFormat, ...] = ("png",)
    """Formats of the figures; png is always written."""
    output: Path | None = None
    """Folder of the results; by default a new one below runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, with its settings, bit for bit."""
    preset: Literal["quick", "paper"] = "quick"
    """quick fits in minutes on two cores, with hidden layers of 64, 64; paper has the recipe's published sizes (days on
    a CPU)."""


PRESETS = {
    "quick": {},
    "paper": {"batch_size": 640, "steps": 500_000, "lr": 3e-4, "threads": 0}
    | {"eval_every": 50_000, "checkpoint_every": 10_000},
}
"""What a preset makes of the settings beside the algorithm's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and return the exit status.

    Args:
        arguments: by default those of the process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0].startswith("-") and (started := algorithm_of_start(given)):
        given = [started, *given]
    if given and given[0].startswith("-") and given[0].partition("=")[0] not in ("-h", "--help", "--resume"):
        print(
            f"error: Name the algorithm before its options, train ALGORITHM {given[0]} ...; see --help. (--from FOLDER "
            "of a run has its own.)",
            file=sys.stderr,
        )
        return 2
    if _names_more_than_a_run(given):
        print("error: --resume goes on with the settings of the run; leave all others out.", file=sys.stderr)
        return 2
    parsed = make_parser(given).parse_args(given)
    return exit_status(lambda: import_module(f"{__name__}_work").run(parsed))


def _names_more_than_a_run(arguments: Sequence[str]) -> bool:
    """Whether more stands beside ``--resume FOLDER``, wherever it stands: its parser would speak of something else."""
    if {"-h", "--help"} & set(arguments):
        return False
    option = next((word for word in arguments if word.partition("=")[0] == "--resume"), None)
    return option is not None and len(arguments) > (1 if "=" in option else 2)


def algorithm_of_start(arguments: Sequence[str]) -> str | None:
    """Return the algorithm of the run that ``--from`` names, or ``None`` where it names no run."""
    for word, after in itertools.pairwise([*arguments, ""]):
        option, _, value = word.partition("=")
        if option == "--from":
            return algorithm_of(user_path(value or after))
    return None


def algorithm_of(folder: Path) -> str | None:
    """Return the algorithm of the run in a folder, or ``None`` where that says none."""
    try:
        found = dict(read_json(folder / "config.json").items()).get("algorithm")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def make_parser(arguments: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the command's parser; what it parses has the options that were given alone.

    Args:
        arguments: what will be parsed, of which an algorithm that is not named needs no options; by default all have
            theirs.
    """
    parser = OneSentenceParser(
        prog="marl-offline train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(algorithm=None)
    parser.add_argument(
        "--resume",
        action=Once,
        type=reader_of(Path),
        default=argparse.SUPPRESS,
        metavar="FOLDER",
        help="go on with the run in this folder, with its settings",
    )
    algorithms = parser.add_subparsers(metavar="ALGORITHM")
    for name, declared in declared_algorithms().items():
        own = algorithms.add_parser(name, help=plain_text(declared.text), description=declared.text)
        own.set_defaults(algorithm=name)
        if arguments is None or name in arguments:
            _add_settings(own, declared)
            online = [field.name for field in fields(OnlineSettings)]
            add_options(
                own.add_argument_group("training"), TrainSettings, TrainSettings(), leave_out=["resume", *online]
            )
            add_options(own.add_argument_group("going on online"), OnlineSettings, OnlineSettings())
    return parser


def _add_settings(parser: argparse.ArgumentParser, declared: DeclaredAlgorithm) -> None:
    group = parser.add_argument_group(f"settings of {declared.name}")
    for name, each in declared.settings.items():
        legal = range_in(each.annotation)
        words = [plain_text(each.text), f"[{legal}]" if legal else "", f"({_default(declared.name, name, each)})"]
        text = " ".join(filter(None, words)).replace("%", "%%")
        options = {"dest": f"setting:{name}", "default": argparse.SUPPRESS, "help": text}
        if each.is_switch:
            options["action"] = SwitchOnce
        else:
            options |= {"action": Once, "metavar": "VALUE", "nargs": "+" if each.is_series else None}
        group.add_argument(flag(name), **options)


def _default(algorithm: str, name: str, declared: DeclaredSetting) -> str:
    """Return what help says of a default: the class's, and where a preset has another, which."""
    by_preset = {preset: preset_of(preset, algorithm).get(name) for preset in PRESETS}
    if not any(value is not None for value in by_preset.values()):
        return f"default: {declared.default}"
    shown = {p: declared.default if value is None else shown_value(value) for p, value in by_preset.items()}
    return "default: " + ", ".join(f"{value} with --preset {preset}" for preset, value in shown.items())
