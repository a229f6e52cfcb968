"""The small games: every rule by hand, and every recorded transition of grid navigation."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, OBSERVATION, REWARD, STATE
from torchrl_marl_offline.envs import make_env

STAY, NORTH, SOUTH, WEST, EAST = range(5)


def test_two_step_plays_out_as_published():
    joint = list(product((0, 1), repeat=4))  # first a, first b, second a, second b
    env = make_env("games/two_step", num_envs=16)
    td = env.reset()
    assert (td[OBSERVATION] == torch.tensor([1.0, 0, 0])).all()
    table = torch.tensor(joint)
    td = env.step(td.set(ACTION, table[:, :2]))["next"]
    assert not td["done"].any()
    assert (td[REWARD] == 0).all()
    place = torch.tensor([[0.0, 0, 1] if row[0] else [0, 1, 0] for row in joint])
    assert torch.equal(td[STATE], place)
    assert torch.equal(td[OBSERVATION], place.unsqueeze(1).expand(-1, 2, -1))
    td = env.step(td.set(ACTION, table[:, 2:]))["next"]
    assert td["terminated"].all()
    assert not td["truncated"].any()
    expected = torch.tensor([[[0.0, 1], [1, 8]][c][d] if a else 7.0 for a, _, c, d in joint])
    assert torch.equal(td[REWARD].squeeze(-1), expected.unsqueeze(-1).expand(-1, 2))
    assert (td[STATE] == 0).all()
    assert env.reference_returns == (float(expected.mean()), 8.0)


def test_xor_pays_fifty_times():
    env = make_env("games/xor", num_envs=4)
    joint = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    data = env.rollout(50, lambda td: td.set(ACTION, joint))
    assert data.shape == (4, 50)
    assert torch.equal(data["next", *REWARD].sum(1).mean((1, 2)), torch.tensor([0.0, 50, 50, -100]))
    assert data["next", "truncated"][:, -1].all()
    assert not data["next", "terminated"].any()
    assert (data[STATE] == 1).all()


def _step(agents, landmarks, actions):
    env = make_env("games/grid_navigation", agents=len(agents))
    td = env.set_state(torch.tensor([agents]), torch.tensor([landmarks]))
    after = env.step(td.set(ACTION, torch.tensor([actions])))["next"]
    cells = after[STATE].view(2, -1, 2)[0] - 1
    return cells.long().tolist(), after


FAR = [[5, 5], [5, 4]]


@pytest.mark.parametrize(
    ("agents", "actions", "expected"),
    [
        ([[1, 1], [0, 5]], [NORTH, WEST], [[0, 1], [0, 4]]),
        ([[1, 1], [0, 0]], [SOUTH, EAST], [[2, 1], [0, 1]]),
        ([[0, 0], [2, 2]], [NORTH, STAY], [[0, 0], [2, 2]]),  # off the board: taken as stay
        ([[0, 0], [0, 2]], [EAST, WEST], [[0, 0], [0, 2]]),  # the same aim: both keep their place
        ([[0, 0], [0, 1]], [EAST, STAY], [[0, 0], [0, 1]]),  # the other stays
        ([[0, 0], [0, 1]], [EAST, NORTH], [[0, 0], [0, 1]]),  # the other is held by the border, so it stays
        ([[0, 0], [0, 1]], [EAST, WEST], [[0, 1], [0, 0]]),  # swapping is no conflict
        ([[0, 0], [0, 1]], [EAST, EAST], [[0, 1], [0, 2]]),  # neither is following
    ],
)
def test_moves_of_two(agents, actions, expected):
    assert _step(agents, FAR, actions)[0] == expected


def test_nobody_else_is_blocked():
    # the second and third aim at (0, 2) and are held; the first moves onto the second's cell all the same
    cells, _ = _step([[0, 0], [0, 1], [0, 3]], [[7, 7], [7, 6], [7, 5]], [EAST, EAST, WEST])
    assert cells == [[0, 1], [0, 1], [0, 3]]


@pytest.mark.parametrize(
    ("landmarks", "success"),
    [
        ([[2, 2], [5, 5]], False),  # both agents reach the first landmark, nobody the second
        ([[2, 2], [0, 3]], True),
        ([[3, 3], [2, 2]], True),  # (1, 1) reaches both, so (0, 0) must take the second
        ([[3, 3], [3, 1]], False),  # both are within reach, of (1, 1) only
        ([[0, 2], [2, 0]], True),
        ([[4, 1], [2, 0]], False),
    ],
)
def test_success_needs_a_matching(landmarks, success):
    _, after = _step([[0, 0], [1, 1]], landmarks, [STAY, STAY])
    assert after["success"].tolist() == [[success]]
    assert after["terminated"].tolist() == [[success]]
    assert after[REWARD].flatten().tolist() == [float(success)] * 2


def test_success_on_the_last_step_is_a_termination():
    env = make_env("games/grid_navigation", max_steps=1)
    td = env.set_state(torch.tensor([[[0, 0], [0, 1]]]), torch.tensor([[[2, 1], [2, 2]]]))
    assert not td["success"].any()
    after = env.step(td.set(ACTION, torch.zeros(1, 2, dtype=torch.int64)))["next"]
    assert after["terminated"].all()
    assert not after["truncated"].any()


def test_observation_and_mask_by_hand():
    env = make_env("games/grid_navigation", agents=3)
    cells = torch.tensor([[[0, 0], [3, 7], [7, 2]], [[5, 5], [0, 6], [4, 1]]])
    td = env.set_state(cells[:1], cells[1:])
    marks = [6, 6, 1, 7, 5, 2]
    assert td[OBSERVATION][0].tolist() == [
        [1, 1, 4, 8, 8, 3, *marks],
        [4, 8, 1, 1, 8, 3, *marks],
        [8, 3, 1, 1, 4, 8, *marks],
    ]
    assert td[STATE][0].tolist() == [1, 1, 4, 8, 8, 3, *marks]
    assert td[ACTION_MASK][0].int().tolist() == [[1, 0, 1, 0, 1], [1, 1, 1, 1, 0], [1, 1, 0, 1, 1]]


def test_sight_hides_what_is_far_and_changes_nothing_else():
    cells = torch.tensor([[[0, 0], [3, 7], [2, 2]], [[5, 5], [0, 3], [4, 1]]])
    env = make_env("games/grid_navigation", agents=3, sight=3)
    td = env.set_state(cells[:1], cells[1:])
    # Chebyshev distances of the agents: 7, 2 and 5; to the landmarks 5, 3, 4; 2, 4, 6; 3, 2, 2
    assert td[OBSERVATION][0].tolist() == [
        [1, 1, 0, 0, 3, 3, 0, 0, 1, 4, 0, 0],
        [4, 8, 0, 0, 0, 0, 6, 6, 0, 0, 0, 0],
        [3, 3, 1, 1, 0, 0, 6, 6, 1, 4, 5, 2],
    ]
    assert td[STATE][0].tolist() == [1, 1, 4, 8, 3, 3, 6, 6, 1, 4, 5, 2]


@pytest.mark.parametrize("agents", [2, 4])
def test_full_sight_is_no_sight_and_short_sight_is_the_same_game(agents):
    def play(sight):
        env = make_env("games/grid_navigation", num_envs=200, seed=0, agents=agents, sight=sight)
        torch.manual_seed(0)
        return env, env.rollout(30, break_when_any_done=False)

    env, unlimited = play(None)
    assert (unlimited == play(env.side - 1)[1]).all()
    _, short = play(2)
    others = short.exclude(OBSERVATION, ("next", *OBSERVATION))
    assert (unlimited.exclude(OBSERVATION, ("next", *OBSERVATION)) == others).all()
    seen, full = (data[OBSERVATION].unflatten(-1, (-1, 2)) for data in (short, unlimited))
    near = ((full - full[..., :1, :]).abs().amax(-1, keepdim=True) <= 2).expand_as(full)
    assert near[..., :1, :].all() and 0.05 < near[..., 1:, :].float().mean() < 0.6
    assert torch.equal(seen, torch.where(near, full, 0))


def _assert_start_rules(agents, landmarks):
    both = torch.cat([agents, landmarks], 1)
    same = (both.unsqueeze(2) == both.unsqueeze(1)).all(-1)
    assert (same.sum((1, 2)) == both.shape[1]).all()  # everything on a cell of its own
    assert ((agents.unsqueeze(2) - landmarks.unsqueeze(1)).abs().amax(-1) > 2).all()


@pytest.mark.parametrize(("agents", "side"), [(2, 6), (3, 8), (4, 10), (5, 12)])
def test_start_rules(agents, side):
    env = make_env("games/grid_navigation", num_envs=5_000, seed=0, agents=agents)
    cells = env.reset()[STATE].long().view(5_000, 2, agents, 2) - 1
    _assert_start_rules(cells[:, 0], cells[:, 1])
    assert cells.amin() == 0
    assert cells.amax() == side - 1


def test_three_agents_always_leave_room():
    """The one board where counting cells does not show it: 25 cells each of 64, against 19 left of 144 for five."""
    board = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    far = ((board.unsqueeze(1) - board.unsqueeze(0)).abs().amax(-1) > 2).float()
    free = torch.einsum("ac,bc,dc->abd", far, far, far)
    assert free.amin() >= 3


def test_start_distribution_is_uniform():
    """Agents are uniform over pairs of cells, and landmarks over what the agents leave: by enumeration."""
    board = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    distance = (board.unsqueeze(1) - board.unsqueeze(0)).abs().amax(-1)
    first, second = (~torch.eye(36, dtype=torch.bool)).nonzero().T
    free = ((distance[first] > 2) & (distance[second] > 2)).double()  # [36 * 35, 36]
    assert free.sum(1).amin() == 2
    expected = {0: torch.full((36,), 1 / 36), 2: (free / free.sum(1, keepdim=True)).mean(0)}
    count = 40_000
    cells = make_env("games/grid_navigation", num_envs=count, seed=0).reset()[STATE].long().view(count, 4, 2) - 1
    index = cells[..., 0] * 6 + cells[..., 1]
    for entity in range(4):
        probability = expected[0 if entity < 2 else 2]
        seen = torch.bincount(index[:, entity], minlength=36)
        chi_squared = ((seen - count * probability) ** 2 / (count * probability)).sum()
        assert chi_squared < 35 + 5 * 70**0.5  # mean and standard deviation of 35 degrees of freedom


def test_a_start_without_room_for_landmarks_is_replaced(monkeypatch):
    env = make_env("games/grid_navigation", agents=4)

    def uniform(draws, *, rows=None, stream=0):
        numbers = torch.rand(1, draws, generator=torch.Generator().manual_seed(stream), dtype=torch.float64)
        if stream == 0:
            numbers[0, [22, 27, 72, 77]] = 2.0  # the first of three placements: (2 or 7, 2 or 7) covers 10 x 10
        return numbers

    monkeypatch.setattr(env.random, "uniform", uniform)
    cells = env.reset()[STATE].long().view(1, 2, 4, 2) - 1
    _assert_start_rules(cells[:, 0], cells[:, 1])


def _recording(quality):
    folder = os.environ.get("TORCHRL_MARL_OFFLINE_DATA")
    if not folder:
        pytest.skip("TORCHRL_MARL_OFFLINE_DATA does not name the folder of the recordings")
    import h5py

    with h5py.File(Path(folder) / "pymarl" / f"cn-2-{quality}.h5") as file:
        return {key: torch.from_numpy(file[key][:]) for key in file}


@pytest.mark.parametrize(("quality", "transitions"), [("medium", 70_894), ("expert", 3_984)])
def test_every_recorded_transition_replays(quality, transitions):
    data = _recording(quality)
    filled = data["filled"].squeeze(-1).bool()
    now = torch.zeros_like(filled)
    now[:, :-1] = filled[:, 1:]  # rows that have a successor
    after = torch.zeros_like(filled)
    after[:, 1:] = now[:, :-1]
    assert int(now.sum()) == transitions
    cells = data["state"][now].long().view(-1, 4, 2) - 1
    env = make_env("games/grid_navigation", num_envs=transitions)
    td = env.set_state(cells[:, :2], cells[:, 2:])
    assert torch.equal(td[OBSERVATION], data["obs"][now])
    assert torch.equal(td[STATE], data["state"][now])
    assert torch.equal(td[ACTION_MASK], data["avail_actions"][now].bool())
    td = env.step(td.set(ACTION, data["actions"][now].squeeze(-1)))["next"]
    assert torch.equal(td[OBSERVATION], data["obs"][after])
    assert torch.equal(td[STATE], data["state"][after])
    assert torch.equal(td[ACTION_MASK], data["avail_actions"][after].bool())
    assert torch.equal(td[REWARD], data["reward"][now].unsqueeze(1).expand(-1, 2, -1))
    # the recording marks its 50-step limit as a termination
    limit = torch.zeros_like(filled)
    limit[:, 49] = True
    terminated = data["terminated"][now].bool()
    assert torch.equal(terminated, td["terminated"] | limit[now].unsqueeze(-1))
    assert torch.equal(td["success"], td["terminated"])
    start = data["state"][:, 0].long().view(-1, 4, 2) - 1
    _assert_start_rules(start[:, :2], start[:, 2:])


def test_climb_pays_by_its_table_and_ends():
    for penalty, table in (
        (False, [[10, 9], [8, 0]]),
        (True, [[5, 0, -50], [0, 0, -50], [-50, -50, 100]]),
    ):
        joint = torch.tensor(list(product(range(len(table)), repeat=2)))
        env = make_env("games/climb", num_envs=len(joint), penalty=penalty)
        td = env.step(env.reset().set(ACTION, joint))["next"]
        expected = torch.tensor([float(table[a][b]) for a, b in joint.tolist()])
        assert torch.equal(td[REWARD].squeeze(-1), expected.unsqueeze(-1).expand(-1, 2))
        assert td["terminated"].all()
        assert not td["truncated"].any()
        assert env.reference_returns == (pytest.approx(float(expected.mean())), float(expected.max()))


UP, DOWN, RIGHT, LEFT = range(1, 5)  # of games/bridge


@pytest.mark.parametrize(
    ("agents", "actions", "expected"),
    [
        ([[1, 2], [1, 3]], [RIGHT, LEFT], [[1, 2], [1, 3]]),  # no swapping
        ([[1, 2], [1, 3]], [LEFT, LEFT], [[1, 1], [1, 2]]),  # following, the second behind
        ([[1, 2], [1, 3]], [RIGHT, RIGHT], [[1, 3], [1, 4]]),  # and the first behind
        ([[1, 2], [1, 3]], [UP, DOWN], [[1, 2], [1, 3]]),  # walls
        ([[1, 2], [1, 3]], [STAY, LEFT], [[1, 2], [1, 3]]),  # onto one who stays
        ([[1, 2], [1, 3]], [UP, LEFT], [[1, 2], [1, 3]]),  # onto one whom a wall makes stay
        ([[1, 2], [1, 3]], [RIGHT, UP], [[1, 2], [1, 3]]),
        ([[1, 1], [1, 3]], [RIGHT, LEFT], [[1, 2], [1, 3]]),  # the same aim: the first goes
        ([[0, 0], [2, 5]], [LEFT, DOWN], [[0, 0], [2, 5]]),  # the border
        ([[0, 1], [1, 0]], [LEFT, UP], [[0, 0], [1, 0]]),  # the first has the second's goal, where both aim
        ([[0, 0], [0, 1]], [STAY, LEFT], [[0, 0], [0, 0]]),  # a step into one's own goal is not blocked
        ([[0, 0], [0, 1]], [RIGHT, LEFT], [[0, 0], [0, 1]]),  # but a swap is
        ([[2, 4], [2, 5]], [RIGHT, STAY], [[2, 5], [2, 5]]),  # the first into its own goal
        ([[2, 4], [2, 5]], [RIGHT, LEFT], [[2, 5], [2, 4]]),  # and even by a swap
        ([[2, 4], [1, 5]], [RIGHT, DOWN], [[2, 5], [1, 5]]),
        ([[2, 5], [2, 4]], [LEFT, RIGHT], [[2, 5], [2, 5]]),  # who has arrived stays, and is in nobody's way
        ([[0, 1], [0, 0]], [LEFT, DOWN], [[0, 0], [0, 0]]),
    ],
)
def test_bridge_moves(agents, actions, expected):
    env = make_env("games/bridge")
    td = env.set_state(torch.tensor([agents]))
    after = env.step(td.set(ACTION, torch.tensor([actions])))["next"]
    assert after[STATE].view(2, 2, 2)[:, 0].tolist() == expected
    assert torch.equal(after[OBSERVATION], after[STATE].unsqueeze(1).expand(-1, 2, -1))
    distances = [((r - gr) ** 2 + (c - gc) ** 2) ** 0.5 for (r, c), (gr, gc) in zip(expected, ((2, 5), (0, 0)))]
    torch.testing.assert_close(after[REWARD].flatten(), torch.full((2,), -0.1 * sum(distances) / 2))
    assert after["terminated"].item() == (expected == [[2, 5], [0, 0]])


def test_bridge_plays_out_as_recorded():
    """An episode of the published "optimal" recordings, return -1.2904, and the best one."""
    recorded = [[LEFT, LEFT]] * 2 + [[RIGHT, UP], [RIGHT, LEFT]] + [[RIGHT, UP]] * 2 + [[RIGHT, STAY], [DOWN, STAY]]
    rewards = [-0.31795868, -0.32566166, -0.25615528, -0.15811388, -0.1118034, -0.07071068, -0.05, 0.0]
    env = make_env("games/bridge")
    td = env.reset()
    assert td[STATE].tolist() == [[1, 2, 2, 5, 1, 3, 0, 0]]
    for action, reward in zip(recorded, rewards):
        assert not td["done"].any()
        td = env.step(td.set(ACTION, torch.tensor([action])))["next"]
        torch.testing.assert_close(td[REWARD].flatten(), torch.full((2,), reward))
    assert td["terminated"].all()


@pytest.mark.parametrize("adjacent", [True, False])
def test_bridge_reference_returns_by_dynamic_programming(adjacent):
    free = [(r, c) for r in range(3) for c in range(6) if (r, c) not in {(0, 2), (0, 3), (2, 2), (2, 3)}]
    states, joint = list(product(free, repeat=2)), list(product(range(5), repeat=2))
    index = {state: i for i, state in enumerate(states)}
    env = make_env("games/bridge", num_envs=len(states) * 25, adjacent=adjacent)
    start = index[tuple(tuple(cell) for cell in env.reset()[STATE][0].view(2, 2, 2)[:, 0].long().tolist())]
    td = env.set_state(torch.tensor([state for state in states for _ in joint]))
    after = env.step(td.set(ACTION, torch.tensor(joint * len(states))))["next"]
    cells = after[STATE].view(-1, 2, 2, 2)[:, :, 0].long().tolist()
    following = torch.tensor([index[tuple(map(tuple, pair))] for pair in cells]).view(-1, 25)
    reward, goes_on = after[REWARD][:, 0, 0].double().view(-1, 25), ~after["terminated"].view(-1, 25)
    best = uniform = torch.zeros(len(states), dtype=torch.float64)
    for _ in range(env.max_episode_steps):
        best = (reward + goes_on * best[following]).amax(1)
        uniform = (reward + goes_on * uniform[following]).mean(1)
    assert env.reference_returns == (
        pytest.approx(uniform[start].item(), abs=1e-4),
        pytest.approx(best[start].item(), abs=1e-4),
    )
    assert make_env("games/bridge", max_steps=20).reference_returns is None


def test_every_recorded_bridge_transition_replays():
    """Recordings of AlberDICE, ``bridge/optimal.npz`` and ``mix.npz`` with state, actions, reward and terminated."""
    folder = os.environ.get("TORCHRL_MARL_OFFLINE_DATA")
    files = sorted((Path(folder) / "bridge").glob("*.npz")) if folder else []
    if not files:
        pytest.skip("put AlberDICE's recordings of the bridge at bridge/*.npz of TORCHRL_MARL_OFFLINE_DATA")
    for file in files:
        recorded = {key: torch.from_numpy(each) for key, each in np.load(file).items()}
        ended = recorded["terminated"][:, :-1, 0].bool()
        played = ended.int().cumsum(1) - ended.int() == 0  # up to and with the last step
        state, following = recorded["state"][:, :-1][played], recorded["state"][:, 1:][played]
        env = make_env("games/bridge", num_envs=len(state))
        td = env.set_state(state.view(-1, 2, 2, 2)[:, :, 0].long())
        assert torch.equal(td[STATE], state)
        after = env.step(td.set(ACTION, recorded["actions"][:, :-1, :, 0][played]))["next"]
        assert torch.equal(after[STATE], following)
        limit = torch.arange(played.shape[1]).expand_as(played)[played] == 49
        expected = recorded["reward"][:, :-1, 0][played]
        torch.testing.assert_close(after[REWARD][~limit, 0, 0], expected[~limit])
        assert torch.equal(after["terminated"][~limit, 0], ended[played][~limit])
        assert (expected[limit] == 0).all()  # the recordings pay nothing at the limit
