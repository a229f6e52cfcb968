"""Policies of every algorithm stay within the bounds of each agent and component: trained, sampled and exported."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objective_toys import make_batch
from systems_toys import updated
from tensordict import TensorDict
from torchrl.envs import set_exploration_type

from torchrl_marl_offline import TaskSpec, make_actor, make_loss
from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.core.exploration import EXPLORATION
from torchrl_marl_offline.core.layout import ACTION, OBSERVATION, next_key
from torchrl_marl_offline.evaluation import export_policy
from torchrl_marl_offline.modules.greedy_actors import make_deterministic_actor

LOW = [[-0.3, 100.0], [0.1, 0.25], [-7.0, 0.25]]
HIGH = [[0.1, 100.001], [0.4, 0.25], [9.0, 0.5]]
SPEC = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=2, action_low=LOW, action_high=HIGH)
"""Of unlike sizes, narrow beside their distance from 0, and one constant."""

CONTINUOUS = [name for name in ALGORITHMS if name != "mac_flow_discrete"]
SETTINGS = {"b3c": {"max_next_value": 10.0}, "mac_flow": {"hidden": (16,)}, "bcq": {"behaviour_hidden": (16,)}}


def bounds() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(LOW), torch.tensor(HIGH)


def inside(action: torch.Tensor) -> bool:
    low, high = bounds()
    return bool(((low <= action) & (action <= high)).all())


def recorded(rows: int) -> TensorDict:
    torch.manual_seed(0)
    batch, (low, high) = make_batch(SPEC, rows), bounds()
    for key in (ACTION, next_key(ACTION)):
        batch.set(key, (low + (high - low) * torch.rand(rows, 3, 2)).clamp(low, high))
    return batch


def far_observations(rows: int, generator: torch.Generator) -> torch.Tensor:
    scale = torch.tensor([1.0, 100.0]).repeat_interleave(rows // 2)[:, None, None]
    return scale * torch.randn(rows, 3, 4, generator=generator)


@pytest.mark.parametrize("algorithm", CONTINUOUS)
def test_every_algorithm_learns_within_the_bounds(algorithm: str) -> None:
    torch.manual_seed(0)
    loss = make_loss(SPEC, algorithm=algorithm, **SETTINGS.get(algorithm, {}))
    loss = loss if algorithm == "cloning" else updated(loss)  # which has no targets
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    batch = recorded(16)
    for _ in range(2):
        optimizer.zero_grad()
        found = loss(batch)
        total = sum(value for name, value in found.items() if name.startswith("loss_"))
        assert total.isfinite()
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())
        optimizer.step()
    policy = loss.actor_network.eval()
    observation = far_observations(64, torch.Generator().manual_seed(1))
    for way in EXPLORATION.values():
        with torch.no_grad(), set_exploration_type(way), loss.actor_network_params.to_module(policy):
            assert inside(policy(TensorDict({OBSERVATION: observation}, [64])).get(ACTION))


@pytest.mark.parametrize("distribution", ["gaussian", "tanh_gaussian", "one_step"])
def test_bounds_of_components_that_are_all_alike_are_those_of_one_number(distribution: str) -> None:
    """The same function, but that a Gaussian's location is in halves of the range: here they are 1."""
    plain = replace(SPEC, action_low=-1.0, action_high=1.0)
    own = replace(SPEC, action_low=[-1.0, -1.0], action_high=[1.0, 2.0])
    actions = []
    for spec in (plain, own):
        torch.manual_seed(0)
        actor = make_actor(spec, distribution=distribution, hidden=(8,), final_scale=1.0)
        observation = TensorDict({OBSERVATION: far_observations(32, torch.Generator().manual_seed(1))}, [32])
        torch.manual_seed(1)
        with set_exploration_type(EXPLORATION["sample"]):
            actions.append(actor(observation).get(ACTION)[..., 0])
    assert torch.allclose(*actions, atol=1e-6)


def test_a_constant_component_teaches_nothing() -> None:
    """Neither its density nor its distance passes a gradient to what is shared with the other agents."""
    for distribution in ("gaussian", "tanh_gaussian"):
        torch.manual_seed(0)
        actor = make_actor(SPEC, distribution=distribution, scale="learned", hidden=(8,))
        batch = recorded(8)
        policy = actor.get_dist(batch)
        low, high = bounds()
        constant = low == high
        assert torch.equal(policy.deterministic_sample[:, constant], low[constant].expand(8, -1))
        log_prob = policy.log_prob(batch.get(ACTION))
        (gradient,) = torch.autograd.grad(log_prob[:, 1].sum(), [batch_scale(actor)])
        assert gradient[1] == 0 and gradient[0] != 0  # agent 1's second component is the constant


def batch_scale(actor) -> torch.Tensor:
    return next(parameter for name, parameter in actor.named_parameters() if name.endswith("log_scale"))


def check_exported(tmp_path, format: str, rows: int) -> None:
    """Play an exported policy on random observations, half of them far outside of any data."""
    torch.manual_seed(0)
    actor = make_actor(SPEC, hidden=(32, 32), final_scale=1.0, observation_norm=([0.0] * 4, [0.5, 1.0, 2.0, 3.0]))
    path = export_policy(actor, tmp_path / "policy", format=format)
    if format == "torch":
        act = torch.export.load(path).module()
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(path)

        def act(observation: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(["action"], {"observation": observation.numpy()})[0])

    generator = torch.Generator().manual_seed(2)
    for block in torch.arange(rows).split(50_000):
        observation = far_observations(len(block), generator)
        action = act(observation)
        assert inside(action)
        expected = actor.eval()(TensorDict({OBSERVATION: observation}, [len(block)])).get(ACTION)
        assert torch.allclose(action, expected, rtol=1e-5, atol=1e-4)
    low, high = bounds()
    assert (action == low).any(0).all() and (action == high).any(0).all()  # the bounds are reached


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_exported_policies_stay_within_the_bounds(tmp_path, format: str) -> None:
    pytest.importorskip("onnxscript") if format == "onnx" else None
    check_exported(tmp_path, format, 10_000)


@pytest.mark.thorough
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_exported_policies_stay_within_the_bounds_a_million_times(tmp_path, format: str) -> None:
    check_exported(tmp_path, format, 1_000_000)


def test_deterministic_policies_stay_within_the_bounds() -> None:
    torch.manual_seed(0)
    actor = make_deterministic_actor(SPEC, hidden=(8,))
    observation = far_observations(1000, torch.Generator().manual_seed(1))
    assert inside(actor(TensorDict({OBSERVATION: 100 * observation}, [1000])).get(ACTION))
