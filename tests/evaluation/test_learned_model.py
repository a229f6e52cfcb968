"""Values of policies in models of the task that are learned from logs: states, models, play, what is left open."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase

from torchrl_marl_offline import compare_offline, from_arrays, make_actor, save_policy, select_offline
from torchrl_marl_offline.commands import evaluate as command
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, AGENT_MASK, OBSERVATION, STATE, next_key
from torchrl_marl_offline.evaluation import (
    FittedQSettings,
    IllegalActionError,
    LearnedModelSettings,
)
from torchrl_marl_offline.evaluation.in_environments import NonFiniteActionError
from torchrl_marl_offline.evaluation.offline import learned_model
from torchrl_marl_offline.evaluation.offline.horizon import evaluation_rows
from torchrl_marl_offline.evaluation.offline.imagined_play import ImaginedGame
from torchrl_marl_offline.evaluation.offline.learned_model import LearnedModel
from torchrl_marl_offline.evaluation.offline.state_columns import StateColumns

PLACES, STEPS, GAMMA = 5, 6, 0.9
QUICK = LearnedModelSettings(hidden=(32,), steps=200, batch_size=64, lr=2e-2, resamples=2, episodes=20, trusted=0.999)


def corridor(episodes=200, seed=0, left=True):
    """Two agents on places 0 to 4: both to the right is a step to the right, else one to the left; 1 at the end."""
    g = torch.Generator().manual_seed(seed)
    observations, followings, actions, rewards, terminals, limits = [], [], [], [], [], []
    for _ in range(episodes):
        place = 2
        for step in range(STEPS):
            joint = torch.randint(2, (2,), generator=g) if left else torch.ones(2, dtype=torch.int64)
            following = max(0, min(PLACES - 1, place + (1 if joint.all() else -1)))
            observations.append([[place, step], [PLACES - 1 - place, step]])
            followings.append([[following, step + 1], [PLACES - 1 - following, step + 1]])
            actions.append(joint.tolist())
            ended = following == PLACES - 1
            rewards.append(float(ended))
            terminals.append(ended)
            limits.append(step == STEPS - 1 and not ended)
            place = following
            if ended:
                break
    return from_arrays(
        observations=torch.tensor(observations).float(),
        next_observations=torch.tensor(followings).float(),
        actions=torch.tensor(actions),
        rewards=torch.tensor(rewards),
        terminals=torch.tensor(terminals),
        truncations=torch.tensor(limits),
        n_actions=2,
    )


def always(action):
    return TensorDictModule(
        lambda o: torch.full(o.shape[:-1], action, dtype=torch.int64), in_keys=[OBSERVATION], out_keys=[ACTION]
    )


@pytest.fixture(scope="module")
def logs():
    return corridor()


def test_states_are_their_independent_columns_and_back():
    torch.manual_seed(0)
    place = torch.randn(50, 3)
    observation = torch.stack([place, place - place[:, :1]], 1)  # the second sees them relative to the first number
    mask = torch.rand(50, 2, 4) > 0.5
    rows = TensorDict({}, [50])
    for key, values in ((OBSERVATION, observation), (STATE, observation.flatten(1) * 3 + 1), (ACTION_MASK, mask)):
        rows.set(key, values).set(next_key(key), values.flip(0))
    columns = StateColumns(rows)
    numbers = columns.of(rows)
    assert numbers.shape == (50, 3 + 8)
    back = columns.states(numbers)
    torch.testing.assert_close(back.get(OBSERVATION), observation, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.get(STATE), rows.get(STATE), atol=1e-5, rtol=0)
    assert torch.equal(back.get(ACTION_MASK), mask | ~mask.any(-1, keepdim=True))
    torch.testing.assert_close(columns.of(rows, is_next=True), numbers.flip(0), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def found(logs):
    return compare_offline({"right": always(1), "left": always(0)}, logs, by="model", gamma=GAMMA, modelling=QUICK)


def test_models_play_as_the_task_does(found):
    """Both to the right: a reward in the second step; otherwise none."""
    right, left = (found.estimates["model"][name] for name in ("right", "left"))
    assert right.mean == pytest.approx(GAMMA, abs=0.05) and left.mean == pytest.approx(0, abs=0.05)
    assert right.facts["outside"] < 0.1 and not right.warnings
    assert right.interval[0] <= right.mean <= right.interval[1]
    assert found.model_calibration.passed and found.calibration is None
    assert "The learned models: passed" in found.table()
    better = found.differences["model"]["right"]
    assert better.probability > 0.9
    assert better.mean == pytest.approx(right.mean - found.logged.mean)
    assert found.to_dict()["model_calibration"]["passed"]


def test_the_best_is_chosen_by_models_and_draws_are_equal_for_equal_seeds(logs, found):
    state = torch.get_rng_state()
    options = {"by": "model", "gamma": GAMMA, "modelling": QUICK}
    chosen = select_offline({"right": always(1), "left": always(0)}, logs, **options)
    assert chosen.best == "right" and chosen.is_clear
    assert torch.equal(chosen.estimates["right"].values, found.estimates["model"]["right"].values)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_was_never_done_is_left_open():
    """Logs of a team that always goes right: of going left nothing is known, and all is possible."""
    rights = corridor(40, left=False)
    found = compare_offline({"left": always(0), "right": always(1)}, rights, by="model", gamma=GAMMA, modelling=QUICK)
    left, right = (found.estimates["model"][name] for name in ("left", "right"))
    assert right.facts["outside"] == 0 and right.mean == pytest.approx(GAMMA, abs=0.05)
    assert left.facts["outside"] == 1 and "100% of its episodes in the learned models leave" in left.warnings[0]
    assert left.warnings[0] in found.warnings


def test_models_that_learned_nothing_fail_their_calibration(logs):
    idle = LearnedModelSettings(hidden=(4,), steps=1, batch_size=4, resamples=2, episodes=4)
    found = compare_offline(always(1), logs, by="model", gamma=GAMMA, modelling=idle)
    assert not found.model_calibration.passed
    assert any(warning.startswith("The learned models: FAILED") for warning in found.warnings)


def test_continuous_changes_are_learned_with_their_spread():
    torch.manual_seed(0)
    place = torch.randn(2000, 1, 1)
    action = torch.rand(2000, 1, 1) * 2 - 1
    following = place + action + 0.5 * torch.randn(2000, 1, 1)
    ends = torch.arange(2000) % 2 == 1
    rows = {"observations": place, "next_observations": following, "actions": action}
    logs = from_arrays(**rows, rewards=following[:, 0, 0], terminals=ends)
    rows = evaluation_rows(logs, horizon="episode", gamma=GAMMA, how="mean")
    settings = LearnedModelSettings(hidden=(32,), steps=300, batch_size=64, lr=1e-2, resamples=2)
    episodes = torch.arange(logs.n_episodes)
    model = LearnedModel(logs.data, rows, episodes.expand(2, -1), settings, seed=0, progress=False)
    asked = torch.zeros(2, 2000, 1), torch.full((2, 2000, 1, 1), 0.5)
    after, reward, ended = model.step(*asked)
    assert after.mean().item() == pytest.approx(0.5, abs=0.1) and after.std().item() == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(reward, after.squeeze(-1), atol=0.2, rtol=0)
    assert ended.float().mean().item() == pytest.approx(0.5, abs=0.15)
    game = ImaginedGame(model, logs.data, rows, episodes, gamma=GAMMA, seed=0)
    near, far = (model.disagreement(torch.zeros(1, 1), torch.full((1, 1, 1), a)).item() for a in (0.0, 50.0))
    assert near <= game.limit < far


def test_policies_with_memory_play_as_they_do_in_an_environment(logs):
    """One that goes right from its second step on, and so needs a step more."""

    class SecondStep(TensorDictModuleBase):
        in_keys = (OBSERVATION, "is_init", "steps")
        out_keys = (ACTION, ("next", "steps"))

        def forward(self, tensordict):
            count = tensordict.get("steps", None)
            begins = tensordict.get("is_init")
            count = torch.zeros_like(begins, dtype=torch.long) if count is None else count.masked_fill(begins, 0)
            agents = tensordict.get(OBSERVATION).shape[:-1]
            tensordict.set(ACTION, (count > 0).long().expand(agents))
            return tensordict.set(("next", "steps"), count + 1)

    value = compare_offline(SecondStep(), logs, by="model", gamma=GAMMA, modelling=QUICK).estimates["model"]["policy"]
    assert value.mean == pytest.approx(GAMMA**3, abs=0.05)  # left, and three times right


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "model", "horizon": "endless"}, "'model' plays whole episodes"),
        ({"by": "fqe", "modelling": QUICK}, "modelling= is read by 'model' alone"),
    ],
)
def test_what_cannot_be_asked_is_said_at_once(logs, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        compare_offline(always(1), logs, **options)


@pytest.mark.filterwarnings("ignore:.*repeat an earlier one")
def test_the_command_evaluates_by_models(tmp_path, capsys, logs):
    logs.save(tmp_path / "logs")
    save_policy(tmp_path / "policy.pt", make_actor(logs.spec, hidden=(8,)))
    arguments = [str(tmp_path / "policy.pt"), "--dataset", str(tmp_path / "logs"), "--by", "model", "--steps", "3"]
    assert command.main([*arguments, "--resamples", "2"]) == 0
    assert "The learned models:" in capsys.readouterr().out
    assert command.main([*arguments, "--decomposition", "vdn"]) == 1
    assert "--decomposition is read by fqe and dr alone" in capsys.readouterr().err


def same_observation(lengths, *, limited, seed=0):
    """Episodes of these lengths in which nothing changes; every step earns 1."""
    ends = torch.tensor([step == length - 1 for length in lengths for step in range(length)])
    limits = torch.tensor([each for each, length in zip(limited, lengths) for _ in range(length)]) & ends
    rows = len(ends)
    return from_arrays(
        observations=torch.ones(rows, 2, 1),
        actions=torch.randint(2, (rows, 2), generator=torch.Generator().manual_seed(seed)),
        rewards=torch.ones(rows),
        terminals=ends & ~limits,
        truncations=limits,
        n_actions=2,
    )


def test_time_limits_end_imagined_episodes_where_they_ended_the_recorded_ones():
    logs = same_observation([2, 10] * 20, limited=[True] * 40)
    found = compare_offline(always(1), logs, by="model", gamma=GAMMA, modelling=QUICK).estimates["model"]["policy"]
    torch.testing.assert_close(found.gains, torch.zeros(2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_limits_behind_the_end_of_a_task_are_drawn_as_the_data_has_them():
    logs = same_observation([1, 2, 2, 3], limited=[False, True, False, True])
    rows = evaluation_rows(logs, horizon="episode", gamma=GAMMA, how="mean")
    torch.testing.assert_close(rows.limit_chances(), torch.tensor([0, 1 / 3, 1]))
    episodes = torch.arange(4)
    model = LearnedModel(logs.data, rows, episodes.expand(2, -1), QUICK, seed=0, progress=False)
    game = ImaginedGame(model, logs.data, rows, episodes, gamma=GAMMA, seed=0)
    cut = torch.stack([game._are_cut(episodes.expand(3000, -1), time) for time in range(3)]).double().mean(1)
    expected = torch.tensor([[0, 0, 0, 0], [1 / 3, 1, 1 / 3, 0], [1, 1, 1, 1]]).double()
    torch.testing.assert_close(cut, expected, atol=0.05, rtol=0)


def test_what_logged_episodes_earned_from_a_step_on_is_of_that_step_where_there_are_a_hundred():
    for count, lowest in ((100, [6, 5, 4, 3, 2, 1]), (25, [3, 3, 2, 1, 1, 1])):  # of 25, the four nearest steps
        logs = same_observation([6] * count, limited=[True] * count)
        rows = evaluation_rows(logs, horizon="episode", gamma=1.0, how="mean")
        episodes = torch.arange(count)
        model = LearnedModel(logs.data, rows, episodes.expand(2, -1), QUICK, seed=0, progress=False)
        remaining = ImaginedGame(model, logs.data, rows, episodes, gamma=1.0, seed=0)._remaining
        torch.testing.assert_close(remaining[:, 0], torch.tensor(lowest).float())


def dying(of_dead=0):
    """The second agent dies after two of five steps, and is logged with one action from then on; living ones earn."""
    count, steps = 60, 5
    g = torch.Generator().manual_seed(0)
    alive = torch.ones(count, steps, 2, dtype=torch.bool)
    alive[:, 2:, 1] = False
    actions = torch.randint(2, (count, steps, 2), generator=g) * alive
    time = torch.arange(steps + 1).float().reshape(1, -1, 1, 1).expand(count, -1, 2, 1)
    ends = torch.zeros(count, steps, dtype=torch.bool)
    ends[:, -1] = True
    return from_arrays(
        observations=time[:, :-1].flatten(0, 1),
        next_observations=time[:, 1:].flatten(0, 1),
        actions=actions.masked_fill(~alive, of_dead).flatten(0, 1),
        rewards=actions.double().mean(-1).flatten(),
        terminals=torch.zeros(count * steps, dtype=torch.bool),
        truncations=ends.flatten(),
        agent_mask=alive.flatten(0, 1),
        n_actions=2,
    )


def test_what_dead_agents_would_do_changes_nothing():
    logs = dying()
    value = 1 + GAMMA + (GAMMA**2 + GAMMA**3 + GAMMA**4) / 2
    fitting = FittedQSettings(steps=2, resamples=2, hidden=(8,))
    options = {"gamma": GAMMA, "modelling": QUICK, "fitting": fitting}
    found = compare_offline(always(1), logs, by=("model", "fqe"), **options).estimates
    assert found["model"]["policy"].facts["imagined"] == pytest.approx(value, abs=0.1)

    def idle(tensordict):
        alive = tensordict.get(AGENT_MASK)
        return tensordict.set(ACTION, alive.long())

    same = compare_offline(idle, logs, by=("model", "fqe"), **options).estimates
    for method in found:
        assert torch.equal(same[method]["policy"].values, found[method]["policy"].values)
    assert found["fqe"]["policy"].facts["unsupported"] == same["fqe"]["policy"].facts["unsupported"]


def test_logged_actions_of_dead_agents_change_nothing():
    logs = [dying(), dying(of_dead=1)]
    assert not torch.equal(*(each.data.get(ACTION) for each in logs))
    rows = [evaluation_rows(each, horizon="episode", gamma=GAMMA, how="mean") for each in logs]
    for key in (ACTION, next_key(ACTION)):
        assert torch.equal(*(each.data.get(key) for each in rows))
    fitting = FittedQSettings(steps=2, resamples=2, hidden=(8,))
    found = [compare_offline(always(1), each, by="fqe", gamma=GAMMA, fitting=fitting) for each in logs]
    assert found[0].calibration == found[1].calibration
    assert torch.equal(*(each.estimates["fqe"]["policy"].values for each in found))


def test_a_flag_of_few_rows_is_a_column_of_its_own():
    flag, value = torch.zeros(20000, 1, 1), torch.randn(20000, 1, 1, generator=torch.Generator().manual_seed(0))
    flag[17] = 1.0
    observation = torch.cat([value, 2 * value + 1e4, flag, torch.full_like(flag, 7)], -1)
    rows = TensorDict({}, [20000])
    rows.set(OBSERVATION, observation).set(next_key(OBSERVATION), observation)
    columns = StateColumns(rows)
    assert columns.kept == [0, 2]
    torch.testing.assert_close(columns.states(columns.of(rows)).get(OBSERVATION), observation, atol=2e-3, rtol=0)


def test_wide_states_are_asked_about_in_parts(monkeypatch, logs):
    rows = evaluation_rows(logs, horizon="episode", gamma=GAMMA, how="mean")
    drawn, settings = torch.arange(logs.n_episodes).expand(2, -1), LearnedModelSettings(steps=3, resamples=2)

    def distances():
        model = LearnedModel(logs.data, rows, drawn, settings, seed=0, progress=False)
        return model.disagreement(model.columns.of(logs.data), rows.data.get(ACTION))

    whole = distances()
    monkeypatch.setattr(learned_model, "_AT_ONCE", 2000)
    torch.testing.assert_close(distances(), whole)


def test_an_action_that_is_no_number_is_not_called_a_misfit():
    logs = from_arrays(
        observations=torch.ones(16, 2, 1),
        actions=torch.rand(16, 2, 1),
        rewards=torch.ones(16),
        terminals=torch.arange(16) % 2 == 1,
    )
    broken = TensorDictModule(lambda o: o * torch.nan, in_keys=[OBSERVATION], out_keys=[ACTION])
    with pytest.raises(NonFiniteActionError, match=r"^mine: The policy's action of agent 0"):
        compare_offline({"mine": broken}, logs, by="model", modelling=QUICK)


def test_one_model_has_none_to_disagree_with():
    with pytest.raises(ValueError, match="resamples must be at least 2"):
        LearnedModelSettings(resamples=1)


def test_actions_that_logged_states_forbid_are_refused_by_name_before_models_are_learned(monkeypatch):
    ends = torch.arange(20) % 2 == 1
    mask = torch.ones(20, 2, 2, dtype=torch.bool)
    mask[ends, 1, 1] = False
    logs = from_arrays(
        observations=torch.ones(20, 2, 1),
        actions=torch.zeros(20, 2, dtype=torch.int64),
        rewards=torch.ones(20),
        terminals=ends,
        action_mask=mask,
        n_actions=2,
    )
    monkeypatch.setattr(LearnedModel, "__init__", lambda *_, **__: pytest.fail("a model was learned"))
    with pytest.raises(IllegalActionError, match=r"^mine: The policy proposed 10 illegal actions out of 40"):
        compare_offline({"mine": always(1)}, logs, by="model", modelling=QUICK)


def test_a_state_as_strange_as_the_strangest_logged_one_is_known():
    """All episodes are alike, so that play differs from the logged rows by rounding alone."""
    time = torch.arange(6 * 40 + 1).remainder(6).float()
    seen = torch.sin(time.reshape(-1, 1, 1) * torch.arange(1, 7).reshape(1, 2, 3))
    ends = time[:-1] == 5
    logs = from_arrays(
        observations=seen[:-1],
        next_observations=torch.sin((time[:-1] + 1).reshape(-1, 1, 1) * torch.arange(1, 7).reshape(1, 2, 3)),
        actions=torch.ones(240, 2, dtype=torch.int64),
        rewards=torch.ones(240),
        terminals=torch.zeros(240, dtype=torch.bool),
        truncations=ends,
        n_actions=2,
    )
    rows = evaluation_rows(logs, horizon="episode", gamma=GAMMA, how="mean")
    episodes = torch.arange(40)
    model = LearnedModel(logs.data, rows, episodes.expand(2, -1), QUICK, seed=0, progress=False)
    game = ImaginedGame(model, logs.data, rows, episodes, gamma=GAMMA, seed=0)
    numbers, actions = model.columns.of(logs.data), rows.data.get(ACTION)
    for count in (1, 2, 3, 5, 7, 240):
        found = torch.cat([model.disagreement(*part) for part in zip(numbers.split(count), actions.split(count))])
        assert (found <= game.limit).all()
