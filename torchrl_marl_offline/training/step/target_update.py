"""TorchRL's soft update as one call over all tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import RATE


class ForeachSoftUpdate(SoftUpdate):
    """:class:`~torchrl.objectives.SoftUpdate` without walking the parameter trees at every step.

    The same numbers bit for bit: ``target ← target + tau · (source − target)``. The tensors are gathered at the first
    step; call :meth:`refresh` if the loss's tensors are replaced after it, for instance by moving the loss to another
    device.

    Args:
        loss_module: a loss with target networks.
        tau: how far a target goes towards its source in one step.
    """

    @checked
    def __init__(self, loss_module: Any, *, tau: Annotated[float, RATE]) -> None:
        super().__init__(loss_module, tau=tau)
        self.refresh()

    def refresh(self) -> None:
        """Gather the tensors anew at the next step."""
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every target towards its source."""
        if self._pairs is None:
            self._pairs = self._gather()
        torch._foreach_lerp_(*self._pairs, 1 - self.eps)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state; a loss that was restored before may have new tensors."""
        super().load_state_dict(state_dict)
        self.refresh()

    def _gather(self) -> tuple[list[Tensor], list[Tensor]]:
        # From the loss, not from the copies that SoftUpdate made of the trees when it was built.
        keys = [key for key, distinct in self._distinct_and_params.items() if distinct]
        targets = [getattr(self.loss_module, key[0]).get(key[1:]).data for key in keys]
        sources = [getattr(self.loss_module, key[0].removeprefix("target_")).get(key[1:]).data for key in keys]
        return targets, sources
