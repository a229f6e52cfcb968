"""The rules of Hanabi for many games at once, as functions of a dictionary of tensors."""

from __future__ import annotations

from functools import reduce
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import Range

COLOURS = RANKS = 5
CARDS = COLOURS * RANKS
COPIES = (3, 2, 2, 2, 1)
"""Of each rank, in every colour."""
DECK = COLOURS * sum(COPIES)
HINT_TOKENS, LIVES = 8, 3
NO_CARD = CARDS
PLAYERS = Range(2, 5)

_PROPERTIES = COLOURS + RANKS
_UNKNOWN = (1 << _PROPERTIES) - 1

Table = dict[str, Tensor]


class Turn(NamedTuple):
    """What one action of each game leads to."""

    table: Table
    reward: Tensor  # [B] int64, change of the score
    over: Tensor  # [B] bool


class HanabiRules:
    """Hanabi with 5 colours, 5 ranks, 8 hint tokens and 3 lives, for ``B`` games at once.

    The rules are those of the Hanabi Learning Environment (Bard et al., 2020, "The Hanabi Challenge"). Players take
    turns, player 0 first. Hands have 5 cards with two or three players, else 4; slot 0 holds the oldest card, a card
    that leaves makes the younger ones move up, and the one that is drawn is the last. A card is ``5 * colour + rank``
    with ranks from 0, and 25 is none.

    An action is one number of ``A = 2 H + 10 (P - 1)``:

    - ``0 .. H-1``: discard the card of a slot; not with all 8 hint tokens. It gives a token back;
    - ``H .. 2H-1``: play it. If it is its colour's next rank it stays, and the fifth of a colour gives a token back, up
      to 8. Otherwise it is discarded, and a life is lost;
    - then, for the next player, the one after, and so on, 5 hints each: all cards of a colour;
    - then, likewise, all cards of a rank. A hint costs a token and must touch a card.

    A game is over when all lives are lost, when all 25 cards are played, and when every player has acted once more
    after the last card was drawn, the one who drew it too. The score is the number of cards played, 0 without lives.

    The table is a dictionary: ``deck`` [B, 51] (the last one is no card), ``drawn`` [B], ``hands`` [B, P, H], ``known``
    [B, P, H] (what the owner of a card has been told: bit ``c`` is set where colour ``c`` is possible, bit ``5 + r``
    where rank ``r`` is, bit 10 where a hint has named its colour and bit 11 where one has named its rank; 0 without a
    card), ``fireworks`` [B, 5],
    ``discards`` [B, 25], ``tokens``, ``lives``, ``left`` (turns that are left once the deck is empty) and ``player``
    [B], all int64; and of the last action ``last`` (its number, ``A`` before the first), ``last_card``, int64 [B],
    ``last_touched`` bool [B, H], ``last_scored`` and ``last_token`` (a play gave a token back) bool [B].

    Args:
        players: number of players ``P``.
        device: where the tables lie.
    """

    @checked
    def __init__(self, players: Annotated[int, PLAYERS] = 2, *, device: torch.device | str = "cpu") -> None:
        self.players, self.device = players, torch.device(device)
        self.hand_size = 5 if players <= 3 else 4
        self.actions = 2 * self.hand_size + (players - 1) * _PROPERTIES
        self.longest = 2 * (DECK - players * self.hand_size + players) + HINT_TOKENS
        """No game has more turns: every card that leaves a hand gives back one token at most."""
        hints = [(offset, part) for part in (0, COLOURS) for offset in range(1, players) for _ in range(COLOURS)]
        values = [*range(COLOURS)] * (players - 1) * 2
        bits = [1 << (part + value) for (_, part), value in zip(hints, values)]
        groups = [(1 << COLOURS) - 1 << part for _, part in hints]
        flags = [1 << _PROPERTIES + part // COLOURS for _, part in hints]
        moves = 2 * self.hand_size
        self._slot = self._numbers([*range(self.hand_size)] * 2 + [self.hand_size] * len(hints))  # [A]
        self._bit = self._numbers([0] * moves + bits)
        self._group = self._numbers([0] * moves + groups)
        self._named = self._numbers([0] * moves + [bit | flag for bit, flag in zip(bits, flags)])
        self._offset = self._numbers([0] * moves + [offset for offset, _ in hints])
        self.target_offset = self._offset
        self._identity = self._numbers([1 << card // 5 | 1 << 5 + card % 5 for card in range(CARDS)] + [0])  # [26]
        self._hint_offset, self._hint_bit = self._offset[moves:], self._bit[moves:]  # [10 (P - 1)]
        self._slots = self._numbers(range(self.hand_size))
        self._discards = self._slots.new_tensor(range(self.actions)) < self.hand_size  # [A]
        self._hints = self._bit > 0
        self._sorted = self._numbers(
            [COLOURS * colour + rank for colour in range(COLOURS) for rank in range(RANKS) for _ in range(COPIES[rank])]
        )

    def _numbers(self, values) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=self.device)

    def shuffled(self, order: Tensor) -> Tensor:
        """Return decks, int64 ``[R, 50]``, from numbers that are drawn for each card, ``[R, 50]``."""
        return self._sorted[order.argsort(-1)]

    def start(self, decks: Tensor) -> Table:
        """Deal hands from the top of given decks, int64 ``[R, 50]``: first all cards of player 0, then of player 1.

        Args:
            decks: cards in the order in which they are drawn.
        """
        count, dealt = len(decks), self.players * self.hand_size
        deck = torch.cat([decks, torch.full_like(decks[:, :1], NO_CARD)], 1)

        def filled(value: int, *shape: int) -> Tensor:
            return torch.full((count, *shape), value, dtype=torch.int64, device=self.device)

        false = torch.zeros(count, dtype=torch.bool, device=self.device)
        return {
            "deck": deck,
            "drawn": filled(dealt),
            "hands": decks[:, :dealt].reshape(count, self.players, self.hand_size),
            "known": filled(_UNKNOWN, self.players, self.hand_size),
            "fireworks": filled(0, COLOURS),
            "discards": filled(0, CARDS),
            "tokens": filled(HINT_TOKENS),
            "lives": filled(LIVES),
            "left": filled(self.players),
            "player": filled(0),
            "last": filled(self.actions),
            "last_card": filled(NO_CARD),
            "last_touched": false.unsqueeze(-1).repeat(1, self.hand_size),
            "last_scored": false,
            "last_token": false.clone(),
        }

    def legal(self, table: Table) -> Tensor:
        """Return which actions the player whose turn it is may take, bool ``[B, A]``."""
        hands, player = table["hands"], table["player"]
        rows = torch.arange(len(player), device=self.device)
        has_card = hands[rows, player] != NO_CARD  # [B, H]
        seen = reduce(torch.bitwise_or, self._identity[hands].unbind(-1))  # [B, P], a bit for each colour and rank
        hints = (
            seen[rows.unsqueeze(-1), (player.unsqueeze(-1) + self._hint_offset) % self.players] & self._hint_bit
        ) != 0
        tokens = table["tokens"].unsqueeze(-1)
        return torch.cat([has_card & (tokens < HINT_TOKENS), has_card, hints & (tokens > 0)], 1)

    def score(self, table: Table) -> Tensor:
        """Return the score, int64 ``[B]``."""
        return table["fireworks"].sum(-1) * (table["lives"] > 0)

    def step(self, table: Table, action: Tensor) -> Turn:
        """Let the players whose turn it is act.

        Args:
            table: see above; it is not changed.
            action: int64 ``[B]``, legal ones; what others lead to is not said.
        """
        player, deck, drawn, hands = table["player"], table["deck"], table["drawn"], table["hands"]
        tokens, fireworks, lives = table["tokens"], table["fireworks"], table["lives"]
        slot, is_hint, is_discard = self._slot[action], self._hints[action], self._discards[action]
        moves = ~is_hint
        # the hand that changes: the actor's own, or that of the one who is told
        at = torch.arange(len(player), device=self.device) * self.players
        at = at + (player + self._offset[action]) % self.players
        hand, known = hands.flatten(0, 1)[at], table["known"].flatten(0, 1)[at]  # [B, H]
        new = deck.gather(1, drawn.unsqueeze(-1))  # [B, 1], no card where the deck is empty
        new_known = torch.where(new == NO_CARD, 0, _UNKNOWN)
        card = torch.cat([hand, new], 1).gather(
            1, slot.unsqueeze(-1)
        )  # [B, 1]; of a hint the new one, which is not used
        # what moves up: all from the slot on, none for a hint, whose slot lies behind the hand
        source = self._slots + (self._slots >= slot.unsqueeze(-1))
        touched = (self._identity[hand] & self._bit[action].unsqueeze(-1)) != 0  # [B, H], none for a move
        told = self._told(known, touched, action)
        hand = torch.cat([hand, new], 1).gather(1, source)
        known = torch.cat([told, new_known], 1).gather(1, source)

        height = torch.cat([fireworks, torch.full_like(new, -1)], 1).gather(1, card // RANKS)  # [B, 1]; of no card -1
        fits = (height == card % RANKS).squeeze(-1)
        is_play = moves & ~is_discard
        hit = is_play & fits
        gone = moves & ~hit
        colour, rank = card // RANKS % COLOURS, (card % RANKS).squeeze(-1)
        fireworks = fireworks.scatter_add(1, colour, hit.long().unsqueeze(-1))
        discards = table["discards"].scatter_add(
            1, card % CARDS, (gone & (card != NO_CARD).squeeze(-1)).long().unsqueeze(-1)
        )
        token = (is_discard | (hit & (rank == RANKS - 1))) & (tokens < HINT_TOKENS)
        lives = (lives - (is_play & ~hit).long()).clamp_min(0)
        empty = drawn >= DECK
        left = (table["left"] - empty.long()).clamp_min(0)
        following = {
            "deck": deck,
            "drawn": (drawn + moves).clamp_max(DECK),
            "hands": hands.flatten(0, 1).index_copy(0, at, hand).view_as(hands),
            "known": table["known"].flatten(0, 1).index_copy(0, at, known).view_as(hands),
            "fireworks": fireworks,
            "discards": discards,
            "tokens": tokens - is_hint.long() + token,
            "lives": lives,
            "left": left,
            "player": (player + 1) % self.players,
            "last": action,
            "last_card": torch.where(moves, card.squeeze(-1), NO_CARD),
            "last_touched": touched,
            "last_scored": hit,
            "last_token": token & hit,
        }
        played = fireworks.sum(-1)
        score = played * (lives > 0)
        over = (lives == 0) | (played == CARDS) | (left == 0)
        return Turn(following, score - self.score(table), over)

    def _told(self, known: Tensor, touched: Tensor, action: Tensor) -> Tensor:
        """Return what is known of a hand after a hint, ``[B, H]``; after a move nothing has changed."""
        bit, group, named = (each[action].unsqueeze(-1) for each in (self._bit, self._group, self._named))
        return torch.where(touched, known & ~group | named, known & ~bit)
