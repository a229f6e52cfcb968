"""Reader of flashbax vaults, the format of OG-MARL and of the sets it republishes; tensorstore alone reads them.

A vault is a folder with ``metadata.json`` and one OCDBT store of zarr arrays. Names end in a dot (``observations.``,
``infos.state.``), except ``vault_index``, which holds the number of rows written: the time axis of every array is
declared 1e13 long. Leading dimension ``B``: independent recordings, one per seed in OMAR's sets, else 1.

==================  ======================  ==================================================
array               shape                   meaning
==================  ======================  ==================================================
``observations``    ``[B, T, n, o]``
``actions``         ``[B, T, n]`` integer   discrete; ``[B, T, n, 1]`` in the warehouse sets
                    ``[B, T, n, a]`` float  continuous
``rewards``         ``[B, T, n]``           one per agent, often the team's for each
``terminals``       ``[B, T, n]``           the task ended
``truncations``     ``[B, T, n]``           the recording stopped
``infos/state``     ``[B, T, s]``           or ``[B, T, n, s]``, one copy per agent
``infos/legals``    ``[B, T, n, A]``        legal discrete actions
==================  ======================  ==================================================

The observation after an episode's last action is not stored. After a termination nothing is bootstrapped and none is
needed; the last row of a truncated episode does not count in training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrl_marl_offline.data.arrays import close_last_episode, team_flags
from torchrl_marl_offline.data.dataset import OfflineDataset
from torchrl_marl_offline.data.layout import ACTION, ACTION_MASK, OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.data.streaming import REWARD_FIELD, Rows, RowStream, as_float, ends_at_time_limit, one_state
from torchrl_marl_offline.data.validation import DatasetError, reading

REQUIRED = ("observations", "actions", "rewards", "terminals", "truncations")
STATE_ARRAY, LEGALS_ARRAY = "infos.state", "infos.legals"
_CACHE_BYTES = 128 * 2**20
_ROWS_TO_COMPARE = 256
_ROWS_OF_FLAGS = 2**18


def is_vault(path: str | Path) -> bool:
    """Say whether ``path`` is a folder with a vault's store in it."""
    return (Path(path) / "manifest.ocdbt").is_file()


def read_vault(path: str | Path, **options: Any) -> OfflineDataset:
    """Read a vault into memory; see :func:`open_vault` for the options, and its ``write`` for larger ones."""
    with reading(path):
        return open_vault(path, **options).to_dataset()


def open_vault(
    path: str | Path,
    *,
    task: str | None = None,
    seeds: Sequence[int] | None = None,
    n_actions: int | None = None,
    action_bounds: tuple[float, float] = (-1.0, 1.0),
    time_limit: int | None = None,
    episode_length: int | None = None,
) -> RowStream:
    """Open a vault for reading in blocks.

    The marks of episodes' ends are read now, 2 bytes of memory for each row; see :class:`~.streaming.RowStream`.

    Args:
        path: the folder of one quality, ``<source>/<env>/<scenario>.vlt/<quality>``.
        task: name for the spec.
        seeds: entries of the leading dimension to read, end to end; all by default.
        n_actions: number of discrete actions, where the vault has no legal actions to tell it.
        action_bounds: lower and upper bound of every component of a continuous action.
        time_limit: episodes of exactly so many rows that are marked terminated are read as truncated.
        episode_length: where the recording marks no end at all, cut it every so many rows.

    Raises:
        DatasetError: this is no vault, it is damaged, or its arrays do not fit together.
        ImportError: tensorstore is not installed.
    """
    path = Path(path)
    with reading(path):
        arrays, length = _open_arrays(path)
        sizes = _check_shapes(arrays, length)
        chosen = _chosen_seeds(seeds, sizes["seeds"])

        def rows(name: str, convert: Callable[[np.ndarray], torch.Tensor]) -> Rows:
            return lambda start, stop: convert(_read(arrays[name], chosen, length, start, stop))

        findings: list[str] = []
        discrete = arrays["actions"].dtype.numpy_dtype.kind in "iu"
        fields = {
            OBSERVATION: rows("observations", as_float),
            ACTION: rows("actions", (lambda a: _integer(a).reshape(len(a), sizes["agents"])) if discrete else as_float),
            REWARD_FIELD: rows("rewards", lambda r: as_float(r).unsqueeze(-1)),
        }
        has_mask = discrete and LEGALS_ARRAY in arrays
        if has_mask:
            fields[ACTION_MASK] = rows(LEGALS_ARRAY, lambda legal: torch.from_numpy(legal != 0))
        state_size = sizes["agents"] * sizes["observation"]
        if STATE_ARRAY in arrays:
            sample = _read(arrays[STATE_ARRAY], chosen, length, 0, min(length, _ROWS_TO_COMPARE))
            state_size, convert = one_state(sample, findings)
            fields[STATE] = rows(STATE_ARRAY, convert)
        spec = TaskSpec(
            sizes["agents"],
            sizes["observation"],
            state_size,
            _action_size(arrays, discrete, n_actions),
            discrete=discrete,
            action_low=action_bounds[0],
            action_high=action_bounds[1],
            has_action_mask=has_mask,
            task=task,
        )
        terminated, truncated = _ends(arrays, chosen, length, sizes["agents"], episode_length, findings)
        ends_at_time_limit(terminated, truncated, time_limit, findings)
        metadata = {"source": f"vault:{path}", "task": task, "time_limit": time_limit, "findings": findings}
        metadata["vault"] = {"seeds": chosen, "rows_per_seed": length}
        if STATE_ARRAY not in arrays:
            metadata["state"] = "joint observation"
        return RowStream(spec, fields, terminated, truncated, metadata)


def _open_arrays(path: Path) -> tuple[dict[str, Any], int]:
    """Return the arrays by name (without the last dot) and the number of rows written."""
    if not is_vault(path):
        what = "holds no vault (no manifest.ocdbt)" if path.is_dir() else "is not a folder"
        raise DatasetError(f"{path} {what}; give the folder of one quality, <scenario>.vlt/<quality>.")
    structure = json.loads((path / "metadata.json").read_text(encoding="utf-8"))["structure_shape"]
    names = [name for name in structure if not isinstance(structure[name], dict)]
    names += [f"{group}.{name}" for group, inner in structure.items() if isinstance(inner, dict) for name in inner]
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DatasetError(
            f"{path} lacks {', '.join(missing)} (it has {', '.join(sorted(names))}); it is not of OG-MARL's layout."
        )
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

    wanted = [name for name in (*REQUIRED, STATE_ARRAY, LEGALS_ARRAY) if name in names]
    length = int(open_array("vault_index").read().result().reshape(-1)[0])
    if length < 1:
        raise DatasetError(f"{path} says that {length} rows were written; fetch it again.")
    return {name: open_array(f"{name}.") for name in wanted}, length


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
    for name, shape in shapes.items():
        per_agent = name != STATE_ARRAY
        wanted = (seeds, declared, agents) if per_agent else (seeds, declared)
        ranks = {"actions": (3, 4), LEGALS_ARRAY: (4,), STATE_ARRAY: (3, 4), "observations": (4,)}.get(name, (3,))
        if shape[: len(wanted)] != wanted or len(shape) not in ranks:
            raise DatasetError(
                f"has {name} of shape {shape} beside observations of shape {observations}; they must agree in seeds, "
                "time and agents: fetch it again."
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


def _integer(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def _action_size(arrays: dict[str, Any], discrete: bool, n_actions: int | None) -> int:
    shape = arrays["actions"].shape
    if not discrete:
        if arrays["actions"].dtype.numpy_dtype.kind != "f" or len(shape) != 4:
            raise DatasetError(f"has actions of shape {tuple(shape)} and type {arrays['actions'].dtype.name}.")
        return shape[3]
    if len(shape) == 4 and shape[3] != 1:
        raise DatasetError(f"has integer actions of shape {tuple(shape)}; one index per agent can be read.")
    if LEGALS_ARRAY in arrays:
        return arrays[LEGALS_ARRAY].shape[3]
    if n_actions is None:
        raise DatasetError("has discrete actions and no legal actions to count them; pass n_actions=.")
    return n_actions


def _ends(
    arrays: dict[str, Any],
    seeds: list[int],
    length: int,
    n_agents: int,
    episode_length: int | None,
    findings: list[str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``terminated`` and ``truncated`` of all rows; every seed's recording ends with an episode's end."""
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for seed in seeds:
        terminated, truncated, marked = _marked_ends(arrays, seed, length, n_agents)
        if episode_length is not None and not marked:
            truncated[episode_length - 1 :: episode_length] = True
            findings.append(f"seed {seed} marks no end; it was cut every {episode_length} rows")
        notes: dict[str, Any] = {}
        close_last_episode(terminated, truncated, notes)
        parts.append((terminated, truncated))
        findings += [f"seed {seed}: {finding}" if len(seeds) > 1 else finding for finding in notes.get("findings", [])]
    terminated, truncated = (torch.cat(flags) for flags in zip(*parts))
    return terminated, truncated


def _marked_ends(
    arrays: dict[str, Any], seed: int, length: int, n_agents: int
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Return ``terminated`` and ``truncated``, ``[T]`` bool, as one seed marks them, and whether any agent has a mark.

    A block at a time: the flags of all agents would take several bytes for each of them and row.
    """
    flags = torch.empty(2, length, dtype=torch.bool)
    marked = False
    for start in range(0, length, _ROWS_OF_FLAGS):
        stop = min(start + _ROWS_OF_FLAGS, length)
        terminals, truncations = (
            arrays[name][seed, start:stop].read().result() for name in ("terminals", "truncations")
        )
        marked = marked or bool(terminals.any() or truncations.any())
        flags[0, start:stop], flags[1, start:stop] = team_flags(terminals, truncations, stop - start, n_agents)
    return flags[0], flags[1], marked
