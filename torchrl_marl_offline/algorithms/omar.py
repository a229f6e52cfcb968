"""OMAR: MA-CQL with actor rectification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torchrl_marl_offline.algorithms.algorithm import setting
from torchrl_marl_offline.algorithms.cql import MACQL
from torchrl_marl_offline.core.ranges import FEW, POSITIVE, REAL, SEVERAL, UNIT
from torchrl_marl_offline.core.relevance import OF_CONTINUOUS, ReadWith
from torchrl_marl_offline.objectives.rectified import RectifiedGradient
from torchrl_marl_offline.objectives.samplers import ActionSampler, CEMSampler, RandomSampler, SoftmaxSampler


@dataclass(frozen=True, kw_only=True)
class OMAR(MACQL, name="omar"):
    r"""OMAR: :class:`MACQL` with actor rectification (Pan et al. 2022, arXiv:2111.11188).

    .. math:: -(1 - \tau)\, Q^1_a(o_a, \pi_a(o_a)) + \tau\, \|\pi_a(o_a) - \hat u_a\|^2

    (Eq. 2; :class:`RectifiedGradient`.) :math:`\hat u_a` is the best of the sampler's candidates and
    :math:`\pi_a(o_a)`. Samplers: :class:`SoftmaxSampler`, theirs; :class:`CEMSampler` and
    :class:`RandomSampler`, of table 2.

    Published: 3 iterations of 10 samples from mean 0 and deviation 2. The text has :math:`\tau` 0.5 on random and
    medium-replay data, 0.7 on medium, 0.9 on expert; the released code has (:math:`\tau`, CQL's :math:`\alpha`), for
    random, medium-replay, medium and expert: spread (1, 0.5) (1, 1) (1, 5) (1, 5); tag (0.9, 0.5) (0.9, 0.5) (0.7, 5)
    (0.9, 5); world (1, 0.5) (0.7, 1) (0.1, 0.5) (0.9, 5); HalfCheetah (1, 1) (0.9, 5) (0.7, 1) (0.5, 5). On HalfCheetah
    it searches by CEM (2 iterations of 20 samples, 5 elites), with learning rate 3e-4, batches of 256, 256 units,
    100,000 updates. Otherwise as :class:`MACQL`.

    What differs: as :class:`MACQL`, and :class:`SoftmaxSampler` says what of equation 3. Discrete: the best legal
    action is found exactly, and the policy's probabilities approach its one-hot code.

    Args:
        rectification: of :class:`RectifiedGradient`, :math:`\tau`.
        sampler: which search.
        iterations: of the search.
        samples: of the search.
        sampler_loc: first mean of the search.
        sampler_scale: first deviation of the search.
        sampler_centre: of :class:`SoftmaxSampler`.
    """

    rectification: Annotated[float, UNIT] = setting(0.5, member=True)
    sampler: Annotated[Literal["softmax", "cem", "random"], OF_CONTINUOUS] = "softmax"
    iterations: Annotated[int, FEW, OF_CONTINUOUS, ReadWith("sampler", "softmax", "cem")] = 3
    samples: Annotated[int, SEVERAL, OF_CONTINUOUS] = 10
    sampler_loc: Annotated[float, REAL, OF_CONTINUOUS, ReadWith("sampler", "softmax", "cem")] = 0.0
    sampler_scale: Annotated[float, POSITIVE, OF_CONTINUOUS, ReadWith("sampler", "softmax", "cem")] = 2.0
    sampler_centre: Annotated[Literal["previous", "updated"], OF_CONTINUOUS, ReadWith("sampler", "softmax")] = (
        SoftmaxSampler.centre
    )

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return conservative TD and rectified ascent."""
        extraction = RectifiedGradient(rectification=self.rectification, sampler=self._search())
        return super().rules(discrete=discrete) | {"extraction": extraction}

    def _search(self) -> ActionSampler:
        shared = {"iterations": self.iterations, "samples": self.samples}
        if self.sampler == "random":
            return RandomSampler(**shared)
        shared |= {"loc": self.sampler_loc, "scale": self.sampler_scale}
        return CEMSampler(**shared) if self.sampler == "cem" else SoftmaxSampler(centre=self.sampler_centre, **shared)
