"""Action masks of environments, in which an agent that is dead may be allowed nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def usable_mask(
    mask: torch.Tensor, alive: torch.Tensor | None, over: torch.Tensor | None = None, *, names: Sequence[str] = ()
) -> torch.Tensor:
    """Return an environment's action mask, with every action open to agents that are dead and allowed none.

    Args:
        mask: ``[B, n, A]`` bool.
        alive: ``[B, n]`` bool, the agents' mask, where there is one; without it all live.
        over: ``[B]`` or ``[B, 1]`` bool, true where the task ended and nobody acts.
        names: of the agents, for the message.

    Raises:
        ValueError: an agent lives, the episode goes on, and the mask allows it no action.
    """
    empty = ~mask.any(-1)
    if not empty.any():
        return mask
    stuck = empty if alive is None else empty & alive
    if over is not None:
        stuck = stuck & ~over.reshape(len(mask), 1)
    if stuck.any():
        slot, agent = stuck.nonzero()[0].tolist()
        who = names[agent] if names else agent
        raise ValueError(
            f"Agent {who} of environment {slot} lives, but its action mask allows no action; let the environment allow "
            "one, a no-op say, or tell by the agents' mask that it is dead."
        )
    return mask | empty.unsqueeze(-1)
