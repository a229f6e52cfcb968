"""The steps of a repair: what each does to a block of rows; :mod:`~.repairs` chains them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tensordict import TensorDict

from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
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
from torchrl_marl_offline.data.quality import defects
from torchrl_marl_offline.data.quality.scan import Scan
from torchrl_marl_offline.data.transitions import bad_episodes, row_blocks
from torchrl_marl_offline.data.transitions.assembly import legal_placeholder
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError


@dataclass
class StepContext:
    """What a step knows and counts.

    Args:
        spec: the task's sizes before the step.
        length: rows before the step.
        source: the scan of the dataset as it was given.
        scan: of the rows as the steps before leave them, for the steps that ask for it.
        episode_length: steps to cut episodes of.
        bad: what the reader noted of episodes that cannot be read.
        tally: what the step counts in the current pass.
    """

    spec: TaskSpec
    length: int
    source: Scan
    scan: Scan
    episode_length: int | None
    bad: list[dict[str, Any]] = field(default_factory=list)
    tally: Counter = field(default_factory=Counter)


Mend = Callable[[TensorDict, TensorDict | None, int, StepContext], TensorDict | None]
"""Mends a block in place (or returns another), given the following block and the number of the block's first row."""


@dataclass(frozen=True)
class Step:
    """A repair.

    Args:
        mend: mends a block.
        sentence: what was done, with the counts of the tally.
        looks_ahead: whether it needs the following block.
        scans: whether it needs a scan of what the steps before make of the rows.
        result: the sizes and the number of rows after it, where they change.
    """

    mend: Mend
    sentence: str
    looks_ahead: bool = False
    scans: bool = False
    result: Callable[[StepContext], tuple[TaskSpec, int]] | None = None

    def apply(self, parts: Iterator[TensorDict], job: StepContext) -> Iterator[TensorDict]:
        """Yield the mended blocks."""
        job.tally.clear()
        start = 0
        for rows, following in row_blocks.with_next(parts) if self.looks_ahead else ((rows, None) for rows in parts):
            count = len(rows)
            mended = self.mend(rows, following, start, job)
            start += count
            rows = rows if mended is None else mended
            if len(rows):
                yield rows


def _cut(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    length = job.episode_length
    ends = torch.arange(start + 1, start + len(rows) + 1) % length == 0
    unknown = ends & defects.continues_within(rows, following)  # the next row opens another episode
    _set_ends(rows, torch.zeros_like(ends), ends, job)
    rows.get(HAS_NEXT_ACTION)[ends] = False
    job.tally["length"] = length
    _mask(rows, unknown, job)


def _check_cut(job: StepContext) -> tuple[TaskSpec, int]:
    length = job.episode_length
    if length < 1 or job.length % length:
        raise ValueError(f"episode_length={length} must divide the {job.length} rows; give the task's own length.")
    return job.spec, job.length


def _zero_padding(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    for key, columns in job.source.padding.items():
        for side in (key, next_key(key)):
            rows.get(side)[:, columns] = 0.0
    job.tally["entries"] = sum(int(columns.sum()) for columns in job.source.padding.values())


def _replace_placeholders(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    found = torch.zeros(len(rows), dtype=torch.bool)
    for key, wrong, counted in defects.not_finite_leaves(rows, job.source.padding):
        value, unread = rows.get(key), wrong & ~counted
        own = rows.get(key[1:], None) if isinstance(key, tuple) and key[0] == "next" else None
        value.copy_(torch.where(unread, torch.zeros_like(value) if own is None else own.nan_to_num(0, 0, 0), value))
        found |= unread.reshape(len(rows), -1).any(-1)
    job.tally["rows"] += int(found.sum())


def _zero_not_finite(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    bad, _ = defects.not_finite(rows, job.source.padding)
    for key in rows.keys(include_nested=True, leaves_only=True):
        value = rows.get(key)
        if value.is_floating_point():
            value.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    _mask(rows, bad, job)


def _open_masks(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    here, there = (~rows.get(key).any(-1) for key in (ACTION_MASK, next_key(ACTION_MASK)))  # [rows, n]
    last = torch.isin(torch.arange(start, start + len(rows)), job.scan.last_rows).unsqueeze(-1)
    gone = job.scan.dead(here, start)
    # The next row's agents; after the last row nobody is known to be dead who was not.
    gone_next = there & torch.where(last, gone, job.scan.dead(there, start))
    gone_next[:-1] = torch.where(last[:-1], gone_next[:-1], there[:-1] & gone[1:])
    if job.scan.dies or AGENT_MASK in rows.keys(include_nested=True):
        for key, dead in ((AGENT_MASK, gone), (next_key(AGENT_MASK), gone_next)):
            alive = rows.get(key, None)
            rows.set(key, ~dead if alive is None else alive & ~dead)
    for key in (ACTION_MASK, next_key(ACTION_MASK)):
        mask = rows.get(key)
        mask |= ~mask.any(-1, keepdim=True)
    job.tally["rows"] += int((here | there).any(-1).sum())
    job.tally["dead"] += int(gone.any(-1).sum())
    unknown = (there & ~gone_next).any(-1) & ~row_blocks.flag(rows, next_key(TERMINATED))
    _mask(rows, (here & ~gone).any(-1) | gone.all(-1) | unknown, job)


def _replace_illegal(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    illegal = _put_placeholders(rows, job.spec, following=False)
    _mask(rows, illegal, job)


def _replace_illegal_next(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    illegal = _put_placeholders(rows, job.spec, following=True)
    rows.get(HAS_NEXT_ACTION)[illegal] = False
    job.tally["rows"] += int(illegal.sum())


def _put_placeholders(rows: TensorDict, spec: TaskSpec, *, following: bool) -> torch.Tensor:
    """Put a legal action where an illegal one is; return the rows."""
    wrong = defects.illegal_agents(rows, spec.action_size, following=following)
    action, mask = (next_key(key) if following else key for key in (ACTION, ACTION_MASK))
    recorded = rows.get(action)
    recorded[wrong] = legal_placeholder(torch.zeros_like(recorded), rows.get(mask, None))[wrong]
    return wrong.any(-1)


def _clip(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    for key in (ACTION, next_key(ACTION)):
        job.tally["rows"] += int(defects.outside_bounds(rows, job.spec, key).sum())
        rows.get(key).clamp_(*job.spec.bounds_like(rows.get(key)))


def _mark_ends(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    terminated, truncated = (row_blocks.flag(rows, next_key(key)) for key in (TERMINATED, TRUNCATED))
    told = row_blocks.flag(rows, next_key(DONE)) | terminated | truncated
    last = _last(rows, following)
    done = told | last
    # Where an episode ends that did not, the next action is another episode's; where none of the flags told, nobody
    # knows whether the successor is too.
    rows.get(HAS_NEXT_ACTION)[done & ~last] = False
    _set_ends(rows, terminated, truncated | (done & ~terminated), job)
    job.tally["ends"] += int(done.sum())
    _mask(rows, done & ~told, job)


def _mask_crossing(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    _mask(rows, _crosses(rows, following), job)


def _mask_broken(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    inside = ~_last(rows, following) & row_blocks.flag(rows, MASK)
    _mask(rows, inside & ~defects.continues_within(rows, following), job)


def _truncate(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    by_limit = job.scan.by_time_limit
    ends = job.scan.last_rows[by_limit]
    here = ends[(ends >= start) & (ends < start + len(rows))] - start
    terminated, truncated = (row_blocks.flag(rows, next_key(key)).clone() for key in (TERMINATED, TRUNCATED))
    terminated[here], truncated[here] = False, True
    _set_ends(rows, terminated, truncated, job)
    unknown = _crosses(rows, following, last=terminated | truncated)
    # A reader without final observations repeats the row's own; one without the next episode's start shows there.
    if job.scan.ends_standing[by_limit].all():
        unknown[here] = True
    job.tally["episodes"] += len(here)
    _mask(rows, unknown, job)


def _keep_one_state(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> None:
    size = job.spec.state_size // job.spec.n_agents
    for key in (STATE, next_key(STATE)):
        rows.set(key, rows.get(key)[:, :size].contiguous())
    job.tally["kept"], job.tally["size"] = size, job.spec.state_size


def _with_one_state(job: StepContext) -> tuple[TaskSpec, int]:
    return replace(job.spec, state_size=job.spec.state_size // job.spec.n_agents), job.length


def _drop_copies(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> TensorDict:
    copies = job.scan.copies
    episode = torch.searchsorted(job.scan.last_rows, torch.arange(start, start + len(rows)))
    rows.set(TRAJ_IDS, ((~copies).cumsum(0) - 1)[episode])
    job.tally["episodes"] = int(copies.sum())
    return rows[~copies[episode]]


def _without_copies(job: StepContext) -> tuple[TaskSpec, int]:
    return job.spec, job.length - int(job.scan.lengths[job.scan.copies].sum())


def _drop_bad(rows: TensorDict, following: TensorDict | None, start: int, job: StepContext) -> TensorDict | None:
    job.tally["which"] = bad_episodes.told(job.bad)
    bad = _bad_ids(job)
    if not len(bad):
        return None
    dropped = torch.zeros(len(job.source.lengths), dtype=torch.bool)
    dropped[bad] = True
    episode = torch.searchsorted(job.source.last_rows, torch.arange(start, start + len(rows)))
    rows.set(TRAJ_IDS, ((~dropped).cumsum(0) - 1)[episode])
    return rows[~dropped[episode]]


def _without_bad(job: StepContext) -> tuple[TaskSpec, int]:
    length = job.length - int(job.source.lengths[_bad_ids(job)].sum())
    if length < 1:
        raise DatasetError(f"No episode would be left ({bad_episodes.told(job.bad)}); fetch the source again.")
    return job.spec, length


def _bad_ids(job: StepContext) -> torch.Tensor:
    return bad_episodes.ids_to_drop({bad_episodes.KEY: job.bad})


def _last(rows: TensorDict, following: TensorDict | None) -> torch.Tensor:
    """Rows that end an episode by its id, ``[rows]``."""
    return defects.changes(rows.get(TRAJ_IDS), None if following is None else following.get(TRAJ_IDS))


def _crosses(rows: TensorDict, following: TensorDict | None, last: torch.Tensor | None = None) -> torch.Tensor:
    """Truncated rows that count, but whose successor is the next episode's first observation."""
    suspect = _last(rows, following) if last is None else last.clone()
    if following is None:
        suspect[-1] = False  # no other episode follows
    suspect &= row_blocks.flag(rows, MASK) & ~row_blocks.flag(rows, next_key(TERMINATED))
    if suspect.any():
        suspect &= defects.continues_within(rows, following) & ~defects.stands_still(rows)
    return suspect


def _set_ends(rows: TensorDict, terminated: torch.Tensor, truncated: torch.Tensor, job: StepContext) -> None:
    """Let episodes end where the flags ``[rows]`` say, and number them."""
    done = terminated | truncated
    for key, values in ((TERMINATED, terminated), (TRUNCATED, truncated), (DONE, done)):
        rows.set(next_key(key), values.unsqueeze(-1))
    before = done.cumsum(0) - done.long()
    rows.set(TRAJ_IDS, before + job.tally["ended"])
    job.tally["ended"] += int(done.sum())


def _mask(rows: TensorDict, which: torch.Tensor, job: StepContext) -> None:
    rows.get(MASK)[which] = False
    job.tally["masked"] += int(which.sum())


_MASKED = "masked {masked} rows"
STEPS: dict[str, Step] = {
    "bad_episode": Step(_drop_bad, "dropped what cannot be read: {which}", result=_without_bad),
    "done_never_set": Step(
        _cut,
        "cut into {ended} truncated episodes of {length} steps, " + _MASKED,
        looks_ahead=True,
        result=_check_cut,
    ),
    "minus_inf_padding": Step(_zero_padding, "wrote 0 into {entries} entries of every row"),
    "not_finite_placeholder": Step(
        _replace_placeholders, "wrote other values on {rows} rows, where nothing reads them"
    ),
    "not_finite": Step(_zero_not_finite, _MASKED),
    "no_legal_action": Step(
        _open_masks,
        "allowed every action on {rows} rows, on {dead} of which the agents without one are taken for dead, " + _MASKED,
        scans=True,
    ),
    "illegal_action": Step(_replace_illegal, _MASKED),
    "illegal_next_action": Step(_replace_illegal_next, "marked {rows} rows as without next action"),
    "action_outside_bounds": Step(_clip, "clipped the actions of {rows} rows and next rows to the bounds"),
    "episode_marks": Step(
        _mark_ends, "{ends} episodes end now, {masked} of them on newly masked rows", looks_ahead=True
    ),
    "crosses_episode_end": Step(_mask_crossing, _MASKED, looks_ahead=True),
    "broken_episode": Step(_mask_broken, _MASKED, looks_ahead=True),
    "time_limit_as_termination": Step(
        _truncate,
        "truncated {episodes} episodes instead of terminating them, " + _MASKED + " for want of a successor",
        looks_ahead=True,
        scans=True,
    ),
    "replicated_state": Step(_keep_one_state, "kept {kept} of {size} entries of the state", result=_with_one_state),
    "duplicated_episodes": Step(_drop_copies, "dropped {episodes} episodes", scans=True, result=_without_copies),
}
ON_REQUEST = {"duplicated_episodes"}
"""The steps that have to be asked for by name."""
