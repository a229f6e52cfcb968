"""Environments in the middle of their episodes: saved and gone on with, copied, pickled."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from selection import some_of
from tensordict import TensorDictBase
from torchrl.envs import RewardSum, StepCounter, TransformedEnv, VmasEnv

from torchrl_marl_offline import make_actor, make_env
from torchrl_marl_offline.core.layout import ACTION, EPISODE, EPISODE_STEP, OBSERVATION
from torchrl_marl_offline.envs import from_pettingzoo, from_torchrl
from torchrl_marl_offline.envs.base import EpisodesLostError, TeamEnv
from torchrl_marl_offline.envs.episodes import load_episodes, save_episodes
from torchrl_marl_offline.envs.object_state import OtherShapeError, read_state, write_state
from torchrl_marl_offline.training import CollectorSource

SLOW = pytest.mark.slow
TASKS = [
    *("games/xor", "games/two_step", "games/grid_navigation", "games/bridge", "games/recall", "games/telephone"),
    *("games/stitch", "games/hanabi", "lle/mutual-0", "overcooked/cramped_room"),
    *("mpe/simple_spread", "mpe/simple_tag", "vmas/balance", "pettingzoo"),
    *(
        pytest.param(f"vmas/{name}", marks=SLOW)
        for name in ("football", "het_mass", "asym_joint", "simple_speaker_listener")
    ),
    *(pytest.param(f"vmas/{name}", marks=SLOW) for name in ("discovery", "flocking", "drone")),
    *(pytest.param(name, marks=SLOW) for name in ("mpe/simple_world", "mamujoco/2ant", "smax/3m", "jaxmarl/coin_game")),
]


def make(task: str, seed: int = 3, **options: Any) -> TeamEnv:
    if task == "pettingzoo":
        pytest.importorskip("mpe2")
        from mpe2 import simple_spread_v3 as spread

        return from_pettingzoo(spread.parallel_env, num_envs=2, seed=seed, max_steps=7)
    if task.startswith(("smax", "jaxmarl")):
        pytest.importorskip("jaxmarl")
    own_length = ("games/two_step", "games/recall", "games/telephone", "games/stitch", "games/hanabi")
    limited = task not in ("games/xor", *own_length)
    return make_env(task, num_envs=2, seed=seed, **({"max_steps": 7} if limited else {}), **options)


def play(env: TeamEnv, steps: int, at: TensorDictBase | None = None) -> tuple[TensorDictBase, TensorDictBase]:
    """Play at random across the ends of episodes; returns all steps and where the next one begins."""
    at, seen = env.reset() if at is None else at.clone(), []
    for _ in range(steps):
        step, at = env.step_and_maybe_reset(env.rand_action(at))
        seen.append(step.clone())
    return torch.stack(seen), at


def goes_on_as(env: TeamEnv, others: list[TeamEnv], at: TensorDictBase, steps: int = 10) -> bool:
    """Say whether environments, which stand at one point, play the same from there on."""
    chance = torch.get_rng_state()
    expected, _ = play(env, steps, at)
    for other in others:
        torch.set_rng_state(chance)
        found, _ = play(other, steps, at)
        if not all(torch.equal(value, found[key]) for key, value in expected.items(True, True)):
            return False
    return True


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.fault("2.3")
@pytest.mark.parametrize("task", some_of(TASKS, every=3))
def test_another_object_goes_on_in_the_middle_of_the_episodes_and_so_do_copies(task):
    env, fresh, used = (make(task, seed=seed) for seed in (3, 11, 5))  # a new process may have any seed
    _, at = play(env, 10)
    play(used, 3)
    state = through_a_file(env.episodes_state())
    for each in (fresh, used):
        each.load_episodes_state(state)
    assert goes_on_as(env, [fresh, used, copy.deepcopy(env), pickle.loads(pickle.dumps(env))], at)


def test_a_saved_state_does_not_follow_the_environment():
    env = make("vmas/balance")
    _, at = play(env, 5)
    state, fresh = env.episodes_state(), copy.deepcopy(env)
    play(env, 5, at)  # the simulator writes into its tensors in place
    other = make("vmas/balance", seed=1)
    other.load_episodes_state(state)
    assert goes_on_as(fresh, [other], at)


def test_transforms_around_an_environment_go_on_too():
    def wrapped():
        return TransformedEnv(make("mpe/simple_spread"), RewardSum(in_keys=[("agents", "reward")])).append_transform(
            StepCounter(step_count_key="steps")
        )

    env, other = wrapped(), wrapped()
    _, at = play(env, 4)
    load_episodes(other, through_a_file(save_episodes(env)))
    assert goes_on_as(env, [other], at)
    with pytest.raises(ValueError, match="other transforms"):
        load_episodes(other.base_env, save_episodes(env))


def test_a_state_of_another_number_of_environments_is_refused():
    with pytest.raises(ValueError, match="num_envs=2, this run has num_envs=3"):
        make_env("games/xor", num_envs=3).load_episodes_state(make("games/xor").episodes_state())


def test_what_cannot_be_played_again_is_said():
    env = make("pettingzoo")
    play(env, 3)
    state = env.episodes_state()
    state["game"]["observation"] += 1.0
    with pytest.raises(EpisodesLostError, match="does not play the same episode twice"):
        make("pettingzoo").load_episodes_state(state)


def test_environments_of_torchrl_tell_no_state():
    env = from_torchrl(VmasEnv("balance", num_envs=2), max_steps=5, seed=0)
    assert env.episodes_state() is None and save_episodes(TransformedEnv(env, StepCounter())) is None


@pytest.mark.fault("4.6")
@pytest.mark.parametrize(
    "task", ["games/grid_navigation", "mpe/simple_spread", "mpe/simple_tag", "vmas/balance", "torchrl"]
)
def test_copies_after_a_roll_out_with_gradients_and_after_a_collector(task):
    env = from_torchrl(VmasEnv("balance", num_envs=2), max_steps=5, seed=0) if task == "torchrl" else make(task)
    push = torch.zeros((), requires_grad=True)

    def policy(tensordict):
        env.rand_action(tensordict)
        action = tensordict[ACTION]
        return tensordict.set(ACTION, action + push if action.is_floating_point() else action)

    def copies():
        # what VMAS loads for itself, TorchRL's VmasEnv, cannot be pickled by anyone
        return [copy.deepcopy(env)] + ([] if task == "torchrl" else [pickle.loads(pickle.dumps(env))])

    with torch.enable_grad():
        env.rollout(2, policy)
    assert all(not value.requires_grad for each in copies() for value in each._game.values())
    source = CollectorSource(env, make_actor(env.task_spec, hidden=(4,)), steps_per_round=2)
    rounds = [source(0)]
    assert all(each.collector is None for each in copies())
    assert len([*rounds, source(1)]) == 2  # the environment itself has lost nothing


@pytest.mark.fault("4.6")
@pytest.mark.parametrize("opponent", ["random", "still", "evade", "function", "policy"])
def test_a_copy_has_a_prey_of_its_own(opponent):
    given = {"function": torch.nn.Linear(14, 2), "policy": _Still()}.get(opponent, opponent)
    env = make("mpe/simple_tag", opponent=given)
    _, at = play(env, 3)
    alike, other = copy.deepcopy(env), copy.deepcopy(env)
    play(other, 4)  # must move nobody else's chance
    assert goes_on_as(env, [alike], at, steps=5)


class _Still(torch.nn.Module):
    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(observation[..., :2])


class Part:
    pass


def test_what_refers_now_to_one_object_and_now_to_another_is_restored():
    def build(goal: int) -> Part:
        whole, whole_goals = Part(), [Part(), Part()]
        for number, each in enumerate(whole_goals):
            each.place = torch.tensor(float(10 * goal + number))
        whole.goal, whole.goals = whole_goals[goal], whole_goals  # the reference comes first
        whole.reached = whole_goals[: goal + 1]
        return whole

    source, target = build(1), build(0)
    state = through_a_file(read_state(source, known=source.goals))
    write_state(target, state, device=torch.device("cpu"), known=target.goals)
    assert target.goal is target.goals[1] and target.reached == target.goals
    assert [goal.place.item() for goal in target.goals] == [10.0, 11.0]


def test_the_state_of_an_object_keeps_shared_memory_and_names_what_is_missing():
    def build(value: float) -> Part:
        whole, part = Part(), Part()
        whole.positions = torch.full((3,), value)
        part.first = whole.positions[:1]  # written in place through either
        part.owner, whole.parts, whole.by_part = whole, [part], {part: torch.tensor(value)}
        whole.words, whole.function = {"a": [value, None, "x"]}, torch.sin
        return whole

    source, target = build(1.0), build(2.0)
    target.later = torch.zeros(())  # was not there yet when the state was read
    write_state(target, through_a_file(read_state(source)), device=torch.device("cpu"))
    target.positions[0] = 7.0
    assert target.parts[0].first.item() == 7.0 and source.positions[0] == 1.0
    assert target.words == {"a": [1.0, None, "x"]} and not hasattr(target, "later")
    assert next(iter(target.by_part.values())).item() == 1.0
    source.parts.append(Part())
    with pytest.raises(OtherShapeError, match="there is no 1"):
        write_state(build(2.0), read_state(source), device=torch.device("cpu"))


@pytest.mark.fault("2.3")
@pytest.mark.parametrize("task", ["games/grid_navigation", "mpe/simple_spread", "vmas/balance", "pettingzoo"])
def test_a_collector_goes_on_in_the_middle_of_its_episodes(task):
    def source(seed: int) -> CollectorSource:
        torch.manual_seed(0)
        env = make(task, seed=seed)
        return CollectorSource(env, make_actor(env.task_spec, hidden=(4,)), steps_per_round=4, exploration="sample")

    whole, resumed = source(1), source(2)
    for number in range(2):
        whole(number)
    state, chance = through_a_file(whole.state_dict()), torch.get_rng_state()
    expected = [whole(number).data for number in (2, 3)]
    for _ in range(2):  # a source that has gone on already goes back, too
        resumed.load_state_dict(state)
        torch.set_rng_state(chance)
        assert all((resumed(number).data == rows).all() for number, rows in zip((2, 3), expected))


@pytest.mark.fault("2.3")
def test_what_is_not_in_a_checkpoint_is_said_once():
    env = from_torchrl(VmasEnv("balance", num_envs=2), max_steps=5, seed=0)
    source = CollectorSource(env, make_actor(env.task_spec, hidden=(4,)), steps_per_round=2)
    assert source.state_dict()["episodes"] is None  # nothing has begun, so nothing is lost
    source(0)
    with pytest.warns(UserWarning, match="unfinished episodes of torchrl/VmasEnv are no part of the checkpoints"):
        state = source.state_dict()
    assert source.state_dict()["episodes"] is state["episodes"] is None  # and a second warning would be an error
    source.load_state_dict(state)
    following = source(1).data
    assert following[EPISODE].tolist() == [2, 2, 3, 3] and following[EPISODE_STEP].tolist() == [0, 1, 0, 1]


@pytest.mark.fault("2.3")
def test_episodes_that_cannot_be_played_again_are_begun_anew_with_a_warning():
    torch.manual_seed(0)
    env = make("pettingzoo")
    source = CollectorSource(env, make_actor(env.task_spec, hidden=(4,)), steps_per_round=3)
    source(0)
    state = source.state_dict()
    state["episodes"]["game"]["observation"] += 1.0
    with pytest.warns(UserWarning, match="does not play the same episode twice"):
        source.load_state_dict(state)
    assert source(1).data[OBSERVATION].isfinite().all()


def test_buffers_of_an_exploring_policy_go_on():
    from tensordict.nn import TensorDictSequential
    from torchrl.modules import AdditiveGaussianModule

    def source() -> tuple[CollectorSource, AdditiveGaussianModule]:
        torch.manual_seed(0)
        env = make("mpe/simple_spread")
        noise = AdditiveGaussianModule(env.full_action_spec[ACTION], action_key=ACTION, annealing_num_steps=100)
        policy = TensorDictSequential(make_actor(env.task_spec, hidden=(4,)), noise)
        return CollectorSource(env, policy, steps_per_round=2, exploration="sample"), noise

    (whole, noise), (resumed, again) = source(), source()
    whole(0)
    noise.step(30)
    resumed.load_state_dict(through_a_file(whole.state_dict()))
    assert again.sigma == noise.sigma < 1.0
