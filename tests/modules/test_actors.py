"""Actors: bounds, masks, densities and the gradient through a discrete sample."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import TanhNormal as TorchRLTanhNormal

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.modules import BoundedNormal, GaussianHead, MaskedCategorical, TanhNormal, make_actor
from torchrl_marl_offline.modules.distributions import straight_through

SPEC = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=2, action_low=-0.5, action_high=2.0)
DISCRETE = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=4, discrete=True, has_action_mask=True)
ACTION = ("agents", "action")
KINDS = [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.MEAN]


def inputs(spec: TaskSpec, *batch: int) -> TensorDict:
    agents = {"observation": 5.0 * torch.randn(*batch, spec.n_agents, spec.observation_size)}
    if spec.has_action_mask:
        agents["action_mask"] = torch.rand(*batch, spec.n_agents, spec.action_size) < 0.5
        agents["action_mask"][..., 2] |= ~agents["action_mask"].any(-1)
    return TensorDict({"agents": agents}, list(batch))


def test_bounded_normal_by_hand() -> None:
    dist = BoundedNormal(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 2.0]]), low=-1.0, high=1.0)
    for action in (dist.mode, dist.deterministic_sample, dist.mean):
        assert_close(action, torch.tensor([[0.0, 1.0]]))
    # the unclipped density: (-.5 - .5 log 2 pi) + (-.5 * 1 - log 2 - .5 log 2 pi)
    assert_close(dist.log_prob(torch.tensor([[1.0, 1.0]])), torch.tensor([-1.0 - math.log(2) - math.log(2 * math.pi)]))
    samples = dist.sample((2000,))
    assert samples.min() == -1 and samples.max() == 1
    inside = samples[..., 0].abs() < 1
    assert inside.float().mean() == pytest.approx(0.683, abs=0.04)
    assert not samples.requires_grad


def test_bounded_normal_reparameterizes_where_it_does_not_clip() -> None:
    loc = torch.tensor([[0.0, 50.0]], requires_grad=True)
    BoundedNormal(loc, torch.full((1, 2), 0.1)).rsample().sum().backward()
    assert_close(loc.grad, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("distribution", ["gaussian", "tanh_gaussian"])
@pytest.mark.parametrize("scale", [0.7, "learned", "state_dependent"])
@pytest.mark.parametrize("share_params", [True, False])
def test_continuous_actors(distribution: str, scale, share_params: bool) -> None:
    actor = make_actor(
        SPEC, distribution=distribution, scale=scale, hidden=(8,), share_params=share_params, final_scale=5.0
    )
    for kind in KINDS[:2] if distribution == "tanh_gaussian" else KINDS:
        with set_exploration_type(kind):
            action = actor(inputs(SPEC, 64))[ACTION]
        assert action.shape == (64, 3, 2)
        assert action.min() >= -0.5 and action.max() <= 2.0
        assert action.max() > 1.5 and action.min() < 0.0
    dist = actor.get_dist(inputs(SPEC, 2, 5))
    at_bounds = dist.log_prob(torch.full((2, 5, 3, 2), 2.0))
    assert at_bounds.shape == (2, 5, 3) and at_bounds.isfinite().all()
    actor.get_dist(inputs(SPEC, 6)).log_prob(torch.zeros(6, 3, 2)).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in actor.parameters())


def test_tanh_gaussian_log_prob_by_hand() -> None:
    actor = make_actor(SPEC, distribution="tanh_gaussian", hidden=(8,), final_scale=1.0)
    td = inputs(SPEC, 6)
    dist = actor.get_dist(td)
    action = torch.rand(6, 3, 2) * 2.0 - 0.25
    loc = actor(td)["agents", "loc"]
    half, middle = 1.25, 0.75
    y = (action - middle) / half
    normal = -0.5 * (torch.atanh(y) - loc).pow(2) - 0.5 * math.log(2 * math.pi)
    expected = (normal - torch.log(half * (1 - y.pow(2)))).sum(-1)
    assert_close(dist.log_prob(action), expected, rtol=1e-4, atol=1e-4)
    assert_close(dist.deterministic_sample, middle + half * loc.tanh(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.5, 2.0), (-1.0, 3.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_normal_is_torchrls(low: float, high: float, dtype: torch.dtype) -> None:
    loc, scale = 3 * torch.randn(5, 3, 2, dtype=dtype), 0.1 + torch.rand(5, 3, 2, dtype=dtype)
    parameters = [(loc.clone().requires_grad_(), scale.clone().requires_grad_()) for _ in range(2)]
    ours, theirs = TanhNormal(*parameters[0], low=low, high=high), TorchRLTanhNormal(*parameters[1], low=low, high=high)
    recorded = low + (high - low) * torch.rand(5, 3, 2, dtype=dtype)
    recorded[0] = high
    found = []
    for dist in (ours, theirs):
        torch.manual_seed(0)
        drawn, density = dist.rsample_and_log_prob((4,))
        values = [dist.log_prob(recorded), dist.deterministic_sample, dist.rsample(), drawn, density]
        values += [dist.low.expand(1), dist.high.expand(1)]
        sum(value.sum() for value in values).backward()
        found.append(values)
    tolerance = {} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    for own, value in zip(*found):
        assert_close(own, value.to(own.dtype), **tolerance)
    for own, tensor in zip(*parameters):
        assert_close(own.grad, tensor.grad, **tolerance)
    assert ours.batch_shape == theirs.batch_shape == (5, 3) and ours.event_shape == theirs.event_shape == (2,)


def test_scales() -> None:
    observation = torch.randn(5, 3, 4)
    loc, scale = GaussianHead(SPEC, scale=0.3, hidden=(8,))(observation)
    assert loc.shape == scale.shape == (5, 3, 2) and scale.eq(0.3).all()
    head = GaussianHead(SPEC, scale="learned", hidden=(8,))
    assert_close(head(observation)[1], torch.full((5, 3, 2), 0.5))
    with torch.no_grad():
        head.log_scale.copy_(torch.tensor([0.0, 99.0]))
    assert_close(head(observation)[1], torch.tensor([1.0, math.e**2]).expand(5, 3, 2))
    head.reset_parameters()
    assert_close(head.log_scale.detach(), torch.full((2,), math.log(0.5)))
    scale = GaussianHead(SPEC, scale="state_dependent", hidden=(8,), final_scale=50.0)(observation)[1]
    assert scale.min() >= math.exp(-5) * 0.999 and scale.max() <= math.e**2 * 1.001 and scale.std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "fixed"}, "scale must be a number or 'learned', 'state_dependent' or 'softplus', got 'fixed'"),
        ({"scale": 0.0}, "scale must be above 0, got 0.0"),
        ({"distribution": "beta"}, "distribution must be 'gaussian', 'tanh_gaussian' or 'one_step', got 'beta'"),
        ({"distribution": "one_step", "batch_norm": True}, "batch_norm=True does not go with distribution='one_step'"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_actor(SPEC, hidden=(8,), **options)


def test_masked_categorical_by_hand() -> None:
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0]]))
    dist = MaskedCategorical(logits, torch.tensor([[True, True, False]]))
    assert_close(dist.probs, torch.tensor([[1 / 3, 2 / 3, 0.0]]))
    assert_close(dist.log_prob(torch.tensor([1])), torch.tensor([math.log(2 / 3)]))
    assert dist.mode.item() == dist.deterministic_sample.item() == 1
    entropy = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    assert_close(dist.entropy(), torch.tensor([entropy]))
    assert MaskedCategorical(logits).mode.item() == 2


def test_no_illegal_action_is_ever_proposed() -> None:
    actor = make_actor(DISCRETE, hidden=(8,), final_scale=20.0)
    td = inputs(DISCRETE, 200)
    mask = td["agents", "action_mask"]
    seen = torch.zeros_like(mask)
    for kind in KINDS[:3]:
        with set_exploration_type(kind):
            for _ in range(5):
                action = actor(td.clone())[ACTION]
                assert action.dtype == torch.int64 and action.shape == (200, 3)
                assert mask.gather(-1, action.unsqueeze(-1)).all()
    dist = actor.get_dist(td)
    for _ in range(20):
        one_hot = dist.straight_through_sample()
        seen |= one_hot.detach() == 1
        assert one_hot.detach().sum(-1).eq(1).all() and one_hot.detach().count_nonzero(-1).eq(1).all()
    seen |= dist.straight_through_mode().detach() == 1
    assert not seen[~mask].any()
    assert seen.sum() > 600  # it does sample


def test_straight_through_samples_follow_the_probabilities() -> None:
    dist = MaskedCategorical(
        torch.log(torch.tensor([1.0, 2.0, 5.0, 100.0])).expand(20000, 4), torch.tensor([1, 1, 1, 0]).bool()
    )
    frequency = dist.straight_through_sample().mean(0)
    assert_close(frequency, torch.tensor([0.125, 0.25, 0.625, 0.0]), atol=0.015, rtol=0)


@pytest.mark.parametrize("method", ["straight_through_sample", "straight_through_mode"])
def test_straight_through_gradient_is_that_of_the_softmax(method: str) -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    mask = torch.tensor([True, True, False, True]).expand(6, 4)
    coefficient = torch.randn(6, 4)
    found = torch.autograd.grad((getattr(MaskedCategorical(logits, mask), method)() * coefficient).sum(), logits)[0]
    softmax = logits.masked_fill(~mask, -math.inf).softmax(-1)
    expected = torch.autograd.grad((softmax * coefficient).sum(), logits)[0]
    assert_close(found, expected)
    assert found.any() and not found[:, 2].any()


def test_straight_through_is_exactly_one_hot() -> None:
    probs = torch.rand(1000, 4)
    assert_close(
        straight_through(probs, torch.zeros(1000, dtype=torch.int64)).unique(), torch.tensor([0.0, 1.0]), rtol=0, atol=0
    )


def test_an_agent_without_legal_actions_stays_finite() -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    dist = MaskedCategorical(logits, torch.tensor([[False] * 4, [True] * 4]))
    assert_close(dist.probs[0], torch.full((4,), 0.25))
    parts = [dist.log_prob(torch.tensor([0, 0])), dist.entropy(), dist.straight_through_sample(), dist.sample().float()]
    assert all(part.isfinite().all() for part in parts)
    sum(part.sum() for part in parts).backward()
    assert logits.grad.isfinite().all()


def test_an_unmasked_task_needs_no_mask() -> None:
    spec = TaskSpec(n_agents=2, observation_size=4, state_size=5, action_size=3, discrete=True)
    actor = make_actor(spec, hidden=(8,))
    assert actor.in_keys == [("agents", "observation")]
    assert actor(inputs(spec, 5))[ACTION].shape == (5, 2)


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="low must be below high, got 1"):
        TanhNormal(torch.zeros(2), torch.ones(2), low=1.0, high=-1.0)
