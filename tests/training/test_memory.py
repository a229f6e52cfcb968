"""Training with memory, and acting with it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from memory_toys import KINDS, CueEnv, Watched, memory_options
from population_toys import (
    SlotEnv,
    eager_and_traced,
    everything,
    largest_difference,
    lone_tensors,
    make_alone,
    make_data,
    make_population,
    member_tensors,
)
from selection import thorough
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate
from trainers import trainer_for

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.layout import IS_INIT, OBSERVATION
from torchrl_marl_offline.data import collect
from torchrl_marl_offline.evaluation import diagnose, evaluate, evaluate_population
from torchrl_marl_offline.modules import make_actor
from torchrl_marl_offline.training import (
    CollectorSource,
    OnlineReplay,
    PopulationBuffer,
    load_policy,
    save_policy,
)
from torchrl_marl_offline.training.run.checkpoints import BufferState, CheckpointError
from torchrl_marl_offline.training.run.distributed import ShareOfSampler
from torchrl_marl_offline.training.step.gradients import CompiledGradients, Gradients

RULES = {"decomposition": "mixer", "value_learning": "iql", "extraction": "awr", "memory": "gru", "memory_size": 4}
SLICES = {"slice_len": 4, "burn_in": 1}


@pytest.fixture(scope="module")
def discrete():
    return make_data(discrete=True)


@pytest.mark.parametrize("kind", ["gru", thorough("lstm"), thorough("window:3")])
@pytest.mark.parametrize("is_discrete", [True, thorough(False)], ids=["discrete", "continuous"])
def test_a_member_of_a_population_is_the_run_alone(kind: str, is_discrete: bool) -> None:
    data = make_data(discrete=is_discrete, dtype=torch.float64)
    rules = {name: value for name, value in RULES.items() if not name.startswith("memory")} | memory_options(kind)
    population = make_population(data, (0, 1), rules=rules, steps=8, **SLICES)
    start = member_tensors(population, 1)
    population.train()
    alone = make_alone(data, 1, rules=rules, steps=8, **SLICES)
    alone.train()
    found = member_tensors(population, 1)
    assert largest_difference(found, lone_tensors(alone)) <= 1e-12
    assert largest_difference(found, start) > 1e-3


def test_compiled_equals_eager(discrete) -> None:
    """The traced operations one by one, of a run alone and of a population, bit for bit."""
    found = []
    for kind in (Gradients, partial(CompiledGradients, backend=None)):
        torch.manual_seed(0)
        loss = make_loss(discrete.spec, hidden=(8,), **RULES)
        updater = SoftUpdate(loss, tau=0.5)
        metrics = kind(loss)(discrete.replay_buffer(batch_size=12, seed=0, **SLICES).sample())
        found.append(metrics | {name: p.grad for name, p in loss.named_parameters()})
        assert updater is not None
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    trainers = eager_and_traced(lambda: make_population(discrete, (0, 1), rules=RULES, steps=2, **SLICES))
    assert torch.equal(*map(everything, trainers))


@pytest.mark.parametrize("kind", ["gru", thorough("lstm")])
def test_what_is_compiled_does_not_grow_with_the_slices(discrete, kind: str) -> None:
    counts = []
    for length in (4, 6):
        loss = make_loss(discrete.spec, hidden=(8,), **RULES | {"memory": kind})
        loss.__dict__["updater"] = SoftUpdate(loss, tau=0.5)
        compiled = CompiledGradients(loss, backend=None)
        compiled(discrete.replay_buffer(batch_size=12, slice_len=length, burn_in=1, seed=0).sample())
        (traced,) = compiled._traced.values()
        counts.append(sum(1 for node in traced._graph.graph.nodes if node.op == "call_function"))
    assert counts[0] == counts[1]


def test_a_population_draws_the_sequences_that_the_members_would(discrete) -> None:
    population = PopulationBuffer(discrete.data, batch_size=12, seeds=[3, 5], **SLICES)
    alone = [discrete.replay_buffer(batch_size=12, seed=seed, **SLICES) for seed in (3, 5)]
    drawn = population.sample()
    assert drawn.batch_size == (2, 3, 4)
    for index, buffer in enumerate(alone):
        expected = buffer.sample()
        for key in drawn.keys(True, True):
            assert torch.equal(drawn[index].get(key), expected.get(key)), key


def test_resume_is_bit_for_bit(tmp_path, discrete) -> None:
    def run(name: str, steps: int):
        torch.manual_seed(0)
        loss = make_loss(discrete.spec, hidden=(8,), **RULES)
        buffer = discrete.replay_buffer(batch_size=12, seed=1, keys=loss.in_keys, **SLICES)
        options = {"steps": steps, "checkpoint_every": 4, "log_every": 5, "progress": False, "compile": "off"}
        return trainer_for(loss, buffer, output=tmp_path / name, **options)

    whole = run("whole", 9)
    whole.train()
    run("parts", 9).train()
    again = run("parts", 9)
    assert again.resume(tmp_path / "parts/checkpoints/checkpoint-000000000004.torchrl") == 4
    again.train()
    assert largest_difference(lone_tensors(whole), lone_tensors(again)) == 0


@pytest.mark.fault("3.18")
@pytest.mark.parametrize("of", ["a run", "a population", "earlier versions"])
def test_a_run_is_not_resumed_with_slices_of_another_form(tmp_path, discrete, of: str) -> None:
    def make(steps: int, **slices: int):
        if of == "a population":
            return make_population(discrete, (0, 1), tmp_path, rules=RULES, steps=steps, **slices)
        return make_alone(discrete, 0, rules=RULES, steps=steps, output=tmp_path, **slices)

    make(2, **SLICES).train()
    for slices, sentence in (
        ({"slice_len": 6, "burn_in": 1}, "slice_len was 4 and is 6 now; go on with that of the run"),
        ({"slice_len": 4, "burn_in": 2}, "burn_in was 1 and is 2 now"),
        ({"slice_len": 4}, "burn_in was 1 and is None now"),
    ):
        trainer = make(4, **slices)
        if of == "earlier versions":  # said nothing of slices
            state = {
                name: value for name, value in BufferState(trainer.buffer).state_dict().items() if name != "slices"
            }
            BufferState(trainer.buffer).check_state_dict(state)
            continue
        with pytest.raises(CheckpointError, match=sentence):
            trainer.resume()
    again = make(4, **SLICES)
    assert again.resume() == 2
    again.train()
    assert again.step == 4


def test_processes_share_sequences_as_they_are(discrete) -> None:
    """Of equal states of the generator, the two shares are the halves of the joined batch."""
    whole = discrete.replay_buffer(batch_size=16, seed=1, **SLICES).sample()
    shares = []
    for rank in range(2):
        buffer = discrete.replay_buffer(batch_size=16, seed=1, **SLICES)
        buffer.set_sampler(ShareOfSampler(buffer.sampler, rank, 2, 16))
        shares.append(buffer.sample())
        assert shares[-1].batch_size == (2, 4)
    for key in whole.keys(True, True):
        assert torch.equal(torch.cat([share.get(key) for share in shares]), whole.get(key)), key


def test_bf16_keeps_memory_in_full_precision(discrete) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        trainer = make_alone(discrete, 0, rules=RULES, steps=3, precision=precision, **SLICES)
        trainer.train()
        found.append(lone_tensors(trainer))
    assert 0 < largest_difference(*found) < 0.05
    loss = make_loss(discrete.spec, hidden=(8,), **RULES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = discrete.replay_buffer(batch_size=12, seed=0, **SLICES).sample()
        encoder = loss.team.histories.encoders["actor"]
        assert encoder.unroll(batch[OBSERVATION], batch[IS_INIT]).dtype == torch.float32


@pytest.mark.parametrize("kind", ["gru", thorough("window:3")])
def test_a_loss_with_memory_is_diagnosed(discrete, kind: str) -> None:
    rules = {name: value for name, value in RULES.items() if not name.startswith("memory")} | memory_options(kind)
    trainer = make_alone(discrete, 0, rules=rules, steps=3, **SLICES)
    trainer.train()
    found = diagnose(trainer.loss, discrete, rows=30)
    assert found.numbers["qvalue_largest"] > 0


def test_single_transitions_are_refused_before_training(tmp_path, discrete) -> None:
    loss = make_loss(discrete.spec, hidden=(8,), **RULES)
    with pytest.raises(ValueError, match="but the buffer draws single transitions: sample sequences"):
        trainer_for(loss, discrete.replay_buffer(batch_size=12), steps=1, output=tmp_path / "a")
    source = CollectorSource(SlotEnv(2), make_actor(discrete.spec, hidden=(8,)), steps_per_round=4)
    sizes = {"capacity": 100, "batch_size": 12, "update_to_data": 1.0}
    replay = OnlineReplay(source, journal=tmp_path / "journal", **sizes)
    with pytest.raises(ValueError, match=r"the replay draws single transitions: give OnlineReplay\(slice_len="):
        trainer_for(loss, replay, steps=1, output=tmp_path / "b")


# ------------------------------------------------------------------------------ acting


def test_evaluation_begins_anew_with_every_episode(discrete) -> None:
    torch.manual_seed(0)
    policy = Watched(make_actor(discrete.spec, hidden=(8,), memory="window:3"))
    evaluate(policy, SlotEnv(2), episodes=6, seed=0)  # of 3 and 5 steps
    episode: list[list] = [[], []]
    assert len(policy.steps) > 8
    for seen, begins, history in policy.steps:
        for slot in range(2):
            episode[slot] = ([] if begins[slot] else episode[slot]) + [seen[slot]]
            assert len(episode[slot]) <= 5
            expected = ([torch.zeros(2, 3)] * 3 + episode[slot])[-3:]
            assert torch.equal(history[slot], torch.cat(expected, -1))
    assert sum(int(begins.sum()) for _, begins, _ in policy.steps) >= 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_acts_as_it_did(tmp_path, discrete, kind: str) -> None:
    torch.manual_seed(0)
    policy = make_actor(discrete.spec, hidden=(8,), final_scale=5.0, **memory_options(kind))
    loaded = load_policy(save_policy(tmp_path / "policy.pt", policy))
    watched = [Watched(policy), Watched(loaded.policy)]
    found = [evaluate(each, SlotEnv(2), episodes=6, seed=0, mode="sample").returns for each in watched]
    assert torch.equal(*found)
    for step, other in zip(*(each.steps for each in watched), strict=True):
        assert all(map(torch.equal, step, other))


def test_recorded_episodes_are_of_policies_with_memory() -> None:
    """One that names the cue when it is over must have seen it: what was recorded is what it does."""
    torch.manual_seed(0)
    policy = Watched(make_actor(CueEnv(2).task_spec, hidden=(8,), memory="gru", memory_size=4))
    data = collect(CueEnv(2), policy, episodes=4, seed=0)
    assert [int(begins.sum()) for _, begins, _ in policy.steps] == [2, 0, 0, 0] * 2
    assert data.n_episodes == 4
    assert set(data.data.keys(True, True)) == set(collect(CueEnv(2), None, episodes=4).data.keys(True, True))


def test_without_resets_it_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be told where episodes begin"):
        CueEnv(2).rollout(4, make_actor(CueEnv(2).task_spec, hidden=(8,), memory="gru"))


def test_every_member_of_a_population_plays_with_its_memory(tmp_path, discrete) -> None:
    trainer = make_population(discrete, (0, 1), tmp_path, rules=RULES, rates=(0.1, 0.1), steps=6, **SLICES)
    trainer.train()
    found = evaluate_population(trainer.learner.population, SlotEnv(4), episodes=6, seed=5)
    for name, evaluation in found.items():
        policy = load_policy(tmp_path / "members" / name).policy
        assert torch.equal(evaluation.returns, evaluate(policy, SlotEnv(2), episodes=6, seed=5).returns)


# ------------------------------------------------------------------------------ what memory is for


class Expert:
    """Names the cue at every step."""

    def __init__(self) -> None:
        self.cue = None

    def __call__(self, tensordict: TensorDict) -> TensorDict:
        seen = tensordict[OBSERVATION]  # [B, 2, 6]
        first = seen[..., 2] > 0
        now = seen[..., :2].argmax(-1)
        self.cue = now if self.cue is None else torch.where(first, now, self.cue)
        return tensordict.set(("agents", "action"), self.cue)


def trained_on_cues(data, memory: dict, *, steps: int = 150, lr: float = 1e-2, **rules) -> float:
    torch.manual_seed(0)
    loss = make_loss(data.spec, hidden=(32,), **memory, **rules)
    slices = {"slice_len": 5, "burn_in": 1} if memory else {}
    buffer = data.replay_buffer(batch_size=400, seed=0, keys=loss.in_keys, **slices)
    trainer_for(loss, buffer, lr=lr, steps=steps, progress=False, compile="off").train()
    return evaluate(loss.actor_network, CueEnv(50), episodes=200, seed=1).mean


def test_what_was_seen_long_ago_is_learned_with_memory_alone() -> None:
    expert = collect(CueEnv(20), Expert(), episodes=100, seed=0)
    found = {kind: trained_on_cues(expert, memory_options(kind), algorithm="cloning") for kind in ("gru", "window:4")}
    assert min(found.values()) > 0.95
    assert trained_on_cues(expert, {}, algorithm="cloning") < 0.65


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gru", "lstm", "window:4"])
def test_values_of_histories_choose_by_what_was_seen_long_ago(kind: str) -> None:
    random = collect(CueEnv(50), None, episodes=500, seed=0)
    rules = {"decomposition": "independent", "expectile": 0.8, "temperature": 10.0, "steps": 900, "lr": 3e-3}
    memory = {"memory": kind} if kind.startswith("window") else {"memory": kind, "memory_size": 32}
    assert trained_on_cues(random, memory, **rules) > 0.9
    assert trained_on_cues(random, {}, **rules) < 0.65
