"""What every roll-out of a task with legal actions, dead agents and success has to keep to."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TaskSpec,
)


def assert_battle_layout(data: TensorDict, spec: TaskSpec) -> None:
    """Check a roll-out ``[B, T]``: shapes and types, finite numbers, legal actions, and ends that agree."""
    n = spec.n_agents
    for td in (data, data["next"]):
        for key, shape, dtype in (
            (OBSERVATION, (n, spec.observation_size), torch.float32),
            (STATE, (spec.state_size,), torch.float32),
            (ACTION_MASK, (n, spec.action_size), torch.bool),
            (AGENT_MASK, (n,), torch.bool),
            (SUCCESS, (1,), torch.bool),
            ("terminated", (1,), torch.bool),
            ("truncated", (1,), torch.bool),
        ):
            assert (td[key].shape, td[key].dtype) == ((*data.shape, *shape), dtype)
        assert td[OBSERVATION].isfinite().all()
        assert td[STATE].isfinite().all()
        assert td[ACTION_MASK].any(-1).all()
    reward = data["next", *REWARD]
    assert (reward.shape, reward.dtype) == ((*data.shape, n, 1), torch.float32)
    assert reward.isfinite().all()
    assert data[ACTION_MASK].gather(-1, data[ACTION].unsqueeze(-1)).all()
    end = data["next"]
    assert (end["done"] == end["terminated"] | end["truncated"]).all()
    assert not (end["terminated"] & end["truncated"]).any()
    assert (end[SUCCESS] <= end["terminated"]).all()
