"""What agents remember: by one pass over time as step by step, of their own episode's past alone."""

from __future__ import annotations

import pytest
import torch
from memory_toys import KINDS, make_sequences, remembered_by_hand
from tensordict import TensorDict
from torchrl.modules import GRUCell, LSTMCell

from torchrl_marl_offline.core.layout import IS_INIT, OBSERVATION, TaskSpec
from torchrl_marl_offline.modules import HistoryEncoder, make_actor, make_critic, make_value

SPEC = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=2)
MEMORY = ("agents", "policy_memory")
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def encoder_for(kind: str, **options) -> HistoryEncoder:
    torch.manual_seed(0)
    return HistoryEncoder(SPEC, kind, **({} if kind.startswith("window") else {"size": 4}), **options)


@pytest.mark.parametrize("options", [{}, {"share_params": False}, {"joint": True}], ids=str)
@every_kind
def test_one_pass_equals_a_loop_in_values_and_gradients(kind: str, options: dict) -> None:
    encoder = encoder_for(kind, **options)
    batch = make_sequences(SPEC, 2, 5)
    batch.set(IS_INIT, torch.zeros(2, 5, 1, dtype=torch.bool))
    batch[IS_INIT][1, 3] = True
    expected, _ = remembered_by_hand(encoder, batch)
    found = encoder.unroll(batch[OBSERVATION], batch[IS_INIT])
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    weights, parameters = torch.randn_like(found), list(encoder.parameters())
    if parameters:
        both = [torch.autograd.grad((each * weights).sum(), parameters) for each in (found, expected)]
        for own, by_hand in zip(*both):
            assert by_hand.abs().sum() > 0
            torch.testing.assert_close(own, by_hand, atol=1e-10, rtol=0)


@every_kind
def test_steps_equal_the_pass(kind: str) -> None:
    encoder, batch = encoder_for(kind), make_sequences(SPEC, 2, 5)
    begins = torch.zeros(2, 5, 1, dtype=torch.bool)
    begins[:, 0] = begins[0, 2] = True
    found, memory = encoder.unroll(batch[OBSERVATION], begins), None
    for t in range(5):
        step = TensorDict({OBSERVATION: batch[OBSERVATION][:, t], IS_INIT: begins[:, t]}, [2])
        if memory is not None:
            step.set(MEMORY, memory)
        out = encoder(step)
        memory = out["next", *MEMORY]
        torch.testing.assert_close(memory, found[:, t], atol=1e-12, rtol=0)
        assert torch.equal(out["agents", "policy_history"], memory[..., : encoder.feature_size])


@every_kind
def test_the_future_does_not_leak_and_neither_does_another_episode(kind: str) -> None:
    encoder, batch = encoder_for(kind), make_sequences(SPEC, 2, 6)
    begins = torch.zeros(2, 6, 1, dtype=torch.bool)
    begins[0, 4] = True
    before = encoder.unroll(batch[OBSERVATION], begins)
    changed = batch[OBSERVATION].clone()
    changed[0, 2] += 1.0
    after = encoder.unroll(changed, begins)
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[0, :2], before[0, :2])
    assert torch.equal(after[0, 4:], before[0, 4:])
    assert not torch.isclose(after[0, 2:4], before[0, 2:4]).all(-1).any()


def test_a_window_is_the_last_observations() -> None:
    encoder = encoder_for("window:2")
    seen = torch.arange(1.0, 13.0).reshape(1, 2, 2, 3)
    found = encoder.unroll(seen, torch.zeros(1, 2, 1, dtype=torch.bool))
    assert found[0, 0, 0].tolist() == [0, 0, 0, 1, 2, 3]
    assert found[0, 1, 1].tolist() == [4, 5, 6, 10, 11, 12]


@pytest.mark.parametrize(("kind", "cell"), [("gru", GRUCell), ("lstm", LSTMCell)])
def test_the_cells_are_those_of_torchrl(kind: str, cell: type) -> None:
    encoder = encoder_for(kind, joint=True)  # one row of weights, no id
    other, own = cell(6, 4), encoder.cell
    names = (("weight_ih", own.of_input.weight), ("weight_hh", own.of_memory.weight))
    names += (("bias_ih", own.of_input.bias), ("bias_hh", own.of_memory.bias))
    with torch.no_grad():
        for name, value in names:
            getattr(other, name).copy_(value.mT if name.startswith("weight") else value.reshape(-1))
    seen, memory = torch.randn(5, 2, 3), torch.randn(5, 1, encoder.memory_size)
    state = memory[:, 0] if kind == "gru" else tuple(memory[:, 0].chunk(2, -1))
    expected = other(seen.flatten(1), state)
    expected = expected if kind == "gru" else torch.cat(expected, -1)
    torch.testing.assert_close(encoder.advance(seen, memory)[:, 0], expected, atol=1e-12, rtol=0)


def test_it_is_refused_where_it_is_not_told_of_beginnings_or_given_its_memory() -> None:
    encoder = encoder_for("gru")
    step = TensorDict({OBSERVATION: torch.zeros(3, 2, 3)}, [3])
    with pytest.raises(ValueError, match="must be told where episodes begin"):
        encoder(step)
    with pytest.raises(ValueError, match="given none in the middle of an episode"):
        encoder(step.set(IS_INIT, torch.tensor([[True], [False], [True]])))


@pytest.mark.parametrize("make", [make_actor, make_critic, make_value], ids=lambda make: make.__name__)
@pytest.mark.parametrize("memory", ["rnn", "window:0", "window:", "window:-1", 3])
def test_other_kinds_are_refused(make, memory) -> None:
    with pytest.raises(ValueError, match="memory must be 'gru', 'lstm' or 'window:K', got"):
        make(SPEC, memory=memory)


def test_a_size_that_nothing_has_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_size is read only with memory 'gru' or 'lstm'"):
        make_actor(SPEC, memory_size=8)
    with pytest.raises(ValueError, match="memory_size is read only with memory 'gru' or 'lstm'"):
        make_actor(SPEC, memory="window:4", memory_size=8)


def test_observations_are_normalized_before_they_are_remembered() -> None:
    norm = ([1.0, 2.0, 3.0], [2.0, 2.0, 4.0])
    actor = make_actor(SPEC, hidden=(4,), memory="window:2", observation_norm=norm)
    step = TensorDict({OBSERVATION: torch.ones(1, 2, 3), IS_INIT: torch.ones(1, 1, dtype=torch.bool)}, [1])
    assert actor(step)["agents", "policy_history"][0, 0].tolist() == [0, 0, 0, 0, -0.5, -0.5]


@pytest.mark.fault("3.18")
def test_beginnings_and_memories_of_another_shape_are_refused() -> None:
    encoder, n = HistoryEncoder(SPEC, "gru", 5), SPEC.n_agents
    rows = TensorDict({OBSERVATION: torch.randn(n, n, 3)}, [n])  # as many rows as agents
    flag = torch.ones(n, 1, dtype=torch.bool)
    for wrong in (flag[:, 0], flag.float(), flag.unsqueeze(1).expand(n, n, 1)):
        with pytest.raises(
            ValueError, match=rf"^'is_init' must be bools \[{n}, 1\], true where an episode begins; got"
        ):
            encoder(rows.clone().set(IS_INIT, wrong))
    for wrong in (torch.zeros(n, n, 4), torch.zeros(n, 1, 5), torch.zeros(n, 5)):
        with pytest.raises(ValueError, match=rf"must be \[{n}, {n}, 5\], what this network wrote under 'next'"):
            encoder(rows.clone().set(IS_INIT, flag).set("own", wrong).rename_key_("own", MEMORY))
