"""How much memory a population takes, without making one, and how much there is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from torchrl_marl_offline.algorithms.algorithm import make_loss
from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TRAJ_IDS,
    TaskSpec,
    next_key,
)
from torchrl_marl_offline.core.tables import table_name
from torchrl_marl_offline.study.checking import StudyError

if TYPE_CHECKING:
    from torchrl_marl_offline.study.runs import Run
    from torchrl_marl_offline.study.sources import DatasetSource

_ROWS = (8, 16)  # of the two batches from which the slope is taken
SHARE = 0.8
"""Share of the free memory that is used where none is named."""

OVERHEAD = 1.6
"""What a step takes beside what is counted: new gradients next to the old, intermediate results of the backward and of
Adam, what allocators keep. Seen on a CPU at the paper's size: 280 to 300 MiB for each member, where 190 are counted.
"""


@dataclass(frozen=True)
class MemberMemory:
    """Bytes of one member of a population.

    Attributes:
        parameters: those that are trained.
        gradients: of them.
        moments: Adam's two.
        targets: the target networks and buffers.
        activations: what one forward keeps for the backward.
    """

    parameters: int
    gradients: int
    moments: int
    targets: int
    activations: int

    @property
    def total(self) -> int:
        """All that is counted, together."""
        return self.parameters + self.gradients + self.moments + self.targets + self.activations


def estimate_member(loss: nn.Module, batch: Callable[[int], TensorDictBase], batch_size: int) -> MemberMemory:
    """Estimate what one member takes, from two forward passes on a few rows.

    What a forward keeps for the backward is counted by :class:`torch.autograd.graph.saved_tensors_hooks`, each storage
    once and the parameters not again; it grows in a line with the rows, which two passes give.

    Args:
        loss: of one run.
        batch: number of rows -> a batch with the loss's entries.
        batch_size: rows of an update.
    """
    trained = sum(p.numel() * p.element_size() for p in loss.parameters() if p.requires_grad)
    held = {t.untyped_storage().data_ptr(): t for t in (*loss.parameters(), *loss.buffers())}
    everything = sum(t.untyped_storage().nbytes() for t in held.values())
    few, many = (_saved_bytes(loss, batch(rows), set(held)) for rows in _ROWS)
    slope = (many - few) / (_ROWS[1] - _ROWS[0])
    activations = round(few + slope * (batch_size - _ROWS[0]))
    return MemberMemory(trained, trained, 2 * trained, max(0, everything - trained), activations)


def _saved_bytes(loss: nn.Module, batch: TensorDictBase, known: set[int]) -> int:
    """Return the bytes of the distinct storages that the graph of one forward keeps."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No target network updater")  # nothing is trained here
        loss(batch)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in known)


def made_up_batch(spec: TaskSpec, rows: int) -> TensorDict:
    """Return ``rows`` transitions of the right sizes, to measure with; their values mean nothing."""
    agents = (rows, spec.n_agents)
    action = torch.zeros(agents, dtype=torch.int64) if spec.discrete else torch.zeros(*agents, spec.action_size)
    leaves: dict[Any, Tensor] = {
        OBSERVATION: torch.randn(*agents, spec.observation_size),
        STATE: torch.randn(rows, spec.state_size),
        ACTION: action,
        MASK: torch.ones(rows, dtype=torch.bool),
        TRAJ_IDS: torch.arange(rows),
    }
    if spec.discrete:
        leaves[ACTION_MASK] = torch.ones(*agents, spec.action_size, dtype=torch.bool)
    leaves |= {next_key(key): value.clone() for key, value in leaves.items() if key[0] != "collector"}
    leaves[next_key(REWARD)] = torch.randn(*agents, 1)
    for name in ("done", "terminated", "truncated"):  # every row is an episode, for networks with memory
        leaves["next", name] = torch.full((rows, 1), name == "done")
    batch = TensorDict({}, [rows])
    for key, value in leaves.items():
        batch.set(key, value)
    return batch


class Capacity:
    """How many members a population may have; what is asked once is not measured again.

    Args:
        budget: bytes of one worker.
        datasets: by name.
    """

    def __init__(self, budget: float, datasets: Mapping[str, DatasetSource]) -> None:
        self.budget, self.datasets = budget, datasets
        self._facts: dict[str, tuple[TaskSpec, int]] = {}
        self._members: dict[str, MemberMemory] = {}

    def __call__(self, runs: Sequence[Run]) -> int:
        """Return how many runs like these fit, at least one."""
        facts = [self._fact(name) for name in dict.fromkeys(run.dataset for run in runs)]
        data = sum(rows * _row_bytes(spec) for spec, rows in facts)
        return max(1, int((self.budget - data) // self.bytes_of(runs[0])))

    def spec(self, dataset: str) -> TaskSpec:
        """Return the sizes of a dataset's task."""
        return self._fact(dataset)[0]

    def bytes_of(self, run: Run) -> float:
        """Return what to reckon with for one such run, :data:`OVERHEAD` included."""
        return OVERHEAD * self.member(run).total

    def member(self, run: Run) -> MemberMemory:
        """Return what is counted for one such run."""
        spec = self._fact(run.dataset)[0]
        key = str((spec.to_dict() | {"task": None}, run.shared_settings))
        if key not in self._members:
            try:
                loss = make_loss(spec, **run.loss_settings)
            except ValueError as error:
                where = table_name("methods", run.method)
                raise StudyError(f"{where} on {run.dataset}: {str(error).rstrip('.')}.") from None
            rows = run.settings["batch_size"]
            self._members[key] = estimate_member(loss, lambda n: made_up_batch(spec, n), rows)
        return self._members[key]

    def _fact(self, dataset: str) -> tuple[TaskSpec, int]:
        if dataset not in self._facts:
            self._facts[dataset] = self.datasets[dataset].facts()
        return self._facts[dataset]


def _row_bytes(spec: TaskSpec) -> int:
    batch = made_up_batch(spec, 1)
    return sum(value.numel() * value.element_size() for value in batch.values(True, True))


def free_memory(device: torch.device | str) -> int:
    """Return the bytes that are free on a device; on the CPU, what the operating system could give without swapping.

    Where it does not tell that, as macOS, half of what the machine has.

    Raises:
        StudyError: it tells neither.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if not hasattr(os, "sysconf"):
        raise StudyError("This system does not tell how much memory it has; say how much to use by --memory.")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
