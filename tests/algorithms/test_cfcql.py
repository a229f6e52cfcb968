"""CFCQL and SPaCQL: penalties and targets of joint actions that are partly recorded, by plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from memory_toys import make_sequences, memory_options
from objective_toys import CONTINUOUS, DISCRETE, Case, make_batch
from objective_toys import gradients as gradients_of
from population_toys import make_data
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import OfflineMARLLoss, make_loss
from torchrl_marl_offline.core.layout import AGENT_MASK, next_key
from torchrl_marl_offline.core.noise import given_noise
from torchrl_marl_offline.modules import make_behaviour_policy, make_critic, make_vae
from torchrl_marl_offline.objectives import CFCQL, CQL, TD, ClonedBehaviour, PolicyGradient, VAELearning
from torchrl_marl_offline.objectives.batch import Following
from torchrl_marl_offline.objectives.counterfactual import _deviation
from torchrl_marl_offline.objectives.targets import value_target
from torchrl_marl_offline.training import PopulationBuffer

TEAMS = ["centralized", "vdn", "mixer"]


def loss_of(case: Case, rule: TD, *, heads: int = 2, **options) -> OfflineMARLLoss:
    torch.manual_seed(1)
    loss = OfflineMARLLoss(
        case.actor(), case.critic(num_heads=heads), value_learning=rule, extraction=PolicyGradient(), **options
    ).make_value_estimator(gamma=0.9)
    SoftUpdate(loss, tau=0.5)
    return loss


def total(loss: OfflineMARLLoss, rows, action: torch.Tensor, *, target: bool = False) -> torch.Tensor:
    """The team's value of a joint action, ``[B, H]``."""
    return loss.team.action_value(rows, action, target=target).total.squeeze(-2)


def with_agents(action: torch.Tensor, other: torch.Tensor, agents) -> torch.Tensor:
    """A joint action with those of some agents from another."""
    found = action.clone()
    for agent in agents:
        found[:, agent] = other[:, agent]
    return found


@pytest.mark.parametrize("decomposition", TEAMS)
def test_the_penalty_replaces_one_agents_action_at_a_time(decomposition: str) -> None:
    case = Case(decomposition, discrete=True)
    loss, batch = loss_of(case, CFCQL(min_q_weight=2.0)), make_batch(DISCRETE, 6)
    recorded = batch["agents", "action"]
    expected = torch.zeros(6)
    for row in range(6):
        for head in range(2):
            held = 0.0
            for agent in range(3):
                values = []
                for action in range(4):
                    if batch["agents", "action_mask"][row, agent, action]:
                        joint = recorded.clone()
                        joint[row, agent] = action
                        values.append(total(loss, batch, joint)[row, head])
                held += torch.stack(values).logsumexp(0) / 3
            expected[row] += 2.0 * (held - total(loss, batch, recorded)[row, head]).detach()
    found = loss.value_learning.critic_penalty(loss.batch(batch))
    assert_close(found, expected.unsqueeze(-1))


@pytest.mark.parametrize("decomposition", TEAMS)
def test_the_penalty_of_continuous_actions(decomposition: str) -> None:
    case = Case(decomposition)
    rule = CFCQL(num_random=2, num_policy=1)
    loss, batch = loss_of(case, rule), make_batch(CONTINUOUS, 5)
    noise = [torch.rand(5, 2, 3, 2), torch.randn(5, 1, 3, 2)]
    with given_noise(noise):
        found = rule.critic_penalty(loss.batch(batch))
    with given_noise(noise):
        actions, log_prob = rule._sampled(loss.batch(batch).policy)
    assert_close(actions[:, :2], 2 * noise[0] - 1)
    recorded = batch["agents", "action"]
    held = torch.zeros(5, 2)
    for agent in range(3):
        values = [
            total(loss, batch, with_agents(recorded, actions[:, sample], [agent])) - log_prob[:, sample, agent, None]
            for sample in range(3)
        ]
        held += (torch.stack(values).logsumexp(0) - math.log(3)) / 3
    assert_close(found, (held - total(loss, batch, recorded)).sum(-1, keepdim=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("discrete", [False, True])
def test_agents_far_from_the_data_are_held_down_less(discrete: bool) -> None:
    case = Case("centralized", discrete=discrete)
    torch.manual_seed(3)
    model = {"behaviour": make_behaviour_policy(case.spec, hidden=(8,)), "behaviour_learning": ClonedBehaviour()}
    loss, batch = loss_of(case, CFCQL(deviation_weight=0.7), **model), make_batch(case.spec, 6)
    rows = loss.batch(batch)
    model = rows.behaviour()
    if discrete:
        own = rows.policy.probs
        there = model["agents", "behaviour_logits"].softmax(-1)
        far = torch.where(own > 0, own * (own / there).log(), 0.0).sum(-1)
    else:
        mode = rows.policy.mode
        density = torch.distributions.Normal(model["agents", "behaviour_loc"], model["agents", "behaviour_scale"])
        far = rows.policy.log_prob(mode) - density.log_prob(mode).sum(-1)
    expected = (-0.7 * far).softmax(-1).detach()
    like = torch.zeros(6, 3, 2)
    assert_close(loss.value_learning._weights(rows, like), expected)
    assert far.std() > 1e-3
    loss.deviation_weight = 0.0
    assert_close(loss.value_learning._weights(rows, like), torch.full((6, 3), 1 / 3))
    reached = gradients_of(loss, batch, "loss_behaviour")
    assert all("behaviour" in name for name in reached) and any(grad.abs().sum() > 0 for grad in reached.values())
    assert not any("behaviour" in name for name in gradients_of(loss, batch, "loss_qvalue"))


@pytest.mark.parametrize("kind", ["buffer", "population"])
@pytest.mark.parametrize("rule", [CQL(), CFCQL(), CFCQL(replaced="one")], ids=str)
def test_illegal_actions_do_not_count_though_the_policy_reads_no_mask(rule: CQL, kind: str) -> None:
    """And so the loss's keys do not name it: a buffer of these keys has it all the same."""
    data = make_data(discrete=True)
    spec = data.spec
    scores = TensorDictModule(nn.Linear(3, 3), in_keys=[("agents", "observation")], out_keys=[("agents", "logits")])
    options = {"in_keys": {"logits": ("agents", "logits")}, "out_keys": [("agents", "action")]}
    actor = ProbabilisticActor(scores, distribution_class=torch.distributions.Categorical, **options)
    critic = make_critic(spec, decomposition="vdn", hidden=(8,))
    loss = OfflineMARLLoss(actor, critic, value_learning=rule, extraction=PolicyGradient())
    SoftUpdate(loss, tau=0.5)
    assert ("agents", "action_mask") not in loss.in_keys and not data.data["agents", "action_mask"].all()
    found = []
    for keys in (loss.in_keys, None):
        if kind == "buffer":
            batch = data.replay_buffer(batch_size=16, seed=0, keys=keys).sample()
        else:
            batch = PopulationBuffer(data.data, batch_size=16, seeds=[0], keys=keys).sample()[0]
        torch.manual_seed(0)
        found.append(loss(batch)["critic_penalty"])
    assert_close(*found)


def test_agents_that_are_not_there_count_nothing() -> None:
    loss, batch = loss_of(Case("centralized", discrete=True), CFCQL()), make_batch(DISCRETE, 4)
    alive = torch.ones(4, 3, dtype=torch.bool)
    alive[1, 2] = alive[2, :2] = alive[3] = False
    batch[AGENT_MASK] = alive
    found = loss.value_learning._weights(loss.batch(batch), torch.zeros(4, 3, 2))
    third = [1 / 3] * 3
    assert_close(found, torch.tensor([third, [0.5, 0.5, 0.0], [0.0, 0.0, 1.0], third]))


@pytest.mark.parametrize("decomposition", TEAMS)
@pytest.mark.parametrize("discrete", [False, True])
def test_targets_with_one_agents_action_replaced(decomposition: str, discrete: bool) -> None:
    case = Case(decomposition, discrete=discrete)
    loss, batch = loss_of(case, TD(replaced="one"), heads=3), make_batch(case.spec, 6)
    following, rows = batch["next"], loss.batch(batch)
    alive = torch.ones(6, 3, dtype=torch.bool)
    alive[0, 1] = alive[1, :2] = False
    for dying in (False, True):
        if dying:
            batch[AGENT_MASK], batch[next_key(AGENT_MASK)] = torch.ones(6, 3, dtype=torch.bool), alive
            following, rows = batch["next"], loss.batch(batch)
        rule = loss.value_learning
        policy, recorded = loss.team.policy(following), following["agents", "action"]
        each = [total(loss, following, with_agents(recorded, policy.mode, [i]), target=True) for i in range(3)]
        weight = (alive if dying else torch.ones(6, 3)).float()
        weight = weight / weight.sum(-1, keepdim=True)
        expected = (torch.stack(each, 1) * weight.unsqueeze(-1)).sum(1).amin(-1)
        found = rule.next_value(Following(rows.networks, following))
        assert_close(found.reshape(6), expected)


@pytest.mark.parametrize("discrete", [False, True])
def test_targets_weigh_how_many_agents_are_replaced_by_how_certain_they_are(discrete: bool) -> None:
    case = Case("centralized", discrete=discrete)
    loss, batch = loss_of(case, TD(replaced="weighted"), heads=4), make_batch(case.spec, 5)
    following = batch["next"]
    policy, recorded = loss.team.policy(following), following["agents", "action"]
    places = torch.rand(5, 3)
    first = places.argsort(-1)  # agents in the order in which they are replaced
    values = []
    for count in (1, 2, 3):
        joint = recorded.clone()
        for row in range(5):
            for agent in first[row, :count]:
                joint[row, agent] = policy.mode[row, agent]
        values.append(total(loss, following, joint, target=True))
    values = torch.stack(values, 1)  # [B, m, H]
    spread = values.std(-1, keepdim=True)
    certain = 1 / (spread + 1e-3 * (1 + spread.mean(1, keepdim=True)))
    expected = ((certain * values).sum(1) / certain.sum(1)).amin(-1)
    rows = loss.batch(batch)
    with given_noise([places]):
        found = loss.value_learning.next_value(Following(rows.networks, following))
    assert_close(found.reshape(5), expected)


def test_weighed_targets_are_those_of_the_agents_that_are_there() -> None:
    """Of teams of two, one and no living agents among three: as many numbers of agents count, the dead replace none."""
    loss, batch = loss_of(Case("centralized"), TD(replaced="weighted"), heads=4), make_batch(CONTINUOUS, 4)
    alive = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    batch[AGENT_MASK], batch[next_key(AGENT_MASK)] = torch.ones(4, 3, dtype=torch.bool), alive
    rows, places = loss.batch(batch), torch.rand(4, 3)
    following = rows.tensordict["next"]
    with given_noise([places]):
        found = loss.value_learning.next_value(Following(rows.networks, following)).reshape(4)
    recorded, new = following["agents", "action"], loss.team.policy(following).mode
    expected = []
    for row in range(4):
        living = [agent for agent in places[row].argsort().tolist() if alive[row, agent]]
        joints = [with_agents(recorded, new, living[:count])[row] for count in range(1, len(living) + 1)]
        joints = joints or [recorded[row]]  # nobody's is replaced
        of_row = following[row : row + 1].expand(len(joints))
        values = total(loss, of_row, torch.stack(joints), target=True)  # [m, H]
        spread = values.std(-1, keepdim=True)
        certain = 1 / (spread + 1e-3 * (1 + spread.mean(0)))
        expected.append(((certain * values).sum(0) / certain.sum(0)).amin())
    assert_close(found, torch.stack(expected))


def test_rows_without_a_next_action_do_not_count() -> None:
    loss, batch = loss_of(Case("centralized"), TD(replaced="one")), make_batch(CONTINUOUS, 6)
    batch["next", "terminated"][:] = False
    batch["collector", "has_next_action"] = torch.tensor([True, True, False, True, True, False])
    before = loss(batch)["loss_qvalue"]
    batch["next", "agents", "reward"][2] = batch["next", "agents", "reward"][5] = 100.0
    assert_close(loss(batch)["loss_qvalue"], before)
    assert ("next", "agents", "action") in loss.in_keys
    assert ("next", "agents", "action") not in loss_of(Case("centralized"), TD()).in_keys


def test_what_independent_agents_do_not_have_is_refused() -> None:
    for rule in (TD(replaced="one"), CFCQL()):
        with pytest.raises(ValueError, match="asks here for the team's value of joint actions"):
            loss_of(Case("independent"), rule)
    with pytest.raises(ValueError, match="decomposition must be"):
        make_loss(CONTINUOUS, algorithm="cfcql", decomposition="independent")
    with pytest.raises(ValueError, match="model"):
        loss_of(Case("centralized"), CFCQL(deviation_weight=1.0))(make_batch(CONTINUOUS, 3))


def test_a_model_of_the_data_without_a_density_is_refused_when_the_loss_is_made() -> None:
    model = make_vae(CONTINUOUS, hidden=(8,))
    for rule, learning, named in (
        (CFCQL(deviation_weight=1.0), VAELearning(), "CFCQL"),
        (CFCQL(), ClonedBehaviour(), "ClonedBehaviour"),
    ):
        with pytest.raises(ValueError, match=f"{named} needs a model of each agent's action with a density"):
            loss_of(Case("centralized"), rule, behaviour=model, behaviour_learning=learning)
    loss_of(Case("centralized"), CFCQL(), behaviour=model, behaviour_learning=VAELearning())  # which does not ask it


def test_a_deterministic_policy_has_no_deviation() -> None:
    network = TensorDictModule(nn.Linear(4, 2), in_keys=[("agents", "observation")], out_keys=[("agents", "action")])
    case = Case("centralized")
    model = {"behaviour": make_behaviour_policy(CONTINUOUS, hidden=(8,)), "behaviour_learning": ClonedBehaviour()}
    given = {"extraction": PolicyGradient(), "action_spec": (-1.0, 1.0)}
    with pytest.raises(ValueError, match="CFCQL needs the log-probabilities of a stochastic policy"):
        OfflineMARLLoss(network, case.critic(), value_learning=CFCQL(deviation_weight=1.0), **model, **given)
    loss = OfflineMARLLoss(network, case.critic(), value_learning=CFCQL(), **given)  # which compares none
    SoftUpdate(loss, tau=0.5)
    assert loss(make_batch(CONTINUOUS, 4))["loss_qvalue"].isfinite()


def test_how_certain_one_head_is_nobody_knows() -> None:
    for given in ({"algorithm": "spacql"}, {"algorithm": "cfcql", "replaced": "weighted"}):
        with pytest.raises(ValueError, match="there is one; take num_heads=2"):
            make_loss(CONTINUOUS, num_heads=1, hidden=(8,), **given)
    with pytest.raises(ValueError, match="there is one; take num_heads=2"):
        loss_of(Case("centralized"), TD(replaced="weighted"), heads=1)(make_batch(CONTINUOUS, 3))


@pytest.mark.parametrize("memory", ["gru", "window:3"])
@pytest.mark.parametrize("replaced", ["one", "weighted"])
def test_targets_of_histories_are_those_of_each_slice_alone(memory: str, replaced: str) -> None:
    torch.manual_seed(0)
    options = {"decomposition": "vdn", "replaced": replaced, "hidden": (8,)} | memory_options(memory)
    loss = make_loss(DISCRETE, algorithm="cfcql", **options)
    SoftUpdate(loss, tau=0.5)
    batch, places = make_sequences(DISCRETE, 2, 5, dtype=torch.float32), torch.rand(2, 5, 3)

    def target(rows: TensorDict, drawn: torch.Tensor) -> torch.Tensor:
        of_rows = loss.batch(rows)
        given = {"how": loss.team_reward, "has_target": loss.value_learning.row_mask(of_rows)}
        with given_noise([drawn] if replaced == "weighted" else []):
            return value_target(of_rows, loss.value_learning, loss.value_estimator, **given)

    both = target(batch, places)
    for one in range(2):
        assert_close(target(batch[one : one + 1], places[one : one + 1]), both[one : one + 1])
    later = batch.clone()
    later["next", "agents", "observation"][:, -1] += 1.0
    assert_close(target(later, places)[:, :-1], both[:, :-1])
    assert (target(later, places)[:, -1] != both[:, -1]).all()


@pytest.mark.parametrize("algorithm", ["cfcql", "spacql"])
@pytest.mark.parametrize("discrete", [False, True])
def test_what_is_trained_changes(algorithm: str, discrete: bool) -> None:
    spec = DISCRETE if discrete else CONTINUOUS
    torch.manual_seed(0)
    loss = make_loss(spec, algorithm=algorithm, hidden=(8,), deviation_weight=0.5)
    SoftUpdate(loss, tau=0.5)
    found = gradients_of(loss, make_batch(spec, 8))
    assert {name.split("_network")[0] for name in found} == {"actor", "qvalue", "behaviour"}
    assert all(grad.isfinite().all() for grad in found.values())
    assert sum(grad.abs().sum() > 0 for grad in found.values()) >= len(found) - 2


@pytest.mark.parametrize("distribution", ["tanh_gaussian", "gaussian"])
def test_who_is_farther_from_the_data_deviates_more(distribution: str) -> None:
    """Also where a policy's centre lies so far behind a bound that its action is the bound."""
    loss = make_loss(
        CONTINUOUS, algorithm="cfcql", hidden=(8,), deviation_weight=1.0, batch_norm=False, distribution=distribution
    )
    rows, found = make_batch(CONTINUOUS, 6), []
    head = [each for name, each in loss.actor_network_params.flatten_keys(".").items() if name.endswith("bias")][-1]
    width = CONTINUOUS.action_size
    for place in (1.0, 3.0, 5.0, 10.0, 20.0, 100.0):
        with torch.no_grad():
            head[..., :width] = place
        found.append(_deviation(loss.batch(rows)).mean().item())
    assert found == sorted(found)
    assert math.isfinite(found[-1])


@pytest.mark.parametrize("discrete", [False, True])
def test_a_model_of_the_other_kind_of_actions_is_told(discrete: bool) -> None:
    unmasked = replace(DISCRETE, has_action_mask=False)
    spec, other = (DISCRETE, CONTINUOUS) if discrete else (CONTINUOUS, unmasked)
    case = Case("centralized", discrete=discrete)
    model = make_behaviour_policy(other, hidden=(8,))
    loss = OfflineMARLLoss(
        case.actor(),
        case.critic(),
        value_learning=CFCQL(deviation_weight=1.0),
        behaviour=model,
        extraction=None,
        behaviour_learning=ClonedBehaviour(),
    )
    SoftUpdate(loss, tau=0.1)
    with pytest.raises(ValueError, match="discrete" if discrete else "compares the policies with a model of discrete"):
        loss(make_batch(spec, 4))
