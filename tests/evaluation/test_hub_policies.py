"""Policies on a hub that the tests serve themselves."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from hub_server import HubServer

from torchrl_marl_offline import collect, load_policy, make_actor, make_env, pull_policy, push_policy, save_policy
from torchrl_marl_offline.commands import export_work, main
from torchrl_marl_offline.commands.training_plan import OF_RUN
from torchrl_marl_offline.core.hub_client import HubError
from torchrl_marl_offline.evaluation.hub_policies import OF_RUNS

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's client
pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def actor():
    return make_actor(make_env("games/xor").task_spec, hidden=(8,))


@pytest.fixture
def run(tmp_path, actor) -> Path:
    folder = tmp_path / "runs" / "one"
    save_policy(folder / "policy.pt", actor, {"step": 40, "source": "/home/ada/data/x"})
    config = {
        "algorithm": "omar",
        "settings": {"min_q_weight": 0.5},
        "steps": 40,
        "dataset": "/home/ada/data/x",
        "seed": 3,
    }
    machine = {"output": str(folder), "device": "cuda:1", "threads": 4, "wandb": True, "resume": None}
    (folder / "config.json").write_text(json.dumps(config | machine))
    rows = [f"{step},{way},{step / 10},{step / 10 - 1},{step / 10 + 1}" for step in range(7) for way in ("mode", "x")]
    (folder / "eval.csv").write_text("\n".join(["step,evaluator,return,return_low,return_high", *rows, ""]))
    (folder / "videos").mkdir()
    (folder / "videos" / "step-40.gif").write_bytes(b"GIF89a")
    (folder / "one.gif").write_bytes(b"GIF of somebody")
    (folder / "notes.txt").write_text("mine alone")
    return folder


def files(hub: HubServer, revision: str = "main") -> dict[str, bytes]:
    return hub.repos["model", "me/omar"].files(revision)


def same(first, second) -> bool:
    states = (first.policy.state_dict(), second.policy.state_dict())
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0] | states[1])


def test_push_and_pull(hub, run, tmp_path, capsys):
    assert main(["policy", "push", str(run), "me/omar", "--licence", "mit"]) == 0
    commit = hub.repos["model", "me/omar"].branches["main"]
    assert capsys.readouterr().out.strip() == f"{hub.address}/me/omar/commit/{commit}"
    assert set(files(hub)) == {
        *(".gitattributes", "README.md", "config.json", "eval.csv", "policy.pt", "video.gif"),
    }
    assert main(["policy", "pull", "me/omar", str(tmp_path / "there" / "it.pt")]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "there" / "it.pt") and ": 1 file, " in said.err
    assert hub.fetched() == ["policy.pt"]
    saved = load_policy("hf:me/omar")
    assert same(saved, load_policy(run)) and same(saved, load_policy(tmp_path / "there" / "it.pt"))
    assert saved.metadata == {"step": 40, "source": "x"}


def test_the_commands_take_it(hub, run, tmp_path, capsys, monkeypatch):
    push_policy(run, "me/omar")
    assert main(["evaluate", "hf:me/omar", "--episodes", "4", "--num-envs", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 4
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_work, "export_policy", lambda policy, path, **options: path.write_bytes(b"a program"))
    assert main(["export", "hf:me/omar"]) == 0
    assert (tmp_path / "omar.pt2").is_file()
    assert pull_policy("me/omar").name == "policy.pt"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_policy("hf:me/omar").metadata["step"] == 40


def test_what_is_of_the_machine_is_not_published(hub, run):
    push_policy(run, "me/omar")
    assert json.loads(files(hub)["config.json"]) == {
        "algorithm": "omar",
        "settings": {"min_q_weight": 0.5},
        "steps": 40,
        "dataset": "x",
        "seed": 3,
    }
    assert not any(b"/home/" in content or str(run).encode() in content for content in files(hub).values())
    rows = files(hub)["eval.csv"].decode().splitlines()
    assert rows[0] == "step,evaluator,return,return_low,return_high" and len(rows) == 11
    assert rows[1].startswith("2,mode,0.2,")


def test_the_card(hub, run):
    import yaml

    push_policy(run, "me/omar", licence="apache-2.0", revision="best")
    card = files(hub, "best")["README.md"].decode()
    facts = yaml.safe_load(card.split("---\n")[1])
    assert facts["license"] == "apache-2.0" and facts["pipeline_tag"] == "reinforcement-learning"
    assert {"offline-rl", "multi-agent", "torchrl"} <= set(facts["tags"])
    for line in (
        "# games/xor, omar",
        "![one episode](video.gif)",
        "| task | games/xor |",
        "| algorithm | omar |",
        "| updates | 40 |",
        'policy = load_policy("hf:me/omar@best")',
        "|  | return |",
        "| mode, step 6 | 0.6 [-0.4, 1.6] |",
        "| min_q_weight | 0.5 |",
        "| steps | 40 |",
    ):
        assert line in card, line
    finals = {"omar, mode": {"final": {"return": 3.0, "return_low": 2.5, "return_high": 3.5, "episodes": 500.0}}}
    (run / "summary.json").write_text(json.dumps(finals | {"data": {"return": 1.0}}))
    push_policy(run, "me/omar")
    card = files(hub)["README.md"].decode()
    assert "| omar, mode | 3 [2.5, 3.5] | 500 |" in card and "step 6" not in card


def test_a_file_of_no_run_takes_nothing_from_beside_it(hub, run, actor):
    file = save_policy(run / "expert.pt", actor)
    push_policy(run, "me/omar")
    push_policy(file, "me/omar")
    assert set(files(hub)) == {".gitattributes", "README.md", "policy.pt"}
    assert files(hub)["policy.pt"] == file.read_bytes()


SECRETS = {"api_key": "hf_secret", "name": "mine"}


@pytest.mark.parametrize(
    "config",
    [
        None,
        SECRETS,
        SECRETS | {"algorithm": 3},
        SECRETS | {"algorithm": "ppo"},
        SECRETS | {"algorithm": "ppo", "settings": {"password": "secret"}},
        SECRETS | {"algorithm": "omar", "settings": ["secret"]},
    ],
)
def test_a_file_in_the_folder_of_something_else_takes_nothing_from_beside_it(hub, run, config):
    (run / "config.json").unlink() if config is None else (run / "config.json").write_text(json.dumps(config))
    (run / "summary.json").write_text(json.dumps({"secret": {"final": {"secret": 1}}}))
    (run / "video.gif").write_bytes(b"of somebody")
    push_policy(run / "policy.pt", "me/omar")
    assert set(files(hub)) == {".gitattributes", "README.md", "policy.pt"}
    assert b"secret" not in b"".join(files(hub).values())
    push_policy(run, "me/omar")  # a folder that is named is a run's, of a trainer without a command, too
    assert "eval.csv" in files(hub) and "config.json" not in files(hub)


def test_a_file_in_a_runs_folder_takes_what_the_run_wrote_alone(hub, run):
    config = json.loads((run / "config.json").read_text())
    config["settings"]["password"] = "secret"
    (run / "config.json").write_text(json.dumps(config | SECRETS))
    push_policy(run / "policy.pt", "me/omar")
    assert b"secret" not in b"".join(files(hub).values())
    assert json.loads(files(hub)["config.json"])["settings"] == {"min_q_weight": 0.5}
    assert files(hub)["video.gif"] == b"GIF89a"
    (run / "videos" / "step-40.gif").unlink()
    (run / "videos" / "step-40.gif").symlink_to(run / "notes.txt")
    push_policy(run / "policy.pt", "me/omar")
    assert "video.gif" not in files(hub)
    (run / "video.gif").write_bytes(b"GIF87a")
    push_policy(run / "policy.pt", "me/omar")
    assert files(hub)["video.gif"] == b"GIF87a"


def test_settings_of_an_algorithm_that_is_not_registered_here(hub, run):
    form = {"algorithm": "own_one", "settings": {"alpha": 2, "a b": 3}, "steps": 4, "seed": 1, "preset": "quick"}
    (run / "config.json").write_text(json.dumps(form | {"batch_size": 8, "more": 1}))
    push_policy(run, "me/omar")
    assert json.loads(files(hub)["config.json"]) == form | {"settings": {"alpha": 2}, "batch_size": 8}


def test_each_setting_of_a_run_is_published_or_of_the_machine():
    machine = {"output", "resume", "device", "threads"}
    assert not OF_RUNS & machine and OF_RUN | {"started_with"} == OF_RUNS | machine


def test_a_stage_or_member_has_the_settings_of_the_run(hub, run):
    (run / "online").mkdir()
    (run / "policy.pt").rename(run / "online" / "policy.pt")
    push_policy(run, "me/omar")
    assert {"config.json", "video.gif"} <= set(files(hub)) and "eval.csv" not in files(hub)
    push_policy(run / "online", "me/omar")  # what lies above the folder that is named is left alone
    assert set(files(hub)) == {".gitattributes", "README.md", "policy.pt"}


def test_errors_before_any_work(hub, run, tmp_path, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match="no policy at"):
        push_policy(tmp_path, "me/omar")
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged .*; restore it, or move it away"):
        push_policy(run, "me/omar")
    (run / "config.json").unlink()
    (tmp_path / "damaged.pt").write_bytes(b"x" * 100)
    for arguments in (["push", str(tmp_path / "damaged.pt"), "me/omar"], ["push", str(run), "omar"], ["pull", "omar"]):
        assert main(["policy", *arguments]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
    assert hub.asked == []
    with pytest.raises(HubError, match="There is no model repository me/none"):
        load_policy("hf:me/none")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="needs a login"):
        push_policy(run, "me/omar")


def test_a_repository_without_a_policy_or_with_a_damaged_one(hub, run):
    hub.add("model", "me/other", {"model.safetensors": b"", "run.py": b""})
    said = "holds no policy of this library: there is no policy.pt, but .gitattributes, model.safetensors, run.py; name"
    with pytest.raises(HubError, match=re.escape(said)):
        load_policy("hf:me/other")
    hub.add("model", "me/pickle", {"policy.pt": b"cos\nsystem\n(S'exit'\ntR."})
    for act in (lambda: load_policy("hf:me/pickle"), lambda: pull_policy("me/pickle")):
        with pytest.raises(ValueError, match="is no whole policy"):
            act()
    push_policy(run, "me/omar")
    hub.on_way = lambda name, content: content[:-3] + b"abc"
    with pytest.raises(HubError, match=r"policy\.pt arrived with another size or checksum than the hub states"):
        pull_policy("me/omar")
    with pytest.raises(HubError, match="more than 100; allow more by --max-bytes"):
        pull_policy("me/omar", max_bytes=100)


def test_what_is_there_is_not_replaced_unasked(hub, run, tmp_path):
    push_policy(run, "me/omar")
    target = tmp_path / "it.pt"
    target.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"pass overwrite=True \(--overwrite\), or name another file"):
        pull_policy("me/omar", target)
    with pytest.raises(FileExistsError, match="already exists; name a file"):
        pull_policy("me/omar", tmp_path, overwrite=True)
    assert target.read_bytes() == b"mine"
    pull_policy("me/omar", target, overwrite=True)
    assert same(load_policy(target), load_policy(run))


def test_the_guide(hub, run, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs/guides/hub.md").read_text()
    monkeypatch.setattr("torchrl_marl_offline.data.hub._picture", lambda dataset, inspection: None)
    monkeypatch.chdir(tmp_path)
    run.rename(tmp_path / "runs" / "omar")
    env = make_env("games/xor", num_envs=4)
    collect(env, episodes=8, seed=0).save(tmp_path / "runs/spread/medium")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 6 and text.count("<!-- not run: needs a network; tests/") == text.count("```") // 2 == 4
    for line in sorted(lines, key=lambda line: " push " not in line):
        program, *arguments = shlex.split(line)
        assert program == "marl-offline" and main(arguments) == 0, line + capsys.readouterr().err
    push_policy("runs/omar", "me/omar-spread", revision="v1")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["dataset"].n_episodes == 8 and names["policy"].spec == env.task_spec
