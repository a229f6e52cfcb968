"""Networks with memory that learn online: sequences of experience that is still being gathered."""

from __future__ import annotations

import pytest
import torch
from memory_toys import CueEnv, UnevenEnv, Watched, memory_options
from population_toys import largest_difference, lone_tensors
from selection import thorough
from torchrl.objectives import SoftUpdate
from trainers import trainer_for

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.layout import EPISODE, EPISODE_STEP, IS_INIT, MASK, OBSERVATION, REWARD, next_key
from torchrl_marl_offline.data import collect
from torchrl_marl_offline.evaluation import evaluate
from torchrl_marl_offline.modules import make_actor
from torchrl_marl_offline.training import CollectorSource, OnlineReplay

STEPS = 4


def small_loss(spec, kind: str = "gru", seed: int = 0, **settings):
    torch.manual_seed(seed)
    rules = {"decomposition": "vdn", "extraction": "brac", "hidden": (8,)} | settings
    loss = make_loss(spec, **rules, **memory_options(kind))
    assert SoftUpdate(loss, tau=0.1) is not None  # TorchRL warns where there is none
    return loss


def make_replay(folder, source, loss, **options) -> OnlineReplay:
    settings = {"capacity": 200, "batch_size": 24, "update_to_data": 0.25, "slice_len": 6, "burn_in": 2, "seed": 5}
    return OnlineReplay(source, journal=folder / "journal", keys=loss.in_keys, **(settings | options))


@pytest.mark.parametrize("kind", ["gru", "window:3", thorough("lstm")])
@pytest.mark.parametrize("capacity", [200, thorough(50)])  # 50: the ring has wrapped around
def test_what_a_loss_remembers_of_experience_is_what_the_policy_remembered(tmp_path, kind, capacity) -> None:
    """Episodes have 3 and 5 steps and rounds have 4, so that most episodes are cut by the ends of rounds."""
    env = UnevenEnv(2)
    loss = small_loss(env.task_spec, kind)
    policy, rounds = Watched(loss.actor_network), []
    source = CollectorSource(env, policy, steps_per_round=STEPS, exploration="sample", seed=3)

    def kept(number):
        rounds.append(source(number))
        return rounds[-1]

    replay = make_replay(tmp_path, kept, loss, capacity=capacity)
    for _ in range(24):
        replay.sample()
    acting = {}
    for number, part in enumerate(rounds):
        at = part.data.select(EPISODE, EPISODE_STEP).reshape(2, STEPS)
        for slot in range(2):
            for t in range(STEPS):
                place = (int(at[EPISODE][slot, t]), int(at[EPISODE_STEP][slot, t]))
                acting[place] = policy.steps[STEPS * number + t][2][slot]
    assert len(acting) == 2 * STEPS * len(rounds) and {step for _, step in acting} == set(range(5))
    batch = replay._buffer.sample(100)
    steps = {tuple(row.flatten().tolist()): place for place, row in observations_of(rounds).items()}
    seen = loss.batch(batch).tensordict[loss.team.histories.key("actor", target=False)]
    compared = 0
    for slot in range(100):
        begun = False
        for t in range(6):
            begun = begun or bool(batch[IS_INIT][slot, t])
            if batch[MASK][slot, t] and (begun or kind == "window:3"):
                place = steps[tuple(batch[OBSERVATION][slot, t].flatten().tolist())]
                assert torch.allclose(seen[slot, t], acting[place], atol=1e-6), (slot, t)
                compared += 1
    assert compared > 200


def observations_of(rounds) -> dict[tuple[int, int], torch.Tensor]:
    """Return every observation by its episode and step; none occurs twice."""
    found = {}
    for part in rounds:
        places = zip(part.data[EPISODE].tolist(), part.data[EPISODE_STEP].tolist())
        found |= dict(zip(places, part.data[OBSERVATION]))
    return found


def test_rows_are_trained_on_as_they_were_played(tmp_path) -> None:
    """Rewards, ends and next observations of the sampled rows are those of the episodes."""
    env = UnevenEnv(2)
    loss = small_loss(env.task_spec)
    source = CollectorSource(env, loss.actor_network, steps_per_round=STEPS, exploration="sample", seed=3)
    rounds = []
    replay = make_replay(tmp_path, lambda number: rounds.append(source(number)) or rounds[-1], loss)
    for _ in range(12):
        batch = replay.sample()
    rows = torch.cat([part.data for part in rounds])
    keys = [next_key(OBSERVATION), next_key(REWARD), ("next", "terminated")]
    told = {tuple(row[OBSERVATION].flatten().tolist()): row for row in rows}
    for row in batch.reshape(-1):
        whole = told[tuple(row[OBSERVATION].flatten().tolist())]
        assert all(torch.equal(row[key], whole[key]) for key in keys)


@pytest.mark.parametrize("mixed", [True, thorough(False)])
@pytest.mark.parametrize("kind", ["gru", thorough("window:3")])
def test_resume_online_is_bit_for_bit(tmp_path, kind, mixed) -> None:
    data = collect(UnevenEnv(2), None, episodes=6, seed=0)

    def run(name: str, steps: int):
        loss = small_loss(UnevenEnv(2).task_spec, kind)
        source = CollectorSource(UnevenEnv(2), loss.actor_network, steps_per_round=3, exploration="sample", seed=3)
        options = {"offline": data, "offline_fraction": 0.5, "offline_until": 12} if mixed else {}
        replay = make_replay(tmp_path / name, source, loss, capacity=40, update_to_data=0.2, **options)
        settings = {"steps": steps, "checkpoint_every": 5, "log_every": 5, "progress": False, "compile": "off"}
        return trainer_for(loss, replay, output=tmp_path / name, **settings)

    whole = run("whole", 18)
    start = {name: value.clone() for name, value in lone_tensors(whole).items()}
    whole.train()
    assert largest_difference(start, lone_tensors(whole)) > 1e-4
    run("parts", 18).train()
    again = run("parts", 18)
    assert again.resume(tmp_path / "parts/checkpoints/checkpoint-000000000015.torchrl") == 15
    assert again.buffer.transitions > again.buffer.capacity == 40
    again.train()
    assert largest_difference(lone_tensors(whole), lone_tensors(again)) == 0


def test_a_share_of_the_slices_is_offline(tmp_path) -> None:
    data = collect(UnevenEnv(2), None, episodes=6, seed=0)
    data.data[next_key(REWARD)].fill_(1000.0)
    loss = small_loss(data.spec)
    source = CollectorSource(UnevenEnv(2), loss.actor_network, steps_per_round=STEPS)
    options = {"offline": data, "offline_fraction": 0.5, "offline_until": 4, "batch_size": 48}
    replay = make_replay(tmp_path, source, loss, **options)
    found = []
    for _ in range(6):
        batch = replay.sample()
        assert batch.shape == (8, 6)
        is_offline = batch[next_key(REWARD)][..., 0, 0] == 1000
        assert torch.equal(is_offline.any(1), is_offline.all(1))
        found.append(int(is_offline.all(1).sum()))
        loss(batch)["loss_qvalue"].backward()
    assert found == [4, 3, 2, 1, 0, 0]  # 8 * 0.5 * (1 - sample / 4)


def test_whole_episodes_of_a_source_of_ones_own_need_no_numbers(tmp_path) -> None:
    loss = small_loss(UnevenEnv(2).task_spec)
    replay = make_replay(tmp_path, lambda number: collect(UnevenEnv(2), None, episodes=4, seed=number), loss)
    batch = replay.sample()
    first = batch[IS_INIT].squeeze(-1)
    assert first.any() and (batch[MASK].sum(1) >= 1).all()
    assert loss(batch)["loss_qvalue"].isfinite()


def test_another_length_of_slices_is_no_run_to_go_on_with(tmp_path) -> None:
    loss = small_loss(UnevenEnv(2).task_spec)

    def replay(**options):
        source = CollectorSource(UnevenEnv(2), loss.actor_network, steps_per_round=STEPS)
        return make_replay(tmp_path, source, loss, **options)

    first = replay()
    first.sample()
    state = first.state_dict()
    with pytest.raises(ValueError, match="burn_in was 2 and is 1 now"):
        replay(burn_in=1).check_state_dict(state)
    with pytest.raises(ValueError, match="slice_len was None and is 6 now"):
        replay().check_state_dict({k: v for k, v in state.items() if k not in ("slice_len", "burn_in")})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slice_len": 5}, "slice_len=5 must divide batch_size=24"),
        ({"burn_in": 6}, "burn_in=6 leaves no row of slice_len=6 that counts"),
        ({"slice_len": None, "burn_in": 2}, "burn_in is read only with slice_len"),
    ],
)
def test_slices_that_do_not_fit_are_refused_at_once(tmp_path, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_replay(tmp_path, lambda number: None, small_loss(UnevenEnv(2).task_spec), **options)


@pytest.mark.slow
def test_the_recipe_learns_online_to_act_by_what_it_saw(tmp_path) -> None:
    """Without memory no team earns more than a half."""
    env = CueEnv(16)
    torch.manual_seed(0)
    rules = {"decomposition": "independent", "expectile": 0.8, "temperature": 3.0, "hidden": (32,)}
    loss = make_loss(env.task_spec, memory="window:4", **rules)
    source = CollectorSource(env, loss.actor_network, steps_per_round=4, exploration="sample")
    sizes = {"capacity": 4000, "batch_size": 200, "slice_len": 5, "burn_in": 1, "update_to_data": 1 / 64}
    replay = make_replay(tmp_path, source, loss, **sizes)
    trainer_for(loss, replay, lr=3e-3, steps=400, progress=False, compile="off").train()
    assert evaluate(loss.actor_network, CueEnv(50), episodes=200, seed=1).mean > 0.9


@pytest.mark.fault("3.18")
def test_a_ring_that_holds_no_round_or_only_burn_ins_is_refused_when_it_is_made(tmp_path) -> None:
    def make(**options) -> OnlineReplay:
        source = CollectorSource(UnevenEnv(4), make_actor(UnevenEnv(4).task_spec, hidden=(4,)), steps_per_round=3)
        sizes = {"batch_size": 12, "update_to_data": 1.0, "journal": tmp_path / "journal"} | options
        return OnlineReplay(source, **sizes)

    with pytest.raises(ValueError, match=r"^A round has 12 transitions, more than the capacity of 11; raise capacity="):
        make(capacity=11)
    assert make(capacity=12).sample().shape == (12,)
    with pytest.raises(
        ValueError, match=r"capacity 15 has 3 rows of each of 4 .* none behind burn_in=3 of them; raise"
    ):
        make(capacity=15, slice_len=6, burn_in=3)
    assert make(capacity=16, slice_len=6, burn_in=3).sample().shape == (2, 6)
