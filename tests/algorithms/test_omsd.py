"""Sequential score decomposition: what each agent's model sees, its equations, its limits, what policies do with it."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from algorithm_toys import omsd_loss
from objective_toys import CONTINUOUS, DISCRETE, HIDDEN, Case, gradients, make_batch
from population_toys import make_data
from selection import thorough
from systems_toys import ACTION, OBSERVATION, actor, batch, critic, one_hot, ready, updated, value
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.testing import assert_close
from trainers import trainer_for

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.noise import given_noise
from torchrl_marl_offline.data import from_arrays
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.evaluation import evaluate
from torchrl_marl_offline.modules import make_actor, make_score, make_sequential_policy
from torchrl_marl_offline.modules.action_range import ActionRange
from torchrl_marl_offline.modules.diffusion import DIFFUSION_TIME, NOISE, NOISY_ACTION, NoisePredictor
from torchrl_marl_offline.modules.sequential import previous_actions
from torchrl_marl_offline.objectives import (
    IQL,
    OfflineMARLLoss,
    PolicyGradient,
    ScoreMatching,
    ScoreRegularized,
    SequentialCloning,
)
from torchrl_marl_offline.training import Trainer

ROWS = 5
ALPHA, SIGMA = math.exp(-1.26875), math.sqrt(1 - math.exp(-2.5375))
"""At t = 1/2: log alpha = -19.9 / 16 - 0.1 / 4."""


class Exact(nn.Module):
    """The noise in actions that are normal around a mean, the second agent's around the first agent's action."""

    level, perturb = NoisePredictor.level, NoisePredictor.perturb

    def __init__(self, *, mean: float = 0.1, deviation: float = 1.0, spec: TaskSpec | None = None) -> None:
        super().__init__()
        self.mean, self.deviation = nn.Parameter(torch.tensor(mean)), deviation
        self.range, self.beta_range = (
            ActionRange(-1.0, 1.0, middle=0.0, half=1.0, divisor=1.0) if spec is None else ActionRange.of(spec),
            (0.1, 20.0),
        )

    def means(self, action: Tensor) -> Tensor:
        first = self.mean.expand_as(action[..., :1, :])
        return torch.cat([first, self.range.scaled(action[..., :1, :])], -2)

    def forward(self, action: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = self.level(time)
        variance = alpha**2 * self.deviation**2 + sigma**2
        return sigma * (noisy - alpha * self.means(action)) / variance


class TwoModes(Exact):
    """The noise in joint actions that are at (m, m) or at (-m, -m), both times with a small deviation."""

    def forward(self, action: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = self.level(time)
        variance = alpha**2 * self.deviation**2 + sigma**2
        slope = alpha * self.mean / variance  # half the log-odds of the upper mode that a noisy action adds
        first = action[..., :1, :] * self.mean / self.deviation**2
        known = torch.cat([torch.zeros_like(first), first], -2)
        where = self.mean * torch.tanh(slope * noisy + known)
        return sigma * (noisy - alpha * where) / variance


def modelled(module: nn.Module) -> TensorDictModule:
    return TensorDictModule(module, in_keys=[ACTION, NOISY_ACTION, DIFFUSION_TIME], out_keys=[NOISE])


def by_hand(*, team: bool, **options) -> OfflineMARLLoss:
    networks = actor(), critic(team=team), value(), modelled(Exact())
    return ready(omsd_loss(*networks, **({"beta": 0.5, "reduction": "none"} | options)))


def at_half_time(rows: int = 3, noise: float = 0.0) -> list[Tensor]:
    """The noise with which both terms see t = 1/2 and the same noise."""
    times = (0.48 / 0.96, 0.499 / 0.999)
    return [torch.full((rows, 2, 1), number) for time in times for number in (time, noise)]


# --------------------------------------------------------------------------- what the models see


def test_schedule_by_hand() -> None:
    predictor = make_score(TaskSpec(n_agents=1, observation_size=1, state_size=1, action_size=1)).module
    alpha, sigma = predictor.level(torch.tensor([0.0, 0.5, 1.0]))
    assert_close(alpha, torch.tensor([1.0, ALPHA, math.exp(-5.025)]))
    assert_close(sigma, torch.tensor([0.0, SIGMA, math.sqrt(1 - math.exp(-10.05))]))
    wide = TaskSpec(n_agents=1, observation_size=1, state_size=1, action_size=1, action_low=-1.0, action_high=3.0)
    noisy = make_score(wide).module.perturb(torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 0.5), torch.ones(1, 1, 1))
    assert_close(noisy.item(), 0.5 * ALPHA + SIGMA)


def test_previous_actions_by_hand() -> None:
    action = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    expected = [[[0.0] * 4, [1.0, 2.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]]]
    assert torch.equal(previous_actions(action), torch.tensor(expected))
    assert previous_actions(action[:, :1]).shape == (1, 1, 0)


@pytest.mark.parametrize("joint_observation", [False, True])
@pytest.mark.parametrize("share_params", [False, True])
@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_an_agent_sees_the_actions_of_agents_before_it_alone(
    spec: TaskSpec, share_params: bool, joint_observation: bool
) -> None:
    torch.manual_seed(0)
    options = {"hidden": HIDDEN, "share_params": share_params, "joint_observation": joint_observation}
    make = make_sequential_policy if spec.discrete else make_score
    network = make(spec, **options)
    rows = make_batch(spec, ROWS)
    seen = rows["agents", "observation"] if joint_observation else rows["state"]
    seen.requires_grad_()
    action = torch.rand(ROWS, 3, spec.action_size, requires_grad=True)
    own = [torch.randn(ROWS, 3, spec.action_size, requires_grad=True), torch.rand(ROWS, 3, 1, requires_grad=True)]
    own = [] if spec.discrete else own
    out = network.module(seen, action, *own)
    assert out.shape == (ROWS, 3, spec.action_size) and network.in_keys[1] == ACTION
    for agent in range(3):
        found = torch.autograd.grad(out[:, agent].sum(), [seen, action, *own], retain_graph=True)
        others = found[1].abs().amax((0, 2)) > 0
        assert others.tolist() == [other < agent for other in range(3)]
        assert found[0].any() if joint_observation else found[0].all()
        for gradient in found[2:]:
            assert (gradient.abs().amax((0, 2)) > 0).tolist() == [other == agent for other in range(3)]


# --------------------------------------------------------------------------- numbers by hand


def test_score_by_hand() -> None:
    """With deviation 1 and no noise, the error of the predicted noise is alpha sigma (u - mean)."""
    loss = by_hand(team=False)
    with given_noise(at_half_time()):
        found = loss(batch())
    # the policy's actions (.4, .8), (0, .4), (-.4, .2) are (.3, .4), (-.1, .4), (-.5, .6) from .1 and from the first's;
    # distance times action: (.12, .32), (0, .16), (.2, .12); values (1.4, 2.8), (0, 1.4), (-1.4, .7)
    rows = [(2 * 0.44 * ALPHA**2 - 4.2) / 2, (2 * 0.16 * ALPHA**2 - 1.4) / 2, (2 * 0.32 * ALPHA**2 + 0.7) / 2]
    assert_close(found["loss_actor"], torch.tensor(rows))
    # recorded actions (.5, 0), (0, 1), (-.5, .5) are (.4, -.5), (-.1, 1), (-.6, 1) from theirs
    squares = torch.tensor([0.16 + 0.25, 0.01 + 1.0, 0.36 + 1.0]) / 2
    assert_close(found["loss_behaviour"], ALPHA**2 * SIGMA**2 * squares)
    loss.reduction = "mean"
    with given_noise(at_half_time()):
        found = gradients(loss, batch(), "loss_actor")
    # by the factor of the policy: distance times observation less the observation
    score = 0.3 + 0.8 + 0.0 + 0.4 + 0.5 + 0.3
    (slope,) = found.values()
    assert_close(slope, torch.tensor((2 * ALPHA**2 * score - 3.5) / 6))


def test_the_noise_is_subtracted() -> None:
    losses = []
    for noise in (0.0, 2.0):
        loss = by_hand(team=False)
        with given_noise(at_half_time(noise=noise)):
            losses.append(loss(batch())["loss_actor"])
    # of the prediction sigma (alpha u + sigma noise - alpha mean), less the noise: -alpha^2 noise
    actions = torch.tensor([1.2, 0.4, -0.2]) / 2
    assert_close(losses[1] - losses[0], 2 * (ALPHA / SIGMA) * -(ALPHA**2) * 2.0 * actions)


def test_of_a_team_the_value_counts_once_and_every_agent_is_held() -> None:
    found = []
    for beta in (0.5, 1e12):
        loss = by_hand(team=True, beta=beta)
        with given_noise(at_half_time()):
            found.append(loss(batch())["loss_actor"])
    # Q_tot = s (Q_1 + 2 Q_2) + s
    assert_close(found[1], -torch.tensor([7.0 + 1.0, 0.5 * 2.8 + 0.5, 2 * 0.0 + 2.0]))
    assert_close(found[0] - found[1], 2 * ALPHA**2 * torch.tensor([0.44, 0.16, 0.32]))
    rows = batch()
    rows["agents", "mask"] = rows["next", "agents", "mask"] = torch.tensor([[True, False]] * 3)
    loss = by_hand(team=True)
    with given_noise(at_half_time()):
        alone = loss(rows)["loss_actor"]
    loss.beta.fill_(math.inf)
    with given_noise(at_half_time()):
        assert_close(alone - loss(rows)["loss_actor"], 2 * ALPHA**2 * torch.tensor([0.12, 0.0, 0.2]))


@pytest.mark.parametrize(
    ("weight", "expected"), [("score", ALPHA / SIGMA), ("uniform", 1.0), ("variance", SIGMA**2)], ids=str
)
def test_weights_of_time_by_hand(weight: str, expected: float) -> None:
    loss = by_hand(team=False, time_weight=weight)
    with given_noise(at_half_time()):
        found = loss(batch())["loss_actor"]
    loss.beta.fill_(math.inf)
    with given_noise(at_half_time()):
        assert_close(found - loss(batch())["loss_actor"], expected * ALPHA * SIGMA * torch.tensor([0.44, 0.16, 0.32]))


def test_actions_are_in_halves_of_their_range() -> None:
    """A range of another size, with actions and their model stretched alike: the same divergence."""
    wide = TaskSpec(n_agents=2, observation_size=1, state_size=1, action_size=1, action_low=-2.0, action_high=2.0)
    found = []
    for model, stretch in ((Exact(), 1.0), (Exact(spec=wide), 2.0)):
        rows = batch()
        rows[OBSERVATION] = rows[OBSERVATION] * stretch
        rows[ACTION] = rows[ACTION] * stretch
        loss = ready(omsd_loss(actor(low=-2.0, high=2.0), critic(team=False), value(), modelled(model), beta=0.5))
        terms = []
        for beta in (0.5, 1e12):
            loss.beta = beta
            with given_noise(at_half_time()):
                terms.append(loss(rows.clone()))
        found.append((terms[0]["loss_actor"] - terms[1]["loss_actor"], terms[0]["loss_behaviour"]))
    assert_close(found[1], found[0])


# --------------------------------------------------------------------------- equations restated


def test_in_expectation_it_is_the_gradient_of_the_diffused_log_density() -> None:
    """Averaged over times and noise: of -E log p_t(alpha u + sigma noise), by an integral over t."""
    deviation, rows = 0.3, 40_000
    loss = OfflineMARLLoss(
        actor(),
        critic(team=False),
        value_learning=None,
        extraction=ScoreRegularized(beta=1.0),
        behaviour=modelled(Exact(deviation=deviation)),
        behaviour_learning=ScoreMatching(),
    )
    big = TensorDict({"agents": {"observation": torch.ones(rows, 2, 1), "action": torch.zeros(rows, 2, 1)}}, [rows])
    torch.manual_seed(0)
    (found,) = gradients(loss, big, "loss_actor").values()
    time = torch.linspace(0.02, 0.98, 2001)
    alpha, sigma = Exact().level(time)
    slope = torch.trapezoid(alpha**2 / (alpha**2 * deviation**2 + sigma**2), time) / 0.96
    # both agents do .4, of which the first is .3 off its mean and the second not at all; the value's slope is 1
    assert_close(found, slope * 0.3 / 2 - 1.0, rtol=0.03, atol=0.0)
    assert slope > 1.0


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("decomposition", ["centralized", "mixer", "independent"])
def test_continuous_by_a_loop(decomposition: str, normalize: bool) -> None:
    case = Case(decomposition, preset="omsd")
    loss = case.build(beta=0.3, normalize=normalize)
    rows = make_batch(case.spec, ROWS)
    n, a = case.spec.n_agents, case.spec.action_size
    torch.manual_seed(4)
    noise = [draw(ROWS, n, width) for _ in range(2) for draw, width in ((torch.rand, 1), (torch.randn, a))]
    predictor, params = copy.deepcopy(loss.behaviour_network.module), loss.behaviour_network_params
    params.to_module(TensorDictModule(predictor, in_keys=["x"], out_keys=["y"]))

    def error(agent: int, before: Tensor, own: Tensor, time: Tensor, drawn: Tensor) -> Tensor:
        """Of one agent's predicted noise [B, a], from the network's inputs one by one."""
        alpha = (-0.25 * time**2 * 19.9 - 0.05 * time).exp()
        joint = torch.full((ROWS, n, a), 7.0)  # which nobody may see
        joint[:, :agent] = before
        noisy, times = torch.full((ROWS, n, a), 7.0), torch.full((ROWS, n, 1), 7.0)
        noisy[:, agent], times[:, agent] = alpha * own + (1 - alpha**2).sqrt() * drawn, time
        return predictor(rows["state"], joint, noisy, times)[:, agent] - drawn

    action, recorded = loss.team.policy(rows).deterministic_sample, rows[ACTION]
    held, fitted = [], []
    for agent in range(n):
        time, drawn = 0.02 + 0.96 * noise[0][:, agent], noise[1][:, agent]
        found = error(agent, action[:, :agent].detach(), action[:, agent].detach(), time, drawn).detach()
        alpha = (-0.25 * time**2 * 19.9 - 0.05 * time).exp()
        held.append((alpha / (1 - alpha**2).sqrt() * found * action[:, agent]).sum(-1))
        time, drawn = 0.001 + 0.999 * noise[2][:, agent], noise[3][:, agent]
        fitted.append(error(agent, recorded[:, :agent], recorded[:, agent], time, drawn).pow(2).sum(-1))
    q = loss.team.action_value(rows, action).total[..., 0]  # [B, k] of the first head
    q = torch.stack([each / each.detach().abs().mean() if normalize else each for each in q.unbind(-1)], -1)
    penalty = sum(held) / 0.3 / (n if decomposition == "independent" else 1)
    expected = (penalty - q.mean(-1)).mean()
    with given_noise(noise):
        found = loss(rows)
    assert_close(found["loss_actor"], expected, rtol=1e-4, atol=1e-5)
    assert_close(found["loss_behaviour"], sum(fitted).mean() / n, rtol=1e-4, atol=1e-5)
    parameters = list(loss.actor_network_params.parameters())
    by_loop = torch.autograd.grad(expected, parameters)
    assert_close(list(torch.autograd.grad(found["loss_actor"], parameters)), list(by_loop), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decomposition", ["centralized", "independent"])
def test_discrete_by_a_loop(decomposition: str) -> None:
    case = Case(decomposition, preset="omsd", discrete=True)
    loss = case.build(beta=0.3)
    rows = make_batch(case.spec, ROWS)
    n, legal = case.spec.n_agents, rows["agents", "action_mask"]
    model = copy.deepcopy(loss.behaviour_network)
    loss.behaviour_network_params.to_module(model)
    policy = loss.team.policy(rows)
    mode, recorded = one_hot(case.spec, policy.probs.argmax(-1)), one_hot(case.spec, rows[ACTION])
    held, fitted = torch.zeros(()), torch.zeros(())
    for row, agent in itertools.product(range(ROWS), range(n)):
        chances = {}
        for name, others in (("policy", mode), ("data", recorded)):
            joint = torch.zeros_like(others)
            joint[:, :agent] = others[:, :agent]
            logits = model.module(rows["state"], joint)[row, agent][legal[row, agent]].detach()
            chances[name] = logits.exp() / logits.exp().sum()
        own = policy.probs[row, agent][legal[row, agent]]
        held = held - (own * chances["policy"].log()).sum()
        taken = recorded[row, agent][legal[row, agent]].bool()
        fitted = fitted - chances["data"][taken].log().squeeze()
    straight = mode + policy.probs - policy.probs.detach()
    q = loss.team.action_value(rows, straight).total[..., 0]
    expected = held / 0.3 / ROWS / (n if decomposition == "independent" else 1) - q.mean()
    found = loss(rows)
    assert_close(found["loss_actor"], expected, rtol=1e-4, atol=1e-5)
    assert_close(found["loss_behaviour"], fitted / ROWS / n, rtol=1e-4, atol=1e-5)
    assert_close(found["behaviour_error"], (held / ROWS / n).detach(), rtol=1e-4, atol=1e-5)
    parameters = list(loss.actor_network_params.parameters())
    by_loop = torch.autograd.grad(expected, parameters)
    assert_close(list(torch.autograd.grad(found["loss_actor"], parameters)), list(by_loop), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("discrete", [False, True])
def test_much_regularization_overflows_nothing(discrete: bool) -> None:
    """Illegal actions have the lowest log-probability there is, and it must not be multiplied."""
    case = Case("centralized", preset="omsd", discrete=discrete)
    strong, weaker = case.build(beta=1e-6), case.build(beta=1.0)
    rows, found = make_batch(case.spec, ROWS), []
    for loss in (strong, weaker):
        torch.manual_seed(0)
        found.append(gradients(loss, rows, "loss_actor"))
    for name, grad in found[0].items():
        assert grad.isfinite().all(), name
    weaker.beta.fill_(math.inf)
    torch.manual_seed(0)
    alone = gradients(weaker, rows, "loss_actor")
    for name, grad in found[0].items():
        assert_close(1e-6 * grad, found[1][name] - alone[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("discrete", [False, True])
def test_models_by_finite_differences(discrete: bool) -> None:
    case = Case("centralized", preset="omsd", discrete=discrete)
    loss = case.build().double()
    rows = make_batch(case.spec, ROWS).apply(lambda x: x.double() if x.is_floating_point() else x)
    parameters = dict(loss.behaviour_network_params.named_parameters())
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}

    def term() -> Tensor:
        torch.manual_seed(2)
        return loss.behaviour_loss(rows)[0]

    slopes = torch.autograd.grad(term(), list(parameters.values()))
    expected = sum((slope * d).sum() for slope, d in zip(slopes, directions.values()))
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.add_(step * directions[name])
            ends.append(term())
    assert_close((ends[0] - ends[1]) / 2e-6, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("discrete", [False, True])
def test_agents_that_are_not_there_do_nothing_to_the_others(discrete: bool) -> None:
    case = Case("centralized", preset="omsd", discrete=discrete)
    loss = case.build(beta=1.0, reduction="none")
    rows = make_batch(case.spec, ROWS)
    alive = torch.tensor([False, True, True]).expand(ROWS, 3)
    rows["agents", "mask"] = rows["next", "agents", "mask"] = alive
    found = []
    for shift in (0, 1):
        seen = rows.clone()
        if discrete:
            legal = torch.ones_like(seen["agents", "action_mask"])
            seen["agents", "action_mask"], seen[ACTION] = legal, seen[ACTION].clone()
            seen[ACTION][:, 0] = shift
        given = []
        inner = loss.team.behaviour

        def spy(tensordict, *, given=given, inner=inner, **options):
            given.append(options["agents.action"])
            return inner(tensordict, **options)

        clean = loss.batch(seen).tensordict
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(vars(loss.team), "behaviour", spy)
            torch.manual_seed(0)
            loss.actor_loss(clean)
        policy = loss.team.policy(clean)
        expected = one_hot(case.spec, policy.probs.argmax(-1)) if discrete else policy.deterministic_sample.detach()
        expected[:, 0] = one_hot(case.spec, torch.tensor(0)) if discrete else 0.0
        assert_close(given[0], expected)
        found.append(given[0])
    assert torch.equal(*found)


# --------------------------------------------------------------------------- limits


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("decomposition", ["centralized", "mixer", "independent"])
def test_without_regularization_it_is_the_policy_gradient(decomposition: str, discrete: bool) -> None:
    case = Case(decomposition, preset="omsd", discrete=discrete)
    free = case.build(beta=1e12)
    torch.manual_seed(1)
    parts = case.actor(), case.critic(), case.value()
    rule = PolicyGradient(others="policy", sample=False)
    plain = updated(OfflineMARLLoss(*parts, value_learning=IQL(0.7), extraction=rule))
    rows = make_batch(case.spec, ROWS)
    for term in ("loss_actor", "loss_qvalue", "loss_value"):
        found, expected = gradients(free, rows, term), gradients(plain, rows, term)
        assert expected.keys() == found.keys() and any(grad.any() for grad in expected.values())
        assert_close(found, expected)
    free.beta = 0.1
    assert any(not torch.allclose(found, plain, rtol=1e-2) for found, plain in pairs_of(free, plain, rows))


def pairs_of(a: OfflineMARLLoss, b: OfflineMARLLoss, rows: TensorDict) -> list[tuple[Tensor, Tensor]]:
    found = [gradients(loss, rows, "loss_actor") for loss in (a, b)]
    return [(found[0][name], found[1][name]) for name in found[0]]


def follow(model: nn.Module, *, seed: int, time_weight: str, steps: int = 250) -> Tensor:
    """Train two policies on the score alone, where the critic says nothing, and return their actions."""
    spec = TaskSpec(n_agents=2, observation_size=1, state_size=1, action_size=1)
    torch.manual_seed(seed)
    policies = make_actor(spec, hidden=HIDDEN, share_params=False, distribution="tanh_gaussian", final_scale=1.0)
    indifferent = critic(team=False)
    nn.init.zeros_(indifferent.module.g)
    loss = OfflineMARLLoss(
        policies,
        indifferent,
        value_learning=None,
        extraction=ScoreRegularized(time_weight=time_weight),
        behaviour=modelled(model.requires_grad_(False)),
        behaviour_learning=ScoreMatching(),
    )
    rows = TensorDict({"agents": {"observation": torch.ones(128, 2, 1), "action": torch.zeros(128, 2, 1)}}, [128])
    trained = list(loss.actor_network_params.parameters())
    optimizer = torch.optim.Adam(trained, lr=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / steps)
        optimizer.zero_grad()
        loss.actor_loss(rows)[0].backward()
        optimizer.step()
    return loss.policy_action(rows)[0].flatten()


def test_without_a_critic_policies_go_where_the_data_is() -> None:
    found = follow(Exact(mean=0.5, deviation=0.2), seed=0, time_weight="score")
    assert_close(found, torch.tensor([0.5, 0.5]), rtol=0, atol=0.05)


@pytest.mark.parametrize("seed", [0, thorough(1), thorough(2)])
def test_policies_find_one_mode_together_where_late_times_do_not_count(seed: int) -> None:
    """The data is at (.8, .8) and (-.8, -.8); independent models would say that each agent may choose for itself."""
    together = follow(TwoModes(mean=0.8, deviation=0.1), seed=seed, time_weight="score")
    assert (together.abs() > 0.6).all() and together[0] * together[1] > 0
    between = follow(TwoModes(mean=0.8, deviation=0.1), seed=seed, time_weight="variance")
    assert (between.abs() < 0.3).all()


# --------------------------------------------------------------------------- learning


def train(loss: OfflineMARLLoss, data, *, steps: int, **options) -> Trainer:
    rows = data.replay_buffer(batch_size=32, seed=0, keys=loss.in_keys)
    trainer = trainer_for(loss, rows, steps=steps, progress=False, compile="off", **({"lr": 3e-3} | options))
    trainer.train()
    return trainer


def test_two_good_joint_actions_are_told_from_four_actions() -> None:
    """Xor: the model of the second agent follows the first, and so do the policies, at once and without seeing it."""
    first = torch.arange(200) % 2
    data = from_arrays(
        observations=torch.ones(200, 2, 1),
        actions=torch.stack([first, 1 - first], -1),
        rewards=torch.ones(200, 2),
        terminals=torch.zeros(200),
        truncations=(torch.arange(200) % 50 == 49).float(),
        state=torch.ones(200, 1),
        n_actions=2,
    )
    torch.manual_seed(5)
    loss = make_loss(data.spec, algorithm="omsd", hidden=(16,), beta=1.0)
    train(loss, data, steps=500)
    rows = data.data[:2].to_tensordict()
    with torch.no_grad():
        model = loss.team.behaviour(rows)["agents", "behaviour_logits"].softmax(-1)
    assert_close(model[:, 0], torch.full((2, 2), 0.5), rtol=0, atol=0.2)
    assert (model[:, 1].gather(-1, rows[ACTION][:, 1:]) > 0.9).all()
    env = make_env("games/xor", num_envs=4)
    assert evaluate(loss.actor_network, env, episodes=4, seed=0).mean == 50.0
    assert evaluate(loss.actor_network, env, episodes=40, seed=0, mode="sample").mean > 45.0


@pytest.mark.parametrize("discrete", [False, True])
def test_a_run_that_is_resumed_is_the_run_and_trains_everything(discrete: bool, tmp_path) -> None:
    data = make_data(discrete=discrete)

    def start() -> OfflineMARLLoss:
        torch.manual_seed(3)
        return make_loss(data.spec, algorithm="omsd", hidden=(8,))

    whole = train(start(), data, steps=8, output=tmp_path / "whole")
    before = start()
    for name, parameter in before.named_parameters():
        assert not torch.equal(parameter, dict(whole.loss.named_parameters())[name]), f"{name} has not moved"
    train(start(), data, steps=4, output=tmp_path / "parts", checkpoint_every=4)
    rest = start()
    rows = data.replay_buffer(batch_size=32, seed=5, keys=rest.in_keys)
    options = {"steps": 8, "lr": 3e-3, "progress": False, "compile": "off", "output": tmp_path / "parts"}
    trainer = trainer_for(rest, rows, **options)
    trainer.resume()
    assert trainer.step == 4
    trainer.train()
    for name, parameter in rest.named_parameters():
        assert torch.equal(parameter, dict(whole.loss.named_parameters())[name]), name


def test_a_model_is_trained_alone_before() -> None:
    data = make_data()
    torch.manual_seed(0)
    score = make_score(data.spec, hidden=(32,))
    options = {"value_learning": None, "extraction": None}
    loss = OfflineMARLLoss(None, None, behaviour=score, behaviour_learning=ScoreMatching(), **options)
    rows = data.data.to_tensordict()

    def error() -> float:
        torch.manual_seed(1)
        return loss(rows)["denoising_error"].item()

    start = error()
    assert set(loss.in_keys) == {ACTION, "state"} and loss.out_keys == ["loss_behaviour", "denoising_error"]
    train(loss, data, steps=100, lr=1e-2)
    assert error() < 0.7 * start


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_score(DISCRETE), "make_score is for continuous actions; for a discrete task use"),
        (lambda: make_sequential_policy(CONTINUOUS), "is for discrete actions; for a continuous task use make_score"),
        (
            lambda: make_score(CONTINUOUS, beta_range=(1.0, 1.0)),
            r"beta_range must be two rising numbers, got \(1.0, 1.0\)",
        ),
        (lambda: make_score(CONTINUOUS, time_size=3), "time_size must be even and positive, got 3"),
        (lambda: ScoreRegularized(beta=0.0), "beta must be above 0, got 0.0"),
        (lambda: ScoreRegularized(time_weight="late"), "time_weight must be 'score', 'uniform' or 'variance', got"),
        (lambda: ScoreRegularized(times=(0.5, 0.5)), "times must be two rising numbers, got"),
        (lambda: ScoreMatching(times=(0.0, 1.0)), "times must be above 0 and at most 1, got 0.0"),
        (lambda: ScoreRegularized(others="all"), "others must be 'data' or 'policy', got 'all'"),
        (
            lambda: Case("centralized", "iql").build(extraction=ScoreRegularized()),
            "needs a model of the data's actions",
        ),
    ],
)
def test_settings_that_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("term", ["actor_loss", "behaviour_loss"])
def test_models_of_the_other_kind_are_refused(term: str) -> None:
    for discrete, wrong, learning, message in (
        (False, DISCRETE, ScoreMatching(), "needs a diffusion model of continuous actions; pass behaviour=make_score"),
        (True, CONTINUOUS, SequentialCloning(), "needs a model of discrete actions; pass behaviour=make_sequential"),
    ):
        case = Case("centralized", preset="omsd", discrete=discrete)
        model = (make_sequential_policy if wrong.discrete else make_score)(wrong, hidden=HIDDEN)
        torch.manual_seed(1)
        networks = case.actor(), case.critic(), case.value(), model
        loss = updated(omsd_loss(*networks, behaviour_learning=learning))
        with pytest.raises(ValueError, match=message):
            getattr(loss, term)(make_batch(case.spec, ROWS))
