"""A loss traced into one function of tensors: the numbers, the generators and the buffers of the loss as it stands."""

from __future__ import annotations

import pytest
import torch
from objective_toys import COMBINATIONS, CONTINUOUS, HIDDEN, Case, make_batch
from selection import some_of, thorough
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import Actor, PopArtValueNorm, ProbabilisticActor, RunningValueNorm, TanhNormal, ValueOperator
from torchrl.objectives import DDPGLoss
from torchrl.objectives import IQLLoss as TorchRLIQLLoss
from torchrl.objectives.value import TDLambdaEstimator
from training_toys import RegressionLoss, make_buffer

import torchrl_marl_offline.objectives.loss as loss_module
from torchrl_marl_offline.core.functional_parameters import tensors_of
from torchrl_marl_offline.data import from_arrays
from torchrl_marl_offline.modules import ScaleInvariantValueNorm, make_actor
from torchrl_marl_offline.objectives import AWR, BRAC, BehaviourCloning, OfflineMARLLoss
from torchrl_marl_offline.training import ForeachSoftUpdate, Learner, Trainer, default_optimizer
from torchrl_marl_offline.training.step.gradients import CompiledGradients, Gradients, in_precision

STEPS = 20


def traced(loss, **options) -> CompiledGradients:
    return CompiledGradients(loss, backend=None, **options)


def build(case: Case, **options) -> OfflineMARLLoss:
    extraction = AWR(2.0) if case.extraction == "awr" else BRAC(0.3)
    return case.build(**{"value_norm": ScaleInvariantValueNorm(), "extraction": extraction} | options)


def batches(case: Case, *masks: str, steps: int = STEPS, rows: int = 12) -> list[TensorDict]:
    found = []
    for step in range(steps):
        batch = make_batch(case.spec, rows, seed=step)
        batch["next", "agents", "action"] = batch["agents", "action"].roll(1, 0)
        g = torch.Generator().manual_seed(100 + step)
        if "rows" in masks:
            batch["collector", "mask"] = torch.rand(rows, generator=g) < 0.7
        if "agents" in masks:
            for half in (batch, batch["next"]):
                half["agents", "mask"] = torch.rand(rows, case.spec.n_agents, generator=g) < 0.8
        if "next_action" in masks:
            batch["collector", "has_next_action"] = torch.rand(rows, generator=g) < 0.7
        found.append(batch)
    return found


def trained(loss, gradients, data: list[TensorDictBase]) -> list[dict[str, torch.Tensor]]:
    """Train on the batches, in order, and return the metrics of each step."""
    optimizer = default_optimizer(loss, lr=1e-2)
    updater = ForeachSoftUpdate(loss, tau=0.1) if any("target" in name for name in tensors_of(loss)) else None
    torch.manual_seed(7)
    rows = []
    for batch in data:
        rows.append(gradients(batch))
        optimizer.step()
        if updater is not None:
            updater.step()
    return rows


def assert_same_training(make, data: list[TensorDictBase], **tolerance) -> CompiledGradients:
    """Train two equal losses, one as it stands and one traced, and compare every tensor, metric and generator."""
    plain, compiled = make(), make()
    start = {name: value.detach().clone() for name, value in tensors_of(plain).items()}
    function = traced(compiled)
    expected = trained(plain, Gradients(plain), [batch.clone() for batch in data])
    after = torch.get_rng_state()
    found = trained(compiled, function, [batch.clone() for batch in data])
    assert torch.equal(torch.get_rng_state(), after)
    assert [list(row) for row in found] == [list(row) for row in expected]
    tolerance = {"rtol": 0, "atol": 0} | tolerance
    for own, theirs in zip(found, expected):
        torch.testing.assert_close(own, theirs, **tolerance)
    torch.testing.assert_close(dict(tensors_of(compiled)), dict(tensors_of(plain)), **tolerance)
    moved = {name for name, value in tensors_of(plain).items() if not torch.equal(value, start[name])}
    assert {name for name, value in tensors_of(plain).items() if value.requires_grad} <= moved
    return function


@pytest.mark.parametrize("case", some_of(COMBINATIONS[:24], every=12), ids=str)
def test_every_combination_equals_the_loss_as_it_stands(case):
    assert_same_training(lambda: build(case), batches(case))


@pytest.mark.parametrize(
    "case",
    [
        Case("mixer", "iql", "brac", discrete=True),
        thorough(Case("vdn", "td", "brac", discrete=True)),
        thorough(Case("independent", "sarsa", "awr", discrete=True)),
        thorough(Case("centralized", "td", "awr", discrete=True)),
    ],
    ids=str,
)
def test_discrete_actions_with_masks_and_noise(case):
    """BRAC samples: equal numbers say that the noise came from the same generator in the same order."""
    assert_same_training(lambda: build(case), batches(case, "agents", "rows"))


@pytest.mark.parametrize(
    ("case", "masks"),
    [
        (Case("mixer", "sarsa", "awr"), ("rows", "next_action")),
        thorough((Case("independent", "iql", "awr"), ("agents",))),
        (Case("vdn", "td", "brac"), ("agents", "rows")),
    ],
    ids=str,
)
def test_rows_and_agents_that_do_not_count(case, masks):
    data = batches(case, *masks, steps=3)
    assert_same_training(lambda: build(case), data)
    counted, masked = build(case), build(case)
    trained(counted, Gradients(counted), batches(case, steps=3))
    trained(masked, Gradients(masked), data)
    assert not torch.equal(*(nn.utils.parameters_to_vector(loss.parameters()) for loss in (counted, masked)))


def tanh_loss() -> OfflineMARLLoss:
    case = Case("mixer", "td", "brac")
    torch.manual_seed(1)
    actor = make_actor(CONTINUOUS, distribution="tanh_gaussian", scale="state_dependent", hidden=HIDDEN)
    loss = OfflineMARLLoss(actor, case.critic(), value_learning=AS_TD, extraction=BRAC(0.3))
    return loss.make_value_estimator(gamma=0.9)


AS_TD = build(Case("mixer", "td", "brac")).value_learning


def test_tanh_gaussian_actors():
    assert_same_training(tanh_loss, batches(Case(), steps=5))


@pytest.mark.parametrize("norm", [PopArtValueNorm, thorough(RunningValueNorm)])
def test_running_statistics_are_updated_once_a_step(norm):
    """Tracing runs the loss, but not on the loss's own buffers."""
    case = Case("mixer", "iql", "awr")
    assert_same_training(lambda: build(case, value_norm=norm(shape=1)), batches(case, steps=5))
    loss = build(case, value_norm=norm(shape=1))
    data = batches(case, steps=3, rows=12)
    trained(loss, traced(loss), data)
    if norm is RunningValueNorm:
        assert loss.value_norm.count == 3 * 12
    else:
        beta = loss.value_norm.beta
        assert loss.value_norm.debiasing_term.item() == pytest.approx(1 - beta**3)


def test_an_ensemble_of_critics():
    def make():
        case = Case("vdn", "td", "awr")
        torch.manual_seed(0)
        return build(case, critic=[case.critic(num_heads=1) for _ in range(2)])

    assert_same_training(make, batches(Case(), steps=5))


def test_slices_with_td_lambda():
    """Slices of episodes of unlike length from a dataset's buffer, padded rows masked."""
    lengths, case = (3, 5, 8, 4), Case("mixer", "sarsa", "awr")
    rows, n = sum(lengths), CONTINUOUS.n_agents
    g = torch.Generator().manual_seed(0)
    ends = torch.zeros(rows, dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    dataset = from_arrays(
        observations=torch.randn(rows, n, CONTINUOUS.observation_size, generator=g),
        state=torch.randn(rows, CONTINUOUS.state_size, generator=g),
        actions=torch.rand(rows, n, CONTINUOUS.action_size, generator=g) * 1.6 - 0.8,
        rewards=torch.randn(rows, n, generator=g),
        terminals=ends,
    )
    buffer = dataset.replay_buffer(batch_size=24, slice_len=6, seed=0)
    data = [buffer.sample().reshape(4, 6) for _ in range(5)]
    assert not torch.stack([batch["collector", "mask"] for batch in data]).all()

    def make():
        return build(case).make_value_estimator(TDLambdaEstimator, gamma=0.9, lmbda=0.8)

    assert_same_training(make, data, rtol=1e-4, atol=1e-5)
    assert make().value_estimator.vectorized


# ------------------------------------------------------------------- TorchRL's own losses


def flat_batches(steps: int = 5) -> list[TensorDict]:
    found = []
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        done = torch.rand(16, 1, generator=g) < 0.3
        following = {"observation": torch.randn(16, 4, generator=g), "reward": torch.randn(16, 1, generator=g)}
        rows = {"observation": torch.randn(16, 4, generator=g), "action": torch.rand(16, 2, generator=g) * 1.8 - 0.9}
        found.append(TensorDict(rows | {"next": following | {"done": done, "terminated": done.clone()}}, [16]))
    return found


def flat_actor() -> ProbabilisticActor:
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), NormalParamExtractor())
    module = TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"])
    return ProbabilisticActor(module, in_keys=["loc", "scale"], distribution_class=TanhNormal)


class FlatCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.network(torch.cat([observation, action], -1))


def torchrl_loss(name: str):
    torch.manual_seed(2)
    critic = ValueOperator(FlatCritic(), in_keys=["observation", "action"])
    if name == "ddpg":
        policy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2), nn.Tanh())
        actor = Actor(policy, in_keys=["observation"])
        loss = DDPGLoss(actor, critic, delay_actor=True, delay_value=True)
        loss.make_value_estimator(gamma=0.9)
        return loss
    value = ValueOperator(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), in_keys=["observation"])
    loss = TorchRLIQLLoss(flat_actor(), critic, value, expectile=0.8)
    loss.make_value_estimator(gamma=0.9)
    return loss


@pytest.mark.parametrize("name", ["ddpg", "iql"])
def test_torchrls_own_losses(name):
    assert_same_training(lambda: torchrl_loss(name), flat_batches())


def test_a_loss_that_draws_from_the_global_generator_and_counts():
    def make():
        torch.manual_seed(0)
        return RegressionLoss(host_noise=False)

    buffer = make_buffer()
    data = [buffer.sample() for _ in range(5)]
    function = assert_same_training(make, data)
    assert function.loss.calls == 5


# ------------------------------------------------------------------------------- the trace


def test_scheduled_coefficients_take_effect_after_the_trace():
    case = Case("mixer", "iql", "awr")
    (batch,) = batches(case, steps=1)
    loss = build(case)
    function = traced(loss)

    def compiled_and_plain() -> list[dict[str, torch.Tensor]]:
        found = []
        for each in (function, Gradients(loss)):
            metrics = each(batch.clone())
            found.append(metrics | {n: p.grad.clone() for n, p in loss.named_parameters()})
        return found

    first = compiled_and_plain()
    loss.temperature, loss.expectile = 5.0, 0.3
    second = compiled_and_plain()
    torch.testing.assert_close(*first, rtol=0, atol=0)
    torch.testing.assert_close(*second, rtol=0, atol=0)
    for name in ("loss_actor", "loss_value", "effective_sample_size"):
        assert not torch.equal(first[0][name], second[0][name])
    assert torch.equal(first[0]["loss_qvalue"], second[0]["loss_qvalue"])
    assert len(function._traced) == 1


def test_one_trace_serves_every_batch_of_its_form():
    case = Case("vdn", "sarsa", "awr")
    loss = build(case)
    function = traced(loss)
    small, other, large = (*batches(case, steps=2, rows=6), *batches(case, steps=1, rows=9))
    for batch in (small, other, large, small):
        expected = Gradients(loss)(batch.clone())
        torch.testing.assert_close(function(batch.clone()), expected, rtol=0, atol=0)
    assert len(function._traced) == 2
    reordered = TensorDict(dict(reversed(list(small.items()))), small.batch_size)
    function(reordered)
    assert len(function._traced) == 2
    function(small.clone().set(("collector", "mask"), torch.ones(6, dtype=torch.bool)))
    assert len(function._traced) == 3


def test_tracing_leaves_no_trace():
    case = Case("mixer", "iql", "brac", discrete=True)
    loss = build(case, value_norm=PopArtValueNorm(shape=1))
    (batch,) = batches(case, steps=1)
    kept, values = batch.clone(), {name: value.detach().clone() for name, value in tensors_of(loss).items()}
    ids, rng = {name: id(value) for name, value in tensors_of(loss).items()}, torch.get_rng_state()
    traced(loss)._trace(tensors_of(loss), batch)
    assert torch.equal(torch.get_rng_state(), rng)
    assert {name: id(value) for name, value in tensors_of(loss).items()} == ids
    torch.testing.assert_close({n: v.detach() for n, v in tensors_of(loss).items()}, values, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in loss.parameters())
    assert (batch == kept).all() and list(batch.keys(True, True)) == list(kept.keys(True, True))


def test_gradients_of_the_step_before_do_not_stay():
    """A parameter that a batch's loss does not reach has no gradient, whatever lay there."""
    loss = build(Case("mixer", "iql", "awr"))
    (batch,) = batches(Case(), steps=1)
    target = next(value for name, value in tensors_of(loss).items() if name.startswith("target_"))
    unreached = nn.Parameter(torch.ones(2))
    loss.register_parameter("unreached", unreached)
    for function in (Gradients(loss), traced(loss)):
        unreached.grad = torch.ones(2)
        function(batch.clone())
        assert unreached.grad is None
        assert target.grad is None


def test_a_loss_that_reads_foreign_parameters_is_not_traced():
    class Foreign(RegressionLoss):
        def forward(self, tensordict):
            out = super().forward(tensordict)
            return out.set("loss_other", out["loss_value"] * other.weight.sum())

    other, batch = nn.Linear(1, 1), make_buffer().sample()
    loss = Foreign(host_noise=False)
    ForeachSoftUpdate(loss, tau=0.1)
    with pytest.raises(RuntimeError, match=r"reads a parameter that is not among its own.*use compile='off'"):
        traced(loss)(batch)


def cloning(case: Case) -> BehaviourCloning:
    """Return a loss of one network: few kernels to compile."""
    torch.manual_seed(1)
    return BehaviourCloning(case.actor())


@pytest.mark.slow
# Inductor touches deprecated names of torch's own.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", [cloning, thorough(build)])
def test_inductor_agrees_up_to_rounding(make):
    case = Case("independent", "sarsa", "brac", discrete=True)
    data = batches(case, "rows", steps=6)
    plain, compiled = make(case), make(case)
    expected = trained(plain, Gradients(plain), [batch.clone() for batch in data])
    found = trained(compiled, CompiledGradients(compiled), data)
    for own, theirs in zip(found, expected):
        torch.testing.assert_close(own, theirs, rtol=2e-4, atol=2e-5)
    # Adam divides by the gradient's size: where that is rounding alone, a step of 1e-2 may have either sign.
    torch.testing.assert_close(dict(tensors_of(compiled)), dict(tensors_of(plain)), rtol=1e-3, atol=1e-3)


# ----------------------------------------------------------------------------- precision


class PlainCritic(nn.Module):
    """Of linear layers whose outputs autocast makes bf16."""

    def __init__(self) -> None:
        super().__init__()
        width = CONTINUOUS.observation_size + CONTINUOUS.action_size
        self.network = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.network(torch.cat([observation, action], -1))


def plain_critic() -> TensorDictModule:
    keys = [("agents", "observation"), ("agents", "action")]
    return TensorDictModule(PlainCritic(), in_keys=keys, out_keys=[("agents", "state_action_value")])


@pytest.mark.parametrize("kind", [Gradients, traced], ids=["plain", "traced"])
@pytest.mark.parametrize("ensemble", [False, True], ids=["heads", "ensemble"])
def test_bf16_keeps_losses_and_gradients_in_full_precision(kind, ensemble, monkeypatch):
    case = Case("mixer", "td", "awr")
    torch.manual_seed(0)
    critics = {"critic": [plain_critic() for _ in range(2)]} if ensemble else {}
    (batch,) = batches(case, steps=1, rows=32)
    loss = build(case, **critics)
    seen: dict[str, list[torch.dtype]] = {"critic": [], "mixed": [], "target": []}

    def spy(name: str, owner, method: str, dtype) -> None:
        inner = getattr(owner, method)

        def call(*args, **kwargs):
            out = inner(*args, **kwargs)
            seen[name].append(dtype(out))
            return out

        monkeypatch.setattr(owner, method, call)

    spy("critic", loss.team, "critic_outputs", lambda out: out[0].dtype)
    spy("mixed", loss.team, "action_value", lambda out: out.total.dtype)
    spy("target", loss_module, "value_target", lambda out: out.dtype)
    full = Gradients(loss)(batch.clone())
    full_gradients = {n: p.grad.clone() for n, p in loss.named_parameters() if p.grad is not None}
    metrics = kind(loss, precision="bf16")(batch.clone())
    gradients = {n: p.grad for n, p in loss.named_parameters() if p.grad is not None}
    assert all(dtypes and set(dtypes) == {torch.float32} for dtypes in seen.values()), seen
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert {parameter.dtype for parameter in loss.parameters()} == {torch.float32}
    assert gradients.keys() == full_gradients.keys()
    # bf16 has 8 bits: near the full numbers, and not the same.
    assert metrics["loss_qvalue"].item() == pytest.approx(full["loss_qvalue"].item(), rel=0.05)
    assert metrics["loss_qvalue"] != full["loss_qvalue"]
    a, b = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, full_gradients))
    assert torch.cosine_similarity(a, b, dim=0) > 0.99


def test_bf16_does_not_reach_the_code_around_it():
    loss = build(Case("vdn", "iql", "awr"))
    Gradients(loss, precision="bf16")(batches(Case(), steps=1)[0])
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("kind", [Gradients, traced], ids=["plain", "traced"])
def test_errors_of_precision_are_one_sentence(kind):
    loss = build(Case("vdn", "iql", "awr"))
    (batch,) = batches(Case(), steps=1)
    with pytest.raises(ValueError, match=r"^precision must be one of fp32, tf32, bf16; got 'fp8'\.$"):
        kind(loss, precision="fp8")(batch)
    with pytest.raises(ValueError, match=r"^precision='tf32' needs an NVIDIA GPU; use 'fp32', or 'bf16'\.$"):
        kind(loss, precision="tf32")(batch)


def test_tf32_puts_torchs_setting_back():
    before = torch.get_float32_matmul_precision()
    with in_precision("tf32", torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_a_trainer_refuses_an_unknown_precision_before_the_first_step():
    with pytest.raises(ValueError, match="precision must be 'fp32', 'tf32' or 'bf16', got 'half'"):
        Trainer(Learner(RegressionLoss(), precision="half"), make_buffer(), steps=1, progress=False)
