"""Policies with memory evaluated by logged data alone: along the logged histories, of games whose values are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from memory_toys import KINDS, StepByStep, memory_options
from objective_toys import make_batch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.modules import GRUModule, set_recurrent_mode

from torchrl_marl_offline import compare_offline, make_actor, make_env, select_offline
from torchrl_marl_offline.core.layout import ACTION, ACTION_LOG_PROB, IS_INIT, OBSERVATION, TRAJ_IDS, TaskSpec
from torchrl_marl_offline.data import collect
from torchrl_marl_offline.data.policy_fit import PolicyError
from torchrl_marl_offline.envs import CueController
from torchrl_marl_offline.evaluation import CloningSettings, FittedQSettings, simulated_value
from torchrl_marl_offline.evaluation.offline.answers import EvaluatedPolicy
from torchrl_marl_offline.evaluation.offline.behaviour_model import BehaviourClone
from torchrl_marl_offline.evaluation.offline.fitted_q import FittedQ
from torchrl_marl_offline.evaluation.offline.horizon import evaluation_rows
from torchrl_marl_offline.modules.history import encoder_of

SPEC = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=2)
LENGTHS = (3, 1, 6, 4, 2)
GAMMA = 0.9


def logged(seed: int = 0) -> SimpleNamespace:
    """Episodes of unequal lengths, in float64; what follows their last rows is in no row."""
    rows = make_batch(SPEC, sum(LENGTHS), seed=seed)
    rows = rows.apply(lambda x: x.double() if x.is_floating_point() else x)
    ids = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    rows.set(TRAJ_IDS, ids)
    inside = ids[1:] == ids[:-1]
    rows["next", "agents", "observation"][:-1][inside] = rows["agents", "observation"][1:][inside]
    return SimpleNamespace(data=rows, spec=SPEC, task_spec=SPEC)


def actor(spec: TaskSpec, seed: int = 1, **options):
    torch.manual_seed(seed)
    return make_actor(spec, hidden=(8,), final_scale=3.0, **options)


def by_hand(policy, data: TensorDict) -> tuple[torch.Tensor, torch.Tensor]:
    """Locations in each row and in its next observation, by torch's own cells, one agent and step at a time."""
    encoder, head = encoder_of(policy), policy.module[0].module[1]
    cells, here, ahead = StepByStep(encoder), [], []
    for row, episode in enumerate(data[TRAJ_IDS].tolist()):
        history = [r for r in range(row + 1) if data[TRAJ_IDS][r] == episode]
        seen = data["agents", "observation"][history]
        for found, observations in (
            (here, seen),
            (ahead, torch.cat([seen, data["next", "agents", "observation"][row : row + 1]])),
        ):
            memory = [cells.after(list(observations[:, agent]), agent) for agent in range(SPEC.n_agents)]
            features = torch.stack(memory)[..., : encoder.feature_size].unsqueeze(0)
            found.append(head(TensorDict({encoder.history_key: features}, [1]))["agents", "loc"][0])
    return torch.stack(here), torch.stack(ahead)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_ratios_and_actions_are_those_of_a_loop_along_each_episode(kind, share) -> None:
    logs = logged()
    policy = actor(SPEC, scale=0.5, share_params=share, **memory_options(kind)).double()
    with torch.no_grad():
        loc, ahead = by_hand(policy, logs.data)
    wanted = torch.distributions.Normal(loc, 0.5).log_prob(logs.data[ACTION]).sum(-1)
    found = EvaluatedPolicy("policy", policy, logs, "sample").log_probs(logs.data)
    assert (found - wanted).abs().max() < 1e-10
    asked = EvaluatedPolicy("policy", policy, logs, "mode")
    seen = asked.seen(logs.data)
    for states, mode in ((seen, loc), (seen["next"], ahead)):
        assert (asked.actions(states, samples=1)[:, 0] - mode.clamp(-1, 1)).abs().max() < 1e-10
    some = torch.tensor([13, 2, 9])  # any rows, in any order
    torch.testing.assert_close(asked.actions(seen[some], samples=1), asked.actions(seen, samples=1)[some])


def test_nothing_leaks_from_one_episode_into_another() -> None:
    logs, policy = logged(), actor(SPEC, memory="lstm", memory_size=5).double()
    asked = EvaluatedPolicy("policy", policy, logs, "mode")
    before = asked.seen(logs.data)
    changed = logs.data.clone()
    rows = changed[TRAJ_IDS] == 2
    changed["agents", "observation"][rows] += 1.0
    after = asked.seen(changed)
    for states in ("here", "next"):
        one, two = (asked.actions(each if states == "here" else each["next"], samples=1) for each in (before, after))
        assert torch.equal(one[~rows], two[~rows])
        assert (one != two).flatten(1).any(1)[rows].all()


class Remembers(TensorDictModuleBase):
    """Plays the cue that was seen: memory by the keys alone, without an encoder of this library."""

    def __init__(self, cues: int) -> None:
        super().__init__()
        self.cues = cues
        self.in_keys, self.out_keys = [OBSERVATION, IS_INIT, "cue"], [ACTION, ("next", "cue")]

    def forward(self, tensordict: TensorDict) -> TensorDict:
        shown = tensordict[OBSERVATION][..., : self.cues]
        before = tensordict.get("cue", torch.zeros(shown.shape[:-1], dtype=torch.int64))
        cue = torch.where(shown.any(-1), shown.argmax(-1), before.masked_fill(tensordict[IS_INIT], 0))
        return tensordict.set(ACTION, cue).set(("next", "cue"), cue)


@pytest.fixture(scope="module")
def recall():
    """A cue of two is seen in the first step and paid for in the third; uniform play, whose chances are known."""
    env = make_env("games/recall", num_envs=100, seed=0, cues=2, delay=2)
    logs = collect(env, CueController(env, "random", seed=0), episodes=1500, seed=0)
    logs.data.set(ACTION_LOG_PROB, torch.full((len(logs.data), 2), 0.5).log())
    return env, logs


def value_of(policy, env) -> float:
    """The exact value in games/recall: chances of the right joint action at the last step, along both histories."""
    found = []
    for cue in range(2):
        td = env.set_state(torch.full((100,), cue))
        memory = None
        for step in range(3):
            td = TensorDict({OBSERVATION: td[OBSERVATION], IS_INIT: torch.full((100, 1), step == 0)}, [100])
            if memory is not None:
                td.set(("agents", "policy_memory"), memory)
            with torch.no_grad():
                dist = policy.get_dist(td)
            memory = td.get(("next", "agents", "policy_memory"), None)
            td = env.step(td.set(ACTION, torch.full((100, 2), cue)))["next"]
        found.append(dist.log_prob(torch.full((100, 2), cue)).sum(-1).exp()[0].item())
    return GAMMA**2 * sum(found) / 2


def test_values_of_policies_with_and_without_memory_in_one_comparison(recall) -> None:
    env, logs = recall
    recurrent = actor(env.task_spec, seed=15, memory="gru", memory_size=8)
    plain = actor(env.task_spec, seed=3)
    options = {"gamma": GAMMA, "mode": "sample", "held_out": 0.5}
    fitting = FittedQSettings(hidden=(32,), steps=250, lr=3e-3, resamples=2, samples=8, compile="off")
    cloning = CloningSettings(hidden=(8,), steps=3)
    policies = {"recurrent": recurrent, "plain": plain}
    found = compare_offline(policies, logs, by=("fqe", "wis", "dr"), fitting=fitting, cloning=cloning, **options)
    for name, policy in policies.items():
        truth = value_of(policy, env)
        assert found.estimates["wis"][name].mean == pytest.approx(truth, abs=0.06), name
        assert found.estimates["dr"][name].mean == pytest.approx(truth, abs=0.06), name
        assert found.estimates["fqe"][name].mean == pytest.approx(truth, abs=0.1), name
    assert abs(value_of(recurrent, env) - value_of(plain, env)) > 0.1


def test_the_best_team_with_memory_is_chosen_and_played(recall) -> None:
    env, logs = recall
    given = {"remembers": Remembers(2), "constant": actor(env.task_spec, seed=3)}
    fitting = FittedQSettings(hidden=(32,), steps=250, lr=3e-3, resamples=2, compile="off")
    found = select_offline(given, logs, by="fqe", fitting=fitting, gamma=GAMMA)
    assert found.best == "remembers" and found.estimates["remembers"].mean == pytest.approx(GAMMA**2, abs=0.1)
    assert found.comparison.calibration.passed
    played = select_offline(given, logs, by="return", env=env, episodes=100, gamma=GAMMA)
    assert played.best == "remembers" and played.estimates["remembers"].mean == pytest.approx(GAMMA**2, abs=1e-5)
    by_weights = select_offline(given, logs, by="wis", gamma=GAMMA)
    assert by_weights.estimates["remembers"].mean == pytest.approx(GAMMA**2, abs=0.1)


class RemembersItsDraws(Remembers):
    def forward(self, tensordict: TensorDict) -> TensorDict:
        drawn = torch.randint(self.cues, tensordict[OBSERVATION].shape[:-1])
        return tensordict.set(ACTION, drawn).set(("next", "cue"), drawn)


def test_memory_of_what_was_drawn_is_refused(recall) -> None:
    with pytest.raises(PolicyError, match="policy remembers what it draws, at cue, and the logged team did something"):
        compare_offline(RemembersItsDraws(2), recall[1])


def test_memory_of_torchrls_modules_goes_along_the_episodes_too() -> None:
    """What is asked row by row is what TorchRL's own pass over a whole episode says."""
    torch.manual_seed(0)
    logs = logged()
    logs.data = logs.data.apply(lambda x: x.float() if x.is_floating_point() else x)
    keys = {"in_keys": ["joined", "h"], "out_keys": ["memory", ("next", "h")]}
    policy = TensorDictSequential(
        TensorDictModule(nn.Flatten(-2), [OBSERVATION], ["joined"]),
        GRUModule(input_size=12, hidden_size=5, **keys),
        TensorDictModule(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Unflatten(-1, (3, 2))), ["memory"], [ACTION]),
    )
    asked = EvaluatedPolicy("policy", policy, logs, "mode")
    found = asked.actions(asked.seen(logs.data), samples=1)[:, 0]
    for episode, length in enumerate(LENGTHS):
        rows = logs.data[TRAJ_IDS] == episode
        whole = TensorDict({OBSERVATION: logs.data[OBSERVATION][rows]}, [length]).unsqueeze(0)
        whole.set("h", torch.zeros(1, length, 1, 5)).set(IS_INIT, torch.arange(length).reshape(1, -1, 1) == 0)
        with torch.no_grad(), set_recurrent_mode(True):
            torch.testing.assert_close(found[rows], policy(whole)[ACTION][0])


# --------------------------------------------------------------------------- memory of what is trained


class Tells(TensorDictModuleBase):
    """In games/telephone of two cues the first agent says the cue once, the second plays the first word heard."""

    in_keys, out_keys = [OBSERVATION, IS_INIT, "heard"], [ACTION, ("next", "heard")]

    def forward(self, tensordict: TensorDict) -> TensorDict:
        first, second = tensordict[OBSERVATION].unbind(-2)
        before = tensordict.get("heard", torch.zeros(len(first), dtype=torch.int64))  # 1 + the word
        before = before.masked_fill(tensordict[IS_INIT][:, 0], 0)
        word = second[:, 2:4]
        heard = torch.where((before == 0) & word.any(-1), word.argmax(-1) + 1, before)
        played = torch.stack([first[:, :2].argmax(-1), (heard - 1).clamp_min(0)], -1)
        return tensordict.set(ACTION, played).set(("next", "heard"), heard)


@pytest.mark.thorough
def test_critics_with_memory_value_what_a_team_tells_itself() -> None:
    """The word is lost to the state before it pays, so that critics of the state value what the random team told."""
    env = make_env("games/telephone", num_envs=100, seed=0, cues=2, words=2, delay=3)
    logs = collect(env, CueController(env, "random", seed=0), episodes=400, seed=0)
    assert simulated_value(Tells(), env, episodes=100, gamma=1.0).mean == 1.0
    found = {}
    for memory in (None, "window:4"):
        fitting = FittedQSettings(hidden=(32,), steps=800, lr=3e-3, tau=0.02, resamples=2, compile="off", memory=memory)
        found[memory] = compare_offline(Tells(), logs, gamma=1.0, fitting=fitting)
        assert found[memory].calibration.passed
    means = {memory: each.estimates["fqe"]["policy"].mean for memory, each in found.items()}
    assert means[None] == pytest.approx(0.5, abs=0.15) and means["window:4"] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("memory", ["gru", "window:2"])
def test_critics_with_memory_see_each_episode_up_to_the_row(recall, memory) -> None:
    logs = recall[1].select_episodes(range(12))
    rows = evaluation_rows(logs, horizon="episode", gamma=GAMMA, how="mean")
    options = memory_options(memory)
    settings = FittedQSettings(hidden=(8,), steps=2, batch_size=12, resamples=2, compile="off", **options)
    resamples = torch.tensor([[0, 0, 3, 5], [7, 7, 7, 1]])
    fitted = FittedQ(rows, {"logged": None}, resamples, settings, gamma=GAMMA, how="mean", seed=0)
    drawn = fitted.buffer.sample()
    assert drawn.shape == (2, 4, 3)  # whole episodes
    for member, episodes in enumerate(resamples):
        assert set(drawn[TRAJ_IDS][member].flatten().tolist()) <= set(episodes.tolist())
    fitted.train(progress=False)
    index = torch.arange(len(rows.data))
    actions = logs.data[ACTION].unsqueeze(1)
    values = fitted.values("logged", rows, index, actions)
    some = torch.tensor([30, 4, 5, 18])
    torch.testing.assert_close(fitted.values("logged", rows, some, actions[some]), values[:, some])
    rows.data[OBSERVATION][3:6] += 1.0  # the second episode
    moved = (fitted.values("logged", rows, index, actions) - values).abs().amax(0)
    assert moved[3:6].min() > 0 and moved[:3].max() < 1e-5 and moved[6:].max() < 1e-5


def test_a_team_that_remembers_is_cloned_by_one_that_does() -> None:
    env = make_env("games/recall", num_envs=50, seed=0, cues=2, delay=2)
    logs = collect(env, CueController(env, "optimal"), episodes=100, seed=0)
    likely = {}
    for memory in (None, "window:3"):
        settings = CloningSettings(hidden=(16,), steps=150, batch_size=60, lr=1e-2, memory=memory)
        clone = BehaviourClone(logs, settings, seed=0, progress=False)
        likely[memory] = clone.log_probs(logs.data, logs.data[ACTION])[2::3].exp().mean().item()
    assert likely[None] < 0.6 and likely["window:3"] > 0.95


def test_slices_are_whole_episodes_where_these_are_short() -> None:
    settings = FittedQSettings(memory="gru", slice_len=16, burn_in=4)
    assert settings.sampling(64, 5) == {"batch_size": 60, "slice_len": 5, "burn_in": 0}
    assert settings.sampling(64, 100) == {"batch_size": 64, "slice_len": 16, "burn_in": 4}
    assert settings.sampling(8, 100) == {"batch_size": 16, "slice_len": 16, "burn_in": 4}
    assert FittedQSettings().sampling(64, 100) == {"batch_size": 64}
    for wrong, sentence in (
        ({"memory": "rnn"}, "memory must be 'gru', 'lstm' or 'window:K', got"),
        ({"memory": "gru", "burn_in": 32}, "burn_in=32 leaves no row of slice_len=32 that counts"),
        ({"memory_size": 8}, "memory_size is read only with memory 'gru' or 'lstm'"),
        ({"slice_len": 8}, "slice_len is read only with memory"),
    ):
        for kind in (FittedQSettings, CloningSettings):
            with pytest.raises(ValueError, match=sentence):
                kind(**wrong)
