"""Networks whose inputs are normalized by a dataset's statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from memory_toys import end_episode, make_sequences
from objective_toys import make_batch
from systems_toys import updated

from torchrl_marl_offline import TaskSpec, load_policy, make_actor, make_loss, save_policy
from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.core.input_statistics import InputStatistics
from torchrl_marl_offline.core.layout import OBSERVATION, STATE, next_key

SPEC = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=2)
INPUTS = InputStatistics(
    observation=((1.0, 0.0, -3.0, 1e3), (0.5, 1.0, 2.0, 1e3)), state=((0.0,) * 5, (1e-3, 1.0, 2.0, 4.0, 0.5))
)
SETTINGS = {"b3c": {"max_next_value": 10.0}, "mac_flow": {"hidden": (16,)}, "bcq": {"behaviour_hidden": (16,)}}
CASES = [({"algorithm": name, **SETTINGS.get(name, {})}) for name in ALGORITHMS if name != "mac_flow_discrete"]
CASES += [{"decomposition": name} for name in ("qplex", "qatten", "graph", "centralized", "vdn")]


def normalized(batch):
    """Return the batch as networks with INPUTS see it."""
    batch = batch.clone()
    for key, (mean, deviation) in ((OBSERVATION, INPUTS.observation), (STATE, INPUTS.state)):
        for place in (key, next_key(key)):
            batch.set(place, (batch.get(place) - torch.tensor(mean)) / torch.tensor(deviation))
    return batch


REMEMBERING = [
    {"memory": "gru", "memory_size": 5, "decomposition": "mixer", "hidden": (16,)},
    {"memory": "window:3", "decomposition": "centralized", "hidden": (16,)},
    {"memory": "lstm", "memory_size": 5, "decomposition": "qatten", "hidden": (16,)},
    {"algorithm": "omiga", "memory": "gru", "memory_size": 5, "hidden": (16,)},
    {"algorithm": "cloning", "memory": "lstm", "memory_size": 5, "hidden": (16,)},
]


@pytest.mark.parametrize("case", CASES + REMEMBERING, ids=lambda case: "-".join(map(str, case.values())))
def test_every_network_sees_normalized_inputs(case) -> None:
    """The loss of raw inputs is the loss of the same networks of inputs that were normalized before."""
    batch, found = make_batch(SPEC, 16), []
    if "memory" in case:
        batch = end_episode(make_sequences(SPEC, 3, 8, dtype=torch.float32), (1, 4))
    for inputs, rows in ((INPUTS, batch), (None, normalized(batch))):
        torch.manual_seed(0)
        loss = make_loss(SPEC, inputs=inputs, **case)
        loss = loss if case.get("algorithm") == "cloning" else updated(loss)
        torch.manual_seed(1)
        found.append(loss(rows))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("memory", [{}, {"memory": "gru", "memory_size": 4}, {"memory": "window:2"}], ids=str)
def test_policies_keep_what_they_are_normalized_by(tmp_path, memory) -> None:
    loss = make_loss(SPEC, algorithm="td3_bc", inputs=INPUTS, **memory)
    actor = copy.deepcopy(loss.actor_network)
    loss.actor_network_params.to_module(actor)
    loaded = load_policy(save_policy(tmp_path / "policy.pt", actor))
    batch = make_batch(SPEC, 8).set("is_init", torch.ones(8, 1, dtype=torch.bool))
    assert loaded.policy.build["options"]["observation_norm"] == tuple(map(list, INPUTS.observation))
    assert torch.equal(loaded(batch.clone())["agents", "action"], actor(batch.clone())["agents", "action"])


def test_statistics_survive_a_file_and_wrong_ones_are_refused(tmp_path) -> None:
    INPUTS.save(tmp_path / "inputs.json")
    assert InputStatistics.load(tmp_path / "inputs.json") == INPUTS and INPUTS.are_badly_scaled
    (tmp_path / "inputs.json").write_text('{"observation": [[1], [0]], "state": [[1], [1]]}')
    with pytest.raises(ValueError, match=r"inputs.json is damaged; restore it, or start a new run."):
        InputStatistics.load(tmp_path / "inputs.json")
    for moments in (((1.0,), (0.0,)), ((1.0,), (1.0, 1.0)), ((float("nan"),), (1.0,)), ((), ())):
        with pytest.raises(ValueError, match="as many finite means as finite deviations above 0"):
            InputStatistics(moments, INPUTS.state)
    with pytest.raises(ValueError, match="inputs= has 4 numbers for the observation, but it has 6"):
        make_loss(TaskSpec(3, 6, 5, 2), inputs=INPUTS)


def test_given_policies_keep_their_own_normalization() -> None:
    own = make_actor(SPEC, hidden=(8,))
    loss = ALGORITHMS["td3_bc"]().build(SPEC, actor=own, inputs=INPUTS)
    assert loss.actor_network.build["options"].get("observation_norm") is None
