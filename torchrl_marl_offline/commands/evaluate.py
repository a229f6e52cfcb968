"""Evaluate a saved policy in an environment.

    marl-offline evaluate runs/my-run --episodes 1000
    marl-offline evaluate expert.pt --env mpe/simple_spread --video one.gif

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
from torchrl_marl_offline.core.ranges import PIXELS, SEED, SIZE, argument


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
    parser.add_argument("policy", type=user_path, help="file of a policy, folder of a run, or hf:OWNER/NAME")
    parser.add_argument("--env", help="family/task; by default the one the policy was made for")
    parser.add_argument("--episodes", type=argument(Annotated[int, SIZE]), default=1000)
    parser.add_argument(
        "--num-envs", type=argument(Annotated[int, SIZE]), default=200, help="environments that run at once"
    )
    parser.add_argument("--mode", choices=["mode", "sample"], default="mode", help="how the policy chooses")
    parser.add_argument("--seed", type=argument(Annotated[int, SEED]), default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--video", type=user_path, help="also write one episode to this file, *.gif or *.mp4")
    parser.add_argument(
        "--video-size", type=argument(Annotated[int, PIXELS]), help="height of its picture in pixels (default: 256)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
