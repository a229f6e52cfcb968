"""How returns are shared among agents that each have a reward of their own: sum, smallest, Gini coefficient."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AgentShares(NamedTuple):
    """How agents share what a team earns.

    Attributes:
        total: sum over agents of their mean returns.
        least: the smallest of them.
        gini: their Gini coefficient, 0 where all are equal, ``(n - 1) / n`` where one has everything; ``None`` where a
            mean return is below 0 or all are 0, of which there are no shares.
    """

    total: float
    least: float
    gini: float | None


def shares_of(returns: Tensor) -> AgentShares:
    """Return how returns of agents, ``[E, n]`` of episodes, are shared.

    The Gini coefficient is ``sum_ij |x_i - x_j| / (2 n sum_i x_i)`` of the agents' mean returns ``x``.

    Examples:
        >>> import torch
        >>> shares_of(torch.tensor([[1.0, 3.0], [3.0, 5.0]]))
        AgentShares(total=6.0, least=2.0, gini=0.1666...)
    """
    mean = returns.double().mean(0)  # [E, n] -> [n]
    total, least = mean.sum().item(), mean.min().item()
    if not (least >= 0 and total > 0):
        return AgentShares(total, least, None)
    apart = (mean.unsqueeze(0) - mean.unsqueeze(1)).abs().sum().item()
    return AgentShares(total, least, apart / (2 * len(mean) * total))
