"""Joint actions composed of an offline policy's and a learning policy's, the best by a team's critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from tensordict import TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import IS_INIT, TaskSpec
from torchrl_marl_offline.core.put_back import evaluation_mode
from torchrl_marl_offline.core.ranges import SIZE
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss


class ComposedPolicy(TensorDictModuleBase):
    r"""Lets every agent take either policy's action, so that the team's critic values the joint action most (Sim2O).

    .. math:: u = \arg\max_{u_a \in \{u_a^{offline},\, u_a^{online}\}} \min_k Q^k_{tot}(s, u)

    (Song and Yang 2026, arXiv:2606.21085.) For collecting experience: as a policy of
    :class:`~torchrl_marl_offline.CollectorSource`. Acting by it is not decentralized, since the critic compares joint
    actions; the learning policy alone is what is evaluated and executed afterwards.

    With up to ``beam`` compositions all are compared; with more, agents are decided one after another, the learning
    policy's action standing for those not yet decided, and the ``beam`` best compositions are kept after every agent.
    The paper's search is known from its abstract alone.

    Args:
        offline: the policy that is kept as it is. It is not copied: pass one that nothing trains, such as
            ``load_policy(PATH).policy``.
        loss: of the policy that learns; its live networks are asked.
        beam: compositions that are compared at once.

    Raises:
        ValueError: the loss has no policy or no team value, or a policy has memory, writes no action or was made for
            another task; and when it plays, the policies' actions have unlike shapes.
        TypeError: ``offline`` is no module.

    Shape:
        Of the environment's ``[*B]`` to the joint action ``[*B, n, a]``, of a discrete task ``[*B, n]``; in
        ``("agents", "from_offline")``, ``[*B, n]`` bool, whose action was taken. Where both are alike, that is false.
    """

    @checked
    def __init__(
        self, offline: TensorDictModuleBase, loss: OfflineMARLLoss, *, beam: Annotated[int, SIZE] = 64
    ) -> None:
        super().__init__()
        if not isinstance(offline, TensorDictModuleBase):
            raise TypeError(
                f"offline must be a TensorDictModule, such as load_policy(PATH).policy; got a {type(offline).__name__}."
            )
        if reason := _why_not(loss):
            raise ValueError(f"A composed policy compares joint actions by the team's value, and {reason}.")
        online = loss.actor_network
        for name, policy in (("offline", offline), ("loss's", online), ("loss's", loss.qvalue_network)):
            if IS_INIT in map(unravel_key, policy.in_keys):
                raise ValueError(
                    f"The {name} network has memory, which ComposedPolicy does not carry; take one without."
                )
        self.action_key = unravel_key(loss.tensor_keys.action)
        for name, policy in (("offline", offline), ("loss's", online)):
            if self.action_key not in (written := list(map(unravel_key, policy.out_keys))):
                raise ValueError(f"The {name} policy writes {written}, not the action {self.action_key!r}.")
        _check_task(offline, online)
        self.offline, self.beam = offline, beam
        self.__dict__["loss"] = loss  # its parameters are its optimizer's, not this policy's
        self.in_keys = list(dict.fromkeys(map(unravel_key, [*offline.in_keys, *online.in_keys, *self._of_critic()])))
        self.out_keys = [self.action_key, FROM_OFFLINE]

    def _of_critic(self) -> list:
        loss = self.loss
        produced = {unravel_key(loss.tensor_keys.action), *map(unravel_key, loss.qvalue_network.out_keys)}
        mixer = [] if loss.mixer_network is None else loss.mixer_network.in_keys
        return [key for key in map(unravel_key, [*loss.qvalue_network.in_keys, *mixer]) if key not in produced]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the joint action of the highest value."""
        loss = self.loss
        networks = (self.offline, loss.actor_network, loss.qvalue_network, loss.mixer_network)
        with evaluation_mode(nn.ModuleList(each for each in networks if each is not None)):
            return self._composed(tensordict)

    def _composed(self, tensordict: TensorDictBase) -> TensorDictBase:
        loss = self.loss
        old = self.offline(tensordict.copy()).get(self.action_key)
        new = loss.actor_network(tensordict.copy()).get(self.action_key)
        if old.shape != new.shape or old.is_floating_point() != new.is_floating_point():
            raise ValueError(
                f"The offline policy's actions are {old.dtype} {list(old.shape)} and the loss's {new.dtype} "
                f"{list(new.shape)}; take two policies of one task, whose actions are written alike."
            )
        batch = loss.batch(tensordict.copy().set(loss.tensor_keys.action, new))
        own = new.shape[tensordict.ndim + 1 :]  # of an agent's action: (a,), of a discrete one ()

        def composed(taken: Tensor, *samples: int) -> Tensor:
            first, second = (each.reshape(*tensordict.shape, *samples, -1, *own) for each in (old, new))
            return torch.where(taken.reshape(*taken.shape, *(1 for _ in own)), first, second)

        def value(taken: Tensor) -> Tensor:
            return batch.joint_candidates(composed(taken, 1)).amin(-1).mean(-1)  # [*B, K]

        taken = best_composition(value, new.shape[: tensordict.ndim + 1], self.beam, device=new.device)
        differs = (old != new).flatten(tensordict.ndim + 1).any(-1) if own else old != new
        return tensordict.set(self.action_key, composed(taken)).set(FROM_OFFLINE, taken & differs)


def _why_not(loss: OfflineMARLLoss) -> str | None:
    """Return why no team's value of a loss's own policies can be asked, or None where it can."""
    if getattr(loss, "actor_network", None) is None:
        return f"this {type(loss).__name__} has no policy to learn; take an algorithm that has one"
    if loss.team.critic is None:
        return f"this {type(loss).__name__} has no critic; take an algorithm that has one"
    if not loss.is_team:
        return "independent agents have none; take another decomposition"
    return None


def _check_task(offline: TensorDictModuleBase, online: TensorDictModuleBase) -> None:
    """Refuse policies that say that they were made for tasks of other sizes; those of networks of others do not say."""
    specs = [TaskSpec(**each.build["spec"]) for each in (offline, online) if hasattr(each, "build")]
    sizes = {(spec.n_agents, spec.observation_size, spec.action_size, spec.discrete) for spec in specs}
    if len(sizes) > 1:
        raise ValueError(
            f"The offline policy was made for {specs[0]}, and the loss's for {specs[1]}; take two policies of one task."
        )


FROM_OFFLINE = ("agents", "from_offline")


def best_composition(
    value: Callable[[Tensor], Tensor], shape: torch.Size, beam: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Return which agents take the first of two actions, ``[*B, n]`` bool, so that a value is largest.

    Args:
        value: of such choices ``[*B, K, n]``, ``[*B, K]``.
        shape: ``[*B, n]``.
        beam: choices that are kept after every agent; agents not yet decided take the second action.
        device: of the result.
    """
    *rows, n = shape
    taken = torch.zeros(*rows, 1, n, dtype=torch.bool, device=device)
    for agent in range(n):
        other = taken.clone()
        other[..., agent] = True
        taken = torch.cat([taken, other], -2)
        if taken.shape[-2] > beam:
            taken = _best(taken, value(taken), beam)
    return _best(taken, value(taken), 1).squeeze(-2)


def _best(taken: Tensor, values: Tensor, count: int) -> Tensor:
    index = values.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return taken.gather(-2, index.unsqueeze(-1).expand(*index.shape, taken.shape[-1]))
