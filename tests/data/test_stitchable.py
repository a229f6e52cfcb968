"""The share of unrecorded joint actions that an additive critic knows: planted graphs, ranks, clusters, bins."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
import torch

from torchrl_marl_offline.core.layout import ACTION_MASK, MASK
from torchrl_marl_offline.data import describe, from_arrays, stitchable_share
from torchrl_marl_offline.data.quality import stitchable


def recorded(actions, *, action_size=6, state=None, mask=None):
    """Return a dataset of one-step episodes with these joint actions, ``[T, n]``."""
    actions = torch.as_tensor(actions)
    count, agents = actions.shape[:2]
    state = torch.zeros(count, 1) if state is None else state
    if mask is None:
        mask = torch.ones(count, agents, action_size, dtype=torch.bool)
    ones = torch.ones(count)
    masks = {"action_mask": mask} if actions.dtype == torch.int64 else {}
    return from_arrays(
        observations=state[:, None].expand(-1, agents, -1),
        state=state,
        actions=actions,
        rewards=ones,
        terminals=ones.bool(),
        **masks,
    )


def teams(size=6, agents=2):
    half = size // 2
    return [*product(range(half), repeat=agents), *product(range(half, size), repeat=agents)]


STAR = [(2, b) for b in range(6)] + [(a, 4) for a in range(6) if a != 2]
PLANTED = {
    "two teams": (teams(), 2, 0.0),
    "one joint action more": ([*teams(), (0, 5)], 1, 1.0),
    "diagonal": ([(a, a) for a in range(6)], 6, 0.0),
    "star": (STAR, 1, 1.0),
    "full": (list(product(range(6), repeat=2)), 1, None),
    # components {0, 1} x {0, 1} and {2} x {2, 3}, of 36: 6 determined, 5 recorded; 31 unrecorded
    "two parts": ([(0, 0), (0, 1), (1, 0), (2, 2), (2, 3)], 2, 1 / 31),
}


def additive_error(actions, size=6):
    """Return the largest error of an additive critic by exact least squares on the joint actions left out."""
    agents = len(actions[0])
    cells = torch.tensor(list(product(range(size), repeat=agents)))
    indicators = torch.nn.functional.one_hot(cells, size).flatten(1).double()
    place = {tuple(cell): i for i, cell in enumerate(cells.tolist())}
    there = torch.tensor([place[tuple(action)] for action in actions])
    values = indicators @ torch.rand(agents * size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fitted = torch.linalg.lstsq(indicators[there], values[there], driver="gelsd").solution
    error = (indicators @ fitted - values).abs()
    assert error[there].max() < 1e-9
    error[there] = 0.0
    return error


@pytest.mark.parametrize("name", PLANTED)
def test_planted_graphs_of_two_agents(name):
    actions, components, share = PLANTED[name]
    found = stitchable_share(recorded(actions * 10))
    (cluster,) = found.clusters
    assert (cluster.rows, cluster.recorded, cluster.possible) == (10 * len(actions), len(actions), 36)
    assert cluster.components == components == found.components
    assert found.share == pytest.approx(share) if share is not None else found.share is None
    assert found.recorded == pytest.approx(len(actions) / 36) and found.how == "1 state"
    error = additive_error(actions)
    if share in (1.0, None):
        assert error.max() < 1e-9
    else:
        wrong = int((error > 1e-9).sum())  # least squares may be right by chance, but not on drawn values
        assert wrong == round((1 - share) * (36 - len(actions)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("agents", [2, 3, 4])
def test_shares_are_those_of_the_ranks(agents, seed):
    size = {2: 6, 3: 4, 4: 3}[agents]
    chance = np.random.default_rng(seed)
    cells = np.array(list(product(range(size), repeat=agents)))
    count = 3 + 2 * seed if agents == 2 else agents + 2 * seed
    actions = cells[chance.choice(len(cells), count, replace=False)]
    indicators = np.eye(size)[cells].reshape(len(cells), -1)
    rows = np.eye(size)[actions].reshape(count, -1)
    rank = np.linalg.matrix_rank(rows)
    known = [np.linalg.matrix_rank(np.vstack([rows, each])) == rank for each in indicators]
    expected = (sum(known) - count) / (len(cells) - count)
    found = stitchable_share(recorded(actions, action_size=size))
    assert found.share == pytest.approx(expected)
    if agents == 2:
        assert found.share == pytest.approx(1 - (additive_error(actions.tolist()) > 1e-9).sum() / (36 - count))


def test_two_agents_and_more_are_counted_alike():
    """A third agent that always does the same changes nothing but the number of joint actions."""
    for actions, _, share in PLANTED.values():
        three = [(*action, 0) for action in actions]
        mask = torch.ones(len(three), 3, 6, dtype=torch.bool)
        mask[:, 2, 1:] = False
        found = stitchable_share(recorded(three, mask=mask))
        assert found.clusters[0].possible == 36
        assert found.share == pytest.approx(share) if share is not None else found.share is None


def test_teams_of_three_need_two_bridges():
    two = teams(4, agents=3)
    shares = [
        stitchable_share(recorded([*two, *bridges], action_size=4)).share
        for bridges in ([], [(0, 0, 3)], [(0, 0, 3), (0, 3, 0)])
    ]
    # one bridge: the third agent's halves are known, so all of (first, first, *) and (second, second, *)
    assert shares[0] == 0.0 and shares[1] == pytest.approx(15 / 47) and shares[2] == 1.0


def test_samples_agree_with_counting(monkeypatch):
    data = recorded([*teams(4, agents=4), (0, 0, 0, 3)], action_size=4)
    counted = stitchable_share(data)
    monkeypatch.setattr(stitchable, "_ENUMERATED", 10)
    sampled = stitchable_share(data, samples=20_000)
    assert "sampled" in sampled.how and "sampled" not in counted.how
    assert sampled.share == pytest.approx(counted.share, abs=0.01) and counted.share == pytest.approx(31 / 223)


def test_every_state_has_its_own_graph_and_the_mean_is_by_rows():
    actions = [*teams() * 2, *STAR * 4]
    state = torch.tensor([0.0] * 36 + [1.0] * 44).unsqueeze(-1)
    found = stitchable_share(recorded(actions, state=state))
    assert [cluster[:4] for cluster in found.clusters] == [(44, 11, 36, 1), (36, 18, 36, 2)]
    assert [cluster.determined for cluster in found.clusters] == [1.0, 0.0]
    assert found.share == pytest.approx(44 / 80)
    assert found.components == pytest.approx((44 + 72) / 80) and found.how == "2 states"


def test_many_states_are_clustered_and_it_is_said():
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(600) % 2
    state = 10.0 * group[:, None] + torch.randn(600, 3, generator=generator)
    actions = torch.tensor(teams() * 300)[:600]
    actions[group == 1] = torch.tensor(STAR * 300)[: int((group == 1).sum())]
    found = stitchable_share(recorded(actions, state=state), clusters=2)
    assert found.how == "2 clusters of states"
    assert sorted(cluster.determined for cluster in found.clusters) == [0.0, 1.0]
    assert stitchable_share(recorded(actions, state=state)).how == "12 clusters of states"
    again = stitchable_share(recorded(actions, state=state))
    assert again == stitchable_share(recorded(actions, state=state))
    assert stitchable_share(recorded(actions, state=state), clusters="exact").how == "600 states"


def test_continuous_actions_are_binned_and_it_is_said():
    actions = torch.tensor(teams()).double()[:, :, None] / 5 * 2 - 1  # [18, 2, 1] in [-1, 1]
    actions = actions + 0.01 * torch.rand(actions.shape, generator=torch.Generator().manual_seed(0))
    data = recorded(actions.clamp(-1, 1).float())
    found = stitchable_share(data, bins=6)
    assert found.clusters[0][1:] == (18, 36, 2, 0.0) and found.how == "1 state, 6 bins of each component"
    assert stitchable_share(data, bins=2).clusters[0][1:] == (2, 4, 2, 0.0)
    assert stitchable_share(data).how == "1 state, 5 bins of each component"


def test_illegal_joint_actions_are_none_and_masked_rows_do_not_count():
    mask = torch.ones(18, 2, 6, dtype=torch.bool)
    mask[:, 1, 5] = mask[:, 0, 3] = False
    actions = [action for action in teams() if action[1] != 5 and action[0] != 3]
    mask = mask[: len(actions)]
    assert stitchable_share(recorded(actions, mask=mask)).clusters[0][1:] == (13, 25, 2, 0.0)
    data = recorded([*teams(), (0, 5)])
    assert ACTION_MASK in data.data.keys(True)
    data.data.set(MASK, torch.arange(19) < 18)
    assert stitchable_share(data).clusters[0][1:] == (18, 36, 2, 0.0)
    few = stitchable_share(recorded(teams() * 10), rows=50)
    assert few.how == "50 of 180 rows, 1 state" and few.clusters[0].rows == 50


def test_cards_show_it():
    card = describe(recorded([*teams(), (0, 5)]))
    assert card.facts["stitchable"] == {
        "share": 1.0,
        "recorded": 0.527778,
        "components": 1.0,
        "clusters": 1,
        "how": "1 state",
    }
    assert "stitchable   1.0000 of the unrecorded joint actions of a state; 0.5278 recorded, 1.00" in str(card)
    assert "stitchable   all joint actions recorded; 1 rec" in str(describe(recorded(PLANTED["full"][0])))
    assert describe(recorded([(0,), (1,)])).facts["stitchable"] is None


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="the dataset has one agent"):
        stitchable_share(recorded([(0,), (1,)]))
    with pytest.raises(ValueError, match="bins are of continuous actions"):
        stitchable_share(recorded(teams()), bins=3)
    with pytest.raises(ValueError, match="clusters must be"):
        stitchable_share(recorded(teams()), clusters=0)
    with pytest.raises(ValueError, match="samples must be at most 1,000,000"):
        stitchable_share(recorded(teams()), samples=10**9)
    data = recorded(teams())
    data.data.set(MASK, torch.zeros(18, dtype=torch.bool))
    with pytest.raises(ValueError, match="no row of the dataset counts"):
        stitchable_share(data)


@pytest.mark.parametrize(("agents", "actions", "rows"), [(3, 8, 20), (3, 40, 130), (4, 30, 110), (5, 12, 70)])
def test_iterations_agree_with_the_decomposition(monkeypatch, agents, actions, rows):
    played = np.random.default_rng(0).integers(0, actions, size=(rows, agents))
    found = []
    for dense in (stitchable._DENSE, 0):
        monkeypatch.setattr(stitchable, "_DENSE", dense)
        found.append(stitchable_share(recorded(played, action_size=actions), samples=20_000))
    assert found[0].share == pytest.approx(found[1].share, abs=0.01) and found[0][1:3] == found[1][1:3]
    assert "lower bound" not in found[1].how


@pytest.mark.parametrize(("agents", "rows", "share"), [(3, 5_000, 0.0), (3, 20_000, 0.99)])
def test_thousands_of_actions_take_no_minutes(agents, rows, share):
    """9,000 columns: decomposing their matrix took 457 s."""
    played = np.random.default_rng(0).integers(0, 3_000, size=(rows, agents))
    began = time.perf_counter()
    found = stitchable_share(recorded(played, action_size=3_000), clusters=1)
    assert time.perf_counter() - began < 60
    assert found.share == pytest.approx(share, abs=0.02) and "lower bound" not in found.how


def test_a_search_that_ends_early_says_so(monkeypatch):
    links = np.arange(120)
    chain = np.stack([links // 2, (links + 1) // 2, 0 * links], 1)  # all of the first two agents is known
    mask = torch.ones(len(chain), 3, 61, dtype=torch.bool)
    mask[:, 2, 1:] = False
    data = recorded(chain, mask=mask)
    monkeypatch.setattr(stitchable, "_DENSE", 0)
    whole = stitchable_share(data)
    monkeypatch.setattr(stitchable, "_ITERATIONS", 10)
    ended = stitchable_share(data)
    assert ended.how.endswith("a lower bound, as the search in too many different actions was ended")
    assert ended.share < whole.share and "lower bound" not in whole.how
