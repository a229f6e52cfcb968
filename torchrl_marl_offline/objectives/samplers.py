"""Zeroth-order searches for the action of the highest value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.noise import normal_like, uniform_like
from torchrl_marl_offline.core.ranges import FEW, POSITIVE, REAL, SEVERAL, AtMost

Worth = Callable[[Tensor], Tensor]
"""From candidates ``[*B, K, n, a]`` to their values ``[*B, K, n]``."""


@dataclass(frozen=True, kw_only=True)
@checked
class ActionSampler(ABC):
    """Base class of the zeroth-order searches for an agent's best action.

    Args:
        iterations: how often candidates are drawn.
        samples: candidates of each iteration.
    """

    iterations: Annotated[int, FEW] = 3
    samples: Annotated[int, SEVERAL] = 10

    @abstractmethod
    def propose(self, score: Worth, action: Tensor, low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return candidates ``[*B, K, n, a]`` and their values ``[*B, K, n]``; ``action`` ``[*B, n, a]`` has the shape.

        Actions lie between ``low`` and ``high``.
        """

    def _like(self, action: Tensor, count: int) -> Tensor:
        return action.unsqueeze(-3).expand(*action.shape[:-2], count, *action.shape[-2:])


@dataclass(frozen=True, kw_only=True)
@checked
class GaussianSampler(ActionSampler):
    """A search by a Gaussian, each component on its own, that each iteration moves.

    Args:
        iterations: how often the Gaussian is refined.
        samples: candidates of each iteration.
        loc: first mean, in halves of the action range from its middle.
        scale: first standard deviation, in halves of the action range.
    """

    loc: Annotated[float, REAL] = 0.0
    scale: Annotated[float, POSITIVE] = 2.0

    def propose(self, score: Worth, action: Tensor, low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the last iteration's candidates, clipped to the bounds, and their values."""
        half = (high - low) / 2
        loc = torch.zeros_like(action).unsqueeze(-3) + (low + half + self.loc * half)
        scale = torch.zeros_like(loc) + self.scale * half
        kept: tuple[Tensor, Tensor] | None = None
        for _ in range(self.iterations):
            drawn = loc + scale * normal_like(self._like(action, self.samples))
            drawn = drawn.clamp(low, high)
            candidates, values = drawn, score(drawn)
            if kept is not None:
                candidates, values = torch.cat([candidates, kept[0]], -3), torch.cat([values, kept[1]], -2)
            loc, scale, kept = self.refine(candidates, values, loc)
        return candidates, values

    @abstractmethod
    def refine(
        self, candidates: Tensor, values: Tensor, loc: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Return the next mean and deviation ``[*B, 1, n, a]``, and candidates with values that stay, if any."""


@dataclass(frozen=True, kw_only=True)
@checked
class SoftmaxSampler(GaussianSampler):
    r"""OMAR's own: the mean of all candidates, weighted by their values (eq. 3).

    .. math::
        \mu' = \sum_k \mathrm{softmax}_k(\beta Q^k)\, u^k, \qquad \sigma'^2 = \frac{1}{K} \sum_k (u^k - c)^2

    Equation 3 has no :math:`1/K`, without which :math:`\sigma` grows with the number of samples, and takes
    :math:`c = \mu`; the released code has the :math:`1/K` and takes :math:`c = \mu'`.

    Args:
        iterations: how often the Gaussian is refined.
        samples: candidates of each iteration.
        loc: first mean, in halves of the action range from its middle.
        scale: first standard deviation, in halves of the action range.
        beta: :math:`\beta`.
        centre: :math:`c`: ``"previous"``, the mean that the candidates were drawn around, or ``"updated"``.
    """

    beta: Annotated[float, POSITIVE] = 1.0
    centre: Literal["previous", "updated"] = "previous"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centre not in ("previous", "updated"):
            raise ValueError(f"centre must be 'previous' or 'updated', got {self.centre!r}.")

    def refine(self, candidates: Tensor, values: Tensor, loc: Tensor) -> tuple[Tensor, Tensor, None]:
        """Weigh all candidates by their values."""
        weights = (self.beta * values).softmax(-2).unsqueeze(-1)
        updated = (weights * candidates).sum(-3, keepdim=True)
        centre = updated if self.centre == "updated" else loc
        return updated, (candidates - centre).pow(2).mean(-3, keepdim=True).sqrt(), None


@dataclass(frozen=True, kw_only=True)
@checked
class CEMSampler(GaussianSampler):
    """The cross-entropy method (table 2): mean and deviation of the elites, which stay among the candidates.

    The released code uses it on HalfCheetah, with 2 iterations of 20 samples and 5 elites.

    Args:
        iterations: how often the Gaussian is refined.
        samples: candidates of each iteration.
        loc: first mean, in halves of the action range from its middle.
        scale: first standard deviation, in halves of the action range.
        elites: how many of the best candidates make the next Gaussian.
    """

    elites: Annotated[int, SEVERAL, AtMost("samples")] = 5

    def refine(self, candidates: Tensor, values: Tensor, loc: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Keep the best."""
        best, index = values.topk(self.elites, -2)
        index = index.unsqueeze(-1).expand(*index.shape, candidates.shape[-1])
        elites = candidates.gather(-3, index)
        return elites.mean(-3, keepdim=True), elites.std(-3, keepdim=True), (elites, best)


@dataclass(frozen=True, kw_only=True)
@checked
class RandomSampler(ActionSampler):
    """Random search (table 2): all candidates at once, uniform between the bounds."""

    def propose(self, score: Worth, action: Tensor, low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return as many candidates as the other samplers ask the critic for, and their values."""
        drawn = low + (high - low) * uniform_like(self._like(action, self.iterations * self.samples))
        return drawn, score(drawn)
