"""MAC-Flow and its one-step policies: numbers by hand, plain loops, files, populations, and what they learn."""

from __future__ import annotations

import math

import pytest
import torch
from algorithm_toys import mac_flow_loss
from objective_toys import Case, gradients, make_batch
from population_toys import SlotEnv, make_data
from selection import thorough
from systems_toys import ACTION, MASK, OBSERVATION, Policy, batch, critic, ready, updated
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor
from trainers import trainer_for
from training_toys import weights

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.core.noise import given_noise, normal_like
from torchrl_marl_offline.data.transitions.buffers import make_replay_buffer
from torchrl_marl_offline.evaluation import evaluate, evaluate_population
from torchrl_marl_offline.evaluation.policy_export import export_policy
from torchrl_marl_offline.modules import MaskedCategorical, OneStep, OneStepCategorical, make_actor, make_flow
from torchrl_marl_offline.modules.action_range import ActionRange
from torchrl_marl_offline.modules.flow import PATH, TIME, VELOCITY, JointVelocity
from torchrl_marl_offline.objectives import (
    AWR,
    BRAC,
    CQL,
    TD,
    Cloning,
    FlowDistillation,
    FlowMatching,
    OfflineMARLLoss,
    PolicyGradient,
    WeightedBRAC,
)
from torchrl_marl_offline.objectives.batch import Following
from torchrl_marl_offline.objectives.flow_matching import flow
from torchrl_marl_offline.training import (
    Population,
    PopulationBuffer,
    PopulationLearner,
    Trainer,
    load_policy,
    save_policy,
)

ROWS = {"reduction": "none"}
BOUNDED = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=2, action_low=-0.5, action_high=2.0)
ONE_STEP = {"distribution": "one_step", "hidden": (8,), "final_scale": 1.0}


class NoisyPolicy(Policy):
    """0.4 o, with noise added."""

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loc, _ = super().forward(observation)
        noise = normal_like(loc)
        return loc, loc + noise, noise


class Velocity(JointVelocity):
    """c (o_1 + o_2) - t x."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.range = ActionRange(-1.0, 1.0, middle=0.0, half=1.0, divisor=1.0)
        self.c = nn.Parameter(torch.tensor(0.5))

    def forward(self, seen: Tensor, place: Tensor, time: Tensor) -> Tensor:
        return self.c * seen.sum(-2, keepdim=True) - time * place


def noisy_actor() -> ProbabilisticActor:
    keys = {name: ("agents", name) for name in ("loc", "drawn", "noise")}
    return ProbabilisticActor(
        TensorDictModule(NoisyPolicy(0.4), in_keys=[OBSERVATION], out_keys=list(keys.values())),
        in_keys=keys,
        out_keys=[ACTION],
        distribution_class=OneStep,
    )


def joint_flow() -> TensorDictModule:
    return TensorDictModule(Velocity(), in_keys=[OBSERVATION, PATH, TIME], out_keys=[VELOCITY])


def of_agents(first: float, second: float) -> Tensor:
    return torch.tensor([first, second]).reshape(1, 2, 1).expand(3, 2, 1)


# ------------------------------------------------------------------- numbers by hand


def test_by_hand() -> None:
    options = {"alpha": 2.0, "flow_steps": 2, "normalize": False}
    loss = ready(mac_flow_loss(noisy_actor(), critic(team=True), joint_flow(), **options, **ROWS))
    noise = [of_agents(0.2, -0.4), of_agents(0.5, 0.5), of_agents(0.5, 0.5), torch.full((3, 1, 1), 0.25)]
    with given_noise(noise):
        found = loss(batch())
    # sums of observations 3, 1, -.5; two steps of a half: z + .25 s, then .75 (z + .25 s) + .25 s
    # flows .75 z + .4375 s: (1.4625, 1.0125) clipped at 1; (.5875, .1375); (-.06875, -.51875)
    # policies (.6, .4), (.2, 0), (-.2, -.2); local values (1.6, 2.4), (.2, 1), (-1.2, .3); team's 7.4, 1.6, .8
    errors = ((-0.4, -0.6), (-0.3875, -0.1375), (-0.13125, 0.31875))
    expected = [sum(e * e for e in pair) - q for pair, q in zip(errors, (7.4, 1.6, 0.8))]
    assert_close(found["loss_actor"], torch.tensor(expected))
    # next actions (.9, .9), (1.3 clipped at 1, .5): 1.9 + 2 * 1.9 + 1 = 6.7 and 2 (3 + 2 * .5) + 2 = 10
    squares = [(q - y) ** 2 for q, y in zip((6.5, 2.5, 3.0), (2 + 3.35, 1 + 5.0, 3.0))]
    assert_close(found["loss_qvalue"], torch.tensor(squares))
    # places .375 + .25 u, velocities .5 s - .25 x, to be u - .5
    off = ((1.375, 1.90625), (0.90625, -0.15625), (0.6875, -0.375))
    assert_close(found["loss_behaviour"], torch.tensor([sum(e * e for e in pair) / 2 for pair in off]))
    loss.reduction = "mean"
    with given_noise(noise):
        (slope,) = gradients(loss, batch(), "loss_behaviour").values()
    assert_close(slope, torch.tensor(2 * ((1.375 + 1.90625) * 3 + (0.90625 - 0.15625) - 0.5 * (0.6875 - 0.375)) / 6))
    with given_noise(noise):
        (slope,) = gradients(loss, batch(), "loss_actor").values()
    # 2 (error) o of both agents, and -w o: (-.8 - 2.4 - 5), (-.275 - 1), (.2625 + .31875 - 0)
    assert_close(slope, torch.tensor((-8.2 - 1.275 + 0.58125) / 3))


def test_distributions() -> None:
    loc, drawn, noise = torch.tensor([[0.5, 3.0]]), torch.tensor([[-2.0, 0.25]]), torch.tensor([[1.0, 2.0]])
    policy = OneStep(loc, drawn, noise, low=-1.0, high=2.0)
    assert policy.batch_shape == (1,) and policy.event_shape == (2,)
    for mode in (policy.mode, policy.mean, policy.deterministic_sample):
        assert_close(mode, torch.tensor([[0.5, 2.0]]))
    assert_close(policy.sample(), torch.tensor([[-1.0, 0.25]]))
    assert torch.equal(policy.rsample(), policy.sample())
    scores = torch.tensor([[0.1, 0.9, 0.3]])
    mask = torch.tensor([[True, False, True]])
    choice = OneStepCategorical(scores, torch.tensor([[0.7, 5.0, 0.2]]), torch.zeros(1, 3), mask)
    assert choice.deterministic_sample.item() == 2 and choice.sample().item() == 0
    assert_close(choice.straight_through_sample(), torch.tensor([[1.0, 0.0, 0.0]]))
    assert_close(choice.probs, MaskedCategorical(scores, mask).probs)
    for each in (policy, choice):
        with pytest.raises(NotImplementedError, match=f"A {type(each).__name__} policy has samples but no density"):
            each.log_prob(policy.mode)
        with pytest.raises(NotImplementedError, match="leave 'one_step' to MAC-Flow"):
            each.entropy()
        with pytest.raises(ValueError, match="holds one sample; evaluate the actor again"):
            each.sample((3,))


# ------------------------------------------------------------------- plain restatements


def euler(velocity: nn.Module, seen: Tensor, noise: Tensor, steps: int) -> Tensor:
    place = noise
    for step in range(steps):
        place = place + velocity(seen, place, torch.full((len(noise), 1, 1), step / steps)) / steps
    return place.detach()


@pytest.mark.parametrize("decomposition", ["vdn", "mixer", "independent", "centralized"])
@pytest.mark.parametrize("normalize", [False, True])
def test_continuous(decomposition: str, normalize: bool) -> None:
    case = Case(decomposition, preset="mac_flow")
    loss = case.build(alpha=1.5, flow_steps=4, normalize=normalize, reduction="none")
    with torch.no_grad():
        for parameter in loss.actor_network_params.parameters():
            parameter.mul_(2.5)
    rows = make_batch(case.spec, 5)
    action, seen = rows["agents", "action"], rows["agents", "observation"]
    now, ahead, start, time = torch.randn(5, 3, 2), torch.randn(5, 3, 2), torch.randn(5, 3, 2), torch.rand(5, 1, 1)
    with given_noise([now, ahead, start, time]):
        found = loss(rows)
    head = loss.get_stateful_net("actor_network").module[0].module
    velocity = loss.get_stateful_net("behaviour_network").module
    policy = head.network(torch.cat([seen, now], -1))
    values = loss.team.action_value(rows, policy.clamp(-1, 1)).total
    q = (values[..., 0] + values[..., 1]) / 2  # [B, k]
    q = q / q.abs().mean(0) if normalize else q
    error = (policy - euler(velocity, seen, now, 4).clamp(-1, 1)).pow(2).mean(-1)
    assert_close(found["loss_actor"], (1.5 * error - q).mean(-1), rtol=1e-4, atol=1e-5)
    after = rows["next"]
    following = head.network(torch.cat([after["agents", "observation"], ahead], -1)).clamp(-1, 1)
    value = loss.team.action_value(after, following, target=True).total.mean(-1)
    reward = after["agents", "reward"].squeeze(-1)
    reward = reward.mean(-1, keepdim=True) if loss.is_team else reward
    target = (reward + 0.9 * ~after["terminated"] * value).detach()
    live = loss.team.action_value(rows, action).total
    assert_close(found["loss_qvalue"], (live - target.unsqueeze(-1)).pow(2).sum(-1).mean(-1), rtol=1e-4, atol=1e-5)
    predicted = velocity(seen, (1 - time) * start + time * action, time)
    assert_close(found["loss_behaviour"], (predicted - (action - start)).pow(2).mean((-1, -2)))
    assert policy.abs().max() > 1  # something was clipped


def test_discrete() -> None:
    case = Case("vdn", preset="mac_flow", discrete=True)
    loss = case.build(alpha=1.5, flow_steps=4, normalize=False, reduction="none")
    rows = make_batch(case.spec, 12)
    seen, mask = rows["agents", "observation"], rows["agents", "action_mask"]
    now, start, time = torch.randn(12, 3, 4), torch.randn(12, 3, 4), torch.rand(12, 1, 1)
    with given_noise([now, torch.randn(12, 3, 4), start, time]):
        found = loss(rows)
    head = loss.get_stateful_net("actor_network").module[0].module
    velocity = loss.get_stateful_net("behaviour_network").module
    scores = head.network(torch.cat([seen, now], -1)).masked_fill(~mask, -torch.inf)
    places = euler(velocity, seen, now, 4)
    aim = places.masked_fill(~mask, -torch.inf).argmax(-1)
    error = nn.functional.cross_entropy(scores.flatten(0, 1), aim.flatten(), reduction="none").reshape(12, 3)
    chosen = nn.functional.one_hot(scores.argmax(-1), 4).float()
    q = loss.team.action_value(rows, chosen).total.mean(-1).squeeze(-1)
    assert_close(found["loss_actor"], 1.5 * error.mean(-1) - q, rtol=1e-4, atol=1e-5)
    code = nn.functional.one_hot(rows["agents", "action"], 4).float()
    predicted = velocity(seen, (1 - time) * start + time * code, time)
    assert_close(found["loss_behaviour"], (predicted - (code - start)).pow(2).mean((-1, -2)))
    assert (places.argmax(-1) != aim).any()  # the mask matters
    # the critic's gradient is that of the scores' softmax in the place of the choice
    loss.reduction = "mean"
    loss.alpha = 0.0
    with given_noise([now, torch.randn(12, 3, 4), start, time]):
        slopes = gradients(loss, rows, "loss_actor")
    point = chosen.clone().requires_grad_()
    (pull,) = torch.autograd.grad(-loss.team.action_value(rows, point).total.mean(), point)
    parameters = dict(head.named_parameters())
    by_hand = torch.autograd.grad((pull * scores.softmax(-1)).sum(), list(parameters.values()))
    for name, expected in zip(parameters, by_hand):
        assert_close(slopes[f"actor_network_params.module.0.module.{name}"], expected, rtol=1e-4, atol=1e-6)


def test_the_flow_sees_all_agents_or_the_state() -> None:
    for joint in (True, False):
        torch.manual_seed(0)
        velocity = make_flow(Case().spec, hidden=(8,), joint_observation=joint)
        assert velocity.in_keys[0] == (OBSERVATION if joint else "state")
        seen = torch.randn(2, 3, 4) if joint else torch.randn(2, 5)
        place, time = torch.randn(2, 3, 2), torch.rand(2, 1, 1)
        before = velocity.module(seen, place, time)
        place[:, 2] += 1.0
        assert (velocity.module(seen, place, time)[:, 0] != before[:, 0]).all()
        assert (velocity.module(seen, place, time + 0.1) != velocity.module(seen, place, time)).all()


def test_actions_of_any_range_are_flows_of_the_same_numbers() -> None:
    """A task whose actions are the other's, shifted and stretched, has the same losses."""
    found = []
    for spec in (Case("vdn").spec, BOUNDED):
        torch.manual_seed(0)
        parts = make_actor(spec, **ONE_STEP), Case("vdn").critic(), make_flow(spec, hidden=(8,))
        loss = updated(mac_flow_loss(*parts))
        rows = make_batch(spec, 6)
        rows["agents", "action"] = ActionRange.of(spec).unscaled(rows["agents", "action"])
        torch.manual_seed(3)
        _, metrics = loss.behaviour_loss(rows)
        torch.manual_seed(4)
        found.append((metrics["behaviour_error"], loss.actor_loss(rows)[1]["distillation_error"]))
    assert_close(found[1], found[0])


# ------------------------------------------------------------------- limits


def test_a_flow_to_one_action_ends_there_by_any_number_of_steps() -> None:
    case = Case("vdn", preset="mac_flow")
    loss = case.build()
    rows = make_batch(case.spec, 5)
    end = rows["agents", "action"]
    loss.behaviour_network.module.forward = lambda seen, place, time: (end - place) / (1 - time)
    noise = torch.randn(5, 3, 2)
    for steps in (1, 3, 10):
        assert_close(flow(loss.batch(rows), noise, steps=steps, rule="test"), end, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # nothing of it could be trained
        _, metrics = loss.behaviour_loss(rows)
    assert_close(metrics["behaviour_error"], torch.tensor(0.0), atol=1e-5, rtol=0)


def following(loss, ahead) -> Following:
    return Following(loss.team, ahead)


def test_samples_without_noise_are_the_mode_and_two_heads_have_a_mean() -> None:
    case = Case("mixer", preset="mac_flow")
    loss = case.build()
    rows = make_batch(case.spec, 5)
    ahead = rows["next"]
    zeros = [torch.zeros(5, 3, 2)]
    with given_noise(zeros * 2):
        sampled, mode = (TD(sample=sample).next_value(following(loss, ahead)) for sample in (True, False))
    assert torch.equal(sampled, mode)
    drawn = torch.randn(5, 3, 2)
    with given_noise([drawn] * 4):
        action = loss.team.policy(ahead).sample()
        heads = loss.team.action_value(ahead, action, target=True).total
        found = [TD(sample=True, min_weight=weight).next_value(following(loss, ahead)) for weight in (1.0, 0.5, 0.0)]
    assert_close(found, [heads.amin(-1, True), heads.mean(-1, True), heads.amax(-1, True)])
    assert not torch.equal(found[0], mode)


@pytest.mark.parametrize("discrete", [False, True])
def test_sampling_of_other_policies(discrete: bool) -> None:
    """The bootstrap at a sample goes with any actor, by the losses' noise."""
    case = Case("vdn", "td", discrete=discrete)
    loss = case.build(value_learning=TD(sample=True), reduction="none")
    rows = make_batch(case.spec, 5)
    policy = loss.team.policy(rows["next"])
    if discrete:
        noise = torch.rand(5, 3, 4) + 0.1
        action = (policy.logits - noise.log()).argmax(-1)
    else:
        noise = torch.randn(5, 1, 3, 2)
        action = (policy.base_dist.loc + policy.base_dist.scale * noise[:, 0]).clamp(-1, 1)
    expected = loss.team.action_value(rows["next"], action, target=True).total_min
    with given_noise([noise]):
        assert_close(loss.value_learning.next_value(following(loss, rows["next"])), expected)


def test_with_a_large_alpha_the_policies_are_the_flows() -> None:
    """With much weight the distilled policies' gradient is the distillation's alone."""
    case = Case("vdn", preset="mac_flow")
    rows = make_batch(case.spec, 6)
    found = []
    for alpha in (1e6, 0.0):
        loss = case.build(alpha=alpha)
        torch.manual_seed(2)
        found.append(gradients(loss, rows, "loss_actor"))
    loss = case.build()
    torch.manual_seed(2)
    policy = loss.team.policy(rows)
    error = (policy.drawn - flow(loss.batch(rows), policy.noise, steps=10, rule="test").clamp(-1, 1)).pow(2).mean()
    error.backward()
    for name, parameter in loss.named_parameters():
        if name.startswith("actor_network"):
            assert_close(found[0][name] / 1e6, parameter.grad, rtol=1e-3, atol=1e-5)
            assert not torch.allclose(found[1][name], parameter.grad)


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowDistillation(alpha=-1.0), "alpha must be at least 0, got -1.0"),
        (lambda: FlowDistillation(steps=0), "steps must be at least 1, got 0"),
        (lambda: make_actor(BOUNDED, distribution="flow"), "must be 'gaussian', 'tanh_gaussian' or 'one_step'"),
    ],
)
def test_settings_that_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("rule", [AWR(), BRAC(), WeightedBRAC(), Cloning()])
def test_rules_that_weigh_densities_refuse_policies_without_before_any_batch(rule, discrete: bool) -> None:
    case = Case("vdn", discrete=discrete)
    actor = make_actor(case.spec, **ONE_STEP)
    wanted = (
        rf"{type(rule).__name__} needs log-probabilities. A OneStep\w* policy has samples but no density; where a rule"
    )
    with pytest.raises(ValueError, match=wanted):
        OfflineMARLLoss(actor, case.critic(), value_learning=TD(), extraction=rule)


def test_what_does_not_fit_together_is_refused() -> None:
    case = Case("vdn")
    rows = make_batch(case.spec, 4)
    gaussian = updated(mac_flow_loss(case.actor(), case.critic(), make_flow(case.spec, hidden=(8,))))
    with pytest.raises(ValueError, match="needs policies that are functions of noise, not BoundedNormal"):
        gaussian(rows)
    other = TensorDictModule(nn.Linear(4, 2), in_keys=[OBSERVATION], out_keys=[VELOCITY])
    wrong = updated(mac_flow_loss(make_actor(case.spec, **ONE_STEP), case.critic(), other))
    with pytest.raises(ValueError, match="FlowDistillation needs a flow of joint actions; pass behaviour=make_flow"):
        wrong(rows)
    with pytest.raises(ValueError, match="FlowMatching needs a flow of joint actions"):
        wrong.behaviour_loss(rows)
    options = {"value_learning": CQL(), "extraction": PolicyGradient()}
    conservative = updated(OfflineMARLLoss(make_actor(case.spec, **ONE_STEP), case.critic(), **options))
    with pytest.raises(ValueError, match="Sampling with a density needs a Gaussian policy, not OneStep"):
        conservative(rows)


def test_the_preset_is_of_the_published_rules() -> None:
    spec = Case().spec
    loss = make_loss(spec, algorithm="mac_flow")
    assert loss.extraction == FlowDistillation(alpha=1.0, normalize=True, steps=10) and float(
        loss.value_estimator.gamma
    ) == pytest.approx(0.995)
    loss = make_loss(spec, algorithm="mac_flow_discrete")
    assert loss.value_learning == TD(sample=True, min_weight=0.5)
    assert loss.extraction == FlowDistillation(alpha=3.0, normalize=False, steps=10)
    assert loss.behaviour_learning == FlowMatching() and float(loss.alpha) == 3.0
    assert loss.actor_network.build["options"]["distribution"] == "one_step"
    widths = [layer.out_features for layer in loss.behaviour_network.module.mlp.layers]
    assert widths == [256, 256, 256, 256, 6]
    assert make_loss(spec, algorithm="mac_flow", joint_observation=False).behaviour_network.in_keys[0] == "state"


# ------------------------------------------------------------------- the actor


def observed(spec: TaskSpec, rows: int) -> TensorDict:
    keys = [OBSERVATION, MASK] if spec.has_action_mask else [OBSERVATION]
    return make_batch(spec, rows).select(*keys)


@pytest.mark.parametrize("spec", [BOUNDED, Case(discrete=True).spec], ids=["continuous", "discrete"])
def test_execution(spec: TaskSpec, tmp_path) -> None:
    """The mode is the action without noise, a sample is one of noise, and a stored policy is the same."""
    torch.manual_seed(0)
    actor = make_actor(spec, **ONE_STEP)
    rows = observed(spec, 300)
    head = actor.module[0].module
    seen = rows["agents", "observation"]

    def action_of(noise: Tensor) -> Tensor:
        out = head.network(torch.cat([seen, noise], -1))
        if spec.discrete:
            return out.masked_fill(~rows["agents", "action_mask"], -torch.inf).argmax(-1)
        return (0.75 + 1.25 * out).clamp(-0.5, 2.0)

    saved = load_policy(save_policy(tmp_path / "policy.pt", actor)).policy
    for policy in (actor, saved):
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            mode = policy(rows.clone())
        assert torch.equal(mode["agents", "action"], action_of(torch.zeros(300, 3, spec.action_size)))
        with set_exploration_type(ExplorationType.RANDOM):
            one, other = policy(rows.clone()), policy(rows.clone())
        noise = one["agents", "policy_noise"]
        assert torch.equal(one["agents", "action"], action_of(noise))
        assert not torch.equal(one["agents", "action"], other["agents", "action"])
        assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


@pytest.mark.parametrize("format", [thorough("torch"), "onnx"])
def test_a_sampling_program_draws_noise(tmp_path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
        runtime = pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    torch.manual_seed(0)
    actor = make_actor(BOUNDED, **ONE_STEP)
    path = export_policy(actor, tmp_path / "policy", format=format, mode="sample")
    seen = torch.randn(1, 3, 4).expand(4000, 3, 4).contiguous()
    if format == "torch":
        found = torch.export.load(path).module()(seen)
    else:
        session = runtime.InferenceSession(path)
        found = torch.from_numpy(session.run(["action"], {"observation": seen.numpy()})[0])
    with set_exploration_type(ExplorationType.RANDOM):
        expected = actor(TensorDict({OBSERVATION: seen}, [4000]))["agents", "action"]
    tolerance = 5 * expected.std(0).max().item() / math.sqrt(2000)
    assert_close(found.mean(0), expected.mean(0), rtol=0, atol=tolerance)
    assert_close(found.std(0), expected.std(0), rtol=0, atol=tolerance)
    assert found.min() >= -0.5 and found.max() <= 2.0 and found.std(0).min() > 0.01


@pytest.mark.parametrize("discrete", [False, True])
def test_the_loss_does_not_depend_on_what_is_executed(discrete: bool) -> None:
    case = Case("vdn", preset="mac_flow", discrete=discrete)
    loss, rows, found = case.build(), make_batch(case.spec, 6), []
    for kind in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
        with set_exploration_type(kind):
            torch.manual_seed(0)
            found.append(loss(rows).to_dict())
    assert_close(*found)


def test_members_of_a_population_act_by_noise_of_their_own() -> None:
    data = make_data(discrete=True)
    losses = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(seed)
        losses[name] = make_loss(data.spec, algorithm="mac_flow", hidden=(8,))
    population = Population(losses)
    rows = data.data[:30].select(OBSERVATION, MASK)
    torch.manual_seed(0)
    acted = population.act(torch.cat([rows] * 3)).unflatten(0, (3, 30))
    noise = acted["agents", "policy_noise"]
    assert not torch.equal(noise[0], noise[1])
    with set_exploration_type(ExplorationType.RANDOM):
        torch.manual_seed(0)
        sampled = population.act(torch.cat([rows] * 3)).unflatten(0, (3, 30))
    for index, loss in enumerate(losses.values()):
        alone = loss.actor_network(rows.clone())
        assert_close(acted["agents", "logits"][index], alone["agents", "logits"])
        assert torch.equal(acted["agents", "action"][index], alone["agents", "action"])
        drawn = sampled[index]["agents", "drawn"].masked_fill(~rows["agents", "action_mask"], -torch.inf)
        assert torch.equal(sampled[index]["agents", "action"], drawn.argmax(-1))
    trainer = Trainer(
        PopulationLearner(losses, lr=1e-3),
        PopulationBuffer(data.data, batch_size=12, seeds=(1, 2, 3)),
        steps=2,
        progress=False,
    )
    trainer.train()
    for mode in ("mode", "sample"):
        found = evaluate_population(trainer.learner.population, SlotEnv(6), episodes=3, seed=5, mode=mode)
        repeated = evaluate_population(trainer.learner.population, SlotEnv(6), episodes=3, seed=5, mode=mode)
        assert all(torch.equal(found[name].returns, repeated[name].returns) for name in found)


def test_members_must_have_the_same_model_of_the_data() -> None:
    spec = Case().spec
    losses = {n: make_loss(spec, algorithm="bcq", hidden=(8,), perturbation=p) for n, p in (("a", 0.05), ("b", 0.2))}
    with pytest.raises(ValueError, match=r"perturbation\.module\.limit is 0\.05 in a and 0\.2 in b"):
        Population(losses)


# ------------------------------------------------------------------- training


@pytest.mark.parametrize("algorithm", ["bcq", "mac_flow"])
@pytest.mark.parametrize("discrete", [False, True])
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(tmp_path, algorithm: str, discrete: bool) -> None:
    data = make_data(discrete=discrete)
    own = {"behaviour_hidden": (8,)} if algorithm == "bcq" else {}

    def trainer(folder: str, seed: int) -> Trainer:
        torch.manual_seed(seed)
        loss = make_loss(data.spec, algorithm=algorithm, hidden=(8,), **own)
        rows = make_replay_buffer(data.data, batch_size=12, seed=seed)
        options = {"steps": 6, "lr": 1e-3, "checkpoint_every": 2, "log_every": 2, "progress": False}
        return trainer_for(loss, rows, output=tmp_path / folder, **options)

    whole = trainer("whole", 0)
    before = {name: p.detach().clone() for name, p in whole.loss.named_parameters()}
    whole.train()
    assert all(not torch.equal(p, before[name]) for name, p in whole.loss.named_parameters())
    again = trainer("again", 1)
    first = sorted((tmp_path / "whole/checkpoints").glob("checkpoint-*"))[0]
    assert 0 < again.resume(first) < 6
    again.train()
    assert torch.equal(weights(again), weights(whole))
    stored = load_policy(tmp_path / "whole").policy
    rows = data.data[:20].select(*([OBSERVATION, MASK] if discrete else [OBSERVATION]))
    assert torch.equal(stored(rows.clone())[ACTION], whole.loss.actor_network(rows.clone())[ACTION])


def test_evaluation_plays_the_mode_or_a_sample() -> None:
    spec = make_data(discrete=True).spec
    torch.manual_seed(0)
    actor = make_actor(spec, **ONE_STEP)
    with torch.no_grad():
        actor.module[0].module.network.mlp.layers[0].weight[3:6].mul_(20)  # of the noise
    found = {mode: evaluate(actor, SlotEnv(2), episodes=4, seed=5, mode=mode).returns for mode in ("mode", "sample")}
    assert not torch.equal(found["mode"], found["sample"])
    assert torch.equal(found["sample"], evaluate(actor, SlotEnv(2), episodes=4, seed=5, mode="sample").returns)


@pytest.mark.slow
@pytest.mark.thorough
def test_the_flow_keeps_what_agents_do_together() -> None:
    """All agents go left or all go right; right is rewarded. The flow does both, together; the policies go right."""
    spec = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=1)
    g = torch.Generator().manual_seed(0)
    data = make_batch(spec, 2000)
    side = torch.where(torch.rand(2000, 1, 1, generator=g) < 0.5, -1.0, 1.0)
    data["agents", "action"] = 0.6 * side + 0.05 * torch.randn(2000, 3, 1, generator=g)
    data["next", "agents", "reward"] = 2 * data["agents", "action"].mean(-2, keepdim=True).expand(2000, 3, 1)
    data["next", "terminated"] = data["next", "done"] = torch.ones(2000, 1, dtype=torch.bool)
    torch.manual_seed(0)
    loss = updated(make_loss(spec, algorithm="mac_flow", hidden=(64, 64), alpha=1.0))
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-3)
    for _ in range(200):
        output = loss(data[torch.randint(2000, (128,))])
        optimizer.zero_grad()
        sum(value for name, value in output.items() if name.startswith("loss_")).backward()
        optimizer.step()
    rows = data[:500]
    end = flow(loss.batch(rows), torch.randn(500, 3, 1), steps=10, rule="test").squeeze(-1)
    together = (end.sign().sum(-1).abs() == 3).float().mean()
    right = (end > 0).all(-1).float().mean()
    assert together > 0.85 and 0.3 < right < 0.7  # of independent agents a quarter would agree
    sampled = loss.team.policy(rows).sample()
    assert (sampled > 0).float().mean() > 0.9 and loss.policy_action(rows).mean() > 0.4
