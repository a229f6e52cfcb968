"""games/stitch: payoffs by hand and by enumeration, coverages, and what an additive critic makes of them."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.data import collect
from torchrl_marl_offline.envs import StitchController, make_env
from torchrl_marl_offline.envs.stitch import PayoffKind, parse_coverage

KINDS = PayoffKind.__args__


@pytest.mark.parametrize("agents", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_payoffs_and_their_optimum_by_enumeration(kind, agents):
    env = make_env("games/stitch", payoff=kind, agents=agents, actions=4, contexts=3, game_seed=7)
    additive = make_env("games/stitch", payoff="additive", agents=agents, actions=4, contexts=3, game_seed=7)
    for context in range(3):
        ranks, best = env.ranks[context].tolist(), None
        # the others of an additive table at the best action of rank 0 give each agent's use
        top = env.best_actions[context].tolist()

        def use(agent, action, context=context, top=top):
            cell = [*top[:agent], action, *top[agent + 1 :]]
            return additive.payoffs[(context, *cell)].item() * agents - (agents - 1)

        for joint in product(range(4), repeat=agents):
            uses = [use(agent, action) for agent, action in enumerate(joint)]
            rank = [ranks[agent][action] for agent, action in enumerate(joint)]
            mean = sum(uses) / agents
            expected = {
                "additive": mean,
                "monotonic": torch.tensor(uses).prod().item(),
                "weakest_link": min(uses),
                "matching": uses[0] if len(set(rank)) == 1 else 0.0,
                "climbing": 1.0 if not any(rank) else -1.0 if 0 in rank else mean,
            }[kind]
            paid = env.payoffs[(context, *joint)].item()
            assert paid == pytest.approx(expected, abs=1e-6)
            best = max(best or (-9.0,), (paid, joint))
        assert best[1] == tuple(top) and best[0] == 1.0 and {ranks[i][a] for i, a in enumerate(top)} == {0}
    assert env.best_return == 1.0 == env.reference_returns[1]
    assert env.reference_returns[0] == pytest.approx(env.payoffs.mean().item(), abs=1e-6)
    assert int((env.payoffs > 0.999).sum()) == 3


def test_a_step_by_hand():
    env = make_env("games/stitch", num_envs=3, agents=3, actions=4, contexts=2)
    td = env.set_state(torch.tensor([1, 0, 1]))
    assert td[STATE].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert td[OBSERVATION].tolist() == [[[0, 1]] * 3, [[1, 0]] * 3, [[0, 1]] * 3]
    td = env.step(td.set(ACTION, torch.tensor([[0, 1, 2], [3, 3, 0], env.best_actions[1].tolist()])))["next"]
    expected = torch.stack([env.payoffs[1, 0, 1, 2], env.payoffs[0, 3, 3, 0], torch.tensor(1.0)])
    torch.testing.assert_close(td[REWARD], expected.view(3, 1, 1).expand(3, 3, 1))
    assert td["terminated"].all() and not td["truncated"].any()


def test_a_context_has_the_same_table_among_more_contexts():
    few, many = (make_env("games/stitch", contexts=contexts) for contexts in (2, 5))
    assert torch.equal(few.payoffs, many.payoffs[:2])
    other = make_env("games/stitch", contexts=2, game_seed=1)
    assert not torch.equal(few.payoffs, other.payoffs)


@pytest.mark.parametrize("agents", [2, 3, 4])
def test_coverages_have_the_joint_actions_that_they_say(agents):
    env = make_env("games/stitch", agents=agents, actions=6 if agents == 2 else 3, contexts=3)
    actions, best = env.task_spec.action_size, (torch.arange(3), *env.best_actions.T)
    cells = actions**agents
    first, second = (actions + 1) // 2, actions // 2
    teams = torch.tensor([first**agents + second**agents] * 3)
    if actions % 2:  # ranks 0 and 1 change sides for every other agent, and the halves are unequal
        teams = recorded_sizes(env)
    expected = {
        "full": cells,
        "best_left_out": cells - 1,
        "star": agents * (actions - 1) + 1,
        "share_0.25": round(0.25 * cells),
    }
    for coverage, count in expected.items():
        recorded = StitchController(env, coverage, seed=3).recorded
        assert recorded.flatten(1).sum(1).tolist() == [count] * 3, coverage
        assert recorded[best].tolist() == [coverage == "full"] * 3
    two, bridged = (StitchController(env, coverage, seed=3).recorded for coverage in ("two_teams", "bridged_2"))
    assert two.flatten(1).sum(1).tolist() == teams.tolist()
    assert not two[best].any() and not bridged[best].any()
    assert (bridged >= two).all() and (bridged.flatten(1).sum(1) - two.flatten(1).sum(1)).tolist() == [2] * 3


def recorded_sizes(env):
    """Count the joint actions of two teams without the environment's arithmetic."""
    counts = []
    for ranks in env.ranks.tolist():
        side = [[(rank % 2 == 0) ^ (agent % 2 == 1 and rank <= 1) for rank in row] for agent, row in enumerate(ranks)]
        joint = product(range(env.task_spec.action_size), repeat=env.task_spec.n_agents)
        counts.append(sum(len({side[i][a] for i, a in enumerate(cell)}) == 1 for cell in joint))
    return torch.tensor(counts)


def test_recorded_joint_actions_come_in_turn_and_alike_for_equal_seeds():
    env = make_env("games/stitch", num_envs=50, contexts=2, actions=3)
    recorded = [
        collect(env, StitchController(env, "best_left_out", seed=seed), episodes=400, seed=1) for seed in (0, 0, 5)
    ]
    first, same, other = (dataset.data for dataset in recorded)
    assert (first == same).all()
    assert not torch.equal(first[ACTION], other[ACTION])
    context = first[STATE].argmax(-1)
    for number in range(2):
        cells = (first[ACTION][context == number] * torch.tensor([3, 1])).sum(-1)
        counts = torch.bincount(cells, minlength=9)
        there = counts[counts > 0]
        assert len(there) == 8 and there.max() - there.min() <= 1
        assert counts.view(3, 3)[tuple(env.best_actions[number])] == 0


@pytest.mark.parametrize(
    ("coverage", "determined"),
    [("two_teams", False), ("bridged_1", True), ("star", True), ("best_left_out", True), ("full", True)],
)
def test_an_additive_critic_by_exact_least_squares_knows_what_can_be_stitched(coverage, determined):
    env = make_env("games/stitch", contexts=3)
    recorded = StitchController(env, coverage).recorded
    cells = torch.tensor(list(product(range(6), repeat=2)))
    indicators = torch.nn.functional.one_hot(cells, 6).flatten(1).double()  # [36, 12]
    for context in range(3):
        there, paid = recorded[context].flatten(), env.payoffs[context].flatten().double()
        fitted = torch.linalg.lstsq(indicators[there], paid[there], driver="gelsd").solution
        error = (indicators @ fitted - paid).abs()
        assert error[there].max() < 1e-6
        assert (error.max() < 1e-6) == determined
        assert determined or error[env.best_actions[context] @ torch.tensor([6, 1])] > 1e-3


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"at most 4,194,304: 4 contexts of 6 actions of 10 agents"):
        make_env("games/stitch", agents=10)
    with pytest.raises(ValueError, match="payoff"):
        make_env("games/stitch", payoff="chess")
    for name in ("stars", "bridged_0", "bridged_x", "share_1", "share_nan", "share_", "bridged_1.5"):
        with pytest.raises(ValueError, match=r"coverage must be one of full.* got"):
            parse_coverage(name)
    env = make_env("games/stitch", actions=2)
    with pytest.raises(ValueError, match="'bridged_7' asks for 7 of 1 joint actions"):
        StitchController(env, "bridged_7")
    with pytest.raises(ValueError, match=r"games/stitch, not games/xor"):
        StitchController(make_env("games/xor"))
