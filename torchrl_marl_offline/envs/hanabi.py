"""Hanabi as an environment: a card game in which agents see each other's cards and not their own."""

from __future__ import annotations

from typing import Annotated

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.layout import OBSERVATION, STATE, TaskSpec
from torchrl_marl_offline.core.ranges import SEED, SIZE
from torchrl_marl_offline.envs.base import Game, Outcome, TeamEnv, View
from torchrl_marl_offline.envs.hanabi_rules import (
    CARDS,
    COLOURS,
    COPIES,
    DECK,
    HINT_TOKENS,
    LIVES,
    NO_CARD,
    PLAYERS,
    RANKS,
    HanabiRules,
    Table,
)

_REFERENCE_RETURNS = (0.0, 25.0)  # uniform play, to two digits, with any number of agents; the most there is


class Hanabi(TeamEnv):
    """Two to five agents build five fireworks of five cards and see all cards but their own: ``games/hanabi``.

    The rules are those of :class:`~torchrl_marl_offline.envs.hanabi_rules.HanabiRules`, with its actions: discard a
    slot, play a slot, hint a colour, hint a rank (two agents: 0-4, 5-9, 10-14, 15-19). Agents take turns, the first
    agent first. The last action, one more than the rules have, is to wait: it is the only legal one of those whose turn
    it is not. An illegal action, if forced, is taken as playing the oldest card.

    All agents get the change of the score, so that the return is the score, 0 to 25, and 0 when all three lives are
    lost. The end is a termination; no game reaches the time limit. Uniform play loses all its lives: 20,000
    games return 0 on average with two to four agents and 0.0005 with five. ``reference_returns`` are 0 and the 25 that
    can be had at most.

    Observation, from the agent's place, agents in the order in which they act after it, itself first:

    - the cards of the others, one-hot, oldest first (25 each); which agents have a card less;
    - cards in the deck (a number for each, 1 as long as it is there); height of each firework, one-hot (25); hint
      tokens (8); lives (3); discarded cards (50: of each colour and rank as many as there are copies);
    - the last action: who acted; play, discard, hint of a colour or hint of a rank; who was told; colour; rank; which
      cards the hint touched; which slot was played or discarded; the card; whether it scored; whether a play gave a
      token back;
    - what has been told of each card of each agent, itself first: 25 cards that it may be, and the 5 colours and 5
      ranks that were named.

    These are the numbers of the Hanabi Learning Environment's encoding in its order, 658, 956, 1041 and 1280 for two to
    five agents. One more is 1 if it is the agent's turn.

    State: the observation of the first agent without that number; its own cards, one-hot; whose turn it is, one-hot.

    Args:
        num_envs: number of environments.
        device: where they run.
        seed: of the decks.
        agents: number of agents, 2 to 5.
    """

    @checked
    def __init__(
        self,
        *,
        num_envs: Annotated[int, SIZE] = 1,
        device: torch.device | str = "cpu",
        seed: Annotated[int | None, SEED] = None,
        agents: Annotated[int, PLAYERS] = 2,
    ) -> None:
        self.rules = HanabiRules(agents, device=device)
        size, slots = self.rules.hand_size, agents * self.rules.hand_size
        last = 2 * agents + 4 + COLOURS + RANKS + 2 * size + CARDS + 2
        board = DECK - slots + CARDS + HINT_TOKENS + LIVES
        encoded = (slots - size) * CARDS + agents + board + DECK + last + slots * (CARDS + COLOURS + RANKS)
        spec = TaskSpec(
            n_agents=agents,
            observation_size=encoded + 1,
            state_size=encoded + size * CARDS + agents,
            action_size=self.rules.actions + 1,
            discrete=True,
            has_action_mask=True,
            task="games/hanabi",
        )
        super().__init__(
            spec=spec,
            num_envs=num_envs,
            device=device,
            seed=seed,
            max_episode_steps=self.rules.longest,
            reference_returns=_REFERENCE_RETURNS,
        )
        self._make_tables()

    def _make_tables(self) -> None:
        """Write out what is looked up, a byte for each number: they are made floating at the end, all at once."""
        rules, agents = self.rules, self.task_spec.n_agents
        bytes_ = {"device": self.device, "dtype": torch.uint8}
        place = torch.arange(agents, device=self.device)
        self._places = place
        self._from_me = (place.unsqueeze(-1) + place) % agents  # [n, n], who is at each place from an agent's own
        self._card = torch.eye(CARDS + 1, **bytes_)[:, :CARDS].contiguous()  # [26, 25]
        self._height = torch.cat([torch.zeros(1, RANKS, **bytes_), torch.eye(RANKS, **bytes_)])  # [6, 5]
        numbers = torch.arange(DECK + 1, device=self.device)
        thermometer = (numbers.unsqueeze(-1) > numbers).to(torch.uint8)  # [51, 51]
        self._deck_left, self._tokens, self._lives = (
            thermometer[: size + 1, :size].contiguous()
            for size in (DECK - agents * rules.hand_size, HINT_TOKENS, LIVES)
        )
        copies = [(card, copy) for card in range(CARDS) for copy in range(COPIES[card % RANKS])]
        self._copy_of, self._copy = torch.tensor(copies, device=self.device).T
        bits = torch.arange(1 << COLOURS + RANKS + 2, device=self.device).unsqueeze(-1)
        said = bits >> torch.arange(COLOURS + RANKS + 2, device=self.device) & 1  # [4096, 12]
        colours, ranks = said[:, :COLOURS], said[:, COLOURS : COLOURS + RANKS]
        possible = (colours[:, :, None] * ranks[:, None]).flatten(1)  # [4096, 25]
        self._knowledge = torch.cat([possible, colours * said[:, -2:-1], ranks * said[:, -1:]], -1).to(torch.uint8)
        self._action_words = self._words_of_actions()  # [A + 1, 4 + 5 + 5]
        self._slot_words = torch.zeros(rules.actions + 1, rules.hand_size, **bytes_)
        for action in range(2 * rules.hand_size):
            self._slot_words[action, action % rules.hand_size] = 1
        # of a move nobody is told: one row more than there are places
        nobody = agents
        told = [nobody] * 2 * rules.hand_size + rules.target_offset[2 * rules.hand_size :].tolist() + [nobody]
        self._told_offset = torch.tensor(told, device=self.device)
        self._place_words = torch.cat([torch.eye(agents, **bytes_), torch.zeros(1, agents, **bytes_)])  # [n + 1, n]

    def _words_of_actions(self) -> Tensor:
        """Return, for each action and for none, its kind one-hot (4), and the colour (5) or rank (5) of a hint."""
        size, agents = self.rules.hand_size, self.task_spec.n_agents
        words = torch.zeros(self.rules.actions + 1, 4 + COLOURS + RANKS, device=self.device, dtype=torch.uint8)
        words[:size, 1] = words[size : 2 * size, 0] = 1
        first_rank = 2 * size + COLOURS * (agents - 1)
        words[2 * size : first_rank, 2] = words[first_rank : self.rules.actions, 3] = 1
        for hint in range(2 * size, self.rules.actions):
            words[hint, 4 + (hint - 2 * size) % COLOURS + (COLOURS if hint >= first_rank else 0)] = 1
        return words

    def set_state(self, deck: Tensor) -> TensorDict:
        """Begin with given decks, int64 ``[B, 50]`` in the order of the cards, and return the first observation.

        Raises:
            ValueError: one is no deck of Hanabi.
        """
        deck = self._given("deck", deck, (DECK,), high=CARDS - 1)
        sorted_deck = self.rules.shuffled(torch.arange(DECK, device=self.device))
        if not (deck.sort(-1).values == sorted_deck).all():
            raise ValueError(
                f"decks must be [{self.num_envs}, {DECK}] cards 5 * colour + rank, of each colour 3, 2, 2, 2 and 1 of "
                f"the ranks 0 to 4; deal other ones."
            )
        return self._set_game(**self._with_legal(self.rules.start(deck)))

    def _start(self, rows: Tensor | None) -> Game:
        return self._with_legal(self.rules.start(self.rules.shuffled(self.random.uniform(DECK, rows=rows))))

    def _with_legal(self, table: Table) -> Game:
        """Keep the legal actions beside the table: masks show them, and the next step asks again."""
        return table | {"legal": self.rules.legal(table)}

    def _advance(self, game: Game, action: Tensor) -> Outcome:
        chosen = action.gather(1, game["player"].unsqueeze(-1))  # [B, 1]
        # to wait is no action of the rules
        legal = game["legal"].gather(1, chosen.clamp_max(self.rules.actions - 1))
        legal = legal & (chosen < self.rules.actions)
        turn = self.rules.step(game, torch.where(legal, chosen, self.rules.hand_size).squeeze(-1))
        reward = turn.reward.to(self.float_dtype).unsqueeze(-1).expand(-1, self.task_spec.n_agents)
        return Outcome(self._with_legal(turn.table), reward.contiguous(), turn.over)

    def _reset_proc_data(self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase) -> TensorDictBase:
        """Take observations and states as they are: the games that are not reset look as they did.

        TorchRL would merge them row by row into those that it was given, which costs more than a step of the game.
        """
        if tensordict is None:
            return super()._reset_proc_data(tensordict, tensordict_reset)
        views = {key: tensordict_reset.pop(key) for key in (OBSERVATION, STATE)}
        for key in views:
            tensordict.pop(key, None)
        merged = super()._reset_proc_data(tensordict, tensordict_reset)
        for key, view in views.items():
            merged.set(key, view)
        return merged

    def _view(self, game: Game) -> View:
        n, me, last = self.task_spec.n_agents, self._from_me, game["last"]
        turn = game["player"].unsqueeze(-1) == self._places  # [B, n]
        hands = game["hands"][:, me]  # [B, n, n, H], as each agent counts
        began = (last < self.rules.actions).unsqueeze(-1)
        actor = (game["player"].unsqueeze(-1) - 1 - self._places) % n  # [B, n], its place, as each agent counts
        told = self._told_offset[last].unsqueeze(-1)
        board, words, result = (each.unsqueeze(1).expand(-1, n, -1) for each in self._common(game))
        parts = [
            _looked_up(self._card, hands[:, :, 1:]),  # [B, n, (n - 1) * H * 25]
            (hands[..., -1] == NO_CARD).to(torch.uint8),
            board,
            _looked_up(self._place_words, torch.where(began, actor, n).unsqueeze(-1)),
            words[..., :4],
            _looked_up(self._place_words, torch.where(told < n, (actor + told) % n, n).unsqueeze(-1)),
            words[..., 4:],
            result,
            _looked_up(self._knowledge, game["known"][:, me]),
            turn.unsqueeze(-1).to(torch.uint8),
        ]
        observation = torch.cat(parts, -1)
        own = _looked_up(self._card, game["hands"][:, :1]).squeeze(1)
        state = torch.cat([observation[:, 0, :-1], own, turn.to(torch.uint8)], -1)
        return View(observation.to(self.float_dtype), state.to(self.float_dtype), self._mask(game, turn))

    def _common(self, game: Game) -> tuple[Tensor, Tensor, Tensor]:
        """Return what all agents see alike: board and discards; the last action's kind, colour and rank; its result."""
        last = game["last"]
        board = [
            self._deck_left[DECK - game["drawn"]],
            _looked_up(self._height, game["fireworks"].unsqueeze(1)).squeeze(1),
            self._tokens[game["tokens"]],
            self._lives[game["lives"]],
            (game["discards"][:, self._copy_of] > self._copy).to(torch.uint8),
        ]
        result = [
            game["last_touched"].to(torch.uint8),
            self._slot_words[last],
            self._card[game["last_card"]],
            torch.stack([game["last_scored"], game["last_token"]], -1).to(torch.uint8),
        ]
        return torch.cat(board, -1), self._action_words[last], torch.cat(result, -1)

    def _mask(self, game: Game, turn: Tensor) -> Tensor:
        """Return the legal actions, bool ``[B, n, A + 1]``: those of the rules for who has the turn, to wait else."""
        legal = game["legal"].unsqueeze(1) & turn.unsqueeze(-1)  # [B, n, A]
        return torch.cat([legal, ~turn.unsqueeze(-1)], -1)


def _looked_up(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a table side by side: ``[R, w]`` and int64 ``[B, n, ...]`` -> ``[B, n, ... * w]``."""
    return table.index_select(0, rows.flatten()).view(*rows.shape[:2], -1)
