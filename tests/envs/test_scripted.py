"""The scripted policies: their geometry by hand, their returns by play."""

from __future__ import annotations

from itertools import pairwise

import processes
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import RewardSum, TransformedEnv

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, REWARD
from torchrl_marl_offline.envs import GridController, MixedSkill, OneStrongAgent, SpreadController, make_env
from torchrl_marl_offline.envs.scripted import SKILL, best_assignment


def _spread_returns(policy, episodes=500):
    env = make_env("mpe/simple_spread", num_envs=episodes, seed=1)
    return env.rollout(25, policy)["next", *REWARD].mean((-2, -1)).sum(-1)


def _seen(agents, landmarks, velocity=0.0):
    """Return what agents at given places see."""
    env = make_env("mpe/simple_spread")
    agents, landmarks = torch.tensor([agents]), torch.tensor([landmarks])
    return env.set_state(agents, torch.full_like(agents, velocity), landmarks)


def test_best_assignment_beats_greedy():
    cost = torch.tensor([[1.0, 2, 9], [0, 5, 9], [9, 9, 0]])
    assert best_assignment(cost).tolist() == [1, 0, 2]  # 2 + 0 + 0; row by row it would be 1 + 5 + 0
    assert best_assignment(-cost).tolist() == [2, 1, 0]  # 9 + 5 + 9, the largest
    assert best_assignment(cost.expand(4, 2, 3, 3)).shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("kind", "landmark"),
    [
        ("optimal", [0, 1, 2]),  # distances 4 2.24 5.10 | 5.83 1 4.47 | 8 3.61 1.41: 4 + 1 + 1.41
        ("greedy_nearest", [1, 1, 2]),
        ("fixed_assignment", [0, 1, 2]),
        ("wrong_landmark", [1, 2, 0]),  # 2.24 + 4.47 + 8 = 14.71, against 5.10 + 5.83 + 3.61 = 14.54
    ],
)
def test_controllers_choose_their_landmark(kind, landmark):
    # agents at (0, 0), (1, 3), (4, 0) and landmarks at (-4, 0), (1, 2), (5, 1)
    agents, landmarks = torch.tensor([[0.0, 0], [1, 3], [4, 0]]), torch.tensor([[-4.0, 0], [1, 2], [5, 1]])
    to_landmarks = (landmarks - agents.unsqueeze(1)).unsqueeze(0)
    assert SpreadController(kind).assignment(to_landmarks)[0].tolist() == landmark


_DEFAULT = torch.tensor([0.0, 0.1])  # the default displacement (0.3, 0) minus (0.3, -0.1)


def test_control_law_by_hand():
    td = _seen([[0.0, 0], [0.5, 0], [-0.5, 0]], [[0.1, -0.05], [0.5, 0], [-0.5, 0.9]], velocity=0.2)
    action = SpreadController("optimal")(td.clone())[ACTION]
    # 4 * 0.1 - 1.5 * 0.2 = 0.1 and 4 * -0.05 - 0.3 = -0.5; 4 * 0.9 - 0.3 is clipped to 1
    torch.testing.assert_close(action, torch.tensor([[[0.1, -0.5], [-0.3, -0.3], [-0.3, 1.0]]]))
    drift = SpreadController("drift", gain=1.0, damping=0.0, offset=(0.3, -0.1))(td.clone())[ACTION]
    torch.testing.assert_close(drift, torch.tensor([[[0.4, -0.15], [0.3, -0.1], [0.3, 0.8]]]))
    torch.testing.assert_close(SpreadController("drift", gain=1.0, damping=0.0)(td.clone())[ACTION], drift + _DEFAULT)
    blown = SpreadController("fixed_assignment", gain=1.0, damping=0.0, offset=(0.3, -0.1))(td.clone())[ACTION]
    torch.testing.assert_close(blown, drift)  # here the optimal landmarks are 0, 1, 2
    first, second = (SpreadController("optimal", noise=0.5, seed=3)(td.clone())[ACTION] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, action)
    assert first.abs().amax() <= 1


def test_spread_skills_are_ordered():
    kinds = ("optimal", "fixed_assignment", "greedy_nearest", "drift", "random", "wrong_landmark")
    mean = {kind: float(_spread_returns(SpreadController(kind, seed=0)).mean()) for kind in kinds}
    assert list(mean) == sorted(mean, key=mean.get, reverse=True)
    assert 575 < mean["optimal"] < 596  # 585.8 over 2,000 episodes, standard error 2.4 here
    assert 150 < mean["random"] < 171


def test_policies_take_any_batch_shape():
    td = make_env("mpe/simple_spread", num_envs=6, seed=0).reset()
    for kind in ("optimal", "greedy_nearest", "fixed_assignment", "wrong_landmark", "drift"):
        flat = SpreadController(kind)(td.clone())[ACTION]
        assert torch.equal(SpreadController(kind)(td.clone().view(2, 3))[ACTION].flatten(0, 1), flat)
    assert SpreadController("random")(td.clone().view(2, 3))[ACTION].shape == (2, 3, 3, 2)
    grid = make_env("games/grid_navigation", num_envs=6, seed=0).reset()
    for kind in ("optimal", "greedy"):
        flat = GridController(kind, seed=0)(grid.clone())[ACTION]
        assert torch.equal(GridController(kind, seed=0)(grid.clone().view(2, 3))[ACTION].flatten(0, 1), flat)


@pytest.mark.parametrize("agents", [2, 5])
def test_grid_controller_always_succeeds_and_is_legal(agents):
    env = make_env("games/grid_navigation", num_envs=100, seed=0, agents=agents)
    for kind, epsilon in (("optimal", 0.0), ("optimal", 0.5), ("greedy", 0.2), ("random", 0.0)):
        policy = GridController(kind, epsilon=epsilon, seed=0)
        data = env.rollout(50, policy, break_when_any_done=False)
        assert data[ACTION_MASK].gather(-1, data[ACTION].unsqueeze(-1)).all()
        if kind == "optimal" and epsilon == 0:
            first_end = data["next", "done"].squeeze(-1).int().argmax(1)
            assert data["next", "success"].squeeze(-1).gather(1, first_end.unsqueeze(1)).all()
            assert (first_end < 20).all()


def test_grid_controller_walks_the_shortest_way():
    env = make_env("games/grid_navigation")
    td = env.set_state(torch.tensor([[[0, 0], [5, 5]]]), torch.tensor([[[5, 1], [0, 3]]]))
    # steps left: agent 0 needs 3 to the first and 1 to the second; agent 1 needs 2 and 3. Agent 0 goes east to the
    # second, agent 1 west to the first: max(1, 2) = 2 against max(3, 3).
    assert GridController("optimal")(td)[ACTION].tolist() == [[4, 3]]
    td = env.set_state(torch.tensor([[[0, 0], [0, 1]]]), torch.tensor([[[5, 0], [0, 3]]]))
    # both are nearest to the second; agent 1 is in its reach, agent 0 goes there too, into the other's way
    assert GridController("greedy")(td)[ACTION].tolist() == [[4, 0]]


def test_grid_controllers_are_not_blinded():
    played = []
    for sight in (None, 1):
        env = make_env("games/grid_navigation", num_envs=40, seed=0, sight=sight)
        played.append(env.rollout(30, GridController("optimal", epsilon=0.1, seed=0))[ACTION])
    assert torch.equal(*played)


class _Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value, self.in_keys, self.out_keys = value, [OBSERVATION], [ACTION]

    def forward(self, td):
        return td.set(ACTION, torch.full_like(td[OBSERVATION][..., :2], self.value))


@pytest.mark.parametrize("per", ["episode", "agent"])
def test_mixed_skill_draws_once_per_episode(per):
    policies = [_Constant(value) for value in (-0.5, 0.0, 0.5)]
    policy = MixedSkill(policies, probabilities=(1, 2, 1), per=per, seed=0)
    env = make_env("mpe/simple_spread", num_envs=2_000, seed=0, max_steps=4)
    data = env.rollout(8, policy, break_when_any_done=False)
    skill = data[SKILL]  # [2000, 8, 3]
    assert torch.equal(data[ACTION][..., 0], (skill - 1) * 0.5)
    assert (skill[:, :4] == skill[:, :1]).all()
    assert (skill[:, 4:] == skill[:, 4:5]).all()
    changed = (skill[:, 0] != skill[:, 4]).float().mean()
    assert abs(changed - (1 - 0.375)) < 0.05  # 1 - (1/16 + 1/4 + 1/16)
    same_team = (skill == skill[..., :1]).all(-1).float().mean()
    if per == "episode":
        assert same_team == 1
    else:
        assert abs(same_team - (2 / 64 + 1 / 8)) < 0.03
    for index, probability in enumerate((0.25, 0.5, 0.25)):
        assert abs((skill == index).float().mean() - probability) < 0.03


def test_mixed_skill_redraws_only_where_an_episode_begins():
    policy = MixedSkill([_Constant(0.0), _Constant(1.0)], seed=0)
    env = make_env("mpe/simple_spread", num_envs=500, seed=0)
    td = policy(env.reset())
    before = td[SKILL].clone()
    td["step_count"] = torch.arange(500).unsqueeze(-1) % 2  # even rows begin
    after = policy(td)[SKILL]
    assert torch.equal(after[1::2], before[1::2])
    assert not torch.equal(after[::2], before[::2])


def test_one_strong_agent_among_weak_ones():
    td = TensorDict({OBSERVATION: torch.zeros(2, 3, 18)}, [2])
    for agent in range(3):
        acted = OneStrongAgent(_Constant(0.7), _Constant(-0.2), agent=agent)(td)[ACTION]
        wanted = torch.full((2, 3, 2), -0.2)
        wanted[:, agent] = 0.7
        assert torch.equal(acted, wanted)
    with pytest.raises(ValueError, match="There is no agent 3 among 3"):
        OneStrongAgent(_Constant(0.7), _Constant(-0.2), agent=3)(td)
    with pytest.raises(ValueError, match="agent must be at least 0"):
        OneStrongAgent(_Constant(0.7), _Constant(-0.2), agent=-1)


def test_a_team_parts_at_a_step_drawn_for_each_episode():
    team = OneStrongAgent(_Constant(0.7), _Constant(-0.2), agent=1, together=4, seed=0)
    strong = []
    for step in range(5):
        counts = torch.full((400, 1), step)
        td = TensorDict({OBSERVATION: torch.zeros(400, 3, 18), "step_count": counts}, [400])
        acted = team(td)[ACTION]
        assert (acted[:, 1] == 0.7).all()
        strong.append((acted == 0.7).all((1, 2)))
    shares = torch.stack(strong).float().mean(1)
    assert ((shares - torch.tensor([0.75, 0.5, 0.25, 0.0, 0.0])).abs() < 0.08).all() and shares[3:].sum() == 0
    assert all(not (later & ~before).any() for before, later in pairwise(strong))
    with pytest.raises(KeyError, match="OneStrongAgent needs 'step_count'"):
        team(TensorDict({OBSERVATION: torch.zeros(2, 3, 18)}, [2]))


def test_bad_arguments():
    with pytest.raises(ValueError, match="kind must be 'optimal', 'greedy_nearest'"):
        SpreadController("best")
    with pytest.raises(ValueError, match="kind must be 'optimal', 'greedy' or 'random', got"):
        GridController("best")
    with pytest.raises(ValueError, match="epsilon must lie between 0 and 1"):
        GridController(epsilon=2.0)
    with pytest.raises(ValueError, match="probabilities must be 1 numbers"):
        MixedSkill([_Constant(0.0)], probabilities=(0.5, 0.5))
    with pytest.raises(ValueError, match="per must be"):
        MixedSkill([_Constant(0.0)], per="step")
    td = TensorDict({OBSERVATION: torch.zeros(2, 3, 18)}, [2])
    with pytest.raises(KeyError, match="MixedSkill needs 'step_count'"):
        MixedSkill([_Constant(0.0)])(td)


def test_task_spec_is_reachable_through_transforms():
    env = make_env("mpe/simple_spread", num_envs=2, seed=0)
    transformed = TransformedEnv(env, RewardSum(in_keys=[REWARD], out_keys=[("agents", "episode_reward")]))
    assert transformed.task_spec is env.task_spec
    assert transformed.max_episode_steps == 25
    assert transformed.reference_returns == (159.8, 516.8)


def test_optional_libraries_are_not_imported():
    code = (
        "import sys, torchrl_marl_offline.envs as e; e.list_tasks(); e.make_env('games/xor'); "
        "print(sorted({'vmas', 'h5py', 'mpe2', 'pettingzoo', 'matplotlib', 'wandb'} & set(sys.modules)))"
    )
    result = processes.run_new(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == "[]"
