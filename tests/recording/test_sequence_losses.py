"""Recurrent QMIX and MATD3: their losses by TorchRL's, by hand, and what they learn and record."""

from __future__ import annotations

import pytest
import torch
from memory_toys import end_episode, make_sequences, memory_options
from selection import thorough
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import SoftUpdate
from trainers import trainer_for

from torchrl_marl_offline import collect, evaluate, load_policy, make_env
from torchrl_marl_offline.core.layout import ACTION, IS_INIT, MASK, OBSERVATION, TaskSpec
from torchrl_marl_offline.data import DatasetError
from torchrl_marl_offline.modules.greedy_actors import make_deterministic_actor, make_greedy_actor
from torchrl_marl_offline.recording import graded
from torchrl_marl_offline.recording.graded import RecordSettings, record
from torchrl_marl_offline.recording.learners import OnlineLearner, make_online_learner, with_team_reward
from torchrl_marl_offline.training import CollectorSource, OnlineReplay, read_csv

TASKS = {"QMIX": "games/recall", "MATD3": "mpe/simple_spread"}


def learner_of(method: str, memory: str | None, **options) -> OnlineLearner:
    torch.manual_seed(0)
    options = {"hidden": (8,)} | ({} if memory is None else memory_options(memory)) | options
    learner = make_online_learner(make_env(TASKS[method], num_envs=2, seed=0), **options)
    assert SoftUpdate(learner.loss, tau=0.1) is not None  # TorchRL warns where there is none
    return learner


def sequences(method: str) -> TensorDict:
    """Return ``[3, 5]`` rows; one slice has two that do not count, another an episode that ends and one that begins."""
    batch = make_sequences(make_env(TASKS[method]).task_spec, 3, 5, dtype=torch.float32)
    end_episode(batch, (1, 2))
    batch[IS_INIT] = torch.zeros(3, 5, 1, dtype=torch.bool)
    batch[IS_INIT][1, 3] = True
    batch[MASK] = torch.ones(3, 5, dtype=torch.bool)
    batch[MASK][0, :2] = False
    return with_team_reward(batch)


def losses_of(learner: OnlineLearner, batch: TensorDict) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return what a loss returns and the gradients of the parameters that have one."""
    torch.manual_seed(1)  # TD3's noise
    found = learner.loss(batch.copy())
    sum(value for name, value in found.items() if name.startswith("loss")).backward()
    return dict(found.items()), [p.grad for p in learner.loss.parameters() if p.grad is not None]


@pytest.mark.parametrize("method", TASKS)
def test_a_memory_of_one_observation_is_torchrls_loss_of_the_rows_that_count(method: str) -> None:
    batch = sequences(method)
    plain, of_rows = losses_of(learner_of(method, None), batch[batch[MASK]])
    found, gradients = losses_of(learner_of(method, "window:1"), batch)
    assert found.keys() == plain.keys()
    assert all(torch.allclose(found[name], plain[name], atol=1e-6) for name in plain)
    assert len(gradients) == len(of_rows) > 4
    assert sorted(g.norm().item() for g in gradients) == pytest.approx(sorted(g.norm().item() for g in of_rows))


@pytest.mark.parametrize("method", TASKS)
@pytest.mark.parametrize("kind", ["gru", thorough("lstm"), thorough("window:3")])
def test_the_next_history_is_one_step_more(method: str, kind: str) -> None:
    """Of the targets, which are the networks at first: within an episode it is the next row's history."""
    batch, loss = sequences(method), learner_of(method, kind).loss
    batch[MASK].fill_(True)
    rows = loss.rows(batch)
    assert rows.shape == (15,)
    for name in loss.remembered:
        key = getattr(loss, name).history_key
        here, ahead = (rows[each].unflatten(0, (3, 5)) for each in (key, ("next", key)))
        inside = torch.ones(3, 4, dtype=torch.bool)
        inside[1, 2] = False  # an episode ends there
        assert torch.allclose(ahead[:, :-1][inside], here[:, 1:][inside], atol=1e-6)
        assert not torch.allclose(ahead[1, 2], here[1, 3], atol=1e-3)
        alone = loss.rows(batch[1:2, 3:])  # what came before the episode's first row changes nothing
        assert torch.allclose(alone[key], here[1, 3:], atol=1e-6)
        assert here.requires_grad == (not kind.startswith("window")) and not ahead.requires_grad


def test_the_policys_term_of_matd3_trains_the_policy_alone() -> None:
    learner = learner_of("MATD3", "gru")
    rows = learner.loss.rows(sequences("MATD3"))
    for term, own in ((learner.loss.actor_loss, ("actor_network", "policy_encoder")), (learner.loss.value_loss, None)):
        learner.loss.zero_grad(set_to_none=True)
        term(rows.copy())[0].backward(retain_graph=True)
        moved = {name for name, p in learner.loss.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        expected = own or ("qvalue_network", "critic_encoder")
        assert moved and all(name.startswith(expected) for name in moved)
        assert all(any(name.startswith(part) for name in moved) for part in expected)


@pytest.mark.parametrize("method", TASKS)
@pytest.mark.parametrize("kind", ["gru", thorough("lstm"), thorough("window:3")])
def test_every_network_learns_from_sequences_of_its_own_experience(tmp_path, method: str, kind: str) -> None:
    learner, env = learner_of(method, kind), make_env(TASKS[method], num_envs=2, seed=0)
    source = CollectorSource(env, learner.explorer, steps_per_round=7, exploration="sample")
    options = {"capacity": 500, "batch_size": 24, "slice_len": 6, "burn_in": 2, "update_to_data": 1 / 14}
    replay = OnlineReplay(source, journal=tmp_path / "journal", prepare=with_team_reward, keys=learner.keys, **options)
    tensors = dict(learner.loss.named_parameters()) | dict(learner.loss.named_buffers())
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    trainer_for(learner.loss, replay, optimizer=learner.optimizer, steps=4, compile="off", progress=False).train()
    networks = [name for name in before if name.endswith(("weight", "bias"))]
    assert [name for name in networks if torch.equal(before[name], tensors[name])] == []
    assert any("target" in name for name in networks)
    played = evaluate(learner.actor, env, episodes=4, seed=0)
    assert played.returns.isfinite().all()


SMALL = {"transitions": 400, "updates": 30, "num_envs": 8, "batch_size": 32, "eval_every": 15, "eval_episodes": 8}
SMALL |= {"levels": {}, "progress": False, "learner": {"hidden": (16,)}}
SMALL |= {"memory": "gru", "memory_size": 8, "slice_len": 8, "burn_in": 2}


@pytest.mark.parametrize("method", ["MATD3", thorough("QMIX")])
def test_the_recorded_actions_are_those_of_the_policy_that_remembers(tmp_path, method: str) -> None:
    task = TASKS[method]
    found = record(task, tmp_path, qualities=("expert", "medium-replay"), **SMALL)
    assert found["expert"].metadata["recorded_with"]["method"] == f"{method} with memory (gru)"
    assert set(found["expert"].data.keys(True, True)) == set(found["medium-replay"].data.keys(True, True))
    policy = load_policy(tmp_path / "policies" / "expert.pt").policy
    data, length = found["expert"].data, int(found["expert"].episode_lengths[0])
    steps = data.select(OBSERVATION).reshape(-1, length)
    memory, greedy = None, []
    with torch.no_grad():
        for t in range(length):
            step = steps[:, t].copy().set(IS_INIT, torch.full((len(steps), 1), t == 0))
            step = step if memory is None else step.set(("agents", "policy_memory"), memory)
            step = policy(step)
            memory = step["next", "agents", "policy_memory"]
            greedy.append(step[ACTION])
    greedy = torch.stack(greedy, 1).flatten(0, 1)
    if method == "MATD3":
        noise = (data[ACTION] - greedy)[(data[ACTION].abs() < 1).all(-1).all(-1)]
        assert noise.std() == pytest.approx(0.3, rel=0.25)
    else:
        assert (data[ACTION] == greedy).float().mean() > 0.9  # of each twentieth the action is drawn
    again = record(task, tmp_path, qualities=("expert",), **SMALL)
    assert torch.equal(again["expert"].data[ACTION], data[ACTION])
    with pytest.raises(DatasetError, match="recording with another burn_in"):
        record(task, tmp_path, **(SMALL | {"burn_in": 1}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "rnn"}, "memory must be 'gru', 'lstm' or 'window:K', got 'rnn'"),
        ({"slice_len": 5}, "slice_len=5 must divide batch_size=32"),
        ({"burn_in": 8}, "burn_in=8 leaves no row of slice_len=8 that counts"),
        ({"learner": {"memory": "gru"}}, "memory is a setting of the recording, not of its learner"),
        ({"memory": None}, "memory_size is read only with memory"),
    ],
)
def test_a_memory_that_cannot_be_had_is_refused(options, message) -> None:
    settings = {name: value for name, value in SMALL.items() if name not in ("transitions", "progress")} | options
    with pytest.raises(ValueError, match=message):
        RecordSettings("games/recall", **settings)


@pytest.mark.parametrize("kind", [None, "gru"])
def test_the_mixer_sees_a_normalized_state_and_nothing_else_changes(kind: str | None) -> None:
    """States that are shifted and scaled are seen as those of a mixer without a norm."""
    width = make_env(TASKS["QMIX"]).task_spec.state_size
    mean, deviation = (3.0,) * width, (20.0,) * width
    batch = sequences("QMIX")
    batch = batch[batch[MASK]] if kind is None else batch
    plain, gradients = losses_of(learner_of("QMIX", kind), batch)
    for state in (batch, batch["next"]):
        state["state"] = state["state"] * 20.0 + 3.0
    found, normalized = losses_of(learner_of("QMIX", kind, state_norm=(mean, deviation)), batch)
    assert found["loss"].item() == pytest.approx(plain["loss"].item(), rel=1e-4)
    assert all(torch.allclose(one, other, rtol=1e-2, atol=1e-4) for one, other in zip(gradients, normalized))
    assert losses_of(learner_of("QMIX", kind), batch)[0]["loss"].item() != pytest.approx(plain["loss"].item(), rel=1e-2)


@pytest.mark.parametrize(("more", "deviation"), [(1, 1.0), (0, 0.0), (0, -1.0)])
def test_a_norm_of_another_state_is_refused(more: int, deviation: float) -> None:
    width = make_env(TASKS["QMIX"]).task_spec.state_size
    with pytest.raises(ValueError, match=f"state_norm needs means and positive deviations of the state's {width} comp"):
        learner_of("QMIX", None, state_norm=((0.0,) * (width + more), (deviation,) * (width + more)))


def test_the_scale_of_the_state_is_that_of_random_play(tmp_path, monkeypatch) -> None:
    told = {}

    def make(env, **options):
        told.update(options)
        return make_online_learner(env, **options)

    monkeypatch.setattr(graded, "make_online_learner", make)
    options = SMALL | {"updates": 2, "eval_every": 2, "normalize_state": True}
    record("games/recall", tmp_path / "recall", qualities=("medium-replay",), **options)
    first = collect(make_env("games/recall", num_envs=8), None, episodes=8, seed=4 * 1_000_003)
    assert told["state_norm"] == first.input_statistics().state
    with pytest.raises(ValueError, match="normalize_state is for QMIX's mixer, but mpe/simple_spread has continuous"):
        record("mpe/simple_spread", tmp_path / "spread", **options)
    assert not (tmp_path / "spread").exists()
    with pytest.raises(ValueError, match="state_norm is found by the recording; give it normalize_state=True"):
        RecordSettings("games/recall", learner={"state_norm": None})


def test_values_are_of_scaled_rewards_and_the_recording_of_the_tasks(tmp_path, monkeypatch) -> None:
    seen = []

    def prepare(rows, **options):
        seen.append((rows["next", "agents", "reward"].mean(-2), with_team_reward(rows, **options)["next", "reward"]))
        return with_team_reward(rows, **options)

    monkeypatch.setattr(graded, "with_team_reward", prepare)
    options = SMALL | {"updates": 2, "eval_every": 2, "memory": None, "reward_scale": 4.0, "compile": False}
    for name in ("memory_size", "slice_len", "burn_in"):
        options.pop(name)
    found = record(TASKS["MATD3"], tmp_path, qualities=("medium-replay",), **options)["medium-replay"]
    assert seen and all(plain.all() and torch.equal(scaled, 4.0 * plain) for plain, scaled in seen)
    assert torch.equal(found.data["next", "agents", "reward"].mean(-2)[: len(seen[0][0])], seen[0][0])


@pytest.mark.parametrize("make", [make_greedy_actor, make_deterministic_actor])
def test_policies_without_a_density_remember(make) -> None:
    discrete = make is make_greedy_actor
    spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=2, discrete=discrete)
    torch.manual_seed(0)
    actor = make(spec, hidden=(8,), memory="gru", memory_size=5)
    batch = make_sequences(spec, 6, 4, dtype=torch.float32)
    seen, memory, scores = batch[OBSERVATION], None, []
    for t in (0, 1):
        step = TensorDict({OBSERVATION: seen[:, t], IS_INIT: torch.full((6, 1), t == 0)}, [6])
        step = actor(step if memory is None else step.set(("agents", "policy_memory"), memory))
        memory = step["next", "agents", "policy_memory"]
        scores.append(step["agents", "action_value" if discrete else "proposal"])
    alone = TensorDict({OBSERVATION: seen[:, 1], IS_INIT: torch.ones(6, 1, dtype=torch.bool)}, [6])
    assert not torch.allclose(actor(alone)["agents", "action_value" if discrete else "proposal"], scores[1], atol=1e-4)
    with pytest.raises(ValueError, match="memory must be 'gru', 'lstm' or 'window:K', got 'rnn'"):
        make(spec, memory="rnn")


@pytest.mark.slow
def test_recurrent_qmix_names_the_cue_that_no_memoryless_team_can(tmp_path) -> None:
    """With actions drawn at random once in twenty times, the best team with memory earns 0.95, without it 0.5."""
    env = make_env("games/recall", cues=2, delay=2)
    settings = {"updates": 100, "num_envs": 64, "transitions_per_update": 128, "batch_size": 96, "eval_every": 100}
    settings |= {"eval_episodes": 256, "transitions": 1500, "levels": {}, "progress": False, "burn_in": 0}
    settings |= {"learner": {"hidden": (32,), "lr": 5e-3}, "memory": "gru", "memory_size": 32, "slice_len": 3}
    options = {"cues": 2, "delay": 2}
    found = record("games/recall", tmp_path, qualities=("expert",), task_options=options, **settings)
    (row,) = read_csv(tmp_path / "behaviour" / "eval.csv")
    assert row["return"] > 0.9 > env.best_memoryless_return == 0.5
    assert found["expert"].episode_returns().mean() > 0.9
    assert collect(env, None, episodes=1, seed=0).spec == found["expert"].spec
