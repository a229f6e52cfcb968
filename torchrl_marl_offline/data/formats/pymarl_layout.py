"""Which of its variants a PyMARL file is: names and shapes of its arrays, and where its episodes end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from torchrl_marl_offline.data.formats.hdf5 import check_arrays
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError
from torchrl_marl_offline.data.transitions.values import flag_array, is_index_like

if TYPE_CHECKING:
    import h5py

    from torchrl_marl_offline.data.transitions.bad_episodes import BadEpisodes

REQUIRED = ("obs", "actions", "reward", "terminated", "filled")
_LOOKS_LIKE = {"state": r"state|share|global|joint", "legals": r"legal|avail|mask|valid"}
_USUAL = {"state": ("state", "obs"), "legals": ("avail_actions", "")}
"""Option -> the array's usual name, and what to give for none."""


@dataclass(frozen=True)
class Layout:
    """Names and sizes of a file's arrays.

    Args:
        fields: what is read step by step -> the array's name.
        agents: ``n``.
        observation: width of an observation.
        state: width of the state, ``None`` where the joint observation stands in.
        actions: number of discrete actions, or width of a continuous one.
        discrete: whether actions are indices (or one-hot).
        has_mask: whether legal actions are recorded.
        team_reward: whether there is one reward for all agents.
    """

    fields: dict[str, str]
    agents: int
    observation: int
    state: int | None
    actions: int
    discrete: bool
    has_mask: bool
    team_reward: bool


def read_layout(
    path: Path,
    file: h5py.File,
    *,
    n_actions: int | None,
    bounds: tuple[float, float] | None,
    state: str | None,
    legals: str | None,
) -> Layout:
    """Check names, types and shapes; the options are those of :func:`~.pymarl.read_pymarl`."""
    missing = [name for name in REQUIRED if name not in file]
    if missing:
        raise DatasetError(
            f"{path} lacks {', '.join(missing)} (it has {', '.join(sorted(file)) or 'nothing'}); it is not a PyMARL "
            "file, or not a whole one: use the reader of its format, from_arrays(), or fetch it again."
        )
    fields = {name: name for name in ("obs", "actions", "reward")}
    for option, chosen in (("state", state), ("legals", legals)):
        name = _chosen_array(path, file, option, chosen)
        fields |= {} if name is None else {option: name}
    check_arrays(file, {*REQUIRED, *fields.values(), *({"actions_onehot"} & file.keys())})
    _check_shapes(path, file, fields)
    _, _, agents, observation = file["obs"].shape
    discrete, actions = _action_kind(path, file, fields, n_actions, bounds)
    return Layout(
        fields,
        agents,
        observation,
        file[fields["state"]].shape[-1] if "state" in fields else None,
        actions,
        discrete,
        "legals" in fields,
        file["reward"].shape[2:] in ((), (1,)),
    )


def _chosen_array(path: Path, file: h5py.File, option: str, chosen: str | None) -> str | None:
    """Return the name of the array of an option, or ``None`` where there is none."""
    usual, nothing = _USUAL[option]
    if chosen is not None and chosen not in (*file, nothing):
        raise DatasetError(f"{path} holds no {chosen!r} for {option}=; it has {', '.join(sorted(file))}.")
    if chosen is not None or usual in file:
        name = usual if chosen is None else chosen
        return None if name == nothing else name
    others = [name for name in file if name not in REQUIRED and re.search(_LOOKS_LIKE[option], name, re.IGNORECASE)]
    if others:
        raise DatasetError(
            f"{path} has no {usual}, but {', '.join(others)}; pass {option}={others[0]!r}, or {option}={nothing!r} to "
            "read it without."
        )
    return None


def _check_shapes(path: Path, file: h5py.File, fields: dict[str, str]) -> None:
    shapes = {name: tuple(file[name].shape) for name in (*REQUIRED, *fields.values())}
    obs = shapes["obs"]
    if len(obs) != 4:
        raise DatasetError(f"{path} has obs {obs} instead of obs [E, L, n, o]; use the reader of its format.")
    steps, agents = obs[:2], obs[2]
    per_step = {steps, (*steps, 1)}
    if shapes["terminated"] == (*steps, agents) and agents > 1:
        raise DatasetError(
            f"{path}: terminated has shape {shapes['terminated']}, one mark for each agent; write one for the team, "
            "[E, L], or pass the arrays to from_arrays(), which takes marks of agents."
        )
    fits = {
        "terminated": shapes["terminated"] in per_step,
        "filled": shapes["filled"] in per_step,
        "reward": shapes["reward"] in per_step | {(*steps, agents), (*steps, agents, 1)},
        "actions": shapes["actions"][:3] == (*steps, agents) and len(shapes["actions"]) in (3, 4),
    }
    if "state" in fields:
        state = shapes[fields["state"]]
        fits[fields["state"]] = state[:2] == steps and (len(state) == 3 or (len(state) == 4 and state[2] == agents))
    if "legals" in fields:
        legals = shapes[fields["legals"]]
        fits[fields["legals"]] = legals[:3] == (*steps, agents) and len(legals) == 4
    if "actions_onehot" in file:
        shapes["actions_onehot"] = onehot = tuple(file["actions_onehot"].shape)
        fits["actions_onehot"] = onehot[:3] == (*steps, agents) and len(onehot) == 4
    for name, right in fits.items():
        if not right:
            raise DatasetError(
                f"{path}: {name} has shape {shapes[name]} where obs {obs} asks for [E, L, ...] of the same episodes, "
                "steps and agents; fetch the file again, or pass the arrays to from_arrays()."
            )


def _action_kind(
    path: Path, file: h5py.File, fields: dict[str, str], n_actions: int | None, bounds: tuple[float, float] | None
) -> tuple[bool, int]:
    """Return whether actions are discrete, and their number or width."""
    shape, dtype = file["actions"].shape, file["actions"].dtype
    counts = {"n_actions": n_actions}
    if "legals" in fields:
        counts[fields["legals"]] = file[fields["legals"]].shape[-1]
    if bounds is None and "actions_onehot" in file:
        counts["actions_onehot"] = file["actions_onehot"].shape[-1]
    known = {name: count for name, count in counts.items() if count is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in known.items())
        raise DatasetError(f"{path} has numbers of actions that disagree ({told}); leave n_actions out.")
    if known:
        number = next(iter(known.values()))
        if bounds is not None:
            raise DatasetError(f"{path} has {number} discrete actions; leave action_bounds out, or pass legals=''.")
        if len(shape) == 4 and shape[3] not in (1, number):
            raise DatasetError(
                f"{path}: actions has shape {tuple(shape)} beside {number} discrete ones; one index per agent or "
                "one-hot rows can be read: pass legals='' and action_bounds= if they are continuous."
            )
        return True, number
    if is_index_like(dtype):
        raise DatasetError(f"{path} has discrete actions and nothing that counts them; pass n_actions=.")
    if bounds is None:
        values = read_field(path, file, "actions", slice(256))
        if np.array_equal(values, np.round(values)):
            raise DatasetError(
                f"{path} has actions of type {dtype} that are all whole numbers; pass n_actions= if they are indices, "
                "action_bounds= if they are continuous."
            )
    return False, shape[3] if len(shape) == 4 else 1


def read_field(path: Path, file: h5py.File, name: str, episodes: slice = slice(None)) -> np.ndarray:
    """Return some episodes of an array."""
    try:
        return file[name][episodes]
    except OSError as error:
        raise DatasetError(f"{path}: {name} cannot be read ({error}); the file is damaged, fetch it again.") from error


@dataclass(frozen=True)
class Episodes:
    """Which steps of a file are read.

    Args:
        lengths: filled steps of each episode, ``[E]``, 0 for those that are left out.
        marked: whether ``terminated`` is set on its last transition, ``[E]``.
        numbers: of the episodes that are read.
        final_row: whether the last filled step holds the final observation only.
        findings: what is to be said of it.
    """

    lengths: np.ndarray
    marked: np.ndarray
    numbers: np.ndarray
    final_row: bool
    findings: list[str]


def find_episodes(path: Path, file: h5py.File, final_row: bool | Literal["auto"], bad: BadEpisodes) -> Episodes:
    """Find where the episodes end; those that are cut wrongly are bad and are left out."""
    filled, terminated = (
        flag_array(read_field(path, file, name), f"{path}: {name}").reshape(file[name].shape[:2])
        for name in ("filled", "terminated")
    )
    lengths, time = filled.sum(1), np.arange(filled.shape[1])
    findings: list[str] = []
    if final_row == "auto":
        final_row = _has_final_row(path, file, lengths, terminated, findings)
    last = lengths - 1 - int(final_row)  # of the transitions
    gaps = filled != (time < lengths[:, None])
    early = terminated & (time != last[:, None]) & filled
    for number in np.flatnonzero(gaps.any(1) | early.any(1)).tolist():
        if gaps[number].any():
            step, what = int(np.argmin(filled[number])), "filled has a gap, the steps of an episode must come first"
        else:
            step, what = int(np.argmax(early[number])), "terminated is set on a step that is not the last transition"
        bad.note(number, step, what)
        lengths[number] = 0
    empty = (lengths <= int(final_row)) & ~gaps.any(1) & ~early.any(1)
    lengths[empty] = 0
    if not lengths.any():
        raise DatasetError(f"{path} holds no transition: filled is set at most once per episode; fetch it again.")
    if empty.any():
        findings.append(f"{int(empty.sum())} episodes hold no transition and were left out")
    marked = terminated[np.arange(len(lengths)), last.clip(0)] & (lengths > 0)
    return Episodes(lengths, marked, np.flatnonzero(lengths), bool(final_row), findings)


def _has_final_row(
    path: Path, file: h5py.File, lengths: np.ndarray, terminated: np.ndarray, findings: list[str]
) -> bool:
    """Tell whether the last filled steps hold final observations (as PyMARL writes them) or are transitions."""
    episodes = np.flatnonzero(lengths)
    last = lengths[episodes] - 1
    at_last, before = int(terminated[episodes, last].sum()), int(terminated[episodes, last - 1][last > 0].sum())
    if before > at_last:
        return True
    rewards = read_field(path, file, "reward").reshape(*terminated.shape, -1)[episodes, last]
    rewarded = int((rewards != 0).any(-1).sum())
    if at_last > before or (at_last == before == 0 and rewarded):
        where = f"terminated is set on {at_last}" if at_last else f"rewards stand on {rewarded}"
        findings.append(
            f"{where} of the episodes' last steps, so these are read as transitions; final_row=True reads them as "
            "final observations"
        )
        return False
    if at_last == before == 0:
        findings.append(
            "terminated is never set: the last steps are taken for final observations, as PyMARL writes them; "
            "final_row=False reads them as transitions"
        )
    return True
