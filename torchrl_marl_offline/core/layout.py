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
``("next", "success")``        ``[*B, 1]`` bool         where a task has success
=============================  =======================  =========================================
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import REAL, SIZE

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

GROUP = "agents"
OBSERVATION = (GROUP, "observation")
ACTION = (GROUP, "action")
ACTION_LOG_PROB = (GROUP, "action_log_prob")
ACTION_MASK = (GROUP, "action_mask")
AGENT_MASK = (GROUP, "mask")
REWARD = (GROUP, "reward")
STATE = "state"
DONE = "done"
TERMINATED = "terminated"
TRUNCATED = "truncated"
TRAJ_IDS = ("collector", "traj_ids")
MASK = ("collector", "mask")
HAS_NEXT_ACTION = ("collector", "has_next_action")
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
        action_low: lower bound of a continuous action, the same for each of its components.
        action_high: upper bound of a continuous action.
        has_action_mask: whether the task says which discrete actions are legal.
        task: the task's name, ``"family/task"``, or ``None``.
    """

    n_agents: Annotated[int, SIZE]
    observation_size: Annotated[int, SIZE]
    state_size: Annotated[int, SIZE]
    action_size: Annotated[int, SIZE]
    discrete: bool = False
    action_low: Annotated[float, REAL] = -1.0
    action_high: Annotated[float, REAL] = 1.0
    has_action_mask: bool = False
    task: str | None = None

    def __post_init__(self) -> None:
        if not self.discrete and not self.action_low < self.action_high:
            raise ValueError(
                f"TaskSpec.action_low must lie below action_high, got {self.action_low} and {self.action_high}."
            )

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
