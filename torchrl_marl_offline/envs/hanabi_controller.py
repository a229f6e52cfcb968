"""A hand-written team for ``games/hanabi`` that hints what can be played and plays what it knows."""

from __future__ import annotations

from typing import Annotated

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION
from torchrl_marl_offline.core.ranges import SEED, UNIT
from torchrl_marl_offline.envs.base import entry_read, game_of
from torchrl_marl_offline.envs.hanabi import Hanabi
from torchrl_marl_offline.envs.hanabi_rules import CARDS, COLOURS, DECK, HINT_TOKENS, LIVES, RANKS
from torchrl_marl_offline.envs.scripted import Chance

_KNOWN = CARDS + COLOURS + RANKS  # numbers that say what has been told of one card


class HanabiController(TensorDictModuleBase):
    """Plays ``games/hanabi`` by each agent's own observation, with the first of these rules that allows an action:

    - play a card that certainly fits, by what was told of it;
    - hint the next agent the rank of a card of its that fits now, or the colour where the rank is known to it;
    - discard a card that certainly fits no more, or else the oldest;
    - hint the next agent anything.

    Args:
        env: the game.
        epsilon: probability with which an agent takes a uniformly random legal action instead.
        seed: of the chance; ``None`` takes torch's global generator.

    Examples:
        >>> from torchrl_marl_offline.envs import HanabiController, make_env
        >>> from torchrl_marl_offline.evaluation import evaluate
        >>> env = make_env("games/hanabi", num_envs=50)
        >>> evaluate(HanabiController(env, seed=0), env, episodes=50, seed=0).mean > 10
        True
    """

    @checked
    def __init__(
        self, env: EnvBase, *, epsilon: Annotated[float, UNIT] = 0.0, seed: Annotated[int | None, SEED] = None
    ) -> None:
        game = game_of(env, Hanabi, "HanabiController plays in environments of games/hanabi, not")
        self.in_keys, self.out_keys = [OBSERVATION, ACTION_MASK], [ACTION]
        super().__init__()
        self.agents, self.hand = game.task_spec.n_agents, game.rules.hand_size
        self.epsilon, self._chance = epsilon, Chance(seed)
        self._width = game.task_spec.observation_size

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``("agents", "action")``."""
        seen, mask = entry_read(self, tensordict, OBSERVATION, self._width), entry_read(self, tensordict, ACTION_MASK)
        action = self._wishes(seen).masked_fill(~mask, -1.0).argmax(-1)
        if self.epsilon:
            action = self._chance.explored(action, self._chance.legal(mask), self.epsilon)
        return tensordict.set(ACTION, action)

    def _wishes(self, observation: Tensor) -> Tensor:
        """Return how much an agent wants each action, ``[*B, n, A + 1]``."""
        hand, agents = self.hand, self.agents
        board = (agents - 1) * hand * CARDS + agents + DECK - agents * hand  # where the fireworks begin
        heights = observation[..., board : board + CARDS].unflatten(-1, (COLOURS, RANKS))
        known = board + CARDS + HINT_TOKENS + LIVES + DECK + 2 * agents + 4 + COLOURS + RANKS + 2 * hand + CARDS + 2
        told = observation[..., known : known + 2 * hand * _KNOWN].unflatten(-1, (2, hand, _KNOWN)) > 0.5
        own, others = told[..., 0, :, :CARDS], told[..., 1, :, CARDS:]  # [*B, n, H, 25], [*B, n, H, 10]
        cards = observation[..., : hand * CARDS].unflatten(-1, (hand, CARDS)) > 0.5  # of the next agent

        level = (heights * torch.arange(1, RANKS + 1, device=heights.device)).sum(-1, keepdim=True)  # [*B, n, 5, 1]
        rank = torch.arange(RANKS, device=level.device)
        fits, gone = ((rank == level).flatten(-2), (rank < level).flatten(-2))  # [*B, n, 25]
        there = own.any(-1)
        sure = there & ~(own & ~fits.unsqueeze(-2)).any(-1)  # [*B, n, H]
        useless = there & ~(own & ~gone.unsqueeze(-2)).any(-1)

        playable = (cards & fits.unsqueeze(-2)).unflatten(-1, (COLOURS, RANKS))  # [*B, n, H, 5, 5]
        colours, ranks = playable.any(-1), playable.any(-2)  # [*B, n, H, 5]
        has_colour, has_rank = (
            others[..., part].any(-1, keepdim=True) for part in (slice(COLOURS), slice(COLOURS, None))
        )
        by_rank = (ranks & ~has_rank).any(-2)
        by_colour = (colours & has_rank & ~has_colour).any(-2)  # [*B, n, 5]

        older = torch.arange(hand, 0, -1, device=level.device) / (hand + 1)  # the oldest first
        discards = torch.where(useless, 4.0, 2.0) + older
        plays = torch.where(sure, 6.0 + older, 0.0)
        to_others = by_rank.new_zeros(*by_rank.shape[:-1], COLOURS * (agents - 2))
        hints = torch.cat([by_colour, to_others, by_rank, to_others], -1)
        return torch.cat([discards, plays, 1.0 + 4.0 * hints, torch.ones_like(level[..., 0, :])], -1)
