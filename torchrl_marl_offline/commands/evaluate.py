"""Evaluate a saved policy in an environment, or policies from logged data alone.

    marl-offline evaluate runs/my-run --episodes 1000
    marl-offline evaluate expert.pt --env mpe/simple_spread --video one.gif
    marl-offline evaluate runs/a runs/b --dataset logs --by fqe wis

With --dataset nothing is played: the command says how much better than the team that logged the data each policy is,
with its interval, and what speaks against trusting that.

The policy is a file of :func:`~torchrl_marl_offline.save_policy`, a run's folder that holds ``policy.pt``, or
``hf:OWNER/NAME`` on the Hugging Face Hub.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

from torchrl_marl_offline.commands.parser import OneSentenceParser
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT, DISCOUNT, FEW, PIXELS, SEED, SIZE, argument

OF_PLAYING = {"env": None, "episodes": 1000, "num_envs": 200, "video": None, "video_size": None, "device": "cpu"}
"""Options of an evaluation in an environment, with their defaults."""
OF_LEARNING = ("decomposition", "memory", "steps", "resamples")
"""Options of what learns from the data: critics, or models of the task."""
OF_DATA = ("by", *OF_LEARNING, "gamma")
"""Options of an evaluation from logged data, whose defaults are those of ``compare_offline``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, play, print what was measured, and return the exit status.

    Args:
        arguments: by default those of the process.
    """
    parsed = make_parser().parse_args(arguments)
    return exit_status(lambda: import_module(f"{__name__}_work").run(parsed))


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = OneSentenceParser(
        prog="marl-offline evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "policy",
        nargs="+",
        type=user_path,
        help="file, folder of a run, or hf:OWNER/NAME; with --dataset several",
    )
    parser.add_argument("--mode", choices=["mode", "sample"], default="mode", help="how the policy chooses")
    parser.add_argument("--seed", type=argument(Annotated[int, SEED]), default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_playing(parser.add_argument_group("in an environment"))
    _add_data(parser.add_argument_group("from logged data"))
    return parser


def _add_playing(group: argparse._ArgumentGroup) -> None:
    whole, told = argument(Annotated[int, SIZE]), OF_PLAYING
    group.add_argument("--env", help="family/task; by default the one the policy was made for")
    group.add_argument("--episodes", type=whole, help=f"(default: {told['episodes']})")
    group.add_argument("--num-envs", type=whole, help=f"environments that run at once (default: {told['num_envs']})")
    group.add_argument("--device", help=f"(default: {told['device']})")
    group.add_argument("--video", type=user_path, help="also write one episode to this file, *.gif or *.mp4")
    group.add_argument(
        "--video-size", type=argument(Annotated[int, PIXELS]), help="height of its picture in pixels (default: 256)"
    )


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dataset", metavar="SOURCE", help="logged episodes, as for load_dataset; better none that were trained on"
    )
    group.add_argument(
        "--by",
        nargs="+",
        metavar="ESTIMATE",
        choices=["fqe", "is", "wis", "dr", "model"],
        help="fqe, fitted Q evaluation; is and wis, importance sampling, plain and weighted; dr, doubly robust; model, "
        "learned models (default: fqe)",
    )
    group.add_argument("--decomposition", help="of the critics (default: centralized)")
    group.add_argument(
        "--memory",
        help="of the critics: gru, lstm, or window:K, for policies that remember",
    )
    group.add_argument("--steps", type=argument(Annotated[int, COUNT]), help="updates of the critics or models")
    group.add_argument("--resamples", type=argument(Annotated[int, FEW]), help="of the episodes, for the interval")
    group.add_argument("--gamma", type=argument(Annotated[float, DISCOUNT]), help="discount")
