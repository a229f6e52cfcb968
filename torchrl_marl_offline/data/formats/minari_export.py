"""Writer of Minari datasets: what one agent did, in the files that Minari loads.

Minari keeps one more observation than actions in an episode, so that the last row's successor is there. It keeps no
masks: rows that do not count for want of a successor are left out, where they are their episode's last.
"""

from __future__ import annotations

import json
import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from torchrl_marl_offline.core.callers import outside
from torchrl_marl_offline.core.files import staged, writing
from torchrl_marl_offline.core.layout import (
    ACTION,
    AGENT_MASK,
    HAS_NEXT_ACTION,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TRUNCATED,
    next_key,
)
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.data.formats.minari_files import MAIN_FILE, METADATA_FILE
from torchrl_marl_offline.data.formats.table_export import left_out
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, DatasetWarning
from torchrl_marl_offline.data.transitions.validation import expected_leaves

_VERSION = "0.5.4"


def write_minari(dataset: OfflineDataset, path: str | Path) -> Path:
    """Write a dataset of one agent as the folder of a Minari dataset.

    Args:
        dataset: what to write.
        path: the folder to create. Minari finds it by its name under ``$MINARI_DATASETS_PATH`` if that ends in
            ``-v0`` or another version.

    Raises:
        DatasetError: there are several agents, masks of actions, a state beside the observation, or rows within an
            episode that do not follow each other or do not count: Minari has no place for them.
        FileExistsError: there is something at ``path``.

    Warns:
        DatasetWarning: rows or keys were left out.
    """
    path = user_path(path)
    if path.exists():
        raise FileExistsError(f"{path} already exists; choose another folder.")
    lengths = _lengths(dataset)
    left_out(dataset, expected_leaves(dataset.spec), "Minari")
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), staged(path, folder=True) as temporary:
        (temporary / "data").mkdir()
        _write_episodes(dataset, lengths, temporary / "data" / MAIN_FILE)
        text = json.dumps(_facts(dataset, lengths, path.name))
        (temporary / "data" / METADATA_FILE).write_text(text, encoding="utf-8")
        temporary.rename(path)
    return path.absolute()


def _lengths(dataset: OfflineDataset) -> torch.Tensor:
    """Return how many rows of each episode are written, ``[E]``, 0 of those that are left out."""
    data, spec = dataset.data, dataset.spec
    remedy = "export it as a Parquet table"
    if spec.n_agents != 1:
        raise DatasetError(f"Minari keeps what one agent did, and this dataset has {spec.n_agents}; {remedy}.")
    if spec.has_action_mask:
        raise DatasetError(f"Minari keeps no masks of legal actions; {remedy}.")
    if AGENT_MASK in data.keys(include_nested=True) and not data.get(AGENT_MASK).all():
        raise DatasetError(f"Minari keeps no masks, and the agent is dead in some rows; {remedy}.")
    for one, other in ((STATE, OBSERVATION), (next_key(STATE), next_key(OBSERVATION))):
        if not torch.equal(data.get(one), data.get(other)[:, 0]):
            raise DatasetError(f"Minari keeps no state beside the observation; {remedy}.")
    done = torch.zeros(len(dataset), dtype=torch.bool)
    done[dataset.episode_starts + dataset.episode_lengths - 1] = True
    inside = ~done[:-1]
    observation, following = data.get(OBSERVATION).cpu(), data.get(next_key(OBSERVATION)).cpu()
    if (observation[1:] != following[:-1]).flatten(1).any(-1)[inside].any():
        raise DatasetError(f"The next observation within an episode is not the following row's; {remedy}.")
    counts = data.get(MASK).cpu()
    if not counts[:-1][inside].all():
        raise DatasetError(f"Minari keeps no masks, and rows within an episode do not count; {remedy}.")
    unused = done & ~counts
    if unused.any():
        warnings.warn(
            f"{int(unused.sum())} last rows of episodes, which do not count because nothing is known of what follows "
            "them, were left out.",
            DatasetWarning,
            outside(),
        )
    lengths = dataset.episode_lengths - unused[done].long()
    if not (lengths > 0).any():
        raise DatasetError(f"No row of the dataset counts; {remedy}.")
    acted = data.get(HAS_NEXT_ACTION).cpu() & done
    if acted.any():
        warnings.warn(
            "Minari does not keep the actions that were recorded at final observations.", DatasetWarning, outside()
        )
    return lengths


def _write_episodes(dataset: OfflineDataset, lengths: torch.Tensor, file: Path) -> None:
    import h5py

    data, number = dataset.data, 0
    with h5py.File(file, "w") as stream:
        for start, length, whole in zip(
            dataset.episode_starts.tolist(), lengths.tolist(), dataset.episode_lengths.tolist()
        ):
            if length == 0:
                continue
            rows = data[start : start + length]
            group = stream.create_group(f"episode_{number}")
            group.attrs["id"], group.attrs["total_steps"] = number, length
            last = rows.get(next_key(OBSERVATION))[-1:, 0]
            terminated, truncated = (rows.get(next_key(key))[:, 0].clone() for key in (TERMINATED, TRUNCATED))
            truncated[-1] |= length < whole
            for name, values in (
                ("observations", torch.cat([rows.get(OBSERVATION)[:, 0], last])),
                ("actions", rows.get(ACTION)[:, 0]),
                ("rewards", rows.get(next_key(REWARD))[:, 0, 0].double()),
                ("terminations", terminated),
                ("truncations", truncated),
            ):
                group[name] = values.cpu().numpy()
            number += 1


def _facts(dataset: OfflineDataset, lengths: torch.Tensor, name: str) -> dict[str, Any]:
    """Return Minari's metadata."""
    spec = dataset.spec
    box = {"type": "Box", "dtype": "float32"}
    size, infinite = spec.observation_size, float("inf")
    observation = box | {"shape": [size], "low": [-infinite] * size, "high": [infinite] * size}
    action: dict[str, Any] = {"type": "Discrete", "dtype": "int64", "start": 0, "n": spec.action_size}
    if not spec.discrete:
        ends = {"low": list(spec.lows[0]), "high": list(spec.highs[0])}
        action = box | {"shape": [spec.action_size]} | ends
    identity = name if re.search(r"-v\d+$", name) else f"{name}-v0"
    facts: dict[str, Any] = {"total_episodes": int((lengths > 0).sum()), "total_steps": int(lengths.sum())}
    facts |= {"data_format": "hdf5", "dataset_id": identity, "minari_version": _minari_version()}
    facts |= {"observation_space": json.dumps(observation), "action_space": json.dumps(action)}
    told = {"author": [], "author_email": [], "algorithm_name": "unknown", "code_permalink": "unknown"}
    return facts | told | {"description": f"Exported from {spec.task or 'a dataset without a name'}."}


def _minari_version() -> str:
    try:
        return version("minari")
    except PackageNotFoundError:
        return _VERSION
