"""Export a saved policy as a program that needs neither this library nor TorchRL.

    marl-offline export runs/my-run --format onnx
    marl-offline export policies/expert.pt --output expert.pt2

The policy is a file of :func:`~torchrl_marl_offline.save_policy`, a run's folder that holds ``policy.pt``, or
``hf:OWNER/NAME`` on the Hugging Face Hub; the program lies beside it, or here, if not said otherwise. It maps
``observation`` ``[B, n, o]`` (and ``action_mask`` ``[B, n, A]``) to ``action``, what is executed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

from torchrl_marl_offline.commands.parser import OneSentenceParser
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import OPSET, argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, export, say what was written, and return the exit status.

    Args:
        arguments: by default those of the process.
    """
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    if parsed.opset is not None and parsed.format != "onnx":
        parser.error("--opset is read only with --format onnx; leave it out")
    return exit_status(lambda: import_module(f"{__name__}_work").run(parsed))


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = OneSentenceParser(
        prog="marl-offline export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("policy", type=user_path, help="file of a policy, folder of a run, or hf:OWNER/NAME")
    parser.add_argument("--format", choices=["torch", "onnx"], default="torch")
    parser.add_argument("--output", type=user_path, help="the file; by default beside the policy, .pt2 or .onnx")
    parser.add_argument("--mode", choices=["mode", "sample"], default="mode", help="how the policy chooses")
    parser.add_argument("--opset", type=argument(Annotated[int, OPSET]), help="of ONNX")
    return parser
