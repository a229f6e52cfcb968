"""A diffusion model of each agent's action, given the state and the actions of the agents before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.core.ranges import INCREASING, POSITIVE, WIDTHS
from torchrl_marl_offline.modules.action_range import ActionRange
from torchrl_marl_offline.modules.build import remembers_build
from torchrl_marl_offline.modules.sequential import SequentialNetwork

NOISY_ACTION, DIFFUSION_TIME, NOISE = ("agents", "noisy_action"), ("agents", "diffusion_time"), ("agents", "noise")


def time_features(time: Tensor, size: int) -> Tensor:
    r"""Return :math:`\cos(2^k \pi t), \sin(2^k \pi t)` for ``size / 2`` values of k: ``[*B, 1]`` to ``[*B, size]``."""
    frequencies = math.pi * 2.0 ** torch.arange(size // 2, dtype=time.dtype, device=time.device)
    angles = time * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class NoisePredictor(SequentialNetwork):
    r"""The noise :math:`\epsilon_a(u^t_a, t | s, u_{<a})` in an agent's noisy action.

    The forward process preserves variance (Song et al. 2021); actions are in halves of their range:

    .. math::
        u^t = \alpha_t u + \sigma_t \epsilon, \qquad
        \log \alpha_t = -\tfrac{t^2}{4} (\beta_{max} - \beta_{min}) - \tfrac{t}{2} \beta_{min}, \qquad
        \sigma_t^2 = 1 - \alpha_t^2

    so that :math:`-\epsilon_a / \sigma_t` is the score of the noisy actions.

    Args:
        spec: the task's sizes and bounds.
        beta_range: :math:`\beta_{min}` and :math:`\beta_{max}`.
        time_size: number of features of the time.
        **network: options of :class:`~torchrl_marl_offline.modules.SequentialNetwork`.

    Shape:
        state ``[*B, s]`` (or observations ``[*B, n, o]``), joint action ``[*B, n, a]``, noisy action ``[*B, n, a]`` and
        time ``[*B, n, 1]``, to ``[*B, n, a]``.
    """

    @checked
    def __init__(
        self,
        spec: TaskSpec,
        *,
        beta_range: Annotated[tuple[float, float], POSITIVE, INCREASING] = (0.1, 20.0),
        time_size: Annotated[int, WIDTHS] = 16,
        **network,
    ) -> None:
        super().__init__(spec, spec.action_size + time_size, spec.action_size, **network)
        self.range, self.beta_range, self.time_size = ActionRange.of(spec), tuple(beta_range), time_size

    def level(self, time: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\alpha_t` and :math:`\sigma_t`."""
        lowest, highest = self.beta_range
        log_alpha = -0.25 * time.pow(2) * (highest - lowest) - 0.5 * time * lowest
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def perturb(self, action: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """Return the noisy action, in halves of the range: of an action ``[*B, n, a]`` at times ``[*B, n, 1]``."""
        alpha, sigma = self.level(time)
        return alpha * self.range.scaled(action) + sigma * noise

    def forward(self, state: Tensor, action: Tensor, noisy_action: Tensor, time: Tensor) -> Tensor:
        """Predict the noise of every agent's own action; of ``action`` it sees those of the agents before it."""
        return self.evaluate(state, self.range.scaled(action), noisy_action, time_features(time, self.time_size))


@remembers_build
@checked
def make_score(
    spec: TaskSpec,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (256, 256, 256),
    share_params: bool = True,
    joint_observation: bool = False,
    activation: str = "silu",
    layer_norm: bool = True,
    beta_range: Annotated[tuple[float, float], POSITIVE, INCREASING] = (0.1, 20.0),
    time_size: Annotated[int, WIDTHS] = 16,
) -> TensorDictModule:
    r"""Build a sequential diffusion model of a continuous task's joint actions, for its score.

    It reads the state, the joint action, and noisy actions and times that the rules give it, and writes the predicted
    noise ``[*B, n, a]`` at ``("agents", "noise")``. Agents act in the order of their indices: agent a's noise depends
    on :math:`u_{<a}` alone, so that :math:`\mu(u | s) = \prod_a \mu_a(u_a | s, u_{<a})`.

    Args:
        spec: the task's sizes and bounds.
        hidden: widths of the hidden layers.
        share_params: agents share parameters and are told apart by a one-hot id.
        joint_observation: read all observations instead of the state.
        activation: activation of the hidden layers.
        layer_norm: layer normalization after each activation.
        beta_range: least and largest rate of the noise; see :class:`NoisePredictor`.
        time_size: number of features of the time, even.

    Raises:
        ValueError: for discrete actions, rates that do not rise, an odd number of features.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> make_score(spec, hidden=(64, 64)).in_keys
        ['state', ('agents', 'action'), ('agents', 'noisy_action'), ('agents', 'diffusion_time')]
    """
    if spec.discrete:
        raise ValueError("make_score is for continuous actions; for a discrete task use make_sequential_policy.")
    if time_size < 2 or time_size % 2:
        raise ValueError(f"time_size must be even and positive, got {time_size}.")
    network = {"hidden": hidden, "share_params": share_params, "activation": activation, "layer_norm": layer_norm}
    predictor = NoisePredictor(
        spec, beta_range=beta_range, time_size=time_size, joint_observation=joint_observation, **network
    )
    in_keys = [OBSERVATION if joint_observation else STATE, ACTION, NOISY_ACTION, DIFFUSION_TIME]
    return TensorDictModule(predictor, in_keys=in_keys, out_keys=[NOISE])
