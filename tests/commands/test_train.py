"""``marl-offline train`` as a user runs it, in a folder of its own."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from tensordict import TensorDict

from torchrl_marl_offline import OfflineDataset, TaskSpec, from_arrays, load_policy
from torchrl_marl_offline.algorithms import ALGORITHMS, settings_of
from torchrl_marl_offline.commands import main
from torchrl_marl_offline.commands.algorithm_sources import declared_algorithms
from torchrl_marl_offline.commands.train import make_parser
from torchrl_marl_offline.commands.training_plan import TrainingPlan, new_plan
from torchrl_marl_offline.data import hold_out
from torchrl_marl_offline.evaluation import evaluate_held_out
from torchrl_marl_offline.training import CheckpointManager

SMALL = ("recipe", "--episodes", "40", "--eval-episodes", "8", "--hidden", "16", "--batch-size", "32")
SHORT = (*SMALL, "--steps", "20", "--eval-every", "10")
TIMING = {"seconds"}


MODULE = ("-m", "torchrl_marl_offline", "train")


def start(*arguments: str, cwd: Path) -> processes.Process:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return processes.start(
        "-W", "error::UserWarning:torchrl_marl_offline", *MODULE, *arguments, cwd=cwd, env=environment
    )


def run(*arguments: str, cwd: Path) -> str:
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return [{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(stream)]


def components(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint: weights, targets, Adam's moments."""

    class Catch:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            self.state = state

    loss, optimizer = Catch(), Catch()
    CheckpointManager(folder / "checkpoints").load(loss=loss, optimizer=optimizer)
    moments = {f"{i}.{k}": v for i, state in optimizer.state["state"].items() for k, v in state.items()}
    return {k: v for k, v in {**loss.state, **moments}.items() if isinstance(v, torch.Tensor)}


def assert_same_run(one: Path, two: Path) -> None:
    for part in ("", "cloning"):
        first, second = components(one / part), components(two / part)
        assert first.keys() == second.keys()
        assert len(first) > 10
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{part} {name}"
        for file in ("train.csv", "eval.csv"):
            assert rows(one / part / file) == rows(two / part / file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A whole run on its own data, and what it printed."""
    cwd = tmp_path_factory.mktemp("runs")
    return cwd / "whole", run(*SHORT, "--output", "whole", cwd=cwd)


def test_without_data_it_records_its_own_and_ends_with_a_table_and_pictures(finished):
    folder, out = finished
    for name in ("config.json", "train.csv", "eval.csv", "summary.json", "learning_curves.png", "methods.png"):
        assert (folder / name).stat().st_size > 0
    assert (folder.parent / "data" / "mpe-simple_spread-mixed-40-seed0" / "metadata.json").exists()
    table = out[out.index("return of an episode") :]
    for name in ("data (40 episodes)", "cloning, mode", "cloning, sampled", "recipe, mode", "recipe, sampled"):
        assert name in table
    assert len([line for line in table.splitlines()[:8] if " * " in line and "better way" not in line]) == 2
    assert "not across seeds" in table
    (last,) = [row for row in rows(folder / "train.csv") if row["step"] == "20"]
    for column in ("qvalue_abs", "value_norm_scale", "effective_sample_size", "loss_value"):
        assert float(last[column]) > 0
    assert [row["step"] for row in rows(folder / "eval.csv")] == ["10", "10", "20", "20"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["recipe, mode"]["final"]["episodes"] == 40
    assert {"last", "best", "average_of_last"} <= set(summary["cloning, sampled"]["during training"])


@pytest.mark.thorough
def test_the_recorded_data_is_used_again(finished):
    folder, _ = finished
    metadata = folder.parent / "data" / "mpe-simple_spread-mixed-40-seed0" / "metadata.json"
    before = metadata.stat().st_mtime_ns
    out = run(*SMALL, "--output", "again", "--steps", "10", "--eval-every", "10", "--gamma", "0.5", cwd=folder.parent)
    assert metadata.stat().st_mtime_ns == before
    assert "40 episodes" in out


@pytest.mark.thorough
def test_every_choice_on_a_discrete_task_and_the_weights_and_biases_logger(tmp_path):
    rules = ("--decomposition", "independent", "--value-learning", "sarsa", "--extraction", "brac")
    choices = (*rules, "--no-svn", "--heads", "min", "--logger", "wandb", "--video-every", "2")
    run(*SHORT, "--task", "games/grid_navigation", *choices, cwd=tmp_path)
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "data")
    assert folder.name.startswith("grid_navigation-")
    config = json.loads((folder / "config.json").read_text())
    assert config["algorithm"] == "recipe"
    assert config["settings"].items() >= {"svn": False, "heads": "min", "value_learning": "sarsa"}.items()
    assert "success" in rows(folder / "eval.csv")[0]
    assert "value_norm_scale" not in rows(folder / "train.csv")[0]
    assert list((folder / "wandb").glob("offline-run-*"))
    assert [path.name for path in (folder / "videos").iterdir()] == ["step-000000020.gif"]


def test_recordings_without_a_simulator_are_evaluated_on_held_out_episodes(tmp_path, recordings):
    out = run(
        "recipe",
        *SHORT[3:],
        "--dataset",
        f"pymarl:{recordings}/pymarl/smac-3m-medium.h5",
        "--output",
        "smac",
        cwd=tmp_path,
    )
    assert "No simulator of smac/3m here: 200 episodes are held out" in out
    for name in ("agreement", "illegal_actions", "q_correlation", "needs a simulator"):
        assert name in out
    summary = json.loads((tmp_path / "smac" / "summary.json").read_text())
    final = summary["recipe, held-out episodes"]["final"]
    assert final["illegal_actions"] == 0
    assert 0 < final["agreement"] < 1


def test_each_member_is_held_against_held_out_episodes_by_itself(tmp_path, capsys):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (200, 2, 1)).astype("float32")
    observations = np.concatenate([actions, rng.normal(size=(200, 2, 2))], -1).astype("float32")
    options = {"rewards": np.ones(200, "float32"), "truncations": np.arange(1, 201) % 10 == 0}
    data = from_arrays(observations=observations, actions=actions, terminals=np.zeros(200, bool), **options)
    data.save(tmp_path / "data")
    given = ["--dataset", str(tmp_path / "data"), "--steps", "20", "--eval-every", "20", "--seeds", "3", "--lr", "0.01"]
    assert main(["train", "cloning", *given, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    _, held_out = hold_out(data, fraction=0.1, seed=0)
    found = []
    for seed in range(3):
        member = tmp_path / "run" / "members" / f"seed={seed}"
        (row,) = rows(member / "eval.csv")
        alone = evaluate_held_out(load_policy(member), held_out).summary()
        assert float(row["action_error"]) == pytest.approx(alone["action_error"], rel=1e-4)
        found.append(row["action_error"])
    assert len(set(found)) == 3


GOALS = ("--task", "games/grid_goals", "--episodes", "60", "--eval-episodes", "4", "--hidden", "8")


def test_goals_in_hindsight_of_a_run_and_of_a_population(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ("--steps", "6", "--eval-every", "6", "--hindsight", "future", "--hindsight-share", "1", "--compile", "off")
    assert main(["train", "cloning", *GOALS, *short, "--output", "one"]) == 0
    assert main(["train", "cloning", *GOALS, *short, "--seeds", "2", "--output", "two"]) == 0
    for folder in ("one", "two/members/seed=0", "two/members/seed=1"):
        assert {"success", "return"} <= set(rows(tmp_path / folder / "eval.csv")[-1])
    alone, member = (load_policy(tmp_path / folder).policy.state_dict() for folder in ("one", "two/members/seed=0"))
    for name, value in alone.items():
        torch.testing.assert_close(member[name], value, rtol=1e-4, atol=1e-6)
    plain = [*(word for word in short if word not in ("--hindsight", "future", "--hindsight-share", "1"))]
    assert main(["train", "cloning", *GOALS, *plain, "--output", "plain"]) == 0
    other = load_policy(tmp_path / "plain").policy.state_dict()
    assert any(not torch.allclose(other[name], value, atol=1e-3) for name, value in alone.items())
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert (config["hindsight"], config["hindsight_share"], config["hindsight_per"]) == ("future", 1.0, "team")


def test_recordings_with_a_simulator_are_played(tmp_path, recordings):
    run("recipe", *SHORT[3:], "--dataset", f"pymarl:{recordings}/pymarl/cn-2-medium.h5", "--output", "cn", cwd=tmp_path)
    summary = json.loads((tmp_path / "cn" / "summary.json").read_text())
    assert summary["data"]["return"] == pytest.approx(0.4385, abs=1e-4)
    assert 0 <= summary["recipe, mode"]["final"]["success"] <= 1


@pytest.mark.thorough
@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_the_run_that_was_not(tmp_path):
    options = (*SMALL, "--steps", "60", "--eval-every", "30", "--checkpoint-every", "1")
    run(*options, "--output", "whole", cwd=tmp_path)
    folder, moments = tmp_path / "killed", random.Random(0)
    # once while cloning is trained, once in the middle of the recipe
    for arguments, place in (((*options, "--output", "killed"), folder / "cloning"), (("--resume", "killed"), folder)):
        process = start(*arguments, cwd=tmp_path)
        deadline = time.monotonic() + 120
        while len(list((place / "checkpoints").glob("checkpoint-*"))) < 3:  # the newest three are kept
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    run("--resume", "killed", cwd=tmp_path)
    assert_same_run(tmp_path / "whole", folder)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    process = start(*SMALL, "--steps", "100000", "--output", "mine", cwd=tmp_path)
    while not (tmp_path / "mine" / "cloning" / "checkpoints").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "go on with: marl-offline train --resume mine" in out + err


def fail(capsys, *arguments: str) -> str:
    """Run what must fail, in this process, and return its one sentence."""
    try:
        status = main(["train", *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_bad_input_is_answered_in_one_sentence(tmp_path, finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    for name, content in (("text.h5", b"no data"), ("archive.npz", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text('{"steps": ')
    cases = {
        (): "Name an algorithm: recipe, brac, cloning,",
        ("recipes",): "invalid choice: 'recipes'",
        ("recipe", "--dataset", "nowhere"): "nowhere does not exist",
        ("recipe", "--dataset", "pymarl:nowhere.h5"): "nowhere.h5 does not exist",
        ("recipe", "--dataset", "pymarl:text.h5"): "is not an HDF5 file",
        ("recipe", "--dataset", "pymarl:archive.npz"): "not HDF5",
        ("recipe", "--dataset", "text.h5"): "text.h5 is not an HDF5 file",
        ("recipe", "--task", "mpe/simple_sprea"): "Unknown task 'mpe/simple_sprea'; close names are mpe/simple_spread",
        ("recipe", "--task", "games/xor", "--dataset", "nowhere"): "leave --task out",
        ("--resume", "nowhere"): "nowhere holds no config.json",
        ("--resume", "damaged"): "damaged/config.json is damaged",
        ("--resume", str(folder), "recipe", "--gamma", "0.5"): "--resume goes on with the settings of the run",
        ("--resume", str(folder), "--steps", "8"): "--resume goes on with the settings of the run",
        ("--resume", str(folder), "--online-steps", "8"): "--resume goes on with the settings of the run",
        (f"--resume={folder}", "--alpha", "2"): "--resume goes on with the settings of the run",
        ("brac", "--resume", str(folder)): "--resume goes on with the settings of the run",
        ("recipe", "--output", "bad", "--batch-size", "1"): "--batch-size must be at least 2, got 1",
        ("recipe", "--preset", "tiny"): "--preset must be 'quick' or 'paper', got 'tiny'",
        ("recipe", "--episodes", "4", "--output", str(folder)): f"go on with --resume {folder}",
        ("recipe", "--output", "bad", "--expectile", "2"): "--expectile must lie between 0 and 1",
        ("recipe", "--output", "bad", "--expectile", "x"): "--expectile must be a number, got 'x'",
        ("recipe", "--output", "bad", "--alpha", "3"): "--alpha is read only with --extraction 'brac'",
        ("recipe", "--output", "bad", "--value-learning", "mc"): "--value-learning must be 'td', 'sarsa' or 'iql'",
        ("recipe", "--output", "bad", "--rectification", "1"): "unrecognized arguments: --rectification 1",
        ("omar", "--output", "bad", "--rectification", "2"): "--rectification must lie between 0 and 1, got 2.0",
        ("omar", "--output", "bad", "--hidden", "8", "0"): "--hidden must be at least 1, got 0",
        ("omar", "--output", "bad", "--grid", "sampler=1,2"): "--grid takes NAME=VALUE,VALUE,... with a name out of",
        ("omar", "--output", "bad", "--logger", "mlflow"): "--logger must be 'csv', 'tensorboard' or 'wandb'",
        ("omar", "--output", "bad", "--logger", "csv", "csv"): "--logger names one twice: csv csv",
        ("omar", "--output", "bad", "--video-size", "64"): "--video-size is read only with --video-every",
        ("omar", "--output", "bad", "--video-every", "1", "--video-format", "avi"): "must be 'gif' or 'mp4'",
        ("omar", "--output", "bad", "--task", "games/climb", "--video-every", "1"): "games/climb has nothing to draw",
        ("recipe", "--grid", "temperature=1", "--grid", "expectile=.7"): "--grid is given twice; give it once",
        ("recipe", "--svn", "--no-svn"): "--svn is given twice",
        ("recipe", "--lr", "1", "--lr", "2"): "--lr is given twice",
        ("recipe", "--expectile", ".6", "--grid", "expectile=.5,.7"): "--expectile is given beside --grid expectile=",
        ("recipe", "--lr", ".1", "--grid", "lr=.1,.2"): "--lr is given beside --grid lr=",
        ("recipe", "--grid"): "--grid expected at least one argument",
        ("cloning", "--no-cloning"): "--cloning is for what is trained beside cloning",
        ("cloning", "--critic-first", "3"): "--critic-first is for algorithms with a critic, which cloning has not",
        (
            "recipe",
            "--critic-first",
            "4",
            "--steps",
            "6",
            "--actor-every",
            "4",
        ): "--actor-every must have a multiple above",
        ("recipe", "--critic-first", "5", "--steps", "5"): "--critic-first must be below --steps (5), got 5",
        ("recipe", "--hindsight", "future", "--output", "bad"): "mpe/simple_spread is of a task without goals",
        ("recipe", "--hindsight-share", ".5"): "--hindsight-share is read only with --hindsight 'future' or 'final'",
        ("recipe", "--hindsight", "final", "--online", "games/grid_goals"): "--hindsight is read only with no --online",
        ("recipe", "--hindsight", "future", "--hindsight-share", "0"): "--hindsight-share must be above 0",
        ("recipe", "--dataset", ""): "--dataset must not be empty",
        ("recipe", "--output", ""): "--output must not be empty",
        ("recipe", "--task", " "): "--task must not be empty",
        ("--resume", ""): "--resume must not be empty",
        ("--resume", "text.h5"): "text.h5 is a file; name the folder of an earlier run",
        ("recipe", "--output", str(folder.parent / "data" / "mpe-simple_spread-mixed-40-seed0")): "holds a dataset",
        ("recipe", "--activation", "nonsense"): "--activation must be 'gelu', 'relu', 'elu', 'tanh' or 'silu'",
        ("--steps", "3", "recipe"): "Name the algorithm before its options, train ALGORITHM --steps",
    }
    for arguments, sentence in cases.items():
        assert sentence in fail(capsys, *arguments), arguments
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": 5}, "damaged"),
        ({"device": "cuda:9"}, "needs an NVIDIA GPU|there are"),
        ({"threads": "x"}, "--threads must be a whole number, got 'x'"),
        ({"grid": 5}, "damaged"),
        ({"grid": ["foo=1"]}, "--grid takes NAME=VALUE"),
        ({"dataset": 5}, "--dataset must be a word, got 5"),
        ({"seed": "0"}, "--seed must be a whole number, got '0'"),
        ({"preset": "zz"}, "--preset must be 'quick' or 'paper', got 'zz'"),
        ({"steps": -1}, "--steps must be at least 1, got -1"),
        ({"eval_episodes": "4"}, "--eval-episodes must be a whole number"),
        ({"cloning": "no"}, "--cloning must be True or False, got 'no'"),
        ({"nope": 1}, "there is no setting 'nope'"),
        ({"settings": {"nope": 1}}, "there is no setting 'nope'"),
        ({"settings": {"expectile": 2.0}}, "expectile must lie between 0 and 1"),
        ({"settings": 3}, "damaged"),
        ({"algorithm": "nope"}, "algorithm must be one of"),
        (None, "it lacks 'batch_size'|damaged"),
    ],
)
def test_settings_of_a_run_that_cannot_be_are_refused_before_anything_is_trained(
    finished, tmp_path, capsys, change, said
):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    file = run / "config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({"algorithm": "recipe"} if change is None else stored | change))

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}

    before = files()
    line = fail(capsys, "--resume", str(run))
    assert re.search(said, line), line
    assert "config.json is damaged, or of another script or version" in line
    assert files() == before


def test_help_says_what_a_preset_makes_of_a_default(capsys):
    for algorithm, said in (
        ("recipe", "(default: 0.95 with --preset quick, 0.99 with --preset paper)"),
        ("recipe", "(default: 64 64 with --preset quick, 512 512 512 512 with --preset paper)"),
        ("omar", "(default: 64 64 with --preset quick, 64 64 with --preset paper)"),
    ):
        with pytest.raises(SystemExit):
            make_parser().parse_args([algorithm, "--help"])
        assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("algorithm", [None, "cloning", "cql", "omar"])
def test_help_holds_no_latex(algorithm, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args([algorithm, "--help"] if algorithm else ["--help"])
    said = capsys.readouterr().out
    assert "\\" not in said
    assert algorithm is not None or "-log pi_a(u_a" in said


def test_every_algorithm_gets_what_is_asked_for_and_keeps_the_rest():
    def plan(*words: str) -> TrainingPlan:
        return new_plan(make_parser().parse_args(words))

    recipe = plan("recipe").of_method("recipe")
    assert recipe.items() >= {"gamma": 0.95, "expectile": 0.7, "hidden": (64, 64)}.items()
    assert "temperature" not in recipe  # the loss's own default
    paper = plan("recipe", "--preset", "paper", "--expectile", "0.8")
    assert paper.of_method("recipe").items() >= {"expectile": 0.8, "advantage": "local"}.items()
    assert "hidden" not in paper.of_method("recipe") and paper.run.steps == 500_000
    assert plan("icq").of_method("icq") == {"hidden": (64, 64)}
    asked = plan("icq", "--temperature", "3", "--gamma", "0.95")  # what happens to be the recipe's own
    assert asked.of_method("icq").items() >= {"temperature": 3.0, "gamma": 0.95}.items()
    spec = TaskSpec(n_agents=2, observation_size=3, state_size=6, action_size=2)
    loss = asked.loss("icq", spec)
    assert loss.temperature.item() == 3.0 and loss.value_estimator.gamma.item() == pytest.approx(0.95)


def test_the_options_are_the_fields_of_the_algorithms_classes(capsys):
    """What the sources say, read without importing them, is what the classes have."""
    declared = declared_algorithms()
    assert declared.keys() == ALGORITHMS.keys()
    for name, algorithm in declared.items():
        own = settings_of(name)
        assert algorithm.settings.keys() == own.keys()
        for setting, each in algorithm.settings.items():
            assert each.text, f"{name}.{setting}"
            assert each.is_switch == isinstance(own[setting], bool) or own[setting] is None, f"{name}.{setting}"
            assert each.is_series == isinstance(own[setting], tuple), f"{name}.{setting}"
    with pytest.raises(SystemExit):
        make_parser().parse_args(["omar", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--rectification VALUE of RectifiedGradient, " in said and "[between 0 and 1] (default: 0.5)" in said


def test_a_rule_and_an_algorithm_of_ones_own_are_trained_by_name(tmp_path):
    algorithm = Path(__file__).parents[2] / "examples" / "extend" / "algorithm.py"
    options = (*SHORT[1:], "--output", "own", "--no-cloning")
    name = re.search(r'name="(\w+)"', algorithm.read_text())[1]
    done = processes.run("-m", "torchrl_marl_offline", "--import", algorithm, "train", name, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "own/config.json").read_text())["algorithm"] == name
    assert not (tmp_path / "own" / "cloning").exists()


def test_there_is_no_traceback_in_a_process_of_its_own(tmp_path):
    process = start("recipe", "--dataset", "pymarl:nowhere.h5", cwd=tmp_path)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err == "error: nowhere.h5 does not exist; give the path of a PyMARL HDF5 file.\n"


def test_a_defect_keeps_its_traceback():
    from torchrl_marl_offline.commands.script_settings import plain_errors

    with pytest.raises(ZeroDivisionError), plain_errors():
        1 / 0  # noqa: B018
    with pytest.raises(RuntimeError), plain_errors():
        torch.zeros(2) @ torch.zeros(3)


def test_bounds_of_the_data_and_normalized_inputs_hold_offline_and_online(tmp_path, monkeypatch):
    """A team that never went beyond .4 in its second component is never sent beyond it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    length = 100
    ends = torch.arange(length) % 25 == 24
    data = from_arrays(
        observations=torch.randn(length, 3, 18) * torch.tensor([1e3] + [1.0] * 17),
        actions=torch.rand(length, 3, 2) * torch.tensor([1.0, 0.4]),
        rewards=torch.rand(length),
        terminals=torch.zeros(length, dtype=torch.bool),
        truncations=ends,
        task="mpe/simple_spread",
    )
    data.save("data")
    expected = data.with_bounds("data").spec
    low, high = expected.bounds_like(torch.zeros(3, 2))
    short = ("--eval-episodes", "2", "--eval-every", "2", "--hidden", "8", "--batch-size", "16", "--compile", "off")
    offline = ("--dataset", "data", "--bounds", "data", "--normalize-inputs", "auto", "--no-cloning", "--steps", "2")
    assert main(["train", "recipe", *offline, *short, "--output", "offline"]) == 0
    rounds = ("--online-steps", "2", "--num-envs", "4", "--steps-per-round", "8", "--updates-per-round", "2")
    online = ("--online", "mpe/simple_spread", "--from", "offline", *rounds, "--capacity", "64")
    assert (
        main(["train", "recipe", *online, *short[:4], "--batch-size", "16", "--compile", "off", "--output", "later"])
        == 0
    )
    assert (tmp_path / "offline/inputs.json").read_text() == (tmp_path / "later/inputs.json").read_text()
    (experience,) = (tmp_path / "later/online/experience").iterdir()
    played = OfflineDataset.load(experience).data["agents", "action"]
    for folder in ("offline", "later"):
        policy = load_policy(folder)
        assert policy.spec == expected
        norm = policy.policy.build["options"]["observation_norm"]
        assert norm[1] == pytest.approx(data.observation_statistics()[1])
        seen = TensorDict({("agents", "observation"): 100 * torch.randn(500, 3, 18)}, [500])
        for action in (policy(seen)["agents", "action"], played):
            assert ((low <= action) & (action <= high)).all()
    assert main(["evaluate", "later", "--episodes", "2"]) == 0
    with pytest.raises(SystemExit):
        main(["train", "recipe", "--bounds", "narrow"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slice-len", "16"], "--slice-len is read only with --memory"),
        (["--memory-size", "8"], "--memory-size is read only with --memory"),
        (["--memory", "rnn"], "--memory must be 'gru', 'lstm' or 'window:K', got 'rnn'"),
        (["--memory", "gru", "--batch-size", "250"], "batch_size=250 is no multiple of slice_len=32"),
        (["--memory", "gru", "--burn-in", "32"], "burn_in=32 leaves no row of slice_len=32 that counts"),
        (
            ["--memory", "gru", "--online", "mpe/simple_spread", "--steps-per-round", "2", "--capacity", "2000"],
            "--capacity 2000 holds no more than --burn-in 8 rows of each of --num-envs 256 environments",
        ),
    ],
    ids=" ".join,
)
def test_memory_that_cannot_be_had_is_refused_before_anything_is_done(tmp_path, capsys, words, said):
    line = fail(capsys, "recipe", *words, "--output", str(tmp_path / "run"))
    assert said in line
    assert not (tmp_path / "run").exists()
