"""Networks, policies and rules as users of TorchRL have them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from objective_toys import CONTINUOUS, DISCRETE
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import Tensor, nn
from torch import distributions as D
from torch.nn import functional as F
from torchrl import modules as R
from torchrl.data import Bounded, Composite
from torchrl.modules import Actor, MultiAgentMLP, ProbabilisticActor, QMixer, ReparamGradientStrategy, VDNMixer

from torchrl_marl_offline.core.layout import TaskSpec

OBSERVATION, ACTION = ("agents", "observation"), ("agents", "action")
LOCAL_Q, TEAM_Q = ("agents", "state_action_value"), "state_action_value"
LOCAL_V, TEAM_V = ("agents", "state_value"), "state_value"
UNSHARED = {"share_params": False, "centralized": False}
FORMS = [{"share_params": share, "centralized": central} for share in (True, False) for central in (True, False)]


def net(inputs: int, outputs: int, spec: TaskSpec = CONTINUOUS, **form: bool) -> MultiAgentMLP:
    form = {"share_params": True, "centralized": False} | form
    return MultiAgentMLP(inputs, outputs, spec.n_agents, depth=1, num_cells=6, **form)


class OfAction(nn.Module):
    """A MultiAgentMLP of observations and discrete actions, indices or one-hot codes."""

    def __init__(self, spec: TaskSpec, **form: bool) -> None:
        super().__init__()
        self.size, self.net = spec.action_size, net(spec.observation_size + spec.action_size, 1, spec, **form)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        code = action if action.is_floating_point() else F.one_hot(action, self.size).float()
        return self.net(observation, code)


class Team(nn.Module):
    """One value of all observations and actions, by a centralized MultiAgentMLP whose agents agree."""

    def __init__(self, inputs: int, spec: TaskSpec = CONTINUOUS) -> None:
        super().__init__()
        self.net = net(inputs, 1, spec, centralized=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net(*inputs)[..., 0, :]


def critic(spec: TaskSpec = CONTINUOUS, **form: bool) -> TensorDictModule:
    module = OfAction(spec, **form) if spec.discrete else net(spec.observation_size + spec.action_size, 1, spec, **form)
    return TensorDictModule(module, in_keys=[OBSERVATION, ACTION], out_keys=[LOCAL_Q])


def value(spec: TaskSpec = CONTINUOUS, **form: bool) -> TensorDictModule:
    return TensorDictModule(net(spec.observation_size, 1, spec, **form), in_keys=[OBSERVATION], out_keys=[LOCAL_V])


def team_critic(spec: TaskSpec = CONTINUOUS) -> TensorDictModule:
    module = Team(spec.observation_size + spec.action_size, spec)
    return TensorDictModule(module, in_keys=[OBSERVATION, ACTION], out_keys=[TEAM_Q])


def team_value(spec: TaskSpec = CONTINUOUS) -> TensorDictModule:
    return TensorDictModule(Team(spec.observation_size, spec), in_keys=[OBSERVATION], out_keys=[TEAM_V])


def mixer(kind: str | None, spec: TaskSpec = CONTINUOUS, state: str | tuple = "state") -> TensorDictModule | None:
    if kind is None:
        return None
    shape = (spec.state_size,) if state == "state" else (spec.n_agents, spec.observation_size)
    module = QMixer(shape, 4, spec.n_agents, "cpu") if kind == "QMixer" else VDNMixer(spec.n_agents, "cpu")
    keys = [LOCAL_Q, state] if kind == "QMixer" else [LOCAL_Q]
    return TensorDictModule(module, in_keys=keys, out_keys=[TEAM_Q])


class LocScale(nn.Module):
    def __init__(self, spec: TaskSpec, **form: bool) -> None:
        super().__init__()
        self.net = net(spec.observation_size, 2 * spec.action_size, spec, **form)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self.net(observation).chunk(2, -1)
        return loc, F.softplus(scale) + 0.1


def gaussian(distribution: Callable, spec: TaskSpec = CONTINUOUS, **form: bool) -> ProbabilisticActor:
    keys = {"loc": ("agents", "loc"), "scale": ("agents", "scale")}
    head = TensorDictModule(LocScale(spec, **form), in_keys=[OBSERVATION], out_keys=list(keys.values()))
    return ProbabilisticActor(head, in_keys=keys, out_keys=[ACTION], distribution_class=distribution)


def delta(distribution: type) -> ProbabilisticActor:
    keys = {"param": ("agents", "param")}
    head = TensorDictModule(net(4, 2), in_keys=[OBSERVATION], out_keys=list(keys.values()))
    return ProbabilisticActor(head, in_keys=keys, out_keys=[ACTION], distribution_class=distribution)


def categorical(distribution: type, *, mask: bool = False, **options) -> ProbabilisticActor:
    keys = {"logits": ("agents", "logits")} | ({"mask": ("agents", "action_mask")} if mask else {})
    head = TensorDictModule(net(4, 4, DISCRETE), in_keys=[OBSERVATION], out_keys=[("agents", "logits")])
    return ProbabilisticActor(
        head, in_keys=keys, out_keys=[ACTION], distribution_class=distribution, distribution_kwargs=options
    )


def plain(**form: bool) -> TensorDictModule:
    return TensorDictModule(net(4, 2, **form), in_keys=[OBSERVATION], out_keys=[ACTION])


def sequential() -> TensorDictSequential:
    proposal = ("agents", "proposal")
    return TensorDictSequential(
        TensorDictModule(net(4, 2), in_keys=[OBSERVATION], out_keys=[proposal]),
        TensorDictModule(nn.Tanh(), in_keys=[proposal], out_keys=[ACTION]),
    )


def sequence_with_distribution() -> TensorDictSequential:
    keys = {"loc": ("agents", "loc"), "scale": ("agents", "scale")}
    return TensorDictSequential(
        TensorDictModule(LocScale(CONTINUOUS), in_keys=[OBSERVATION], out_keys=list(keys.values())),
        ProbabilisticTensorDictModule(in_keys=keys, out_keys=[ACTION], distribution_class=R.TanhNormal),
    )


def actor_with_spec() -> Actor:
    spec = Composite(agents=Composite(action=Bounded(-1.0, 1.0, (3, 2)), shape=(3,)))
    return Actor(net(4, 2), in_keys=[OBSERVATION], out_keys=[ACTION], spec=spec)


DETERMINISTIC: dict[str, Callable[[], TensorDictModuleBase]] = {
    "TensorDictModule": plain,
    "TensorDictModule, a network for each agent": lambda: plain(**UNSHARED),
    "TensorDictSequential": sequential,
    "Actor": lambda: Actor(net(4, 2), in_keys=[OBSERVATION], out_keys=[ACTION]),
    "Delta": lambda: delta(R.Delta),
    "TanhDelta": lambda: delta(R.TanhDelta),
}
STOCHASTIC: dict[str, Callable[[], TensorDictModuleBase]] = {
    "torch's Normal": lambda: gaussian(D.Normal),
    "torch's Laplace": lambda: gaussian(D.Laplace),
    "Independent(Normal, 1)": lambda: gaussian(lambda loc, scale: D.Independent(D.Normal(loc, scale), 1)),
    "Independent(Normal, 2)": lambda: gaussian(lambda loc, scale: D.Independent(D.Normal(loc, scale), 2)),
    "MultivariateNormal": lambda: gaussian(lambda loc, scale: D.MultivariateNormal(loc, scale.diag_embed())),
    "TransformedDistribution": lambda: gaussian(
        lambda loc, scale: D.TransformedDistribution(D.Normal(loc, scale), [D.TanhTransform()])
    ),
    "Beta": lambda: gaussian(lambda loc, scale: D.Beta(F.softplus(loc) + 1, scale + 1)),
    "IndependentNormal": lambda: gaussian(R.IndependentNormal),
    "TanhNormal": lambda: gaussian(R.TanhNormal),
    "TruncatedNormal": lambda: gaussian(R.TruncatedNormal),
    "a sequence that ends in a distribution": sequence_with_distribution,
}
CATEGORICAL: dict[str, Callable[[], TensorDictModuleBase]] = {
    "torch's Categorical": lambda: categorical(D.Categorical),
    "torch's OneHotCategorical": lambda: categorical(D.OneHotCategorical),
    "torch's OneHotCategoricalStraightThrough": lambda: categorical(D.OneHotCategoricalStraightThrough),
    "OneHotCategorical, PassThrough": lambda: categorical(
        R.OneHotCategorical, grad_method=ReparamGradientStrategy.PassThrough
    ),
    "OneHotCategorical, RelaxedOneHot": lambda: categorical(
        R.OneHotCategorical, grad_method=ReparamGradientStrategy.RelaxedOneHot
    ),
    "MaskedCategorical": lambda: categorical(R.MaskedCategorical, mask=True),
}


class Joined(nn.Module):
    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return torch.cat([observation, action], -1).flatten(-2)


def remembering_critic(kind: type, *hidden: str) -> TensorDictSequential:
    """A critic of the team whose memory reads the batch's last dimension as time."""
    memory = kind(
        input_size=18, hidden_size=5, in_keys=["joined", *hidden], out_keys=["memory", *[("next", k) for k in hidden]]
    )
    return TensorDictSequential(
        TensorDictModule(Joined(), in_keys=[OBSERVATION, ACTION], out_keys=["joined"]),
        memory,
        TensorDictModule(nn.Linear(5, 1), in_keys=["memory"], out_keys=[TEAM_Q]),
    )


def remembering_actor(
    kind: type, *hidden: str, spec: TaskSpec, under_next: bool = True, **options: bool
) -> ProbabilisticActor:
    """A policy of discrete actions whose memory is TorchRL's, of the joint observation."""
    written = [("next", key) if under_next else key for key in hidden]
    sizes = {"input_size": spec.n_agents * spec.observation_size, "hidden_size": 5}
    memory = kind(**sizes, in_keys=["joined", *hidden], out_keys=["memory", *written], **options)
    scores = nn.Sequential(
        nn.Linear(5, spec.n_agents * spec.action_size), nn.Unflatten(-1, (spec.n_agents, spec.action_size))
    )
    network = TensorDictSequential(
        TensorDictModule(nn.Flatten(-2), in_keys=[OBSERVATION], out_keys=["joined"]),
        memory,
        TensorDictModule(scores, in_keys=["memory"], out_keys=[("agents", "logits")]),
    )
    keys = {"in_keys": [("agents", "logits")], "out_keys": [ACTION]}
    return ProbabilisticActor(network, distribution_class=D.Categorical, **keys)
