"""Runs that several processes share: what a test starts by torchrun, and what it compares that with.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/toys/distributed_toys.py WHAT FOLDER
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from objective_toys import CONTINUOUS, DISCRETE, make_batch
from tensordict import TensorDict
from training_toys import make_buffer, make_trainer

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.layout import AGENT_MASK, HAS_NEXT_ACTION, MASK, REWARD, TRAJ_IDS, next_key
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.training import Learner, Trainer
from torchrl_marl_offline.training.run.distributed import (
    AveragedGradients,
    SingleProcess,
    distributed_from_environment,
)
from torchrl_marl_offline.training.step.gradients import CompiledGradients

STEPS = 25
ROWS = 96


@dataclass(frozen=True)
class SharedCase:
    """One run that two processes share."""

    decomposition: str
    value_learning: str
    extraction: str
    discrete: bool = False
    slice_len: int | None = None
    traced: bool = False
    joined: bool = True
    masked: bool = True
    weighted: bool = False
    reduction: str = "mean"
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        flags = [name for name in ("discrete", "slice_len", "traced") if getattr(self, name)]
        words = [self.decomposition, self.value_learning, self.extraction, *flags, *self.settings]
        words += [name for name in ("masked", "weighted", "joined") if getattr(self, name)]
        return "-".join([*words, self.reduction])


EQUAL = [
    SharedCase("mixer", "td", "awr"),
    SharedCase("mixer", "sarsa", "brac", discrete=True),
    SharedCase("mixer", "iql", "awr", discrete=True, settings={"heads": "min", "advantage": "local"}),
    SharedCase("mixer", "iql", "brac"),
    SharedCase("mixer", "iql", "awr", slice_len=4),
    SharedCase("independent", "td", "brac"),
    SharedCase("independent", "sarsa", "awr", discrete=True),
    SharedCase("independent", "iql", "awr"),
    SharedCase("centralized", "td", "brac", discrete=True, traced=True),
    SharedCase("centralized", "sarsa", "awr"),
    SharedCase("mixer", "td", "brac", masked=False),
    SharedCase("mixer", "iql", "awr", weighted=True),
    SharedCase("independent", "sarsa", "brac", reduction="sum"),
    SharedCase("centralized", "iql", "brac", settings={"svn": False}),
    SharedCase("mixer", "-", "-", settings={"algorithm": "omiga", "batch_norm": True}),
]
UNEQUAL = [SharedCase("mixer", "iql", "awr", joined=False)]


def make_rows(discrete: bool, *, masked: bool = True) -> TensorDict:
    """Transitions of episodes of 6 rows; masked, a quarter of which count nothing and hold NaN, and agents are dead."""
    data = make_batch(DISCRETE if discrete else CONTINUOUS, ROWS, seed=3)
    successor = make_batch(DISCRETE if discrete else CONTINUOUS, ROWS, seed=4)["agents"]
    data["next", "agents", "action"] = successor["action"]
    if discrete:
        data["next", "agents", "action_mask"] = successor["action_mask"]
    data = data.apply(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
    data[TRAJ_IDS] = torch.arange(ROWS) // 6
    if not masked:
        return data
    draw = torch.Generator().manual_seed(5)
    counts = torch.rand(ROWS, generator=draw) < 0.75
    data[next_key(REWARD)][~counts] = float("nan")
    data[MASK], data[HAS_NEXT_ACTION] = counts, torch.rand(ROWS, generator=draw) < 0.8
    alive = torch.rand(ROWS, 3, generator=draw) < 0.7
    data[AGENT_MASK], data[next_key(AGENT_MASK)] = alive, alive & (torch.rand(ROWS, 3, generator=draw) < 0.9)
    return data


def train_case(case: SharedCase, processes: SingleProcess) -> tuple[Trainer, torch.Tensor]:
    """Train a case and return its trainer and all its weights, targets and moments as one vector."""
    torch.manual_seed(7 if processes.is_main else 8)  # the first process's start is everyone's
    spec = DISCRETE if case.discrete else CONTINUOUS
    options = {"hidden": (8,), "gamma": 0.9, **case.settings}
    if "algorithm" not in options:
        options |= {"value_learning": case.value_learning, "extraction": case.extraction}
    loss = make_loss(spec, decomposition=case.decomposition, **options)
    loss.double().reduction = case.reduction
    data = make_rows(case.discrete, masked=case.masked)
    if case.weighted:
        data["priority_weight"] = torch.linspace(0.5, 2.0, ROWS, dtype=torch.float64)
    trainer = Trainer(
        Learner(loss, lr=1e-2, clip_grad_norm=1.0),
        make_replay_buffer(data, batch_size=32, slice_len=case.slice_len, seed=processes.rank),
        steps=STEPS,
        log_every=5,
        distributed=processes,
        progress=False,
    )
    if case.traced:
        trainer.learner.gradients = processes.averaged(CompiledGradients(loss, backend=None), loss)
    trainer.train()
    moments = [value for state in trainer.learner.optimizer.state.values() for value in state.values()]
    tensors = [value for value in loss.state_dict().values() if isinstance(value, torch.Tensor)]
    return trainer, torch.cat([value.detach().double().flatten() for value in [*tensors, *moments]])


def train_cases(folder: Path, processes: SingleProcess) -> None:
    """Train the cases that ``cases`` names and write each process's weights and the rows that it logged."""
    wanted = (folder / "cases").read_text().splitlines()
    AveragedGradients.__call__, joined = _not_joined, AveragedGradients.__call__
    found = {str(case): train_case(case, processes) for case in UNEQUAL if str(case) in wanted}
    AveragedGradients.__call__ = joined
    found |= {str(case): train_case(case, processes) for case in EQUAL if str(case) in wanted}
    result = {name: {"weights": vector, "rows": run.logger.train.rows} for name, (run, vector) in found.items()}
    torch.save(result, folder / f"process-{processes.rank}.pt")


def _not_joined(self: AveragedGradients, batch: TensorDict) -> dict[str, torch.Tensor]:
    """Average the gradients of the shares, each with statistics of its own: not what is wanted."""
    metrics = self.gradients(batch)
    for parameter in self.loss.parameters():
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= self.shares.count
    return metrics


def train_toy(folder: Path, processes: SingleProcess, *, slowly: bool = False, fail: bool = False) -> None:
    """Train the toy of the training loop's tests as a script would; slowly enough to be killed, or failing."""
    folder.mkdir(exist_ok=True)
    (folder / f"pid-{processes.rank}").write_text(str(os.getpid()))
    seen = set()

    def evaluator() -> dict[str, float]:
        seen.add(processes.rank)
        return {"return": torch.rand(()).item()}

    buffer = make_buffer()
    options = {"evaluators": {"a": evaluator}, "eval_every": 15, "log_every": 3, "distributed": processes}
    trainer = make_trainer(folder / "run", buffer=buffer, **options)
    sample = buffer.sample

    def sample_slowly() -> TensorDict:
        if fail and processes.rank == 1 and trainer.step == 4:
            raise ValueError("the disk of this machine is on fire")
        time.sleep(0.05 if slowly else 0)
        return sample()

    buffer.sample = sample_slowly
    if trainer.checkpoints.checkpoints():
        print(f"process {processes.rank} goes on from step {trainer.resume()}")
    result = trainer.train(on_interrupt="return")
    print(f"process {processes.rank} ends: {type(result).__name__} at {result.step}, evaluated by {seen}")


def main(what: str, folder: Path) -> None:
    """Run what the tests ask for."""
    processes = distributed_from_environment("cpu")
    if what == "all":
        with processes.main_first():
            print(f"process {processes.rank} finds data: {(folder / 'data').exists()}")
            (folder / "data").touch()
        train_cases(folder, processes)
        train_toy(folder / "undisturbed", processes)
        train_toy(folder / "failed", processes, fail=True)
    train_toy(folder, processes, slowly=what == "slowly")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
