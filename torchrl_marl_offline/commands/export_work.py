"""What ``marl-offline export`` does."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_marl_offline.core.hub_client import named_on_hub
from torchrl_marl_offline.evaluation.policy_export import ONNX_OPSET, SUFFIXES, export_policy
from torchrl_marl_offline.training.run.saved_policies import policy_file


def run(parsed: argparse.Namespace) -> None:
    """Export, and say what was written."""
    source = policy_file(parsed.policy)
    suffix = SUFFIXES[parsed.format]
    here = Path(parsed.policy.name.partition("@")[0] + suffix)  # not into the cache folder
    output = parsed.output or (here if named_on_hub(parsed.policy) else source.with_suffix(suffix))
    if output.exists() and output.samefile(source):
        raise ValueError(f"--output {output} is the policy that is exported; name another file.")
    export_policy(source, output, format=parsed.format, mode=parsed.mode, opset=parsed.opset or ONNX_OPSET)
    print(f"{output}: {parsed.format}, {output.stat().st_size:,} bytes")
