"""Values that no policy could earn are told of, once; values that rewards allow never are."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from population_toys import make_alone, make_data, make_member, make_population
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, RewardScaling

from torchrl_marl_offline.data import from_arrays
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.training import ImpossibleValueError, ImpossibleValueWarning, Trainer, read_csv
from torchrl_marl_offline.training.run.value_alarm import (
    MARGIN,
    MARGIN_OF_PENALTIES,
    RewardFacts,
    ValueAlarm,
    reward_facts,
)

pytestmark = pytest.mark.fault("3.16")
RULES = {"decomposition": "vdn", "value_learning": "sarsa", "extraction": "awr", "gamma": 0.9}


def data_of(rewards, ends, *, terminal=True):
    """Rewards ``[T, 2]`` and ends ``[T]`` of episodes of two agents."""
    rows, ends = len(rewards), torch.tensor(ends, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    return from_arrays(
        observations=torch.randn(rows, 2, 3, generator=generator),
        actions=torch.rand(rows, 2, 2, generator=generator),
        rewards=torch.as_tensor(rewards, dtype=torch.float32),
        terminals=ends if terminal else torch.zeros_like(ends),
        truncations=torch.zeros_like(ends) if terminal else ends,
        state=torch.randn(rows, 4, generator=generator),
    )


def facts(dataset, **rules):
    loss = make_member(dataset, 0, **RULES | rules)
    return reward_facts(loss, make_replay_buffer(dataset.data, batch_size=4, seed=0, keys=loss.in_keys))


# --------------------------------------------------------------------------- what rewards allow


def test_the_largest_reward_is_that_of_the_team_or_of_an_agent():
    rewards = [[1.0, -4.0], [2.0, 2.0], [0.0, 1.0]]
    dataset = data_of(rewards, [0, 0, 1])
    assert facts(dataset).largest == 2.0  # the mean: -1.5, 2, 0.5
    assert facts(dataset, team_reward="sum").largest == 4.0
    assert facts(dataset, decomposition="independent").largest == 4.0


def test_the_horizon_is_that_of_the_discount_or_of_the_longest_episode():
    rewards, ends = [[1.0, 1.0]] * 5, [0, 1, 0, 0, 1]
    ended, cut = facts(data_of(rewards, ends)), facts(data_of(rewards, ends, terminal=False))
    assert (ended.longest, ended.all_terminate, cut.all_terminate) == (3, True, False)
    assert ended.bound(1.0) == cut.bound(1.0) == 3.0
    assert ended.bound(0.9) == pytest.approx(1 + 0.9 + 0.81)  # no episode goes on
    assert cut.bound(0.9) == pytest.approx(10.0)  # targets go on after a time limit
    assert RewardFacts(0.0, math.inf, False).bound(1.0) == 0.0


def test_rows_that_do_not_count_say_nothing():
    dataset = data_of([[1.0, 1.0], [1e6, 1e6], [1.0, 1.0]], [0, 1, 1])
    dataset.data["collector", "mask"] = torch.tensor([True, False, True])
    assert facts(dataset).largest == 1.0


def test_where_no_reward_counts_there_is_no_bound():
    dataset = data_of([[1.0, 1.0], [2.0, 2.0]], [0, 1])
    dataset.data["collector", "mask"] = torch.zeros(2, dtype=torch.bool)
    assert facts(dataset) is None
    dataset = data_of([[1.0, 1.0], [2.0, 2.0]], [0, 1])
    dataset.data["agents", "mask"] = torch.zeros(2, 2, dtype=torch.bool)
    assert facts(dataset) is None


def test_where_rewards_cannot_be_known_there_is_no_bound():
    dataset = data_of([[1.0, 1.0]] * 4, [0, 1, 0, 1])
    loss = make_member(dataset, 0, **RULES)
    plain = TensorDictReplayBuffer(storage=LazyTensorStorage(4), batch_size=2)
    assert reward_facts(loss, plain) is None  # nothing is in it yet
    plain.extend(dataset.data)
    assert reward_facts(loss, plain).largest == 1.0
    scaled = make_replay_buffer(dataset.data, batch_size=2, seed=0)
    scaled.append_transform(Compose(RewardScaling(0.0, 10.0, in_keys=[("next", "agents", "reward")])))
    assert reward_facts(loss, scaled) is None  # the loss sees other rewards
    assert reward_facts(loss, object()) is None
    dataset.data["next", "agents", "reward"][0] = math.nan
    assert facts(dataset) is None
    assert reward_facts(torch.nn.Linear(1, 1), plain) is None


# --------------------------------------------------------------------------- when it sounds


def alarm_of(dataset, action="warn", **rules):
    loss = make_member(dataset, 0, **RULES | rules)
    return ValueAlarm(loss, make_replay_buffer(dataset.data, batch_size=4, seed=0), action)


def check(alarm, value, step=1, start=0.0):
    return alarm.check(step, {"qvalue_abs": value}, lambda: {"qvalue_abs": start})


def test_it_sounds_once_beyond_its_margin():
    alarm = alarm_of(data_of([[3.0, 3.0]] * 4, [0, 0, 0, 1], terminal=False))
    limit = MARGIN * 30.0 + 1.0
    assert check(alarm, limit - 0.01, step=5) is None
    message = check(alarm, 1e9, step=10)
    for word in ("Step 10", "1e+09", "allow 30", "layer norms", "BRAC(normalize=True)", "alpha", "max_next_value"):
        assert word in message
    assert check(alarm, 1e12, step=15) is None
    assert alarm.found == {"": 10}


def test_what_untrained_networks_say_is_no_alarm():
    alarm = alarm_of(data_of([[0.0, 0.0]] * 4, [0, 0, 0, 1]))
    assert check(alarm, 25.0, start=24.0) is None
    assert check(alarm, 0.9) is None
    assert check(alarm, 60.0) is not None
    restored = alarm_of(data_of([[0.0, 0.0]] * 4, [0, 0, 0, 1]))
    restored.load_state_dict({"found": {}, "start": [24.0]})
    assert check(restored, 25.0, start=0.0) is None  # a resumed run remembers its start


def test_a_penalty_on_values_is_allowed_to_move_them():
    dataset = data_of([[3.0, 3.0]] * 4, [0, 0, 0, 1], terminal=False)
    rules = {"algorithm": "cql", "min_q_weight": 5.0, "gamma": 0.9}
    loss = make_member(dataset, 0, **rules)
    alarm = ValueAlarm(loss, make_replay_buffer(dataset.data, batch_size=4, seed=0), "warn")
    limit = MARGIN_OF_PENALTIES * (3.0 + 5.0) * 10.0 + 1.0
    assert check(alarm, limit - 1.0) is None
    assert check(alarm, limit + 1.0) is not None


def test_ignoring_says_nothing_and_an_unknown_word_is_refused():
    dataset = data_of([[3.0, 3.0]] * 4, [0, 0, 0, 1])
    assert check(alarm_of(dataset, "ignore"), 1e30) is None
    with pytest.raises(ValueError, match="on_impossible_values must be one of 'warn', 'stop', 'ignore', got 'halt'"):
        alarm_of(dataset, "halt")


def test_a_verdict_holds_the_largest_values_against_the_rewards():
    alarm = alarm_of(data_of([[3.0, 3.0]] * 4, [0, 0, 0, 1], terminal=False))
    assert alarm.verdict() is None  # nothing was seen
    check(alarm, 20.0)
    check(alarm, 12.0, step=2)
    assert alarm.verdict() == "Values: sane, mean |Q| was 20 at most and is 12 at the end; the rewards allow 30."
    check(alarm, 50.0, step=3)
    assert alarm.verdict().startswith("Values: within the alarm's limit") and "allow 30" in alarm.verdict()
    check(alarm, 100.0, step=3)
    check(alarm, 15.0, step=4)
    restored = alarm_of(data_of([[3.0, 3.0]] * 4, [0, 0, 0, 1], terminal=False))
    restored.load_state_dict(alarm.state_dict())
    for each in (alarm, restored):
        assert each.verdict().startswith("Values: NOT sane, mean |Q| was 100 at most and is 15 at the end")
    check(alarm, math.nan, step=5)
    assert "NOT sane" in alarm.verdict()
    fallen = alarm_of(data_of([[3.0, 3.0]] * 4, [0, 0, 0, 1], terminal=False))
    for step, value in enumerate((1.0, math.nan, 2.0)):  # of a member that is left out
        check(fallen, value, step=step)
    assert fallen.verdict().startswith("Values: NOT sane, mean |Q| was inf at most and is 2 at the end")
    silent = alarm_of(data_of([[3.0, 3.0]] * 4, [0, 0, 0, 1], terminal=False), "ignore")
    check(silent, 1e9)
    assert "NOT sane" in silent.verdict()


def test_without_known_rewards_the_verdict_says_so():
    alarm = alarm_of(data_of([[3.0, 3.0]] * 4, [0, 0, 0, 1]))
    alarm._buffer = object()
    check(alarm, 5.0)
    assert alarm.verdict() == "Values: mean |Q| is 5 at the end; what would be possible is not known of this data."


# --------------------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def data():
    return make_data()


class Inflated(Trainer):
    """A run whose critic explodes after the first update."""

    def _update(self) -> None:
        super()._update()
        if self.step == 1:
            with torch.no_grad():
                for name, tensor in self.loss.named_parameters():
                    if name.startswith("qvalue_network_params") and name.endswith("layers.1.bias"):
                        tensor.fill_(1e9)


def inflated(data, output=None, **options):
    loss = make_member(data, 0, **RULES)
    buffer = make_replay_buffer(data.data, batch_size=12, seed=0, keys=loss.in_keys)
    return Inflated(loss, buffer, steps=6, log_every=2, output=output, progress=False, **options)


def test_a_run_warns_once(data, tmp_path):
    trainer = inflated(data, tmp_path)
    with pytest.warns(
        ImpossibleValueWarning, match=r"Step 2: mean \|Q\| is .*e\+0.*the rewards of the data allow"
    ) as caught:
        trainer.train()
    assert len([w for w in caught if w.category is ImpossibleValueWarning]) == 1
    assert [row["step"] for row in read_csv(tmp_path / "train.csv")] == [2, 4, 6]


def test_a_run_can_be_stopped(data, tmp_path):
    trainer = inflated(data, tmp_path, on_impossible_values="stop")
    with pytest.raises(ImpossibleValueError, match="the critic diverges") as caught:
        trainer.train()
    assert caught.value.step == trainer.step == 2
    assert [row["step"] for row in read_csv(tmp_path / "train.csv")] == [2]  # the row that shows it


def test_a_run_can_go_on_in_silence(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finished = inflated(data, on_impossible_values="ignore").train()
    assert finished.values.startswith("Values: NOT sane")


def test_a_finished_run_says_whether_its_values_were_sane(data, capsys):
    loss = make_member(data, 0, **RULES)
    buffer = make_replay_buffer(data.data, batch_size=12, seed=0, keys=loss.in_keys)
    finished = Trainer(loss, buffer, steps=2).train()
    assert finished.values.startswith("Values: sane, mean |Q| was ")
    assert finished.values in capsys.readouterr().out
    ignored = Trainer(loss, buffer, steps=1, on_impossible_values="ignore").train()
    assert ignored.values.startswith("Values: ") and "Values" not in capsys.readouterr().out
    cloning = make_member(data, 0, algorithm="cloning")
    assert Trainer(cloning, buffer, steps=1, progress=False).train().values is None
    assert "sane" not in capsys.readouterr().out


def test_a_population_names_those_whose_values_were_not(data):
    trainer = make_population(data, (0, 1, 2), rules=RULES, steps=2, log_every=1, on_impossible_values="ignore")
    trainer.train()
    assert trainer.alarm.verdict().startswith("Values: sane, ")
    trainer.alarm.check(3, {"qvalue_abs": [1.0, 1e7, 1.0]}, lambda: {})
    assert trainer.alarm.verdict().startswith("Values: NOT sane in 1 of 3 members (m1), mean |Q| was ")


def test_nothing_is_read_from_the_device_within_steps(data, monkeypatch):
    trainer = make_alone(data, 0, rules=RULES, steps=4, log_every=2)
    asked = []
    monkeypatch.setattr(ValueAlarm, "check", lambda self, step, *rest: asked.append(step))
    trainer.train()
    assert asked == [2, 4]


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_member_is_told_of_by_name_and_the_others_go_on(data, tmp_path, action):
    trainer = make_population(
        data, (0, 1), tmp_path, rules=RULES | {"gamma": 0.5}, steps=6, log_every=2, on_impossible_values=action
    )
    tensors = trainer.learner.population.tensors()
    move = trainer.learner._move

    def moved(metrics, **options):
        move(metrics, **options)
        with torch.no_grad():
            tensors["qvalue_network_params.module.network.mlp.layers.1.bias"][1] = 1e9

    trainer.learner._move = moved
    with pytest.warns(ImpossibleValueWarning, match=r"Step 2, m1: mean \|Q\|"):
        trainer.train()
    assert trainer.impossible == {"m1": 2}
    assert trainer.left_out == ({"m1": 2} if action == "stop" else {})
    rows = {name: [row["step"] for row in read_csv(tmp_path / "members" / name / "train.csv")] for name in ("m0", "m1")}
    assert rows["m0"] == [2, 4, 6] and rows["m1"] == ([2] if action == "stop" else [2, 4, 6])
    again = make_population(data, (0, 1), tmp_path, rules=RULES | {"gamma": 0.5}, steps=6, log_every=2)
    again.resume()
    assert again.impossible == {"m1": 2}


@pytest.mark.parametrize("algorithm", ["recipe", "cql", "icq", "omiga"])
def test_sound_runs_raise_no_alarm(data, algorithm):
    trainer = make_alone(data, 0, rules={"algorithm": algorithm, "hidden": (8,)}, steps=10, log_every=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ImpossibleValueWarning)
        trainer.train()
    assert trainer.alarm._facts is not None and trainer.alarm.found == {}
