"""What compiling cost on this machine the last time, and what it brought: kept in a file for the runs to come."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from torchrl_marl_offline.core.files import write_text_atomic
from torchrl_marl_offline.data.published.cache_folder import cache_folder
from torchrl_marl_offline.training.step.gradients import leaf_device, signature_of

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from torch import nn

FILE = "compile_costs.json"
_KEPT = 200


@dataclass(frozen=True)
class Cost:
    """What compiling a kind of step costs and brings.

    Attributes:
        seconds: until the compiled function has run once.
        ratio: time of a compiled step over that of a step as it stands.
        measured: where the numbers come from, in words.
    """

    seconds: float
    ratio: float
    measured: str


SAFE = Cost(60.0, 0.75, "not measured on this machine yet")
"""Assumed where nothing is known: on 2 cores, compiling took 26 to 64 seconds, and steps .25 to 1.0 of their time."""


class CompileCosts:
    """The figures of one machine, of one version of torch.

    Args:
        path: the file; by default in the cache folder of :func:`~.caching.cache_folder`.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = cache_folder() / FILE if path is None else Path(path)

    def expected(self, kind: str, machine: str) -> Cost:
        """Return the cost of a kind of step: as it was the last time, or of other steps here, or a safe figure."""
        known = self._read().get(machine, {})
        if kind in known:
            return Cost(*known[kind], "as it was here the last time")
        if known:
            seconds, ratios = zip(*known.values())
            return Cost(median(seconds), median(ratios), "as other steps here")
        return SAFE

    def remember(self, kind: str, machine: str, seconds: float, ratio: float) -> None:
        """Keep what was measured; a file that cannot be written is left alone: the figures are measured again."""
        everything = self._read()
        known = {k: v for k, v in everything.get(machine, {}).items() if k != kind}
        everything[machine] = dict([*known.items(), (kind, [round(seconds, 3), round(ratio, 4)])][-_KEPT:])
        with suppress(OSError):
            write_text_atomic(self.path, json.dumps(everything, indent=1) + "\n")

    def _read(self) -> dict[str, dict[str, list[float]]]:
        """Return machine -> kind -> figures; of a damaged file what can be used."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return {
                str(machine): {str(kind): list(figures) for kind, figures in kinds.items() if _are_figures(figures)}
                for machine, kinds in content.items()
            }
        except (OSError, ValueError, AttributeError):
            return {}


def _are_figures(figures: Any) -> bool:
    return isinstance(figures, list) and len(figures) == 2 and all(type(f) in (int, float) and f >= 0 for f in figures)


def machine_of(device: torch.device) -> str:
    """Return what compiling depends on beside the step: host, processor or GPU, threads, torch."""
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {os.cpu_count()} CPUs"
    )
    return f"{platform.node()}, {name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def kind_of(loss: nn.Module, batch: TensorDictBase, precision: str) -> str:
    """Return a digest of what makes two steps one to a compiler: modules, sizes of tensors, precision."""
    template = getattr(loss, "template", loss)
    parts = [type(module).__name__ for module in template.modules()]
    parts += [f"{name} {tuple(tensor.shape)}" for name, tensor in loss.state_dict().items() if hasattr(tensor, "shape")]
    parts += [str(signature_of(batch)), str(leaf_device(batch)), precision]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
