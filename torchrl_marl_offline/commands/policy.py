"""Policies on the Hugging Face Hub: ``marl-offline policy push | pull``.

    marl-offline policy push runs/my-run OWNER/NAME --licence mit
    marl-offline policy pull OWNER/NAME policies/expert.pt

A policy is a file of :func:`~torchrl_marl_offline.save_policy`, or a run's folder that holds ``policy.pt``. The other
commands take ``hf:OWNER/NAME`` in its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from torchrl_marl_offline.commands.hub_options import add_pulling, add_pushing
from torchrl_marl_offline.commands.parser import subcommand_parser
from torchrl_marl_offline.core.errors import exit_status
from torchrl_marl_offline.core.paths import user_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: by default those of the process.
    """
    parsed = make_parser().parse_args(arguments)
    work = import_module(f"{__name__}_work")
    return exit_status(lambda: getattr(work, parsed.run)(parsed), "interrupted; run it again.", told=(ValueError,))


def make_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser, add = subcommand_parser("marl-offline policy", __doc__)
    command = add("push", "push", "Publish a policy on the Hugging Face Hub, with a card.")
    command.add_argument("policy", type=user_path, metavar="RUN_OR_POLICY", help="folder of a run, or file of a policy")
    add_pushing(command)

    command = add("pull", "pull", "Fetch a policy from the Hugging Face Hub, and verify it.")
    add_pulling(command, "FILE", "where to copy it to; by default it stays in the cache folder")
    return parser
