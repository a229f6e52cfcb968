"""Losses of networks with memory: each encoder is unrolled once, and rules see rows."""

from __future__ import annotations

import math

import pytest
import torch
from memory_toys import KINDS, end_episode, make_sequences, memory_options, remembered_by_hand, with_memory
from objective_toys import COMBINATIONS, CONTINUOUS, DISCRETE, HIDDEN, SYSTEM_CASES, Case, gradients, loss_terms
from selection import thorough
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.functional_parameters import parameters_in
from torchrl_marl_offline.core.layout import IS_INIT, MASK, OBSERVATION
from torchrl_marl_offline.modules import HistoryEncoder, make_actor, make_critic
from torchrl_marl_offline.objectives import SARSA, OfflineMARLLoss, TDLoss
from torchrl_marl_offline.objectives.histories import Histories
from torchrl_marl_offline.objectives.prepared import counted_alone

OWN_NETWORKS = {
    "loss_actor": {"actor_network_params"},
    "loss_qvalue": {"qvalue_network_params", "mixer_network_params"},
    "loss_value": {"value_network_params"},
    "loss_behaviour": {"behaviour_network_params"},
}
NORMAL = [
    Case("mixer", "iql", "awr"),
    Case("centralized", "td", "brac", discrete=True),
    Case("qplex", "sarsa", "awr", discrete=True),
    Case("graph", "iql", "brac"),
    Case("independent", preset="omar"),
    Case("mixer", preset="bcq"),
    Case("mixer", preset="mac_flow", discrete=True),
]
EVERY = [case if case in NORMAL else thorough(case) for case in [*COMBINATIONS, *SYSTEM_CASES]]
each_case = pytest.mark.parametrize("case", EVERY, ids=str)
every_kind = pytest.mark.parametrize("kind", KINDS)
TWO = [("mixer", "iql", "awr"), ("centralized", "td", "brac")]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def difficult(spec, *, seed: int = 0) -> TensorDict:
    """Three slices of six rows: one ends in its middle, one begins anew without an end, all have a burn-in of two."""
    batch = end_episode(make_sequences(spec, 3, 6, seed=seed), (0, 3))
    end_episode(batch, (2, 5), terminated=False)
    batch.set(IS_INIT, torch.zeros(3, 6, 1, dtype=torch.bool))
    batch[IS_INIT][1, 1] = True
    batch.set(MASK, torch.ones(3, 6, dtype=torch.bool))
    batch[MASK][:, :2] = False
    return batch


def by_hand(self: Histories, clean: TensorDict, seen: TensorDict, *, only=None) -> TensorDict:
    """Do what ``prepared`` does, by loops over torch's cells."""
    found = clean.copy()
    for role, encoder in self.encoders.items():
        for target in (False, True):
            name = f"{'target_' if target else ''}{role}_network_params"
            if target and (role == "actor" or not self._has_target(role, True)):
                continue
            with parameters_in(self.networks[role], getattr(self.loss, name)):
                now, following = remembered_by_hand(encoder, seen)
            for rows, memory in ((found, now), (found["next"], following)):
                features = memory[..., : encoder.feature_size]
                key = self.key(role, target=target)
                rows.set(key, features.squeeze(-2) if encoder.joint else features)
    return found


@pytest.mark.parametrize("names", TWO, ids="-".join)
@every_kind
def test_terms_and_gradients_equal_those_of_memory_by_hand(kind: str, names: tuple, monkeypatch) -> None:
    case, batch = with_memory(Case(*names), kind), difficult(CONTINUOUS)
    loss = case.build()
    with torch.no_grad():  # targets of their own
        for name, tensor in loss.named_buffers():
            if name.startswith("target_"):
                tensor.add_(0.1 * torch.randn_like(tensor))
    found, own = loss(batch.clone()), gradients(loss, batch.clone())
    monkeypatch.setattr(Histories, "prepared", by_hand)
    expected, others = loss(batch.clone()), gradients(loss, batch.clone())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-10, rtol=1e-10, msg=key)
    assert own.keys() == others.keys()
    for key, value in others.items():
        torch.testing.assert_close(own[key], value, atol=1e-10, rtol=1e-10, msg=key)


@every_kind
def test_where_no_episode_ends_the_next_features_are_those_of_the_following_row(kind: str) -> None:
    loss, batch = with_memory(Case("vdn", "td", "brac"), kind).build(), make_sequences(CONTINUOUS, 2, 5)
    rows = loss.batch(batch).tensordict
    for role in ("actor", "qvalue"):
        ahead = loss.team.histories.features(rows["next"], role, target=role == "qvalue")
        here = loss.team.histories.features(rows, role, target=role == "qvalue")
        for key, value in ahead.items():
            torch.testing.assert_close(value[:, :-1], here[key][:, 1:], atol=1e-12, rtol=0)


@every_kind
def test_no_episode_leaks_into_another_and_no_future_into_the_past(kind: str) -> None:
    case = with_memory(Case("mixer", "sarsa", "awr"), kind)
    loss = case.build(extraction=None, value_learning=SARSA(), reduction="none")
    batch = end_episode(make_sequences(CONTINUOUS, 2, 6), (0, 3))
    before = loss(batch.clone())["loss_qvalue"]
    changed = batch.clone()
    changed[OBSERVATION][0, 2] += 1.0
    changed["next", "agents", "observation"][0, 1] += 1.0
    after = loss(changed)["loss_qvalue"]
    differs = (after != before).tolist()
    assert differs == [[False, True, True, True, False, False], [False] * 6]  # row 1 by its next value


@every_kind
def test_the_burn_in_is_seen_and_counts_nowhere(kind: str) -> None:
    loss, batch = with_memory(Case("mixer", "iql", "awr"), kind).build(), difficult(CONTINUOUS)
    expected = loss_terms(loss(batch.clone()))
    other = batch.clone()
    for key in (("agents", "action"), "state", ("next", "agents", "reward"), ("next", "state")):
        other[key][:, :2] = math.nan
    for key, value in loss_terms(loss(other)).items():
        torch.testing.assert_close(value, expected[key], atol=1e-12, rtol=0)
    other[OBSERVATION][0, 1] += 1.0
    assert all(value != expected[key] for key, value in loss_terms(loss(other)).items())
    other[OBSERVATION][2, 0] = math.nan
    assert all(value.isfinite() for value in loss_terms(loss(other)).values())


@each_case
def test_everything_learns_from_its_own_term(case: Case) -> None:
    loss = with_memory(case).build()
    batch = end_episode(make_sequences(case.spec, 4, 5), (1, 2))
    for term, networks in OWN_NETWORKS.items():
        if term not in loss.out_keys:
            continue
        found = gradients(loss, batch.clone(), term)
        moved = {name for name, gradient in found.items() if gradient.abs().sum() > 0}
        assert {name.partition(".")[0] for name in moved} <= networks
        still = {
            name for name, p in loss.named_parameters() if name.partition(".")[0] in networks and name not in moved
        }
        assert not [name for name in still if ".cell." in name or "layers.0" in name], still
    assert loss.team.histories.encoders.keys() >= {"actor", "qvalue"}


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_equal_candidates_have_equal_values(discrete: bool) -> None:
    case = with_memory(Case("mixer", preset="cql", discrete=discrete))
    loss, batch = case.build(), make_sequences(case.spec, 2, 4)
    rows = loss.batch(batch)
    actions = rows.action_like(torch.zeros(2, 4, 3, 4)).unsqueeze(-3).expand(2, 4, 6, 3, -1)
    found = rows.candidates(actions)
    torch.testing.assert_close(found, rows.live.local.unsqueeze(-3).expand_as(found), atol=1e-12, rtol=0)


def test_slices_end_to_end_are_the_same_as_side_by_side() -> None:
    loss, batch = with_memory(Case("mixer", "iql", "awr")).build(), make_sequences(CONTINUOUS, 3, 4)
    for b in range(3):
        batch["next", "done"][b, 3] = batch["next", "truncated"][b, 3] = True
    side_by_side, end_to_end = loss(batch.clone()), loss(batch.clone().reshape(-1))
    for key, value in side_by_side.items():
        torch.testing.assert_close(end_to_end[key], value, atol=1e-12, rtol=1e-12)


def of_critic(critic, **options) -> OfflineMARLLoss:
    loss = OfflineMARLLoss(None, critic, value_learning=SARSA(), extraction=None, **options)
    loss.__dict__["updater"] = SoftUpdate(loss, tau=0.5)
    return loss


def test_critics_of_an_ensemble_remember_each_for_itself() -> None:
    batch = end_episode(make_sequences(CONTINUOUS, 2, 5), (0, 2))
    options = {"decomposition": "vdn", "hidden": HIDDEN, "num_heads": 1, **memory_options("gru")}
    torch.manual_seed(3)
    critics = [make_critic(CONTINUOUS, **options) for _ in range(2)]
    for joint in (False, True):
        if joint:
            options["decomposition"] = "centralized"
            critics = [make_critic(CONTINUOUS, **options) for _ in range(2)]
        alone = [of_critic(critic).batch(batch).live.total for critic in critics]
        for in_a_loop in (False, True):
            given = critics if joint else [TensorDictSequential(*critic.module[:2]) for critic in critics]
            mixer = None if joint else critics[0].module[2]
            together = of_critic(given, mixer=mixer, deactivate_vmap=in_a_loop)
            rows = together.batch(batch)
            torch.testing.assert_close(rows.live.total, torch.cat(alone, -1), atol=1e-12, rtol=0)
            assert torch.isfinite(together(batch.clone())["loss_qvalue"])


@pytest.mark.parametrize("estimator", ["td1", "tdlambda"])
def test_returns_over_time(estimator: str) -> None:
    loss, batch = with_memory(Case("mixer", "iql", "awr")).build(), difficult(CONTINUOUS)
    plain = loss(batch.clone())["loss_qvalue"]
    loss.make_value_estimator(estimator, gamma=0.9)
    assert loss(batch.clone())["loss_qvalue"] != plain


def test_single_rows_are_refused_in_a_sentence() -> None:
    loss = with_memory(Case("mixer", "iql", "awr")).build()
    rows = make_sequences(CONTINUOUS, 3, 4)
    with pytest.raises(ValueError, match="Memory carries what agents saw from row to row, but rows 3 and 4"):
        loss(rows.reshape(-1))
    with pytest.raises(ValueError, match="needs steps of episodes, not a single one"):
        loss(rows[0, 0])


def test_policies_and_values_of_rows_know_their_past() -> None:
    loss, batch = with_memory(Case("mixer", "iql", "awr")).build(), make_sequences(CONTINUOUS, 2, 5)
    rows = loss.batch(batch)
    torch.testing.assert_close(loss.qvalue(batch), rows.live.total_min.squeeze(-1), atol=1e-12, rtol=0)
    assert loss.policy_action(batch).shape == (2, 5, 3, 2)
    with pytest.raises(ValueError, match=r"take them from loss.batch"):
        loss.team.policy(batch)


def test_an_encoder_elsewhere_than_at_the_beginning_is_refused() -> None:
    before = TensorDictModule(torch.nn.Identity(), in_keys=[OBSERVATION], out_keys=[OBSERVATION])
    critic = TensorDictSequential(before, make_critic(CONTINUOUS, decomposition="independent", memory="gru"))
    with pytest.raises(ValueError, match="must stand at the beginning of its network"):
        TDLoss(make_actor(CONTINUOUS, hidden=HIDDEN), critic)


def test_networks_of_ones_own_behind_an_encoder() -> None:
    class Own(torch.nn.Linear):
        def forward(self, history, action):
            return super().forward(torch.cat([history, action], -1))

    encoder = HistoryEncoder(CONTINUOUS, "lstm", 6, role="critic")
    value = TensorDictModule(
        Own(8, 1), in_keys=[encoder.history_key, ("agents", "action")], out_keys=[("agents", "state_action_value")]
    )
    loss = of_critic(TensorDictSequential(encoder, value))
    found = gradients(loss, make_sequences(CONTINUOUS, 2, 4))
    assert found.keys() == dict(loss.named_parameters()).keys()
    assert all(gradient.abs().sum() > 0 for gradient in found.values())


def test_memory_in_the_actor_alone_or_in_the_critic_alone() -> None:
    batch = make_sequences(DISCRETE, 2, 4)
    remembering = memory_options("gru")
    for of_actor, of_critic in ((remembering, {}), ({}, remembering)):
        actor = make_actor(DISCRETE, hidden=HIDDEN, **of_actor)
        critic = make_critic(DISCRETE, hidden=HIDDEN, **of_critic)
        loss = TDLoss(actor, critic)
        updater = SoftUpdate(loss, tau=0.5)
        assert loss(batch.clone())["loss_qvalue"].isfinite()
        assert loss.has_memory
        assert updater is not None


class OfHistory(torch.nn.Linear):
    def forward(self, history, action):
        return super().forward(torch.cat([history, action], -1))


def own_critic(encoder: HistoryEncoder) -> TensorDictSequential:
    keys = {
        "in_keys": [encoder.history_key, ("agents", "action")],
        "out_keys": [("agents", "state_action_value")],
    }
    return TensorDictSequential(encoder, TensorDictModule(OfHistory(encoder.feature_size + 2, 1), **keys))


@pytest.mark.fault("3.18")
def test_networks_whose_encoders_have_the_same_keys_remember_each_for_itself() -> None:
    batch, found = make_sequences(CONTINUOUS, 2, 4), {}
    for role in ("policy", "critic"):  # the first is the default, and the policy's own
        torch.manual_seed(0)
        actor = make_actor(CONTINUOUS, hidden=HIDDEN, memory="gru", memory_size=6)
        critic = own_critic(HistoryEncoder(CONTINUOUS, "gru", 6, role=role))
        loss = TDLoss(actor, critic).double()
        loss.updater = SoftUpdate(loss, tau=0.5)
        found[role] = loss.qvalue_loss(batch)[0], loss.qvalue(batch), loss.policy_action(batch)
    torch.testing.assert_close(found["policy"], found["critic"])
    other_width = own_critic(HistoryEncoder(CONTINUOUS, "lstm", 5))
    loss = TDLoss(make_actor(CONTINUOUS, hidden=HIDDEN, memory="gru", memory_size=6), other_width).double()
    loss.updater = SoftUpdate(loss, tau=0.5)
    assert loss.qvalue_loss(batch)[0].isfinite()


@pytest.mark.fault("3.18")
def test_a_second_encoder_in_a_network_is_refused() -> None:
    first, second = HistoryEncoder(CONTINUOUS, "gru", 6), HistoryEncoder(CONTINUOUS, "window:2", role="critic")
    critic = TensorDictSequential(first, *own_critic(second).module)
    with pytest.raises(ValueError, match=r"^A network has one HistoryEncoder, .* the TensorDictSequential has 2"):
        TDLoss(make_actor(CONTINUOUS, hidden=HIDDEN), critic)


@pytest.mark.fault("3.18")
def test_an_encoder_in_a_network_that_cannot_remember_is_refused() -> None:
    case, encoder = Case("mixer", preset="bcq"), HistoryEncoder(CONTINUOUS, "gru", 6)
    loss = case.build()
    rules = {"value_learning": loss.value_learning, "extraction": loss.extraction}
    rules["behaviour_learning"] = loss.behaviour_learning
    for others in (
        {"mixer": TensorDictSequential(encoder, loss.mixer_network), "behaviour": loss.behaviour_network},
        {"behaviour": TensorDictSequential(encoder, loss.behaviour_network)},
    ):
        with pytest.raises(ValueError, match="before a policy, a critic or a state-value network; take it"):
            OfflineMARLLoss(loss.actor_network, loss.qvalue_network, **rules, **others)


@pytest.mark.fault("3.18")
def test_a_policy_with_memory_is_asked_without_an_action() -> None:
    loss = with_memory(Case("mixer", "iql", "awr")).build()
    batch = make_sequences(CONTINUOUS, 2, 4)
    expected = loss.policy_action(batch)
    assert torch.equal(loss.policy_action(batch.exclude(("agents", "action"))), expected)
    told = batch.exclude(("next", "done")).set(IS_INIT, torch.zeros(2, 4, 1, dtype=torch.bool))
    assert torch.equal(loss.policy_action(told), expected)
    with pytest.raises(ValueError, match=r"must be told where episodes begin, by 'is_init' or \('next', 'done'\)"):
        loss.policy_action(batch.exclude(("next", "done")))


@pytest.mark.fault("3.19")
@pytest.mark.parametrize("memory", ["gru", "window:2"])
@pytest.mark.parametrize("preset", ["cql", "omar"])
def test_rows_that_do_not_count_are_in_no_statistics_of_a_batch(preset: str, memory: str) -> None:
    """These presets normalize by the batch: what is said of the other rows changes nothing."""
    torch.manual_seed(0)
    loss = make_loss(CONTINUOUS, algorithm=preset, hidden=HIDDEN, **memory_options(memory)).double()
    assert loss.team.normalizes_rows
    loss.updater = SoftUpdate(loss, tau=0.5)
    batch = make_sequences(CONTINUOUS, 4, 6)
    batch[MASK] = torch.ones(4, 6, dtype=torch.bool)
    batch[MASK][:, 4:] = False  # behind the end
    batch["next", "done"][:, 3] = True

    def terms(batch: TensorDict) -> torch.Tensor:
        torch.manual_seed(1)
        return torch.stack([*loss_terms(loss(batch.clone())).values()])

    expected = terms(batch)
    for part in (batch, batch["next"]):
        for key in (OBSERVATION, "state"):
            part[key][:, 4:] = 7.0
    torch.testing.assert_close(terms(batch), expected, atol=0.0, rtol=0.0)
    shorter = batch[:, :4].clone()  # one row in the place of two is as often there as any other
    doubled = torch.cat([shorter, shorter], 1)
    doubled[MASK] = torch.arange(8).expand(4, 8) < 4
    normed = [loss.batch(each).live.total[:, :4] for each in (shorter, doubled)]
    torch.testing.assert_close(*normed)


def test_the_rows_that_count_stand_in_for_the_others_equally_often() -> None:
    rows = torch.tensor([[False, True, False, True], [False, False, False, True]])
    batch = TensorDict({"x": torch.arange(8.0).reshape(2, 4), "kept": torch.arange(8.0).reshape(2, 4)}, [2, 4])
    found = counted_alone(batch, rows, ["x", "absent"])
    assert found["x"].tolist() == [[1, 1, 3, 3], [7, 1, 3, 7]]
    assert torch.equal(found["kept"], batch["kept"])
    assert torch.equal(counted_alone(batch, torch.ones_like(rows), ["x"])["x"], batch["x"])
    assert counted_alone(batch, torch.zeros_like(rows), ["x"])["x"].isfinite().all()
