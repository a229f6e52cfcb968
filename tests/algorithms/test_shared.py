"""The systems of the field on a batch that two processes share: the gradients of the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from objective_toys import SYSTEM_CASES, Case, gradients, make_batch
from tensordict import TensorDict
from torch import distributed, multiprocessing
from torch.testing import assert_close

from torchrl_marl_offline.core.synchronized import Shares, joined_batch

ROWS = 12


def rows_of(case: Case) -> TensorDict:
    batch = make_batch(case.spec, ROWS).apply(lambda x: x.double() if x.is_floating_point() else x)
    batch["collector", "mask"] = torch.arange(ROWS) % 5 != 0
    batch["agents", "mask"] = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(3)) < 0.7
    batch["next", "agents", "mask"] = batch["agents", "mask"]
    return batch


def gradients_of(case: Case, batch: TensorDict) -> dict[str, torch.Tensor]:
    loss = case.build().double()
    torch.manual_seed(5)  # every process draws the noise of the joined batch
    return gradients(loss, batch)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = []
    for case in SYSTEM_CASES:
        own = rows_of(case).chunk(2)[rank].clone()
        with joined_batch(Shares(distributed.group.WORLD, rank, 2)):
            found.append(gradients_of(case, own))
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_averaged_gradients_are_those_of_the_joined_batch(tmp_path) -> None:
    multiprocessing.start_processes(work, (str(tmp_path),), nprocs=2, start_method="spawn")
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, *own in zip(SYSTEM_CASES, *shares):
        expected = gradients_of(case, rows_of(case))
        assert expected.keys() == own[0].keys() == own[1].keys()
        for name, gradient in expected.items():
            assert_close((own[0][name] + own[1][name]) / 2, gradient, msg=lambda m, c=case, n=name: f"{c} {n}: {m}")
