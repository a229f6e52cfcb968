"""Small batches and losses for the tests of the objectives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
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
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline.core.layout import TaskSpec
from torchrl_marl_offline.modules import (
    DECOMPOSITIONS,
    make_actor,
    make_behaviour_policy,
    make_critic,
    make_flow,
    make_score,
    make_sequential_policy,
    make_vae,
    make_value,
)
from torchrl_marl_offline.objectives import (
    AWR,
    BRAC,
    CQL,
    IQL,
    SARSA,
    TD,
    AWRLoss,
    BehaviourCloning,
    BRACLoss,
    IQLLoss,
    OfflineMARLLoss,
    PolicyGradient,
    SARSALoss,
    ScoreMatching,
    SequentialCloning,
    SoftmaxSampler,
    TDLoss,
)

CONTINUOUS = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=2)
DISCRETE = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=4, discrete=True, has_action_mask=True)
RULES = {"td": TD(), "sarsa": SARSA(), "iql": IQL(0.8), "awr": AWR(temperature=2.0), "brac": BRAC(sample=False)}
PRESETS = ("TDLoss", "SARSALoss", "IQLLoss", "AWRLoss", "BRACLoss", "BehaviourCloning")
HIDDEN = (8,)
SAMPLES = 7
"""Actions that a system asks the critic for at once."""
SYSTEM_RULES = {
    "cql": CQL(noise=0.2, num_random=SAMPLES, num_policy=SAMPLES),
    "policy gradient": PolicyGradient(sample=False),
    "sampler": SoftmaxSampler(iterations=2, samples=SAMPLES),
}


def make_batch(spec: TaskSpec, *shape: int, seed: int = 0) -> TensorDict:
    """Draw a batch in the layout; the recorded actions are legal."""
    g = torch.Generator().manual_seed(seed)
    n, o, s, a = spec.n_agents, spec.observation_size, spec.state_size, spec.action_size

    def half() -> TensorDict:
        agents = TensorDict({"observation": torch.randn(*shape, n, o, generator=g)}, [*shape, n])
        if spec.discrete:
            agents["action_mask"] = torch.rand(*shape, n, a, generator=g) < 0.6
            agents["action_mask"][..., 1] = True
            scores = torch.rand(*shape, n, a, generator=g) * agents["action_mask"]
            agents["action"] = scores.argmax(-1)
        else:
            agents["action"] = torch.rand(*shape, n, a, generator=g) * 1.6 - 0.8
        return TensorDict({"agents": agents, "state": torch.randn(*shape, s, generator=g)}, list(shape))

    batch, successor = half(), half()
    successor["agents", "reward"] = torch.randn(*shape, n, 1, generator=g)
    terminated = torch.rand(*shape, 1, generator=g) < 0.2
    successor.update({"terminated": terminated, "truncated": terminated.logical_not(), "done": terminated.clone()})
    return batch.set("next", successor)


@dataclass(frozen=True)
class Case:
    """One loss of the contract: a combination, or a preset."""

    decomposition: str = "mixer"
    learning: str = "iql"
    extraction: str = "awr"
    discrete: bool = False
    preset: str | None = None

    @property
    def spec(self) -> TaskSpec:
        return DISCRETE if self.discrete else CONTINUOUS

    def __str__(self) -> str:
        kind = "discrete" if self.discrete else "continuous"
        name = self.preset or f"{self.learning}-{self.extraction}"
        return f"{self.decomposition}-{name}-{kind}"

    def critic(self, **options):
        options = {"embed_size": 4, "mixer_hidden_size": 8, "attention_heads": 2} | options
        return make_critic(self.spec, decomposition=self.decomposition, hidden=HIDDEN, **options)

    def value(self):
        return make_value(self.spec, decomposition=self.decomposition, hidden=HIDDEN)

    def actor(self, **options):
        return make_actor(self.spec, hidden=HIDDEN, **({"final_scale": 1.0} | options))

    def behaviour(self):
        """Return the model of the data that a preset asks."""
        if self.preset == "mac_flow":
            return make_flow(self.spec, hidden=HIDDEN)
        if self.preset == "omsd":
            return (make_sequential_policy if self.discrete else make_score)(self.spec, hidden=HIDDEN)
        if self.discrete:
            return make_behaviour_policy(self.spec, hidden=HIDDEN)
        return make_vae(self.spec, hidden=HIDDEN, perturbation_hidden=HIDDEN)

    def build(self, *, seed: int = 1, critic=None, tau: float = 0.5, **options) -> OfflineMARLLoss:
        """Return the loss with its updater at ``loss.updater`` (None where it has no targets)."""
        torch.manual_seed(seed)
        policies = {"distribution": "one_step"} if self.preset == "mac_flow" else {}
        actor, critic = self.actor(**policies), self.critic() if critic is None else critic
        brac, awr = RULES["brac"], RULES["awr"]
        cql, ascent, sampler = SYSTEM_RULES.values()
        if self.preset is None:
            learning = RULES[self.learning]
            value = self.value() if self.learning == "iql" else None
            options = {"value_learning": learning, "extraction": RULES[self.extraction]} | options
            loss = OfflineMARLLoss(actor, critic, value, **options)
        else:
            loss = {
                "TDLoss": lambda: TDLoss(actor, critic, **options),
                "SARSALoss": lambda: SARSALoss(critic, **options),
                "IQLLoss": lambda: IQLLoss(critic, self.value(), expectile=0.8, **options),
                "AWRLoss": lambda: AWRLoss(actor, critic, self.value(), rule=awr, **options),
                "BRACLoss": lambda: BRACLoss(actor, critic, rule=brac, **options),
                "BehaviourCloning": lambda: BehaviourCloning(actor, **options),
                "td3_bc": lambda: td3_bc_loss(actor, critic, **options),
                "cql": lambda: cql_loss(actor, critic, **({"learning": cql, "extraction": ascent} | options)),
                "omar": lambda: omar_loss(actor, critic, **({"learning": cql, "sampler": sampler} | options)),
                "icq": lambda: icq_loss(actor, critic, **options),
                "omac": lambda: omac_loss(actor, critic, self.value(), **options),
                "omiga": lambda: omiga_loss(actor, critic, self.value(), **options),
                "bcq": lambda: bcq_loss(actor, critic, self.behaviour(), **({"samples": SAMPLES} | options)),
                "mac_flow": lambda: mac_flow_loss(actor, critic, self.behaviour(), **options),
                "omsd": lambda: omsd_loss(
                    actor,
                    critic,
                    self.value(),
                    self.behaviour(),
                    behaviour_learning=SequentialCloning() if self.discrete else ScoreMatching(),
                    **options,
                ),
            }[self.preset]()
        loss.make_value_estimator(gamma=0.9)
        updater = SoftUpdate(loss, tau=tau) if loss.value_learning is not None else None
        loss.__dict__["updater"] = updater
        return loss


COMBINATIONS = [
    Case(decomposition, learning, extraction, discrete)
    for discrete in (False, True)
    for decomposition in DECOMPOSITIONS
    for learning in ("td", "sarsa", "iql")
    for extraction in ("awr", "brac")
]
PRESET_CASES = [Case(preset=preset, discrete=discrete) for discrete in (False, True) for preset in PRESETS]
SYSTEM_CASES = [
    Case("independent", preset="td3_bc"),
    Case("mixer", preset="td3_bc"),
    Case("linear", preset="cql"),
    Case("independent", preset="cql", discrete=True),
    Case("centralized", preset="cql", discrete=True),
    Case("independent", preset="omar"),
    Case("centralized", preset="omar"),
    Case("linear", preset="icq"),
    Case("mixer", preset="icq", discrete=True),
    Case("linear", preset="omac", discrete=True),
    Case("linear", preset="omiga"),
    Case("mixer", preset="omiga", discrete=True),
    Case("mixer", preset="bcq"),
    Case("centralized", preset="bcq"),
    Case("independent", preset="bcq", discrete=True),
    Case("centralized", preset="bcq", discrete=True),
    Case("vdn", preset="mac_flow"),
    Case("independent", preset="mac_flow"),
    Case("mixer", preset="mac_flow", discrete=True),
    Case("centralized", preset="omsd"),
    Case("centralized", preset="omsd", discrete=True),
    Case("mixer", preset="omsd"),
    Case("independent", preset="omsd", discrete=True),
]
CASES = COMBINATIONS + PRESET_CASES + SYSTEM_CASES


def noise_of_its_place(request, device="cpu", generator=None) -> torch.Tensor:
    """Draw noise that is the same for every row, so that batches of other rows or another shape can be compared."""
    sampled = len(request.shape) > 3 and request.shape[-3] == SAMPLES
    place = request.shape[-3:] if sampled else request.shape[-2:]
    numbers = (0.11 + 0.6180339887 * torch.arange(math.prod(place), dtype=torch.float64)) % 1.0  # spread over (0, 1)
    return numbers.to(request.dtype).reshape(place).expand(request.shape)


def loss_terms(output: TensorDict) -> dict[str, torch.Tensor]:
    return {key: value for key, value in output.items() if key.startswith("loss_")}


def gradients(loss: OfflineMARLLoss, batch: TensorDict, *terms: str) -> dict[str, torch.Tensor]:
    """Return the gradient of the sum of ``terms`` (default: all) to every parameter that it reaches."""
    loss.zero_grad()
    output = loss(batch)
    sum(output[key] for key in (terms or loss_terms(output))).backward()
    return {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
