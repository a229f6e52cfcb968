"""Hanabi: a plain game beside it, number by number; rules by hand; 5,000 recorded games."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_hanabi import PlainHanabi

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.envs.hanabi_rules import HanabiRules

SORTED = [5 * c + r for c in range(5) for r, copies in enumerate((3, 2, 2, 2, 1)) for _ in range(copies)]


def decks(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.tensor(SORTED)[torch.randperm(50, generator=generator)] for _ in range(count)])


def careful(game: PlainHanabi, chance: np.random.Generator) -> int:
    """Return a legal action; most often one that plays what fits, so that games last until the deck is empty."""
    legal = [number for number in range(len_of(game)) if game.is_legal(number)]
    fitting = [
        game.size + slot for slot, (colour, rank) in enumerate(game.hands[game.turn]) if game.piles[colour] == rank - 1
    ]
    if fitting and chance.random() < 0.7:
        return fitting[0]
    harmless = [number for number in legal if not game.size <= number < 2 * game.size]
    return int(chance.choice(harmless if harmless and chance.random() < 0.98 else legal))


def len_of(game):
    return 2 * game.size + 10 * (game.players - 1)


@pytest.mark.parametrize("agents", [2, 3, 4, 5])
def test_games_beside_a_plain_one_number_by_number(agents):
    """Masks, rewards, ends, observations and states are those of a game with lists and sets."""
    count, chance = 3, np.random.default_rng(agents)
    env = make_env("games/hanabi", num_envs=count, agents=agents)
    dealt = decks(count, seed=agents)
    games, td = [PlainHanabi(deck.tolist(), agents) for deck in dealt], env.set_state(dealt)
    running, ends = [True] * count, set()
    for _ in range(env.max_episode_steps):
        for index, game in enumerate(games):
            if not running[index]:
                continue
            legal = [game.is_legal(number) for number in range(len_of(game))]
            expected = [[*legal, False] if me == game.turn else [*[False] * len(legal), True] for me in range(agents)]
            assert td[ACTION_MASK][index].tolist() == expected
            seen = [game.seen(me) for me in range(agents)]
            assert td[OBSERVATION][index].long().tolist() == seen
            own = [*game.hands[0], *[None] * (game.size - len(game.hands[0]))]
            cards = [int(card == (c, r)) for card in own for c in range(5) for r in range(1, 6)]
            turn = [int(me == game.turn) for me in range(agents)]
            assert td[STATE][index].long().tolist() == [*seen[0][:-1], *cards, *turn]
        if not any(running):
            break
        chosen = torch.full((count, agents), len_of(games[0]))
        before = [game.score for game in games]
        for index, game in enumerate(games):
            if running[index]:
                chosen[index, game.turn] = number = careful(game, chance)
                game.act(number)
        td = env.step(td.set(ACTION, chosen))["next"]
        for index, game in enumerate(games):
            if running[index]:
                assert td[REWARD][index].flatten().tolist() == [game.score - before[index]] * agents
                assert td["terminated"][index].item() == game.over and not td["truncated"][index]
                running[index] = not game.over
                if game.over:
                    ends.add("lives" if not game.lives else "cards" if game.final != 0 else "deck")
    assert not any(running) and "deck" in ends


@pytest.mark.parametrize("agents", [2, 3, 4, 5])
def test_sizes_are_those_of_the_public_encoding(agents):
    env = make_env("games/hanabi", agents=agents)
    assert env.task_spec.observation_size - 1 == {2: 658, 3: 956, 4: 1041, 5: 1280}[agents]
    assert env.task_spec.action_size - 1 == {2: 20, 3: 30, 4: 38, 5: 48}[agents]


def play(deck, actions, agents=2):
    """Return the environment after the actions of one game, the last step and the return."""
    env = make_env("games/hanabi", agents=agents)
    td, total = env.set_state(torch.tensor([deck])), 0.0
    for turn, action in enumerate(actions):
        joint = torch.full((1, agents), env.task_spec.action_size - 1)
        joint[0, turn % agents] = action
        assert td[ACTION_MASK][0, turn % agents, action], f"turn {turn}"
        td = env.step(td.set(ACTION, joint))["next"]
        total += td[REWARD][0, 0].item()
    return env, td, total


def arranged(first):
    """Return a deck that begins with these cards; the rest in order."""
    rest = list(SORTED)
    for card in first:
        rest.remove(card)
    return [*first, *rest]


def test_three_lives_lost_is_a_score_of_nothing():
    deck = arranged([0, 4, 9, 14, 19, 5, 11, 16, 21, 22])  # red 1 and fives; yellow 1 and others' twos, white 3
    _, td, total = play(deck, [5, 5, 6, 6])  # both ones, then a five and a two that do not fit
    assert total == 1 + 1 and not td["terminated"]
    env, td, total = play(deck, [5, 5, 5, 8, 6])
    assert td["terminated"].all() and total == 0 and td[REWARD][0, 0] == -2
    assert env.rules.score(env._game).item() == 0


def test_a_completed_colour_gives_a_token_back_up_to_eight():
    deck = arranged([0, 1, 2, 3, 4, 5, 6, 7, 8, 10])
    env, _, total = play(deck, [5, 15, 5, 15, 5, 15, 5, 15])
    assert total == 4 and env._game["tokens"].item() == 4
    env, _, total = play(deck, [5, 15, 5, 15, 5, 15, 5, 15, 5])
    assert total == 5 and env._game["tokens"].item() == 5 and env._game["last_token"].item()
    env, _, total = play(deck, [5, 5, 5, 5, 5, 5, 5, 5, 5])  # without a hint before
    assert total == 9 and env._game["tokens"].item() == 8 and not env._game["last_token"].item()


def test_hints_touch_a_card_and_discards_wait_for_a_token():
    deck = arranged([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])  # all red; all yellow
    env = make_env("games/hanabi")
    td = env.set_state(torch.tensor([deck]))
    legal = td[ACTION_MASK][0, 0].nonzero().flatten().tolist()
    assert legal == [5, 6, 7, 8, 9, 11, 15, 16, 17, 18, 19]  # no discard; yellow alone of the colours
    td = env.step(td.set(ACTION, torch.tensor([[16, 20]])))["next"]
    assert td[ACTION_MASK][0, 1].nonzero().flatten().tolist() == [*range(10), 10, 15, 16, 17, 18, 19]
    assert td[ACTION_MASK][0, 0].nonzero().flatten().tolist() == [20]
    assert env._game["known"][0, 1].tolist() == [
        0b11111 | (0b11101 << 5),
        0b11111 | (0b00010 << 5) | 1 << 11,
        *[0b11111 | (0b11101 << 5)] * 3,
    ]


def test_what_is_illegal_is_taken_as_playing_the_oldest_card():
    deck = arranged([0])
    for illegal in (0, 20):  # a discard with all tokens, to wait in one's own turn
        env = make_env("games/hanabi")
        td = env.set_state(torch.tensor([deck]))
        td = env.step(td.set(ACTION, torch.tensor([[illegal, 3]])))["next"]
        assert td[REWARD].flatten().tolist() == [1, 1] and env._game["last"].item() == 5


def test_decks_are_shuffled_alike_for_equal_seeds_and_others_are_refused():
    env = make_env("games/hanabi", num_envs=2000, seed=1)
    td = env.reset()
    deck = env._game["deck"]
    assert deck[:, :50].sort(-1).values.tolist() == [SORTED] * 2000 and (deck[:, 50] == 25).all()
    ones = (deck[:, :50] % 5 == 0).float().mean(0)  # 15 of 50 cards, at every place
    assert (ones - 0.3).abs().max() < 5 * (0.3 * 0.7 / 2000) ** 0.5
    few = make_env("games/hanabi", num_envs=3, seed=1)
    assert torch.equal(few.reset()[STATE], td[STATE][:3])
    with pytest.raises(ValueError, match=r"decks must be \[3, 50\] cards"):
        few.set_state(torch.zeros(3, 50, dtype=torch.int64))
    with pytest.raises(ValueError, match="agents must lie between 2 and 5"):
        make_env("games/hanabi", agents=6)


def test_a_game_that_is_over_can_be_stepped_on():
    env = make_env("games/hanabi", num_envs=8, seed=0)
    td = env.reset()
    for _ in range(env.max_episode_steps + 5):
        td = env.step(env.rand_action(td.set(ACTION_MASK, td[ACTION_MASK] | ~td[ACTION_MASK].any(-1, True))))["next"]
    assert td[OBSERVATION].isfinite().all() and (env._game["lives"] >= 0).all()


def moves_of(hle, state, agents):
    """Return the legal moves of a game of the Hanabi Learning Environment by our numbers."""
    size, found = 5 if agents < 4 else 4, {}
    first = {
        hle.HanabiMoveType.DISCARD: 0,
        hle.HanabiMoveType.PLAY: size,
        hle.HanabiMoveType.REVEAL_COLOR: 2 * size,
        hle.HanabiMoveType.REVEAL_RANK: 2 * size + 5 * (agents - 1),
    }
    for move in state.legal_moves():
        kind = move.type()
        value = move.color() if kind == hle.HanabiMoveType.REVEAL_COLOR else move.rank()
        hint = kind in (hle.HanabiMoveType.REVEAL_COLOR, hle.HanabiMoveType.REVEAL_RANK)
        found[first[kind] + (5 * (move.target_offset() - 1) + value if hint else move.card_index())] = move
    return found


def deal(hle, state):
    """Deal what is to be dealt, and return the cards in their order."""
    cards = []
    while state.cur_player() == hle.CHANCE_PLAYER_ID:
        before = [len(hand) for hand in state.player_hands()]
        state.deal_random_card()
        hand = next(hand for hand, count in zip(state.player_hands(), before) if len(hand) > count)
        cards.append(5 * hand[-1].color() + hand[-1].rank())
    return cards


@pytest.mark.parametrize("agents", [2, 3, 4, 5])
def test_games_of_the_hanabi_learning_environment(agents):
    """Its legal moves, observations, ends and scores are ours; needs its package, which has to be built."""
    hle = pytest.importorskip("hanabi_learning_environment.pyhanabi")
    chance = np.random.default_rng(agents)
    for seed in range(1, 6):
        game = hle.HanabiGame({"players": agents, "seed": seed, "observation_type": 1, "random_start_player": False})
        encoder, state = hle.ObservationEncoder(game), game.new_initial_state()
        deck, turns = deal(hle, state), []
        while not state.is_terminal():
            moves = moves_of(hle, state, agents)
            seen = [encoder.encode(state.observation(player)) for player in range(agents)]
            hand, fireworks = state.player_hands()[state.cur_player()], state.fireworks()
            fitting = [slot for slot, card in enumerate(hand) if fireworks[card.color()] == card.rank()]
            size = 5 if agents < 4 else 4
            harmless = [number for number in moves if not size <= number < 2 * size] or list(moves)
            careful = size + fitting[0] if fitting else int(chance.choice(harmless))
            number = careful if chance.random() < 0.9 else int(chance.choice(list(moves)))
            turns.append((sorted(moves), seen, number, state.cur_player()))
            state.apply_move(moves[number])
            deck += deal(hle, state)
        rest = list(SORTED)
        for card in deck:
            rest.remove(card)
        env = make_env("games/hanabi", agents=agents)
        td, total = env.set_state(torch.tensor([deck + rest])), 0
        for time, (legal, seen, number, player) in enumerate(turns):
            assert td[ACTION_MASK][0, player, :-1].nonzero().flatten().tolist() == legal
            assert td[OBSERVATION][0, :, :-1].long().tolist() == seen
            action = torch.full((1, agents), env.rules.actions)
            action[0, player] = number
            td = env.step(td.set(ACTION, action))["next"]
            total += td[REWARD][0, 0].item()
            assert td["terminated"].item() == (time == len(turns) - 1)
        assert total == state.score()


@pytest.fixture(scope="module")
def games():
    folder = os.environ.get("TORCHRL_MARL_OFFLINE_DATA")
    path = Path(folder or ".") / "hanabi" / "hanabi_2p_5000_games.npz"
    if folder is None or not path.is_file():
        pytest.skip("set TORCHRL_MARL_OFFLINE_DATA to the folder of recordings")
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]).long() for name in file.files}


def test_recorded_games_replay_to_their_scores_and_lengths(games):
    rules, lengths = HanabiRules(2), games["lengths"]
    begin = lengths.cumsum(0) - lengths
    table, total = rules.start(games["decks"]), torch.zeros_like(lengths)
    for time in range(int(lengths.max())):
        live = time < lengths
        action = torch.where(live, games["actions"][(begin + time).clamp_max(len(games["actions"]) - 1)], 5)
        assert rules.legal(table).gather(1, action.unsqueeze(1))[live].all()
        table, reward, over = rules.step(table, action)
        total += reward * live
        assert torch.equal(over[live], (time == lengths - 1)[live])
    assert torch.equal(total, games["scores"])
    assert (games["scores"] == 0).sum() == 120 and games["scores"].max() == 25
