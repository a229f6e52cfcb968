"""Each refusal says what is wrong and what to do."""

from __future__ import annotations

import pytest
import torch
from objective_toys import CONTINUOUS, DISCRETE, Case, make_batch
from tensordict.nn import TensorDictModule
from torch.distributions import Geometric
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.algorithms import Recipe
from torchrl_marl_offline.modules import AgentNetwork, make_critic, make_value
from torchrl_marl_offline.objectives import (
    AWR,
    BRAC,
    CFCQL,
    IQL,
    SARSA,
    TD,
    TD3BC,
    BRACLoss,
    Cloning,
    IQLLoss,
    OfflineMARLLoss,
    SARSALoss,
    TDLoss,
)

CASE = Case()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value_learning": None, "extraction": None}, "nothing to train: pass value_learning=, extraction=, or both"),
        ({"actor": None}, "AWR needs an actor; pass one, for instance from make_actor"),
        ({"actor": None, "value_learning": TD(), "extraction": None, "value": None}, "TD needs an actor"),
        ({"critic": None}, "IQL needs a critic; pass one, for instance from make_critic"),
        ({"critic": None, "value_learning": None}, "AWR needs a critic"),
        ({"value": None}, "IQL needs a state-value network; pass value=make_value"),
        ({"value_learning": SARSA()}, "SARSA would never train the value network; leave value= out"),
        ({"heads": "max"}, "heads must be 'all' or 'min', got 'max'"),
        ({"team_reward": "max"}, "team_reward must be 'mean' or 'sum', got 'max'"),
        ({"reduction": "max"}, "reduction must be 'mean', 'sum' or 'none', got 'max'"),
    ],
)
def test_construction(arguments: dict, message: str) -> None:
    parts = {"actor": CASE.actor(), "critic": CASE.critic(), "value": CASE.value()} | arguments
    with pytest.raises(ValueError, match=message):
        OfflineMARLLoss(parts.pop("actor"), parts.pop("critic"), parts.pop("value"), **parts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IQL(0.0), "expectile must lie between 0 and 1, both excluded, got 0.0"),
        (lambda: IQL(1.0), "expectile must lie between 0 and 1, both excluded, got 1.0"),
        (lambda: AWR(temperature=-1.0), "temperature must be at least 0, got -1.0"),
        (lambda: AWR(advantage="team"), "advantage must be 'local', 'joint' or 'weighted', got 'team'"),
        (lambda: BRAC(alpha=-0.1), "alpha must be at least 0, got -0.1"),
    ],
)
def test_rules(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_critic_that_writes_neither_value() -> None:
    critic = TensorDictModule(torch.nn.Identity(), in_keys=[("agents", "action")], out_keys=["quality"])
    with pytest.raises(ValueError, match="neither the team's value 'state_action_value' nor local values"):
        SARSALoss(critic).is_team  # noqa: B018


@pytest.mark.parametrize("rule", [SARSA(), TD()], ids=["sarsa", "td"])
def test_a_critic_that_writes_no_dimension_of_heads(rule) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(-2), torch.nn.Linear(6, 1), torch.nn.Flatten(-2))
    critic = TensorDictModule(network, in_keys=[("agents", "action")], out_keys=["state_action_value"])
    loss = OfflineMARLLoss(CASE.actor(), critic, value_learning=rule, extraction=BRAC())
    SoftUpdate(loss, tau=0.1)
    said = r"The critic \(Sequential\) writes \[4\] at 'state_action_value' .*it must write \[\*B, H\]"
    with pytest.raises(ValueError, match=said):
        loss(make_batch(CONTINUOUS, 4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden": (5,)}, "layers.0.out_features is 4 in the first and 5 in number 2"),
        ({"activation": "relu"}, "activation is gelu in the first and relu in number 2; build all of them with"),
        ({"decomposition": "centralized"}, "in_keys is .* in the first and .* in number 2"),
    ],
)
def test_critics_of_a_list_that_differ(options, said) -> None:
    same = {"decomposition": "independent", "hidden": (4,)}
    critics = [make_critic(CONTINUOUS, **same), make_critic(CONTINUOUS, **same | options)]
    with pytest.raises(ValueError, match=f"The critics of a list must be alike: .*{said}"):
        OfflineMARLLoss(CASE.actor(), critics, value_learning=TD(), extraction=BRAC())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TD3BC(2.5), r"TD3BC takes its settings by their names, such as TD3BC\(alpha=2.5\)\."),
        (lambda: Recipe(0.7), r"Recipe takes its settings by their names, such as Recipe\(\w+=0.7\)\."),
    ],
)
def test_settings_without_their_names(make, said) -> None:
    with pytest.raises(TypeError, match=said):
        make()
    assert AWR(3.0) == AWR(temperature=3.0)


def test_a_centralized_critic_with_local_state_values() -> None:
    critic = Case("centralized").critic()
    loss = IQLLoss(critic, make_value(CONTINUOUS, decomposition="mixer", hidden=(4,)))
    SoftUpdate(loss, tau=0.1)
    with pytest.raises(ValueError, match="needs a team state value; pass value=make_value"):
        loss(make_batch(CONTINUOUS, 4))


def test_an_action_key_that_the_critic_does_not_read() -> None:
    loss = TDLoss(CASE.actor(), CASE.critic())
    SoftUpdate(loss, tau=0.1)
    loss.set_keys(action="u")
    batch = make_batch(CONTINUOUS, 4)
    batch["u"] = batch["agents", "action"]
    with pytest.raises(ValueError, match=r"not the action 'u'; name its action by set_keys\(action=...\)"):
        loss(batch)


def test_a_discrete_policy_without_a_gradient_through_its_action() -> None:
    rates = TensorDictModule(AgentNetwork(4, 1, 3, hidden=(4,)), in_keys=[("agents", "observation")], out_keys=["rate"])

    class Counts(Geometric):
        deterministic_sample = property(lambda self: self.mode.long())

    actor = ProbabilisticActor(
        rates,
        in_keys={"logits": "rate"},
        out_keys=[("agents", "action")],
        distribution_class=lambda logits: Counts(logits=logits.squeeze(-1)),
    )
    loss = BRACLoss(actor, Case("vdn", discrete=True).critic())
    with pytest.raises(ValueError, match="Counts passes none; give the actor a categorical distribution"):
        loss(make_batch(DISCRETE, 4))


@pytest.mark.parametrize(
    "missing", [("next", "agents", "reward"), ("next", "terminated"), "state", ("agents", "action")]
)
def test_a_batch_that_lacks_an_entry(missing) -> None:
    loss = TDLoss(CASE.actor(), CASE.critic())
    SoftUpdate(loss, tau=0.1)
    name = missing if isinstance(missing, str) else ".".join(missing)
    with pytest.raises(
        KeyError, match=rf"TDLoss needs the entry {name}, which the batch lacks; it has .*agents.observation"
    ):
        loss(make_batch(CONTINUOUS, 4).exclude(missing))


def test_a_network_asked_alone_for_an_entry_that_is_not_there() -> None:
    loss = OfflineMARLLoss(CASE.actor(), None, value_learning=None, extraction=Cloning())
    with pytest.raises(KeyError, match=r"needs the entry agents\.observation"):
        loss.team.policy(make_batch(CONTINUOUS, 4).exclude(("agents", "observation")))


def test_a_state_of_another_width() -> None:
    loss = SARSALoss(CASE.critic())
    SoftUpdate(loss, tau=0.1)
    batch = make_batch(CONTINUOUS, 4)
    batch["next", "state"] = torch.zeros(4, 9)
    with pytest.raises(ValueError, match=r"HyperNetworkMixer wants values \[\*B, 3, heads\] and state \[\*B, 5\]"):
        loss(batch)


@pytest.mark.parametrize("word", ["actor", "critic", "value", "behaviour"])
@pytest.mark.parametrize("wrong", [torch.nn.Linear(2, 2), "actor", Case, 3], ids=["module", "word", "class", "number"])
def test_a_network_that_does_not_say_what_it_reads(word: str, wrong) -> None:
    parts = {"actor": CASE.actor(), "critic": CASE.critic(), "value": CASE.value()} | {word: wrong}
    with pytest.raises(
        TypeError, match=rf"^{word} must be a TensorDictModule, which says what it reads and writes; got a "
    ):
        OfflineMARLLoss(parts.pop("actor"), parts.pop("critic"), parts.pop("value"), **parts)
    if word == "critic":
        with pytest.raises(TypeError, match=r"^critic must be a TensorDictModule"):
            OfflineMARLLoss(CASE.actor(), [CASE.critic(), wrong], CASE.value())


def test_what_is_no_coefficient_is_not_scheduled() -> None:
    """A number for it would be kept, and change nothing."""
    loss = OfflineMARLLoss(
        CASE.actor(), CASE.critic(), value_learning=CFCQL(), extraction=BRAC(sample=False, alpha=0.5)
    )
    for name, value in (("deviation_weight", 1.0), ("noise", 0.1), ("num_random", 3), ("sample", True)):
        with pytest.raises(ValueError, match=f"{name} cannot be scheduled in this loss, but alpha, min_q_w"):
            setattr(loss, name, value)
    for wrong in ("a", None, torch.ones(2), [0.1], -1.0, float("nan")):
        with pytest.raises(ValueError, match="alpha must be"):
            loss.alpha = wrong
    assert loss.alpha.item() == 0.5
    loss.alpha = torch.tensor(0.25)
    loss.min_q_weight, loss.note = 2, 1.0
    assert loss.alpha.item() == 0.25 and loss.min_q_weight.item() == 2.0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("alhpa", r"no coefficient 'alhpa', but alpha\."),
        ("temperature", r"temperature cannot be scheduled in this loss, but alpha; "),
        ("expectile", "expectile cannot be scheduled"),
        ("max_next_value", "max_next_value cannot be scheduled in this loss"),
        ("gamma", r"value estimator's; give it as loss\.make_value_estimator\(gamma=\.\.\.\)"),
    ],
)
def test_a_number_that_nothing_reads_is_refused(name: str, words: str) -> None:
    loss = OfflineMARLLoss(CASE.actor(), CASE.critic(), value_learning=TD(), extraction=BRAC())
    with pytest.raises(ValueError, match=words):
        setattr(loss, name, 5.0)

    class Own(OfflineMARLLoss):
        """Another's, with numbers of its own."""

        def __init__(self, *parts, **options):
            super().__init__(*parts, **options)
            self.temperature, self.gamma, self.alphas = 5.0, 0.5, 3

    assert Own(CASE.actor(), CASE.critic(), value_learning=TD(), extraction=BRAC()).temperature == 5.0
