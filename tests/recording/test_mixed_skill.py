"""Recorded mixtures are recorded once, in one piece, and know the environment that they came from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from selection import some_of

from torchrl_marl_offline import make_simulator, record_mixed_skill
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK
from torchrl_marl_offline.data import DatasetError, OfflineDataset
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.envs.vmas_heuristics import SCENARIOS, VmasHeuristic


def test_it_is_recorded_once_and_then_loaded(tmp_path):
    first = record_mixed_skill("mpe/simple_spread", tmp_path, episodes=30, seed=3, num_envs=10)
    (folder,) = tmp_path.iterdir()
    assert folder.name == "mpe-simple_spread-mixed-30-seed3"
    written = (folder / "metadata.json").stat().st_mtime_ns
    again = record_mixed_skill("mpe/simple_spread", tmp_path, episodes=30, seed=3, num_envs=10)
    assert (folder / "metadata.json").stat().st_mtime_ns == written
    elsewhere = record_mixed_skill("mpe/simple_spread", tmp_path / "elsewhere", episodes=30, seed=3, num_envs=10)
    for other in (again, elsewhere):
        assert (first.data == other.data).all()
    other_seed = record_mixed_skill("mpe/simple_spread", tmp_path, episodes=30, seed=4, num_envs=10)
    assert not torch.equal(first.data[ACTION], other_seed.data[ACTION])


def test_data_of_another_mixture_is_not_taken_for_ours(tmp_path):
    record_mixed_skill("games/xor", tmp_path, episodes=4)
    (folder,) = tmp_path.iterdir()
    header = json.loads((folder / "metadata.json").read_text())
    header["metadata"]["behaviour"] = "experts"
    del header["header"]  # its checksum
    (folder / "metadata.json").write_text(json.dumps(header))
    with pytest.raises(DatasetError, match="policies than those of this version; delete it"):
        record_mixed_skill("games/xor", tmp_path, episodes=4)


def test_the_spread_mixture_has_one_good_behaviour_and_two_that_drift(tmp_path):
    dataset = record_mixed_skill("mpe/simple_spread", tmp_path, episodes=1500)
    returns = dataset.episode_returns()
    assert abs(returns.mean() - 275) < 15  # 274.97 over 4,000 episodes with a standard deviation of 179
    good = returns > 400
    assert abs(good.float().mean() - 0.34) < 0.06
    assert returns[~good].mean() < 200 < 450 < returns[good].mean()


def test_grid_mixture_is_legal_and_of_middling_success(tmp_path):
    dataset = record_mixed_skill("games/grid_navigation", tmp_path, episodes=300)
    assert dataset.data[ACTION_MASK].gather(-1, dataset.data[ACTION].unsqueeze(-1)).all()
    assert 0.5 < dataset.success().float().mean() < 0.95


def test_foraging_mixture_is_legal_and_of_middling_success(tmp_path):
    options = {"agents": 3, "cooperative": True, "sight": 2}
    dataset = record_mixed_skill("games/foraging", tmp_path, episodes=300, task_options=options)
    assert dataset.data[ACTION_MASK].gather(-1, dataset.data[ACTION].unsqueeze(-1)).all()
    assert 0.5 < dataset.success().float().mean() < 0.95
    assert make_simulator(dataset, num_envs=2).sight == 2


def test_mixtures_of_memory_hold_good_and_bad_teams(tmp_path):
    for task, expected in (
        ("games/recall", 0.3 * 0.925**2 + 0.4 / 4 + 0.3 / 16),
        ("games/telephone", 0.3 * (0.925 * 0.925 + 0.075 / 3 * 0.075) + 0.4 / 4 + 0.3 / 4),
    ):
        returns = record_mixed_skill(task, tmp_path, episodes=4_000).episode_returns()
        assert set(returns.tolist()) == {0.0, 1.0}
        assert abs(returns.mean() - expected) < 4 * returns.std() / 4_000**0.5


def test_what_most_teams_play_in_recall_does_not_remember(tmp_path):
    data = record_mixed_skill("games/recall", tmp_path, episodes=4_000).data
    cue, pays = data["state"][:, :4].argmax(-1), data["next", "terminated"].squeeze(-1)
    action, cue = data[ACTION][pays & (cue != 0)], cue[pays & (cue != 0)].unsqueeze(-1)
    assert abs((action == cue).float().mean() - (0.3 * 0.925 + 0.3 / 4)) < 0.02
    assert abs((action == 0).float().mean() - (0.3 * 0.025 + 0.4 + 0.3 / 4)) < 0.02


def test_options_of_the_task_belong_to_the_recording(tmp_path):
    options = {"delay": 2, "prior": (1.0, 2.0, 1.0, 1.0)}
    plain = record_mixed_skill("games/recall", tmp_path, episodes=4)
    recorded = record_mixed_skill("games/recall", tmp_path, episodes=4, task_options=options)
    again = record_mixed_skill("games/recall", tmp_path, episodes=4, task_options=dict(reversed(options.items())))
    assert (len(plain), len(recorded)) == (24, 12) and (recorded.data == again.data).all()
    assert len(list(tmp_path.iterdir())) == 2
    env = make_simulator(recorded, num_envs=2)
    assert env.delay == 2 and env.prior == (0.2, 0.4, 0.2, 0.2) and make_simulator(plain, num_envs=2).delay == 5
    for task, wrong, message in (
        ("games/recall", {"prior": torch.ones(4)}, "task_options of a recording must be JSON-ready"),
        ("games/recall", {"prior": (1.0, 1.0, float("nan"), 1.0)}, "must be JSON-ready"),
        ("games/recall", {"seed": 3}, "seed is none of task_options"),
        ("games/recall", "delay=2", "task_options must be a mapping, as {'max_steps': 20}, got 'delay=2'"),
        ("games/xor", {"delay": 2}, "games/xor has no option 'delay'"),
    ):
        with pytest.raises(ValueError, match=message):
            record_mixed_skill(task, tmp_path, episodes=4, task_options=wrong)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("task", ["mpe/simple_spread", "games/two_step", "games/grid_navigation", "vmas/transport"])
def test_the_simulator_is_the_one_it_came_from(tmp_path, task):
    dataset = record_mixed_skill(task, tmp_path, episodes=4)
    env = make_simulator(dataset, num_envs=3)
    assert env.task_spec == dataset.spec
    assert env.batch_size == (3,)


def test_no_simulator_and_a_wrong_one(tmp_path):
    dataset = record_mixed_skill("games/xor", tmp_path, episodes=4)
    for task in (None, "smac/3m"):
        dataset.spec = replace(dataset.spec, task=task)
        assert make_simulator(dataset, num_envs=1) is None
    wrong = OfflineDataset(dataset.data, replace(dataset.spec, task="games/two_step"))
    with pytest.raises(DatasetError, match="but the dataset"):
        make_simulator(wrong, num_envs=1)


@pytest.mark.parametrize("scenario", some_of(SCENARIOS, every=3))
def test_vmas_heuristics_beat_random_play(scenario):
    env = make_env(f"vmas/{scenario}", num_envs=20, seed=0)
    play = lambda policy: env.rollout(100, policy, break_when_any_done=False)  # noqa: E731
    skilled, random = (play(policy)["next", "agents", "reward"].mean(2).sum(1) for policy in (VmasHeuristic(env), None))
    assert skilled.mean() > random.mean()
    noisy = play(VmasHeuristic(env, noise=1.0))[ACTION]
    assert noisy.abs().max() <= env.task_spec.action_high


def test_vmas_scenarios_without_heuristic_are_named():
    with pytest.raises(ValueError, match="no heuristic for 'dispersion', only for balance"):
        VmasHeuristic(make_env("vmas/dispersion"))
