"""smac/* and smacv2/*: what the adapter makes of smacv2, which a toy stands for."""

from __future__ import annotations

import random
from importlib.util import find_spec

import pytest
import smacv2_toy
import torch
from layout_checks import assert_battle_layout
from selection import thorough
from smacv2_toy import ATTACK, AWAY, NEARER, NO_OP, STOP, StarCraft2Env
from torchrl.envs import check_env_specs

from torchrl_marl_offline.core.layout import (
    ACTION,
    ACTION_MASK,
    AGENT_MASK,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    TaskSpec,
)
from torchrl_marl_offline.envs import list_tasks, make_env
from torchrl_marl_offline.envs.starcraft_names import MAPS, SCENARIOS, smacv2_arguments

TASKS = ("smac/2s_vs_1sc", "smacv2/terran_5_vs_5")


@pytest.fixture
def game(monkeypatch, tmp_path):
    smacv2_toy.install(monkeypatch, tmp_path)


def play(env, td, *actions):
    """Play joint actions, the same in every environment; return the last step, with what came before it."""
    for joint in actions:
        td = env.step(td.set(ACTION, torch.tensor([joint] * env.num_envs)))
        last, td = td, env.step_mdp(td)
    return last["next"]


@pytest.mark.skipif(find_spec("smacv2") is not None, reason="smacv2 is installed")
@pytest.mark.parametrize("task", TASKS)
def test_without_the_library_one_sentence_says_what_to_do(task):
    with pytest.raises(ModuleNotFoundError) as error:
        make_env(task)
    message = str(error.value)
    for part in (task, "git+https://github.com/oxwhirl/smacv2", "StarCraft II 4.10", "SC2PATH"):
        assert part in message
    assert message.count(". ") == 0
    assert "\n" not in message
    assert "SC2PATH" in list_tasks()["smac/*"]


@pytest.mark.parametrize("path", ["nowhere", None])
def test_without_the_game_one_sentence_says_what_to_do(game, monkeypatch, tmp_path, path):
    (tmp_path / "Versions").rmdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    if path is None:
        monkeypatch.delenv("SC2PATH")
    with pytest.raises(FileNotFoundError) as error:
        make_env(TASKS[0])
    message = str(error.value)
    for part in (TASKS[0], str(tmp_path), "StarCraft II 4.10", "set SC2PATH"):
        assert part in message
    assert message.count(". ") == 0


@pytest.mark.parametrize(
    ("task", "num_envs"), [(TASKS[1], 3), *map(thorough, [(TASKS[0], 1), (TASKS[0], 3), (TASKS[1], 1)])]
)
def test_specs_layout_and_a_thousand_random_steps(game, task, num_envs):
    env = make_env(task, num_envs=num_envs, seed=0, workers="serial")
    check_env_specs(env)
    assert TaskSpec.from_env(env) == TaskSpec(2, 4, 5, 7, discrete=True, has_action_mask=True, task=task)
    assert (env.batch_size, env.max_episode_steps, env.reference_returns) == ((num_envs,), 6, None)
    steps = 1000 // num_envs
    data = env.rollout(steps, break_when_any_done=False)
    assert data.shape == (num_envs, steps)
    assert_battle_layout(data, env.task_spec)
    for td in (data, data["next"]):
        assert torch.equal(td[AGENT_MASK], ~td[ACTION_MASK][..., NO_OP])
    end = data["next"]
    for key in ("terminated", "truncated", SUCCESS):
        assert end[key].any(), key
    assert not end[AGENT_MASK].all()
    env.close()


def test_a_victory(game):
    env = make_env(TASKS[0], seed=0)
    td = env.reset()
    assert td[OBSERVATION].tolist() == [[[2.0, 3.0, 4.0, 0.0]] * 2]
    assert td[ACTION_MASK].int().tolist() == [[[0, 1, 0, 1, 0, 0, 0]] * 2]
    hit = play(env, td, (NEARER, NEARER), (ATTACK, ATTACK))
    assert hit[REWARD].flatten().tolist() == [2.0, 2.0]
    assert not hit["done"].any()
    won = play(env, hit.exclude(REWARD), (ATTACK, ATTACK))
    assert won[REWARD].flatten().tolist() == [12.0, 12.0]
    assert (won["terminated"].item(), won["truncated"].item(), won[SUCCESS].item()) == (True, False, True)
    assert won[OBSERVATION].tolist() == [[[2.0, 2.0, 0.0, 0.0]] * 2]  # of the battle that is over
    assert won[AGENT_MASK].all()


def test_the_dead_may_only_do_nothing_and_a_defeat_is_terminated(game):
    env = make_env(TASKS[0], seed=0)
    dead = play(env, env.reset(), (NEARER, NEARER), (NEARER, STOP), (STOP, STOP))
    assert dead[AGENT_MASK].tolist() == [[False, True]]
    assert dead[ACTION_MASK].int().tolist() == [[[1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 1]]]
    assert dead[OBSERVATION][0, 0].tolist() == [0.0] * 4
    assert not dead["done"].any()
    lost = play(env, dead.exclude(REWARD), (NO_OP, NEARER), (NO_OP, STOP))
    assert (lost["terminated"].item(), lost["truncated"].item(), lost[SUCCESS].item()) == (True, False, False)
    assert lost["step_count"].item() == 5
    assert not lost[AGENT_MASK].any()
    assert lost[ACTION_MASK].any(-1).all()


def test_the_maps_limit_is_truncated(game):
    env = make_env(TASKS[0], seed=0)
    last = play(env, env.reset(), *[(STOP, STOP)] * 6)
    assert (last["terminated"].item(), last["truncated"].item(), last[SUCCESS].item()) == (False, True, False)
    assert last["step_count"].item() == 6
    assert last[STATE][0, -1].item() == 6  # the true end, not the next start


def test_a_victory_at_the_limit_is_terminated(game):
    env = make_env(TASKS[0], seed=0)
    last = play(env, env.reset(), (NEARER, STOP), (STOP, STOP), *[(ATTACK, STOP)] * 4)
    assert (last["terminated"].item(), last["truncated"].item(), last[SUCCESS].item()) == (True, False, True)
    assert last["step_count"].item() == env.max_episode_steps


def test_a_shorter_limit(game):
    env = make_env(TASKS[0], num_envs=2, seed=0, max_steps=3, workers="serial")
    data = env.rollout(7, break_when_any_done=False)["next"]
    assert env.max_episode_steps == 3
    assert data["truncated"].squeeze(-1).int().tolist() == [[0, 0, 1, 0, 0, 1, 0]] * 2
    assert not data["terminated"].any()
    assert make_env(TASKS[0], max_steps=99).max_episode_steps == 6


def test_a_crash_of_the_game_is_truncated(game, monkeypatch):
    monkeypatch.setattr(StarCraft2Env, "crash_after", 2)
    env = make_env(TASKS[0], seed=0)
    last = play(env, env.reset(), (NEARER, STOP), (ATTACK, STOP))
    assert (last["terminated"].item(), last["truncated"].item(), last[SUCCESS].item()) == (False, True, False)
    assert not play(env, env.reset(), (NEARER, STOP))["done"].any()


@pytest.mark.parametrize("task", TASKS)
def test_partial_resets_leave_the_neighbours(game, task):
    env = make_env(task, num_envs=3, seed=0, workers="serial")
    td = play(env, env.reset(), (NEARER, STOP), (ATTACK, STOP)).exclude(REWARD)
    resets = env._wrapped[0].resets
    before = td.clone()
    after = env.reset(td.set("_reset", torch.tensor([[False], [True], [False]])))
    assert env._wrapped[0].resets == [resets[0], resets[1] + 1, resets[2]]
    for key in (OBSERVATION, STATE, "step_count", ACTION_MASK):
        assert torch.equal(after[key][::2], before[key][::2])
    assert after["step_count"].flatten().tolist() == [2, 0, 2]
    assert after[STATE][:, 2].tolist() == [3.0, 4.0, 3.0]
    again = env.step(after.set(ACTION, torch.tensor([[ATTACK, STOP], [NEARER, STOP], [ATTACK, STOP]])))["next"]
    assert again[STATE][:, 2].tolist() == [2.0, 4.0, 2.0]


def test_the_next_observation_at_an_end_is_the_old_battles(game):
    env = make_env(TASKS[0], num_envs=2, seed=0, workers="serial")
    data = env.rollout(8, break_when_any_done=False)
    for i, t in data["next", "done"].squeeze(-1)[:, :-1].nonzero().tolist():
        assert data["next", STATE][i, t, -1] == data["next", "step_count"][i, t, 0]
        assert data[STATE][i, t + 1, -1] == 0
        assert not torch.equal(data["next", STATE][i, t], data[STATE][i, t + 1])


@pytest.mark.parametrize("task", TASKS)
def test_seeds(game, task):
    def starts(seed, num_envs, env=None):
        env = make_env(task, num_envs=num_envs, seed=seed, workers="serial") if env is None else env
        if seed is not None:
            env.set_seed(seed)
        return torch.stack([torch.cat([(td := env.reset())[STATE], td[OBSERVATION].flatten(1)], 1) for _ in range(7)])

    few, many = starts(7, 2), starts(7, 4)
    assert torch.equal(few, many[:, :2])
    assert not torch.equal(few[:, 0], few[:, 1])
    assert not torch.equal(few[0], few[1])
    assert not torch.equal(few, starts(8, 2))
    env = make_env(task, num_envs=2, seed=8, workers="serial")
    env.reset()
    old = env._wrapped[0]
    assert torch.equal(starts(7, 2, env), few)
    assert env._wrapped[0] is not old  # StarCraft takes a seed only when it starts
    random.seed(1)
    state, torch_state = random.getstate(), torch.get_rng_state()
    env.reset()
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_processes(game, monkeypatch):
    monkeypatch.setattr("torchrl.envs.batched_envs._get_default_mp_start_method", lambda: "fork")  # knows the toy
    serial, parallel = (make_env(TASKS[1], num_envs=2, seed=3, workers=each) for each in ("serial", "processes"))
    data = []
    for env in (serial, parallel):
        torch.manual_seed(0)
        data.append(env.rollout(15, break_when_any_done=False))
    assert (data[0] == data[1]).all()
    assert data[0]["next", "done"].any()
    parallel.close()


def test_tasks_and_settings(game):
    tasks = list_tasks()
    assert all(tasks[f"smac/{name}"] == "installed" for name in MAPS)
    assert all(tasks[f"smacv2/{name}"] == "installed" for name in SCENARIOS)
    assert len(MAPS) == 23
    config = smacv2_arguments("terran_10_vs_11")["capability_config"]
    assert (config["n_units"], config["n_enemies"]) == (10, 11)
    assert config["team_gen"] == {
        "dist_type": "weighted_teams",
        "unit_types": ["marine", "marauder", "medivac"],
        "weights": [0.45, 0.45, 0.1],
        "exception_unit_types": ["medivac"],
        "observe": True,
    }
    assert smacv2_arguments("zerg_5_vs_5")["map_name"] == "10gen_zerg"
    game_env = make_env("smac/3m", difficulty="3")._wrapped[0]._env
    assert (game_env.map_name, game_env.difficulty, game_env.continuing_episode) == ("3m", "3", True)
    wrapper = make_env("smacv2/protoss_5_vs_5", seed=0)._wrapped[0]._env
    assert wrapper.env.map_name == "10gen_protoss"
    assert wrapper.settings == {
        "conic_fov": False,
        "obs_own_pos": True,
        "use_unit_ranges": True,
        "min_attack_range": 2,
    }
    assert "env_key" not in smacv2_arguments("protoss_5_vs_5")["capability_config"]["team_gen"]


def test_an_illegal_action_is_an_error(game):
    env = make_env(TASKS[0], seed=0)
    with pytest.raises(RuntimeError, match="mask"):
        play(env, env.reset(), (AWAY, STOP))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"workers": "threads"}, "workers must be"), ({"num_envs": 0}, "num_envs must be at least")],
)
def test_bad_options(game, options, message):
    with pytest.raises(ValueError, match=message):
        make_env(TASKS[0], **options)
