"""Export a saved policy as a program that needs neither this library nor TorchRL.

    marl-offline export runs/my-run --format onnx
    marl-offline export policies/expert.pt --output expert.pt2
    marl-offline export runs/my-run --per-agent
    marl-offline export runs/my-run --verify logs.parquet

The policy is a file of :func:`~torchrl_marl_offline.save_policy`, a run's folder that holds ``policy.pt``, or
``hf:OWNER/NAME`` on the Hugging Face Hub; the program lies beside it, or here, if not said otherwise. It maps
``observation`` ``[B, n, o]`` (and ``action_mask`` ``[B, n, A]``) to ``action``, what is executed.

With --per-agent each agent's own policy is written, too: its ``observation`` ``[B, o]`` (and mask) to its ``action``;
``*_agents.json`` says names, shapes and bounds.

With --verify all that was written is run on every row of a dataset: the command says by how much actions differ from
the policy's and how long a single decision takes, and exits with status 3 where a file does not act as the policy does.
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

DIFFERS = 3
"""Exit status where an exported file does not act as its policy does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, export, say what was written, and return the exit status.

    Args:
        arguments: by default those of the process.
    """
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    writing = (parsed.output, parsed.format, parsed.opset, parsed.per_agent or None)
    if parsed.existing is not None and (parsed.verify is None or any(option is not None for option in writing)):
        parser.error(
            "--existing names what --verify SOURCE looks at, and nothing is written then; leave other options out"
        )
    if parsed.format is None:
        parsed.format = "both" if parsed.per_agent or parsed.verify is not None else "torch"
    if parsed.opset is not None and parsed.format == "torch":
        parser.error("--opset is read only with --format onnx or both; leave it out")
    if parsed.verify is not None and parsed.mode != "mode":
        parser.error("--verify compares actions, and --mode sample draws them anew each time; leave one of them out")
    return exit_status(lambda: import_module(f"{__name__}_work").run(parsed))


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = OneSentenceParser(
        prog="marl-offline export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("policy", type=user_path, help="file of a policy, folder of a run, or hf:OWNER/NAME")
    parser.add_argument(
        "--format",
        choices=["torch", "onnx", "both"],
        help="(default: torch; both with --per-agent or --verify)",
    )
    parser.add_argument(
        "--output",
        type=user_path,
        help="the file, .pt2 or .onnx, which is added to other names; by default beside the policy",
    )
    parser.add_argument("--per-agent", action="store_true", help="also write each agent's own policy")
    parser.add_argument("--verify", metavar="SOURCE", help="logged rows to run the files on, as for load_dataset")
    parser.add_argument(
        "--existing",
        metavar="FILE",
        nargs="+",
        type=user_path,
        help="with --verify: ONNX files that were exported before, in the place of new ones",
    )
    parser.add_argument("--mode", choices=["mode", "sample"], default="mode", help="how the policy chooses")
    parser.add_argument("--opset", type=argument(Annotated[int, OPSET]), help="of ONNX")
    return parser
