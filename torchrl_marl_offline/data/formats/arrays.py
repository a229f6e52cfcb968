"""Datasets from NumPy arrays or tensors with one long time axis."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch

from torchrl_marl_offline.core.callers import outside
from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound, as_bound, checked_bounds
from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TaskSpec,
    next_key,
)
from torchrl_marl_offline.core.ranges import BOUNDS, REAL, WIDTHS
from torchrl_marl_offline.data.formats.episode_lists import end_to_end
from torchrl_marl_offline.data.quality.loading import load_inspected
from torchrl_marl_offline.data.transitions.agent_ends import AgentEnds, dead_agents_finding
from torchrl_marl_offline.data.transitions.assembly import (
    assemble,
    open_masks_of_the_dead,
    open_unused_masks,
    shared_reward,
    shift,
)
from torchrl_marl_offline.data.transitions.bad_episodes import BadEpisodes
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, DatasetWarning, values_are_checked
from torchrl_marl_offline.data.transitions.rounding import KEY, REMEDY, Rounding
from torchrl_marl_offline.data.transitions.validation import check_metadata
from torchrl_marl_offline.data.transitions.values import as_array, check_tensor, flag_array, indices, is_index_like

Array = np.ndarray | torch.Tensor
Arrays = Array | Sequence | Mapping[str, Any]
"""One array; or a list of one for each episode; or a mapping of one for each agent, or a list of those."""


@checked
def from_arrays(
    *,
    observations: Arrays,
    actions: Arrays,
    rewards: Arrays,
    terminals: Arrays,
    truncations: Arrays | None = None,
    next_observations: Arrays | None = None,
    state: Arrays | None = None,
    next_state: Arrays | None = None,
    action_mask: Arrays | None = None,
    next_action_mask: Arrays | None = None,
    agent_mask: Arrays | None = None,
    success: Arrays | None = None,
    n_actions: Annotated[int | None, WIDTHS] = None,
    action_bounds: Annotated[tuple[Bound, Bound] | Literal["data"], REAL, BOUNDS] = (-1.0, 1.0),
    task: str | None = None,
    spec: TaskSpec | None = None,
    metadata: dict[str, Any] | None = None,
    repair: bool = False,
) -> OfflineDataset:
    """Build a dataset from episodes end to end along time: ``T`` rows, ``n`` agents.

    The next observation (state, mask) of a row is the given one, else the next row's. The last row of an episode then
    has none: after a termination nothing is bootstrapped and its own values stand in; after a truncation the row must
    not count, and ``("collector", "mask")`` is false there. Rows after the last end are an episode that was cut off,
    and count as truncated.

    Each array may also be a list of one array for each episode, of unequal lengths and numbers of agents; where the
    observations of an episode are one more than its actions, the last is its final one. And each may be a mapping from
    agents' names to their arrays: ``[T, o_i]`` observations of unequal widths are then filled up with zeros. See
    :mod:`~.episode_lists`.

    An agent has ended where either of its own flags is set; from the next row on it is dead, and its rows do not count,
    until the episode ends, or until ``agent_mask`` is true again after it was false. An episode ends where the last of
    its agents ends (nobody waits for one that ``agent_mask`` leaves out), and is terminated if all agents that end
    there terminated.

    Args:
        observations: ``[T, n, o]``.
        actions: integer ``[T, n]`` or ``[T, n, 1]`` indices, or floating ``[T, n, a]``. Where the number of discrete
            actions is given, whole floats are indices, and ``[T, n, A]`` are one-hot.
        rewards: ``[T, n]`` (or ``[T, n, 1]``), or ``[T]`` for a team reward, which every agent then gets.
        terminals: ``[T]`` or ``[T, n]``, true (nonzero) where the task ended; of lists also one flag for each episode.
        truncations: like ``terminals``, true where the recording stopped although the task went on.
        next_observations: ``[T, n, o]``, the true next observations.
        state: ``[T, s]``; without it the joint observation is the state, and the metadata say so.
        next_state: ``[T, s]``, the true next states.
        action_mask: ``[T, n, A]``, legal discrete actions.
        next_action_mask: ``[T, n, A]``, legal actions at the next observations.
        agent_mask: ``[T, n]``, false for a dead or padding agent; without it, that of agents that end early is made of
            the flags.
        success: ``[T]``, true on a row whose next state is a success.
        n_actions: number of discrete actions, where neither ``action_mask`` nor ``spec`` gives it.
        action_bounds: lower and upper bound of a continuous action: of each, one number, one for each component, or a
            list of these for each agent; or ``"data"``, the range of what was recorded: see
            :meth:`OfflineDataset.with_bounds`.
        task: the task's name.
        spec: the task's sizes, instead of those of the arrays.
        metadata: JSON-ready; kept beside what is found here. ``"license"`` and ``"citation"`` are shown on the card.
        repair: mend what can be mended, and drop episodes that cannot be read; see :func:`~.loading.load_inspected`.

    Raises:
        DatasetError: the arrays' shapes disagree, or :func:`~.validation.validate` objects.
    """
    given: dict[str, Any] = {"observations": observations, "actions": actions, "rewards": rewards}
    given |= {"terminals": terminals, "truncations": truncations, "next_observations": next_observations}
    given |= {"state": state, "next_state": next_state, "action_mask": action_mask}
    given |= {"next_action_mask": next_action_mask, "agent_mask": agent_mask, "success": success}
    options = {"n_actions": n_actions, "action_bounds": action_bounds, "task": task, "spec": spec, "metadata": metadata}
    check_metadata({} if metadata is None else metadata)
    source = str((metadata or {}).get("source", "from_arrays"))
    if repair:
        return load_inspected(source, partial(from_arrays, **given, **options), repair=True)
    notes: dict[str, Any] = {}
    bad = BadEpisodes(source)
    given = end_to_end(given, bad, notes)
    return _from_flat(**given, **options, bad=bad, notes=notes)


def _from_flat(
    *,
    observations: Array,
    actions: Array,
    rewards: Array,
    terminals: Array,
    truncations: Array | None,
    next_observations: Array | None,
    state: Array | None,
    next_state: Array | None,
    action_mask: Array | None,
    next_action_mask: Array | None,
    agent_mask: Array | None,
    success: Array | None,
    n_actions: int | None,
    action_bounds: tuple[Bound, Bound] | Literal["data"],
    task: str | None,
    spec: TaskSpec | None,
    metadata: dict[str, Any] | None,
    bad: BadEpisodes,
    notes: dict[str, Any],
) -> OfflineDataset:
    """Do what :func:`from_arrays` does, of arrays with one time axis; what is found is added to ``notes``."""
    observation = _tensor(observations, "observations", torch.float32, (None, None, None))
    length, n_agents, width = observation.shape
    if 0 in observation.shape:
        raise DatasetError(
            f"observations has shape {tuple(observation.shape)}: {length} rows of {n_agents} agents that see {width} "
            "numbers; give at least one of each."
        )
    action, bad_actions = _action_tensor(actions, length, n_agents, _discrete_actions(n_actions, action_mask, spec))
    rows = {OBSERVATION: observation, ACTION: action}
    following = {OBSERVATION: (next_observations, "next_observations")}
    if state is not None:
        rows[STATE] = _tensor(state, "state", torch.float32, (length, None))
        following[STATE] = (next_state, "next_state")
    else:
        notes["state"] = "joint observation"
    if action_mask is not None:
        rows[ACTION_MASK] = _tensor(action_mask, "action_mask", torch.bool, (length, n_agents, None))
        following[ACTION_MASK] = (next_action_mask, "next_action_mask")
    rounding = Rounding()
    for name, values in (
        ("observations", observations),
        ("next_observations", next_observations),
        ("rewards", rewards),
    ):
        rounding.seen(values, name)
    rounding.seen(state, "state")
    rounding.seen(next_state, "next_state")
    rounding.into(notes)
    living = None if agent_mask is None else _tensor(agent_mask, "agent_mask", torch.bool, (length, n_agents))
    terminal, truncation = agent_flags(terminals, truncations, length, n_agents)
    ends = AgentEnds(n_agents).add(terminal, truncation, None if living is None else living.numpy())
    terminated, truncated, dead = map(torch.from_numpy, ends)
    close_last_episode(terminated, truncated, notes)
    done = terminated | truncated
    bad.note_rows(bad_actions, done, "an action is no index (or no one-hot row)")
    known_successor = all(given is not None for given, _ in following.values())
    for key, (given, name) in following.items():
        value = rows[key]
        rows[next_key(key)] = shift(value, done) if given is None else _tensor(given, name, value.dtype, value.shape)
    if state is None:
        rows[STATE] = observation.flatten(1)  # [T, n, o] -> [T, n * o]
        rows[next_key(STATE)] = rows[next_key(OBSERVATION)].flatten(1)
    ended_alone = torch.from_numpy(terminal) & (done & ~terminated).unsqueeze(-1)  # where the others were cut off
    living = _living(living, dead, ended_alone, notes)
    if living is not None:
        rows[AGENT_MASK], rows[next_key(AGENT_MASK)] = living, shift(living, done) & ~ended_alone
    rows[next_key(REWARD)] = _reward_tensor(rewards, length, n_agents, notes)
    if success is not None:
        rows[next_key(SUCCESS)] = _tensor(success, "success", torch.bool, (length,)).unsqueeze(-1)
    if spec is None:
        given = (-1.0, 1.0) if isinstance(action_bounds, str) else action_bounds
        spec = _spec_of(rows, n_actions, given, task)
    usable = torch.ones_like(done) if known_successor else ~(truncated & ~terminated)
    if not usable.all():
        _note(notes, f"{int((~usable).sum())} truncated rows have no recorded successor and do not count in training")
    if spec.has_action_mask:
        open_unused_masks(rows, terminated | ~usable, notes.setdefault("findings", []))
        open_masks_of_the_dead(rows, notes["findings"])
    data = assemble(rows, terminated=terminated, truncated=truncated, mask=usable)
    notes["findings"] = [*(metadata or {}).get("findings", []), *notes.get("findings", [])]
    notes |= {KEY: [*(metadata or {}).get(KEY, []), *notes[KEY]]} if KEY in notes else {}
    if values_are_checked() and "source" not in (metadata or {}):  # else a reader's, which load_dataset inspects
        for sentence in notes.get(KEY, []):
            warnings.warn(f"from_arrays: {sentence}; {REMEDY}.", DatasetWarning, outside())
    metadata = bad.into({"source": "from_arrays"} | (metadata or {}) | notes)
    if not isinstance(action_bounds, str):
        return OfflineDataset(data, spec, metadata)
    return OfflineDataset(data, spec, metadata, check=False).with_bounds("data")


def _note(notes: dict[str, Any], finding: str) -> None:
    notes.setdefault("findings", []).append(finding)


def _tensor(values: Array, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> torch.Tensor:
    """Convert and check against ``shape``, where ``None`` allows any size."""
    if isinstance(values, torch.Tensor):
        check_tensor(values, name)
        tensor = values
    else:
        array = flag_array(values, name) if dtype == torch.bool else as_array(values, name)
        # A read-only NumPy array (a memory map) makes torch warn: copy it.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if dtype == torch.bool and tensor.is_floating_point() and tensor.isnan().any():
        raise DatasetError(f"{name} holds NaN, which is neither true nor false; write 0 or 1 there.")
    fits = tensor.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, tensor.shape))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        flat = name.endswith(("observations", "state")) and tensor.ndim > len(shape)
        remedy = (
            f"flatten pictures and the like by reshape({', '.join(map(str, tensor.shape[: len(shape) - 1]))}, -1)"
            if flat
            else "put time first, then agents"
        )
        raise DatasetError(f"{name} has shape {tuple(tensor.shape)} instead of [{wanted}]; {remedy}.")
    return (tensor != 0 if dtype == torch.bool else tensor.to(dtype)).contiguous()


def _discrete_actions(n_actions: int | None, action_mask: Array | None, spec: TaskSpec | None) -> int | None:
    """Return the number of discrete actions: 0 where it is not known, ``None`` where the spec has continuous ones."""
    if spec is not None:
        return spec.action_size if spec.discrete else None
    if action_mask is not None and len(action_mask.shape) == 3:
        return int(action_mask.shape[-1])
    return n_actions or 0


def _action_tensor(
    actions: Array, length: int, n_agents: int, n_actions: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the actions, and ``[T]`` bool, which rows hold none."""
    array = as_array(actions, "actions")
    device = actions.device if isinstance(actions, torch.Tensor) else None
    fine = torch.zeros(length, dtype=torch.bool, device=device)
    if n_actions is None or not (n_actions or is_index_like(array.dtype)):
        given = array if device is None else actions
        return _tensor(given, "actions", torch.float32, (length, n_agents, None)), fine
    if array.shape[:2] != (length, n_agents):
        raise DatasetError(f"actions has shape {array.shape} instead of [{length}, {n_agents}]; put time first.")
    found, bad = indices(array, agents=n_agents, n_actions=n_actions or None, name="actions")
    if 2 * bad.sum() > length:
        raise DatasetError(
            "actions holds no indices, though n_actions=, action_mask= or spec= says that actions are discrete; give "
            "indices, or leave these out for continuous actions."
        )
    return torch.from_numpy(found).to(device), torch.from_numpy(bad).to(device)


def _reward_tensor(rewards: Array, length: int, n_agents: int, notes: dict[str, Any]) -> torch.Tensor:
    rewards = rewards if isinstance(rewards, torch.Tensor) else as_array(rewards, "rewards")
    shape = tuple(rewards.shape)
    notes["team_reward"] = len(shape) == 1
    if len(shape) == 1:
        team = _tensor(rewards, "rewards", torch.float32, (length,))
        return shared_reward(team, n_agents)
    if len(shape) == 3:
        return _tensor(rewards, "rewards", torch.float32, (length, n_agents, 1))
    return _tensor(rewards, "rewards", torch.float32, (length, n_agents)).unsqueeze(-1)


def agent_flags(
    terminals: Array, truncations: Array | None, length: int, n_agents: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``terminals`` and ``truncations`` of each agent, ``[T, n]`` bool.

    Args:
        terminals: ``[T]`` or ``[T, n]``, nonzero where the task ended.
        truncations: like ``terminals``, where the recording stopped although the task went on.
        length: ``T``.
        n_agents: ``n``.
    """

    def per_agent(values: Array | None, name: str) -> np.ndarray:
        if values is None:
            return np.zeros((length, n_agents), dtype=bool)
        shape = (length,) if values.ndim == 1 else (length, n_agents)
        flags = _tensor(values, name, torch.bool, shape)
        return (flags.unsqueeze(-1).expand(-1, n_agents) if values.ndim == 1 else flags).numpy()

    return per_agent(terminals, "terminals"), per_agent(truncations, "truncations")


def _living(
    mask: torch.Tensor | None, dead: torch.Tensor, ended_alone: torch.Tensor, notes: dict[str, Any]
) -> torch.Tensor | None:
    """Return ``[T, n]`` which agents count by their mask, if there is one, and by their own ends."""
    if mask is None and not (dead.any() or ended_alone.any()):
        return None
    mask = torch.ones_like(dead) if mask is None else mask
    if (mask & dead).any():
        _note(notes, dead_agents_finding(int((mask & dead).sum())))
    return mask & ~dead


def close_last_episode(terminated: torch.Tensor, truncated: torch.Tensor, notes: dict[str, Any]) -> None:
    """Let the last of the rows end an episode, in place; what is found is added to the ``"findings"`` of ``notes``."""
    ended = terminated | truncated
    if not ended[-1]:
        truncated[-1] = True
        _note(notes, "the rows after the last end of an episode were taken as one truncated episode")
    if not ended[:-1].any():
        _note(notes, f"no episode ends before the last of the {len(ended)} rows: is `terminals` set at all?")


def _spec_of(rows: dict, n_actions: int | None, bounds: tuple[float, float], task: str | None) -> TaskSpec:
    if len(bounds) != 2:
        raise DatasetError(f"action_bounds={bounds} must be two, the lower one first.")
    low, high = map(as_bound, bounds)
    low, high = (float(bound) if isinstance(bound, int) else bound for bound in (low, high))
    action, mask = rows[ACTION], rows.get(ACTION_MASK)
    discrete = not action.is_floating_point()
    if discrete and mask is None and n_actions is None:
        raise DatasetError("Discrete actions need their number; pass n_actions=, action_mask= or spec=.")
    size = action.shape[-1]
    if discrete:
        size = mask.shape[-1] if mask is not None else n_actions
        if n_actions not in (None, size):
            raise DatasetError(f"n_actions={n_actions}, but action_mask has {size} columns; pass only one of them.")
    if not discrete:
        sizes = {"agents": rows[OBSERVATION].shape[1], "components": size}
        try:
            low, high = checked_bounds(low, high, names=("The lower one of action_bounds", "the upper one"), **sizes)
        except ValueError as error:
            raise DatasetError(str(error)) from error
    elif isinstance(low, tuple) or isinstance(high, tuple):
        raise DatasetError("action_bounds= are of continuous actions, and these are indices; leave them out.")
    return TaskSpec(
        n_agents=rows[OBSERVATION].shape[1],
        observation_size=rows[OBSERVATION].shape[2],
        state_size=rows[STATE].shape[1],
        action_size=size,
        discrete=discrete,
        action_low=low,
        action_high=high,
        has_action_mask=mask is not None,
        task=task,
    )
