"""What the commands of ``marl-offline policy`` do."""

from __future__ import annotations

import argparse

from torchrl_marl_offline.commands.hub_options import pulling, pushing
from torchrl_marl_offline.evaluation.hub_policies import pull_policy, push_policy


def push(parsed: argparse.Namespace) -> None:
    """Publish a policy on the hub."""
    print(push_policy(parsed.policy, parsed.name, **pushing(parsed)))


def pull(parsed: argparse.Namespace) -> None:
    """Fetch a policy from the hub."""
    print(pull_policy(parsed.name, parsed.target, **pulling(parsed)))
