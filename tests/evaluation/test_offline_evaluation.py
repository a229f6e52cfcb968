"""Policies evaluated and chosen by logged data alone: a game whose values are known, planted failures, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from evaluation_toys import ACTIONS, AGENTS, GAMMA, STATES, Game, TablePolicy, drawn_policies, sharp
from population_toys import make_data
from tensordict.nn import TensorDictModule

from torchrl_marl_offline import (
    collect,
    compare_offline,
    evaluate,
    from_arrays,
    make_actor,
    make_env,
    select_offline,
)
from torchrl_marl_offline.commands import evaluate as command
from torchrl_marl_offline.commands.evaluate_work import named_policies
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, TaskSpec
from torchrl_marl_offline.data import DatasetError
from torchrl_marl_offline.data.policy_fit import PolicyError
from torchrl_marl_offline.envs import SpreadController
from torchrl_marl_offline.evaluation import CloningSettings, FittedQSettings, LoggedCalibration, simulated_value
from torchrl_marl_offline.evaluation.held_out import discounted_returns
from torchrl_marl_offline.evaluation.offline import OfflineEstimate, selection
from torchrl_marl_offline.evaluation.offline.answers import EvaluatedPolicy
from torchrl_marl_offline.evaluation.offline.checks import (
    impossible_values,
    of_likelihood,
    of_masked_rows,
    of_other_task,
    of_sample_size,
    unlikely_share,
    unsupported_share,
)
from torchrl_marl_offline.evaluation.offline.fitted_q import FittedQ
from torchrl_marl_offline.evaluation.offline.horizon import evaluation_rows
from torchrl_marl_offline.objectives import BehaviourCloning
from torchrl_marl_offline.training import save_policy

LEARNED = FittedQSettings(
    "centralized", hidden=(32,), steps=350, batch_size=64, lr=3e-3, tau=0.05, resamples=3, samples=2
)
QUICK = FittedQSettings("vdn", hidden=(8,), steps=3, batch_size=16, resamples=2, samples=2)
CLONED = CloningSettings(hidden=(8,), steps=3, batch_size=16)
LIMIT = 4


@pytest.fixture(scope="module")
def game():
    return Game.draw(3)


@pytest.fixture(scope="module")
def logs(game):
    return game.record(drawn_policies(7, 0.7), episodes=300, seed=3)


@pytest.fixture(scope="module")
def cut(game):
    return game.record(drawn_policies(7, 0.7), episodes=40, seed=4, limit=LIMIT)


def actor(spec: TaskSpec, **options):
    torch.manual_seed(1)
    return make_actor(spec, hidden=(8,), final_scale=1.0, **options)


# --------------------------------------------------------------------------- values that are known


def test_values_of_a_game_that_is_solved_exactly(game, logs):
    table = sharp(drawn_policies(53, 2.0))
    found = compare_offline({"new": TablePolicy(table)}, logs, gamma=GAMMA, fitting=LEARNED)
    estimate, better = found.estimates["fqe"]["new"], found.differences["fqe"]["new"]
    truth, logged = game.value(table), game.value(drawn_policies(7, 0.7))
    low, high = estimate.interval
    assert low < truth < high and estimate.mean == pytest.approx(truth, abs=0.35)
    assert truth < logged - 0.9 and better.probability < 0.05 and better.low < truth - logged < better.high
    assert found.calibration.passed and found.calibration.predicted == pytest.approx(logged, abs=0.25)
    earned = discounted_returns(logs.data["next", "agents", "reward"].mean((1, 2)), logs.episode_lengths, GAMMA)
    assert found.best_of_data == pytest.approx(earned[logs.episode_starts].max().item(), abs=1e-5)
    assert "Calibration: passed" in found.table() and not found.warnings


def test_time_limits_are_ends_as_in_what_was_earned(game):
    logs = game.record(drawn_policies(7, 0.7), episodes=300, seed=3, limit=LIMIT)
    table = drawn_policies(53, 2.0)
    options = {"gamma": GAMMA, "fitting": LEARNED, "mode": "sample"}
    found = compare_offline(TablePolicy(table), logs, **options)
    estimate = found.estimates["fqe"]["policy"]
    limited, endless = game.value(table, LIMIT), game.value(table)
    assert abs(limited - endless) > 0.4  # the difference would be seen
    assert estimate.mean == pytest.approx(limited, abs=0.25) and found.calibration.passed


def test_rows_as_critics_read_them(cut):
    rows = evaluation_rows(cut, horizon="episode", gamma=0.5, how="sum")
    last = rows.starts + rows.lengths - 1
    flags = cut.data["next", "terminated"][:, 0]
    assert rows.truncated.any() and not rows.truncated.all()
    assert rows.data["next", "terminated"][last].all() and not flags[last].all()
    assert rows.has_step and rows.spec.observation_size == STATES + 1 and rows.spec.state_size == STATES + 1
    step = torch.cat([torch.arange(int(length)) for length in rows.lengths])
    torch.testing.assert_close(rows.data["state"][:, -1], step / LIMIT * 2 - 1)
    torch.testing.assert_close(rows.data["next", "agents", "observation"][:, 0, -1], (step + 1) / LIMIT * 2 - 1)
    first = slice(int(rows.starts[2]), int(last[2]) + 1)
    rewards = cut.data["next", "agents", "reward"][first].sum((1, 2)).double()
    expected = sum(0.5**t * reward for t, reward in enumerate(rewards))
    assert rows.returns[rows.starts[2]] == pytest.approx(expected.item())
    scaled = rows.data["next", "agents", "reward"] * rows.scale
    torch.testing.assert_close(scaled, cut.data["next", "agents", "reward"])
    endless = evaluation_rows(cut, horizon="endless", gamma=0.5, how="sum")
    assert torch.equal(endless.data["next", "terminated"][:, 0], flags) and not endless.has_step
    assert torch.equal(cut.data["next", "terminated"][:, 0], flags)  # the dataset is as it was


def test_no_step_is_told_where_no_time_limit_ended_an_episode(logs):
    rows = evaluation_rows(logs, horizon="episode", gamma=0.5, how="mean")
    assert not rows.truncated.any() and not rows.has_step and rows.spec == logs.spec
    assert rows.rows_of(torch.tensor([2, 0, 2])).tolist() == [
        row for e in (2, 0, 2) for row in range(rows.starts[e], rows.starts[e] + rows.lengths[e])
    ]


# --------------------------------------------------------------------------- weights


def test_the_logged_policy_itself_has_equal_weights(cut):
    policy, logs = actor(cut.spec), cut.select_episodes(range(40))
    with torch.no_grad():
        chances = policy.get_dist(logs.data.clone()).log_prob(logs.data[ACTION])
    logs.data.set(("agents", "action_log_prob"), chances)
    options = {"gamma": GAMMA, "mode": "sample", "held_out": 0.5}
    found = compare_offline({"same": policy}, logs, by=["is", "wis", "dr"], fitting=QUICK, **options)
    for method in ("is", "wis"):
        estimate, better = found.estimates[method]["same"], found.differences[method]["same"]
        assert estimate.mean == pytest.approx(found.logged.mean) and estimate.facts["ess"] == pytest.approx(20)
        torch.testing.assert_close(estimate.values, found.logged.values)
        assert better.mean == pytest.approx(0, abs=1e-9) and better.high == pytest.approx(0, abs=1e-9)
    assert found.estimates["dr"]["same"].facts["clipped"] == 0.0
    agents = compare_offline({"same": policy}, logs, by="wis", weights="agent", **options)
    assert agents.estimates["wis"]["same"].mean == pytest.approx(found.logged.mean)
    total = compare_offline({"same": policy}, logs, by="wis", team_reward="sum", **options)
    assert total.estimates["wis"]["same"].mean == pytest.approx(AGENTS * found.logged.mean, rel=1e-5)


def test_without_log_probabilities_a_clone_is_asked_and_its_fit_told(cut):
    found = compare_offline({"a": TablePolicy(sharp(drawn_policies(1)))}, cut, by="wis", cloning=CLONED)
    facts = found.estimates["wis"]["a"].facts
    assert facts["behaviour_log_prob"] < 0 and facts["behaviour_log_prob_train"] < 0
    assert facts["ess_agent_0"] >= facts["ess"]
    assert any("too few for 'is'" in warning for warning in found.warnings)


# --------------------------------------------------------------------------- what is warned of


def test_calibration_of_planted_values():
    earned = torch.tensor([1.0, 2.0, 3.0, 4.0])
    right = LoggedCalibration.of(earned + torch.tensor([0.1, -0.1, 0.1, -0.1]), earned)
    assert right.passed and right.bias == pytest.approx(0, abs=1e-6) and right.correlation > 0.99
    wrong = LoggedCalibration.of(earned + 5, earned)
    assert not wrong.passed and wrong.bias == pytest.approx(5) and "FAILED" in wrong.verdict()
    assert wrong.deviation == pytest.approx(1.25**0.5)


@pytest.mark.parametrize("level", [0.0, 5.0, -300.0])
def test_returns_that_are_all_equal_pass_with_a_small_bias(level):
    earned = torch.full((6,), level)
    unit = abs(level) or 1.0
    assert LoggedCalibration.of(earned + 0.01 * unit, earned).passed
    assert not LoggedCalibration.of(earned + 0.2 * unit, earned).passed


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e9])
def test_impossible_values_are_so_in_any_unit(cut, scale):
    logs = cut.select_episodes(range(40))
    logs.data["next", "agents", "reward"] *= scale
    rows = evaluation_rows(logs, horizon="episode", gamma=GAMMA, how="mean")
    assert impossible_values("new", torch.full((2, 3), 0.9 * rows.scale), rows, GAMMA) is None
    assert "critics diverge" in impossible_values("new", torch.full((2, 3), 1e3 * rows.scale), rows, GAMMA)


def test_untrained_critics_of_a_large_return_fail(cut):
    rich = cut.select_episodes(range(40))
    rich.data["next", "agents", "reward"] += 50.0
    found = compare_offline(TablePolicy(sharp(drawn_policies(1))), rich, fitting=QUICK, gamma=GAMMA)
    assert not found.calibration.passed and found.warnings[0] == found.calibration.verdict()


def test_values_beyond_the_rewards_are_told(logs):
    rows = evaluation_rows(logs, horizon="episode", gamma=GAMMA, how="mean")
    largest = rows.reward.abs().max().item()
    bound = largest * (1 - GAMMA ** int(rows.lengths.max())) / (1 - GAMMA)
    assert impossible_values("new", torch.full((3, 5), 1.9 * bound), rows, GAMMA) is None
    assert "its critics diverge" in impossible_values("new", torch.full((3, 5), -2.1 * bound), rows, GAMMA)


def test_joint_actions_outside_the_data_are_told(game):
    always = torch.zeros(AGENTS, STATES, ACTIONS)
    always[0, :, :], always[1, :, 0] = 0.5, 1.0  # the second agent never takes action 1
    logs = game.record(always, episodes=60, seed=0)
    rows = evaluation_rows(logs, horizon="episode", gamma=GAMMA, how="mean")
    known = torch.arange(len(logs)) < len(logs) // 2
    asked = (~known).nonzero()[:, 0]
    recorded = logs.data[ACTION][asked]
    assert unsupported_share(rows, known, asked, recorded, seed=0) <= 0.06
    other = recorded.clone()
    other[:, 1] = 1
    assert unsupported_share(rows, known, asked, other, seed=0) == 1.0
    found = compare_offline({"odd": TablePolicy(1 - always)}, logs, fitting=QUICK)
    assert any(warning.startswith("odd: 100% of its joint actions") for warning in found.warnings)


def test_joint_actions_that_the_clone_finds_unlikely_are_told():
    team = torch.distributions.Normal(0.0, 0.3)
    torch.manual_seed(0)
    logged = team.log_prob(team.sample((4000, 2)))

    def share(actions):
        return unlikely_share(logged, team.log_prob(actions), discrete=False)

    assert share(team.sample((4000, 2))) == pytest.approx(0.05, abs=0.015)
    assert share(torch.zeros(100, 2)) == 0.0 and share(torch.full((100, 2), 0.9)) == 1.0
    chances = torch.tensor([[0.3, 0.1], [0.01, 0.9], [0.9, 0.01], [0.03, 0.03]])
    assert unlikely_share(chances.log(), chances.log(), discrete=True) == 0.5
    assert of_likelihood("far", 0.3) is None and of_likelihood("far", 0.31).startswith("far: 31% of its joint actions")


@pytest.mark.parametrize("far", [False, True])
def test_a_policy_far_from_what_the_team_does_here_is_told_apart(far):
    """States of many numbers: the nearest recorded one is near or far by its state, whatever the action."""
    torch.manual_seed(0)
    observations = torch.randn(2000, 2, 20)
    means = 0.5 * observations[..., :1].sign()
    rows = {"actions": (means + 0.1 * torch.randn(2000, 2, 1)).clamp(-1, 1), "observations": observations}
    ends = torch.arange(2000) % 20 == 19
    logs = from_arrays(**rows, rewards=torch.zeros(2000), terminals=ends)
    sign = -1 if far else 1
    policy = TensorDictModule(lambda o: sign * 0.5 * o[..., :1].sign(), in_keys=[OBSERVATION], out_keys=[ACTION])
    fitting, cloning = FittedQSettings(steps=200, resamples=2, hidden=(8,)), CloningSettings(steps=200, lr=1e-2)
    facts = compare_offline(policy, logs, fitting=fitting, cloning=cloning).estimates["fqe"]["policy"].facts
    assert facts["unlikely"] > 0.9 if far else facts["unlikely"] < 0.1


def test_weights_that_are_mostly_clipped_are_told(cut):
    chances = torch.full((len(cut), AGENTS), 0.5).log()
    logs = cut.select_episodes(range(40))
    logs.data.set(("agents", "action_log_prob"), chances)
    options = {"by": "wis", "mode": "sample", "gamma": GAMMA}
    found = compare_offline(actor(logs.spec), logs, clip=1e-9, **options)
    assert any("100% of its importance weights were clipped" in warning for warning in found.warnings)
    better = found.differences["wis"]["policy"]
    assert (better.mean, better.probability) == (0.0, 0.5)  # equal weights: what the logged team earned
    free = compare_offline(actor(logs.spec), logs, **options)
    assert not any("were clipped" in warning for warning in free.warnings)


def test_rows_that_do_not_count_and_another_task_are_told(cut):
    logs = cut.select_episodes(range(40))
    assert of_masked_rows(logs.data, logs.episode_lengths) is None  # last rows without a successor are none of these
    longest = int(logs.episode_lengths.argmax())
    logs.data["collector", "mask"][int(logs.episode_starts[longest])] = False
    assert of_masked_rows(logs.data, logs.episode_lengths).startswith("1 rows of 1 episodes do not count")
    assert of_other_task("new", "mpe/a", "mpe/b").startswith("new was made for 'mpe/a', and the data is of 'mpe/b'")
    assert of_other_task("new", "mpe/a", "mpe/a") is of_other_task("new", None, "mpe/b") is None


def test_few_effective_episodes_are_told():
    assert of_sample_size("new", 10.0, 200) is None
    assert "worth 1.5 episodes" in of_sample_size("new", 1.5, 200)


# --------------------------------------------------------------------------- what can be evaluated


@pytest.mark.parametrize("decomposition", ["independent", "mixer", "qplex"])
def test_continuous_actions_of_any_kind_of_policy(tmp_path, decomposition):
    env = make_env("mpe/simple_spread", num_envs=4, seed=0)
    logs = collect(env, episodes=12, seed=0)
    policy = actor(logs.spec)
    file = save_policy(tmp_path / "policy.pt", policy)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    given = {"module": policy, "file": file, "loss": BehaviourCloning(actor(logs.spec)), "script": SpreadController()}
    policy.train()
    state = torch.get_rng_state()
    settings = FittedQSettings(decomposition, hidden=(8,), steps=2, batch_size=8, resamples=2)
    found = compare_offline(given, logs, fitting=settings)
    again = compare_offline(given, logs, fitting=settings)
    values = {name: estimate.values for name, estimate in found.estimates["fqe"].items()}
    assert torch.equal(torch.get_rng_state(), state) and policy.training
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    for alike in ("file", "loss"):  # members side by side in one product differ in its last digits
        torch.testing.assert_close(values["module"], values[alike], rtol=1e-5, atol=1e-5)
    assert (values["module"] - values["script"]).abs().min() > 1e-3
    assert all(torch.equal(each, again.estimates["fqe"][name].values) for name, each in values.items())


@pytest.mark.parametrize("horizon", ["episode", "endless"])
def test_discrete_actions_with_masks_and_rows_that_training_leaves_out(horizon):
    logs = make_data(discrete=True)
    assert logs.spec.has_action_mask and not logs.data["collector", "mask"].all()
    by = ["fqe", "wis", "dr"] if horizon == "episode" else ["fqe"]
    options = {"mode": "sample", "horizon": horizon, "fitting": QUICK, "cloning": CLONED}
    found = compare_offline({"new": actor(logs.spec)}, logs, by=by, **options)
    assert all(estimates["new"].values.isfinite().all() for estimates in found.estimates.values())
    cannot = [warning for warning in found.warnings if "cannot be checked on this data" in warning]
    assert (found.calibration is None) == bool(cannot) == (horizon == "endless")


# --------------------------------------------------------------------------- refusals, before any work


@pytest.mark.parametrize(
    ("policies", "options", "message"),
    [
        ({}, {}, "at least one policy"),
        ({"logged": SpreadController()}, {}, "name of the data's own team"),
        ({"a": 3}, {}, "policies must be a function"),
        (SpreadController(), {"by": ["guess"]}, "by must be 'fqe', 'is', 'wis', 'dr' or 'model'"),
        (SpreadController(), {"by": "wis"}, "policy takes one continuous action, which has no density"),
        (SpreadController(), {"by": "dr", "mode": "sample"}, "policy gives no log-probabilities"),
        (SpreadController(), {"by": "wis", "horizon": "endless"}, "weighs what episodes earned"),
        (SpreadController(), {"by": ["fqe", "dr"], "weights": "agent"}, "'dr' needs the weights of the joint action"),
        (SpreadController(), {"gamma": 1.5}, "gamma must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(policies, options, message):
    logs = collect(make_env("mpe/simple_spread", num_envs=4, seed=0), episodes=8, seed=0)
    with pytest.raises((ValueError, TypeError), match=message):
        compare_offline(policies, logs, **options)


class Answer:
    """A policy that answers wrongly, everywhere or in the first states of episodes alone."""

    def __init__(self, action, where):
        self.action, self.where = action, where

    def __call__(self, tensordict):
        if self.action is None:
            return None
        if isinstance(self.action, str):
            return tensordict.set(self.action, torch.zeros(len(tensordict)))
        found = torch.zeros(tensordict["agents", "observation"].shape[:-1], dtype=torch.int64)
        return tensordict.set(("agents", "action"), found + self.action * self.where(tensordict).unsqueeze(-1))


def everywhere(tensordict):
    return torch.ones(len(tensordict), dtype=torch.int64)


def in_state_3(tensordict):
    return tensordict["agents", "observation"][:, 0, 3].long()


@pytest.mark.parametrize(
    ("action", "where", "message"),
    [
        (None, everywhere, "policy returns no tensordict; give a function"),
        ("mine", everywhere, "policy writes no .'agents', 'action'."),
        (ACTIONS, everywhere, "policy takes action 2, and the data has 0 to 1"),
        (-1, everywhere, "policy takes action -1, and the data has 0 to 1"),
        (ACTIONS, in_state_3, "policy takes action 2, and the data has 0 to 1"),
    ],
)
def test_actions_that_are_none_are_refused_before_anything_is_trained(cut, monkeypatch, action, where, message):
    monkeypatch.setattr(FittedQ, "train", lambda *_, **__: pytest.fail("trained"))
    starts = cut.episode_starts
    assert in_state_3(cut.data[starts]).any() and not in_state_3(cut.data[:1]).any()
    with pytest.raises(PolicyError, match=message):
        compare_offline(Answer(action, where), cut, fitting=QUICK)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (("next", "agents", "reward"), float("nan"), "reward'. is NaN or infinite .first at row 5"),
        (("agents", "observation"), float("inf"), "observation'. is NaN or infinite"),
        (("agents", "action_log_prob"), float("nan"), "log_prob'. is NaN or infinite"),
        (("agents", "action_log_prob"), 0.5, "log_prob'. is above 0 .*; give the logarithms"),
        (("agents", "action"), ACTIONS, "action'. lies outside 0..1"),
    ],
)
def test_data_that_keeps_not_to_the_layout_is_refused_before_anything_is_trained(cut, key, value, message):
    logs = cut.select_episodes(range(40))
    logs.data.set(("agents", "action_log_prob"), torch.full((len(logs), AGENTS), -0.5))
    logs.data[key][5] = value
    with pytest.raises(DatasetError, match=message):
        compare_offline(TablePolicy(drawn_policies(1)), logs, fitting=QUICK)
    with pytest.raises(TypeError, match=r"dataset is a TensorDict; give what load_dataset"):
        compare_offline(TablePolicy(drawn_policies(1)), logs.data)


def test_continuous_policies_of_other_bounds_are_refused():
    logs = collect(make_env("mpe/simple_spread", num_envs=4, seed=0), episodes=8, seed=0)
    other = replace(logs.spec, action_low=-2.0, action_high=2.0)
    with pytest.raises(PolicyError, match=r"in \[-2, 2\] .*, the data has .* in \[-1, 1\]"):
        compare_offline(actor(other), logs)


def test_policies_whose_bounds_lie_within_the_tasks_are_evaluated():
    logs = collect(make_env("mpe/simple_spread", num_envs=4, seed=0), episodes=8, seed=0)
    narrow = logs.select_episodes(range(2)).with_bounds("data")
    inner = narrow.spec.with_bounds_of(
        replace(logs.spec, action_low=-0.5, action_high=(0.5,) * (logs.spec.action_size - 1) + (0.25,))
    )
    policies = {"data": actor(narrow.spec), "inner": actor(inner)}
    found = compare_offline(policies, logs, by=("fqe", "wis"), mode="sample", fitting=QUICK, cloning=CLONED)
    assert {name for each in found.estimates.values() for name in each} == set(policies)
    compare_offline({"wide": actor(logs.spec)}, logs.with_bounds("data"), fitting=QUICK)  # the task has its bounds
    log_probs = EvaluatedPolicy("inner", policies["inner"], logs, "sample").log_probs(logs.data)
    low, high = inner.bounds_with_slack(logs.data[ACTION])
    outside = ((logs.data[ACTION] < low) | (logs.data[ACTION] > high)).any(-1)
    assert outside.any() and torch.equal(log_probs == -torch.inf, outside)  # it never does these


def test_policies_of_other_sizes_are_refused(cut):
    other = TaskSpec(n_agents=2, observation_size=7, state_size=3, action_size=2, discrete=True)
    with pytest.raises(PolicyError, match=r"made for 2 agents, observations of 7 .* the data has"):
        compare_offline(actor(other), cut)
    with pytest.raises(PolicyError, match="policy does not fit the data"):
        compare_offline(SpreadController(), cut)
    with pytest.raises(ValueError, match="needs 8 episodes or more, the data has 7"):
        compare_offline(TablePolicy(drawn_policies(1)), cut.select_episodes(range(7)))


# --------------------------------------------------------------------------- choosing


def test_candidates_are_ranked_by_their_estimates(cut):
    given = {f"p{seed}": TablePolicy(sharp(drawn_policies(seed, 2.0))) for seed in (1, 2, 3)}
    found = select_offline(given, cut, by="fqe", fitting=QUICK, gamma=GAMMA)
    means = [found.estimates[name].mean for name in found.ranking]
    assert found.best == found.ranking[0] and means == sorted(means, reverse=True) and set(found.ranking) == set(given)
    assert found.best in found.table() and found.comparison is not None
    assert found.is_clear != any("cannot be told apart" in warning for warning in found.warnings)


def test_an_estimate_that_is_no_number_is_ranked_last(monkeypatch):
    numbers = {"a": float("nan"), "b": -3.0, "c": float("nan"), "d": 1.0}
    found = {name: OfflineEstimate("fqe", mean, torch.full((3,), mean), 0.9) for name, mean in numbers.items()}
    compared = SimpleNamespace(estimates={"fqe": found}, warnings=())
    monkeypatch.setattr(selection, "compare_offline", lambda *_, **__: compared)
    assert select_offline({}, None).ranking == ("d", "b", "a", "c")


def test_candidates_are_ranked_by_a_simulator_where_there_is_one():
    env = make_env("mpe/simple_spread", num_envs=8, seed=0)
    logs = collect(env, episodes=8, seed=0)
    given = {"wrong": SpreadController("wrong_landmark"), "right": SpreadController("optimal")}
    found = select_offline(given, logs, by="return", env=env, episodes=8)
    assert found.ranking == ("right", "wrong") and found.is_clear
    whole = simulated_value(given["right"], env, episodes=8, gamma=1.0, seed=5)
    assert whole.mean == pytest.approx(evaluate(given["right"], env, episodes=8, seed=5).mean, rel=1e-5)
    with pytest.raises(ValueError, match="give env="):
        select_offline(given, logs, by="return")
    with pytest.raises(ValueError, match="leave env= out"):
        select_offline(given, logs, by="fqe", env=env)
    with pytest.raises(ValueError, match="candidates must be a mapping"):
        select_offline(given["right"], logs)


# --------------------------------------------------------------------------- the command


@pytest.fixture
def files(tmp_path, cut):
    cut.save(tmp_path / "logs")
    for name in ("a", "b"):
        save_policy(tmp_path / f"{name}.pt", actor(cut.spec))
    return tmp_path


def test_the_command_says_how_much_better(files, capsys):
    options = ["--dataset", str(files / "logs"), "--steps", "2", "--resamples", "2", "--decomposition", "vdn"]
    assert command.main([str(files / "a.pt"), str(files / "b.pt"), *options, "--gamma", "0.9"]) == 0
    out = capsys.readouterr().out
    assert "gamma 0.9" in out and "Calibration:" in out and "P(better)" in out and "\na " in out and "\nb " in out
    assert command.main([str(files / "a.pt"), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["methods"]["fqe"]["a"]["gamma"] == 0.99
    assert found["methods"]["fqe"]["a"]["better"]["probability"] >= 0


def test_the_command_compares_policies_with_memory_and_without(files, cut, capsys):
    save_policy(files / "c.pt", actor(cut.spec, memory="gru", memory_size=4))
    options = ["--dataset", str(files / "logs"), "--steps", "2", "--resamples", "2", "--memory", "window:2"]
    given = [str(files / name) for name in ("a.pt", "c.pt")]
    assert command.main([*given, *options, "--mode", "sample", "--by", "fqe", "wis", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    assert found["fqe"]["c"]["value"] != found["fqe"]["a"]["value"] and found["wis"]["c"]["ess"] > 0
    assert command.main([given[0], *options[:-1], "rnn"]) == 1
    assert "memory must be 'gru', 'lstm' or 'window:K', got 'rnn'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pt", "--dataset", "logs", "--env", "mpe/simple_spread"], "--env plays, and --dataset does not"),
        (["a.pt", "--gamma", "0.9"], "--gamma is of --dataset SOURCE"),
        (["a.pt", "b.pt"], "One policy is played at a time"),
        (["a.pt", "a.pt", "--dataset", "logs"], "A policy is given twice"),
        (
            ["a.pt", "--dataset", "logs", "--by", "wis", "--steps", "3"],
            "--steps is read by fqe and dr and model alone, and --by is wis",
        ),
    ],
)
def test_options_of_one_kind_do_not_go_with_the_other(files, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    assert command.main(arguments) != 0
    assert message in capsys.readouterr().err


def test_a_run_named_as_the_logged_team_is_told_by_its_path():
    assert list(named_policies([Path("runs/a"), Path("runs/b.pt")])) == ["a", "b"]
    assert list(named_policies([Path("runs/logged"), Path("runs/b")])) == ["runs/logged", "runs/b"]
    assert list(named_policies([Path("logged")])) == ["./logged"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "fqe", "clip": 2.0}, r"clip= is read by 'is' and 'wis' and 'dr' alone, and by= is fqe; leave it out"),
        ({"by": "fqe", "weights": "agent"}, "weights= is read by 'is' and 'wis' alone"),
        ({"by": ("is", "wis"), "fitting": QUICK}, "fitting= is read by 'fqe' and 'dr' alone, and by= is is, wis"),
    ],
)
def test_what_no_estimate_reads_is_refused(cut, options, said):
    with pytest.raises(ValueError, match=said):
        compare_offline(TablePolicy(sharp(drawn_policies(1))), cut, gamma=GAMMA, **options)
