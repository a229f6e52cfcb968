"""Compositions of two policies' actions: the best by the critic, with all of them tried, and by a beam."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from objective_toys import CONTINUOUS, DISCRETE, Case, make_batch
from tensordict.nn import TensorDictModule
from torch.testing import assert_close
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_marl_offline import make_env, make_loss
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION
from torchrl_marl_offline.modules import make_actor
from torchrl_marl_offline.training import CollectorSource, ComposedPolicy
from torchrl_marl_offline.training.composed_policy import FROM_OFFLINE, best_composition


@pytest.mark.parametrize("decomposition", ["centralized", "mixer"])
@pytest.mark.parametrize("discrete", [False, True])
def test_the_best_of_all_compositions(decomposition: str, discrete: bool) -> None:
    case = Case(decomposition, "td", "brac", discrete)
    loss = case.build()
    torch.manual_seed(5)
    offline = case.actor()
    seen = make_batch(case.spec, 7).exclude("next", ("agents", "action"))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        found = ComposedPolicy(offline, loss)(seen.clone())
        old = offline(seen.clone())["agents", "action"]
        with loss.actor_network_params.data.to_module(loss.actor_network):
            new = loss.actor_network(seen.clone())["agents", "action"]
    values = {}
    for chosen in itertools.product((False, True), repeat=3):
        joint = new.clone()
        for agent, is_old in enumerate(chosen):
            if is_old:
                joint[:, agent] = old[:, agent]
        values[chosen] = loss.team.action_value(seen, joint).total_min.reshape(7), joint
    best = torch.stack([value for value, _ in values.values()]).amax(0)
    reached = loss.team.action_value(seen, found["agents", "action"]).total_min.reshape(7)
    assert_close(reached, best)
    taken = found[FROM_OFFLINE]
    where = taken if discrete else taken.unsqueeze(-1)
    assert torch.equal(torch.where(where, old, new), found["agents", "action"])
    assert (best > values[False, False, False][0] + 1e-6).any() and taken.any() and not taken.all()


def test_a_beam_of_one_is_greedy_and_a_wide_one_is_exact() -> None:
    torch.manual_seed(0)
    gain, pairs = torch.randn(20, 6), torch.randn(6, 6)

    def value(taken: torch.Tensor) -> torch.Tensor:
        x = taken.float()
        return (x * gain.unsqueeze(-2)).sum(-1) + ((x @ pairs) * x).sum(-1)

    everything = torch.tensor(list(itertools.product((False, True), repeat=6))).expand(20, -1, -1)
    best = value(everything).amax(-1)
    reached = {}
    for beam in (1, 4, 64):
        taken = best_composition(value, torch.Size([20, 6]), beam)
        reached[beam] = value(taken.unsqueeze(-2)).squeeze(-1)
    assert_close(reached[64], best)
    greedy = torch.zeros(20, 6, dtype=torch.bool)
    for agent in range(6):
        other = greedy.clone()
        other[:, agent] = True
        better = value(other.unsqueeze(-2)) > value(greedy.unsqueeze(-2))
        greedy = torch.where(better, other, greedy)
    assert_close(reached[1], value(greedy.unsqueeze(-2)).squeeze(-1))
    assert reached[1].mean() < reached[4].mean() <= best.mean()


def test_experience_is_collected_by_it() -> None:
    env = make_env("games/grid_navigation", num_envs=3, seed=0)
    torch.manual_seed(0)
    loss = make_loss(env.task_spec, algorithm="cql", decomposition="centralized", hidden=(8,))
    offline = make_loss(env.task_spec, algorithm="cloning", hidden=(8,)).actor_network
    policy = ComposedPolicy(offline, loss)
    assert all(name.startswith("offline.") for name, _ in policy.named_parameters())
    source = CollectorSource(env, policy, steps_per_round=4, exploration="sample")
    data = source(0)
    assert len(data) == 12 and data.spec.fits(env.task_spec)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_batch_normalization_acts_by_its_running_statistics_which_playing_leaves_alone(num_envs: int) -> None:
    """In a loss that is trained, so that its networks are in training mode, and the rows that play are few."""
    env = make_env("mpe/simple_spread", num_envs=num_envs, seed=0)
    torch.manual_seed(0)
    loss = make_loss(env.task_spec, algorithm="cfcql", hidden=(8,))
    offline = make_loss(env.task_spec, algorithm="cfcql", hidden=(8,)).actor_network
    policy = ComposedPolicy(offline, loss)
    networks = (offline, loss.actor_network, loss.qvalue_network)
    before = {name: each.clone() for name, each in (loss.state_dict() | offline.state_dict()).items()}
    assert any("variance" in name for name in before)
    seen = env.reset()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        together = policy(seen.clone())[ACTION]
        alone = torch.cat([policy(seen[row : row + 1].clone())[ACTION] for row in range(num_envs)])
    assert_close(together, alone)
    after = loss.state_dict() | offline.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert all(module.training for network in networks for module in network.modules())


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(ValueError, match="compares joint actions by the team's value"):
        ComposedPolicy(Case().actor(), make_loss(CONTINUOUS, algorithm="omar", hidden=(8,)))
    with pytest.raises(ValueError, match="compares joint actions by the team's value"):
        ComposedPolicy(Case().actor(), make_loss(CONTINUOUS, algorithm="cloning", hidden=(8,)))
    loss = make_loss(DISCRETE, algorithm="cql", decomposition="vdn", memory="gru", hidden=(8,))
    with pytest.raises(ValueError, match="has memory, which ComposedPolicy does not carry"):
        ComposedPolicy(Case(discrete=True).actor(), loss)
    fewer = make_actor(replace(CONTINUOUS, n_agents=2), share_params=False)
    for offline in (fewer, Case(discrete=True).actor(), make_loss(make_env("games/xor").task_spec).actor_network):
        with pytest.raises(ValueError, match=r"The offline policy was made for .*; take two policies of one task"):
            ComposedPolicy(offline, make_loss(CONTINUOUS, decomposition="vdn", hidden=(8,)))
    with pytest.raises(TypeError, match="offline must be a TensorDictModule"):
        ComposedPolicy(3, make_loss(CONTINUOUS, decomposition="vdn", hidden=(8,)))
    with pytest.raises(ValueError, match="beam"):
        ComposedPolicy(Case().actor(), make_loss(CONTINUOUS, decomposition="vdn", hidden=(8,)), beam=0)


def test_policies_whose_actions_are_written_unlike_are_refused() -> None:
    env = make_env("games/stitch", num_envs=3, seed=0)
    loss = make_loss(env.task_spec, algorithm="cql", decomposition="vdn", hidden=(8,))

    def offline(write, key=ACTION):
        return TensorDictModule(write, in_keys=[OBSERVATION], out_keys=[key])

    first = offline(lambda seen: torch.zeros(seen.shape[:-1], dtype=torch.int64))
    assert not ComposedPolicy(first, loss)(env.reset())[ACTION].isnan().any()
    with pytest.raises(ValueError, match=r"The offline policy writes \['logits'\], not the action"):
        ComposedPolicy(offline(lambda seen: seen, "logits"), loss)
    for write in (lambda seen: seen, lambda seen: torch.ones(*seen.shape[:-1], 6, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"take two policies of one task, whose actions are written alike"):
            ComposedPolicy(offline(write), loss)(env.reset())
    with pytest.raises(ValueError, match=r"take two policies of one task"):  # numbers in the place of indices
        ComposedPolicy(offline(lambda seen: seen[..., 0]), loss)(env.reset())
