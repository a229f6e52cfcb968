"""Reader of OMAR's NumPy folders: ``seed_<k>_data`` with one file per array and agent ``i``.

``obs_i [T, o_i]``, ``acs_i [T, a]``, ``rews_i [T]``, ``next_obs_i [T, o_i]`` and ``dones_i [T]``; the MuJoCo sets also
have ``states_i`` and ``next_states_i``. ``dones_i`` is 0 throughout: episodes have a fixed length, 25 steps in the
particle environments and 1,000 in MuJoCo, and the true next observation is recorded also at their ends. Names as in
``utils/buffer.py`` of ling-pan/OMAR.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import BOUNDS, COUNT, REAL
from torchrl_marl_offline.core.regular_files import files_below, lies_at, require_regular
from torchrl_marl_offline.data.formats.content import Content
from torchrl_marl_offline.data.formats.streaming import (
    REWARD_FIELD,
    BadRows,
    RowStream,
    as_float,
    one_state,
    sample_rows,
)
from torchrl_marl_offline.data.transitions.agent_ends import AgentEnds, dead_agents_finding
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading
from torchrl_marl_offline.data.transitions.rounding import Rounding
from torchrl_marl_offline.data.transitions.values import check_type, flag_array, is_index_like

NAMES = ("obs", "acs", "rews", "next_obs", "dones")
STATE_NAMES = ("states", "next_states")
PARTICLE_STEPS, MUJOCO_STEPS = 25, 1000
_CUTS_TO_COMPARE = 200
_MOST_PADDING = 10  # how many times the stored numbers padded observations may take


def recognise(content: Content) -> Path | None:
    """Return the path that :func:`read_omar_npy` wants, or None where it is of another format."""
    has_parts = any(re.fullmatch(r"obs_\d+\.npy|seed_\d+_data", name) for name in content.names)
    return content.path if has_parts else None


def read_omar_npy(path: str | Path, **options: Any) -> OfflineDataset:
    """Read a folder into memory; see :func:`open_omar_npy` for the options."""
    with reading(path):
        return open_omar_npy(path, **options).to_dataset()


@checked
def open_omar_npy(
    path: str | Path,
    *,
    task: str | None = None,
    episode_length: Annotated[int | None, COUNT] = None,
    action_bounds: Annotated[tuple[Bound, Bound], REAL, BOUNDS] = (-1.0, 1.0),
) -> RowStream:
    """Open a folder for reading in blocks.

    Observations of agents that see less are filled up with zeros; the true sizes stand in the metadata.

    Args:
        path: one ``seed_<k>_data`` folder, or one that holds several, which are then read end to end.
        task: name for the spec.
        episode_length: steps of every episode; by default 1,000 where states are recorded (MuJoCo), else 25.
        action_bounds: lower and upper bound of every component of an action.

    Raises:
        DatasetError: a file is missing, damaged, of another shape than its neighbours, or has a name that none of
            this format's files has.
    """
    path = user_path(path)
    with reading(path):
        folders = _seed_folders(path)
        for _ in files_below(path, None if folders == [path] else [folder.name for folder in folders]):
            pass  # neither a pipe nor a link that leads out
        seeds = [_open_folder(folder) for folder in folders]
        first = seeds[0]
        if any(set(seed) != set(first) for seed in seeds):
            raise DatasetError(f"{path} has seeds with different files; read them one by one.")
        for folder, seed in zip(folders, seeds):
            for (name, agent), array in seed.items():
                if array.shape[1:] != first[name, agent].shape[1:]:
                    raise DatasetError(
                        f"{folder / f'{name}_{agent}.npy'} has rows of shape {array.shape[1:]}, {folders[0].name} of "
                        f"{first[name, agent].shape[1:]}; read the seeds one by one."
                    )
        agents = sum(name == "obs" for name, _ in first)
        lengths = [len(seed["obs", 0]) for seed in seeds]
        sizes = [first["obs", agent].shape[1] for agent in range(agents)]
        if agents * max(sizes) > _MOST_PADDING * sum(sizes):
            raise DatasetError(
                f"{path} has observations of {min(sizes)} to {max(sizes)} numbers, which would be filled up to the "
                "widest for every agent; load agents of like sizes by from_arrays()."
            )
        if episode_length is None:
            episode_length = MUJOCO_STEPS if ("states", 0) in first else PARTICLE_STEPS
        findings: list[str] = []
        bad, rounding = BadRows(), Rounding()
        terminated, truncated, living = _ends(seeds, lengths, episode_length, findings)

        def stack(name: str, convert: Any, start: int, stop: int) -> torch.Tensor:
            width = max(sizes) if name in ("obs", "next_obs") else 0
            return convert(_rows(seeds, lengths, name, agents, width, start, stop, rounding))

        fields = {
            OBSERVATION: partial(stack, "obs", as_float),
            ACTION: partial(stack, "acs", as_float),
            REWARD_FIELD: partial(stack, "rews", as_float),
        }
        successors = {OBSERVATION: partial(stack, "next_obs", as_float)}
        state_size = agents * max(sizes)
        if ("states", 0) in first:
            sample = sample_rows(partial(stack, "states", np.asarray), sum(lengths))
            state_size, convert = one_state(sample, findings, bad)

            def states(name: str, start: int, stop: int) -> torch.Tensor:
                return convert(stack(name, np.asarray, start, stop), start)

            fields[STATE], successors[STATE] = partial(states, "states"), partial(states, "next_states")
        low, high = action_bounds
        spec = TaskSpec(
            agents,
            max(sizes),
            state_size,
            first["acs", 0].shape[1],
            action_low=low,
            action_high=high,
            task=task,
        )
        metadata = {"source": f"omar_npy:{path}", "task": task, "time_limit": episode_length, "findings": findings}
        metadata |= {"seeds": [folder.name for folder in folders], "observation_sizes": sizes}
        if ("states", 0) not in first:
            metadata["state"] = "joint observation"
        told = {"successors": successors, "bad": bad, "living": living, "rounding": rounding}
        return RowStream(spec, fields, terminated, truncated, metadata, **told)


def _seed_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder; give OMAR's seed_<k>_data folder.")
    if lies_at(path / "obs_0.npy"):
        return [path]
    numbered: dict[int, Path] = {}
    for entry in sorted(path.iterdir()):
        match = re.fullmatch(r"seed_(\d+)_data", entry.name)
        if match and (twin := numbered.setdefault(int(match[1]), entry)) is not entry:
            raise DatasetError(
                f"{path} has two folders of seed {int(match[1])}, {twin.name} and {entry.name}; keep one."
            )
    if not numbered:
        raise DatasetError(f"{path} holds neither obs_0.npy nor seed_<k>_data folders; give OMAR's data folder.")
    return [numbered[number] for number in sorted(numbered)]


def _open_folder(folder: Path) -> dict[tuple[str, int], np.ndarray]:
    """Return the memory-mapped arrays by (name, agent), checked against each other."""
    found = _numbered_files(folder)
    agents = 1 + max((agent for _, agent in found), default=-1)
    if agents == 0:
        raise DatasetError(f"{folder} holds no obs_0.npy; give OMAR's data folder.")
    names = NAMES + (STATE_NAMES if any(name in STATE_NAMES for name, _ in found) else ())
    arrays = {}
    for name in names:
        for agent in range(agents):
            file = folder / f"{name}_{agent}.npy"
            if not lies_at(file):
                others = f"other files are of {agents} agents" if agents > 1 else "other files are there"
                raise DatasetError(f"{file} is missing, though {others}; fetch the folder again.")
            with reading(file):
                array = np.lib.format.open_memmap(require_regular(file), mode="r")  # plain .npy alone, no pickle
            check_type(array.dtype, str(file))
            if name == "acs" and is_index_like(array.dtype):
                raise DatasetError(
                    f"{file} holds actions of type {array.dtype}, but OMAR's are continuous; pass the arrays to "
                    "from_arrays(), with n_actions= if they are indices."
                )
            column = name in ("rews", "dones") and array.ndim == 2 and array.shape[1] == 1
            arrays[name, agent] = array[:, 0] if column else array
    length = len(arrays["obs", 0]) if arrays["obs", 0].ndim else 0
    for (name, agent), array in arrays.items():
        rank = 1 if name in ("rews", "dones") else 2
        twin = {
            "next_obs": ("obs", agent),
            "next_states": ("states", agent),
            "acs": ("acs", 0),
            "states": ("states", 0),
        }
        like = arrays[twin.get(name, (name, agent))].shape
        if array.ndim != rank or len(array) != length or array.shape != like or length == 0:
            raise DatasetError(
                f"{folder / f'{name}_{agent}.npy'} has shape {array.shape} beside {length} rows of obs_0.npy and "
                f"{like} of its twin; fetch the folder again."
            )
    return arrays


def _numbered_files(folder: Path) -> set[tuple[str, int]]:
    """Return (name, agent) of the folder's arrays; names that the format does not have are refused, not passed over."""
    found = set()
    for file in folder.glob("*.npy"):
        match = re.fullmatch(r"(.+)_(0|[1-9]\d*)\.npy", file.name)
        if match is None or match[1] not in NAMES + STATE_NAMES:
            known = ", ".join(f"{name}_0.npy" for name in NAMES + STATE_NAMES)
            raise DatasetError(f"{file} has a name that OMAR's files do not have ({known}); rename or remove it.")
        found.add((match[1], int(match[2])))
    return found


def _rows(
    seeds: list[dict[tuple[str, int], np.ndarray]],
    lengths: list[int],
    name: str,
    agents: int,
    width: int,
    start: int,
    stop: int,
    rounding: Rounding,
) -> np.ndarray:
    """Return ``[stop - start, n, ...]`` rows of the seeds laid end to end, zero-padded to ``width``."""
    parts, offset = [], 0
    for arrays, length in zip(seeds, lengths):
        low, high = max(start - offset, 0), min(stop - offset, length)
        offset += length
        if low >= high:
            continue
        raw = [rounding.seen(arrays[name, agent][low:high], f"{name}_{agent}") for agent in range(agents)]
        columns = [np.asarray(values, dtype=np.float32) for values in raw]
        if name == "rews":
            columns = [column[:, None] for column in columns]
        if width:
            columns = [np.pad(column, ((0, 0), (0, width - column.shape[1]))) for column in columns]
        parts.append(np.stack(columns, 1))
    return np.concatenate(parts)


def _ends(
    seeds: list[dict[tuple[str, int], np.ndarray]], lengths: list[int], episode_length: int, findings: list[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return ``terminated`` and ``truncated``, ``[R]``, and ``[R, n]`` which agents live (None: all)."""
    parts, same, compared = [], 0, 0
    for arrays, length in zip(seeds, lengths):
        agents = sum(name == "dones" for name, _ in arrays)
        done = np.stack([flag_array(arrays["dones", agent], f"dones_{agent}") for agent in range(agents)], -1)
        cut = np.zeros(length, dtype=bool)
        cut[episode_length - 1 :: episode_length] = True
        cut[-1] = True
        terminated, truncated, dead = AgentEnds(agents).add(done, np.repeat(cut[:, None], agents, 1))
        parts.append((terminated, truncated & ~terminated, ~dead))
        cuts = np.flatnonzero(cut[:-1])[:_CUTS_TO_COMPARE]
        goes_on = [(arrays["next_obs", a][cuts] == arrays["obs", a][cuts + 1]).all(-1) for a in range(agents)]
        same, compared = same + int(np.all(goes_on, axis=0).sum()), compared + len(cuts)
    if same:
        findings.append(
            f"at {same} of {compared} cuts after {episode_length} steps the recording goes on without a reset: is "
            "episode_length right?"
        )
    terminated, truncated, living = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts))
    if terminated.any():
        findings.append(
            f"dones is set on {int(terminated.sum())} rows, which are read as terminations; OMAR's own files have none"
        )
    if any(length % episode_length for length in lengths):
        findings.append(f"the rows are no whole number of episodes of {episode_length}; the last one is cut short")
    if living.all():
        return terminated, truncated, None
    findings.append(dead_agents_finding(int((~living).sum())))
    return terminated, truncated, living
