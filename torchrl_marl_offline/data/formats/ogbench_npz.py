"""Reader of OGBench's files of ant mazes: a single ant's recordings as those of a team that shares out its legs.

An npz archive with ``observations [T, 29]``, ``actions [T, 8]`` and ``terminals [T]``, trajectories end to end; the
last row of a trajectory, where ``terminals`` is 1, holds its last observation, and its action leads nowhere. The files
tell no goals: each trajectory gets the place where it ends, which its last step reaches. Hindsight gives others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACHIEVED, GOAL, next_key
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.split_ant import BODY, MOTORS, AntSight, SplitAnt, split_maze_name
from torchrl_marl_offline.data.formats.arrays import from_arrays
from torchrl_marl_offline.data.formats.table_files import open_npz
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading

SHAPES = {"observations": (BODY,), "actions": (MOTORS,), "terminals": ()}


@checked
def read_ogbench(
    path: str | Path, *, task: str = "ogbench/antmaze-medium-2x4", sight: AntSight = "own"
) -> OfflineDataset:
    """Read one file.

    Args:
        path: the npz archive.
        task: whose agents it is shared out among, and in which it is played.
        sight: what an agent sees, as of the task.

    Raises:
        DatasetError: the file is not of this format, or is damaged.
        ValueError: there is no such task.
    """
    path = user_path(path)
    split = SplitAnt(split_maze_name(task.removeprefix("ogbench/"))[1], sight)
    with reading(path):
        archive = open_npz(path)
        missing = [name for name in SHAPES if name not in archive.names]
        if missing:
            raise DatasetError(f"{path} lacks {', '.join(missing)}; OGBench's files of ant mazes have them.")
        (block,) = archive.blocks(list(SHAPES), ())
        arrays = {name: torch.from_numpy(_checked(path, name, block[name].values)) for name in SHAPES}
    last = arrays["terminals"] != 0
    if not last.numel() or not last[-1]:
        raise DatasetError(f"{path} is cut short: its last row ends no trajectory; fetch it again.")
    if last[0] or (last[1:] & last[:-1]).any():
        raise DatasetError(f"{path} has a trajectory without a step; fetch it again.")
    return _shared_out(path, arrays["observations"], arrays["actions"], last, split, task)


def _checked(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim != 1 + len(SHAPES[name]) or array.shape[1:] != SHAPES[name] or array.dtype.kind not in "fiub":
        raise DatasetError(
            f"{path}: {name} has shape {array.shape} of {array.dtype}, where an ant maze has numbers "
            f"{['T', *SHAPES[name]]}; other tasks of OGBench are not read."
        )
    return array.astype(np.float32)


def _shared_out(path: Path, body: Tensor, control: Tensor, last: Tensor, split: SplitAnt, task: str) -> OfflineDataset:
    n = split.n_agents
    ends = last.nonzero().flatten()
    own = torch.searchsorted(ends, torch.arange(len(last)))  # each row's trajectory
    here = (~last).nonzero().flatten()
    goal = body[ends][own[here], :2].unsqueeze(1).repeat(1, n, 1)  # [R, n, 2]
    reached = last[here + 1]
    observation, state = split.seen(body[here], goal)
    next_observation, next_state = split.seen(body[here + 1], goal)
    dataset = from_arrays(
        observations=observation.numpy(),
        next_observations=next_observation.numpy(),
        state=state.numpy(),
        next_state=next_state.numpy(),
        actions=split.actions(control[here]).clamp(-1, 1).numpy(),
        rewards=reached.float().numpy(),
        terminals=reached.numpy(),
        success=reached.numpy(),
        task=task,
        metadata={"source": f"ogbench:{path}", "task": task, "task_options": {"sight": split.sight}},
    )
    for rows, key in ((here, ACHIEVED), (here + 1, next_key(ACHIEVED))):
        dataset.data.set(key, body[rows, :2].unsqueeze(1).repeat(1, n, 1))
    dataset.data.set(GOAL, goal)
    dataset.data.set(next_key(GOAL), goal.clone())
    return dataset
