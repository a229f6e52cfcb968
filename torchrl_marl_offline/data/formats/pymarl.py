"""Reader of PyMARL's HDF5 episodes, the format of ODIS, CFCQL, ICQ and offpymarl.

One file holds ``E`` episodes padded to ``L`` steps: ``obs [E, L, n, o]``, ``state [E, L, s]``, ``actions
[E, L, n, 1]``, ``avail_actions [E, L, n, A]``, and ``reward``, ``terminated`` and ``filled``, each ``[E, L, 1]``. An
episode whose ``filled`` is set ``k`` times has ``k - 1`` transitions: its last filled step holds the final observation,
state and mask, and the action that the policy chose there without executing it: the next action of the last transition.

Read as well: flags ``[E, L]``; actions ``[E, L, n]`` and one-hot; a reward for each agent, ``[E, L, n]``; a state for
each agent; files without ``state`` (the joint observation stands in) or without ``avail_actions``; continuous actions
``[E, L, n, a]``; files whose last filled step is a transition like the others; folders of ``part_<k>.h5``. The module
:mod:`~.pymarl_layout` tells which of them a file is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound
from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TaskSpec,
    next_key,
)
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import BOUNDS, COUNT, REAL, WIDTHS
from torchrl_marl_offline.core.regular_files import files_below
from torchrl_marl_offline.data.formats.content import Content
from torchrl_marl_offline.data.formats.hdf5 import open_hdf5
from torchrl_marl_offline.data.formats.pymarl_layout import Layout, find_episodes, read_field, read_layout
from torchrl_marl_offline.data.formats.streaming import BadRows, as_float, one_state
from torchrl_marl_offline.data.transitions.assembly import assemble, open_unused_masks, shared_reward
from torchrl_marl_offline.data.transitions.bad_episodes import KEY, BadEpisodes
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset, concatenate
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading
from torchrl_marl_offline.data.transitions.rounding import Rounding
from torchrl_marl_offline.data.transitions.values import indices

if TYPE_CHECKING:
    import h5py

    from torchrl_marl_offline.data.formats.pymarl_layout import Episodes

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


def known_task(n_agents: int, observation_size: int, state_size: int | None, n_actions: int) -> KnownTask | None:
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


ARRAYS = frozenset({"obs", "actions", "reward", "filled"})
"""What tells the format."""


def recognise(content: Content) -> Path | None:
    """Return the path that :func:`read_pymarl` wants, or None where it is of another format."""
    has_parts = any(re.fullmatch(r"part_\d+\.(h5|hdf5)", name) for name in content.names)
    return content.path if has_parts or content.arrays >= ARRAYS else None


@checked
def read_pymarl(
    path: str | Path,
    *,
    task: str | Literal["auto"] | None = "auto",
    time_limit: Annotated[int | Literal["auto"] | None, COUNT] = "auto",
    final_row: bool | Literal["auto"] = "auto",
    n_actions: Annotated[int | None, WIDTHS] = None,
    action_bounds: Annotated[tuple[Bound, Bound] | None, REAL, BOUNDS] = None,
    state: str | None = None,
    legals: str | None = None,
) -> OfflineDataset:
    """Read one PyMARL file, or a folder of them.

    Many files record the time limit as a termination, which tells a critic that the value after it is 0. The rule: an
    episode of exactly ``time_limit`` transitions that is marked ``terminated`` and whose last reward is no success (not
    above 0, or above what :func:`known_task` knows) was truncated. The metadata's findings count these episodes.
    An episode without the mark was truncated in any case.

    Args:
        path: the HDF5 file, or a folder that holds ``part_0.h5``, ``part_1.h5``, ...
        task: name for the spec; ``"auto"`` takes it from :func:`known_task`. Under another name nothing else that
            :func:`known_task` knows is used: no time limit, no success.
        time_limit: steps after which the task stops an episode. ``"auto"`` takes it from :func:`known_task`; ``None``
            keeps the file's marks, and a finding tells how many of the longest episodes end without reward.
        final_row: whether an episode's last filled step holds its final observation only (PyMARL) or is a transition.
            ``"auto"``: a transition, if ``terminated`` is set there rather than one step before, or if it is set
            nowhere and rewards stand there.
        n_actions: number of discrete actions, where neither ``avail_actions`` nor ``actions_onehot`` tells it.
        action_bounds: lower and upper bound of every component of a continuous action, by default -1 and 1.
        state: name of the array that holds the state, ``"state"`` where there is one; ``"obs"`` takes the joint
            observation.
        legals: name of the array of legal actions, ``"avail_actions"`` where there is one; ``""`` for none.

    Raises:
        DatasetError: the file is not of this format, is cut short, or its content is inconsistent.
        ImportError: h5py is not installed.
    """
    path = user_path(path)
    options = {"task": task, "time_limit": time_limit, "final_row": final_row, "n_actions": n_actions}
    options |= {"action_bounds": action_bounds, "state": state, "legals": legals}
    if path.is_dir() and (parts := _parts(path)):
        with reading(path):
            for _ in files_below(path, [part.name for part in parts]):
                pass  # neither a pipe nor a link that leads out
        return _joined(path, [read_pymarl(part, **options) for part in parts])
    bad = BadEpisodes(f"pymarl:{path}")
    with reading(path), open_hdf5(path, "PyMARL") as file:
        layout = read_layout(path, file, n_actions=n_actions, bounds=action_bounds, state=state, legals=legals)
        known = known_task(layout.agents, layout.observation, layout.state, layout.actions)
        if known is not None and task not in ("auto", known.task):
            known = None
        episodes = find_episodes(path, file, final_row, bad)
        rounding = Rounding()
        steps = _read_steps(path, file, layout, episodes, rounding)
    findings = episodes.findings
    limit = (known.time_limit if known else None) if time_limit == "auto" else time_limit
    with reading(path):
        rows, final_actions, state_size, bad_rows = _rows(steps, layout, episodes, findings)
    terminated, truncated = _ends(path, steps, limit, known.success_above if known else 0.0, findings)
    done = terminated | truncated
    for number, row, what in bad_rows:
        bad.note(int(episodes.numbers[number]), row, what, read_as=number)
    if known is not None:
        rows[next_key(SUCCESS)] = (done & (steps["team_reward"][steps["is_row"]] > known.success_above)).unsqueeze(-1)
    usable = torch.ones_like(done) if episodes.final_row else terminated | ~truncated
    if not usable.all():
        findings.append(
            f"{int((~usable).sum())} truncated rows have no recorded successor and do not count in training"
        )
    if layout.has_mask:
        open_unused_masks(rows, terminated | ~usable, findings)
    name = (known.task if known else None) if task == "auto" else task
    low, high = action_bounds or (-1.0, 1.0)
    spec = TaskSpec(
        layout.agents,
        layout.observation,
        state_size,
        layout.actions,
        discrete=layout.discrete,
        action_low=low,
        action_high=high,
        has_action_mask=layout.has_mask,
        task=name,
    )
    metadata: dict[str, Any] = {
        "source": f"pymarl:{path}",
        "task": name,
        "task_options": known.options if known else {},
        "time_limit": limit,
        "team_reward": layout.team_reward,
        "findings": findings,
    }
    if layout.state is None:
        metadata["state"] = "joint observation"
    data = assemble(rows, terminated=terminated, truncated=truncated, mask=usable, final_actions=final_actions)
    try:
        return OfflineDataset(data, spec, bad.into(rounding.into(metadata)))
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def _parts(folder: Path) -> list[Path]:
    """Return a folder's ``part_<k>.h5`` in order, or nothing where it holds none."""
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        match = re.fullmatch(r"part_(\d+)\.(h5|hdf5)", file.name)
        if match and (twin := found.setdefault(int(match[1]), file)) is not file:
            raise DatasetError(f"{folder} has two parts {int(match[1])}, {twin.name} and {file.name}; keep one.")
    if not found:
        return []
    missing = sorted(set(range(min(found), max(found))) - found.keys())
    if missing or min(found) > 1:
        raise DatasetError(
            f"{folder} lacks part_{missing[0] if missing else 0}.h5; fetch it, or read the parts one by one."
        )
    return [found[number] for number in sorted(found)]


def _joined(folder: Path, parts: list[OfflineDataset]) -> OfflineDataset:
    """Put the parts end to end; the findings and the bad episodes tell their part."""
    metadata = dict(parts[0].metadata) | {"source": f"pymarl:{folder}"}
    metadata["findings"] = [f"part {i}: {found}" for i, part in enumerate(parts) for found in part.metadata["findings"]]
    bad, read = [], 0
    for number, part in enumerate(parts):
        for record in part.metadata.get(KEY, []):
            shifted = None if record["id"] is None else record["id"] + read
            bad.append(record | {"what": f"{record['what']} (part {number})", "id": shifted})
        read += part.n_episodes
    return concatenate(parts, metadata=metadata | ({KEY: bad} if bad else {}))


def _read_steps(
    path: Path, file: h5py.File, layout: Layout, episodes: Episodes, rounding: Rounding
) -> dict[str, torch.Tensor | np.ndarray]:
    """Read the filled steps of all episodes end to end, a few episodes at a time: the padding never piles up.

    Each field is there once, observations as float32 and legal actions as bools.

    Each field is ``[F, ...]``, ``F`` filled steps; ``is_row`` marks those where a transition starts, ``is_last`` the
    start of each episode's last transition, ``episode`` counts the episodes that are read.
    """
    steps: dict[str, Any] = {}
    lengths, done = episodes.lengths, 0
    kinds = {"obs": np.float32, "legals": np.bool_}
    time = np.arange(file["filled"].shape[1])
    for start in range(0, len(lengths), _EPISODES_AT_ONCE):
        chosen = slice(start, start + _EPISODES_AT_ONCE)
        keep = time < lengths[chosen, None]
        for name in layout.fields:
            values = read_field(path, file, layout.fields[name], chosen)[keep]
            if name in ("obs", "state", "reward"):
                rounding.seen(values, layout.fields[name])
            if name not in steps:
                steps[name] = np.empty((int(lengths.sum()), *values.shape[1:]), kinds.get(name, values.dtype))
            steps[name][done : done + len(values)] = values
        done += int(keep.sum())
    count = len(steps["reward"])
    reward = as_float(steps["reward"]).reshape(count, -1)  # [F, 1] or [F, n]
    steps["reward"], steps["team_reward"] = reward, reward.mean(-1)
    kept = torch.from_numpy(lengths[lengths > 0])
    final = kept.cumsum(0) - 1
    steps["episode"] = torch.arange(len(kept)).repeat_interleave(kept)
    steps["is_row"] = torch.ones(count, dtype=torch.bool)
    steps["is_last"] = torch.zeros(count, dtype=torch.bool)
    steps["is_row"][final] = not episodes.final_row
    steps["is_last"][final - int(episodes.final_row)] = True
    steps["marked"] = torch.from_numpy(episodes.marked[lengths > 0])  # [E] of those that are read
    return steps


def _rows(
    steps: dict[str, Any], layout: Layout, episodes: Episodes, findings: list[str]
) -> tuple[dict, tuple[torch.Tensor, torch.Tensor] | None, int, list[tuple[int, int, str]]]:
    """Return the leaves by layout key, the actions chosen at the final observations where they are recorded, the size
    of the state, and of the bad rows the episode that was read, the step in it and what is wrong.
    """
    here, bad = steps["is_row"].nonzero()[:, 0], BadRows()
    there = here + (1 if episodes.final_row else (~steps["is_last"][here]).long())
    values = {OBSERVATION: as_float(steps.pop("obs"))}
    state_size = layout.agents * layout.observation
    if layout.state is not None:
        state_size, convert = one_state(steps["state"], findings, bad)
        values[STATE] = convert(steps.pop("state"), 0)
    if layout.has_mask:
        values[ACTION_MASK] = torch.from_numpy(steps["legals"])
    if layout.discrete:
        actions, wrong = indices(steps["actions"], agents=layout.agents, n_actions=layout.actions, name="actions")
        wrong &= steps["is_row"].numpy()  # what a writer leaves at a final observation is no action
        bad.add(wrong, 0, "an action is no whole number (or no one-hot row)")
        if 2 * wrong.sum() > len(here):
            raise DatasetError(
                "actions are not whole numbers, though their number is given; pass legals='' and action_bounds= to "
                "read continuous ones."
            )
        actions = torch.from_numpy(actions)
    else:
        actions = as_float(steps["actions"]).reshape(len(steps["actions"]), layout.agents, -1)
    rows: dict = {}
    for key in list(values):
        value = values.pop(key)  # so that no more than one is there twice over
        rows[key], rows[next_key(key)] = value[here], value[there]
    if layout.state is None:
        for key, joint in ((OBSERVATION, STATE), (next_key(OBSERVATION), next_key(STATE))):
            rows[joint] = rows[key].flatten(1).clone()
    rows[ACTION] = actions[here]
    reward = steps["reward"][here]
    rows[next_key(REWARD)] = (
        shared_reward(reward[:, 0], layout.agents) if reward.shape[1] == 1 else reward.unsqueeze(-1).contiguous()
    )
    found = []
    starts = torch.searchsorted(steps["episode"], torch.arange(int(steps["episode"][-1]) + 1))
    for row, what in bad.taken(before=len(steps["episode"])):
        number = int(steps["episode"][row])
        found.append((number, row - int(starts[number]), what))
    return rows, _final_actions(steps, layout, episodes, actions, there), state_size, found


def _final_actions(
    steps: dict[str, Any], layout: Layout, episodes: Episodes, actions: torch.Tensor, there: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the actions at the next steps and whether each is a choice that the policy could make."""
    if not episodes.final_row or not actions[~steps["is_row"]].any():
        return None  # a writer that leaves the padding's zeros there recorded no choice
    recorded = actions[there]
    if not layout.discrete:
        return recorded, torch.ones(len(recorded), dtype=torch.bool)
    known = (recorded >= 0) & (recorded < layout.actions)
    if layout.has_mask:
        legal = torch.from_numpy(steps["legals"])[there]
        known &= legal.gather(-1, recorded.clamp(0, layout.actions - 1).unsqueeze(-1)).squeeze(-1)
    return recorded, known.all(-1)


def _ends(
    path: Path, steps: dict[str, Any], limit: int | None, success_above: float, findings: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``terminated`` and ``truncated`` ``[T]``, with the time limit told from the task's end."""
    is_row = steps["is_row"]
    last, marked = steps["is_last"][is_row], steps["marked"]
    transitions = torch.bincount(steps["episode"][is_row], minlength=len(marked))
    if limit is not None and int(transitions.max()) > limit:
        raise DatasetError(
            f"{path} has an episode of {int(transitions.max())} transitions, beyond time_limit={limit}; pass the "
            "task's time limit, or time_limit=None."
        )
    longest = int(transitions.max()) if limit is None else limit
    failed = steps["team_reward"][is_row][last] <= success_above
    at_limit = (transitions == longest) & failed & marked  # [E]
    terminated = torch.zeros_like(last)
    terminated[last] = marked
    if limit is None:
        if int(at_limit.sum()) > 1:
            findings.append(
                f"{int(at_limit.sum())} episodes end as terminated after the greatest length, {longest}, without "
                "success: a time limit? If so, read the file with time_limit= that length"
            )
    elif at_limit.any():
        terminated[last] = marked & ~at_limit
        findings.append(
            f"{int(at_limit.sum())} episodes stopped by the time limit of {limit} steps were recorded as terminated; "
            "they are read as truncated"
        )
    return terminated, last & ~terminated
