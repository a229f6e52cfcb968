"""The scripted team of Hanabi: it never loses a life by itself, hints what fits, and scores."""

from __future__ import annotations

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK
from torchrl_marl_offline.envs import HanabiController, make_env
from torchrl_marl_offline.evaluation import evaluate


@pytest.mark.parametrize("agents", [2, 4])
def test_it_plays_what_it_knows_and_scores(agents):
    env = make_env("games/hanabi", num_envs=40, agents=agents)
    found = evaluate(HanabiController(env), env, episodes=40, seed=0)
    assert found.returns.min() > 5 and found.mean > 12  # a lost third life would score 0
    again = evaluate(HanabiController(env), env, episodes=40, seed=0)
    assert torch.equal(found.returns, again.returns)


def test_it_hints_the_rank_of_a_card_that_fits_and_the_other_plays_it():
    env = make_env("games/hanabi", num_envs=1)
    # the first agent has fours and fives, the second a one in its third slot
    sorted_cards = [5 * c + r for c in range(5) for r, copies in enumerate((3, 2, 2, 2, 1)) for _ in range(copies)]
    first, second = [3, 8, 13, 18, 23], [3, 8, 0, 13, 18]
    rest = list(sorted_cards)
    for card in first + second:
        rest.remove(card)
    team, td = HanabiController(env), env.set_state(torch.tensor([first + second + rest]))
    hint, wait = team(td)[ACTION][0].tolist()
    assert (hint, wait) == (15, 20)  # 5 discards, 5 plays, 5 colours; then rank 0; 20 is to wait
    td = env.step_mdp(env.step(td))
    assert team(td)[ACTION][0].tolist() == [20, 5 + 2]
    td = env.step(td)
    assert td["next", "agents", "reward"].flatten().tolist() == [1.0, 1.0]


def test_random_actions_are_legal_and_seeded():
    env = make_env("games/hanabi", num_envs=20, seed=3)
    td = env.reset()
    acted = [HanabiController(env, epsilon=1.0, seed=seed)(td.clone())[ACTION] for seed in (0, 0, 1)]
    assert td[ACTION_MASK].gather(-1, acted[0].unsqueeze(-1)).all()
    assert torch.equal(acted[0], acted[1]) and not torch.equal(acted[0], acted[2])
    with pytest.raises(ValueError, match="HanabiController plays in environments of games/hanabi, not games/xor"):
        HanabiController(make_env("games/xor"))
