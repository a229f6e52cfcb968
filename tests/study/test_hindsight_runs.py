"""Goals in hindsight as a setting of a study's runs: trained as alone, over drawn goals, refused elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from study_toys import quietly, write_study

from torchrl_marl_offline import Trainer
from torchrl_marl_offline.core.functional_parameters import tensors_of
from torchrl_marl_offline.data import hindsight_buffer
from torchrl_marl_offline.envs import make_env
from torchrl_marl_offline.recording import record_mixed_skill
from torchrl_marl_offline.study import StudyError, read_results, read_study
from torchrl_marl_offline.study.plan import Plan, plan_study
from torchrl_marl_offline.study.runs import expand
from torchrl_marl_offline.study.training import build_loss, train_population
from torchrl_marl_offline.training import Learner, load_policy

GOALS = """
[study]
hidden = [16]
batch_size = 32
output = "{output}"
seeds = {seeds}
steps = 12
lr = 1e-2
device = "cpu"
compile = "off"

[evaluation]
every = 12
episodes = 6

[methods.clone]
algorithm = "cloning"
hindsight_per = "agent"
variants.hindsight = ["off", "future"]

[datasets.goals]
task = "games/grid_goals"
episodes = 30
options.task_options = {{ max_steps = 8 }}
"""


def changed(before: str, after: str) -> str:
    assert before in GOALS
    return GOALS.replace(before, after)


def test_a_study_trains_its_runs_with_hindsight_as_alone(tmp_path):
    outcome = quietly(write_study(tmp_path, GOALS, seeds=2), train=train_population)
    assert outcome.failed == {} and outcome.finished == 2
    table = read_results(tmp_path / "out")
    assert table["success"].notna().all() and set(table["method"]) == {"clone-off", "clone-future"}
    runs = expand(read_study(tmp_path / "study.toml"))
    run = next(each for each in runs if each.method == "clone-future" and each.seed == 1)
    data = record_mixed_skill(
        "games/grid_goals", tmp_path / "out/data", episodes=30, task_options={"max_steps": 8}, num_envs=30
    )
    loss = build_loss(run, data)
    options = {"batch_size": 32, "seed": run.seed, "keys": loss.in_keys, "per": "agent"}
    buffer = hindsight_buffer(data, make_env("games/grid_goals").outcome, future=0.8, **options)
    Trainer(Learner(loss, lr=1e-2, compile="off"), buffer, steps=12, progress=False).train()
    (member,) = (tmp_path / "out/jobs").glob(f"*/members/{run.name}")
    kept = load_policy(member).policy.state_dict()
    for name, value in loss.actor_network.state_dict().items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-5)
    assert tensors_of(loss)


def test_settings_that_hindsight_alone_reads(tmp_path):
    by_method = {run.method: run.settings for run in expand(read_study(write_study(tmp_path, GOALS, seeds=1)))}
    assert "hindsight_share" not in by_method["clone-off"] and "hindsight_per" not in by_method["clone-off"]
    assert by_method["clone-future"]["hindsight_share"] == 0.8
    off = changed('variants.hindsight = ["off", "future"]', "")
    with pytest.raises(StudyError, match=r"sets 'hindsight_per', but only hindsight = 'future' or 'final' or 'random'"):
        expand(read_study(write_study(tmp_path / "off", off, seeds=1)))
    with pytest.raises(StudyError, match=r"hindsight_share must be above 0 and at most 1, got 1\.5"):
        read_study(
            write_study(tmp_path / "much", changed("[evaluation]", "hindsight_share = 1.5\n[evaluation]"), seeds=1)
        )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('task = "games/xor"', "the dataset goals is of a task without goals; leave hindsight out"),
        ('source = "omar:mpe/simple_spread/Expert"', "the dataset goals is of a task without goals"),
    ],
)
def test_data_without_goals_is_refused_before_anything_is_done(tmp_path, source, said):
    text = changed('task = "games/grid_goals"\nepisodes = 30\noptions.task_options = {{ max_steps = 8 }}', source)
    with pytest.raises(StudyError, match=said):
        quietly(write_study(tmp_path, text, seeds=1))
    assert not (tmp_path / "out").exists()


def test_a_study_of_an_earlier_version_goes_on(tmp_path):
    text = changed('hindsight_per = "agent"\nvariants.hindsight = ["off", "future"]', "")
    study = read_study(write_study(tmp_path, text, seeds=1))
    file = plan_study(study).save(_made(tmp_path / "out"))
    content = json.loads(file.read_text())
    runs = [run for population in content["populations"] for run in population["runs"]]
    for run in runs:
        del run["settings"]["hindsight"]
    file.write_text(json.dumps(content))
    assert Plan.load(tmp_path / "out").runs[0].settings.get("hindsight") is None
    plan_study(study)
    quietly(tmp_path / "study.toml", train=train_population)
    assert len(list((tmp_path / "out/jobs").glob("*/members/*/policy.pt"))) == len(runs)
    with pytest.raises(StudyError, match=r"with hindsight = 'off', .* says 'final'"):
        plan_study(read_study(write_study(tmp_path, text.replace("[evaluation]", 'hindsight = "final"\n[evaluation]'))))


def test_runs_with_hindsight_are_not_joined(tmp_path):
    text = changed('device = "cpu"', 'device = "cpu"\njoin_datasets = true\nnormalize_inputs = "off"')
    text += '\n[datasets.more]\ntask = "games/grid_goals"\nepisodes = 20\noptions.task_options = {{ max_steps = 8 }}\n'
    plan = plan_study(read_study(write_study(tmp_path, text, seeds=1)))
    datasets = {population.method: len(population.datasets) for population in plan.populations}
    assert datasets == {"clone-off": 2, "clone-future": 1} and len(plan.populations) == 3


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
