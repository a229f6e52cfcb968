"""The recorded next action in TorchRL's own replay buffers, for rules that read it (SARSA, implicit constraint)."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.envs import Transform

from torchrl_marl_offline.core.layout import ACTION, DONE, HAS_NEXT_ACTION, OBSERVATION, TRAJ_IDS, next_key


class NextAction(Transform):
    """Add ``("next", "agents", "action")`` to steps that lie in their order, and where it is known.

    A transform of TorchRL's replay buffers. Whatever is written into the buffer gets the entries then, so that single
    rows may be drawn later; a sample that lacks them gets them when it is drawn, for buffers that hold steps already.

    Rows are read along the last batch dimension (or the one named ``"time"``): ``[B, T]`` of a collector, or ``[T]``
    rows one after the other, such as those flattened, or slices of a :class:`~torchrl.data.SliceSampler`. The next row
    is the successor where the step did not end its episode, both are of one trajectory (``("collector", "traj_ids")``,
    if there is one), and the next observation is that row's. Where there is none,
    ``("collector", "has_next_action")`` is false and the action's own value stands in its place: losses leave such a
    row out, but for one that terminated.

    Args:
        action: the agents' actions.
        observation: by which successors are recognized.
        done: end of an episode, under ``"next"``.

    Raises:
        ValueError: for rows of which none is the successor of the one before it, such as single rows drawn at random.

    Examples:
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> from torchrl_marl_offline import NextAction, make_env
        >>> storage = LazyTensorStorage(1000)
        >>> buffer = TensorDictReplayBuffer(storage=storage, batch_size=8, transform=NextAction())
        >>> rollout = make_env("mpe/simple_spread", num_envs=4, seed=0).rollout(10)  # or of TorchRL's collectors
        >>> _ = buffer.extend(rollout.reshape(-1))
        >>> buffer.sample()["next", "agents", "action"].shape
        torch.Size([8, 3, 2])
    """

    def __init__(
        self, *, action: NestedKey = ACTION, observation: NestedKey = OBSERVATION, done: NestedKey = DONE
    ) -> None:
        self.action, self.observation, self.done = action, observation, done
        super().__init__(in_keys=[], out_keys=[])

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add the entries to a sample that lacks them."""
        return tensordict if next_key(self.action) in tensordict.keys(True) else self._added(tensordict)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.forward(tensordict)

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        raise TypeError("NextAction looks at the step to come: append it to a replay buffer, not to an environment.")

    _reset = _call

    def _added(self, tensordict: TensorDictBase) -> TensorDictBase:
        time = _time_dimension(tensordict)
        action = tensordict.get(self.action)
        known = self._is_followed(tensordict, time)
        if tensordict.shape[time] > 1 and not known.any() and not self._ended(tensordict).all():
            raise ValueError(
                "NextAction finds no row that follows on the one before it; extend the buffer with steps in their "
                "order, or draw slices of episodes (torchrl.data.SliceSampler)."
            )
        following = torch.where(_like(known, action), action.roll(-1, time), action)
        return tensordict.set(next_key(self.action), following).set(HAS_NEXT_ACTION, known)

    def _ended(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict.get(next_key(self.done)).reshape(tensordict.shape)

    def _is_followed(self, tensordict: TensorDictBase, time: int) -> Tensor:
        """Return whether the next row is what came next, in the batch's shape."""
        shape = tensordict.shape
        known = ~self._ended(tensordict)
        known.select(time, -1).fill_(False)
        seen = tensordict.get(next_key(self.observation)) == tensordict.get(self.observation).roll(-1, time)
        known &= seen.reshape(*shape, -1).all(-1)
        trajectory = tensordict.get(TRAJ_IDS, None)
        if trajectory is not None:
            trajectory = trajectory.reshape(shape)
            known &= trajectory == trajectory.roll(-1, time)
        return known


def _time_dimension(tensordict: TensorDictBase) -> int:
    names = tensordict.names if tensordict._has_names() else []
    return names.index("time") if "time" in names else tensordict.ndim - 1


def _like(mask: Tensor, entry: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *(1,) * (entry.ndim - mask.ndim))
