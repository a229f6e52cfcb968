"""Lists of episodes and mappings of agents, laid end to end into the arrays of one time axis.

============================================  ==========================================================
what is given                                 what it is read as
============================================  ==========================================================
an array or a tensor                          ``[T, ...]``, all episodes end to end
a list of arrays ``[L, n, ...]``              one for each episode; every other array then is a list, too
a mapping agent -> ``[T, ...]``               agents in its order; short observations get zeros, short masks
                                              illegal actions
a list of mappings                            one for each episode
============================================  ==========================================================

Episodes of arrays may have unequal numbers of agents ``n``: fewer are filled up, and the added ones are masked.

Everything else that might mean two things is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from torchrl_marl_offline.data.transitions.bad_episodes import BadEpisodes
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.values import as_array, flag_array

PADDED = ("observations", "next_observations", "action_mask", "next_action_mask")
"""What may be narrower for some agents than for others."""
WITH_FINAL = {"observations": "next_observations", "state": "next_state", "action_mask": "next_action_mask"}
"""What an episode may hold one more of than of actions, and what that gives."""
FLAGS = ("terminals", "truncations")
OF_AGENTS = ("observations", "actions", "rewards", *FLAGS, "next_observations", "action_mask", "next_action_mask")
"""What has an axis of agents behind that of time, where it has a second axis at all."""


def end_to_end(arrays: Mapping[str, Any], bad: BadEpisodes, notes: dict[str, Any]) -> dict[str, Any]:
    """Return arrays or tensors with one time axis each, and ``None`` where nothing is given.

    Args:
        arrays: those of :func:`~.arrays.from_arrays` by name.
        bad: where episodes are noted whose arrays do not fit together; they are left out.
        notes: sizes of agents that are padded, and findings, are added.

    Raises:
        DatasetError: what is given is ambiguous, or does not fit together.
    """
    given = {name: _unpacked(values) for name, values in arrays.items() if values is not None}
    if _is_of_episodes(given["observations"]):
        flat: dict[str, Any] = _joined(given, bad, notes)
    else:
        _refuse_two_meanings(given)
        names: list[str] = []
        flat = {name: _single(values, name, names, notes) for name, values in given.items()}
    return dict.fromkeys(arrays) | flat


def _unpacked(values: Any) -> Any:
    """Return nested tensors and arrays of arrays as lists."""
    if isinstance(values, torch.Tensor) and values.is_nested:
        return list(values.unbind())
    if isinstance(values, np.ndarray) and values.dtype == object and values.ndim == 1 and len(values):
        return list(values) if all(isinstance(part, np.ndarray | Mapping) for part in values) else values
    return list(values) if isinstance(values, tuple) else values


def _is_of_episodes(observations: Any) -> bool:
    """Say whether observations are a list of one array ``[L, n, o]``, or one mapping, for each episode."""
    if not isinstance(observations, list) or not observations:
        return False
    return any(isinstance(part, Mapping) or np.ndim(_dense(part)) == 3 for part in observations)


def _refuse_two_meanings(given: Mapping[str, Any]) -> None:
    """Refuse a list of arrays ``[k, o]`` beside one of rewards ``[k]``: steps of ``k`` agents, or episodes of one."""
    observations, rewards = given["observations"], given["rewards"]
    if not (_is_list_of_arrays(observations) and _is_list_of_arrays(rewards)):
        return
    shapes = {tuple(np.shape(part)) for part in observations}
    if len(shapes) == 1 and len(shape := shapes.pop()) == 2 and all(np.ndim(part) == 1 for part in rewards):
        raise DatasetError(
            f"observations is a list of {len(observations)} arrays {list(shape)}, which may be steps of {shape[0]} "
            f"agents or episodes of {shape[0]} steps; give numpy.stack(...) of each list for steps, and for episodes "
            "arrays [L, n, ...], with n = 1 for one agent."
        )


def _dense(part: Any) -> Any:
    return part if isinstance(part, np.ndarray | torch.Tensor) else as_array(part, "observations")


def _single(values: Any, name: str, names: list[str], notes: dict[str, Any]) -> Any:
    """Return one array ``[T, ...]`` of an array, nested lists of numbers or a mapping of agents."""
    if isinstance(values, Mapping):
        return _of_agents(values, name, names, notes)
    if isinstance(values, torch.Tensor):
        return values
    shapes = {np.shape(part) for part in values} if _is_list_of_arrays(values) else set()
    if len(shapes) > 1:
        told = ", ".join(map(str, sorted(shapes, key=str)[:3]))
        raise DatasetError(
            f"{name} is a list of arrays of unequal shapes ({told}); give episodes as a list of [L, n, ...] in every "
            "argument, or agents as a mapping {'agent_0': [T, ...], ...}."
        )
    return as_array(values, name)


def _is_list_of_arrays(values: Any) -> bool:
    return isinstance(values, list) and any(isinstance(part, np.ndarray | torch.Tensor) for part in values)


# Agents


def _of_agents(parts: Mapping[Any, Any], name: str, names: list[str], notes: dict[str, Any]) -> np.ndarray:
    """Stack the agents' arrays to ``[T, n, ...]``; the first mapping sets the agents and their order in ``names``."""
    if not names:
        names += _agents(parts, name)
    by_name = {str(agent): _unpacked(values) for agent, values in parts.items()}
    if len(by_name) != len(parts) or set(by_name) != set(names):
        found = ", ".join(map(str, parts))
        raise DatasetError(f"{name} has the agents {found}, not {', '.join(names)}; name the same ones everywhere.")
    for agent in names:
        if _holds_episodes(by_name[agent], name):
            form = ", ".join(f"{each!r}: [L, ...]" for each in names[:2]) + (", ..." if len(names) > 2 else "")
            raise DatasetError(
                f"{name} of {agent} is a list of episodes; give episodes of named agents as a list with one mapping "
                f"for each episode, [{{{form}}}, ...], in every argument that names agents."
            )
    arrays = [as_array(by_name[agent], f"{name} of {agent}") for agent in names]
    lengths = {agent: array.shape[:1] for agent, array in zip(names, arrays)}
    if len(set(lengths.values())) > 1 or () in lengths.values():
        told = ", ".join(f"{agent} {array.shape}" for agent, array in zip(names, arrays))
        raise DatasetError(
            f"{name} has shapes that differ in time between agents ({told}); fill up the rows of agents that die "
            "early, and give agent_mask."
        )
    if name not in PADDED and len({array.shape for array in arrays}) > 1:
        told = ", ".join(f"{agent} {array.shape}" for agent, array in zip(names, arrays))
        raise DatasetError(f"{name} has shapes that differ between agents ({told}); bring them to one width.")
    if name not in PADDED:
        return np.stack(arrays, 1)
    if any(array.ndim != 2 for array in arrays):
        told = ", ".join(f"{agent} {array.shape}" for agent, array in zip(names, arrays))
        raise DatasetError(f"{name} of an agent must be [T, size], got {told}; flatten what an agent sees at a step.")
    widths = [array.shape[1] for array in arrays]
    if len(set(widths)) > 1 and name == "observations":
        notes["observation_sizes"] = widths
    return np.stack([np.pad(array, ((0, 0), (0, max(widths) - array.shape[1]))) for array in arrays], 1)


def _holds_episodes(values: Any, name: str) -> bool:
    """Say whether what a mapping gives for one agent is a list with a series ``[L, ...]`` for each episode."""
    if not isinstance(values, list):
        return False
    try:
        shapes = {tuple(np.shape(part)) for part in values}
    except ValueError:  # ragged lists within it, of which as_array speaks
        return False
    return len({shape[:1] for shape in shapes}) > 1 or (name in PADDED and any(len(shape) > 1 for shape in shapes))


def _agents(parts: Mapping[Any, Any], name: str) -> list[str]:
    """Return the agents' names; where they are numbered, no number may be missing or occur twice."""
    names = [str(agent) for agent in parts]
    matches = [re.fullmatch(r"(.*?)(\d+)", agent) for agent in names]
    stems: dict[str, list[int]] = {}
    for match in matches:
        if match:
            stems.setdefault(match[1], []).append(int(match[2]))
    for stem, numbers in stems.items():
        whole = set(range(min(numbers), max(numbers) + 1))
        if len(set(numbers)) != len(numbers) or set(numbers) != whole or min(numbers) > 1:
            missing = sorted(set(range(max(numbers))) - set(numbers))
            what = f"{stem}{missing[0]} is missing" if missing else "one number occurs twice"
            raise DatasetError(
                f"{name} has the agents {', '.join(names)}: {what}; give every agent, or names without such numbers."
            )
    if not names:
        raise DatasetError(f"{name} names no agent; give one array for each.")
    return names


# Episodes


def _joined(given: dict[str, Any], bad: BadEpisodes, notes: dict[str, Any]) -> dict[str, Any]:
    count = len(given["observations"])
    for name, values in given.items():
        if not isinstance(values, list) and not (name in (*FLAGS, "success") and np.ndim(values) == 1):
            raise DatasetError(f"{name} must be a list of one array for each of the {count} episodes, as observations.")
        if len(values) != count:
            raise DatasetError(f"{name} has {len(values)} episodes, observations {count}; give one array for each.")
    names: list[str] = []
    episodes = [_episode(given, number, names, bad, notes) for number in range(count)]
    if not names:
        episodes = _filled_up(episodes, notes)
    by_agent = any(episode[name].ndim > 1 for episode in episodes if episode for name in FLAGS if name in episode)
    read = [episode for episode in episodes if episode is not None]
    finals = [_has_final(episode) for episode in read]
    with_final = 2 * sum(finals) > len(finals)
    usual = Counter(_widths(episode) for episode in read).most_common(1)[0][0] if read else None
    good = []
    for number, episode in enumerate(episodes):
        what = None if episode is None else _problem(episode, with_final, usual)
        if what is not None:
            bad.note(number, None, what)
        elif episode is not None:
            good.append(_with_ends(_split_final(episode) if with_final else episode, by_agent, notes))
    if not good:
        raise DatasetError("No episode can be read; give one array [L, n, ...] for each episode in every argument.")
    return {name: np.concatenate([episode[name] for episode in good]) for name in good[0]}


def _episode(
    given: dict[str, Any], number: int, names: list[str], bad: BadEpisodes, notes: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the arrays of one episode, or ``None`` where they are bad already."""
    try:
        return {name: np.asarray(_part(values[number], name, names, notes)) for name, values in given.items()}
    except DatasetError as error:
        bad.note(number, None, str(error).rstrip("."))
        return None


def _filled_up(episodes: list[dict[str, Any] | None], notes: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Fill episodes of fewer agents up, and mask the added ones.

    They do what the first agent does, so that their actions are within bounds, and see zeros.
    """
    counts = [_count(episode) for episode in episodes]
    known = [count for count in counts if count]
    if len(set(known)) < 2:
        return episodes
    most = max(known)
    notes.setdefault("findings", []).append(
        f"episodes have {min(known)} to {most} agents: they were filled up to {most}, and the added ones do not count"
    )
    return [episode if not count else _with_agents(episode, most - count) for episode, count in zip(episodes, counts)]


def _count(episode: dict[str, Any] | None) -> int | None:
    """Return the number of agents, which all arrays of an episode agree about; ``None`` where they do not."""
    if episode is None or episode["observations"].ndim != 3:
        return None
    found = {
        episode[name].shape[1] for name in (*OF_AGENTS, "agent_mask") if name in episode and episode[name].ndim > 1
    }
    return found.pop() if len(found) == 1 else None


def _with_agents(episode: dict[str, Any], more: int) -> dict[str, Any]:
    filled = dict(episode)
    filled.setdefault("agent_mask", np.ones((len(episode["actions"]), episode["observations"].shape[1]), bool))
    for name in (*OF_AGENTS, "agent_mask"):
        values = filled.get(name)
        if values is None or values.ndim < 2 or more == 0:
            continue
        shape = (len(values), more, *values.shape[2:])
        if name == "actions":
            added = np.repeat(values[:, :1], more, 1)
        elif name in FLAGS:
            added = np.repeat(values.any(1, keepdims=True), more, 1)
        else:
            added = np.zeros(shape, values.dtype)
        filled[name] = np.concatenate([values, added], 1)
    return filled


def _part(values: Any, name: str, names: list[str], notes: dict[str, Any]) -> np.ndarray:
    part = _single(values, name, names, notes)
    return flag_array(part, name) if name in FLAGS else as_array(part, name)


def _has_final(episode: dict[str, Any]) -> bool:
    return "next_observations" not in episode and len(episode["observations"]) == len(episode["actions"]) + 1


def _widths(episode: dict[str, Any]) -> tuple:
    """Return what all episodes must share: the number of agents, the widths."""
    return tuple((name, array.shape[1:]) for name, array in episode.items() if name not in (*FLAGS, "success"))


def _problem(episode: dict[str, Any], with_final: bool, usual: tuple | None) -> str | None:
    """Say what is wrong with an episode, or return ``None``."""
    if any(array.ndim == 0 for name, array in episode.items() if name not in (*FLAGS, "success")):
        return "an array of it has no time axis"
    length = len(episode["actions"])
    for name, array in episode.items():
        if array.ndim == 0:
            continue  # one flag for the episode
        wanted = length + (with_final and name in WITH_FINAL and (name == "observations" or len(array) != length))
        if len(array) != wanted or length == 0:
            return f"it has {length} actions and {len(array)} {name}"
    if _widths(episode) != usual:
        other = next((mine, theirs) for mine, theirs in zip(_widths(episode), usual) if mine != theirs)
        return f"its {other[0][0]} have rows of shape {other[0][1]}, those of most episodes {other[1][1]}"
    ended = _ended(episode, length)
    if ended is not None and ended[:-1].all(-1).any():
        return "it is marked as ended before its last step"
    return None


def _ended(episode: dict[str, Any], length: int) -> np.ndarray | None:
    """Return ``[L, n]`` or ``[L, 1]`` bool, which agents have ended up to each step; ``None`` without such flags."""
    ended = None
    for name in FLAGS:
        flags = episode.get(name)
        if flags is not None and flags.ndim:
            flags = np.maximum.accumulate(flags.reshape(length, -1), 0)
            ended = flags if ended is None else ended | flags
    return ended


def _split_final(episode: dict[str, Any]) -> dict[str, Any]:
    length = len(episode["actions"])
    split = dict(episode)
    for name, following in WITH_FINAL.items():
        if name in episode and len(episode[name]) == length + 1:
            split[name], split[following] = episode[name][:-1], episode[name][1:]
    return split


def _with_ends(episode: dict[str, Any], by_agent: bool, notes: dict[str, Any]) -> dict[str, Any]:
    """Let the episode end at its last step: it is truncated if nothing says how."""
    length, agents = episode["observations"].shape[:2]
    shape = (length, agents) if by_agent else (length,)
    for name in FLAGS:
        flags = episode.get(name, np.zeros((), bool))
        full = np.zeros(shape, bool)
        if flags.ndim == 0:
            full[-1] = flags
        else:
            full[:] = flags.reshape(length, -1) if by_agent else flags
        episode[name] = full
    open_ended = ~(episode["terminals"] | episode["truncations"]).any(0)
    if open_ended.any():
        episode["truncations"][-1] |= open_ended
        finding = "an episode of the lists that is not marked as ended was taken as truncated"
        if finding not in notes.setdefault("findings", []):
            notes["findings"].append(finding)
    if "success" in episode and episode["success"].ndim == 0:
        success = np.zeros(length, bool)
        success[-1] = episode["success"]
        episode["success"] = success
    return episode
