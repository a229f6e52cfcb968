"""What the networks of a loss remember: each encoder is unrolled once over the rows of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_marl_offline.core.functional_parameters import parameters_in, tree_of
from torchrl_marl_offline.core.layout import GROUP, IS_INIT, OBSERVATION, joined
from torchrl_marl_offline.core.parts import part
from torchrl_marl_offline.modules.history import HistoryEncoder, encoder_of, encoders_of
from torchrl_marl_offline.objectives.first_batch import FirstBatch
from torchrl_marl_offline.objectives.series import check_series

Role = Literal["actor", "qvalue", "value"]
ROLES: tuple[Role, ...] = ("actor", "qvalue", "value")

SEEN = FirstBatch()
"""Those of losses whose first batch was found to be steps of episodes."""


SEQUENCES = (
    "sample sequences, as dataset.replay_buffer(batch_size=, slice_len=, burn_in=) does, or build without memory"
)
"""What to do about rows that are no steps of episodes."""


class Histories:
    r"""The encoders of a loss's networks, and what they make of the rows of a step.

    Observations of the rows are unrolled once for each network, and for its target: :math:`h_t` of the observations
    :math:`o_0, \ldots, o_{T-1}`, from zeros on, and from zeros again where an episode begins or behind a row that ended
    one. The features of :math:`h_t` stand in the rows. What a network remembers *after* row ``t``'s next observation is
    one step more from :math:`h_t`, whatever row follows: of it, ``h_t`` stands in the next states. So the networks
    behind the encoders see rows, each for itself.

    Args:
        loss: whose networks they are.
        networks: by their roles.
        others: networks that cannot remember, by their names.

    Attributes:
        encoders: those that there are, by the roles of their networks.
        heads: the networks behind them.

    Raises:
        ValueError: a network has an encoder elsewhere than at its beginning, or several.
    """

    def __init__(
        self,
        loss: LossModule,
        networks: Mapping[Role, TensorDictModuleBase | None],
        others: Mapping[str, TensorDictModuleBase | None],
    ) -> None:
        for name, network in others.items():
            if encoder_of(network) is not None:
                raise ValueError(
                    f"A HistoryEncoder stands before a policy, a critic or a state-value network; take it out of the "
                    f"{name}."
                )
        self.loss = loss
        self.networks = {role: network for role, network in networks.items() if encoder_of(network) is not None}
        self.encoders: dict[Role, HistoryEncoder] = {r: encoder_of(network) for r, network in self.networks.items()}
        self.heads: dict[Role, TensorDictModuleBase] = {
            role: _head_of(network, self.encoders[role]) for role, network in self.networks.items()
        }

    def __bool__(self) -> bool:
        return bool(self.encoders)

    def check_first(self, rows: TensorDictBase, counts: Tensor | None) -> None:
        """Refuse a loss's first batch ``[*B, T]`` that is not steps of episodes, of whichever networks with memory.

        Args:
            rows: with ``"is_init"``.
            counts: which of them count, ``[*B, T]``; None for all.

        Raises:
            ValueError: it says what to sample.
        """
        if not rows.ndim:
            raise ValueError(f"A loss of networks with memory needs steps of episodes, not a single one: {SEQUENCES}.")
        begins = rows.get(IS_INIT, None)
        if begins is None:
            raise ValueError(
                f"Networks with memory must be told where episodes begin, by {IS_INIT!r} or "
                f"{('next', self.loss.tensor_keys.done)}: {SEQUENCES}."
            )
        if not SEEN.is_due(self, begins):
            return
        ended = torch.cat([begins[..., 1:, 0], torch.ones_like(begins[..., :1, 0])], -1)
        ended = ended if counts is None else ended | ~counts
        check_series(rows, ended, [OBSERVATION], carrier="Memory carries what agents saw", remedy=SEQUENCES)
        SEEN.passed(self)

    def prepared(self, clean: TensorDictBase, seen: TensorDictBase, *, only: Role | None = None) -> TensorDictBase:
        """Return rows whose networks need not look at other rows any more.

        Args:
            clean: the rows ``[*B, T]`` of the loss, the time last, with ``"is_init"``.
            seen: the same with observations also where a row does not count: those of the burn-in.
            only: the one network that will be asked, not its target; by default all.
        """
        observation, begins = seen.get(OBSERVATION), clean.get(IS_INIT)
        found = clean.copy()
        following = found.get("next", None)
        for role in self.encoders if only is None else self.encoders.keys() & {only}:
            for target in self._variants(role) if only is None else (False,):
                memory = self._unrolled(role, observation, begins, target=target)
                found.set(self.key(role, target=target), self._features(role, memory))
                if following is not None:
                    following.set(self._memory_key(role, target=target), memory.detach())
        return found

    def features(
        self, tensordict: TensorDictBase, role: Role, *, target: bool = False, detach: bool = False
    ) -> dict[str, Tensor]:
        """Return what the network of a role reads of its past in rows, by joined key names; of no encoder, nothing.

        Raises:
            ValueError: the rows have no memory.
        """
        if role not in self.encoders:
            return {}
        found = self._of_rows(tensordict, role, target=target)
        return {joined(unravel_key(self.encoders[role].history_key)): found.detach() if detach else found}

    def keys(self, tensordict: TensorDictBase, role: Role, *, target: bool = False) -> list[NestedKey]:
        """Return which entry of rows has what :meth:`features` returns, after it was put there."""
        if role not in self.encoders:
            return []
        self._of_rows(tensordict, role, target=target)
        return [self.key(role, target=target)]

    def key(self, role: Role, *, target: bool) -> NestedKey:
        """Return where features of a role's network, or of its target, stand in the rows."""
        return self._key_of(role, "history", target)

    def _memory_key(self, role: Role, *, target: bool) -> NestedKey:
        return self._key_of(role, "memory", target)

    def _key_of(self, role: Role, what: str, target: bool) -> NestedKey:
        # by the network's role and not by the encoder's keys, which several networks may have in common
        name = f"{role}_{what}_target" if self._has_target(role, target) else f"{role}_{what}"
        return name if self.encoders[role].joint else (GROUP, name)

    def _of_rows(self, tensordict: TensorDictBase, role: Role, *, target: bool) -> Tensor:
        key = self.key(role, target=target)
        found = tensordict.get(key, None)
        if found is None:
            memory = tensordict.get(self._memory_key(role, target=target), None)
            if memory is None:
                raise ValueError(f"The rows have no {joined(key)}; take them from loss.batch(tensordict).")
            observation = tensordict.get(OBSERVATION)
            memory = self._run(role, lambda e, m: e.advance(observation, m), memory, target=target)
            found = self._features(role, memory)
            tensordict.set(key, found)
        return found

    # ---------------------------------------------------------------------- one pass over time

    def _variants(self, role: Role) -> list[bool]:
        """Return whether the network itself and its target are asked."""
        return [False, True] if self._has_target(role, True) else [False]

    def _has_target(self, role: Role, target: bool) -> bool:
        """Say whether a target remembers for itself: of networks that are only asked, the target is the network."""
        learning = self.loss.value_learning
        if not target or role == "actor" or learning is None:
            return False
        return role == "qvalue" or learning.needs_target_value

    def _unrolled(self, role: Role, observation: Tensor, begins: Tensor, *, target: bool) -> Tensor:
        trained = self.loss.extraction if role == "actor" else self.loss.value_learning
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained is not None and not target):
            return self._run(role, lambda encoder: encoder.unroll(observation, begins), target=target)

    def _run(self, role: Role, function: Callable[..., Tensor], *memory: Tensor, target: bool) -> Tensor:
        """Evaluate an encoder; of an ensemble all of them, ``[*B, n, E, S]``."""
        network, encoder = self.networks[role], self.encoders[role]
        name = f"{role}_network_params"
        params = getattr(self.loss, f"target_{name}" if self._has_target(role, target) else name)
        with part(f"unroll {'target ' if target else ''}{role}"):
            if role == "qvalue" and self.loss.team.is_ensemble:
                return self._of_ensemble(network, encoder, function, params, *memory)
            with parameters_in(network, params):
                return function(encoder, *memory)

    def _of_ensemble(self, network, encoder, function, params, *memory: Tensor) -> Tensor:
        def one(params: TensorDictBase, *memory: Tensor) -> Tensor:
            with parameters_in(network, params):
                return function(encoder, *memory)

        given = [each.movedim(-2, 0) for each in memory]
        if self.loss.deactivate_vmap:
            members = zip(tree_of(params).unbind(0), *given)
            found = torch.stack([one(*each) for each in members])
        else:
            found = torch.vmap(one, randomness=self.loss.vmap_randomness)(params, *given)
        return found.movedim(0, -2)

    def _features(self, role: Role, memory: Tensor) -> Tensor:
        encoder = self.encoders[role]
        found = memory[..., : encoder.feature_size]
        return found.squeeze(-3 if role == "qvalue" and self.loss.team.is_ensemble else -2) if encoder.joint else found


def _parts_of(network: TensorDictModuleBase) -> list[TensorDictModuleBase]:
    if isinstance(network, TensorDictSequential):
        return [part for module in network.module for part in _parts_of(module)]
    return [network]


def _head_of(network: TensorDictModuleBase, encoder: HistoryEncoder) -> TensorDictModuleBase:
    """Return what a network has behind its encoder."""
    first, *rest = _parts_of(network)
    if len(set(encoders_of(network))) > 1:
        raise ValueError(
            f"A network has one HistoryEncoder, which stands at its beginning; the {type(network).__name__} has "
            f"{len(encoders_of(network))}."
        )
    if first is not encoder or not rest:
        raise ValueError(
            f"A HistoryEncoder must stand at the beginning of its network, TensorDictSequential(encoder, network); the "
            f"{type(network).__name__} has it elsewhere."
        )
    if len(rest) == 1:
        return rest[0]
    is_random = isinstance(rest[-1], ProbabilisticTensorDictModule)
    return (ProbabilisticTensorDictSequential if is_random else TensorDictSequential)(*rest)
