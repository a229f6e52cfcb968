"""Reader of flashbax vaults, the format of OG-MARL and of the sets it republishes; tensorstore alone reads them.

A vault is a folder with ``metadata.json`` and one OCDBT store of zarr arrays. Names end in a dot (``observations.``,
``infos.state.``), except ``vault_index``, which holds the number of rows written: the time axis of every array is
declared 1e13 long. Leading dimension ``B``: independent recordings, one per seed in OMAR's sets, else 1.

==================  ======================  ==================================================
array               shape                   meaning
==================  ======================  ==================================================
``observations``    ``[B, T, n, o]``
``actions``         ``[B, T, n]`` integer   discrete; ``[B, T, n, 1]`` in the warehouse sets; where the number of
                                            actions is known, also whole floats and one-hot ``[B, T, n, A]``
                    ``[B, T, n, a]`` float  continuous
``rewards``         ``[B, T, n]``           one per agent, often the team's for each; also ``[B, T]``
``terminals``       ``[B, T, n]``           the task ended; also ``[B, T]``
``truncations``     ``[B, T, n]``           the recording stopped; also ``[B, T]``, or left out
``infos/state``     ``[B, T, s]``           or ``[B, T, n, s]``, one copy per agent
``infos/legals``    ``[B, T, n, A]``        legal discrete actions
==================  ======================  ==================================================

Rewards and flags may have one more dimension of size 1. An array that looks like a state or a mask under another name
is not passed over: the options ``state`` and ``legals`` name it.

The observation after an episode's last action is not stored. After a termination nothing is bootstrapped and none is
needed; the last row of a truncated episode does not count in training. An agent whose flags are set before the
others' is dead from then on until the episode ends, and ``("agents", "mask")`` says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import BOUNDS, COUNT, REAL, SEED, WIDTHS
from torchrl_marl_offline.core.regular_files import files_below, lies_at, read_json
from torchrl_marl_offline.data.formats.arrays import agent_flags, close_last_episode
from torchrl_marl_offline.data.formats.content import Content
from torchrl_marl_offline.data.formats.streaming import (
    REWARD_FIELD,
    BadRows,
    ReadRows,
    RowStream,
    as_float,
    ends_at_time_limit,
    one_state,
    sample_rows,
)
from torchrl_marl_offline.data.transitions.agent_ends import AgentEnds, dead_agents_finding
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading
from torchrl_marl_offline.data.transitions.rounding import Rounding
from torchrl_marl_offline.data.transitions.values import check_type, flag_array, indices, is_index_like

REQUIRED = ("observations", "actions", "rewards", "terminals")
FLAGS = ("terminals", "truncations")
STATE_ARRAY, LEGALS_ARRAY = "infos.state", "infos.legals"
_CACHE_BYTES = 128 * 2**20
_LOOKS_LIKE = {"state": r"state|share|global|joint", "legals": r"legal|avail|mask|valid"}
_ROWS_OF_FLAGS = 2**18
_MOST_EXPANSION, _CHUNK_EXPANSION, _SLACK_BYTES = 250, 10, 2**24  # flashbax makes chunks of 4 MiB


def is_vault(path: str | Path) -> bool:
    """Say whether ``path`` is a folder with a vault's store in it."""
    return lies_at(Path(path) / "manifest.ocdbt")


def recognise(content: Content) -> Path | None:
    """Return the path that :func:`read_vault` wants, or None where it is of another format."""
    return content.path if is_vault(content.path) else None


def read_vault(path: str | Path, **options: Any) -> OfflineDataset:
    """Read a vault into memory; see :func:`open_vault` for the options, and its ``write`` for larger ones."""
    with reading(path):
        return open_vault(path, **options).to_dataset()


@checked
def open_vault(
    path: str | Path,
    *,
    task: str | None = None,
    seeds: Annotated[Sequence[int] | None, SEED] = None,
    n_actions: Annotated[int | None, WIDTHS] = None,
    action_bounds: Annotated[tuple[Bound, Bound], REAL, BOUNDS] = (-1.0, 1.0),
    time_limit: Annotated[int | None, COUNT] = None,
    episode_length: Annotated[int | None, COUNT] = None,
    state: str | None = None,
    legals: str | None = None,
) -> RowStream:
    """Open a vault for reading in blocks.

    The marks of episodes' ends are read now, 2 bytes of memory for each row; see :class:`~.streaming.RowStream`.

    Args:
        path: the folder of one quality, ``<source>/<env>/<scenario>.vlt/<quality>``.
        task: name for the spec.
        seeds: entries of the leading dimension to read, end to end; all by default.
        n_actions: number of discrete actions, where the vault has no legal actions to tell it; says also that
            floating actions are indices or one-hot.
        action_bounds: lower and upper bound of every component of a continuous action.
        time_limit: episodes of exactly so many rows that are marked terminated are read as truncated.
        episode_length: where the recording marks no end at all, cut it every so many rows.
        state: name of the array that holds the state, ``"infos.state"`` where there is one; ``"observations"`` takes
            the joint observation.
        legals: name of the array that holds the legal actions, ``"infos.legals"`` where there is one; ``""`` for none.

    Raises:
        DatasetError: this is no vault, it is damaged, or its arrays do not fit together.
        ImportError: tensorstore is not installed.
    """
    path = user_path(path)
    with reading(path):
        arrays, length = _open_arrays(path, {"state": state, "legals": legals})
        sizes = _check_shapes(arrays, length)
        chosen = _chosen_seeds(seeds, sizes["seeds"])

        def read(name: str, start: int, stop: int) -> np.ndarray:
            return _read(arrays[name], chosen, length, start, stop)

        def rows(name: str, convert: Callable[[np.ndarray, int], torch.Tensor]) -> ReadRows:
            return lambda start, stop: convert(read(name, start, stop), start)

        findings: list[str] = []
        bad, rounding = BadRows(), Rounding()
        action_size = _action_size(arrays, n_actions)
        discrete = n_actions is not None or LEGALS_ARRAY in arrays or _holds_integers(arrays["actions"])

        def index(actions: np.ndarray, start: int) -> torch.Tensor:
            found, wrong = indices(actions, agents=sizes["agents"], n_actions=action_size, name="actions")
            bad.add(wrong, start, "an action is no index (or no one-hot row)")
            return torch.from_numpy(found)

        fields = {
            OBSERVATION: rows("observations", lambda values, start: as_float(rounding.seen(values, "observations"))),
            ACTION: rows("actions", index if discrete else lambda values, start: as_float(values)),
            REWARD_FIELD: rows(
                "rewards", lambda values, start: _per_agent(rounding.seen(values, "rewards"), sizes["agents"])
            ),
        }
        has_mask = LEGALS_ARRAY in arrays
        if has_mask:
            fields[ACTION_MASK] = rows(LEGALS_ARRAY, lambda legal, start: torch.from_numpy(legal != 0))
        state_size = sizes["agents"] * sizes["observation"]
        if STATE_ARRAY in arrays:
            sample = sample_rows(partial(read, STATE_ARRAY), length * len(chosen))
            state_size, convert = one_state(sample, findings, bad)
            fields[STATE] = rows(STATE_ARRAY, lambda values, start: convert(rounding.seen(values, "state"), start))
        spec = TaskSpec(
            sizes["agents"],
            sizes["observation"],
            state_size,
            action_size,
            discrete=discrete,
            action_low=action_bounds[0],
            action_high=action_bounds[1],
            has_action_mask=has_mask,
            task=task,
        )
        terminated, truncated, living = _ends(arrays, chosen, length, sizes["agents"], episode_length, findings)
        ends_at_time_limit(terminated, truncated, time_limit, findings)
        metadata = {"source": f"vault:{path}", "task": task, "time_limit": time_limit, "findings": findings}
        metadata["vault"] = {"seeds": chosen, "rows_per_seed": length}
        if STATE_ARRAY not in arrays:
            metadata["state"] = "joint observation"
        return RowStream(spec, fields, terminated, truncated, metadata, bad=bad, living=living, rounding=rounding)


def _open_arrays(path: Path, chosen: dict[str, str | None]) -> tuple[dict[str, Any], int]:
    """Return the arrays by name (without the last dot) and the number of rows written.

    Args:
        path: the folder.
        chosen: names given for state and legal actions, which are returned under their usual names.
    """
    if not is_vault(path):
        what = "holds no vault (no manifest.ocdbt)" if path.is_dir() else "is not a folder"
        raise DatasetError(f"{path} {what}; give the folder of one quality, <scenario>.vlt/<quality>.")
    size = sum(file.stat().st_size for file in files_below(path))
    structure = read_json(path / "metadata.json")["structure_shape"]
    names = [name for name in structure if not isinstance(structure[name], dict)]
    names += [f"{group}.{name}" for group, inner in structure.items() if isinstance(inner, dict) for name in inner]
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DatasetError(
            f"{path} lacks {', '.join(missing)} (it has {', '.join(sorted(names))}); it is not of OG-MARL's layout: "
            "pass its arrays to from_arrays()."
        )
    places = {name: name for name in (*REQUIRED, "truncations") if name in names}
    for option, usual in (("state", STATE_ARRAY), ("legals", LEGALS_ARRAY)):
        name = _place(path, names, option, usual, chosen[option])
        places |= {} if name is None else {usual: name}
    try:
        import tensorstore
    except ImportError as error:
        raise ImportError("Reading vaults needs tensorstore; install it with pip install tensorstore.") from error
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})

    def open_array(name: str) -> Any:
        store = {"driver": "ocdbt", "base": path.absolute().as_uri(), "path": name}
        # A chunk that was written and is gone must be an error, not zeros.
        spec = {"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}
        return tensorstore.open(spec, context=context, open=True, read=True).result()

    index = open_array("vault_index")
    if index.shape != (1,):
        raise DatasetError(f"{path} has a vault_index of shape {index.shape}, not of one number; fetch it again.")
    _check_size("vault_index", index, index.shape, size)
    length = int(index.read().result()[0])
    if length < 1:
        raise DatasetError(f"{path} says that {length} rows were written; fetch it again.")
    arrays = {usual: open_array(f"{name}.") for usual, name in places.items()}
    for usual, array in arrays.items():
        check_type(array.dtype.numpy_dtype, places[usual])
    _check_sizes(arrays, length, size)
    return arrays, length


def _place(path: Path, names: list[str], option: str, usual: str, chosen: str | None) -> str | None:
    """Return the name of the array that holds the state or the legal actions, or ``None`` where there is none."""
    nothing = "observations" if option == "state" else ""
    if chosen is not None and chosen not in (*names, nothing):
        raise DatasetError(f"{path} holds no {chosen!r} for {option}=; it has {', '.join(sorted(names))}.")
    if chosen is not None or usual in names:
        name = usual if chosen is None else chosen
        return None if name == nothing else name
    others = [name for name in names if name not in (*REQUIRED, "truncations")]
    similar = [name for name in others if re.search(_LOOKS_LIKE[option], name, re.IGNORECASE)]
    if similar:
        raise DatasetError(
            f"{path} has no {usual}, but {', '.join(similar)}; pass {option}={similar[0]!r}, or {option}={nothing!r} "
            f"to read it without."
        )
    return None


def _check_sizes(arrays: dict[str, Any], length: int, stored: int) -> None:
    """Refuse arrays that are declared larger than what is stored can be, before a number is read.

    Every chunk takes some bytes, and what a chunk or a row becomes in memory is bounded by the whole folder's size.
    """
    for name, array in arrays.items():
        _check_size(name, array, (array.shape[0], length, *array.shape[2:]), stored)


def _check_size(name: str, array: Any, shape: tuple[int, ...], stored: int) -> None:
    """Do what :func:`_check_sizes` does for an array of which ``shape`` is read."""
    check_type(array.dtype.numpy_dtype, name)
    chunk = array.chunk_layout.read_chunk.shape or shape
    chunks = math.prod(-(-size // max(1, part)) for size, part in zip(shape, chunk, strict=True))
    largest = max(math.prod(chunk), math.prod(shape[2:])) * array.dtype.numpy_dtype.itemsize
    total = math.prod(shape) * array.dtype.numpy_dtype.itemsize
    bounds = ((largest, _CHUNK_EXPANSION), (total, _MOST_EXPANSION))
    if chunks > stored or any(bytes > times * stored + _SLACK_BYTES for bytes, times in bounds):
        raise DatasetError(
            f"declares {name} as {shape} in chunks of {tuple(chunk)}, which {stored:,} bytes cannot hold; fetch it "
            "again."
        )


def _check_shapes(arrays: dict[str, Any], length: int) -> dict[str, int]:
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    observations = shapes["observations"]
    if len(observations) != 4:
        raise DatasetError(
            f"has observations of shape {observations} instead of [B, T, n, o]; it is of another layout."
        )
    seeds, declared, agents, size = observations
    if length > declared:
        raise DatasetError(f"says that {length} rows were written into arrays of {declared}; fetch it again.")
    time = (seeds, declared)
    signals = {time, (*time, 1), (*time, agents), (*time, agents, 1)}
    for name, shape in shapes.items():
        if name in ("rewards", *FLAGS):
            fits = shape in signals
        elif name == STATE_ARRAY:
            fits = shape[:2] == time and (len(shape) == 3 or (len(shape) == 4 and shape[2] == agents))
        else:
            fits = shape[:3] == (*time, agents) and len(shape) in ((3, 4) if name == "actions" else (4,))
        if not fits:
            raise DatasetError(
                f"has {name} of shape {shape} beside observations of shape {observations}; they must agree in seeds, "
                "time and agents: pass its arrays to from_arrays() as they belong together, or fetch it again."
            )
    return {"seeds": seeds, "agents": agents, "observation": size}


def _chosen_seeds(seeds: Sequence[int] | None, available: int) -> list[int]:
    chosen = list(range(available)) if seeds is None else [int(seed) for seed in seeds]
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= seed < available for seed in chosen):
        raise DatasetError(f"holds seeds 0 to {available - 1}, not {chosen}; choose each at most once.")
    return chosen


def _read(array: Any, seeds: list[int], length: int, start: int, stop: int) -> np.ndarray:
    """Return rows of the chosen seeds' recordings laid end to end, ``[stop - start, ...]``."""
    parts = []
    for position, seed in enumerate(seeds):
        low, high = max(start - position * length, 0), min(stop - position * length, length)
        if low < high:
            parts.append(array[seed, low:high].read().result())
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _per_agent(rewards: np.ndarray, agents: int) -> torch.Tensor:
    """Return ``[rows, n, 1]`` of ``[rows]``, ``[rows, n]`` or ``[rows, n, 1]``."""
    return as_float(rewards).reshape(len(rewards), -1, 1).expand(-1, agents, 1).contiguous()


def _holds_integers(array: Any) -> bool:
    return is_index_like(array.dtype.numpy_dtype)


def _action_size(arrays: dict[str, Any], n_actions: int | None) -> int:
    """Return the number of discrete actions or the width of continuous ones."""
    shape = tuple(arrays["actions"].shape)
    legal = arrays[LEGALS_ARRAY].shape[3] if LEGALS_ARRAY in arrays else None
    if n_actions is not None and legal not in (None, n_actions):
        raise DatasetError(f"has {legal} legal actions, not n_actions={n_actions}; leave n_actions out.")
    known = n_actions if legal is None else legal
    if known is not None:
        if len(shape) == 4 and shape[3] not in (1, known):
            raise DatasetError(
                f"has actions of shape {shape} beside {known} discrete ones; one index per agent or one-hot rows can "
                "be read: leave n_actions out, and pass legals='' if they are continuous."
            )
        return known
    if _holds_integers(arrays["actions"]):
        also = f"; {shape[3]} if they are one-hot" if len(shape) == 4 and shape[3] != 1 else ""
        raise DatasetError(f"has discrete actions and no legal actions to count them; pass n_actions={also}.")
    if len(shape) != 4:
        raise DatasetError(f"has floating actions of shape {shape}; pass n_actions= if they are indices.")
    return shape[3]


def _flags(values: np.ndarray, name: str, start: int) -> np.ndarray:
    """Return ``[rows]`` or ``[rows, n]`` bool, without a last dimension of size 1."""
    flags = flag_array(values, name, start)
    flags = flags[..., 0] if flags.ndim == 3 else flags
    return flags[:, 0] if flags.ndim == 2 and flags.shape[1] == 1 else flags


def _ends(
    arrays: dict[str, Any],
    seeds: list[int],
    length: int,
    n_agents: int,
    episode_length: int | None,
    findings: list[str],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return ``terminated``, ``truncated`` and ``living`` of all rows; every seed's recording ends with an episode's.

    ``living`` is ``None`` where no agent ends before its team.
    """
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for seed in seeds:
        terminated, truncated, dead, marked = _marked_ends(arrays, seed, length, n_agents)
        if episode_length is not None and not marked:
            truncated[episode_length - 1 :: episode_length] = True
            findings.append(f"seed {seed} marks no end; it was cut every {episode_length} rows")
        notes: dict[str, Any] = {}
        close_last_episode(terminated, truncated, notes)
        parts.append((terminated, truncated, ~dead))
        findings += [f"seed {seed}: {finding}" if len(seeds) > 1 else finding for finding in notes.get("findings", [])]
    terminated, truncated, living = (torch.cat(flags) for flags in zip(*parts))
    if living.all():
        return terminated, truncated, None
    findings.append(dead_agents_finding(int((~living).sum())))
    return terminated, truncated, living


def _marked_ends(
    arrays: dict[str, Any], seed: int, length: int, n_agents: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """Return ``terminated`` and ``truncated``, ``[T]`` bool, as one seed marks them, ``dead`` ``[T, n]``, and whether
    any agent has a mark.

    A block at a time: the flags of all agents would take several bytes for each of them and row.
    """
    parts, ends, marked = [], AgentEnds(n_agents), False
    for start in range(0, length, _ROWS_OF_FLAGS):
        stop = min(start + _ROWS_OF_FLAGS, length)
        given = (
            _flags(arrays[name][seed, start:stop].read().result(), name, start)
            if name in arrays
            else np.zeros(stop - start, bool)
            for name in FLAGS
        )
        flags = agent_flags(*given, stop - start, n_agents)
        marked = marked or any(bool(each.any()) for each in flags)
        parts.append(ends.add(*flags))
    return *(torch.from_numpy(np.concatenate(column)) for column in zip(*parts)), marked
