"""Policies as files, and the command that evaluates them."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from population_toys import make_data
from selection import some_of
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

import torchrl_marl_offline as marl
from torchrl_marl_offline import Learner, Trainer, load_policy, make_actor, make_env, make_loss, save_policy
from torchrl_marl_offline import evaluate as evaluate_function
from torchrl_marl_offline.algorithms import ALGORITHMS
from torchrl_marl_offline.commands import COMMANDS, main
from torchrl_marl_offline.core.layout import ACTION, TaskSpec
from torchrl_marl_offline.recording import make_online_learner

TASKS = ["mpe/simple_spread", "games/grid_navigation", "games/two_step", "vmas/balance"]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return processes.run("-m", "torchrl_marl_offline", "evaluate", *arguments)


@pytest.mark.parametrize(("task", "kind"), some_of(itertools.product(TASKS, ["offline", "online"]), every=3))
def test_a_policy_that_was_saved_acts_as_before(tmp_path, task, kind):
    env = make_env(task, num_envs=5, seed=0)
    if kind == "offline":
        actor = make_actor(env.task_spec, hidden=(16,), layer_norm=True)
    else:
        actor = make_online_learner(env, hidden=(16, 8)).actor
    path = save_policy(tmp_path / "deep" / "policy.pt", actor, {"note": [1, "two"]})
    for source in (path, path.parent):
        saved = load_policy(source)
        assert saved.spec == env.task_spec
        assert saved.metadata == {"note": [1, "two"]}
        start = env.reset()
        with torch.no_grad():
            first, second = (marl.evaluate(policy, env, episodes=5, seed=3).returns for policy in (actor, saved.policy))
        assert torch.equal(first, second)
        assert saved.policy(start.clone())[ACTION].shape == env.full_action_spec[ACTION].shape
    assert [file.name for file in path.parent.iterdir()] == ["policy.pt"]


def test_a_trainer_leaves_its_newest_policy(tmp_path):
    dataset = marl.collect(make_env("mpe/simple_spread", num_envs=4), episodes=4, seed=0)
    loss = marl.BehaviourCloning(make_actor(dataset.spec, hidden=(8,)))
    buffer = dataset.replay_buffer(batch_size=16, seed=0)
    marl.Trainer(loss, buffer, steps=4, output=tmp_path, progress=False).train()
    saved = load_policy(tmp_path)
    assert saved.metadata == {"step": 4}
    with torch.no_grad():
        trained, loaded = (
            policy(dataset.data.clone())["agents", "loc"] for policy in (loss.actor_network, saved.policy)
        )
    assert torch.equal(trained, loaded)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": [np.int64(8)], "expectile": np.float64(0.6), "gamma": np.float64(0.9), "num_heads": np.int64(2)},
        {"hidden": np.array([8, 8]), "scale": np.float64(0.3), "max_next_value": np.float32(3.0)},
        {"hidden": (8,), "memory": "gru", "memory_size": np.int64(4), "slice_len": np.int64(4), "burn_in": np.int64(1)},
    ],
    ids=str,
)
def test_settings_that_are_numbers_of_numpy_leave_a_policy_and_a_run_to_go_on_with(tmp_path, settings):
    data = make_data()
    slices = {name: settings[name] for name in ("slice_len", "burn_in") if name in settings}

    def make() -> Trainer:
        torch.manual_seed(0)
        loss = make_loss(data.spec, decomposition="vdn", **settings)
        buffer = data.replay_buffer(batch_size=np.int64(8), seed=np.int64(0), keys=loss.in_keys, **slices)
        learner = Learner(loss, lr=np.float64(1e-3), tau=np.float32(0.5), clip_grad_norm=np.float64(1.0))
        return Trainer(learner, buffer, steps=np.int64(2), output=tmp_path / "run", progress=False)

    make().train()
    assert load_policy(tmp_path / "run").spec == data.spec
    assert make().resume() == 2


def test_a_loaded_policy_acts_row_by_row_and_stays_as_it_is(tmp_path):
    actor = make_actor(TaskSpec(2, 3, 6, 2), hidden=(8,), batch_norm=True, final_scale=1.0)
    rows = TensorDict({("agents", "observation"): 3 + torch.randn(20, 2, 3)}, [20])
    actor(rows.clone())  # its statistics are of these
    saved = load_policy(save_policy(tmp_path / "policy.pt", actor))
    before = {name: value.clone() for name, value in saved.policy.state_dict().items()}
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        together, alone = saved(rows.clone())["agents", "action"], saved(rows[:1].clone())["agents", "action"]
    torch.testing.assert_close(alone, together[:1])
    assert all(torch.equal(value, before[name]) for name, value in saved.policy.state_dict().items())
    assert saved.policy.training  # to be trained on


def test_what_cannot_be_saved_or_loaded_is_named(tmp_path):
    with pytest.raises(TypeError, match="Linear does not say how it was built; only policies of make_actor"):
        save_policy(tmp_path / "a.pt", torch.nn.Linear(1, 1))
    with pytest.raises(FileNotFoundError, match="no policy at"):
        load_policy(tmp_path)
    spec = make_env("games/xor").task_spec
    path = save_policy(tmp_path / "policy.pt", make_actor(spec, hidden=(8,)))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no whole policy of save_policy"):
            load_policy(path)


@pytest.fixture
def stored(tmp_path):
    """Return a function that writes a policy's file after a change to its content."""
    spec = make_env("mpe/simple_spread").task_spec
    path = save_policy(tmp_path / "policy.pt", make_actor(spec, hidden=(8, 8)))

    def write(change):
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "changed.pt")
        return tmp_path / "changed.pt"

    return write


def refused(path) -> str:
    with pytest.raises(ValueError, match="save it again, or take the policy of another run") as caught:
        load_policy(path)
    assert len(str(caught.value)) < 1000 and "weights_only" not in str(caught.value)
    return str(caught.value)


@pytest.mark.fault("5.6")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("builder", ["make_actor", "make_deterministic_actor", "make_greedy_actor"])
@pytest.mark.parametrize(
    "options",
    [
        {"hidden": [512] * 1000},
        {"hidden": [900] * 30},
        {"hidden": [4] * 100_000},
        {"hidden": [1] * 300_000},
        {"hidden": [1] * 200},
        {"hidden": [2**14] * 2},
    ],
)
def test_no_more_is_built_than_a_file_has_parameters(stored, monkeypatch, builder, options):
    """Whatever option asks for it: the number of layers, the sum of their sizes, or the size of one."""
    built = []
    plain = torch.nn.Module.__setattr__
    monkeypatch.setattr(
        torch.nn.Module, "__setattr__", lambda self, name, value: (built.append(name), plain(self, name, value))[1]
    )
    path = stored(lambda content: content.update(builder=builder, options=options))
    assert "its options" in refused(path)
    assert len(built) < 3000  # some 12 for each layer


@pytest.mark.fault("5.6")
def test_agents_are_not_more_than_a_file_has_parameters_for(stored):
    def many(content):
        content["spec"]["n_agents"] = 10**6
        content["options"]["share_params"] = False

    assert "its options ask for" in refused(stored(many))


@pytest.mark.timeout(60)
def test_a_policy_whose_parts_are_others_is_refused(stored):
    laugh = [0]
    for _ in range(40):
        laugh = [laugh] * 10
    for name, value in {
        "metadata": 7,
        "builder": "os.system",
        "spec": {"n_agents": laugh},
        "options": {"hidden": laugh},
        "parameters": [1],
    }.items():
        assert f"its {name}" in refused(stored(lambda content: content.update({name: value})))  # noqa: B023


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_no_numbers_are_refused_by_name(stored, value):
    def spoil(content):
        name = list(content["parameters"])[-1]
        content["parameters"][name].view(-1)[0] = value

    assert "bias' is NaN or infinite" in refused(stored(spoil))


@pytest.mark.fault("1.3")
@pytest.mark.timeout(60)
def test_a_pipe_or_a_device_is_no_policy(tmp_path):
    os.mkfifo(tmp_path / "policy.pt")
    for path, kind in ((tmp_path, "named pipe"), (tmp_path / "policy.pt", "named pipe"), ("/dev/zero", "device")):
        with pytest.raises(ValueError, match=f"is a {kind} in the place of a file; put a regular file there"):
            load_policy(path)


@pytest.mark.fault("6.1")
def test_a_folder_is_enough_where_a_run_has_stages(tmp_path):
    """Offline then online: the last stage's policy; one subfolder alone: its; several: the message names them."""
    spec = make_env("games/xor").task_spec

    def place(*names: str) -> None:
        for number, name in enumerate(names):
            save_policy(tmp_path / name / "policy.pt", make_actor(spec, hidden=(8,)), {"step": number, "place": name})

    def found() -> str:
        return load_policy(tmp_path).metadata["place"]

    place("offline")
    assert found() == "offline"  # stopped before the second stage
    place("online", "cloning")
    assert found() == "online"
    shutil.rmtree(tmp_path / "online")
    with pytest.raises(
        FileNotFoundError, match=r"no policy of its own but 2 below it; name one of .*cloning, .*offline"
    ):
        load_policy(tmp_path)
    place(".")
    assert found() == "."
    shutil.rmtree(tmp_path)
    place("members/seed=0", "members/seed=1")
    with pytest.raises(FileNotFoundError, match=r"name one of .*seed=0"):
        load_policy(tmp_path)


def help_of_all_commands(capsys) -> dict[str, str]:
    commands = {"data": ["", "inspect", "convert", "list", "verify", "push", "pull", "record"]}
    commands["policy"] = ["", "push", "pull"]
    commands["study"] = ["", "run", "plan", "list", "report"]
    commands["train"] = ["", *ALGORITHMS]
    texts = {}
    for name in COMMANDS:
        for command in commands.get(name, [""]):
            with pytest.raises(SystemExit):
                main([name, *([command] if command else []), "--help"])
            texts[f"{name} {command}"] = capsys.readouterr().out
    return texts


@pytest.mark.fault("6.1")
def test_no_help_shows_the_marks_of_documentation(capsys):
    texts = help_of_all_commands(capsys)
    assert (
        len(texts) == 23 + len(ALGORITHMS)
        and "The policy is a file of save_policy, a run's folder" in texts["evaluate "]
    )
    for name, text in texts.items():
        assert not re.search(r":[a-z]+:|`|~torchrl", text), name
    for script in (Path(__file__).parents[2] / "examples").glob("*.py"):  # --help shows these
        settings = re.search(r"class Args.*?\n\n\n", script.read_text(), re.DOTALL)
        assert settings is None or "`" not in settings.group(), script


def test_the_module_of_the_command_is_the_function_when_it_is_imported():
    import torchrl_marl_offline.evaluate

    assert torchrl_marl_offline.evaluate is evaluate_function is marl.evaluate


def test_the_command_says_what_the_function_says(tmp_path):
    env = make_env("games/grid_navigation", num_envs=20)
    path = save_policy(tmp_path / "policy.pt", make_actor(env.task_spec, hidden=(8,)))
    options = ("--episodes", 60, "--num-envs", 20, "--seed", 3, "--mode", "sample")
    printed = run(path, "--json", *options)
    assert printed.returncode == 0, printed.stderr
    row = json.loads(printed.stdout)
    expected = marl.evaluate(load_policy(path).policy, env, episodes=60, seed=3, mode="sample")
    assert row.items() >= expected.summary().items()
    assert (row["env"], row["episodes"]) == ("games/grid_navigation", 60)
    text = run(tmp_path, *options, "--video", tmp_path / "episode.gif").stdout
    rows = {line.partition("  ")[0]: line.split("  ") for line in text.splitlines()}
    assert f"{expected.mean:.4g}" in rows["return of an episode"] and "[" in text
    assert f"{expected.success_rate:.4g}" in rows["success rate"]
    assert max(map(len, text.splitlines()[:5])) <= 80
    assert (tmp_path / "episode.gif").read_bytes()[:4] == b"GIF8"


def test_the_command_refuses_an_environment_of_other_sizes(tmp_path):
    path = save_policy(tmp_path / "policy.pt", make_actor(make_env("games/xor").task_spec, hidden=(8,)))
    result = run(path, "--env", "mpe/simple_spread", "--episodes", 2)
    assert result.returncode == 1
    said = result.stderr.splitlines()[-1]
    assert said.startswith("error: The policy was made for 2 agents, observations of 1 numbers and 2 discrete actions")
    assert "observations of 18 numbers and actions of 2 numbers in [-1, 1] (mpe/simple_spread)" in said


def test_a_loaded_policy_is_a_policy_for_every_evaluation(tmp_path):
    from torchrl_marl_offline import collect, evaluate
    from torchrl_marl_offline.evaluation import evaluate_held_out

    env = make_env("games/two_step", num_envs=4)
    actor = make_actor(env.task_spec, hidden=(8,))
    saved = load_policy(save_policy(tmp_path / "p.pt", actor))
    assert torch.equal(*(evaluate(policy, env, episodes=8, seed=0).returns for policy in (saved, actor)))
    data = collect(env, episodes=8, seed=0)
    found, expected = (evaluate_held_out(policy, data).agreement for policy in (saved, actor))
    torch.testing.assert_close(found, expected)
    rows = data.data[:3].to_tensordict()
    assert torch.equal(saved(rows.clone())["agents", "action"], actor(rows.clone())["agents", "action"])
