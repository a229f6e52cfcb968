"""Hindsight: recorded steps as if what was achieved later had been the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs.transforms import Transform

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import (
    ACHIEVED,
    DONE,
    EPISODE_ENDS,
    GOAL,
    MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TERMINATED,
    TRAJ_IDS,
    TRUNCATED,
    joined,
    next_key,
)
from torchrl_marl_offline.core.ranges import SEED, SIZE, SIZE_OR_NONE, UNIT
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer

if TYPE_CHECKING:
    from tensordict import NestedKey

    from torchrl_marl_offline.core.goals import GoalFunction
    from torchrl_marl_offline.data.transitions.protocol import Transitions


class HindsightGoals(Transform):
    """Gives some of the sampled steps another goal, one that was achieved (hindsight experience replay).

    Andrychowicz et al., "Hindsight experience replay" (NeurIPS 2017). It is called with samples of a replay buffer over
    the same dataset that say the ``"index"`` of each row, which :func:`hindsight_buffer` does. (Transforms that
    are appended to a buffer are told no index.) Of a step at time t of an episode of T steps, the new goal is what was
    achieved after

    - ``future``: a step drawn uniformly from t, ..., T - 1;
    - ``final``: step T - 1;
    - ``random``: any step of the dataset.

    The other steps keep the goal that they were recorded with. The goal is replaced where it stands: at ``("agents",
    "goal")``, at the end of observations and states, this step's and the next one's. Reward, ``"terminated"`` and
    ``"success"`` are computed anew from what was achieved in this step; a step that ended its episode and does not
    reach the new goal is ``"truncated"``.

    Slices have one goal each, drawn by their first step, because networks with memory and returns of several steps see
    all of it; what comes after the step that reaches it does not count (``("collector", "mask")``).

    Args:
        data: the dataset that the buffer draws from, with goals and what was achieved, as :func:`collect` records it.
        outcome: reward ``[*B, n]`` and success ``[*B]`` of what was achieved and the goals, ``[*B, n, g]`` each: the
            environment's ``outcome``, such as :class:`~torchrl_marl_offline.core.goals.AtGoals`, or a function of
            one's own.
        future: probability of such a goal.
        final: likewise.
        random: likewise.
        per: ``"team"``: one draw for all agents, whose goals were then achieved at one time; ``"agent"``: a draw for
            each.
        slice_len: of the buffer, where it draws slices that lie end to end; sequences need none.
        device: where samples are.
        seed: of the draws; by default from the operating system.

    Attributes:
        generator: of the draws.
        rows: how many the dataset has.

    Raises:
        KeyError: the dataset has no goals; or a sample has no ``"index"``.
        ValueError: probabilities that are more than 1 together; goals are not at the end of observations and states, or
            of another shape than what was achieved; or an episode's rows do not lie together.
        TypeError: ``outcome`` is no such function.
    """

    @checked
    def __init__(
        self,
        data: Transitions | TensorDictBase,
        outcome: GoalFunction,
        *,
        future: Annotated[float, UNIT] = 0.8,
        final: Annotated[float, UNIT] = 0.0,
        random: Annotated[float, UNIT] = 0.0,
        per: Literal["team", "agent"] = "team",
        slice_len: Annotated[int | None, SIZE] = None,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
    ) -> None:
        super().__init__()
        if future + final + random > 1 + 1e-9:
            raise ValueError(f"future + final + random must be at most 1, got {future} + {final} + {random}.")
        if not callable(outcome):
            raise TypeError(f"outcome must be a function of what was achieved and the goals, got {outcome!r:.60}.")
        rows = data if isinstance(data, TensorDictBase) else data.data
        for key in (GOAL, next_key(ACHIEVED), TRAJ_IDS):
            if rows.get(key, None) is None:
                raise KeyError(f"The data has no {key!r}; record it by collect() in a task with goals, or set it.")
        self.outcome, self.per, self.slice_len = outcome, per, slice_len
        self.future, self.final, self.random = future, final, random
        # plain attributes: they are the dataset's, and no state of the buffer
        goal = _plain(rows.get(GOAL))
        self._achieved = _plain(rows.get(next_key(ACHIEVED))).to(device)
        _check_goals(goal, self._achieved)
        _check_ends(rows, goal)
        self._goal = goal.to(device)
        _check_outcome(outcome, self._achieved[:2], self._goal[:2])
        ids, lengths = torch.unique_consecutive(_plain(rows.get(TRAJ_IDS)).flatten(), return_counts=True)
        if len(ids.unique()) < len(ids):
            raise ValueError(
                "The rows of an episode do not lie one after the other, so that nothing is known to come later; sort "
                f"the data by {TRAJ_IDS!r} and time."
            )
        # [T], the last row of a row's episode
        self._last = (lengths.cumsum(0) - 1).repeat_interleave(lengths).to(device)
        self.rows = len(self._last)
        self.generator = torch.Generator(device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    @classmethod
    def drawn_with(
        cls, data: Transitions | TensorDictBase, sampling: Mapping[str, Any], **options: Any
    ) -> HindsightGoals:
        """Return the one for samples of a buffer that was made with the options ``sampling``."""
        flat = sampling.get("slice_len") if sampling.get("burn_in") is None else None
        return cls(data, slice_len=flat, **options)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Relabel a sample ``[*B]`` of the buffer."""
        index = tensordict.get("index", None)
        if index is None:
            raise KeyError("Hindsight needs the 'index' of each row in the dataset; sample from hindsight_buffer().")
        index = torch.as_tensor(index).reshape(tensordict.shape)
        return self.relabel(tensordict, index, self.numbers(index, self.generator))

    def numbers(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Draw what the goals of a sample depend on, for its rows' numbers ``[*B]``: ``[2, S, 1 or n]`` of S slices."""
        columns = self._goal.shape[1] if self.per == "agent" else 1
        kind_of = {"dtype": torch.float64, "device": index.device}
        return torch.rand(2, len(self._slices(index)), columns, generator=generator, **kind_of)

    def relabel(self, tensordict: TensorDictBase, index: Tensor, numbers: Tensor) -> TensorDictBase:
        """Relabel a sample ``[*B]`` of the rows ``index``, whose goals follow from :meth:`numbers`."""
        slices = self._slices(index)  # [S, L]
        drawn, anew = self._chosen(slices[:, 0], numbers)  # [S, n] each
        agent = torch.arange(self._goal.shape[1], device=index.device)
        chosen = self._achieved[drawn, agent].unsqueeze(1)  # [S, 1, n, g]
        goal = torch.where(anew[:, None, :, None], chosen, self._goal[slices])
        reward, success = self.outcome(self._achieved[slices], goal)  # [S, L, n], [S, L]
        reached = torch.where(success, slices, len(self._last)).amin(1, keepdim=True)  # the first row that does
        over = slices > reached
        changed = anew.any(-1, keepdim=True).expand_as(success)
        shape = tensordict.shape
        return self._write(
            tensordict,
            goal.reshape(*shape, *goal.shape[2:]),
            reward.reshape(*shape, -1),
            success=success.reshape(shape),
            over=(over & changed).reshape(shape),
            changed=changed.reshape(shape),
        )

    def _slices(self, index: Tensor) -> Tensor:
        if index.ndim > 1:
            return index.flatten(0, -2)
        if self.slice_len is None:
            return index.unsqueeze(1)
        if len(index) % self.slice_len:
            raise ValueError(f"A sample of {len(index)} rows is no whole number of slices of {self.slice_len}.")
        return index.view(-1, self.slice_len)

    def _chosen(self, first: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return a row to take a goal from and whether to take it, ``[S, n]`` each, for rows ``[S]``."""
        n = self._goal.shape[1]
        kind, place = numbers
        first, last = first.unsqueeze(-1), self._last[first].unsqueeze(-1)
        later = first + (place * (last - first + 1)).long()
        anywhere = (place * len(self._last)).long()
        with_final = self.future + self.final
        row = torch.where(kind < self.future, later, torch.where(kind < with_final, last, anywhere))
        anew = kind < with_final + self.random
        return row.expand(-1, n), anew.expand(-1, n)

    def __str__(self) -> str:
        shares = {"future": self.future, "final": self.final, "random": self.random}
        return ", ".join([*(f"{name} {share:g}" for name, share in shares.items() if share), f"per {self.per}"])

    def rewards(self) -> list[Tensor]:
        """Return rewards ``[T, n, 1]`` of all rows if what they achieved, or what their episodes did, was the goal."""
        goals = (self._achieved, self._achieved[self._last])
        return [self.outcome(self._achieved, goal)[0].unsqueeze(-1) for goal in goals]

    def _write(
        self, td: TensorDictBase, goal: Tensor, reward: Tensor, *, success: Tensor, over: Tensor, changed: Tensor
    ) -> TensorDictBase:
        """Put the goal and what follows from it where a sample has such entries."""

        def put(key: Any, anew: Tensor) -> None:
            there = td.get(key, None)
            if there is not None:
                where = changed.view(*changed.shape, *[1] * (there.ndim - changed.ndim))
                td.set(key, torch.where(where, anew.to(there), there))

        for key in (OBSERVATION, next_key(OBSERVATION)):
            if (there := td.get(key, None)) is not None:
                put(key, torch.cat([there[..., : -goal.shape[-1]], goal.to(there)], -1))
        joint = goal.flatten(-2)
        for key in (STATE, next_key(STATE)):
            if (there := td.get(key, None)) is not None:
                put(key, torch.cat([there[..., : -joint.shape[-1]], joint.to(there)], -1))
        ends = td.get(EPISODE_ENDS, None)
        if ends is not None:
            put(EPISODE_ENDS, ends | success)
        success = success.unsqueeze(-1)
        done = td.get(next_key(DONE), None)
        put(GOAL, goal)
        put(next_key(REWARD), reward.unsqueeze(-1))
        put(next_key(SUCCESS), success)
        put(next_key(TERMINATED), success)
        if done is not None:
            put(next_key(TRUNCATED), done & ~success)
            put(next_key(DONE), done | success)
        mask = td.get(MASK, None)
        if mask is not None:
            td.set(MASK, mask & ~over)
        return td


class RelabelledBuffer(TensorDictReplayBuffer):
    """A buffer whose samples are relabelled last, when their rows and the ends of their slices are known."""

    hindsight: HindsightGoals

    def sample(self, *args: Any, return_info: bool = False, **options: Any) -> Any:
        """Draw and relabel a sample."""
        found = super().sample(*args, return_info=return_info, **options)
        sampled = found[0] if return_info else found
        # one state for both draws, which checkpoints have; loading makes a new one
        self.hindsight.generator = self._rng
        self.hindsight(sampled)
        return found


@checked
def hindsight_buffer(
    data: Transitions | TensorDictBase,
    outcome: GoalFunction,
    *,
    batch_size: Annotated[int, SIZE],
    future: Annotated[float, UNIT] = 0.8,
    final: Annotated[float, UNIT] = 0.0,
    random: Annotated[float, UNIT] = 0.0,
    per: Literal["team", "agent"] = "team",
    device: torch.device | str | None = None,
    slice_len: Annotated[int | None, SIZE] = None,
    burn_in: Annotated[int | None, SIZE_OR_NONE, ReadWith("slice_len", given=True)] = None,
    seed: Annotated[int | None, SEED] = None,
    keys: Sequence[NestedKey] | None = None,
) -> TensorDictReplayBuffer:
    """Return a replay buffer that relabels what it draws, see :class:`HindsightGoals`.

    Everything else is that of ``data.replay_buffer``. Equal seeds give equal samples, and one generator, whose state
    checkpoints have, draws rows and goals.

    Args:
        data: a dataset with goals and what was achieved.
        outcome: reward and success of what was achieved and the goals: the environment's ``outcome``.
        batch_size: rows of a sample.
        future: probability that a step's goal is what was achieved later in its episode.
        final: that it is what was achieved last in its episode.
        random: that it is what was achieved anywhere in the dataset. The rest keep their goal.
        per: one draw for the ``"team"``, or for each ``"agent"``.
        device: put all of it on that device.
        slice_len: draw slices of episodes of that many rows.
        burn_in: rows of a slice that memory alone sees.
        seed: of both draws.
        keys: leaves to keep, such as ``loss.in_keys``.

    Examples:
        >>> from torchrl_marl_offline import collect, make_env
        >>> from torchrl_marl_offline.data import hindsight_buffer
        >>> env = make_env("games/grid_goals", num_envs=20, seed=0)
        >>> data = collect(env, episodes=20, seed=0)
        >>> buffer = hindsight_buffer(data, env.outcome, future=0.8, batch_size=400, seed=0)
        >>> reached = [each.sample()["next", "success"].sum() for each in (buffer, data.replay_buffer(batch_size=400))]
        >>> bool(reached[0] > reached[1])
        True
    """
    options = {"slice_len": slice_len, "burn_in": burn_in, "seed": seed, "keys": keys, "device": device}
    buffer = make_replay_buffer(data, batch_size=batch_size, buffer_class=RelabelledBuffer, **options)
    shares = {"future": future, "final": final, "random": random}
    device = buffer.storage.device
    buffer.hindsight = HindsightGoals.drawn_with(data, options, outcome=outcome, per=per, device=device, **shares)
    return buffer


def _plain(leaf: Tensor) -> Tensor:
    return leaf.as_subclass(torch.Tensor)


def _check_goals(goal: Tensor, achieved: Tensor) -> None:
    if goal.ndim != 3 or goal.shape != achieved.shape or not len(goal):
        raise ValueError(
            f"Goals and what was achieved must be [rows, agents, numbers] alike, got {list(goal.shape)} and "
            f"{list(achieved.shape)}; write them anew."
        )
    for name, each in ((GOAL, goal), (next_key(ACHIEVED), achieved)):
        if each.is_floating_point() and not each.isfinite().all():
            raise ValueError(f"{joined(name)} is NaN or infinite somewhere, and would become a goal; correct it.")


def _check_outcome(outcome: GoalFunction, achieved: Tensor, goal: Tensor) -> None:
    """Ask a function of the user's own once, for two rows."""
    achieved, goal = (each.unsqueeze(1) for each in (achieved, goal))  # [2, 1, n, g]
    wanted = "reward [*B, n] and success [*B], of bools, for what was achieved and the goals, [*B, n, g] each"
    try:
        reward, success = outcome(achieved, goal)
        found = f"{list(reward.shape)} and {str(success.dtype).removeprefix('torch.')} {list(success.shape)}"
    except Exception as error:
        raise TypeError(f"outcome must return {wanted}; asked for two rows: {type(error).__name__}: {error}") from error
    shapes = achieved.shape[:3], achieved.shape[:2]
    if (reward.shape, success.shape) != shapes or success.dtype != torch.bool:
        raise TypeError(f"outcome must return {wanted}; asked for {list(achieved.shape)}, it returned {found}.")


def _check_ends(rows: TensorDictBase, goal: Tensor) -> None:
    """Refuse data whose observations and states do not end with the goals."""
    for key, expected in ((OBSERVATION, goal), (STATE, goal.flatten(-2))):
        for each in (key, next_key(key)):
            there = rows.get(each, None)
            if there is not None and not torch.equal(_plain(there)[..., -expected.shape[-1] :], expected):
                raise ValueError(
                    f"{joined(each)} does not end with the goals, {expected.shape[-1]} numbers, which networks read "
                    "there; append them to it."
                )
