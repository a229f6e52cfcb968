"""What ``marl-offline export`` does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from torchrl_marl_offline.commands.export import DIFFERS
from torchrl_marl_offline.core.hub_client import named_on_hub
from torchrl_marl_offline.data.registry import load_dataset
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.evaluation.agent_export import export_agent_policies
from torchrl_marl_offline.evaluation.export_check import require_onnx_runtime, verify_export
from torchrl_marl_offline.evaluation.offline.answers import EvaluatedPolicy
from torchrl_marl_offline.evaluation.policy_export import ONNX_OPSET, SUFFIXES, Format, export_policy, require_onnx
from torchrl_marl_offline.training.run.saved_policies import SavedPolicy, load_policy, policy_file


def run(parsed: argparse.Namespace) -> int:
    """Export, say what was written, and verify; returns the exit status."""
    source, data = policy_file(parsed.policy), None
    formats: list[Format] = list(SUFFIXES) if parsed.format == "both" else [parsed.format]
    outputs = {} if parsed.existing else _outputs(parsed, source, formats)
    if "onnx" in outputs:
        require_onnx()
    saved = load_policy(source)
    if parsed.verify is not None:
        data = _logged(parsed, saved, formats)
    written = parsed.existing or _export(parsed, source, outputs)
    return 0 if data is None else _verify(saved, written, data)


def _logged(parsed: argparse.Namespace, saved: SavedPolicy, formats: Sequence[Format]) -> OfflineDataset:
    """Return the data to verify on; what would fail after the export is said now."""
    if "onnx" in formats:
        require_onnx_runtime()
    unsafe = next((file for file in parsed.existing or () if file.suffix != SUFFIXES["onnx"]), None)
    if unsafe is not None:
        raise ValueError(f"--existing takes ONNX files, and {unsafe} is none: a .pt2 may hold code; export it again.")
    data = load_dataset(parsed.verify)
    EvaluatedPolicy("the policy", saved, data, parsed.mode)
    return data


def _outputs(parsed: argparse.Namespace, source: Path, formats: Sequence[Format]) -> dict[Format, Path]:
    """Return the file of each format; ``--output`` is one of them, or what their names begin with."""
    here = Path(parsed.policy.name.partition("@")[0])  # not into the cache folder
    ends = parsed.output is not None and parsed.output.suffix in SUFFIXES.values()
    if parsed.output is not None and not ends and parsed.output.is_file():
        what = "the policy that is exported" if parsed.output.samefile(source) else "a file that no export wrote"
        raise ValueError(f"--output {parsed.output} is {what}; name another file.")
    outputs: dict[Format, Path] = {}
    for format in formats:
        suffix = SUFFIXES[format]
        if parsed.output is None:
            outputs[format] = Path(f"{here}{suffix}") if named_on_hub(parsed.policy) else source.with_suffix(suffix)
        else:
            if ends and len(formats) == 1 and parsed.output.suffix != suffix:
                raise ValueError(f"--output {parsed.output} is to be written as {format}, {suffix}; name it so.")
            outputs[format] = (parsed.output.with_suffix("") if ends else parsed.output).with_name(
                (parsed.output.stem if ends else parsed.output.name) + suffix
            )
    for output in outputs.values():
        if output.exists() and output.samefile(source):
            raise ValueError(f"--output {output} is the policy that is exported; name another file.")
    return outputs


def _export(parsed: argparse.Namespace, source: Path, outputs: dict[Format, Path]) -> list[Path]:
    """Write the team's policy in each format, and each agent's; returns the programs."""
    opset = {} if parsed.opset is None else {"opset": parsed.opset}
    written = []
    for format, output in outputs.items():
        options = {"opset": opset.get("opset", ONNX_OPSET)} if format == "onnx" else {}
        export_policy(source, output, format=format, mode=parsed.mode, **options)
        print(f"{output}: {format}, {output.stat().st_size:,} bytes", flush=True)
        written.append(output)
    if not parsed.per_agent:
        return written
    start = next(iter(outputs.values()))
    listed = export_agent_policies(source, start, formats=list(outputs), mode=parsed.mode, **opset)
    for agent in json.loads(listed.read_text(encoding="utf-8"))["agents"]:
        for format, name in agent["files"].items():
            written.append(listed.with_name(name))
            print(f"{written[-1]}: {format}, agent {agent['agent']}, {written[-1].stat().st_size:,} bytes")
    print(f"{listed}: names, shapes and bounds")
    return written


def _verify(saved: SavedPolicy, files: Sequence[Path], data: OfflineDataset) -> int:
    """Print how the files act beside the policy; returns the exit status."""
    torch.set_num_threads(1)
    found = verify_export(saved, files, data)
    print(found.table())
    return 0 if found.passed else DIFFERS
