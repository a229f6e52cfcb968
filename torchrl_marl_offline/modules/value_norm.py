"""Scale-invariant value normalization."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor
from torchrl.modules.value_norm import ValueNorm

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.masked_mean import masked_mean
from torchrl_marl_offline.core.ranges import NON_NEGATIVE, SIZE


class ScaleInvariantValueNorm(ValueNorm):
    r"""Normalize by the current batch's mean and mean absolute deviation (SVN; Lee et al. 2026, eqs 5 and 6).

    .. math::
        \mu = \mathrm{sg}[\mathbb{E}\,Q_{tot}], \qquad
        \sigma = \mathrm{sg}[\mathbb{E}\,|Q_{tot} - \mu|] + \epsilon

    Prediction and target are both mapped by :math:`(x - \mu) / \sigma`, so the squared error becomes
    :math:`\sigma^{-2} (Q_{tot} - y)^2`: the critic's gradient no longer grows with the values' scale, and the
    Bellman fixed point stays. A TorchRL :class:`~torchrl.modules.value_norm.ValueNorm`: it also serves in
    TorchRL's :class:`~torchrl.objectives.multiagent.MAPPOLoss` and
    :class:`~torchrl.objectives.multiagent.IPPOLoss`, the only ones of its losses that take a value norm.

    Unlike running norms it keeps no history: each :meth:`update` replaces the statistics.

    Args:
        shape: trailing shape of the values that is not averaged over.
        epsilon: added to the deviation.
        device: device of the statistics.

    Examples:
        >>> norm = ScaleInvariantValueNorm()
        >>> norm.update(torch.tensor([[1.0], [3.0]]))
        >>> norm.normalize(torch.tensor([[4.0]]))  # (4 - 2) / 1
        tensor([[2.0000]])
    """

    accepts_mask = True

    @checked
    def __init__(
        self,
        *,
        shape: Annotated[int | tuple[int, ...], SIZE] = 1,
        epsilon: Annotated[float, NON_NEGATIVE] = 1e-6,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(shape=shape, epsilon=epsilon, device=device)
        self.register_buffer("loc", torch.zeros(self.shape, device=device))
        self.register_buffer("deviation", torch.ones(self.shape, device=device))

    @torch.no_grad()
    def update(self, value_target: Tensor, mask: Tensor | None = None) -> None:
        """Take the statistics of ``value_target`` ``[..., *shape]``.

        Args:
            value_target: the values; in the recipe, the minimum head's current prediction.
            mask: bool, broadcastable to ``value_target``; false entries are left out.
        """
        dims = self._check_trailing_shape(value_target)
        if value_target.numel() == math.prod(self.shape):
            raise ValueError(
                "ScaleInvariantValueNorm has no deviation of a single value; take batches of several rows, or leave "
                "the norm out."
            )
        loc = masked_mean(value_target, mask, dims)
        self.loc.copy_(loc)
        self.deviation.copy_(masked_mean((value_target - loc).abs(), mask, dims) + self.epsilon)

    def normalize(self, value_target: Tensor) -> Tensor:
        """Map ``x`` to ``(x - loc) / scale``."""
        return (value_target - self.loc) / self.deviation

    def denormalize(self, normalised_value: Tensor) -> Tensor:
        """Invert :meth:`normalize`."""
        return normalised_value * self.deviation + self.loc

    def scale(self) -> Tensor:
        """Return the mean absolute deviation in force."""
        return self.deviation
