"""Where released code departs from a paper, both can be had, and the defaults are the ones that the text names."""

from __future__ import annotations

import pytest
import torch
from objective_toys import Case, make_batch
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import AWR, TaskSpec, collect, make_env, make_loss
from torchrl_marl_offline.core.goals import AtGoals
from torchrl_marl_offline.core.layout import EPISODE_ENDS, MASK, TRAJ_IDS
from torchrl_marl_offline.data import hindsight_buffer
from torchrl_marl_offline.objectives.samplers import SoftmaxSampler
from torchrl_marl_offline.objectives.targets import value_target
from torchrl_marl_offline.training import CollectorSource, Learner, OnlineReplay, PopulationBuffer, Trainer

SPEC = TaskSpec(n_agents=2, observation_size=4, state_size=5, action_size=2)
SMALL = {"hidden": (8,)}


def scale_of(loss) -> torch.Tensor:
    batch = make_batch(SPEC, 6)
    return loss.actor_network.module[0](batch.clone())["agents", "scale"].detach()


@pytest.mark.fault("6.4")
def test_the_recipes_policies_as_released() -> None:
    torch.testing.assert_close(scale_of(make_loss(SPEC, scale=1.0, **SMALL)), torch.ones(6, 2, 2))
    torch.testing.assert_close(scale_of(make_loss(SPEC, **SMALL)), torch.full((6, 2, 2), 0.5))  # learned, from 0.5


@pytest.mark.fault("6.4")
def test_omigas_deviation_depends_on_the_observation() -> None:
    loss = make_loss(SPEC, algorithm="omiga", **SMALL)
    assert loss.actor_network.build["options"]["scale"] == "state_dependent"
    batch = make_batch(SPEC, 6)
    params = loss.actor_network_params
    with torch.no_grad(), params.apply(lambda p: p + 0.1 * torch.randn_like(p)).to_module(loss.actor_network):
        scale = loss.actor_network.module[0](batch)["agents", "scale"]
    assert scale.std(0).min() > 0


@pytest.mark.fault("6.4")
@pytest.mark.parametrize("kind", ["local", "joint"])
def test_the_advantage_of_the_online_critic_as_released(kind: str) -> None:
    case = Case("mixer", "iql", "awr")
    batch = make_batch(case.spec, 7)
    found = {}
    for online in (False, True):
        torch.manual_seed(0)
        loss = case.build(extraction=AWR(1.0, kind, online=online))
        with torch.no_grad():  # targets unlike the live networks
            for parameter in loss.qvalue_network_params.values(True, True):
                parameter.mul_(1.5)
            q = loss.team.action_value(batch, batch["agents", "action"], target=not online)
            v = loss.team.state_value(batch)
        if kind == "joint":
            expected = (q.total.amin(-1) - v.total.squeeze(-1)).mean()
        else:
            expected = (q.local.amin(-1) - v.local.squeeze(-1)).mean()
        found[online] = loss(batch)["advantage"]
        torch.testing.assert_close(found[online], expected)
    assert not torch.allclose(found[False], found[True])


@pytest.mark.fault("6.4")
def test_the_online_advantage_is_a_setting_and_trains_the_critic_by_its_own_term_alone() -> None:
    loss = make_loss(SPEC, online_advantage=True, advantage="joint", **SMALL)
    assert loss.extraction.online
    SoftUpdate(loss, tau=0.005)
    loss(make_batch(SPEC, 6))["loss_actor"].backward()
    assert all(p.grad is None or not p.grad.any() for n, p in loss.named_parameters() if not n.startswith("actor"))
    assert any(p.grad is not None and p.grad.any() for n, p in loss.named_parameters() if n.startswith("actor"))


@pytest.mark.fault("6.4")
def test_both_releases_of_mac_flow() -> None:
    found = {}
    for name in ("mac_flow", "mac_flow_discrete"):
        loss = make_loss(SPEC, algorithm=name)
        widths = [layer.out_features for layer in loss.behaviour_network.module.mlp.layers][:-1]
        rule = loss.extraction
        found[name] = (rule.alpha, rule.normalize, widths, round(float(loss.value_estimator.gamma), 4))
    assert found == {
        "mac_flow": (1.0, True, [512] * 4, 0.995),
        "mac_flow_discrete": (3.0, False, [256] * 4, 0.99),
    }


@pytest.mark.fault("6.4")
@pytest.mark.parametrize("centre", ["previous", "updated"])
def test_omars_centre_is_a_setting(centre: str) -> None:
    sampler = make_loss(SPEC, algorithm="omar", sampler_centre=centre, **SMALL).extraction.sampler
    assert isinstance(sampler, SoftmaxSampler) and sampler.centre == centre


@pytest.mark.parametrize("learning", ["td", "sarsa", "iql"])
def test_time_limits_as_released_code_takes_them(learning: str) -> None:
    batch = make_batch(SPEC, 8)
    batch["next", "terminated"][:] = False
    for flag in ("truncated", "done"):
        batch["next", flag][:] = torch.arange(8).unsqueeze(-1) % 3 == 0
    reward = batch["next", "agents", "reward"].mean(-2)
    found = {}
    for limits in ("bootstrap", "terminal"):
        torch.manual_seed(0)
        loss = make_loss(SPEC, value_learning=learning, time_limits=limits, **SMALL)
        SoftUpdate(loss, tau=0.5)
        rows, rule = loss.batch(batch), loss.value_learning
        given = {"how": loss.team_reward, "has_target": rule.row_mask(rows)}
        found[limits] = value_target(rows, rule, loss.value_estimator, **given).squeeze(-1)
    ended = batch["next", "done"]
    torch.testing.assert_close(found["terminal"][ended], reward[ended])
    torch.testing.assert_close(found["terminal"][~ended], found["bootstrap"][~ended])
    assert ((found["bootstrap"] - reward).abs() > 1e-4).all()


@pytest.fixture(scope="module")
def goals_data():
    """Episodes of nine steps that end by their time limit."""
    return collect(make_env("games/grid_goals", num_envs=4, max_steps=9, seed=0), episodes=8, seed=0)


def ended_targets(loss, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where rows count and where their target is the reward alone, ``[*B]``."""
    rows = loss.batch(batch)
    given = {"how": loss.team_reward, "has_target": loss.value_learning.row_mask(rows)}
    target = value_target(rows, loss.value_learning, loss.value_estimator, **given).squeeze(-1).squeeze(-1)
    return batch[MASK], target == batch["next", "agents", "reward"].mean((-2, -1))


@pytest.mark.parametrize("slices", [{"slice_len": 4}, {"slice_len": 4, "burn_in": 1}, {}], ids=str)
@pytest.mark.parametrize("kind", ["data", "hindsight", "population"])
def test_the_end_of_a_slice_is_not_the_end_of_an_episode(goals_data, slices, kind) -> None:
    """Where every end of an episode is taken for the task's: a slice is done with its last row, and goes on."""
    torch.manual_seed(0)
    memory = {"memory": "gru", "memory_size": 4, **slices} if "burn_in" in slices else {}
    loss = make_loss(goals_data.spec, value_learning="td", time_limits="terminal", batch_norm=False, **memory, **SMALL)
    SoftUpdate(loss, tau=0.5)
    options = {"batch_size": 64, "keys": [*loss.in_keys, MASK, TRAJ_IDS, ("collector", "index")]} | slices
    options["keys"] = [key for key in options["keys"] if goals_data.data.get(key, None) is not None]
    if kind == "data":
        batch = goals_data.replay_buffer(seed=1, **options).sample()
    elif kind == "hindsight":
        batch = hindsight_buffer(goals_data, AtGoals(within=0.1), future=0.8, seed=1, **options).sample()
    else:
        batch = PopulationBuffer(goals_data.data, seeds=[1], **options).sample()[0]
    counts, alone = ended_targets(loss, batch)
    ends = batch["next", "done"].squeeze(-1)
    if slices:
        ends = batch[EPISODE_ENDS]
        assert (batch["next", "done"].squeeze(-1) & ~ends & counts).any()
    assert torch.equal(alone[counts], ends[counts]) and ends[counts].any() and not ends[counts].all()


def test_rounds_that_cut_episodes_are_refused_where_every_end_is_the_tasks(tmp_path) -> None:
    env = make_env("games/grid_goals", num_envs=2)
    loss = make_loss(env.task_spec, time_limits="terminal", **SMALL)
    source = CollectorSource(env, loss.actor_network, steps_per_round=4)
    options = {"capacity": 100, "batch_size": 4, "update_to_data": 1.0}
    with pytest.raises(ValueError, match="time_limits='terminal' would take the end of every round"):
        Trainer(Learner(loss), OnlineReplay(source, journal=tmp_path, **options), steps=1, progress=False)
    whole = OnlineReplay(lambda number: collect(env, episodes=2, seed=number), journal=tmp_path, **options)
    Trainer(Learner(loss), whole, steps=1, progress=False)
