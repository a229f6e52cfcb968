"""Policies with TorchRL's memory act step by step, each environment for itself, whatever mode their modules are in."""

from __future__ import annotations

import pytest
import torch
from memory_toys import UnevenEnv
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import GRUModule, LSTMModule, set_recurrent_mode
from torchrl_toys import remembering_actor

from torchrl_marl_offline.core.layout import OBSERVATION
from torchrl_marl_offline.data import collect
from torchrl_marl_offline.data.policy_fit import PolicyError
from torchrl_marl_offline.evaluation import evaluate, evaluate_held_out
from torchrl_marl_offline.evaluation.offline.answers import EvaluatedPolicy
from torchrl_marl_offline.objectives import Cloning, OfflineMARLLoss
from torchrl_marl_offline.training import CollectorSource

MEMORIES = {"GRU": (GRUModule, ("h",)), "LSTM": (LSTMModule, ("h", "c"))}
every_memory = pytest.mark.parametrize(("kind", "hidden"), MEMORIES.values(), ids=MEMORIES)
pytestmark = pytest.mark.fault("4.8")


class Scores(nn.Module):
    """A policy that keeps its scores of every step, by the first number that was seen there."""

    def __init__(self, policy) -> None:
        super().__init__()
        self.policy, self.found = policy, {}
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys

    def forward(self, tensordict):
        out = self.policy(tensordict)
        for seen, scores in zip(out[OBSERVATION][:, 0].tolist(), out["agents", "logits"].detach()):
            self.found.setdefault(tuple(seen), scores)
        return out


def policy_for(kind: type, hidden: tuple[str, ...], **options: bool) -> Scores:
    torch.manual_seed(0)
    actor = remembering_actor(kind, *hidden, spec=UnevenEnv(1).task_spec, **options)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(3.0)
    return Scores(actor)


def ways_to_act(data):
    """Everything that asks a policy step by step."""
    return (
        lambda policy: evaluate(policy, UnevenEnv(3), episodes=6, seed=0),
        lambda policy: collect(UnevenEnv(3), policy, episodes=6, seed=0, exploration="mode"),
        lambda policy: CollectorSource(UnevenEnv(3), policy, steps_per_round=6, exploration="mode")(0),
        lambda policy: evaluate_held_out(policy, data),
        lambda policy: EvaluatedPolicy("policy", policy, data, "mode").seen(data.data),
    )


@pytest.fixture(scope="module")
def data():
    return collect(UnevenEnv(3), None, episodes=6, seed=0)


@every_memory
@pytest.mark.parametrize("way", range(5))
def test_the_mode_of_modules_and_callers_does_not_matter(data, kind, hidden, way: int) -> None:
    act = ways_to_act(data)[way]
    plain, over_time, within = (policy_for(kind, hidden, default_recurrent_mode=on) for on in (False, True, False))
    act(plain)
    act(over_time)
    with set_recurrent_mode(True):
        act(within)
    assert len(plain.found) > 6
    for other in (over_time, within):
        assert other.found.keys() == plain.found.keys()
        for seen, scores in plain.found.items():
            torch.testing.assert_close(other.found[seen], scores)


@every_memory
def test_memory_that_would_be_lost_is_refused(data, kind, hidden) -> None:
    policy = policy_for(kind, hidden, under_next=False).policy
    lost = r"reads its memory at 'h' and does not write it at \('next', 'h'\), .* out_keys of its GRUModule or LSTM"
    for act in ways_to_act(data):
        with pytest.raises(PolicyError, match=lost):
            act(policy)


@every_memory
def test_two_memories_at_one_key_are_refused(data, kind, hidden) -> None:
    first = kind(input_size=6, hidden_size=5, in_keys=["joined", *hidden], out_keys=["joined", *next_keys(hidden)])
    policy = policy_for(kind, hidden).policy
    policy.module[0].module[1].in_keys[0] = "seen"
    both = TensorDictSequential(TensorDictModule(nn.Flatten(-2), [OBSERVATION], ["joined"]), first, policy)
    both[1].out_keys[0] = "seen"
    sentence = "Two modules with memory in one network both keep it at 'h', the second in the place of the first"
    for act in ways_to_act(data):
        with pytest.raises(PolicyError, match=sentence):
            act(both)
    with pytest.raises(ValueError, match=sentence):
        OfflineMARLLoss(both, None, value_learning=None, extraction=Cloning())


def next_keys(keys: tuple[str, ...]) -> list[tuple[str, str]]:
    return [("next", key) for key in keys]
