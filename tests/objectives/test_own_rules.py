"""Rules, algorithms and batches of users' own: what is wrong with them is said in one sentence that names it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from memory_toys import make_sequences, with_memory
from objective_toys import CONTINUOUS, DISCRETE, Case, make_batch
from tensordict import TensorDict

from torchrl_marl_offline import (
    AWR,
    IQL,
    SARSA,
    TD,
    ActorCritic,
    Cloning,
    OfflineMARLLoss,
    PolicyExtraction,
    PopulationBuffer,
    Trainer,
    make_actor,
    make_critic,
    make_loss,
)
from torchrl_marl_offline.algorithms.algorithm import ALGORITHMS, Algorithm
from torchrl_marl_offline.training import PopulationLearner

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
SMALL = {"hidden": (4,)}


def extraction(returned, **attributes):
    own = {"metrics": (), "needs_critic": False, "element_loss": lambda self, batch: returned(batch)}
    return type("Mine", (PolicyExtraction,), own | attributes)()


def learning(base=TD, **methods):
    return type("Mine", (base,), methods)()


def error_of(batch):
    return (batch.policy.mean - batch.action).pow(2).sum(-1)


def actor():
    return make_actor(CONTINUOUS, **SMALL)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda b: (error_of(b).unsqueeze(-1), {}), r"element_loss of Mine must return \[6, 3\].*; got \[6, 3, 1\]"),
        (lambda b: (error_of(b)[:, 0], {}), r"element_loss of Mine must return \[6, 3\].*; got \[6\]"),
        (lambda b: (error_of(b)[:, :2], {}), r"element_loss of Mine must return .*; got \[6, 2\]"),
        (error_of, "element_loss of Mine must return its loss .* and a dict of metrics.*; got a single tensor"),
        (lambda b: None, "element_loss of Mine must return its loss .*; got NoneType"),
        (lambda b: (1.0, {}), "element_loss of Mine must return a tensor; got float"),
        (
            lambda b: (error_of(b), {"size": error_of(b)}),
            r"The metric 'size' of Mine must be one number.*; got \[6, 3\]",
        ),
        (lambda b: (error_of(b), {"size": 1.0}), r"The metric 'size' of Mine must be one number.*; got float"),
        (lambda b: (error_of(b).detach(), {}), "element_loss of Mine returns numbers without a gradient, so that"),
        (lambda b: (error_of(b) * b.coefficient("bar"), {}), r"There is no coefficient 'bar'; the rules' .* name none"),
        (lambda b: (error_of(b) + b.behaviour(), {}), "no model of the data's actions; .* needs_behaviour = True"),
        (lambda b: (b.q(b.action).total, {}), "The loss has no critic"),
    ],
)
def test_what_an_extraction_rule_returns(returned, said):
    loss = OfflineMARLLoss(actor(), None, value_learning=None, extraction=extraction(returned))
    with pytest.raises((ValueError, TypeError), match=said):
        loss(make_batch(CONTINUOUS, 6))


def test_dead_agents_count_in_no_form_of_a_loss():
    batch = make_batch(CONTINUOUS, 6)
    batch["agents", "mask"] = torch.ones(6, 3, dtype=torch.bool)
    batch["agents", "mask"][:, 0] = False
    loss = OfflineMARLLoss(actor(), None, value_learning=None, extraction=extraction(lambda b: (error_of(b), {})))
    expected = error_of(loss.batch(batch))[:, 1:].mean()
    torch.testing.assert_close(loss(batch)["loss_actor"], expected)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"next_value": lambda s, f: None}, "next_value of Mine must return a tensor; got NoneType"),
        ({"reweighted": lambda s, b, v: None}, "reweighted of Mine must return a tensor; got NoneType"),
        ({"reweighted": lambda s, b, v: v[:2]}, r"reweighted of Mine must return \[6, 1, 1\]"),
        (
            {"row_mask": lambda s, b: b.terminated().unsqueeze(-1)},
            r"row_mask of Mine must return bools.*got \[6, 1\]",
        ),
        ({"row_mask": lambda s, b: b.terminated().float()}, r"row_mask of Mine must return bools .* of torch.float32"),
        ({"critic_penalty": lambda s, b: b.live.total, "metrics": ("critic_penalty",)}, r"critic_penalty of Mine must"),
        ({"next_value": lambda s, f: f.state.total}, "no state-value network; .* needs_value = True"),
        ({"next_value": lambda s, f: f.q(f.action).total_min}, "no action; .* declares needs_next_action = True"),
        ({"coefficients": lambda s: None}, "coefficients of Mine must return a dict; got NoneType"),
        ({"coefficients": lambda s: {"foo": "x"}}, "The coefficient 'foo' of Mine must be a number; got 'x'"),
        ({"coefficients": lambda s: {"foo": float("nan")}}, "The coefficient 'foo' of Mine must be a number; got nan"),
    ],
)
def test_what_a_value_learning_rule_returns(rule, said):
    batch = make_batch(CONTINUOUS, 6).exclude(("next", "agents", "action"))
    with pytest.raises((ValueError, TypeError), match=said):
        Case("mixer", "td", "brac").build(value_learning=learning(**rule))(batch)


def test_state_values_of_another_shape():
    rule = learning(IQL, value_elements=lambda self, batch: batch.state.total)
    loss = Case("independent").build(value_learning=rule)
    with pytest.raises(ValueError, match=r"value_elements of Mine must return \[6, 3\].*; got \[6, 3, 1\]"):
        loss(make_batch(CONTINUOUS, 6))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extraction": "awr"}, r"extraction must be a PolicyExtraction, such as AWR\(\), or None; got a str"),
        ({"extraction": TD()}, "extraction must be a PolicyExtraction, .*; got a TD"),
        ({"extraction": AWR}, "extraction must be a PolicyExtraction, .*; got the class AWR"),
        ({"value_learning": AWR()}, "value_learning must be a ValueLearning, .*; got a AWR"),
        ({"value_norm": "svn"}, "value_norm must be a ValueNorm, .*; got a str"),
    ],
)
def test_rules_of_another_kind(options, said):
    rules = {"value_learning": TD(), "extraction": AWR()} | options
    with pytest.raises((TypeError, ValueError), match=said):
        OfflineMARLLoss(actor(), make_critic(CONTINUOUS, **SMALL), **rules)


def test_an_ensemble_of_none():
    with pytest.raises(ValueError, match="critic is an empty list"):
        OfflineMARLLoss(None, [], value_learning=SARSA(), extraction=None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b["next"].set("terminated", b["next", "terminated"].float()), r"next\.terminated must be bools"),
        (
            lambda b: b["next"].set("terminated", b["next", "terminated"].squeeze(-1)),
            r"must be bools \[6, 1\]",
        ),
        (lambda b: b["agents"].set("mask", torch.ones(6, 3)), r"agents\.mask must be bools .* of torch\.float32"),
        (
            lambda b: b["agents"].set("mask", torch.ones(6, 3, 1, dtype=torch.bool)),
            r"agents\.mask must be bools \[6, 3\]",
        ),
        (lambda b: b.set(("collector", "mask"), torch.ones(6)), r"collector\.mask must be bools \[6\]"),
        (
            lambda b: b["next", "agents"].set("reward", torch.ones(6, 3)),
            r"reward must be \[6, 3, 1\], one of each",
        ),
    ],
)
def test_entries_of_other_kinds_and_shapes(change, said):
    batch = make_batch(CONTINUOUS, 6)
    change(batch)
    with pytest.raises(ValueError, match=said):
        make_loss(CONTINUOUS, **SMALL)(batch)


def without_last(entry):
    return entry[..., :1]


def of_one_agent(entry):
    return entry[:, :1]


@pytest.mark.parametrize("half", ["now", "next"])
@pytest.mark.parametrize(
    "change", [torch.Tensor.long, torch.Tensor.float, without_last, of_one_agent], ids=lambda change: change.__name__
)
@pytest.mark.parametrize("options", [{}, {"algorithm": "cfcql", "decomposition": "vdn"}], ids=str)
def test_action_masks_of_other_kinds_and_shapes(half, change, options):
    """Of which some would be taken for those of all agents, or of all actions, alike."""
    batch = make_batch(DISCRETE, 4)
    rows = batch if half == "now" else batch["next"]
    agents = rows["agents"].to_dict()
    rows["agents"] = TensorDict(agents | {"action_mask": change(agents["action_mask"])}, [4])
    with pytest.raises(ValueError, match=r"agents\.action_mask must be bools \[4, 3, A\]; the batch has"):
        make_loss(DISCRETE, **SMALL, **options)(batch)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("options", [{"replaced": "one"}, {"replaced": "weighted"}, {"algorithm": "recipe"}], ids=str)
def test_next_actions_of_other_teams(discrete, options):
    spec = DISCRETE if discrete else CONTINUOUS
    rules = {"value_learning": "sarsa"} if "algorithm" in options else {"decomposition": "vdn"}
    loss = make_loss(spec, **SMALL, **({"algorithm": "cfcql"} | options | rules))
    for agents in (1, 2, 4):
        batch = make_batch(spec, 4)
        following = batch["next", "agents"].to_dict()
        following["action"] = torch.cat([following["action"]] * 2, 1)[:, :agents]
        batch["next", "agents"] = TensorDict(following, [4])
        with pytest.raises(ValueError, match=r"next\.agents\.action must be \[4, 3.*, as the action is; the batch has"):
            loss(batch)
        make_loss(spec, **SMALL, value_learning="td", extraction="brac")(batch)  # which does not read it


@pytest.mark.parametrize("algorithm", ["spacql", "recipe", "icq"])
def test_whether_the_next_action_is_known_in_other_shapes(algorithm):
    rules = {"value_learning": "sarsa"} if algorithm == "recipe" else {}
    loss = make_loss(DISCRETE, algorithm=algorithm, **SMALL, **rules)
    known = torch.tensor([True, False, True, True])
    found = []
    for entry in (known, known.unsqueeze(-1), known.float(), known.expand(3, 4).T):
        batch = make_batch(DISCRETE, 4)
        batch["collector", "has_next_action"] = entry
        if entry.dtype == torch.bool and entry.numel() == 4:
            torch.manual_seed(0)
            found.append(loss(batch)["loss_qvalue"])
            continue
        with pytest.raises(ValueError, match=r"collector\.has_next_action must be bools \[4\]; the batch has"):
            loss(batch)
    assert torch.equal(*found)


def test_an_empty_batch():
    with pytest.raises(ValueError, match="The batch is empty"):
        make_loss(CONTINUOUS, **SMALL)(make_batch(CONTINUOUS, 6)[:0])


def test_one_value_has_no_deviation():
    with pytest.raises(ValueError, match="no deviation of a single value"):
        make_loss(CONTINUOUS, svn=True, **SMALL)(make_batch(CONTINUOUS, 1))


# ------------------------------------------------------------------ populations


def population(losses, batch):
    buffer = PopulationBuffer(batch, batch_size=4, seeds=range(len(losses)))
    return Trainer(PopulationLearner(losses), buffer, steps=2, progress=False)


def test_members_without_a_value_estimator_get_the_default_one():
    nets = [(make_actor(CONTINUOUS, **SMALL), make_critic(CONTINUOUS, **SMALL)) for _ in range(2)]
    losses = {f"m{i}": OfflineMARLLoss(*each, value_learning=TD(), extraction=Cloning()) for i, each in enumerate(nets)}
    trainer = population(losses, make_batch(CONTINUOUS, 16))
    assert trainer.train().step == 2


def test_a_rule_that_draws_by_itself_is_refused_by_what_to_draw_with():
    own = extraction(lambda b: ((b.policy.rsample() - b.action).pow(2).sum(-1), {}))
    losses = {f"m{i}": OfflineMARLLoss(actor(), None, value_learning=None, extraction=own) for i in range(2)}
    with pytest.raises(ValueError, match=r"cannot be mapped over members .*core\.noise\.normal_like"):
        population(losses, make_batch(CONTINUOUS, 16)).train()


# ------------------------------------------------------------------- algorithms


@pytest.fixture(autouse=True)
def registry():
    before = dict(ALGORITHMS)
    yield
    for name in ALGORITHMS.keys() - before.keys():
        del ALGORITHMS[name]


def test_an_override_without_an_annotation_is_refused():
    with pytest.raises(
        ValueError, match=r"gamma would not change the setting 'gamma'; annotate it, such as gamma: float = 0.5"
    ):

        class Mine(ActorCritic, name="mine"):
            gamma = 0.5


def test_a_setting_that_could_not_be_given_is_refused():
    with pytest.raises(ValueError, match=r"A setting of .*Mine cannot be named 'settings'"):

        class Mine(ActorCritic):
            settings: float = 1.0


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (None, "rules of Mine must return a dict with some of value_learning, .*; got None"),
        ({"extractoin": AWR()}, "rules of Mine returns 'extractoin'; known are value_learning, extraction,"),
        ({}, "OfflineMARLLoss has nothing to train"),
    ],
)
def test_what_rules_must_be(rules, said):
    @dataclass(frozen=True, kw_only=True)
    class Mine(ActorCritic, name="mine"):
        def rules(self, *, discrete):
            return rules

    with pytest.raises((TypeError, ValueError), match=said):
        make_loss(CONTINUOUS, algorithm="mine", **SMALL)


@pytest.mark.parametrize(
    ("networks", "said"),
    [(None, "networks of Mine must return a dict"), ({"critc": None}, "networks of Mine returns 'critc'; known are")],
)
def test_what_networks_must_be(networks, said):
    @dataclass(frozen=True, kw_only=True)
    class Mine(Algorithm, name="mine"):
        def networks(self, spec):
            return networks

        def rules(self, *, discrete):
            return {"extraction": Cloning()}

    with pytest.raises((TypeError, ValueError), match=said):
        make_loss(CONTINUOUS, algorithm="mine")


def test_sizes_that_are_none():
    with pytest.raises(TypeError, match=r"make_loss needs the task's sizes, a TaskSpec .*; got NoneType"):
        make_loss(None)


# --------------------------------------------------------------------- bounds


@pytest.mark.parametrize(("low", "high"), [(2.0, 6.0), (-101.0, -100.0)])
@pytest.mark.parametrize("algorithm", ["td3_bc", "cql", "recipe"])
def test_a_gaussian_policy_starts_where_its_mode_passes_a_gradient(low, high, algorithm):
    spec = replace(CONTINUOUS, action_low=low, action_high=high)
    batch = make_batch(CONTINUOUS, 8)
    batch["agents", "action"] = (low + high) / 2 + batch["agents", "action"] * (high - low) / 2
    rules = {"extraction": "brac", "alpha": 0.0} if algorithm == "recipe" else {}
    torch.manual_seed(0)
    loss = make_loss(spec, algorithm=algorithm, distribution="gaussian", share_params=True, **rules, **SMALL)
    for _ in range(2):
        loss(batch)["loss_actor"].backward()
        gradients = [p.grad for p in loss.actor_network_params.parameters() if p.grad is not None]
        assert max(gradient.abs().max() for gradient in gradients) > 0
        mode = loss.policy_action(batch)
        assert ((mode > low) & (mode < high)).any()
        loss.zero_grad()
        loss.reset_parameters_recursive()


@pytest.mark.parametrize("learning", ["td", "sarsa", "iql"])
@pytest.mark.parametrize("asked", ["live", "target", "state", "policy", "credit"])
@pytest.mark.parametrize("memory", [False, True])
def test_what_a_rule_first_asks_for_without_gradient_is_still_trained(learning: str, asked: str, memory: bool) -> None:
    """A batch keeps what networks said; the terms that come after must find it with its graph."""
    if asked in ("target", "state") and learning != "iql":
        pytest.skip("They are asked together with state values, which there are with IQL alone.")

    @dataclass(frozen=True)
    class Looking(AWR):
        def element_loss(self, batch):
            with torch.no_grad():
                getattr(batch, asked)
            return super().element_loss(batch)

    case = Case("mixer", learning, "awr")
    case = with_memory(case) if memory else case
    batch = make_sequences(case.spec, 2, 5, dtype=torch.float32) if memory else make_batch(case.spec, 6)
    found = {}
    for rule in (AWR(), Looking()):
        loss = case.build(extraction=rule)
        output = loss(batch)
        sum(output[key] for key in output.keys() if key.startswith("loss")).backward()  # noqa: SIM118
        found[type(rule).__name__] = {name: p.grad for name, p in loss.named_parameters()}
    assert any(name.startswith("qvalue") for name in found["AWR"])
    for name, grad in found["AWR"].items():
        torch.testing.assert_close(found["Looking"][name], grad)


def test_a_loss_without_gradient_builds_no_graph() -> None:
    case = Case("mixer", "iql", "awr")
    loss = case.build()
    with torch.no_grad():
        rows = loss.batch(make_batch(case.spec, 6))
        assert not any(value.requires_grad for value in (rows.live.total, rows.state.total, rows.policy.mean))
        assert not loss(make_batch(case.spec, 6))["loss_qvalue"].requires_grad
    assert loss(make_batch(case.spec, 6))["loss_qvalue"].requires_grad
