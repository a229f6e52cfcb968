"""Every study file of examples/studies: planned without data, its runs counted, its settings those of its source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torchrl_marl_offline import TaskSpec, list_datasets, make_loss
from torchrl_marl_offline.algorithms import members_settings
from torchrl_marl_offline.envs import list_tasks
from torchrl_marl_offline.recording.graded import QUALITIES, UNTRAINED
from torchrl_marl_offline.study import Study, plan_study, read_study
from torchrl_marl_offline.study.axes import factorial
from torchrl_marl_offline.study.scores import RunScore
from torchrl_marl_offline.suites import suite_of

FILES = sorted((Path(__file__).parents[2] / "examples/studies").glob("*.toml"))

MADE = {"cn-2-medium.h5", "cn-2-expert.h5", *(entry.name for entry in suite_of("coordination").entries)}
"""Names of files and folders that a study's opening tells how to get."""


def read(name: str) -> Study:
    return read_study(next(file for file in FILES if file.stem == name))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_has_as_many_runs_as_it_says(file):
    (said,) = re.findall(r"^# Runs: .* = ([\d,]+)$", file.read_text(), flags=re.MULTILINE)
    study = read_study(file)
    plan = plan_study(study)
    assert len(plan.runs) == int(said.replace(",", ""))
    used = {run.dataset for run in plan.runs}
    assert used == {source.name for source in study.datasets}
    for source in study.datasets:
        is_recording = source.source is not None and Path(source.source).name in MADE
        known = source.source in list_datasets() if source.task is None else source.task in list_tasks()
        assert known or is_recording
        assert source.quality in (None, *QUALITIES, UNTRAINED)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_losses_can_be_built(file):
    shapes = {}
    for run in plan_study(read_study(file)).runs:
        discrete = any(
            word in run.dataset
            for word in ("3m", "2s3z", "5_vs_5", "5m", "2c", "6h", "corridor", "cn-2", "stitch", "foraging")
        )
        small = {name: [4] if name == "hidden" else value for name, value in run.loss_settings.items()}
        differing = members_settings(run.settings["algorithm"])
        shape = {name: value for name, value in small.items() if name not in differing}
        shapes[str((discrete, sorted(shape.items())))] = (discrete, small)
    for discrete, settings in shapes.values():
        spec = TaskSpec(2, 3, 6, 2, discrete=discrete, has_action_mask=discrete)
        make_loss(spec, **settings)


@pytest.mark.parametrize("name", [file.stem for file in FILES if file.stem.startswith("recipe_fig7")])
def test_the_studies_of_which_choice_matters_are_complete_designs(name):
    runs = plan_study(read(name)).runs
    found = factorial([RunScore(run, "mode", float(i), 0.0, 0.0, False) for i, run in enumerate(runs)])
    assert {"decomposition", "value_learning", "extraction", "strength"} <= set(found.axes)
    assert found.scores.size == len(runs) and found.along == {"svn": "decomposition"}


def weights_of(name: str, method: str) -> dict[str, tuple[float, float]]:
    plan = plan_study(read(name))
    return {
        run.dataset: (run.settings["rectification"], run.settings["min_q_weight"])
        for run in plan.runs
        if run.method == method
    }


def test_omars_weights_are_those_of_its_released_code():
    found = weights_of("omar_table1", "omar")
    rows = {
        "spread": [(1, 0.5), (1, 1), (1, 5), (1, 5)],
        "tag": [(0.9, 0.5), (0.9, 0.5), (0.7, 5), (0.9, 5)],
        "world": [(1, 0.5), (0.7, 1), (0.1, 0.5), (0.9, 5)],
    }
    assert found == {f"{task}-{q}": pair for task, pairs in rows.items() for q, pair in zip(QUALITIES, pairs)}
    assert list(weights_of("omar_table3", "omar").values()) == [(1, 1), (0.9, 5), (0.7, 1), (0.5, 5)]
    for name in ("omar_table8", "systems_spread"):
        assert list(weights_of(name, "omar").values()) == rows["spread"]


def test_the_networks_and_batches_are_omars():
    for name in ("omar_table1", "omar_table2", "omar_table8", "omar_fig4", "omar_fig5", "omar_fig10"):
        for run in plan_study(read(name)).runs:
            own = {key: run.settings[key] for key in ("hidden", "batch_size", "lr", "tau", "gamma")}
            assert own == {"hidden": [64, 64], "batch_size": 1024, "lr": 0.01, "tau": 0.01, "gamma": 0.95}, name
            wanted = "centralized" if name == "omar_table8" else "independent"
            assert run.settings["decomposition"] == wanted, (name, run.method)


def test_only_b3c_is_clipped_and_by_each_datasets_own_bound():
    bounds = {}
    for run in plan_study(read("systems_spread")).runs:
        if run.method == "b3c":
            bounds[run.dataset] = run.settings["max_next_value"]
        else:
            assert run.settings.get("max_next_value") is None
    assert len(set(bounds.values())) == 4


def test_figure_10_takes_shares_of_one_recording():
    sources = read("omar_fig10").datasets
    assert [source.fraction for source in sources] == [0.001, 0.01, 0.1, 0.2, 0.5, 1.0]
    assert len({(source.task, source.quality, source.seed, str(source.options)) for source in sources}) == 1


def test_the_samplers_of_table_2_and_the_settings_of_figure_5():
    assert [p.settings["sampler"] for p in plan_study(read("omar_table2")).populations[:3]] == [
        "random",
        "cem",
        "softmax",
    ]
    published = {"iterations": 3, "samples": 10, "sampler_loc": 0.0, "sampler_scale": 2.0}
    for run in plan_study(read("omar_fig5")).runs:
        differing = {key for key, value in published.items() if run.settings[key] != value}
        own = {"mean": "sampler_loc", "deviation": "sampler_scale"}
        name = run.method.partition("-")[0]
        assert differing <= {own.get(name, name)}


def test_the_gaussian_of_omars_search_can_be_set():
    loss = make_loss(TaskSpec(2, 3, 6, 2), algorithm="omar", hidden=[4], sampler_loc=-0.5, sampler_scale=0.3)
    assert (loss.extraction.sampler.loc, loss.extraction.sampler.scale) == (-0.5, 0.3)
    default = make_loss(TaskSpec(2, 3, 6, 2), algorithm="omar", hidden=[4], sampler="cem")
    assert (default.extraction.sampler.loc, default.extraction.sampler.scale) == (0.0, 2.0)
    make_loss(TaskSpec(2, 3, 6, 2), algorithm="omar", hidden=[4], sampler="random")
