"""Reader of PyMARL's HDF5 episodes, the format of ODIS, CFCQL, ICQ and offpymarl.

One file holds ``E`` episodes padded to ``L`` steps: ``obs [E, L, n, o]``, ``state [E, L, s]``, ``actions
[E, L, n, 1]``, ``avail_actions [E, L, n, A]``, and ``reward``, ``terminated`` and ``filled``, each ``[E, L, 1]``. An
episode whose ``filled`` is set ``k`` times has ``k - 1`` transitions: its last filled step holds the final observation,
state and mask, and the action that the policy chose there without executing it: the next action of the last transition.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from torchrl_marl_offline.data.assembly import assemble, open_unused_masks, team_reward
from torchrl_marl_offline.data.dataset import OfflineDataset
from torchrl_marl_offline.data.hdf5 import open_hdf5
from torchrl_marl_offline.data.layout import (
    ACTION,
    ACTION_MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TaskSpec,
    next_key,
)
from torchrl_marl_offline.data.validation import DatasetError, reading

if TYPE_CHECKING:
    import h5py

FIELDS = ("obs", "state", "actions", "avail_actions", "reward", "terminated", "filled")
_EPISODES_AT_ONCE = 256


@dataclass(frozen=True)
class KnownTask:
    """What the sizes of a file tell.

    Args:
        task: its name.
        time_limit: steps after which the task stops an episode.
        success_above: an episode succeeded if its last reward lies above this.
        options: what ``make_env`` needs besides the name.
    """

    task: str
    time_limit: int
    success_above: float
    options: dict[str, Any] = field(default_factory=dict)


def recognise(n_agents: int, observation_size: int, state_size: int, n_actions: int) -> KnownTask | None:
    """Return the task whose sizes these are, or ``None``.

    StarCraft's 3m scales its rewards so that the best return is 20; the bonus for a win alone is worth more than 10,
    and no other step comes near it.
    """
    sizes = (n_agents, observation_size, state_size, n_actions)
    if sizes == (n_agents, 4 * n_agents, 4 * n_agents, 5) and 2 <= n_agents <= 5:
        return KnownTask("games/grid_navigation", time_limit=50, success_above=0.0, options={"agents": n_agents})
    if sizes == (3, 30, 48, 9):
        return KnownTask("smac/3m", time_limit=60, success_above=10.0)
    return None


def read_pymarl(
    path: str | Path,
    *,
    task: str | Literal["auto"] | None = "auto",
    time_limit: int | Literal["auto"] | None = "auto",
) -> OfflineDataset:
    """Read one PyMARL file.

    Many files record the time limit as a termination, which tells a critic that the value after it is 0. The rule: an
    episode of exactly ``time_limit`` transitions that is marked ``terminated`` and whose last reward is no success (not
    above 0, or above what :func:`recognise` knows) was truncated. The metadata's findings count these episodes.
    An episode without the mark was truncated in any case.

    Args:
        path: the HDF5 file.
        task: name for the spec; ``"auto"`` takes it from :func:`recognise`. Under another name nothing else that
            :func:`recognise` knows is used: no time limit, no success.
        time_limit: steps after which the task stops an episode. ``"auto"`` takes it from :func:`recognise`; ``None``
            keeps the file's marks, and a finding tells how many of the longest episodes end without reward.

    Raises:
        DatasetError: the file is not of this format, is cut short, or its content is inconsistent.
        ImportError: h5py is not installed.
    """
    path = Path(path)
    with reading(path), open_hdf5(path, "PyMARL") as file:
        sizes = _check_fields(path, file)
        known = recognise(*sizes)
        if known is not None and task not in ("auto", known.task):
            known = None
        lengths, findings = _episode_lengths(path, file)
        steps = _read_steps(path, file, lengths)
    limit = (known.time_limit if known else None) if time_limit == "auto" else time_limit
    rows, final_actions = _rows(steps, sizes)
    terminated, truncated = _ends(path, steps, lengths, limit, known.success_above if known else 0.0, findings)
    if known is not None:
        done = terminated | truncated
        rows[next_key(SUCCESS)] = (done & (steps["reward"][steps["is_row"]] > known.success_above)).unsqueeze(-1)
    open_unused_masks(rows, terminated, findings)
    n, o, s, a = sizes
    name = (known.task if known else None) if task == "auto" else task
    spec = TaskSpec(n, o, s, a, discrete=True, has_action_mask=True, task=name)
    metadata: dict[str, Any] = {
        "source": f"pymarl:{path}",
        "task": name,
        "task_options": known.options if known else {},
        "time_limit": limit,
        "team_reward": True,
        "findings": findings,
    }
    data = assemble(rows, terminated=terminated, truncated=truncated, final_actions=final_actions)
    try:
        return OfflineDataset(data, spec, metadata)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def _check_fields(path: Path, file: h5py.File) -> tuple[int, int, int, int]:
    """Check names and shapes; return the numbers of agents, observation, state and actions."""
    missing = [name for name in FIELDS if name not in file]
    if missing:
        raise DatasetError(
            f"{path} lacks {', '.join(missing)} (it has {', '.join(sorted(file)) or 'nothing'}); it is not a PyMARL "
            "file, or not a whole one: use the reader of its format or fetch it again."
        )
    shapes = {name: tuple(file[name].shape) for name in FIELDS}
    if len(shapes["obs"]) != 4 or len(shapes["state"]) != 3 or len(shapes["avail_actions"]) != 4:
        names = ", ".join(f"{name} {shapes[name]}" for name in ("obs", "state", "avail_actions"))
        raise DatasetError(
            f"{path} has {names} instead of obs [E, L, n, o], state [E, L, s], avail_actions [E, L, n, A]; "
            "use the reader of its format."
        )
    e, length, n, o = shapes["obs"]
    s, a = shapes["state"][-1], shapes["avail_actions"][-1]
    wanted = dict.fromkeys(("reward", "terminated", "filled"), (e, length, 1))
    wanted |= {"state": (e, length, s), "actions": (e, length, n, 1), "avail_actions": (e, length, n, a)}
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise DatasetError(
                f"{path}: {name} has shape {shapes[name]} where obs {shapes['obs']} asks for {shape}; "
                "fetch the file again or use the reader of its format."
            )
    return n, o, s, a


def _field(path: Path, file: h5py.File, name: str, episodes: slice = slice(None)) -> np.ndarray:
    try:
        return file[name][episodes]
    except OSError as error:
        raise DatasetError(f"{path}: {name} cannot be read ({error}); the file is damaged, fetch it again.") from error


def _episode_lengths(path: Path, file: h5py.File) -> tuple[torch.Tensor, list[str]]:
    """Return the number of filled steps of each episode, ``[E]``, 0 for those without a transition."""
    filled = torch.from_numpy(_field(path, file, "filled")[..., 0] != 0)
    lengths = filled.sum(1)
    gaps = (filled != (torch.arange(filled.shape[1]) < lengths.unsqueeze(1))).any(1)
    if gaps.any():
        raise DatasetError(
            f"{path}: filled has gaps in {int(gaps.sum())} episodes (first: {int(gaps.nonzero()[0])}); "
            "the steps of an episode must come first: drop those episodes."
        )
    findings = []
    empty = lengths < 2
    if empty.all():
        raise DatasetError(f"{path} holds no transition: filled is set at most once per episode; fetch it again.")
    if empty.any():
        findings.append(f"{int(empty.sum())} episodes hold no transition and were left out")
    return torch.where(empty, 0, lengths), findings


def _read_steps(path: Path, file: h5py.File, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
    """Read the filled steps of all episodes end to end, a few episodes at a time: the padding never piles up.

    Each field is ``[F, ...]``, ``F`` filled steps; ``is_row`` marks those where a transition starts, ``is_last`` the
    start of each episode's last transition.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS if name != "filled"}
    time = np.arange(file["filled"].shape[1])
    for start in range(0, len(lengths), _EPISODES_AT_ONCE):
        episodes = slice(start, start + _EPISODES_AT_ONCE)
        keep = time < lengths[episodes].numpy()[:, None]
        for name, part in parts.items():
            part.append(_field(path, file, name, episodes)[keep])
    steps = {name: torch.from_numpy(np.concatenate(part)) for name, part in parts.items()}
    for name in ("reward", "terminated"):
        steps[name] = steps[name].squeeze(-1)
    actions = steps["actions"].squeeze(-1)
    if actions.is_floating_point() and not torch.equal(actions, actions.round()):
        raise DatasetError(f"{path}: actions are not whole numbers; the pymarl reader reads discrete actions only.")
    steps["actions"] = actions.long()
    final = lengths[lengths > 0].cumsum(0) - 1
    steps["is_row"] = torch.ones(len(actions), dtype=torch.bool)
    steps["is_row"][final] = False
    steps["is_last"] = torch.zeros_like(steps["is_row"])
    steps["is_last"][final - 1] = True
    return steps


def _rows(
    steps: dict[str, torch.Tensor], sizes: tuple[int, int, int, int]
) -> tuple[dict, tuple[torch.Tensor, torch.Tensor] | None]:
    """Return the leaves by layout key, and the actions chosen at the final observations where they are recorded."""
    here = steps["is_row"].nonzero()[:, 0]
    there = here + 1
    masks = steps["avail_actions"] != 0
    rows: dict = {}
    for key, values in ((OBSERVATION, steps["obs"].float()), (STATE, steps["state"].float()), (ACTION_MASK, masks)):
        rows[key], rows[next_key(key)] = values[here], values[there]
    rows[ACTION] = steps["actions"][here]
    rows[next_key(REWARD)] = team_reward(steps["reward"][here].float(), sizes[0])
    final = ~steps["is_row"]
    if not steps["actions"][final].any():
        return rows, None  # a writer that leaves the padding's zeros there recorded no choice
    recorded = steps["actions"][there]
    legal = masks[there].gather(-1, recorded.clamp(0, sizes[3] - 1).unsqueeze(-1)).squeeze(-1)
    inside = (recorded >= 0) & (recorded < sizes[3])
    return rows, (recorded, (legal & inside).all(-1))


def _ends(
    path: Path,
    steps: dict[str, torch.Tensor],
    lengths: torch.Tensor,
    limit: int | None,
    success_above: float,
    findings: list[str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``terminated`` and ``truncated`` ``[T]``, with the time limit told from the task's end."""
    is_row = steps["is_row"]
    marked, last = steps["terminated"][is_row] != 0, steps["is_last"][is_row]
    misplaced = int((marked & ~last).sum()) + int((steps["terminated"][~is_row] != 0).sum())
    if misplaced:
        raise DatasetError(
            f"{path}: terminated is set on {misplaced} steps that are not an episode's last transition; "
            "the episodes are cut wrongly: drop them or repair filled."
        )
    transitions = lengths[lengths > 0] - 1
    if limit is not None and int(transitions.max()) > limit:
        raise DatasetError(
            f"{path} has an episode of {int(transitions.max())} transitions, beyond time_limit={limit}; pass the "
            "task's time limit, or time_limit=None."
        )
    longest = int(transitions.max()) if limit is None else limit
    failed = steps["reward"][is_row][last] <= success_above
    at_limit = (transitions == longest) & failed & marked[last]  # [E]
    terminated = marked & last
    if limit is None:
        if int(at_limit.sum()) > 1:
            findings.append(
                f"{int(at_limit.sum())} episodes end as terminated after the greatest length, {longest}, without "
                "success: a time limit? If so, read the file with time_limit= that length"
            )
    elif at_limit.any():
        terminated[last] = terminated[last] & ~at_limit
        findings.append(
            f"{int(at_limit.sum())} episodes stopped by the time limit of {limit} steps were recorded as terminated; "
            "they are read as truncated"
        )
    return terminated, last & ~terminated
