"""Repair of what inspection finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase

from torchrl_marl_offline.data import defects
from torchrl_marl_offline.data.assembly import legal_placeholder
from torchrl_marl_offline.data.dataset import OfflineDataset
from torchrl_marl_offline.data.findings import Inspection
from torchrl_marl_offline.data.fingerprints import episode_hashes, repeated
from torchrl_marl_offline.data.inspection import inspect
from torchrl_marl_offline.data.layout import (
    ACTION,
    ACTION_MASK,
    DONE,
    HAS_NEXT_ACTION,
    MASK,
    STATE,
    TERMINATED,
    TRAJ_IDS,
    TRUNCATED,
    TaskSpec,
    next_key,
)
from torchrl_marl_offline.data.validation import DatasetError


def repair(
    dataset: OfflineDataset,
    inspection: Inspection | None = None,
    *,
    codes: Sequence[str] | None = None,
    episode_length: int | None = None,
) -> OfflineDataset:
    """Return a new dataset in which the findings are mended; the given one stays as it is.

    What was done stands in the metadata under ``"repairs"``, one sentence each, and in the provenance. The copy lies in
    memory, also where the dataset is memory-mapped.

    Args:
        dataset: what was inspected.
        inspection: of this dataset; made here by default.
        codes: which findings to mend; by default all of the table in :mod:`~.inspection` that need not be asked for.
        episode_length: cut ``done_never_set`` into episodes of that many steps.

    Raises:
        ValueError: a code has no repair, or ``episode_length`` does not divide the rows.
        DatasetError: what is left is not valid, or fewer than half of the rows that counted do: something is wrong that
            masks do not mend.
    """
    inspection = inspect(dataset) if inspection is None else inspection
    if unknown := set(codes or ()) - _REPAIRS.keys() - {"done_never_set"}:
        raise ValueError(f"There is no repair of {', '.join(sorted(unknown))}; there is of {', '.join(_REPAIRS)}.")
    wanted = set(_REPAIRS) - _ON_REQUEST if codes is None else set(codes)
    result = OfflineDataset(dataset.data.clone(), dataset.spec, dataset.metadata, check=False)
    done: list[str] = []
    if episode_length is not None and "done_never_set" in inspection:
        result, sentence = _cut(result, episode_length)
        done.append(sentence)
    for code, mend_one in _REPAIRS.items():
        if code in wanted and code in inspection:
            result, sentence = mend_one(result)
            done.append(f"{code}: {sentence}")
    counted, left = (int(defects.flag(part, MASK).sum()) for part in (dataset, result))
    if 2 * left < counted and "duplicated_episodes" not in wanted:
        raise DatasetError(
            f"Repair would leave {left} of the {counted} rows that count ({'; '.join(done)}); mend the source, or name "
            "what to repair by codes=."
        )
    metadata = dict(dataset.metadata)
    if done:
        metadata["repairs"] = [*metadata.get("repairs", []), *done]
        metadata["provenance"] = [*metadata.get("provenance", []), {"step": "repair", "done": done}]
    return OfflineDataset(result.data, result.spec, metadata)


Mended = tuple[OfflineDataset, str]


def _zero_padding(dataset: OfflineDataset) -> Mended:
    count = 0
    for key, columns in defects.padding_columns(dataset).items():
        for side in (key, next_key(key)):
            dataset.data.get(side)[:, columns] = 0.0
        count += int(columns.sum())
    return dataset, f"wrote 0 into {count} entries of every row"


def _zero_not_finite(dataset: OfflineDataset) -> Mended:
    rows = defects.not_finite(dataset)
    for key in dataset.data.keys(include_nested=True, leaves_only=True):
        value = dataset.data.get(key)
        if value.is_floating_point():
            value.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return _mask(dataset, rows)


def _open_masks(dataset: OfflineDataset) -> Mended:
    here, there = (defects.no_legal_action(dataset, key) for key in (ACTION_MASK, next_key(ACTION_MASK)))
    for key in (ACTION_MASK, next_key(ACTION_MASK)):
        mask = dataset.data.get(key)
        mask |= ~mask.any(-1, keepdim=True)
    terminal = defects.flag(dataset, next_key(TERMINATED))
    mended, sentence = _mask(dataset, here | (there & ~terminal))
    return mended, f"allowed every action on {int((here | there).sum())} rows, {sentence}"


def _replace_illegal(dataset: OfflineDataset) -> Mended:
    rows = defects.illegal_action(dataset)
    _put_placeholders(dataset.data, dataset.spec, following=False)
    return _mask(dataset, rows)


def _replace_illegal_next(dataset: OfflineDataset) -> Mended:
    rows = defects.illegal_action(dataset, following=True)
    _put_placeholders(dataset.data, dataset.spec, following=True)
    dataset.data.get(HAS_NEXT_ACTION)[rows.to(dataset.device)] = False
    return dataset, f"marked {int(rows.sum())} rows as without next action"


def _put_placeholders(data: TensorDictBase, spec: TaskSpec, *, following: bool) -> None:
    wrong = defects.illegal_agents(data, spec.action_size, following=following)
    action, mask = (next_key(key) if following else key for key in (ACTION, ACTION_MASK))
    recorded = data.get(action)
    recorded[wrong] = legal_placeholder(torch.zeros_like(recorded), data.get(mask, None))[wrong]


def _clip(dataset: OfflineDataset) -> Mended:
    count = 0
    for key in (ACTION, next_key(ACTION)):
        count += int(defects.outside_bounds(dataset, key).sum())
        dataset.data.get(key).clamp_(dataset.spec.action_low, dataset.spec.action_high)
    return dataset, f"clipped the actions of {count} rows and next rows to the bounds"


def _mark_ends(dataset: OfflineDataset) -> Mended:
    terminated = defects.flag(dataset, next_key(TERMINATED))
    done = defects.flag(dataset, next_key(DONE)) | terminated | defects.flag(dataset, next_key(TRUNCATED))
    before = done.clone()
    done[defects.final_rows(dataset)] = True
    truncated = defects.flag(dataset, next_key(TRUNCATED)) | (done & ~terminated)
    was_inside = torch.ones_like(done)
    was_inside[defects.final_rows(dataset)] = False
    # Where an episode ends that did not, the next action is another episode's; where none of the flags told, nobody
    # knows whether the successor is too.
    dataset.data.get(HAS_NEXT_ACTION)[(done & was_inside).to(dataset.device)] = False
    mended, _ = _mask(_with_ends(dataset, terminated, truncated), done & ~before)
    return mended, f"{int(done.sum())} episodes end now, {int((done & ~before).sum())} of them on newly masked rows"


def _mask_crossing(dataset: OfflineDataset) -> Mended:
    return _mask(dataset, defects.crosses_episode_end(dataset))


def _mask_broken(dataset: OfflineDataset) -> Mended:
    return _mask(dataset, defects.breaks_within_episode(dataset))


def _truncate(dataset: OfflineDataset) -> Mended:
    rows = defects.final_rows(dataset)[defects.terminated_by_time_limit(dataset)]
    terminated, truncated = (defects.flag(dataset, next_key(key)) for key in (TERMINATED, TRUNCATED))
    terminated[rows], truncated[rows] = False, True
    # A reader without final observations repeats the row's own; one without the next episode's start shows there.
    repeats = bool(defects.stands_still(dataset)[rows].all())
    mended = _with_ends(dataset, terminated, truncated)
    unknown = defects.crosses_episode_end(mended)
    if repeats:
        unknown[rows] = True
    mended, sentence = _mask(mended, unknown)
    return mended, f"truncated {len(rows)} episodes instead of terminating them, {sentence} for want of a successor"


def _keep_one_state(dataset: OfflineDataset) -> Mended:
    spec = TaskSpec(**dataset.spec.to_dict() | {"state_size": dataset.spec.state_size // dataset.spec.n_agents})
    for key in (STATE, next_key(STATE)):
        dataset.data.set(key, dataset.data.get(key)[:, : spec.state_size].contiguous())
    mended = OfflineDataset(dataset.data, spec, dataset.metadata, check=False)
    return mended, f"kept {spec.state_size} of {dataset.spec.state_size} entries of the state"


def _drop_copies(dataset: OfflineDataset) -> Mended:
    copies = repeated(episode_hashes(dataset))
    return dataset.select_episodes(~copies), f"dropped {int(copies.sum())} episodes"


def _cut(dataset: OfflineDataset, length: int) -> Mended:
    if length < 1 or len(dataset) % length:
        raise ValueError(f"episode_length={length} must divide the {len(dataset)} rows; give the task's own length.")
    ends = torch.zeros(len(dataset), dtype=torch.bool)
    ends[length - 1 :: length] = True
    unknown = ends & defects.continues(dataset)  # the next row opens another episode
    mended = _with_ends(dataset, torch.zeros_like(ends), ends)
    mended.data.get(HAS_NEXT_ACTION)[ends.to(dataset.device)] = False
    mended, sentence = _mask(mended, unknown)
    return mended, f"done_never_set: cut into {int(ends.sum())} truncated episodes of {length} steps, {sentence}"


def _with_ends(dataset: OfflineDataset, terminated: torch.Tensor, truncated: torch.Tensor) -> OfflineDataset:
    """Return the dataset with episodes that end where the flags ``[T]`` say; the last row ends one."""
    data, done = dataset.data, terminated | truncated
    for key, values in ((TERMINATED, terminated), (TRUNCATED, truncated), (DONE, done)):
        data.set(next_key(key), values.unsqueeze(-1).to(dataset.device))
    ids = torch.zeros(len(done), dtype=torch.int64)
    ids[1:] = done[:-1].cumsum(0)
    data.set(TRAJ_IDS, ids.to(dataset.device))
    return OfflineDataset(data, dataset.spec, dataset.metadata, check=False)


def _mask(dataset: OfflineDataset, rows: torch.Tensor) -> Mended:
    dataset.data.get(MASK)[rows.to(dataset.device)] = False
    return dataset, f"masked {int(rows.sum())} rows"


_REPAIRS: dict[str, Callable[[OfflineDataset], Mended]] = {
    "minus_inf_padding": _zero_padding,
    "not_finite": _zero_not_finite,
    "no_legal_action": _open_masks,
    "illegal_action": _replace_illegal,
    "illegal_next_action": _replace_illegal_next,
    "action_outside_bounds": _clip,
    "episode_marks": _mark_ends,
    "crosses_episode_end": _mask_crossing,
    "broken_episode": _mask_broken,
    "time_limit_as_termination": _truncate,
    "replicated_state": _keep_one_state,
    "duplicated_episodes": _drop_copies,
}
_ON_REQUEST = {"duplicated_episodes"}
