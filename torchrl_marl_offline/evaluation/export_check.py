"""Exported policies on logged rows: do they act as the policy they were made of, and how long does a decision take?"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, TRAJ_IDS, next_key
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import POSITIVE, SIZE
from torchrl_marl_offline.evaluation.agent_export import of_agent
from torchrl_marl_offline.evaluation.along_episodes import with_memory
from torchrl_marl_offline.evaluation.offline.answers import BLOCK, Candidate, EvaluatedPolicy
from torchrl_marl_offline.evaluation.policy_export import KEYS, METADATA, quiet
from torchrl_marl_offline.evaluation.run_report import format_table
from torchrl_marl_offline.modules.actors import LOGITS
from torchrl_marl_offline.modules.greedy_actors import ACTION_VALUE
from torchrl_marl_offline.modules.networks import mask_logits

if TYPE_CHECKING:
    from torchrl_marl_offline.data import OfflineDataset

TOLERANCE = 1e-5
"""Largest difference of an exported action from the policy's that is rounding, in units of the larger of 1 and the
component's bounds."""
EAGER = "policy (eager torch)"
_WARM_UP = 20


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a decision on a single joint observation, or on one agent's.

    Attributes:
        median: of the decisions.
        p95: 95th percentile.
    """

    median: float
    p95: float


@dataclass(frozen=True)
class FileCheck:
    """One exported file beside its policy, on every logged row.

    Attributes:
        file: its path.
        agent: whose policy it is; ``None`` of the team's.
        decisions: how many were compared, of one agent each.
        difference: the largest of continuous actions, absolute; ``None`` of discrete ones.
        excess: that difference in units of the larger of 1 and the component's bounds; of discrete actions the share
            that is neither equal nor a tie.
        equal: share of decisions whose actions are the same numbers.
        ties: of discrete actions the share that differs where the policy's scores of both are equal to within the
            tolerance; ``None`` of continuous ones.
        latency: of a single decision.
        passed: whether ``excess`` is within the tolerance (of discrete actions, zero).
    """

    file: str
    agent: int | None
    decisions: int
    difference: float | None
    excess: float
    equal: float
    ties: float | None
    latency: Latency
    passed: bool


@dataclass(frozen=True)
class ExportCheck:
    """What :func:`verify_export` found.

    Attributes:
        files: each file's comparison.
        eager: latency of the policy itself, for all agents together.
        rows: logged rows that were compared.
        threads: of torch and of ONNX Runtime.
        tolerance: see :class:`FileCheck`.
    """

    files: Sequence[FileCheck]
    eager: Latency
    rows: int
    threads: int
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every file acts as the policy does."""
        return all(file.passed for file in self.files)

    def table(self) -> str:
        """Return what was found, in lines of a terminal's width."""
        discrete = any(file.ties is not None for file in self.files)
        compared = ["equal actions", "ties"] if discrete else ["largest difference"]
        rows: list[list[Any]] = [[EAGER, *[None] * len(compared), self.eager.median, self.eager.p95, None]]
        for file in self.files:
            found = [_share(file.equal), _share(file.ties or 0.0)] if discrete else [f"{file.difference:.1e}"]
            verdict = "ok" if file.passed else "DIFFERS"
            rows.append([Path(file.file).name, *found, file.latency.median, file.latency.p95, verdict])
        header = ["", *compared, "median (ms)", "95th percentile (ms)", ""]
        lines = [
            f"Exported actions beside the policy's on {self.rows:,} logged rows;",
            f"time of a single decision on the CPU, threads: {self.threads}",
            format_table(rows, header=header),
        ]
        if not self.passed:
            kind = "actions that are no ties" if discrete else "differences"
            lines.append(f"Some files do not act as the policy does: {kind} beyond {self.tolerance:g}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        return asdict(self) | {"passed": self.passed}


def _share(share: float) -> str:
    """Return a share; only a whole one reads as 100 %."""
    return f"{share:.0%}" if share in (0.0, 1.0) else f"{min(share, 0.999999):.4%}"


class ExportedFile:
    """An exported policy as a function of named tensors, run by torch alone, or by ONNX Runtime alone.

    Args:
        path: ``.pt2`` or ``.onnx``. A ``.pt2`` is read by :func:`torch.export.load`, which may execute what a stranger
            put into it: only files of your own.
        threads: of ONNX Runtime.

    Raises:
        FileNotFoundError: there is no file.
        ImportError: ONNX Runtime is not installed.
        ValueError: it is none of :func:`export_policy`.
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        self.path = user_path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no exported policy at {path}; write it by export_policy() first.")
        kind = {".pt2": self._open_torch, ".onnx": self._open_onnx}.get(self.path.suffix)
        if kind is None:
            raise ValueError(f"{path} is no exported policy: its name ends neither in .pt2 nor in .onnx.")
        try:
            self._run, text = kind(threads)
            metadata = json.loads(text)
            self.agent: int | None = metadata.get("agent")
            self.inputs: list[str] = list(metadata["inputs"])
            self.mode: str = metadata["mode"]
        except ImportError:
            raise
        except Exception as error:  # a damaged file raises almost anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{path} is no whole file of export_policy(): {reason}; export it again.") from error

    def _open_torch(self, threads: int) -> tuple[Callable[[list[Tensor]], Sequence[Tensor]], str]:
        files = {METADATA: ""}
        with quiet():
            module = torch.export.load(self.path, extra_files=files).module()

        def run(inputs: list[Tensor]) -> Sequence[Tensor]:
            found = module(*inputs)
            return [found] if isinstance(found, Tensor) else found

        return run, files[METADATA]

    def _open_onnx(self, threads: int) -> tuple[Callable[[list[Tensor]], Sequence[Tensor]], str]:
        require_onnx_runtime()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]

        def run(inputs: list[Tensor]) -> Sequence[Tensor]:
            return list(map(torch.from_numpy, session.run(None, {n: x.numpy() for n, x in zip(names, inputs)})))

        return run, session.get_modelmeta().custom_metadata_map[METADATA]

    @property
    def has_memory(self) -> bool:
        """Whether it takes what it returned with the action before."""
        return "memory" in self.inputs

    def taken_from(self, rows: TensorDictBase) -> TensorDict:
        """Return its inputs in logged rows ``[T]`` by name, all agents' or those of its agent.

        Of a file with memory the rows are whole episodes: along them it remembers what it returned itself, and of what
        stands in the rows reads the size alone.
        """
        found = {name: rows.get(KEYS[name]) for name in self.inputs}
        found = found if self.agent is None else of_agent(found, self.agent)
        inputs = TensorDict(found, rows.batch_size)
        return (
            with_memory(self._step, ["memory"], inputs.set(TRAJ_IDS, rows.get(TRAJ_IDS))) if self.has_memory else inputs
        )

    def _step(self, inputs: TensorDictBase) -> TensorDictBase:
        return inputs.set(next_key("memory"), self._outputs(inputs)[1])

    def _outputs(self, inputs: TensorDictBase) -> Sequence[Tensor]:
        return self._run([inputs.get(name) for name in self.inputs])

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the action."""
        return self._outputs(inputs)[0]


def require_onnx_runtime() -> None:
    """Refuse to run ONNX where ONNX Runtime is not installed.

    Raises:
        ImportError: with the remedy.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Running an ONNX file needs onnxruntime; install it with pip install onnxruntime, or verify the torch file "
            "alone."
        ) from error


@checked
@torch.no_grad()
def verify_export(
    policy: Candidate,
    files: Sequence[str | Path],
    dataset: OfflineDataset,
    *,
    tolerance: Annotated[float, POSITIVE] = TOLERANCE,
    decisions: Annotated[int, SIZE] = 1000,
) -> ExportCheck:
    """Run exported policies on every logged row, beside the policy itself; time single decisions, in turns.

    Args:
        policy: what was exported: a module, what :func:`~torchrl_marl_offline.load_policy` returned, or a path.
        files: of :func:`export_policy` and :func:`export_agent_policies`, with ``mode="mode"``. A ``.pt2`` is read by
            :func:`torch.export.load`, which may execute what a stranger put into it: only files of your own.
        dataset: whose rows are taken, those that do not count included.
        tolerance: see :class:`FileCheck`.
        decisions: how many are timed, on the data's first rows.

    Raises:
        FileNotFoundError: a file is missing.
        PolicyError: the policy was made for other sizes than the data's.
        ValueError: a file is damaged, of another task, or draws its actions.
    """
    asked = EvaluatedPolicy("policy", policy, dataset, "mode")
    threads = torch.get_num_threads()
    exported = [ExportedFile(file, threads=threads) for file in files]
    for each in exported:
        if each.mode != "mode":
            raise ValueError(f"{each.path} draws its actions, which differ each time; verify one of mode='mode'.")
        if each.has_memory and not asked.has_memory:
            raise ValueError(f"{each.path} has memory, and the policy has none: it was made of another policy.")
        own = ("memory", "is_init")
        missing = next((n for n in each.inputs if n not in own and KEYS.get(n) not in dataset.data.keys(True)), None)
        if missing is not None:
            raise ValueError(f"{each.path} has an input {missing}, which the data lacks: it is of another task.")
    rows = asked.seen(dataset.data.cpu()).exclude("next")
    count = len(rows)
    comparisons = [_Comparison(each, dataset, tolerance, rows) for each in exported]
    for start in range(0, count, BLOCK):
        block = slice(start, start + BLOCK)
        answer = asked.answer(rows[block])
        for comparison in comparisons:
            comparison.add(block, answer)
    first = range(min(count, decisions))
    ways: list[Callable[[int], Any]] = [_eager(asked, [rows[index : index + 1] for index in first])]
    ways += [
        _decides(each.exported, [dict(each.inputs[index : index + 1].items()) for index in first])
        for each in comparisons
    ]
    with asked.ready():
        eager, *timed = _latencies(ways, len(first), decisions)
    found = [comparison.result(latency) for comparison, latency in zip(comparisons, timed)]
    return ExportCheck(found, eager, count, threads, tolerance)


class _Comparison:
    """One file's actions beside the policy's, block by block."""

    def __init__(self, exported: ExportedFile, dataset: OfflineDataset, tolerance: float, rows: TensorDictBase) -> None:
        self.exported, self.spec, self.tolerance = exported, dataset.spec, tolerance
        with self._running():
            self.inputs = exported.taken_from(rows)
        bounds = torch.tensor([self.spec.lows, self.spec.highs], dtype=torch.float64)
        self.size = bounds.abs().amax(0).clamp_min(1.0)  # [n, a]
        self.decisions = self.equal = self.ties = 0
        self.difference = self.excess = 0.0

    @contextmanager
    def _running(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of either runtime
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.exported.path} cannot be run on this data: {reason}.") from error

    def add(self, rows: slice, answer: TensorDictBase) -> None:
        agent = self.exported.agent
        wanted = answer.get(ACTION)
        wanted = wanted if agent is None else wanted[:, agent : agent + 1]
        with self._running():
            found = self.exported(self.inputs[rows])
        found = found if agent is None else found.unsqueeze(1)
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise ValueError(
                f"{self.exported.path} writes actions {list(found.shape[1:])} of {found.dtype}, the policy "
                f"{list(wanted.shape[1:])} of {wanted.dtype}; it was made of another policy."
            )
        same = found == wanted
        if self.spec.discrete:
            self.ties += int((_tied(answer, agent, found, wanted, self.tolerance) & ~same).sum())
        else:
            size = self.size if agent is None else self.size[agent : agent + 1]
            difference = (found.double() - wanted.double()).abs().nan_to_num(torch.inf, torch.inf)
            self.difference = max(self.difference, difference.max().item())
            self.excess = max(self.excess, (difference / size).max().item())
            same = same.all(-1)
        self.equal += int(same.sum())
        self.decisions += same.numel()

    def result(self, latency: Latency) -> FileCheck:
        discrete, equal, ties = self.spec.discrete, self.equal / self.decisions, self.ties / self.decisions
        excess = (self.decisions - self.equal - self.ties) / self.decisions if discrete else self.excess
        return FileCheck(
            file=str(self.exported.path),
            agent=self.exported.agent,
            decisions=self.decisions,
            difference=None if discrete else self.difference,
            excess=excess,
            equal=equal,
            ties=ties if discrete else None,
            latency=latency,
            passed=excess == 0.0 if discrete else excess <= self.tolerance,
        )


def _tied(answer: TensorDictBase, agent: int | None, found: Tensor, wanted: Tensor, tolerance: float) -> Tensor:
    """Return where a policy's scores of two actions ``[B, n]`` are equal to within the tolerance."""
    written = [key for key in (LOGITS, ACTION_VALUE) if answer.get(key, None) is not None]
    if not written:
        return torch.zeros_like(found, dtype=torch.bool)
    scores = mask_logits(answer.get(written[0]).double(), answer.get(ACTION_MASK, None))
    scores = scores if agent is None else scores[:, agent : agent + 1]
    ours, theirs = (scores.gather(-1, index.unsqueeze(-1)).squeeze(-1) for index in (wanted, found))
    return (ours - theirs).abs() <= tolerance * ours.abs().clamp_min(1.0)


def _eager(asked: EvaluatedPolicy, single: Sequence[TensorDictBase]) -> Callable[[int], Any]:
    """Return the policy's own decision, from tensors to the action."""
    keys = [key for key in asked.read if key in single[0].keys(True)]
    inputs = [{key: row.get(key) for key in keys} for row in single]
    return lambda index: asked.module(TensorDict(inputs[index], [1])).get(ACTION)


def _decides(exported: ExportedFile, inputs: Sequence[Mapping[str, Tensor]]) -> Callable[[int], Any]:
    return lambda index: exported(inputs[index])


def _latencies(ways: Sequence[Callable[[int], Any]], rows: int, decisions: int) -> list[Latency]:
    """Time single decisions, all ways in turns, after some that are not counted."""
    taken = np.zeros((len(ways), decisions))
    for turn in range(-min(_WARM_UP, decisions), decisions):
        for place, way in enumerate(ways):
            begin = time.perf_counter_ns()
            way(turn % rows)
            if turn >= 0:
                taken[place, turn] = (time.perf_counter_ns() - begin) / 1e6
    return [Latency(*map(float, np.percentile(each, [50, 95]))) for each in taken]
