"""Agents that die before their team, and rows that do not count, in the targets of every value-learning rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from objective_toys import CONTINUOUS, DISCRETE, Case, make_batch
from pettingzoo import ParallelEnv
from selection import thorough
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import make_loss
from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.core.layout import AGENT_MASK, MASK, next_key
from torchrl_marl_offline.data import OfflineDataset, collect, from_arrays
from torchrl_marl_offline.envs import from_pettingzoo
from torchrl_marl_offline.modules import make_actor, make_critic, make_value
from torchrl_marl_offline.objectives import IQL, SARSA, TD, GlobalToLocal, LocalIQL, OfflineMARLLoss, SARSALoss
from torchrl_marl_offline.objectives.batch import Batch
from torchrl_marl_offline.objectives.targets import value_target
from torchrl_marl_offline.training import PopulationBuffer, PopulationLearner, Trainer

STEPS, DEATH = 6, 3
"""The first agent lives for 3 of 6 steps; every living agent earns 1 a step."""


def seen_at(time) -> np.ndarray:
    """Return what both agents see: another unit vector for each agent and time."""
    return np.eye(2 * STEPS + 2, dtype=np.float32)[np.stack([time, 2 * STEPS + 1 - time], -1)]


class Mortal(ParallelEnv):
    metadata = {"name": "mortal"}  # noqa: RUF012
    possible_agents = ["a", "b"]  # noqa: RUF012

    def observation_space(self, agent):
        return Box(0, 1, (2 * STEPS + 2,))

    def action_space(self, agent):
        return Discrete(2)

    def _look(self):
        return {name: seen_at(self.time)["ab".index(name)] for name in self.agents}

    def reset(self, seed=None, options=None):
        self.time, self.agents = 0, ["a", "b"]
        return self._look(), {name: {} for name in self.agents}

    def step(self, actions):
        self.time += 1
        ended = {name: self.time >= (DEATH if name == "a" else STEPS) for name in self.agents}
        result = self._look(), dict.fromkeys(self.agents, 1.0), ended, dict.fromkeys(self.agents, False), {}
        self.agents = [name for name in self.agents if not ended[name]]
        return result


def from_an_environment() -> OfflineDataset:
    return collect(from_pettingzoo(Mortal(), seed=0, max_steps=10), episodes=4, seed=0)


def as_arrays(*, mask: bool) -> OfflineDataset:
    time = np.tile(np.arange(STEPS), 4)
    living = np.stack([time < DEATH, time < STEPS], -1)
    observation = seen_at(time) * living[..., None]
    return from_arrays(
        observations=observation,
        actions=np.random.default_rng(0).integers(0, 2, (len(time), 2)),
        rewards=living.astype(np.float32),
        terminals=np.stack([time == DEATH - 1, time == STEPS - 1], -1),
        agent_mask=living if mask else None,
        n_actions=2,
    )


SOURCES = {
    "arrays with a mask": lambda: as_arrays(mask=True),
    "arrays with flags alone": lambda: as_arrays(mask=False),
    "an environment": from_an_environment,
}


@pytest.mark.fault("3.3")
@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (SARSA(), "arrays with a mask"),
        (SARSA(), "arrays with flags alone"),
        *map(thorough, [(SARSA(), "an environment"), (TD(), "an environment")]),
        (IQL(0.7), "an environment"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_the_last_living_step_of_an_agent_is_worth_its_reward(rule, source):
    dataset = SOURCES[source]()
    torch.manual_seed(0)
    options = {"decomposition": "independent", "hidden": (16,)}
    value = make_value(dataset.spec, **options) if rule.needs_value else None
    loss = OfflineMARLLoss(
        make_actor(dataset.spec, hidden=()) if rule.needs_actor else None,
        make_critic(dataset.spec, **options),
        value,
        value_learning=rule,
        extraction=None,
    ).make_value_estimator(gamma=0.99)
    updater, optimizer = SoftUpdate(loss, tau=0.2), torch.optim.Adam(loss.parameters(), 0.01)
    for _ in range(400 if source == "an environment" else 2):
        optimizer.zero_grad()
        output = loss(dataset.data)
        sum(output[key] for key in output.keys() if key.startswith("loss")).backward()  # noqa: SIM118
        optimizer.step()
        updater.step()
    rows = dataset.data[AGENT_MASK][:, 0] & ~dataset.data[next_key(AGENT_MASK)][:, 0]
    assert rows.sum() == 4
    assert target_of(loss, dataset.data)[rows, 0].tolist() == [1.0] * 4
    if source == "an environment":
        assert_close(loss.qvalue(dataset.data[rows])[:, 0], torch.ones(4), atol=0.1, rtol=0)


RULES = ["td3_bc", "cql", "omar", "icq", "omac", "omiga", "bcq", "mac_flow"]
RULES += ["omsd", "TDLoss", "SARSALoss", "IQLLoss"]


@pytest.mark.fault("3.3")
@pytest.mark.parametrize("preset", RULES)
def test_no_rule_bootstraps_an_independent_agent_that_is_dead_in_the_next_state(preset):
    case = Case("independent", preset=preset, discrete=preset == "cql")
    batch = make_batch(case.spec, 5)
    for flag in ("terminated", "done"):
        batch["next", flag][:] = False
    batch[AGENT_MASK] = torch.ones(5, 3, dtype=torch.bool)
    batch[next_key(AGENT_MASK)] = torch.ones(5, 3, dtype=torch.bool)
    batch[next_key(AGENT_MASK)][1, 2] = False
    loss = case.build()
    target = target_of(loss, batch)
    reward = batch["next", "agents", "reward"].squeeze(-1)
    assert (target == reward).nonzero().tolist() == [[1, 2]]
    if preset == "icq":  # its weights are shared out among what bootstraps: 14 of the 15
        weights = (target - reward) / 0.9
        critic = loss.team.action_value(
            batch["next"], batch["next", "agents", "action"], target=True
        ).total_min.squeeze(-1)
        assert_close((weights / critic)[batch[next_key(AGENT_MASK)]].mean(), torch.tensor(1.0))


@pytest.mark.fault("3.3")
@pytest.mark.parametrize("decomposition", ["vdn", "mixer", "centralized"])
def test_a_team_value_goes_on_whoever_died(decomposition):
    case = Case(decomposition, "sarsa", "awr")
    batch = make_batch(case.spec, 5)
    for flag in ("terminated", "done"):
        batch["next", flag][:] = False
    batch[AGENT_MASK] = batch[next_key(AGENT_MASK)] = torch.ones(5, 3, dtype=torch.bool)
    batch[next_key(AGENT_MASK)] = torch.tensor([True, False, True]).repeat(5, 1)
    loss = case.build()
    target = target_of(loss, batch).unsqueeze(-1)
    assert (target != batch["next", "agents", "reward"].mean(-2, keepdim=True)).all()


@pytest.mark.fault("3.3")
@pytest.mark.parametrize("rule", [LocalIQL(0.8), GlobalToLocal(2.0)], ids=lambda rule: type(rule).__name__)
def test_a_mixed_value_of_the_dead_is_trained_where_it_is_mixed(rule):
    """The team's next value has a share of each dead agent's; a rule that fits local values must fit that, too."""
    case = Case("vdn")
    loss = OfflineMARLLoss(None, case.critic(), case.value(), value_learning=rule, extraction=None)
    SoftUpdate(loss, tau=0.5)
    batch = make_batch(case.spec, 6)
    batch[AGENT_MASK] = batch[next_key(AGENT_MASK)] = torch.tensor([True, True, False]).repeat(6, 1)
    with_dead = loss(batch)["loss_value"]
    clean = loss.batch(batch).tensordict
    del clean["agents", "mask"], clean["next", "agents", "mask"]
    assert_close(with_dead, loss(clean)["loss_value"])


def series(kind: str = "truncations", steps: int = 10, count: int = 2) -> OfflineDataset:
    """Episodes of ``steps`` rows of reward 1, cut off without their successors."""
    generator = torch.Generator().manual_seed(0)
    ends = (torch.arange(steps * count) + 1) % steps == 0
    return from_arrays(
        observations=torch.randn(steps * count, 2, 3, generator=generator),
        actions=torch.rand(steps * count, 2, 1, generator=generator),
        rewards=torch.ones(steps * count),
        **({"terminals": ends} if kind == "terminals" else {"terminals": ends & False, "truncations": ends}),
    )


ESTIMATORS = {"td1": ({}, 1.0), "tdlambda": ({"lmbda": 0.9}, 0.9)}


def sarsa(dataset: OfflineDataset, estimator: str = "td0", *, decomposition: str = "mixer", **options) -> SARSALoss:
    torch.manual_seed(0)
    loss = SARSALoss(make_critic(dataset.spec, decomposition=decomposition, hidden=(4,)))
    SoftUpdate(loss, tau=0.1)
    return loss.make_value_estimator(estimator, gamma=0.9, **options)


def target_of(loss: OfflineMARLLoss, batch: TensorDict) -> torch.Tensor:
    rows, rule = loss.batch(batch), loss.value_learning
    given = {"how": loss.team_reward, "has_target": rule.row_mask(rows)}
    return value_target(rows, rule, loss.value_estimator, **given).squeeze(-1)


@pytest.mark.fault("3.5")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [(20,), (2, 10)])
def test_a_return_stops_before_a_row_that_does_not_count(estimator, shape):
    dataset, (options, lmbda) = series(), ESTIMATORS[estimator]
    assert dataset.data[MASK].reshape(2, 10).tolist() == [[True] * 9 + [False]] * 2
    batch = dataset.data.reshape(*shape)
    one_step = target_of(sarsa(dataset), batch).reshape(2, 10)
    found = target_of(sarsa(dataset, estimator, **options), batch).reshape(2, 10)
    expected, carried = torch.empty(2, 9), torch.zeros(2)
    for t in reversed(range(9)):  # G = r + gamma ((1 - lambda) V + lambda G'), and V alone at the last row that counts
        carried = one_step[:, t] if t == 8 else (1 - lmbda) * one_step[:, t] + lmbda * (1 + 0.9 * carried)
        expected[:, t] = carried
    assert_close(found[:, :9], expected)


@pytest.mark.fault("3.5")
def test_a_return_by_hand():
    """Rewards 1, 2, 4, 8, discount 1/2, next values 10 everywhere; the third row does not count."""
    loss = sarsa(series("terminals"), "td1")
    loss.make_value_estimator("td1", gamma=0.5)
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1).expand(4, 2, 1)
    batch = series("terminals").data[:4].clone()
    batch["next", "agents", "reward"] = reward
    batch[MASK][2] = False
    loss.value_learning = type("Ten", (SARSA,), {"next_value": lambda self, following: torch.full((4, 1, 1), 10.0)})()
    # row 1: 2 + 5 = 7, row 0: 1 + 7 / 2 = 4.5; row 3 is the last of the batch: 8 + 5
    assert target_of(loss, batch)[[0, 1, 3], 0].tolist() == [4.5, 7.0, 13.0]
    batch[MASK][2] = True  # 13, 4 + 6.5 = 10.5, 2 + 5.25 = 7.25, 1 + 3.625
    assert target_of(loss, batch)[:, 0].tolist() == [4.625, 7.25, 10.5, 13.0]
    batch["collector", "has_next_action"][2] = False  # it counts, but has no target
    assert target_of(loss, batch)[[0, 1, 3], 0].tolist() == [4.5, 7.0, 13.0]


@pytest.mark.fault("3.5")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_return_of_an_agent_stops_at_its_death(estimator):
    options, lmbda = ESTIMATORS[estimator]
    dataset = as_arrays(mask=True)
    loss = sarsa(dataset, estimator, decomposition="independent", **options)
    found = target_of(loss, dataset.data)[:STEPS]
    assert found[DEATH - 1, 0] == found[STEPS - 1, 1] == 1.0
    if lmbda == 1.0:
        expected = torch.tensor([1 + 0.9 + 0.81, 1.9, 1.0])
        assert_close(found[:DEATH, 0], expected)
    team = target_of(sarsa(dataset, estimator, **options), dataset.data)[:STEPS, 0]
    assert team[DEATH - 1] > 0.5  # the team goes on: half a reward a step, and more to come


@pytest.mark.fault("3.4")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("keys", [None, "of the loss"])
def test_rows_that_are_no_series_are_refused(estimator, count, keys):
    dataset = series("terminals", steps=30 // count, count=count)
    loss = sarsa(dataset, estimator, **ESTIMATORS[estimator][0])
    keys = None if keys is None else loss.in_keys
    message = r"carries returns from row to row, but rows \d+ and \d+ of the batch are not .* slice_len="
    plain = dataset.replay_buffer(batch_size=24, seed=0, keys=keys).sample()
    for batch in (plain, plain.reshape(4, 6)):
        with pytest.raises(ValueError, match=message):
            loss(batch)
    sarsa(dataset)(plain)  # TD(0) takes any rows
    for shape in ((24,), (6, 4)):
        slices = dataset.replay_buffer(batch_size=24, slice_len=4, seed=0, keys=keys).sample().reshape(shape)
        fresh = sarsa(dataset, estimator, **ESTIMATORS[estimator][0])
        assert fresh(slices)["loss_qvalue"].isfinite()


@pytest.mark.fault("3.4")
def test_torchrl_slices_are_series():
    dataset = series(count=3)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(30),
        sampler=SliceSampler(slice_len=5, traj_key=("collector", "traj_ids")),
        batch_size=20,
    )
    buffer.extend(dataset.data)
    assert sarsa(dataset, "td1")(buffer.sample())["loss_qvalue"].isfinite()


@pytest.mark.fault("3.4")
def test_a_trainer_refuses_before_it_writes(tmp_path):
    dataset = series("terminals")
    losses = [sarsa(dataset, "tdlambda") for _ in range(2)]
    plain, sliced = (dataset.replay_buffer(batch_size=8, slice_len=slice_len) for slice_len in (None, 4))
    with pytest.raises(ValueError, match=r"TDLambdaEstimator .* slice_len="):
        Trainer(losses[0], plain, steps=2, output=tmp_path / "run", progress=False)
    many = PopulationBuffer(dataset.data, batch_size=8, seeds=[0, 1])
    with pytest.raises(ValueError, match=r"TDLambdaEstimator .* slice_len="):
        Trainer(PopulationLearner(dict(zip("ab", losses))), many, steps=2, output=tmp_path / "many", progress=False)
    assert not list(tmp_path.iterdir())
    assert Trainer(losses[0], sliced, steps=2, progress=False).train().step == 2
    many = PopulationBuffer(dataset.data, batch_size=8, seeds=[0, 1], slice_len=4)
    assert Trainer(PopulationLearner({"a": losses[0], "b": losses[1]}), many, steps=2, progress=False).train().step == 2


def test_masks_of_discrete_actions_do_not_stand_in_the_way_of_slices():
    batch = make_batch(DISCRETE, 4)
    assert Case("vdn", "sarsa", "awr", discrete=True).build()(batch)["loss_qvalue"].isfinite()


SETTINGS = {"b3c": {"max_next_value": 50.0}, "bcq": {"behaviour_hidden": (8,)}}
DEPENDENT = [
    (name, discrete, decomposition)
    for name in sorted({*ALGORITHMS} - {"cloning"})
    for discrete in (False, True)
    for decomposition in ([None, "mixer", "independent"] if name in ("recipe", "brac") else [None])
]


def loss_of(name: str, spec, decomposition: str | None, **settings) -> OfflineMARLLoss:
    """Return an algorithm's loss with its targets; skips the test where the algorithm has none for such actions."""
    settings |= {"hidden": (8,)} | SETTINGS.get(name, {})
    settings |= {} if decomposition is None else {"decomposition": decomposition}
    torch.manual_seed(0)
    try:
        loss = make_loss(spec, algorithm=name, **settings)
    except ValueError as refused:
        pytest.skip(f"of one kind of actions alone: {refused}")
    if ALGORITHMS[name].has_critic:
        SoftUpdate(loss, tau=0.1)
    return loss


@pytest.mark.parametrize(("name", "discrete", "decomposition"), DEPENDENT, ids=str)
def test_a_policy_by_which_nobody_acts_changes_nothing(name: str, discrete: bool, decomposition: str | None) -> None:
    """Neither a target nor an actor's loss asks what an agent that is not there would do."""
    spec = DISCRETE if discrete else CONTINUOUS
    loss = loss_of(name, spec, decomposition, share_params=False)
    batch = make_batch(spec, 8)
    for half in (batch, batch["next"]):
        half[AGENT_MASK] = torch.ones(8, spec.n_agents, dtype=torch.bool)
        half[AGENT_MASK][:, 1] = False

    def found() -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        return dict(loss(batch.clone()).items())

    before = found()
    sum(value for key, value in before.items() if key.startswith("loss_")).backward()
    policies = {key: each for key, each in loss.named_parameters() if "actor" in key and each.grad is not None}
    assert policies
    stacked = [each for each in policies.values() if each.shape[0] == spec.n_agents]
    assert stacked and all(not each.grad[1].any() for each in stacked)
    assert any(each.grad[0].any() for each in stacked)
    with torch.no_grad():
        for key, each in [*loss.named_parameters(), *loss.named_buffers()]:
            if "actor" in key and each.ndim and each.shape[0] == spec.n_agents:
                each[1] += torch.randn_like(each[1])
    for key, value in found().items():
        assert_close(value, before[key], msg=key)


@pytest.mark.parametrize(("name", "discrete", "decomposition"), [*DEPENDENT, ("cloning", True, None)], ids=str)
def test_what_a_recorder_wrote_of_the_dead_changes_nothing(
    name: str, discrete: bool, decomposition: str | None
) -> None:
    """Neither their actions nor what was legal for them, of this state and the next, nor what they saw or earned."""
    spec = DISCRETE if discrete else CONTINUOUS
    loss = loss_of(name, spec, decomposition)
    alive = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) < 0.6

    def found(wrong: int) -> list[torch.Tensor]:
        rows = make_batch(spec, 8)
        rows["next", "agents", "reward"][~alive] = float(wrong)
        for half in (rows, rows["next"]):
            half[AGENT_MASK] = alive.clone()
            half["agents", "observation"][~alive] = float(wrong)
            half["agents", "action"][~alive] = wrong
            if discrete:
                half["agents", "action_mask"][~alive] = torch.arange(spec.action_size) < wrong
        loss.zero_grad()
        torch.manual_seed(1)
        values = {key: value for key, value in loss(rows).items() if key.startswith("loss_")}
        sum(values.values()).backward()
        return [*values.values(), *(each.grad for each in loss.parameters() if each.grad is not None)]

    for first, other in zip(found(0), found(3), strict=True):
        assert_close(first, other)


def with_the_second_agent_dead(spec) -> TensorDict:
    batch = make_batch(spec, 4)
    batch[AGENT_MASK] = torch.tensor([True, False, True]).expand(4, 3)
    return batch


def test_what_an_agent_does_that_is_not_there() -> None:
    """Nothing: 0, of discrete actions as an index and as a code, whatever was recorded and whatever is legal."""
    torch.manual_seed(0)
    rows = with_the_second_agent_dead(CONTINUOUS)
    batch = make_loss(CONTINUOUS, algorithm="brac", hidden=(4,)).batch(rows)
    action = torch.rand(4, 5, 3, CONTINUOUS.action_size) + 1
    found = batch.of_living(action, 1)
    assert not found[:, :, 1].any() and torch.equal(found[:, :, ::2], action[:, :, ::2])

    rows = with_the_second_agent_dead(DISCRETE)
    rows["agents", "action_mask"][:, 1] = False
    rows["agents", "action_mask"][:, 1, 2:] = True
    rows["agents", "action"][:, 1] = 3
    loss = make_loss(DISCRETE, algorithm="brac", hidden=(4,))
    index = torch.ones(4, 3, dtype=torch.int64)
    code = torch.nn.functional.one_hot(index, DISCRETE.action_size).float()
    for known in (True, False):
        batch = loss.batch(rows)
        if not known:
            assert batch.policy is not None  # which says that the task is discrete
            batch = Batch(batch.networks, batch.tensordict.exclude(("agents", "action")))
            assert batch.policy is not None
        want = torch.tensor([1, 0, 1]).expand(4, 3)
        assert torch.equal(batch.of_living(index), want)
        assert torch.equal(batch.of_living(code).argmax(-1), want)
        assert torch.equal(batch.of_living(code.unsqueeze(1).expand(4, 2, 3, -1), 1).argmax(-1)[:, 1], want)
