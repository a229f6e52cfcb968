"""The one key layout that every environment, dataset and loss of the library uses.

With batch shape ``B`` and ``n`` agents:

=============================  =======================  =========================================
key                            shape, dtype             meaning
=============================  =======================  =========================================
``("agents", "observation")``  ``[*B, n, o]`` float32   local observations, zero-padded
``("agents", "action")``       ``[*B, n, a]`` float32   continuous action in the bounds
                               ``[*B, n]`` int64        or the index of a discrete action
``("agents", "action_mask")``  ``[*B, n, A]`` bool      legal discrete actions, where there are any
``("agents", "action_log_prob")``  ``[*B, n]`` float32  log-probability of the action under the behaviour
                                                        policy, where a source has it
``("agents", "goal")``         ``[*B, n, g]`` float32   what each agent is to reach, where a task has goals: also the
                                                        last ``g`` numbers of its observation, and, of all
                                                        agents, the last ``n g`` of the state
``("agents", "achieved")``     ``[*B, n, g]`` float32   what it has reached, in the same units
``("agents", "mask")``         ``[*B, n]`` bool         false for a dead or padding agent
``"state"``                    ``[*B, s]`` float32      global state
``("next", ...)``              as above                 the true next observation, state and mask
``("next", "agents", "reward")``  ``[*B, n, 1]`` float32  one reward per agent
``("next", "done")``           ``[*B, 1]`` bool         also ``terminated`` and ``truncated``
``("next", "agents", "action")``  as the action         the dataset's next action, for SARSA
``("collector", "traj_ids")``  ``[*B]`` int64           the episode a row belongs to
``("collector", "mask")``      ``[*B]`` bool            false where a row must not count
``("collector", "has_next_action")``  ``[*B]`` bool     false where ``("next", "agents", "action")``
                                                        is a legal placeholder, because nobody acted
``("collector", "episode_ends")``  ``[*B]`` bool         of slices: where the episode ends, which ``("next",
                                                        "done")`` also says of the last row of a slice
``("collector", "episode")``   ``[*B]`` int64           of experience: the episode, whose rows rounds may cut apart
``("collector", "step")``      ``[*B]`` int64           of experience: the row's step in it, from 0
``("next", "success")``        ``[*B, 1]`` bool         where a task has success
=============================  =======================  =========================================
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import Bound, as_text, checked_bounds, following, like, written_out
from torchrl_marl_offline.core.ranges import BOUNDS, REAL, SIZE

if TYPE_CHECKING:
    from torch import Tensor
    from torchrl.envs import EnvBase

GROUP = "agents"
OBSERVATION = (GROUP, "observation")
ACTION = (GROUP, "action")
ACTION_LOG_PROB = (GROUP, "action_log_prob")
ACTION_MASK = (GROUP, "action_mask")
AGENT_MASK = (GROUP, "mask")
GOAL = (GROUP, "goal")
ACHIEVED = (GROUP, "achieved")
REWARD = (GROUP, "reward")
STATE = "state"
DONE = "done"
TERMINATED = "terminated"
TRUNCATED = "truncated"
TRAJ_IDS = ("collector", "traj_ids")
MASK = ("collector", "mask")
HAS_NEXT_ACTION = ("collector", "has_next_action")
EPISODE_ENDS = ("collector", "episode_ends")
EPISODE = ("collector", "episode")
EPISODE_STEP = ("collector", "step")
SUCCESS = "success"
IS_INIT = "is_init"
"""``[*B, 1]`` bool, where an episode begins: TorchRL's name, read by networks with memory."""


def joined(key: str | tuple[str, ...]) -> str:
    """Return a nested key as one name, its parts joined by dots."""
    return key if isinstance(key, str) else ".".join(key)


def next_key(key: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return ``key`` under ``"next"``: ``next_key(("agents", "reward"))``."""
    return ("next", key) if isinstance(key, str) else ("next", *key)


@dataclass(frozen=True)
@checked
class TaskSpec:
    """The sizes that networks, readers and environments have to agree on.

    Args:
        n_agents: number of agents ``n``.
        observation_size: width ``o`` of a local observation (the widest, when padded).
        state_size: width ``s`` of the global state.
        action_size: width ``a`` of a continuous action, or the number ``A`` of discrete actions.
        discrete: whether actions are indices.
        action_low: lower bound of a continuous action: one number for all components, ``[a]`` numbers, or ``[n, a]``,
            those of each agent. Where they differ, networks work in halves of each component's range.
        action_high: upper bound, likewise. A component whose two bounds are equal is a constant.
        has_action_mask: whether the task says which discrete actions are legal.
        task: the task's name, ``"family/task"``, or ``None``.
    """

    n_agents: Annotated[int, SIZE]
    observation_size: Annotated[int, SIZE]
    state_size: Annotated[int, SIZE]
    action_size: Annotated[int, SIZE]
    discrete: bool = False
    action_low: Annotated[Bound, REAL, BOUNDS] = -1.0
    action_high: Annotated[Bound, REAL, BOUNDS] = 1.0
    has_action_mask: bool = False
    task: str | None = None

    def __post_init__(self) -> None:
        if self.discrete:
            if isinstance(self.action_low, list | tuple) or isinstance(self.action_high, list | tuple):
                raise ValueError("TaskSpec.action_low and action_high are of continuous actions; leave them out.")
            return
        names = ("TaskSpec.action_low", "action_high")
        sizes = {"agents": self.n_agents, "components": self.action_size}
        low, high = checked_bounds(self.action_low, self.action_high, names=names, **sizes)
        object.__setattr__(self, "action_low", low)  # lists, as JSON has them, could not be hashed
        object.__setattr__(self, "action_high", high)

    @property
    def has_component_bounds(self) -> bool:
        """Whether bounds differ between the components or agents of a continuous action."""
        return isinstance(self.action_low, tuple) or isinstance(self.action_high, tuple)

    def bounds_like(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Return the lowest and the highest action: numbers, or tensors that are broadcast to ``x``, ``[*B, n, a]``."""
        low, high = (like(following(bound), x) for bound in (self.action_low, self.action_high))
        return low, high

    def bounds_with_slack(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Return the bounds, widened by what actions may have been rounded by in another precision."""
        low: Any
        high: Any
        low, high = self.bounds_like(x)
        slack = 1e-5 * (high - low)
        if self.has_component_bounds:
            slack = slack.where(slack > 0, 1e-5 * high.abs())
        return low - slack, high + slack

    @property
    def bounds_text(self) -> str:
        """The bounds of a continuous action, as a sentence has them."""
        return as_text(self.action_low, self.action_high)

    def with_bounds_of(self, other: TaskSpec) -> TaskSpec:
        """Return the same task with another's bounds."""
        return replace(self, action_low=other.action_low, action_high=other.action_high)

    def fits(self, task: TaskSpec) -> bool:
        """Say whether actions of these sizes can be played in a task: its sizes, and bounds within its bounds.

        Names of tasks are not looked at.
        """
        here, there = (replace(spec, task=None).with_bounds_of(task) for spec in (self, task))
        return here == there and (self.discrete or self.keeps_within(task))

    def keeps_within(self, task: TaskSpec) -> bool:
        """Say whether the bounds of continuous actions lie within a task's, which has as many agents and components."""
        lows, highs = (
            [[number for row in rows for number in row] for rows in pair]
            for pair in ((self.lows, task.lows), (self.highs, task.highs))
        )
        within = (
            low >= lowest - 1e-5 * (highest - lowest) and high <= highest + 1e-5 * (highest - lowest)
            for low, lowest, high, highest in zip(*lows, *highs)
        )
        return all(within)

    @property
    def lows(self) -> list[tuple[float, ...]]:
        """The lower bounds written out: for each agent those of its components."""
        return written_out(self.action_low, agents=self.n_agents, components=self.action_size)

    @property
    def highs(self) -> list[tuple[float, ...]]:
        """The upper bounds written out: for each agent those of its components."""
        return written_out(self.action_high, agents=self.n_agents, components=self.action_size)

    @classmethod
    def from_env(cls, env: EnvBase) -> TaskSpec:
        """Read the sizes from an environment made by :func:`~torchrl_marl_offline.make_env`."""
        spec = getattr(env, "task_spec", None)
        if not isinstance(spec, cls):
            raise TypeError(
                f"{type(env).__name__} carries no task_spec; make the environment with make_env('family/task')."
            )
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; ``TaskSpec(**d)`` restores it."""
        return asdict(self)
