"""One pass over the rows of a dataset, block by block: everything that inspection and repair have to know.

Memory holds a block, 8 bytes for each row (the hashes that coverage is counted from) and about 40 for each episode.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    DONE,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TERMINATED,
    TRAJ_IDS,
    TRUNCATED,
    next_key,
)
from torchrl_marl_offline.data.quality import defects
from torchrl_marl_offline.data.transitions import row_blocks
from torchrl_marl_offline.data.transitions.fingerprints import (
    EPISODE_KEYS,
    PAIR_KEYS,
    distinct,
    leaf_hashes,
    mixed,
    repeated,
    steps_of_episodes,
)

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDict

    from torchrl_marl_offline.core.layout import TaskSpec


@dataclass
class RowCount:
    """How many rows show something, and the first of them."""

    count: int = 0
    first: int | None = None

    def add(self, rows: torch.Tensor, start: int) -> int:
        """Count the true ones of ``[rows]`` bool, the first of which is row ``start`` of the dataset."""
        count = int(rows.sum())
        if count and self.first is None:
            self.first = start + int(rows.to(torch.uint8).argmax())
        self.count += count
        return count


class Scan:
    """Facts about a dataset whose blocks are given to :meth:`add` in order, and then :meth:`close`.

    Args:
        spec: the task's sizes.
        length: number of rows ``T`` that will come.
        time_limit: steps after which the task stops an episode, or ``None``.

    Attributes:
        rows: by defect, in how many rows it shows and where first.
        outside: actions outside their bounds, and next actions.
        padding: entries that are -inf on every row, by key; see :func:`~.defects.padding_columns`.
        masked_terminal: masked rows that terminated.
        any_counts: whether any row counts in training, for any agent.
        revivals: rows after which an agent that was allowed no action is allowed one again, ``[k, 2]``: row, agent.
        dies: whether some agent is allowed no action up to the end of an episode.
        distinct_pairs: number of different pairs of state and joint action.
    """

    def __init__(self, spec: TaskSpec, length: int, *, time_limit: int | None = None) -> None:
        self.spec = spec
        self.length = length
        self.time_limit = time_limit
        self.rows: dict[str, RowCount] = {}
        self.outside = [0, 0]
        self.padding: dict[NestedKey, torch.Tensor] | None = None
        self.masked_terminal = 0
        self.any_counts = False
        self.revivals = torch.zeros(0, 2, dtype=torch.int64)
        self.dies = False
        self.distinct_pairs = 0
        self._seen = 0
        self._pairs = np.empty(length, np.uint64)
        self._episodes = _Episodes()
        self._previous: TensorDict | None = None
        self._first_state: torch.Tensor | None = None
        self._ends_before_last = False
        self._seen_differing = dict.fromkeys(("state blocks", "state and observations", "states", "rewards"), False)

    @classmethod
    def of(cls, parts: Iterable[TensorDict], spec: TaskSpec, length: int, *, time_limit: int | None = None) -> Scan:
        """Scan all blocks."""
        scan = cls(spec, length, time_limit=time_limit)
        for rows in parts:
            scan.add(rows)
        return scan.close()

    def __getitem__(self, defect: str) -> RowCount:
        return self.rows.get(defect, RowCount())

    # Passing over the rows

    def add(self, rows: TensorDict) -> None:
        """Look at the next rows."""
        start = self._seen
        self._add_values(rows, start)
        self._add_actions(rows, start)
        self._add_episodes(rows, start)
        self._add_signals(rows)
        if self._previous is not None:
            self._add_successors(self._previous, rows[:1], start - 1)
        if len(rows) > 1:
            self._add_successors(rows[:-1], rows[1:], start)
        self._previous = rows[-1:].clone()
        self._seen += len(rows)

    def close(self) -> Scan:
        """Take note that no more rows come."""
        if self._seen != self.length:
            raise RuntimeError(f"A scan of {self.length} rows was given {self._seen}.")
        last = self._previous
        self._add_silence(last, None, torch.ones(1, dtype=torch.bool), self._seen - 1)
        done, terminated, union = _ends(last)
        self._count("episode_marks", (done != union) | ~done, self._seen - 1)
        self._episodes.end(terminated, defects.stands_still(last), (done != union) | ~done)
        self._episodes.close(self._seen)
        self.never_ends = self.length > 1 and not self._ends_before_last and not bool(terminated)
        self.distinct_pairs = distinct(self._pairs)
        del self._pairs
        self._count_reused_ids()
        return self

    def _count(self, defect: str, rows: torch.Tensor, start: int) -> int:
        return self.rows.setdefault(defect, RowCount()).add(rows, start)

    def _add_values(self, rows: TensorDict, start: int) -> None:
        columns = defects.padding_columns(rows)
        if self.padding is None:
            self.padding = columns
        for key, before in list(self.padding.items()):
            still = before & columns[key] if key in columns else torch.zeros_like(before)
            if not torch.equal(still, before):  # so these were no padding, and every row so far is infinite there
                self.rows["not_finite"] = RowCount(start, 0)
                self.padding[key] = still
            if not still.any():
                del self.padding[key]
        bad, unread = defects.not_finite(rows, self.padding)
        self._count("not_finite", bad, start)
        self._count("not_finite_placeholder", unread, start)

    def _add_actions(self, rows: TensorDict, start: int) -> None:
        spec = self.spec
        outside = [defects.outside_bounds(rows, spec, key) for key in (ACTION, next_key(ACTION))]
        self.outside = [count + int(here.sum()) for count, here in zip(self.outside, outside)]
        self._count("action_outside_bounds", outside[0] | outside[1], start)
        empty = torch.zeros(len(rows), dtype=torch.bool)
        for following in (False, True):
            if spec.discrete and not defects.all_legal(rows, spec, following=following):
                illegal = defects.illegal_action(rows, spec, following=following)
                self._count("illegal_next_action" if following else "illegal_action", illegal, start)
                empty |= defects.no_legal_action(rows, next_key(ACTION_MASK) if following else ACTION_MASK)
        self._count("no_legal_action", empty, start)

    def _add_episodes(self, rows: TensorDict, start: int) -> None:
        hashes = {key: leaf_hashes(rows.get(key), key) for key in EPISODE_KEYS}
        self._pairs[start : start + len(rows)] = mixed(sum(hashes[key] for key in PAIR_KEYS))
        ids = rows.get(TRAJ_IDS)
        before = None if self._previous is None else self._previous.get(TRAJ_IDS)
        first = torch.ones(1, dtype=torch.bool) if before is None else ids[:1] != before
        opens = torch.cat([first, ids[1:] != ids[:-1]])
        success = rows.get(next_key(SUCCESS), None)
        self._episodes.add(
            start, opens, ids, mixed(sum(hashes.values())), None if success is None else success.reshape(len(rows))
        )

    def _add_signals(self, rows: TensorDict) -> None:
        self.any_counts = self.any_counts or bool(row_blocks.counts(rows).any())
        masked = ~row_blocks.flag(rows, MASK)
        if self._count("masked_rows", masked, self._seen):
            self.masked_terminal += int((masked & row_blocks.flag(rows, next_key(TERMINATED))).sum())
        seen = self._seen_differing
        reward = rows.get(next_key(REWARD))
        seen["rewards"] = seen["rewards"] or bool((reward != reward[:, :1]).any())
        n, size = self.spec.n_agents, self.spec.state_size
        if n < 2 or size % n or size // n < 2 or seen["state blocks"]:
            seen["state blocks"] = True
            return
        state, joint = rows.get(STATE), rows.get(OBSERVATION).flatten(1)
        parts = state.reshape(len(rows), n, -1)
        if self._first_state is None:
            self._first_state = state[0].clone()
        seen["state blocks"] = bool((parts != parts[:, :1]).any())
        seen["states"] = seen["states"] or bool((state != self._first_state).any())
        other = joint.shape != state.shape or bool((joint != state).any())
        seen["state and observations"] = seen["state and observations"] or other

    def _add_successors(self, here: TensorDict, there: TensorDict, start: int) -> None:
        """Look at rows and the ones after them."""
        done, terminated, union = _ends(here)
        last = here.get(TRAJ_IDS) != there.get(TRAJ_IDS)
        self._add_silence(here, there, last, start)
        wrong = (done != union) | (done != last)
        self._count("episode_marks", wrong, start)
        self._ends_before_last = self._ends_before_last or bool(done.any())
        same, used = defects.continues(here, there), row_blocks.flag(here, MASK)
        still = defects.stands_still(here[last])
        crosses = last & used & ~terminated & same
        crosses[last] &= ~still
        self._count("crosses_episode_end", crosses, start)
        self._count("broken_episode", ~last & used & ~same, start)
        self._episodes.end(terminated[last], still, wrong, last)

    def _add_silence(self, here: TensorDict, there: TensorDict | None, last: torch.Tensor, start: int) -> None:
        """Note where agents that may do nothing may act again, and whether an episode ends with such an agent."""
        if not self["no_legal_action"].count:
            return
        empty = ~here.get(ACTION_MASK).any(-1)  # [rows, n]
        self.dies = self.dies or bool(empty[last].any())
        if there is not None:
            back = empty & there.get(ACTION_MASK).any(-1) & ~last.unsqueeze(-1)
            if back.any():
                self.revivals = torch.cat([self.revivals, back.nonzero() + torch.tensor([start, 0])])

    def dead(self, empty: torch.Tensor, start: int) -> torch.Tensor:
        """Return ``[rows, n]`` bool, which agents without an action have none until their episode ends.

        Args:
            empty: ``[rows, n]`` bool, true where the mask allows nothing.
            start: number of the first row.
        """
        rows = torch.arange(start, start + len(empty))
        ends = self.last_rows[torch.searchsorted(self.last_rows, rows)]
        dead = empty.clone()
        for agent in self.revivals[:, 1].unique().tolist():
            again = self.revivals[self.revivals[:, 1] == agent, 0]
            place = torch.searchsorted(again, rows)
            following = again[place.clamp_max(len(again) - 1)]
            dead[:, agent] &= ~((place < len(again)) & (following <= ends))
        return dead

    def _count_reused_ids(self) -> None:
        """Let every row of an episode whose id an earlier one had count as wrongly marked."""
        episodes = self._episodes
        again = repeated(episodes.ids)
        if again.any():
            wrong = self.rows.setdefault("episode_marks", RowCount())
            wrong.count += int((episodes.lengths - episodes.wrong)[again].sum())
            first = int(episodes.starts[again][0])
            wrong.first = first if wrong.first is None else min(first, wrong.first)

    # What became of it

    @property
    def lengths(self) -> torch.Tensor:
        """Rows of each episode, ``[E]``; an episode is a run of one id."""
        return self._episodes.lengths

    @property
    def last_rows(self) -> torch.Tensor:
        """Row of each episode's last transition, ``[E]``."""
        return self._episodes.starts + self._episodes.lengths - 1

    @property
    def ends_standing(self) -> torch.Tensor:
        """Episodes whose last row's successor is the row itself, ``[E]`` bool."""
        return self._episodes.standing

    @cached_property
    def copies(self) -> torch.Tensor:
        """Episodes that repeat an earlier one, ``[E]`` bool."""
        return repeated(self._episodes.hashes)

    @cached_property
    def by_time_limit(self) -> torch.Tensor:
        """Episodes that a time limit seems to have stopped, ``[E]`` bool: :func:`~.defects.stopped_by_time_limit`."""
        suspect = self._episodes.terminated & ~self._episodes.success
        return defects.stopped_by_time_limit(self.lengths, suspect, self.time_limit)

    @property
    def is_team_reward(self) -> bool:
        """Whether all agents' rewards are equal on every row; false for one agent."""
        return self.spec.n_agents > 1 and not self._seen_differing["rewards"]

    @property
    def state_is_repeated(self) -> bool:
        """Whether the state is one vector, repeated for each agent.

        Not where the state is the joint observation, nor where it never changes.
        """
        seen = self._seen_differing
        return not seen["state blocks"] and seen["state and observations"] and seen["states"]


def _ends(rows: TensorDict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return done, terminated, and the union of terminated and truncated, ``[rows]`` bool."""
    done, terminated, truncated = (row_blocks.flag(rows, next_key(key)) for key in (DONE, TERMINATED, TRUNCATED))
    return done, terminated, terminated | truncated


@dataclass
class _Episodes:
    """What is kept of each episode."""

    count: int = 0
    parts: dict[str, list] = field(default_factory=dict)
    _opened: int = 0
    _ended: int = 0

    def add(
        self, start: int, opens: torch.Tensor, ids: torch.Tensor, hashes: np.ndarray, success: torch.Tensor | None
    ) -> None:
        """Take some rows: ``opens`` ``[rows]`` is true where an episode starts, ``hashes`` are those of the rows."""
        rows = torch.arange(start, start + len(opens))
        self._append("starts", rows[opens])
        self._append("ids", ids[opens])
        number = opens.cumsum(0) - 1 + self.count  # of each row's episode
        self.count = int(number[-1]) + 1
        opened = self._opened if not opens[0] else start
        self._opened = opened if not opens.any() else int(rows[opens][-1])
        time = rows - torch.where(opens, rows, -1).cummax(0).values.clamp_min(opened)
        groups = torch.cat([torch.zeros(1, dtype=torch.int64), opens[1:].nonzero()[:, 0] + 1]).numpy()
        sums = np.add.reduceat(steps_of_episodes(hashes, time.numpy()), groups)
        self._append("hashes", (number[groups], torch.from_numpy(sums.view(np.int64))))
        if success is not None:
            self._append("success", (number[groups], torch.from_numpy(np.add.reduceat(success.long().numpy(), groups))))

    def end(
        self, terminated: torch.Tensor, standing: torch.Tensor, wrong: torch.Tensor, last: torch.Tensor | None = None
    ) -> None:
        """Take the flags of episodes' last rows, and which rows (``last`` among them) are wrongly marked."""
        self._append("terminated", terminated)
        self._append("standing", standing)
        last = torch.ones_like(wrong) if last is None else last
        if wrong.any():
            number = torch.cat([torch.zeros(1, dtype=torch.int64), last.cumsum(0)[:-1]])
            counts = torch.bincount(number[wrong])
            self._append("wrong", (self._ended + torch.arange(len(counts)), counts))
        self._ended += int(last.sum())

    def close(self, rows: int) -> None:
        """Put the parts together: one entry for each episode."""
        self.starts, self.ids = (torch.cat(self.parts[name]) for name in ("starts", "ids"))
        self.lengths = torch.diff(self.starts, append=torch.tensor([rows]))
        self.terminated, self.standing = (torch.cat(self.parts[name]) for name in ("terminated", "standing"))
        self.hashes, self.wrong = self._summed("hashes"), self._summed("wrong")
        self.success = self._summed("success") > 0
        self.parts.clear()

    def _append(self, name: str, values: object) -> None:
        self.parts.setdefault(name, []).append(values)

    def _summed(self, name: str) -> torch.Tensor:
        total = torch.zeros(self.count, dtype=torch.int64)
        for number, values in self.parts.get(name, []):
            total.index_add_(0, number, values)
        return total
