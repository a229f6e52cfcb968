"""TorchRL's losses for networks with memory: every row with what an encoder remembers of the rows before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictParams
from torchrl.objectives import TD3Loss
from torchrl.objectives.multiagent import QMixerLoss

from torchrl_marl_offline.core.functional_parameters import parameters_in
from torchrl_marl_offline.core.layout import IS_INIT, MASK, OBSERVATION, next_key
from torchrl_marl_offline.modules.history import HistoryEncoder


class OfSequences:
    """A loss of sequences ``[S, T]`` by one of rows: mixed into a loss of TorchRL's, whose networks read histories.

    The encoders are networks of the loss, with targets of their own. Each is unrolled over the sequences, from zeros on
    where an episode begins, and its target is, with one step more of every row, for the row's next observation. Then
    the rows that count, and these alone, are the batch of TorchRL's loss.

    Args:
        *networks: of TorchRL's loss; in the place of observations they read what the encoders write.
        encoders: by the names that they get in the loss.
        **options: of TorchRL's loss.
    """

    remembered: tuple[str, ...] = ()

    def __init__(self, *networks: Any, encoders: Mapping[str, HistoryEncoder], **options: Any) -> None:
        super().__init__(*networks, **options)
        for name, encoder in encoders.items():
            self.convert_to_functional(encoder, name, create_target_params=True)
        self.remembered = tuple(encoders)

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        histories = {key for name in self.remembered for key in _both(getattr(self, name).history_key)}
        keys = dict.fromkeys(key for key in map(unravel_key, self._in_keys) if key not in histories)
        self._in_keys = [*keys, *_both(OBSERVATION)]

    def rows(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the rows that count, ``[R]``, with their histories.

        Args:
            tensordict: sequences ``[S, T]``, the time last, with ``"is_init"`` and ``("collector", "mask")``.
        """
        observation, begins = tensordict.get(OBSERVATION), tensordict.get(IS_INIT)
        found = tensordict.copy()
        for name in self.remembered:
            encoder = getattr(self, name)
            here, ahead = _both(encoder.history_key)
            with parameters_in(encoder, getattr(self, f"{name}_params")):
                found.set(here, encoder.features(encoder.unroll(observation, begins)))
            with torch.no_grad(), parameters_in(encoder, getattr(self, f"target_{name}_params")):
                memory = encoder.unroll(observation, begins)
                memory = encoder.advance(tensordict.get(next_key(OBSERVATION)), memory)
                found.set(ahead, encoder.features(memory))
        return found[tensordict.get(MASK)]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return what TorchRL's loss returns of the rows that count."""
        return super().forward(self.rows(tensordict))


class SequenceQMixerLoss(OfSequences, QMixerLoss):
    """TorchRL's loss of QMIX, for local values of histories."""

    policy_encoder: HistoryEncoder
    policy_encoder_params: TensorDictParams
    target_policy_encoder_params: TensorDictParams


class SequenceTD3Loss(OfSequences, TD3Loss):
    """TorchRL's loss of TD3, for a policy and critics of histories. The critics share what they remember."""

    policy_encoder: HistoryEncoder
    policy_encoder_params: TensorDictParams
    target_policy_encoder_params: TensorDictParams
    critic_encoder: HistoryEncoder
    critic_encoder_params: TensorDictParams
    target_critic_encoder_params: TensorDictParams

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the policy's term, whose gradient is the policy's alone."""
        history = self.critic_encoder.history_key
        rows = tensordict.copy().set(history, tensordict.get(history).detach())
        return super().actor_loss(rows)


def _both(key: NestedKey) -> tuple[NestedKey, NestedKey]:
    return key, next_key(key)
