"""MAC-Flow: one-step policies of a flow of the joint behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.algorithms.algorithm import ActorCritic, setting
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.ranges import DISCOUNT, FEW, NON_NEGATIVE, UNIT, WIDTHS, OneOf
from torchrl_marl_offline.modules.critics import Decomposition
from torchrl_marl_offline.modules.flow import make_flow
from torchrl_marl_offline.modules.networks import ACTIVATIONS
from torchrl_marl_offline.objectives.flow_matching import FlowDistillation, FlowMatching
from torchrl_marl_offline.objectives.value_learning import TD


@dataclass(frozen=True, kw_only=True)
class MACFlow(ActorCritic, name="mac_flow"):
    r"""MAC-Flow: multi-agent coordination by flow matching (Lee et al. 2025, arXiv:2511.05005).

    .. math::
        y = r + \gamma\, \tfrac{1}{2} \sum_k \bar Q^k_{tot}(s', \pi(o', z')), \qquad
        \alpha\, \|\pi_a(o_a, z_a) - [\mathrm{flow}(o, z)]_a\|^2 - Q_{tot}(s, \pi(o, z)) / \mathbb{E}|Q_{tot}|

    with normal z (:class:`TD`, :class:`FlowDistillation`). The flow is a model of the *joint* behaviour, of all
    observations (:class:`FlowMatching`, ``make_flow``); the policies, each of its own observation, reach its actions in
    one step (``make_actor(distribution="one_step")``). ``make_critic(decomposition="vdn")`` is the paper's critic;
    "MAC-Flow + Mix" is one with ``"mixer"``, and independent critics are flow Q-learning (Park et al. 2025,
    arXiv:2502.02538) of a joint flow.

    Published: by its released code, for continuous actions (``algorithm="mac_flow"``) :math:`\alpha` 1 of a normalized
    critic, four layers of 512, :math:`\gamma` 0.995, the team's value the agents' mean, not their sum; for
    discrete ones
    (``"mac_flow_discrete"``) :math:`\alpha` 3 of one that is not, four layers of 256, :math:`\gamma` 0.99, memory by a
    recurrent network. For both: 10 steps of Euler's method; the mean of two heads; normalized layers in critics alone;
    learning rate 3e-4, targets' rate 0.005.

    What differs: equation 9 has :math:`Q_{tot}` as it is (``normalize=False``). The released velocity of an agent
    sees that agent's observation and noise alone, with a time of its own; this one is joint, as in the paper. What is
    executed as the mode is the action without noise, as in the released discrete code; ``"sample"`` executes one of
    noise, as in the continuous. Discrete: the flow's action is a legal one; the critic's gradient goes straight through
    the policies' choice, where the released code's has none; times are not embedded. No memory by default.

    Args:
        alpha: of :class:`FlowDistillation`.
        normalize: of :class:`FlowDistillation`.
        flow_steps: of Euler's method.
        min_weight: of :class:`TD`: with two heads 0.5 is their mean, 1 their minimum.
        joint_observation: whether the flow sees all observations, or the state.
    """

    decomposition: Decomposition = "vdn"
    gamma: Annotated[float, DISCOUNT] = setting(0.995, member=True)
    hidden: Annotated[Sequence[int], WIDTHS] = (512,) * 4
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "gelu"
    layer_norm: bool = True
    distribution: Literal["gaussian", "tanh_gaussian", "one_step"] = "one_step"
    alpha: Annotated[float, NON_NEGATIVE] = setting(1.0, member=True)
    normalize: bool = True
    flow_steps: Annotated[int, FEW] = FlowDistillation.steps
    min_weight: Annotated[float, UNIT] = 0.5
    joint_observation: bool = True

    def behaviour(self, spec: TaskSpec) -> TensorDictModuleBase:
        """Draw the flow."""
        network = {"hidden": self.hidden, "activation": self.activation}
        return make_flow(spec, joint_observation=self.joint_observation, **network)

    def rules(self, *, discrete: bool) -> dict[str, Any]:
        """Return TD at a sample, distillation of the flow, and what fits the flow."""
        flow = {"alpha": self.alpha, "normalize": self.normalize, "steps": self.flow_steps}
        return {
            "value_learning": TD(sample=True, min_weight=self.min_weight),
            "extraction": FlowDistillation(**flow),
            "behaviour_learning": FlowMatching(),
        }


@dataclass(frozen=True, kw_only=True)
class MACFlowDiscrete(MACFlow, name="mac_flow_discrete"):
    """:class:`MACFlow` with the settings of its release for discrete actions.

    The released one has memory, by a recurrent network; here ``memory="gru"`` asks for it.
    """

    gamma: Annotated[float, DISCOUNT] = setting(0.99, member=True)
    hidden: Annotated[Sequence[int], WIDTHS] = (256,) * 4
    alpha: Annotated[float, NON_NEGATIVE] = setting(3.0, member=True)
    normalize: bool = False
