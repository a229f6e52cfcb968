"""Export a saved policy as a program that needs neither this library nor TorchRL.

    marl-offline export runs/my-run --format onnx
    marl-offline export policies/expert.pt --output expert.pt2

The policy is a file of :func:`~torchrl_marl_offline.save_policy`, or a run's folder that holds ``policy.pt``; the
program lies beside it if not said otherwise. It maps ``observation`` ``[B, n, o]`` (and ``action_mask`` ``[B, n, A]``)
to ``action``, what is executed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from torchrl_marl_offline.commands.parser import OneSentenceParser
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import argument, option_of
from torchrl_marl_offline.training.policy_export import ONNX_OPSET, SUFFIXES, export_policy
from torchrl_marl_offline.training.saved_policies import policy_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, export, say what was written, and return the exit status.

    Args:
        arguments: by default those of the process.
    """
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    if parsed.opset is not None and parsed.format != "onnx":
        parser.error("--opset is read only with --format onnx; leave it out")
    return exit_status(lambda: _run(parsed))


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = OneSentenceParser(
        prog="marl-offline export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("policy", type=user_path, help="file of a policy, or folder of a run")
    parser.add_argument("--format", choices=list(SUFFIXES), default="torch")
    parser.add_argument("--output", type=user_path, help="the file; by default beside the policy, .pt2 or .onnx")
    parser.add_argument("--mode", choices=["mode", "sample"], default="mode", help="how the policy chooses")
    parser.add_argument("--opset", type=argument(option_of(export_policy, "opset")), help="of ONNX")
    return parser


def _run(parsed: argparse.Namespace) -> None:
    source = policy_file(parsed.policy)
    output = parsed.output or source.with_suffix(SUFFIXES[parsed.format])
    export_policy(source, output, format=parsed.format, mode=parsed.mode, opset=parsed.opset or ONNX_OPSET)
    print(f"{output}: {parsed.format}, {output.stat().st_size:,} bytes")
