"""Models of what each agent does in the data: a conditional variational autoencoder, and a policy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.component_bounds import like
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, TaskSpec
from torchrl_marl_offline.core.ranges import POSITIVE, WIDTHS
from torchrl_marl_offline.modules.action_range import ActionRange, component_range
from torchrl_marl_offline.modules.actors import GaussianHead
from torchrl_marl_offline.modules.build import remembers_build
from torchrl_marl_offline.modules.networks import AgentNetwork, mask_logits
from torchrl_marl_offline.modules.sequential import BEHAVIOUR_LOGITS

LATENT, LATENT_LOC, LATENT_SCALE = ("agents", "latent"), ("agents", "latent_loc"), ("agents", "latent_scale")
BEHAVIOUR_LOC, BEHAVIOUR_SCALE = ("agents", "behaviour_loc"), ("agents", "behaviour_scale")
DECODED, PERTURBED = ("agents", "decoded_action"), ("agents", "perturbed_action")


class ActionEncoder(nn.Module):
    """Mean and standard deviation of the latent variable of each agent's action.

    Args:
        spec: the task's sizes and bounds.
        latent_size: components ``l`` of the latent variable.
        **network: options of :class:`~torchrl_marl_offline.modules.AgentNetwork`.

    Shape:
        observation ``[*B, n, o]`` and action ``[*B, n, a]`` to two of ``[*B, n, l]``.
    """

    def __init__(self, spec: TaskSpec, latent_size: int, **network) -> None:
        super().__init__()
        self.shown = component_range(spec)
        self.network = AgentNetwork(spec.observation_size + spec.action_size, 2 * latent_size, spec.n_agents, **network)

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation."""
        action = action if self.shown is None else self.shown.scaled(action)
        loc, log_scale = self.network(torch.cat([observation, action], -1)).chunk(2, -1)
        return loc, log_scale.clamp(-4.0, 15.0).exp()  # the released code's


class ActionDecoder(nn.Module):
    """Each agent's action from the latent variable.

    Args:
        spec: the task's sizes and bounds.
        latent_size: components ``l`` of the latent variable.
        latent_clip: bound of the latent's components where actions are sampled.
        **network: options of :class:`~torchrl_marl_offline.modules.AgentNetwork`.

    Shape:
        observation ``[*B, n, o]`` and latent ``[*B, n, l]`` to ``[*B, n, a]`` within the bounds.
    """

    def __init__(self, spec: TaskSpec, latent_size: int, latent_clip: float, **network) -> None:
        super().__init__()
        self.latent_size, self.latent_clip = latent_size, latent_clip
        self.range, self.shown = ActionRange.of(spec), component_range(spec)
        self.network = AgentNetwork(spec.observation_size + latent_size, spec.action_size, spec.n_agents, **network)

    def forward(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Return the action."""
        return self.range.clipped(self.range.unscaled(self.network(torch.cat([observation, latent], -1)).tanh()))


class Perturbation(nn.Module):
    r"""Each agent's action with a small change: :math:`\mathrm{clip}(u + \Phi\, \xi(o, u))`, :math:`|\xi| < 1`.

    Args:
        spec: the task's sizes and bounds.
        limit: :math:`\Phi`, in halves of the action range.
        **network: options of :class:`~torchrl_marl_offline.modules.AgentNetwork`.

    Shape:
        observation ``[*B, n, o]`` and action ``[*B, n, a]`` to ``[*B, n, a]``.
    """

    def __init__(self, spec: TaskSpec, limit: float, **network) -> None:
        super().__init__()
        self.limit, self.range, self.shown = limit, ActionRange.of(spec), component_range(spec)
        self.network = AgentNetwork(
            spec.observation_size + spec.action_size, spec.action_size, spec.n_agents, **network
        )

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return the changed action."""
        seen = action if self.shown is None else self.shown.scaled(action)
        change = self.network(torch.cat([observation, seen], -1)).tanh()
        return self.range.clipped(action + self.limit * like(self.range.half, action) * change)


class BehaviourPolicy(nn.Module):
    """Logits of what each agent does in the data.

    Shape:
        observation ``[*B, n, o]`` and optionally the mask of legal actions ``[*B, n, A]``, to ``[*B, n, A]``.
    """

    def __init__(self, spec: TaskSpec, **network) -> None:
        super().__init__()
        self.network = AgentNetwork(spec.observation_size, spec.action_size, spec.n_agents, **network)

    def forward(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the logits; of an agent without any legal action, all alike."""
        return mask_logits(self.network(observation), mask)


@remembers_build
@checked
def make_vae(
    spec: TaskSpec,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (750, 750),
    perturbation_hidden: Annotated[Sequence[int], WIDTHS] = (400, 300),
    share_params: bool = True,
    activation: str = "relu",
    latent_size: Annotated[int | None, WIDTHS] = None,
    latent_clip: Annotated[float, POSITIVE] = 0.5,
    perturbation: Annotated[float, POSITIVE] = 0.05,
) -> TensorDictSequential:
    """Build a generative model of each agent's continuous action with a perturbation of what it generates.

    A conditional variational autoencoder, for :class:`VAELearning`: its parts are ``"encoder"``, ``"decoder"`` and
    ``"perturbation"``. Agents are modelled one by one, each from its own observation.

    Args:
        spec: the task's sizes and bounds.
        hidden: widths of the hidden layers of encoder and decoder.
        perturbation_hidden: widths of the hidden layers of the perturbation.
        share_params: agents share parameters and are told apart by a one-hot id.
        activation: activation of the hidden layers.
        latent_size: components of the latent variable; by default twice the action's.
        latent_clip: bound of the latent's components where actions are sampled.
        perturbation: the largest change of an action, in halves of the action range.

    Raises:
        ValueError: for discrete actions, or a size or bound that is not positive.

    Examples:
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> make_vae(spec, hidden=(64, 64)).in_keys
        [('agents', 'observation'), ('agents', 'action'), ('agents', 'latent')]
    """
    if spec.discrete:
        raise ValueError("make_vae is for continuous actions; for a discrete task use make_behaviour_policy.")
    latent_size = 2 * spec.action_size if latent_size is None else latent_size
    shared = {"share_params": share_params, "activation": activation, "layer_norm": False}
    encoder = ActionEncoder(spec, latent_size, hidden=hidden, **shared)
    decoder = ActionDecoder(spec, latent_size, latent_clip, hidden=hidden, **shared)
    change = Perturbation(spec, perturbation, hidden=perturbation_hidden, **shared)
    return TensorDictSequential(
        OrderedDict(
            encoder=TensorDictModule(encoder, in_keys=[OBSERVATION, ACTION], out_keys=[LATENT_LOC, LATENT_SCALE]),
            decoder=TensorDictModule(decoder, in_keys=[OBSERVATION, LATENT], out_keys=[DECODED]),
            perturbation=TensorDictModule(change, in_keys=[OBSERVATION, DECODED], out_keys=[PERTURBED]),
        )
    )


@remembers_build
@checked
def make_behaviour_policy(
    spec: TaskSpec,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (256, 256),
    share_params: bool = True,
    activation: str = "relu",
    layer_norm: bool = False,
) -> TensorDictModule:
    r"""Build a model of each agent's action, :math:`\mu_a(u_a | o_a)`, for :class:`ClonedBehaviour`.

    Of a discrete task it writes logits ``[*B, n, A]`` at ``("agents", "behaviour_logits")``; illegal actions have the
    lowest. Of a continuous one, a Gaussian's location and scale, ``[*B, n, a]``, at ``("agents", "behaviour_loc")`` and
    ``("agents", "behaviour_scale")``. Unlike :func:`~torchrl_marl_offline.make_sequential_policy`, no agent sees what
    others do.

    Args:
        spec: the task's sizes.
        hidden: widths of the hidden layers.
        share_params: agents share parameters and are told apart by a one-hot id.
        activation: activation of the hidden layers.
        layer_norm: layer normalization after each activation.
    """
    network = {"hidden": hidden, "share_params": share_params, "activation": activation, "layer_norm": layer_norm}
    if not spec.discrete:
        gaussian = GaussianHead(spec, scale="state_dependent", halves=component_range(spec), **network)
        return TensorDictModule(gaussian, in_keys=[OBSERVATION], out_keys=[BEHAVIOUR_LOC, BEHAVIOUR_SCALE])
    in_keys = [OBSERVATION, ACTION_MASK] if spec.has_action_mask else [OBSERVATION]
    return TensorDictModule(BehaviourPolicy(spec, **network), in_keys=in_keys, out_keys=[BEHAVIOUR_LOGITS])
