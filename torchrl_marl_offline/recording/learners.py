"""The online methods that behaviour policies are trained with, put together from TorchRL's parts.

MATD3 (Ackermann et al. 2019) for continuous actions and QMIX (Rashid et al. 2018) for discrete ones: the methods behind
the field's published datasets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.modules import AdditiveGaussianModule, EGreedyModule
from torchrl.objectives import LossModule, TD3Loss
from torchrl.objectives.multiagent import QMixerLoss

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.input_statistics import Moments
from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    DONE,
    REWARD,
    STATE,
    TERMINATED,
    TaskSpec,
    next_key,
)
from torchrl_marl_offline.core.ranges import COUNT, DISCOUNT, LEARNING_RATE, NON_NEGATIVE, REAL, WIDTHS
from torchrl_marl_offline.modules.critics import make_critic
from torchrl_marl_offline.modules.greedy_actors import (
    ACTION_VALUE,
    CHOSEN_ACTION_VALUE,
    make_deterministic_actor,
    make_greedy_actor,
)
from torchrl_marl_offline.modules.history import Memory, MemorySize
from torchrl_marl_offline.modules.input_norm import InputNorm
from torchrl_marl_offline.modules.mixers import HyperNetworkMixer
from torchrl_marl_offline.recording.sequence_losses import SequenceQMixerLoss, SequenceTD3Loss
from torchrl_marl_offline.training.step.optimizer import default_optimizer

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from torchrl.envs import EnvBase

TEAM_REWARD = "reward"


@dataclass(frozen=True)
class OnlineLearner:
    """A loss, the policy it trains, and how that policy explores.

    Attributes:
        name: of the method.
        loss: for a :class:`~torchrl_marl_offline.Trainer`; wants :func:`with_team_reward` of the rows, and with memory
            sequences ``[S, T]``.
        actor: the greedy policy; with the noise of a recorded behaviour in ``explorer``.
        explorer: ``actor`` and noise, where TorchRL's exploration type is ``RANDOM``.
        optimizer: of the loss's parameters.
        set_exploration: called with the share of the exploration schedule that is over, in [0, 1], and 1 for
            recording.
        delay: the hook behind delayed policy updates, or ``None``.
    """

    name: str
    loss: LossModule
    actor: TensorDictModuleBase
    explorer: TensorDictModuleBase
    optimizer: torch.optim.Optimizer
    set_exploration: Callable[[float], None]
    delay: DelayedUpdates | None = None

    @property
    def keys(self) -> list[Any]:
        """The leaves that the loss reads."""
        return [key for key in self.loss.in_keys if key != "td_error"]


class DelayedUpdates:
    """Let an optimizer leave some parameters alone in all but every ``every``-th step (TD3's delayed policy updates).

    Args:
        optimizer: whose steps are counted.
        parameters: those that wait.
        every: how long.

    Attributes:
        count: steps so far; to be put back when a run is resumed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor], *, every: int) -> None:
        self.parameters, self.every, self.count = list(parameters), every, 0
        optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, *_: Any) -> None:
        self.count += 1
        if self.count % self.every:
            for parameter in self.parameters:
                parameter.grad = None  # an optimizer passes over parameters without a gradient


def with_team_reward(rows: TensorDictBase, *, scale: float = 1.0) -> TensorDictBase:
    """Return ``rows`` with the mean of the agents' rewards times ``scale``, ``[*B, 1]``, at ``("next", "reward")``."""
    rows = rows.copy()
    following = rows.get("next").copy()
    return rows.set("next", following.set(TEAM_REWARD, scale * rows.get(next_key(REWARD)).mean(-2)))


def make_online_learner(env: EnvBase, **options: Any) -> OnlineLearner:
    """Return :func:`make_qmix` of a discrete task and :func:`make_matd3` of a continuous one; options as there."""
    return (make_qmix if TaskSpec.from_env(env).discrete else make_matd3)(env, **options)


@checked
def make_matd3(
    env: EnvBase,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (128, 128),
    lr: Annotated[float, LEARNING_RATE] = 1e-3,
    gamma: Annotated[float, DISCOUNT] = 0.95,
    noise: Annotated[float, NON_NEGATIVE] = 0.3,
    policy_delay: Annotated[int, COUNT] = 2,
    memory: Memory = None,
    memory_size: MemorySize = 64,
) -> OnlineLearner:
    """Build MATD3: decentralized deterministic policies and two centralized critics of the team's mean reward.

    The loss is TorchRL's :class:`~torchrl.objectives.TD3Loss`. Agents share parameters and are told apart by a one-hot
    id; the critics read the joint observation and the joint action. With memory it learns from sequences
    (:class:`~torchrl_marl_offline.recording.sequence_losses.SequenceTD3Loss`), and the critics remember the joint
    observation.

    Args:
        env: the task, with continuous actions.
        hidden: widths of the hidden layers of all networks.
        lr: Adam's learning rate.
        gamma: discount.
        noise: standard deviation of the exploration, and of a recorded behaviour, in halves of the action range.
        policy_delay: critic updates for each update of the policy.
        memory: what policies and critics remember of an episode, see :func:`~torchrl_marl_offline.make_actor`.
        memory_size: width of the recurrent memory.
    """
    spec = TaskSpec.from_env(env)
    low, high = spec.bounds_like(torch.zeros((), device=env.device))
    half = (high - low) / 2
    actor = make_deterministic_actor(spec, hidden=hidden, memory=memory, memory_size=memory_size).to(env.device)
    shape = {"decomposition": "centralized", "joint_observation": True, "num_heads": 1, "hidden": hidden}
    critic = make_critic(spec, memory=memory, memory_size=memory_size, **shape).to(env.device)
    options = {"bounds": (low, high), "policy_noise": 0.2 * half, "noise_clip": 0.5 * half, "loss_function": "l2"}
    loss = TD3Loss(actor, critic, **options) if memory is None else _of_histories(actor, critic, **options)
    loss.set_keys(action=ACTION, reward=TEAM_REWARD, done=DONE, terminated=TERMINATED)
    loss.make_value_estimator(gamma=gamma)
    # the module takes one sigma, beside deviations of every component
    size, widths = (1.0, half.tolist()) if spec.has_component_bounds else (half, 1.0)
    gaussian = AdditiveGaussianModule(
        env.full_action_spec[ACTION], noise * size, noise * size, std=widths, action_key=ACTION, device=env.device
    )
    explorer = TensorDictSequential(actor, gaussian)
    optimizer = default_optimizer(loss, lr=lr)
    policy = [p for p in actor.parameters() if p.requires_grad]
    delay = DelayedUpdates(optimizer, policy, every=policy_delay)
    return OnlineLearner(_named("MATD3", memory), loss, actor, explorer, optimizer, lambda share: None, delay)


@checked
def make_qmix(
    env: EnvBase,
    *,
    hidden: Annotated[Sequence[int], WIDTHS] = (128, 128),
    lr: Annotated[float, LEARNING_RATE] = 1e-3,
    gamma: Annotated[float, DISCOUNT] = 0.95,
    noise: Annotated[float, NON_NEGATIVE] = 0.05,
    state_norm: Annotated[Moments | None, REAL] = None,
    memory: Memory = None,
    memory_size: MemorySize = 64,
) -> OnlineLearner:
    """Build QMIX: greedy policies over local action values, trained through a monotonic mixer.

    The loss is TorchRL's :class:`~torchrl.objectives.QMixerLoss`, the mixer
    :class:`~torchrl_marl_offline.HyperNetworkMixer`. Exploration is epsilon-greedy over the legal actions, from 1 down
    to ``noise``. With memory it learns from sequences
    (:class:`~torchrl_marl_offline.recording.sequence_losses.SequenceQMixerLoss`); the mixer has none.

    Args:
        env: the task, with discrete actions.
        hidden: widths of the hidden layers of the local values.
        lr: Adam's learning rate.
        gamma: discount.
        noise: the last epsilon, which is also that of a recorded behaviour.
        state_norm: means and deviations of the state's components, by which the mixer sees it, such as
            ``dataset.input_statistics().state``; by default it sees the state as it is.
        memory: what the local values remember of an episode, see :func:`~torchrl_marl_offline.make_actor`.
        memory_size: width of the recurrent memory.
    """
    spec = TaskSpec.from_env(env)
    mask = ACTION_MASK if spec.has_action_mask else None
    actor = make_greedy_actor(spec, hidden=hidden, memory=memory, memory_size=memory_size).to(env.device)
    network = HyperNetworkMixer(spec.n_agents, spec.state_size)
    if state_norm is not None:
        network.register_forward_pre_hook(InputNorm({1: _checked_moments(state_norm, spec.state_size)}))
    mixer = TensorDictModule(network, in_keys=[CHOSEN_ACTION_VALUE, STATE], out_keys=["chosen_action_value"])
    if memory is None:
        loss = QMixerLoss(actor, mixer.to(env.device), action_space="categorical")
    else:
        encoder, *values = actor.module
        networks, encoders = (TensorDictSequential(*values), mixer.to(env.device)), {"policy_encoder": encoder}
        loss = SequenceQMixerLoss(*networks, encoders=encoders, action_space="categorical")
    loss.set_keys(
        action_value=ACTION_VALUE,
        local_value=CHOSEN_ACTION_VALUE,
        global_value="chosen_action_value",
        action=ACTION,
        reward=TEAM_REWARD,
        done=DONE,
        terminated=TERMINATED,
    )
    loss.make_value_estimator(gamma=gamma)
    greedy = EGreedyModule(
        env.full_action_spec[ACTION].clone(), 1.0, noise, action_key=ACTION, action_mask_key=mask, device=env.device
    )
    optimizer = default_optimizer(loss, lr=lr)

    def set_exploration(share: float) -> None:
        greedy.eps.fill_(1.0 + (noise - 1.0) * min(share, 1.0))

    explorer = TensorDictSequential(actor, greedy)
    return OnlineLearner(_named("QMIX", memory), loss, actor, explorer, optimizer, set_exploration)


def _checked_moments(moments: Moments, size: int) -> Moments:
    mean, deviation = moments
    if len(mean) != size or len(deviation) != size or min(deviation, default=0.0) <= 0:
        raise ValueError(
            f"state_norm needs means and positive deviations of the state's {size} components; take "
            "input_statistics().state of a dataset of this task."
        )
    return tuple(mean), tuple(deviation)


def _named(method: str, memory: str | None) -> str:
    return method if memory is None else f"{method} with memory ({memory})"


def _of_histories(actor: TensorDictSequential, critic: TensorDictSequential, **options: Any) -> SequenceTD3Loss:
    """Return the loss of a policy and a critic, each with an encoder as its first part."""
    (of_policy, *policy), (of_critic, value) = actor.module, critic.module
    # TorchRL's loss gives the critics what the policy's network reads, and its action
    passed_on = TensorDictModule(nn.Identity(), in_keys=[of_critic.history_key], out_keys=[of_critic.history_key])
    encoders = {"policy_encoder": of_policy, "critic_encoder": of_critic}
    return SequenceTD3Loss(TensorDictSequential(passed_on, *policy), value, encoders=encoders, **options)
