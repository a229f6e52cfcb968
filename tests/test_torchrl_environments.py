"""TorchRL's VmasEnv as it comes, with TorchRL's networks, under every rule; and environments of a user's own."""

from __future__ import annotations

import pytest
import torch
import torchrl_toys as toys
from algorithm_toys import (
    bcq_loss,
    cql_loss,
    icq_loss,
    mac_flow_loss,
    omac_loss,
    omar_loss,
    omiga_loss,
    omsd_loss,
    td3_bc_loss,
)
from objective_toys import loss_terms
from tensordict.nn import TensorDictModule
from torch import distributions as D
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import VmasEnv
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.data.collection import collect
from torchrl_marl_offline.data.next_action import NextAction
from torchrl_marl_offline.data.transitions.dataset import OfflineDataset
from torchrl_marl_offline.envs import factory, from_torchrl, list_tasks, make_env, register_environment
from torchrl_marl_offline.evaluation import make_simulator
from torchrl_marl_offline.modules import make_actor, make_flow, make_score, make_vae
from torchrl_marl_offline.modules.actors import OneStepHead
from torchrl_marl_offline.objectives import (
    AWR,
    BRAC,
    IQL,
    SARSA,
    TD,
    BehaviourCloning,
    OfflineMARLLoss,
)

pytest.importorskip("vmas")

DECOMPOSITIONS = ("independent", "VDNMixer", "QMixer", "centralized")
RULES = {"td": TD(), "sarsa": SARSA(), "iql": IQL()}
EXTRACTIONS = {"awr": AWR(temperature=1.0), "brac": BRAC()}
ALGORITHMS = ("cloning", "td3_bc", "cql", "omar", "icq", "omac", "omiga", "bcq", "omsd", "mac_flow")
COMBINATIONS = [(name, rule, extraction) for name in DECOMPOSITIONS for rule in RULES for extraction in EXTRACTIONS]
COMBINATIONS += [(algorithm,) for algorithm in ALGORITHMS]
FEW = [("QMixer", "sarsa", "awr"), ("centralized", "iql", "brac"), ("omar",), ("mac_flow",)]


@pytest.fixture(scope="module")
def balance() -> tuple[TaskSpec, TensorDictReplayBuffer]:
    """The task's sizes, and a buffer of TorchRL's with a random roll-out of TorchRL's environment."""
    env = VmasEnv("balance", num_envs=4, n_agents=3, seed=0)
    rollout = env.rollout(12)  # [4, 12]
    n, o = rollout[toys.OBSERVATION].shape[-2:]
    spec = TaskSpec(n_agents=n, observation_size=o, state_size=n * o, action_size=rollout[toys.ACTION].shape[-1])
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(48), batch_size=16, transform=NextAction())
    buffer.extend(rollout.reshape(-1))
    return spec, buffer


def networks(spec: TaskSpec, decomposition: str) -> tuple:
    """Critic, value network and mixer of MultiAgentMLPs."""
    if decomposition == "centralized":
        return toys.team_critic(spec), toys.team_value(spec), None
    kind = None if decomposition == "independent" else decomposition
    return toys.critic(spec), toys.value(spec), toys.mixer(kind, spec, toys.OBSERVATION)


def one_step(spec: TaskSpec):
    """A policy that is a function of noise, by a MultiAgentMLP."""
    actor = make_actor(spec, distribution="one_step", hidden=(4,))
    head: OneStepHead = actor.module[0].module
    head.network = toys.net(spec.observation_size + spec.action_size, spec.action_size, spec)
    return actor


def build(spec: TaskSpec, combination: tuple[str, ...]) -> OfflineMARLLoss:
    if len(combination) == 3:
        decomposition, rule, extraction = combination
        critic, value, mixer = networks(spec, decomposition)
        actor = toys.gaussian(lambda loc, scale: D.Independent(D.Normal(loc, scale), 1), spec)
        options = {"value_learning": RULES[rule], "extraction": EXTRACTIONS[extraction], "mixer": mixer}
        return OfflineMARLLoss(actor, critic, value if rule == "iql" else None, **options)
    critic, value, _ = networks(spec, "independent")
    head = toys.net(spec.observation_size, spec.action_size, spec)
    plain = TensorDictModule(head, in_keys=[toys.OBSERVATION], out_keys=[toys.ACTION])
    normal = toys.gaussian(D.Normal, spec)
    bounds, small = {"action_spec": (-1.0, 1.0)}, {"hidden": (4,)}
    vae = make_vae(spec, perturbation_hidden=(4,), **small)
    score = make_score(spec, joint_observation=True, **small)
    return {
        "cloning": lambda: BehaviourCloning(normal),
        "td3_bc": lambda: td3_bc_loss(plain, critic, **bounds),
        "cql": lambda: cql_loss(plain, critic, **bounds),
        "omar": lambda: omar_loss(plain, critic, **bounds),
        "icq": lambda: icq_loss(normal, critic),
        "omac": lambda: omac_loss(normal, critic, value),
        "omiga": lambda: omiga_loss(normal, critic, value),
        "bcq": lambda: bcq_loss(plain, critic, vae),
        "omsd": lambda: omsd_loss(plain, toys.team_critic(spec), toys.team_value(spec), score),
        "mac_flow": lambda: mac_flow_loss(one_step(spec), critic, make_flow(spec, **small)),
    }[combination[0]]()


@pytest.mark.fault("4.1")
@pytest.mark.fault("4.6")
@pytest.mark.parametrize("combinations", [FEW, pytest.param(COMBINATIONS, marks=pytest.mark.slow)], ids=["few", "all"])
def test_continuous_combinations_make_five_updates_on_vmas_balance(balance, combinations) -> None:
    spec, buffer = balance
    assert len(combinations) in (len(FEW), 34)
    for combination in combinations:
        torch.manual_seed(0)
        loss = build(spec, combination).make_value_estimator(gamma=0.9)
        updater = SoftUpdate(loss, tau=0.1) if loss.value_learning is not None else None
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
        before = {name: p.detach().clone() for name, p in loss.named_parameters()}
        for _ in range(5):
            optimizer.zero_grad()
            total = sum(loss_terms(loss(buffer.sample())).values())
            total.backward()
            optimizer.step()
            if updater is not None:
                updater.step()
        assert total.isfinite(), combination
        same = [name for name, p in loss.named_parameters() if torch.equal(p, before[name])]
        assert not same, (combination, same)


def make_mine(*, num_envs, device, seed, **options):
    env = VmasEnv("balance", num_envs=num_envs, device=device, n_agents=3, **options)
    return from_torchrl(env, max_steps=5, seed=seed)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(factory, "_REGISTERED", {})
    register_environment("mine/balance", make_mine)
    return "mine/balance"


@pytest.mark.fault("4.5")
def test_data_recorded_in_an_environment_of_ones_own_has_a_simulator(registered: str, tmp_path) -> None:
    assert list_tasks()[registered] == "installed"
    recorded = collect(make_env(registered, num_envs=2, seed=0), None, episodes=2, seed=0)
    assert recorded.spec.task == registered
    loaded = OfflineDataset.load(recorded.save(tmp_path / "data"))
    simulator = make_simulator(loaded, num_envs=3)
    assert simulator.batch_size == (3,) and simulator.task_spec == loaded.spec
    factory._REGISTERED.clear()  # as in a process that did not name it
    assert make_simulator(loaded, num_envs=3) is None


@pytest.mark.fault("4.5")
def test_names_of_environments_that_cannot_be(registered: str) -> None:
    for name in ("mine", "/balance", "mine/", " mine/balance"):
        with pytest.raises(ValueError, match="An environment is named 'family/task', got"):
            register_environment(name, make_mine)
    with pytest.raises(ValueError, match="'mpe' is a family of the library's own"):
        register_environment("mpe/mine", make_mine)
    with pytest.raises(ValueError, match="factory must be a function, got 3"):
        register_environment("mine/other", 3)
    register_environment(registered, make_mine)  # once more the same
    with pytest.raises(ValueError, match="taken by another environment; pass replace=True"):
        register_environment(registered, lambda **_: None)
    register_environment(registered, lambda **_: VmasEnv("balance", num_envs=2), replace=True)
    with pytest.raises(TypeError, match=r"returned a VmasEnv without a task_spec .* from_torchrl or from_pettingzoo"):
        make_env(registered, num_envs=2)
    with pytest.raises(ValueError, match="register_environment names one of your own"):
        make_env("mine/unknown")
