"""Behaviour cloning, the baseline that every run is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torchrl_marl_offline.algorithms.algorithm import Networks, Remembering
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import POSITIVE, WIDTHS
from torchrl_marl_offline.core.relevance import OF_CONTINUOUS
from torchrl_marl_offline.modules.actors import make_actor
from torchrl_marl_offline.objectives.extraction import Cloning


@dataclass(frozen=True, kw_only=True)
class CloningBaseline(Remembering, name="cloning"):
    r"""Behaviour cloning with the recipe's actor: :math:`-\log \pi_a(u_a | o_a)` (:class:`Cloning`).

    Args:
        hidden: widths of the hidden layers.
        share_params: agents share parameters.
        scale: the Gaussian's standard deviation; see :func:`make_actor`.
    """

    has_critic: ClassVar[bool] = False

    hidden: Annotated[Sequence[int], WIDTHS] = (512, 512, 512, 512)
    share_params: bool = True
    scale: Annotated[float | Literal["learned", "state_dependent"], POSITIVE, OF_CONTINUOUS] = "learned"

    def networks(self, spec: TaskSpec) -> Networks:
        """Draw the policies."""
        shared = {"hidden": self.hidden, "share_params": self.share_params}
        return {"actor": make_actor(spec, scale=self.scale, **shared, **self.remembered)}

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return cloning alone."""
        return {"extraction": Cloning()}
