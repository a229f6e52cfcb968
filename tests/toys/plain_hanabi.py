"""Hanabi for one game, written down from the rules with lists and sets, to compare the batched rules with."""

from __future__ import annotations


class PlainHanabi:
    """One game; cards are (colour, rank) with ranks from 1."""

    def __init__(self, deck: list[int], players: int) -> None:
        self.deck = [(card // 5, card % 5 + 1) for card in deck]
        self.players, self.size = players, 5 if players < 4 else 4
        self.hands = [[self.deck.pop(0) for _ in range(self.size)] for _ in range(players)]
        self.told = [[{"not": set(), "is": set()} for _ in range(self.size)] for _ in range(players)]
        self.piles, self.trash = dict.fromkeys(range(5), 0), []
        self.tokens, self.lives, self.turn, self.final = 8, 3, 0, None
        self.last = None

    def action(self, number: int) -> tuple:
        if number < self.size:
            return "discard", number
        if number < 2 * self.size:
            return "play", number - self.size
        number -= 2 * self.size
        kind = "colour" if number < 5 * (self.players - 1) else "rank"
        number %= 5 * (self.players - 1)
        return kind, number // 5 + 1, number % 5 + (kind == "rank")

    def matches(self, card: tuple, kind: str, value: int) -> bool:
        return card[["colour", "rank"].index(kind)] == value

    def is_legal(self, number: int) -> bool:
        kind, *rest = self.action(number)
        if kind in ("discard", "play"):
            return rest[0] < len(self.hands[self.turn]) and (kind == "play" or self.tokens < 8)
        offset, value = rest
        cards = self.hands[(self.turn + offset) % self.players]
        return self.tokens > 0 and any(self.matches(card, kind, value) for card in cards)

    @property
    def score(self) -> int:
        return sum(self.piles.values()) if self.lives else 0

    @property
    def over(self) -> bool:
        return not self.lives or sum(self.piles.values()) == 25 or self.final == 0

    def act(self, number: int) -> None:
        kind, *rest = self.action(number)
        self.last = {"actor": self.turn, "kind": kind, "scored": False, "token": False, "touched": set()}
        if self.final is not None:
            self.final -= 1
        if kind in ("colour", "rank"):
            self._hint(kind, *rest)
        else:
            self._move(kind, *rest)
        self.turn = (self.turn + 1) % self.players

    def _hint(self, kind: str, offset: int, value: int) -> None:
        self.tokens -= 1
        owner = (self.turn + offset) % self.players
        for slot, card in enumerate(self.hands[owner]):
            hit = self.matches(card, kind, value)
            self.told[owner][slot]["is" if hit else "not"].add((kind, value))
            if hit:
                self.last["touched"].add(slot)
        self.last |= {"target": owner, "value": value}

    def _move(self, kind: str, slot: int) -> None:
        colour, rank = card = self.hands[self.turn].pop(slot)
        self.told[self.turn].pop(slot)
        self.last |= {"slot": slot, "card": card}
        if kind == "play" and self.piles[colour] == rank - 1:
            self.piles[colour], self.last["scored"] = rank, True
            back = rank == 5
        else:
            self.trash.append(card)
            self.lives -= kind == "play"
            back = kind == "discard"
        if back and self.tokens < 8:
            self.tokens += 1
            self.last["token"] = kind == "play"
        if self.deck:
            self.hands[self.turn].append(self.deck.pop(0))
            self.told[self.turn].append({"not": set(), "is": set()})
            if not self.deck:
                self.final = self.players

    # What an agent sees, number by number

    def seen(self, me: int) -> list[int]:
        order = [(me + place) % self.players for place in range(self.players)]
        numbers: list[int] = []
        for player in order[1:]:
            cards = [*self.hands[player], *[None] * (self.size - len(self.hands[player]))]
            numbers += [int(card == (c, r)) for card in cards for c in range(5) for r in range(1, 6)]
        numbers += [int(len(self.hands[player]) < self.size) for player in order]
        numbers += self.thermometer(len(self.deck), 50 - self.players * self.size)
        numbers += [int(self.piles[c] == r) for c in range(5) for r in range(1, 6)]
        numbers += self.thermometer(self.tokens, 8) + self.thermometer(self.lives, 3)
        for c in range(5):
            for r, copies in enumerate((3, 2, 2, 2, 1), 1):
                numbers += self.thermometer(self.trash.count((c, r)), copies)
        numbers += self.seen_of_last(order)
        for player in order:
            for slot in range(self.size):
                numbers += self.seen_of_told(self.told[player][slot] if slot < len(self.told[player]) else None)
        return [*numbers, int(me == self.turn)]

    @staticmethod
    def thermometer(count: int, size: int) -> list[int]:
        return [int(i < count) for i in range(size)]

    def seen_of_last(self, order: list[int]) -> list[int]:
        last = self.last or {"kind": None, "actor": None, "touched": (), "scored": False, "token": False}
        kind = last["kind"]
        numbers = [int(player == last["actor"]) for player in order]
        numbers += [int(kind == each) for each in ("play", "discard", "colour", "rank")]
        numbers += [int(player == last.get("target")) for player in order]
        numbers += [int(kind == "colour" and last["value"] == c) for c in range(5)]
        numbers += [int(kind == "rank" and last["value"] == r) for r in range(1, 6)]
        numbers += [int(slot in last["touched"]) for slot in range(self.size)]
        numbers += [int(last.get("slot") == slot) for slot in range(self.size)]
        numbers += [int(last.get("card") == (c, r)) for c in range(5) for r in range(1, 6)]
        return [*numbers, int(last["scored"]), int(last["token"])]

    @staticmethod
    def seen_of_told(told: dict | None) -> list[int]:
        if told is None:
            return [0] * 35

        def possible(kind: str, value: int) -> bool:
            named = {v for k, v in told["is"] if k == kind}
            return (not named or value in named) and (kind, value) not in told["not"]

        cards = [int(possible("colour", c) and possible("rank", r)) for c in range(5) for r in range(1, 6)]
        named = [int(("colour", c) in told["is"]) for c in range(5)]
        return cards + named + [int(("rank", r) in told["is"]) for r in range(1, 6)]
