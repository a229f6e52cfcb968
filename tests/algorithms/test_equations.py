"""The systems of the field against plain statements of their equations, and by finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from algorithm_toys import td3_bc_loss
from objective_toys import SYSTEM_CASES, Case, gradients, make_batch, noise_of_its_place
from selection import some_of
from single_agent_toys import plain_networks, single_agent_batches, wrap
from systems_toys import one_hot, updated
from tensordict.nn import TensorDictModule
from torch.testing import assert_close
from torchrl.modules import TanhNormal
from torchrl.objectives import TD3BCLoss

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.noise import NoiseRequest, given_noise
from torchrl_marl_offline.modules import ScaleInvariantValueNorm, make_actor, make_critic
from torchrl_marl_offline.objectives import (
    CQL,
    CEMSampler,
    OfflineMARLLoss,
    PolicyGradient,
    SoftmaxSampler,
    in_sample,
)

ROWS = 5


def to_double(batch):
    return batch.apply(lambda x: x.double() if x.is_floating_point() else x)


def value_of(loss, batch, action, agent: int | None = None) -> torch.Tensor:
    """Q of the first head [B, H] at a joint action: an agent's own, or the team's."""
    values = loss.team.action_value(batch, action)
    if agent is not None and values.local is not None:
        return values.local[:, agent]
    return values.total[:, 0] if loss.is_team else values.total[:, agent]


@pytest.mark.parametrize("decomposition", ["independent", "centralized", "vdn", "linear"])
@pytest.mark.parametrize("svn", [False, True])
def test_conservative_with_discrete_actions(decomposition: str, svn: bool) -> None:
    case = Case(decomposition, preset="cql", discrete=True)
    options = {"value_norm": ScaleInvariantValueNorm()} if svn else {}
    loss = case.build(**options)
    batch = make_batch(case.spec, ROWS)
    found, metrics = loss.qvalue_loss(batch)
    loss.min_q_weight = 0.0
    without, _ = loss.qvalue_loss(batch)
    recorded = one_hot(case.spec, batch["agents", "action"])
    total = torch.zeros(())
    for row, agent in itertools.product(range(ROWS), range(case.spec.n_agents)):
        exponentials = torch.zeros(2)
        for action in range(case.spec.action_size):
            if batch["agents", "action_mask"][row, agent, action]:
                other = recorded.clone()
                other[row, agent] = torch.eye(case.spec.action_size)[action]
                exponentials = exponentials + value_of(loss, batch, other, agent)[row].exp()
        total = total + (exponentials.log() - value_of(loss, batch, recorded, agent)[row]).sum()
    expected = total / ROWS / case.spec.n_agents
    assert_close(metrics["critic_penalty"], expected.detach())
    scale = metrics["value_norm_scale"] if svn else 1.0
    assert_close(found - without, expected / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distribution", ["gaussian", "tanh_gaussian"])
def test_conservative_penalty_tends_to_the_integral(distribution: str) -> None:
    """Both proposals alone, and together, estimate log of the integral of exp Q over the actions."""
    spec = TaskSpec(n_agents=2, observation_size=3, state_size=3, action_size=1, action_low=-2.0, action_high=1.0)
    torch.manual_seed(0)
    actor = make_actor(spec, hidden=(8,), distribution=distribution, scale=0.8)
    critic = make_critic(spec, decomposition="independent", hidden=(8,), num_heads=1)
    batch = make_batch(spec, 3)
    grid = torch.linspace(-2, 1, 4001)
    with torch.no_grad():
        inputs = batch.select("agents").unsqueeze(1).expand(3, 4001).clone()
        inputs["agents", "action"] = grid.reshape(1, -1, 1, 1).expand(3, 4001, 2, 1).clone()
        values = critic(inputs)["agents", "state_action_value"].squeeze(-1)
        integral = torch.trapezoid(values.exp(), grid, dim=1).log()
        recorded = critic(batch.select("agents"))["agents", "state_action_value"].squeeze(-1)
    counts = [(40_000, 0), (0, 40_000), (20_000, 20_000)]
    for num_random, num_policy in counts if distribution == "tanh_gaussian" else counts[:1]:
        rule = CQL(num_random=num_random, num_policy=num_policy)
        loss = updated(OfflineMARLLoss(actor, critic, value_learning=rule, extraction=PolicyGradient()))
        with torch.no_grad():
            penalty = loss.qvalue_loss(batch.clone())[1]["critic_penalty"]
        assert_close(penalty, (integral - recorded).mean(), rtol=0, atol=0.03)


@pytest.mark.parametrize("decomposition", ["independent", "centralized", "mixer"])
@pytest.mark.parametrize("others", ["data", "policy"])
def test_ascent(decomposition: str, others: str) -> None:
    """Gradient and value: each agent's action in the place of its own, or all agents' at once."""
    case = Case(decomposition, "td")
    loss = case.build(extraction=PolicyGradient(others=others), reduction="none")
    batch = make_batch(case.spec, ROWS)
    n = case.spec.n_agents
    action, recorded = loss.team.policy(batch).deterministic_sample, batch["agents", "action"]
    terms = []
    for agent in range(n):
        mine = torch.arange(n).reshape(1, n, 1) == agent
        joint = torch.where(mine, action, recorded) if others == "data" else action
        values = loss.team.action_value(batch, joint).total
        terms.append(values[:, 0 if loss.is_team else agent, 0])
    expected = -torch.stack(terms, -1).mean(-1)
    assert_close(loss(batch)["loss_actor"], expected)
    parameters = list(loss.actor_network_params.parameters())
    by_hand = torch.autograd.grad(expected.mean(), parameters)
    loss.reduction = "mean"
    assert_close(list(torch.autograd.grad(loss(batch)["loss_actor"], parameters)), list(by_hand))


@pytest.mark.parametrize("decomposition", ["independent", "mixer"])
def test_td3_bc(decomposition: str) -> None:
    case = Case(decomposition, preset="td3_bc")
    loss = case.build(alpha=1.5, others="policy", noise=0.0, reduction="none")
    batch = make_batch(case.spec, ROWS)
    action = loss.team.policy(batch).deterministic_sample
    q = loss.team.action_value(batch, action).total[..., 0]  # [B, k]
    scaled = torch.stack([1.5 * column / column.abs().mean().detach() for column in q.unbind(-1)], -1)
    cloning = ((action - batch["agents", "action"]) ** 2).mean((-1, -2))
    assert_close(loss(batch)["loss_actor"], cloning - scaled.mean(-1), rtol=1e-4, atol=1e-5)
    same_networks = Case(decomposition, "td", "brac").build()
    assert_close(same_networks.qvalue_loss(batch)[0], loss.qvalue_loss(batch)[0].mean())


@pytest.mark.parametrize("decomposition", ["independent", "centralized", "vdn"])
@pytest.mark.parametrize("sampler", [SoftmaxSampler(beta=2.0, centre="updated"), CEMSampler(elites=3)])
def test_the_best_action_by_a_loop(decomposition: str, sampler) -> None:
    case = Case(decomposition, preset="omar")
    loss = case.build(rectification=1.0, sampler=sampler, reduction="none")
    batch = make_batch(case.spec, ROWS)
    n, a, count = case.spec.n_agents, case.spec.action_size, sampler.samples
    noise = [torch.randn(ROWS, count, n, a) for _ in range(sampler.iterations)]
    own = loss.team.policy(batch).deterministic_sample
    distance = torch.zeros(ROWS, n)
    for row, agent in itertools.product(range(ROWS), range(n)):

        def q(action: torch.Tensor, row=row, agent=agent) -> float:
            joint = batch["agents", "action"].clone()
            joint[row, agent] = action
            return value_of(loss, batch, joint, agent)[row, 0].item()

        mean, deviation, kept = torch.zeros(a), torch.full((a,), 2.0), []
        for drawn in noise:
            pool = [(mean + deviation * eps).clamp(-1, 1) for eps in drawn[row, :, agent]] + kept
            if isinstance(sampler, CEMSampler):
                kept = sorted(pool, key=q, reverse=True)[:3]
                mean, deviation = torch.stack(kept).mean(0), torch.stack(kept).std(0)
            else:
                weights = [math.exp(2 * q(each)) for each in pool]
                mean = sum(w * each for w, each in zip(weights, pool)) / sum(weights)
                deviation = (sum((each - mean) ** 2 for each in pool) / count).sqrt()
        best = max([*pool, own[row, agent].detach()], key=q)
        distance[row, agent] = ((own[row, agent].detach() - best) ** 2).mean()
    with given_noise([*noise, *[torch.zeros(1)] * 9]):
        found, _ = loss.actor_loss(batch)
    assert_close(found, distance.mean(-1), rtol=1e-4, atol=1e-5)
    assert distance.count_nonzero() > 3


@pytest.mark.parametrize("decomposition", ["independent", "vdn", "mixer", "linear"])
@pytest.mark.parametrize("preset", ["omac", "omiga"])
def test_local_values_and_their_weights(decomposition: str, preset: str) -> None:
    """The credit of every mixer is the derivative that autograd finds."""
    case = Case(decomposition, preset=preset)
    options = {"alpha": 0.5} if preset == "omiga" else {"expectile": 0.8, "temperature": 2.0}
    loss = case.build(**options, reduction="none")
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.mul_(1.7)  # targets unlike the live networks
    batch = make_batch(case.spec, ROWS)
    values = loss.team.action_value(batch, batch["agents", "action"], target=True)
    q = values.local.amin(-1).detach().requires_grad_()
    if decomposition == "independent":
        w = torch.ones(ROWS, 3)
    else:
        (w,) = torch.autograd.grad(loss.team.mix(batch, q.unsqueeze(-1), target=True).sum(), q)
    assert (w > 0).all() and (w.std() > 1e-3 or decomposition in ("independent", "vdn"))
    v = loss.team.state_value(batch).local.squeeze(-1)
    gap = q.detach() - v
    if preset == "omac":
        elements, x = torch.where(gap > 0, 0.8, 0.2) * gap**2, 2.0 * w * gap
        weight = x.clamp(-50, 10).exp().clamp_max(100)
    else:
        x = (w * gap / 0.5).clamp(-10, 10)
        largest = max(x.max().item(), -1.0)
        elements, weight = (x - largest).exp() + math.exp(-largest) * w * v / 0.5, x.exp()
    found = loss(batch)
    assert_close(found["loss_value"], elements.mean(-1), rtol=1e-4, atol=1e-5)
    log_prob = loss.team.policy(batch).log_prob(batch["agents", "action"])
    assert_close(found["loss_actor"], -(weight.detach() * log_prob).mean(-1), rtol=1e-4, atol=1e-5)
    parameters = list(loss.value_network_params.parameters())
    by_hand = torch.autograd.grad(elements.mean(), parameters)
    loss.reduction = "mean"
    assert_close(list(torch.autograd.grad(loss(batch)["loss_value"], parameters)), list(by_hand), rtol=1e-3, atol=1e-5)


def test_state_values_have_the_weights_of_action_values() -> None:
    case = Case("linear", preset="omac")
    loss = case.build()
    batch = make_batch(case.spec, ROWS)
    q = loss.team.action_value(batch, batch["agents", "action"], target=True)
    v = loss.team.state_value(batch)
    w = loss.team.credit(batch, q.local[..., :1])
    gap = (w * (q.local[..., :1] - v.local)).sum(-2)
    assert_close(q.total[:, 0, :1] - v.total[:, 0], gap)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("decomposition", ["linear", "centralized"])
def test_implicit_constraint(decomposition: str, discrete: bool) -> None:
    case = Case(decomposition, preset="icq", discrete=discrete)
    loss = case.build(beta=0.7, temperature=2.0, reduction="none")
    batch = make_batch(case.spec, 8)
    batch["next", "terminated"][:2] = True
    action = batch["agents", "action"]
    following = loss.team.action_value(batch["next"], batch["next", "agents", "action"], target=True).total.amin(-1)[
        :, 0
    ]
    goes_on = ~batch["next", "terminated"].squeeze(-1)
    rho = (following / 0.7).exp() / (following[goes_on] / 0.7).exp().sum() * goes_on.sum()
    reward = batch["next", "agents", "reward"].mean((-1, -2))
    target = (reward + 0.9 * goes_on * rho * following).detach()
    live = loss.team.action_value(batch, action)
    found = loss(batch)
    assert_close(found["loss_qvalue"], ((live.total[:, 0] - target.unsqueeze(-1)) ** 2).sum(-1), rtol=1e-4, atol=1e-5)
    policy = loss.team.policy(batch)
    if decomposition == "centralized":
        advantage = live.total.amin(-1) - loss.team.action_value(batch, policy.deterministic_sample).total.amin(-1)
        advantage = advantage.expand(8, 3)
    else:
        if discrete:
            each = [
                loss.team.action_value(batch, one_hot(case.spec, torch.full_like(action, i))).local.amin(-1)
                for i in range(case.spec.action_size)
            ]
            baseline = (policy.probs * torch.stack(each, -1)).sum(-1)
        else:
            baseline = loss.team.action_value(batch, policy.deterministic_sample).local.amin(-1)
        w = loss.team.credit(batch, live.local).mean(-1)
        advantage = w * (live.local.amin(-1) - baseline)
    weights = 8 * torch.softmax(2.0 * advantage, 0).detach()
    assert_close(found["loss_actor"], -(weights * policy.log_prob(action)).mean(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", some_of(SYSTEM_CASES, every=2), ids=str)
def test_gradients_by_finite_differences(case: Case, monkeypatch) -> None:
    monkeypatch.setattr(NoiseRequest, "draw", noise_of_its_place)
    loss = case.build().double()
    batch = to_double(make_batch(case.spec, 6))
    # a one-hot sample has no difference to take; scales and weights that depend on the policy are constants, and so is
    # the score, whose own tests hold its gradient against a known density's
    skipped = case.discrete or case.preset in ("td3_bc", "icq", "mac_flow", "omsd")
    terms = [t for t in loss.out_keys if t.startswith("loss_") and not (t == "loss_actor" and skipped)]
    if case.preset == "bcq" and not case.discrete:  # what the decoder generates is a constant of its perturbation
        terms.remove("loss_behaviour")
    monkeypatch.setattr(in_sample, "batch_max", lambda x, mask, dims: x.new_zeros([1] * x.ndim))  # another constant
    parameters, step, checked = dict(loss.named_parameters()), 1e-6, 0
    generator = torch.Generator().manual_seed(0)
    for term in terms:
        expected = gradients(loss, batch, term)
        for name in (name for name, grad in expected.items() if grad.count_nonzero()):
            flat = parameters[name].data.view(-1)
            index = torch.randint(len(flat), (1,), generator=generator).item()
            centre, ends = flat[index].item(), []
            for sign in (1, -1):
                flat[index] = centre + sign * step
                with torch.no_grad():
                    ends.append(loss(batch)[term].item())
            flat[index] = centre
            found = (ends[0] - ends[1]) / (2 * step)
            assert found == pytest.approx(expected[name].view(-1)[index].item(), rel=1e-4, abs=1e-7), f"{term} {name}"
            checked += 1
    assert checked >= 3


def test_an_ensemble_of_critics_is_asked_as_its_members_are() -> None:
    case = Case("independent", preset="omar")
    critics = [case.critic(num_heads=1) for _ in range(3)]
    loss = case.build(critic=critics)
    batch = make_batch(case.spec, ROWS)
    actions = torch.rand(ROWS, 4, 3, 2) - 0.5
    found = loss.batch(batch).candidates(actions)
    assert found.shape == (ROWS, 4, 3, 3)
    for index, critic in enumerate(critics):
        inputs = batch.select("agents").clone()
        inputs["agents", "action"] = actions[:, 2]
        assert_close(found[:, 2, :, index], critic(inputs)["agents", "state_action_value"].squeeze(-1))
    assert all(value.isfinite() for value in loss(batch).values())


@pytest.mark.filterwarnings("ignore:You did not provide a delay:UserWarning")
def test_one_agent_equals_torchrls_td3_bc() -> None:
    networks = plain_networks()
    flat, agents = single_agent_batches()
    actor, critics, _ = wrap(networks, ())
    mean, mode = actor[0].module, TanhNormal(torch.zeros(1), torch.ones(1)).transforms[0]
    policy = TensorDictModule(lambda o: mode(mean(o)[0]), in_keys=["observation"], out_keys=["action"])
    theirs = TD3BCLoss(policy, critics, bounds=(-1.0, 1.0), alpha=1.3)
    ours_actor, ours_critics, _ = wrap(networks, ("agents",))
    ours = updated(td3_bc_loss(ours_actor, ours_critics, alpha=1.3))
    expected, _ = theirs.actor_loss(flat)
    assert_close(ours.actor_loss(agents)[0], expected.mean(), rtol=1e-4, atol=1e-5)
