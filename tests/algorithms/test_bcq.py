"""Batch-constrained Q-learning: numbers by hand, plain loops, limits, whose gradient is whose, and what it learns."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict

import pytest
import torch
from algorithm_toys import bcq_loss
from objective_toys import SAMPLES, Case, gradients, make_batch
from systems_toys import (
    ACTION,
    MASK,
    OBSERVATION,
    actor,
    batch,
    critic,
    discrete_actor,
    discrete_batch,
    one_hot,
    ready,
    updated,
)
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.testing import assert_close

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.noise import given_noise
from torchrl_marl_offline.modules import make_actor, make_behaviour_policy, make_critic, make_vae
from torchrl_marl_offline.modules.behaviour import (
    DECODED,
    LATENT,
    LATENT_LOC,
    LATENT_SCALE,
    PERTURBED,
    ActionDecoder,
    Perturbation,
)
from torchrl_marl_offline.modules.sequential import BEHAVIOUR_LOGITS
from torchrl_marl_offline.objectives import (
    BCQ,
    SARSA,
    TD,
    BCQDistillation,
    Cloning,
    OfflineMARLLoss,
    SequentialCloning,
    VAELearning,
)
from torchrl_marl_offline.objectives.batch_constrained import generated_actions
from torchrl_marl_offline.objectives.functional import soft_clipped

ROWS = {"reduction": "none"}
BEHAVIOUR = "behaviour_network_params.module."


class Encoder(nn.Module):
    """Mean e u, deviation 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Parameter(torch.tensor(0.5))

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.e * action
        return loc, torch.full_like(loc, 0.5)


class Decoder(nn.Module):
    """d o + z."""

    latent_size, latent_clip = 1, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.tensor(0.5))

    def forward(self, observation: Tensor, latent: Tensor) -> Tensor:
        return self.d * observation + latent


class Shift(nn.Module):
    """u + p."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(0.1))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return action + self.p


class Likelihoods(nn.Module):
    """Shares 1, 0.5 and 0.2 of three actions, of which the illegal ones have none."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([1.0, 0.5, 0.2]).log())

    def forward(self, observation: Tensor, mask: Tensor) -> Tensor:
        return self.logits.expand_as(mask).masked_fill(~mask, -1e30)


def autoencoder() -> TensorDictSequential:
    return TensorDictSequential(
        OrderedDict(
            encoder=TensorDictModule(Encoder(), in_keys=[OBSERVATION, ACTION], out_keys=[LATENT_LOC, LATENT_SCALE]),
            decoder=TensorDictModule(Decoder(), in_keys=[OBSERVATION, LATENT], out_keys=[DECODED]),
            perturbation=TensorDictModule(Shift(), in_keys=[OBSERVATION, DECODED], out_keys=[PERTURBED]),
        )
    )


def likelihoods() -> TensorDictModule:
    return TensorDictModule(Likelihoods(), in_keys=[OBSERVATION, MASK], out_keys=[BEHAVIOUR_LOGITS])


def noise() -> list[Tensor]:
    """Of the policy's two candidates, of the next two, of the code, and of what is perturbed."""
    two = torch.tensor([0.25, 2.0]).reshape(1, 2, 1, 1).expand(3, 2, 2, 1)
    return [two, two, torch.ones(3, 2, 1), torch.full((3, 1, 2, 1), 0.25)]


# ------------------------------------------------------------------- numbers by hand


def test_continuous() -> None:
    loss = ready(bcq_loss(actor(), critic(team=False), autoencoder(), samples=2, **ROWS))
    with given_noise(noise()):
        found = loss(batch())
    # latents .25 and 2, clipped at .5; candidates .5 o + .35 and .5 o + .6, and more is worth more
    # the policy is at .4 o: distances .1 o + .6
    assert_close(found["loss_actor"], torch.tensor([(0.49 + 0.64) / 2, (0.36 + 0.49) / 2, (0.25 + 0.4225) / 2]))
    # next values 1.5 o' + .6: (2.1, 2.1), (3.6, .6); targets (2.05, 4.05), (1.8, 2.3), (2, 4)
    expected = [(0.3025 + 4.2025) / 2, (3.24 + 0.09) / 2, (12.25 + 9.0) / 2]
    assert_close(found["loss_qvalue"], torch.tensor(expected))
    # codes .5 u + .5, decoded with .5 o: errors (.75, 1.5), (.5, .5), (.25, .5)
    # divergences .5 (m^2 + .25 - 1 + 2 ln 2) at m = (.25, 0), (0, .5), (-.25, .25)
    squares, constant = ((0.5625, 2.25), (0.25, 0.25), (0.0625, 0.25)), 0.5 * (2 * math.log(2) - 0.75)
    halves = ((0.03125, 0.0), (0.0, 0.125), (0.03125, 0.03125))
    values = ((1.85, 3.35), (0.35, 1.85), (-1.15, 1.1))  # 1.5 o + .35
    rows = [sum(e + 0.5 * (h + constant) - q for e, h, q in zip(*each)) / 2 for each in zip(squares, halves, values)]
    assert_close(found["loss_behaviour"], torch.tensor(rows))
    loss.reduction = "mean"
    with given_noise(noise()):
        slopes = gradients(loss, batch(), "loss_behaviour")
    # the decoder's 2 (error) o; the perturbation's -1; the encoder's (2 error + .5 m) u
    assert_close(slopes.pop(f"{BEHAVIOUR}decoder.module.d"), torch.tensor(2 * (0.75 + 3.0 + 0.5 - 0.25 + 0.25) / 6))
    assert_close(slopes.pop(f"{BEHAVIOUR}perturbation.module.p"), torch.tensor(-1.0))
    errors_actions_means = ((0.75, 0.5, 0.25), (0.5, 1.0, 0.5), (0.25, -0.5, -0.25), (0.5, 0.5, 0.25))  # with u not 0
    slope = sum((2 * error + 0.5 * mean) * u for error, u, mean in errors_actions_means) / 6
    assert_close(slopes.pop(f"{BEHAVIOUR}encoder.module.e"), torch.tensor(slope))
    assert not slopes


def test_discrete() -> None:
    loss = ready(bcq_loss(discrete_actor(), critic(team=False), likelihoods(), **ROWS))
    rows = discrete_batch()
    found = loss(rows)
    # of the legal actions, those of at least .3 of the likeliest: {0, 1} {0, 1}; {1} {0}; {0, 1} {1, 2}
    best = torch.tensor([[1, 1], [1, 0], [1, 2]])
    assert_close(found["loss_actor"], -loss.team.policy(rows).log_prob(best).mean(-1))
    # next values (1, 1) + ln 2 and (2 + ln 2, 0)
    ln2 = math.log(2)
    targets = ((1 + 0.5 * (1 + ln2), 3 + 0.5 * (1 + ln2)), (0.5 * (2 + ln2), 2.0), (2.0, 4.0))
    values = ((1 + 2 * ln2, 2.0), (ln2, 1 + 2 * ln2), (-1.0, 0.5 + ln2))
    squares = [sum((q - y) ** 2 for q, y in zip(*each)) / 2 for each in zip(values, targets)]
    assert_close(found["loss_qvalue"], torch.tensor(squares))
    # -log of the recorded ones' shares: .2 of 1.7 and 1 of 1.5; all and .2 of 1.2; 1 of 1.7 and .5 of .7
    shares = ((0.2 / 1.7, 1 / 1.5), (1.0, 0.2 / 1.2), (1 / 1.7, 0.5 / 0.7))
    assert_close(found["loss_behaviour"], torch.tensor([-sum(map(math.log, each)) / 2 for each in shares]))


def test_soft_clipping() -> None:
    heads = torch.tensor([[1.0, 5.0, 3.0], [-2.0, -2.0, -6.0]])
    assert_close(soft_clipped(heads, 0.75), torch.tensor([[2.0], [-5.0]]))
    assert_close(soft_clipped(heads, 1.0), torch.tensor([[1.0], [-6.0]]))
    assert_close(soft_clipped(heads[..., :2], 0.5), heads[..., :2].mean(-1, keepdim=True))


# ------------------------------------------------------------------- a plain loop


def value_of(loss, rows, action, agent: int, *, target: bool) -> Tensor:
    """Q [B, H] of a joint action: the agent's own where there is one, or the team's."""
    values = loss.team.action_value(rows, action, target=target)
    return values.total[:, 0] if values.local is None else values.local[:, agent]


def best_by_loop(loss, rows, candidates, others, *, target: bool) -> Tensor:
    """The best of candidates [B, K, n, a] of each agent, one row, agent and candidate at a time."""
    best = torch.empty_like(others)
    for row, agent in itertools.product(range(len(rows)), range(others.shape[1])):
        found = []
        for candidate in candidates[row, :, agent]:
            joint = others.clone()
            joint[row, agent] = candidate
            heads = value_of(loss, rows, joint, agent, target=target)[row]
            found.append((0.75 * heads.min() + 0.25 * heads.max()).item() if target else heads[0].item())
        best[row, agent] = candidates[row, found.index(max(found)), agent]
    return best


@pytest.mark.parametrize("decomposition", ["independent", "centralized", "vdn", "mixer"])
def test_the_best_generated_action_by_a_loop(decomposition: str) -> None:
    case = Case(decomposition, preset="bcq")
    loss = case.build(reduction="none")
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.mul_(1.5)  # targets unlike the live networks
    rows = make_batch(case.spec, 4)
    drawn = [torch.randn(4, SAMPLES, 3, 4) for _ in range(2)]
    behaviour = loss.get_stateful_net("behaviour_network")

    def candidates(half: TensorDict, latent: Tensor) -> Tensor:
        found = []
        for one in latent.clamp(-0.5, 0.5).unbind(1):
            seen = half["agents", "observation"]
            decoded = behaviour["decoder"].module(seen, one)
            found.append(behaviour["perturbation"].module(seen, decoded))
        return torch.stack(found, 1).detach()

    ahead, policy = rows["next"], loss.team.policy(rows["next"]).deterministic_sample.detach()
    others = policy if decomposition == "centralized" else ahead["agents", "action"]
    next_best = best_by_loop(loss, ahead, candidates(ahead, drawn[1]), others, target=True)
    heads = loss.team.action_value(ahead, next_best, target=True).total
    value = 0.75 * heads.amin(-1) + 0.25 * heads.amax(-1)
    reward = rows["next", "agents", "reward"].squeeze(-1)
    reward = reward.mean(-1, keepdim=True) if loss.is_team else reward
    target = (reward + 0.9 * ~rows["next", "terminated"] * value).detach()
    live = loss.team.action_value(rows, rows["agents", "action"]).total
    expected = (live - target.unsqueeze(-1)).pow(2).sum(-1).mean(-1)
    with given_noise([*drawn, torch.zeros(4, 3, 4), torch.zeros(4, 1, 3, 4)]):
        found = loss(rows)
    assert_close(found["loss_qvalue"], expected)
    best = best_by_loop(loss, rows, candidates(rows, drawn[0]), rows["agents", "action"], target=False)
    error = (loss.team.policy(rows).deterministic_sample - best).pow(2).mean((-1, -2))
    assert_close(found["loss_actor"], error)


@pytest.mark.parametrize("decomposition", ["independent", "centralized", "mixer"])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_the_best_likely_action_by_a_loop(decomposition: str, threshold: float) -> None:
    case = Case(decomposition, preset="bcq", discrete=True)
    loss = case.build(reduction="none", threshold=threshold)
    with torch.no_grad():
        loss.behaviour_network_params["module", "network", "mlp", "layers", "1", "weight"].mul_(6)
    rows = make_batch(case.spec, 6)
    recorded, left_out = one_hot(case.spec, rows["agents", "action"]), 0
    probs = loss.team.behaviour(rows)[BEHAVIOUR_LOGITS].softmax(-1)
    best = torch.zeros(6, 3, dtype=torch.long)
    for row, agent in itertools.product(range(6), range(3)):
        found = {}
        for action in rows["agents", "action_mask"][row, agent].nonzero().flatten().tolist():
            if probs[row, agent, action] / probs[row, agent].max() < threshold:
                left_out += 1
                continue
            joint = recorded.clone()
            joint[row, agent] = torch.eye(case.spec.action_size)[action]
            found[action] = value_of(loss, rows, joint, agent, target=False)[row, 0].item()
        best[row, agent] = max(found, key=found.get)
    assert_close(loss(rows)["loss_actor"], -loss.team.policy(rows).log_prob(best).mean(-1))
    assert bool(left_out) == (threshold > 0)


# ------------------------------------------------------------------- whose gradient


@pytest.mark.parametrize("decomposition", ["independent", "centralized", "mixer"])
def test_the_behaviour_term_is_two_losses_of_disjoint_networks(decomposition: str) -> None:
    """The autoencoder's gradient is that of its own loss, and the perturbation's that of the critic at its action."""
    case = Case(decomposition, preset="bcq")
    loss = case.build(kl_weight=0.3)
    rows = make_batch(case.spec, 5)
    action, seen = rows["agents", "action"], rows["agents", "observation"]
    code, latent = torch.randn(5, 3, 4), torch.randn(5, 1, 3, 4)
    params = dict(loss.named_parameters())
    with given_noise([code, latent]):
        term, metrics = loss.behaviour_loss(rows)
    found = dict(zip(params, torch.autograd.grad(term, list(params.values()), allow_unused=True)))
    assert {name for name, grad in found.items() if grad is not None} == {n for n in params if n.startswith(BEHAVIOUR)}
    behaviour = loss.get_stateful_net("behaviour_network")
    loc, scale = behaviour["encoder"].module(seen, action)
    error = (behaviour["decoder"].module(seen, loc + scale * code) - action).pow(2).mean()
    prior = torch.distributions.Normal(torch.zeros_like(loc), torch.ones_like(loc))
    divergence = torch.distributions.kl_divergence(torch.distributions.Normal(loc, scale), prior).mean()
    with torch.no_grad():
        sampled = behaviour["decoder"].module(seen, latent[:, 0].clamp(-0.5, 0.5))
    changed = behaviour["perturbation"].module(seen, sampled)
    values = []
    for agent in range(3):
        mine = torch.arange(3).reshape(1, 3, 1) == agent
        joint = torch.where(mine, changed, action)  # of local values, the others' do not matter
        values.append(value_of(loss, rows, joint, agent, target=False)[:, 0])
    value = torch.stack(values, -1).mean()
    assert_close(term, error + 0.3 * divergence - value)
    assert_close(metrics["behaviour_error"], error.detach())
    assert_close(metrics["behaviour_divergence"], divergence.detach())
    assert_close(metrics["perturbation_qvalue"], value.detach())
    own = dict(behaviour.named_parameters())
    for objective, names in (
        (error + 0.3 * divergence, [n for n in own if "perturbation" not in n]),
        (-value, [n for n in own if "perturbation" in n]),
    ):
        by_hand = torch.autograd.grad(objective, [own[name] for name in names])
        for name, expected in zip(names, by_hand):
            assert expected.any()
            assert_close(found[f"behaviour_network_params.{name}"], expected)


@pytest.mark.parametrize("discrete", [False, True])
def test_everything_is_trained(discrete: bool) -> None:
    case = Case("mixer", preset="bcq", discrete=discrete)
    loss = case.build(tau=0.05)
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for seed in range(5):
        output = loss(make_batch(case.spec, 8, seed=seed))
        optimizer.zero_grad()
        sum(value for name, value in output.items() if name.startswith("loss_")).backward()
        optimizer.step()
    still = [name for name, p in loss.named_parameters() if torch.equal(p, before[name])]
    assert not still
    kinds = {name.split(".")[2] for name in before if name.startswith(BEHAVIOUR)}
    assert kinds == ({"network"} if discrete else {"encoder", "decoder", "perturbation"})


# ------------------------------------------------------------------- limits


def test_generated_actions_stay_near_the_decoders_and_within_the_bounds() -> None:
    spec = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=2, action_low=-0.5, action_high=2.0)
    torch.manual_seed(0)
    behaviour = make_vae(spec, hidden=(16,), perturbation_hidden=(16,), latent_size=3, latent_clip=0.25)
    with torch.no_grad():
        for parameter in behaviour.parameters():
            parameter.mul_(5.0)
    parts = make_actor(spec, hidden=(8,)), make_critic(spec, decomposition="vdn", hidden=(8,))
    loss = updated(bcq_loss(*parts, behaviour))
    rows = make_batch(spec, 64)
    torch.manual_seed(1)
    found = generated_actions(loss.batch(rows), 30, detach=True)
    torch.manual_seed(1)
    latent = torch.randn(64, 30, 3, 3).clamp(-0.25, 0.25)
    seen = rows["agents", "observation"].unsqueeze(1).expand(64, 30, 3, 4)
    decoded = behaviour["decoder"].module(seen, latent)
    assert found.shape == (64, 30, 3, 2) and not found.requires_grad
    change = (found - decoded).abs()
    assert 0.06 < change.max() <= 0.05 * 1.25 + 1e-6  # of half the range
    assert -0.5 <= found.min() < -0.45 and 1.9 < found.max() <= 2.0


def test_a_threshold_of_one_leaves_the_likeliest_and_of_zero_all_legal_actions() -> None:
    case = Case("independent", preset="bcq", discrete=True)
    rows = make_batch(case.spec, 8)
    loss = case.build(threshold=1.0, reduction="none")
    likeliest = loss.team.behaviour(rows)[BEHAVIOUR_LOGITS].argmax(-1)
    assert_close(loss(rows)["loss_actor"], -loss.team.policy(rows).log_prob(likeliest).mean(-1))
    # what the likeliest next actions bring is the target of SARSA, were they recorded
    plain = case.build(threshold=1.0, min_weight=1.0, reduction="none")
    ahead = rows["next"]
    ahead["agents", "action"] = plain.team.behaviour(ahead)[BEHAVIOUR_LOGITS].argmax(-1)
    sarsa = updated(
        OfflineMARLLoss(case.actor(), case.critic(), value_learning=SARSA(), extraction=Cloning(), reduction="none")
    )
    sarsa.load_state_dict(plain.state_dict(), strict=False)
    assert_close(plain(rows)["loss_qvalue"], sarsa(rows)["loss_qvalue"])
    loss = case.build(threshold=0.0, min_weight=1.0, reduction="none")
    every = [one_hot(case.spec, torch.full((8, 3), i)) for i in range(case.spec.action_size)]
    values = torch.stack([loss.team.action_value(ahead, each, target=True).total_min.squeeze(-1) for each in every], -1)
    highest = values.masked_fill(~ahead["agents", "action_mask"], -torch.inf).amax(-1)
    target = ahead["agents", "reward"].squeeze(-1) + 0.9 * ~ahead["terminated"] * highest
    live = loss.team.action_value(rows, rows["agents", "action"]).total
    assert_close(loss(rows)["loss_qvalue"], (live - target.detach().unsqueeze(-1)).pow(2).sum(-1).mean(-1))


@pytest.mark.parametrize("decomposition", ["independent", "centralized"])
def test_illegal_actions_do_not_count(decomposition: str) -> None:
    """Without a mask of its own, the model may find illegal actions likely; they are still not taken."""
    case = Case(decomposition, preset="bcq", discrete=True)
    spec = TaskSpec(**(case.spec.to_dict() | {"has_action_mask": False}))
    torch.manual_seed(0)
    loss = updated(bcq_loss(case.actor(), case.critic(), make_behaviour_policy(spec, hidden=(8,)), threshold=0.0))
    rows = make_batch(case.spec, 32)
    action, _ = loss.extraction.best(loss.batch(rows))
    assert (action.bool() <= rows["agents", "action_mask"]).all() and (action.sum(-1) == 1).all()
    assert loss.extraction.best(loss.batch(rows.exclude(MASK)))[0].ne(action).any()


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BCQ(samples=0), "samples must be at least 1, got 0"),
        (lambda: BCQDistillation(threshold=1.5), "threshold must lie between 0 and 1, got 1.5"),
        (lambda: BCQ(min_weight=-0.1), "min_weight must lie between 0 and 1, got -0.1"),
        (lambda: TD(min_weight=2.0), "min_weight must lie between 0 and 1, got 2.0"),
        (lambda: VAELearning(kl_weight=-1.0), "kl_weight must be at least 0, got -1.0"),
        (lambda: make_vae(Case().spec, perturbation=0.0), "perturbation must be above 0, got 0.0"),
        (lambda: make_vae(Case().spec, latent_size=0), "latent_size must be at least 1, got 0"),
        (lambda: make_vae(Case(discrete=True).spec), "make_vae is for continuous actions"),
        (lambda: make_loss(Case().spec, algorithm="bcq", latent=3), "bcq has no setting 'latent'; it has"),
    ],
)
def test_settings_that_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_does_not_fit_together_is_refused() -> None:
    case = Case("independent", preset="bcq")
    with pytest.raises(ValueError, match="BCQ needs a model of the data's actions; pass behaviour="):
        OfflineMARLLoss(case.actor(), case.critic(), value_learning=BCQ(), extraction=Cloning())
    alone = OfflineMARLLoss(
        None, None, value_learning=None, extraction=None, behaviour=case.behaviour(), behaviour_learning=VAELearning()
    )
    with pytest.raises(ValueError, match="VAELearning trains its perturbation on a critic; pass one"):
        alone(make_batch(case.spec, 4))
    policy = TensorDictModule(nn.Linear(4, 2), in_keys=[OBSERVATION], out_keys=[("agents", "other")])
    options = {"value_learning": None, "behaviour": policy, "behaviour_learning": VAELearning()}
    for rule in (Cloning(), BCQDistillation()):
        loss = OfflineMARLLoss(case.actor(), case.critic(), extraction=rule, **options)
        who = "VAELearning" if isinstance(rule, Cloning) else "BCQDistillation"
        with pytest.raises(ValueError, match=f"{who} needs a model that generates actions; pass behaviour=make_vae"):
            loss(make_batch(case.spec, 4))


def test_the_preset_is_of_the_published_rules() -> None:
    for discrete in (False, True):
        case = Case("vdn", preset="bcq", discrete=discrete)
        loss = bcq_loss(case.actor(), case.critic(), case.behaviour())
        assert loss.value_learning == BCQ(samples=10, threshold=0.3, min_weight=0.75)
        assert loss.extraction == BCQDistillation(samples=10, threshold=0.3)
        assert loss.behaviour_learning == (SequentialCloning() if discrete else VAELearning(kl_weight=0.5))
    spec = Case().spec
    built = make_loss(spec, algorithm="bcq", perturbation=0.2).behaviour_network
    assert built["perturbation"].module.limit == 0.2 and built["decoder"].module.latent_size == 2 * spec.action_size
    assert [layer.out_features for layer in built["encoder"].module.network.mlp.layers] == [750, 750, 8]
    assert [layer.out_features for layer in built["perturbation"].module.network.mlp.layers] == [400, 300, 2]
    assert isinstance(built["decoder"].module, ActionDecoder) and isinstance(built["perturbation"].module, Perturbation)


# ------------------------------------------------------------------- learning


def one_step_data(spec: TaskSpec, rows: int, better) -> TensorDict:
    """Two modes of action, at -0.6 and 0.6, in equal shares; episodes of one step, rewarded by ``better``."""
    g = torch.Generator().manual_seed(0)
    data = make_batch(spec, rows)
    sign = torch.where(torch.rand(rows, 3, 1, generator=g) < 0.5, -1.0, 1.0)
    data["agents", "action"] = 0.6 * sign + 0.05 * torch.randn(rows, 3, spec.action_size, generator=g)
    data["next", "agents", "reward"] = better(data["agents", "action"]).mean(-1, keepdim=True)
    data["next", "terminated"] = torch.ones(rows, 1, dtype=torch.bool)
    data["next", "done"] = data["next", "terminated"]
    return data


@pytest.mark.thorough
@pytest.mark.slow
def test_the_policy_goes_to_the_better_mode_and_not_beyond() -> None:
    """Cloning's mean lies between the modes, and the critic alone would go to the bound."""
    spec = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=1)
    torch.manual_seed(0)
    data = one_step_data(spec, 2000, lambda action: action)
    loss = make_loss(spec, algorithm="bcq", hidden=(32, 32), behaviour_hidden=(32, 32), perturbation=0.1)
    updated(loss)
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-3)
    for step in range(250):
        rows = data[torch.randint(2000, (128,), generator=torch.Generator().manual_seed(step))]
        output = loss(rows)
        optimizer.zero_grad()
        sum(value for name, value in output.items() if name.startswith("loss_")).backward()
        optimizer.step()
    action = loss.policy_action(data[:200])
    assert 0.5 < action.mean() < 0.8 and action.std() < 0.15
    generated = generated_actions(loss.batch(data[:200]), 20, detach=True)
    assert (generated < -0.3).float().mean() > 0.1 and (generated > 0.3).float().mean() > 0.3  # both modes
