"""Policies that other TorchRL code trained go on as policies of this library."""

from __future__ import annotations

import payloads
import pytest
import torch
from selection import some_of
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MultiAgentMLP, ProbabilisticActor
from torchrl.modules.distributions import TanhNormal

from torchrl_marl_offline import TaskSpec, import_policy, load_policy, make_algorithm, save_policy

SPEC = TaskSpec(n_agents=3, observation_size=5, state_size=15, action_size=2, action_low=-1.0, action_high=1.0)
DISCRETE = TaskSpec(n_agents=3, observation_size=5, state_size=15, action_size=4, discrete=True)
OBSERVATION, LOC, SCALE = ("agents", "observation"), ("agents", "loc"), ("agents", "scale")


def mlp(outputs: int, *, share: bool = True, depth: int = 2, activation=nn.Tanh) -> MultiAgentMLP:
    return MultiAgentMLP(
        n_agent_inputs=5, n_agent_outputs=outputs, n_agents=3, centralized=False, share_params=share, depth=depth,
        num_cells=16, activation_class=activation,
    )  # fmt: skip


def torchrl_policy(**options) -> ProbabilisticActor:
    net = nn.Sequential(mlp(4, **options), NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=[OBSERVATION], out_keys=[LOC, SCALE]),
        in_keys=[LOC, SCALE],
        out_keys=[("agents", "action")],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -torch.ones(2), "high": torch.ones(2)},
    )


def batch() -> TensorDict:
    return TensorDict({OBSERVATION: torch.randn(7, 3, 5)}, [7])


FORMS = [
    {"share": share, "depth": depth, "activation": activation}
    for share in (True, False)
    for depth in (1, 3)
    for activation in (nn.Tanh, nn.ReLU)
]


@pytest.mark.parametrize("form", some_of(FORMS, every=3), ids=str)
def test_it_has_the_same_mode_and_the_same_distribution(form, tmp_path):
    theirs = torchrl_policy(**form)
    torch.save(theirs.state_dict(), tmp_path / "policy.pt")
    activation = form["activation"].__name__.lower()
    for source in (theirs.state_dict(), tmp_path / "policy.pt"):
        ours, td = import_policy(source, SPEC, activation=activation), batch()
        torch.testing.assert_close(
            ours.get_dist(td.copy()).deterministic_sample, theirs.get_dist(td.copy()).deterministic_sample
        )
        action = theirs(td.copy())["agents", "action"].detach()
        probabilities = [policy.get_dist(td.copy()).log_prob(action) for policy in (ours, theirs)]
        torch.testing.assert_close(*probabilities)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            assert torch.allclose(ours(td.copy())["agents", "action"], theirs(td.copy())["agents", "action"], atol=1e-6)
    saved = load_policy(save_policy(tmp_path / "ours.pt", ours))
    assert torch.equal(
        saved.policy.get_dist(td.copy()).deterministic_sample, ours.get_dist(td.copy()).deterministic_sample
    )


def test_a_checkpoint_of_benchmarl_is_searched_for_its_policy(tmp_path):
    """The names are those of BenchMARL 1.5: a loss beside its collector, which has the policy a second time."""
    policy, critic = torchrl_policy().state_dict(), mlp(1).state_dict()
    own = {f"actor_network_params.{name}": tensor for name, tensor in policy.items()}
    own |= {f"critic_network_params.module.0.mlp.{name}": tensor for name, tensor in critic.items()}
    own |= {f"target_actor_network_params.{name}": tensor + 1 for name, tensor in policy.items()}
    whole = {
        "global": {"iters": 3, "fps": 2.5},
        "collector": {"policy_state_dict": {f"module.0.{name}": tensor for name, tensor in policy.items()}},
        "loss_agents": own | {"_value_estimator.gamma": torch.tensor(0.9)},
    }
    torch.save(whole, tmp_path / "checkpoint.pt")
    found, td = import_policy(tmp_path / "checkpoint.pt", SPEC), batch()
    assert torch.equal(
        found.get_dist(td).deterministic_sample, import_policy(policy, SPEC).get_dist(td).deterministic_sample
    )


def test_discrete_and_deterministic_policies():
    logits = mlp(4)
    actor = TensorDictSequential(TensorDictModule(logits, in_keys=[OBSERVATION], out_keys=[("agents", "logits")]))
    td = batch()
    found = import_policy(actor.state_dict(), DISCRETE)
    assert torch.equal(found.get_dist(td).logits.argmax(-1), logits(td[OBSERVATION]).argmax(-1))
    location = mlp(2)
    found = import_policy(location.state_dict(), SPEC)
    torch.testing.assert_close(found.get_dist(td).deterministic_sample, torch.tanh(location(td[OBSERVATION])))


def test_an_algorithm_goes_on_with_it():
    for name, settings in (("recipe", {}), ("omar", {}), ("td3_bc", {})):
        ours = import_policy(torchrl_policy().state_dict(), SPEC)
        loss = make_algorithm(name, hidden=(8,), **settings).build(SPEC, actor=ours)
        td = batch()
        assert torch.equal(loss.actor_network.get_dist(td).deterministic_sample, ours.get_dist(td).deterministic_sample)
        assert sum(p.numel() for p in loss.actor_network_params.parameters()) == sum(
            p.numel() for p in ours.parameters()
        )


def net(**changes) -> dict[str, torch.Tensor]:
    """The state of a policy of one hidden layer of 16, with some tensors changed, added, or (None) left out."""
    state = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4)).state_dict()
    state |= {name.replace("_", ".", 1): value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


GRU = {f"{layer}.{kind}": torch.ones(4) for layer in ("fc1", "fc2") for kind in ("weight", "bias")}
WRONG = {
    "another size": (torchrl_policy().state_dict(), TaskSpec(2, 6, 12, 2), "the task has 2 agents, 6 observ"),
    "other agents": (torchrl_policy(share=False).state_dict(), TaskSpec(2, 5, 10, 2), "3 agents, 5 observations"),
    "other actions": (mlp(4).state_dict(), TaskSpec(3, 5, 15, 6, discrete=True), "4 outputs, but the task"),
    "nothing": ({"a": 1}, SPEC, "one policy of linear layers; found none"),
    "a recurrent agent of PyMARL": (GRU | {"rnn.weight_ih": torch.ones(4)}, SPEC, "found none"),
    "two": ({f"{k}.{n}": t for k in "ab" for n, t in mlp(4).state_dict().items()}, SPEC, r"'a\.params', 'b\.params'"),
    "no bias": (net(**{"0_bias": None}), SPEC, "linear layers with biases alone"),
    "a convolution": (net(**{"0_weight": torch.ones(16, 5, 3, 3)}), SPEC, "linear layers with biases alone"),
    "a layer norm": (net(**{"1_weight": torch.ones(16), "1_bias": torch.ones(16)}), SPEC, "linear layers with"),
    "a normalization": (net(**{"obs_mean": torch.ones(5)}), SPEC, "has 'obs.mean' beside them"),
    "a memory": ({f"actor.{n}": t for n, t in (net() | {"rnn.w": torch.ones(3)}).items()}, SPEC, "has 'actor.rnn"),
    "a bias of another size": (net(**{"2_bias": torch.ones(3)}), SPEC, "linear layers with biases alone"),
    "a bias of another shape": (net(**{"2_bias": torch.ones(4, 1)}), SPEC, "linear layers with biases alone"),
    "layers that do not chain": (net(**{"2_weight": torch.ones(4, 12)}), SPEC, "5 to 16 and 12 to 4"),
    "a layer of each": (net(**{"2_weight": torch.ones(3, 4, 16), "2_bias": torch.ones(3, 4)}), SPEC, "not follow"),
    "integers": (net(**{"2_weight": torch.ones(4, 16, dtype=torch.long)}), SPEC, "linear layers with biases alone"),
    "sparse": (net(**{"2_weight": torch.ones(4, 16).to_sparse()}), SPEC, "linear layers with biases alone"),
    "no storage": (net(**{"2_weight": torch.ones(4, 16, device="meta")}), SPEC, "linear layers with biases alone"),
    "NaN in a weight": (net(**{"0_weight": torch.full((16, 5), torch.nan)}), SPEC, "NaN or infinite"),
    "infinity in a bias": (net(**{"0_bias": torch.full((16,), torch.inf)}), SPEC, "NaN or infinite"),
    "too large for 32 bits": (net(**{"0_bias": torch.ones(16, dtype=torch.float64) * 1e300}), SPEC, "NaN or infinite"),
    "an endless number": ({f"{'9' * 6000}.weight": torch.ones(4, 5)}, SPEC, "found none"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_none_is_refused_in_one_sentence(what):
    state, spec, message = WRONG[what]
    with pytest.raises(ValueError, match=message) as refused:
        import_policy(state, spec)
    assert "\n" not in str(refused.value)


def test_the_sizes_are_looked_at_before_anything_is_built():
    wide = torch.ones(1).expand(10_500, 18)
    state = {"0.weight": wide, "0.bias": wide[:, 0]}
    state |= {f"{i}.{k}": t for i in (2, 4) for k, t in (("weight", wide[:, :1]), ("bias", wide[:, 0]))}
    with pytest.raises(ValueError, match="do not follow one another"):
        import_policy(state, SPEC)


@pytest.mark.parametrize("source", [None, [1], 3])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(TypeError, match="reads a file or a state_dict"):
        import_policy(source, SPEC)


@pytest.mark.parametrize("actor", [7, "policy.pt", nn.Linear(5, 4), lambda td: td])
@pytest.mark.parametrize("name", ["recipe", "omar"])
def test_what_is_no_policy_is_refused_as_an_actor(name, actor):
    with pytest.raises(TypeError, match=r"actor must be a TensorDictModule, such as load_policy\(PATH\).policy"):
        make_algorithm(name, hidden=(8,)).build(SPEC, actor=actor)


def test_nothing_in_the_file_is_executed(tmp_path):
    mark = tmp_path / "mark"
    torch.save({"module.0.weight": payloads.Payload(mark)}, tmp_path / "policy.pt")
    with pytest.raises(ValueError, match="is no state of a module"):
        import_policy(tmp_path / "policy.pt", SPEC)
    assert not mark.exists()
    (tmp_path / "text.pt").write_text("no file of torch")
    with pytest.raises(ValueError, match="is no state of a module"):
        import_policy(tmp_path / "text.pt", SPEC)
