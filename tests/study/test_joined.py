"""Datasets of the same sizes trained as one population: each run on its own data, equal to runs that are not joined."""

from __future__ import annotations

import numpy
import pytest
import torch
from study_toys import quietly, write_study

from torchrl_marl_offline import collect, from_arrays, make_env
from torchrl_marl_offline.core.layout import AGENT_MASK, MASK, next_key
from torchrl_marl_offline.envs import StitchController
from torchrl_marl_offline.study import StudyError, plan_study, read_results, read_study, training
from torchrl_marl_offline.study.study_report import write_study_report
from torchrl_marl_offline.study.training import train_population
from torchrl_marl_offline.training import load_policy

TEXT = """
[study]
name = "joined"
output = "{output}"
seeds = 2
steps = 25
batch_size = 16
hidden = [8]
lr = 1e-2
normalize_inputs = "off"
join_datasets = {joined}
on_impossible_values = "ignore"
compile = "off"
device = "cpu"
metric = "return"

[evaluation]
every = 25
episodes = 8

[methods.recipe]

[methods.cloning]
algorithm = "cloning"

[datasets.additive]
source = "additive"

[datasets.matching]
source = "matching"

[datasets.hunt]
source = "hunt"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("joined")
    for payoff in ("additive", "matching"):
        options = {"payoff": payoff, "actions": 3, "contexts": 2}
        env = make_env("games/stitch", num_envs=20, **options)
        policy = StitchController(env, "full" if payoff == "additive" else "star", seed=0)
        data = collect(env, policy, episodes=60, seed=0, metadata={"task_options": options})
        data.save(place / payoff)
    collect(make_env("games/stag_hunt", num_envs=4, seed=0), episodes=8, seed=0).save(place / "hunt")
    return place


def study_of(folder, joined: str):
    text = TEXT.replace("{joined}", joined)
    return write_study(folder, text, output=f"out-{joined}")


def test_the_plan_joins_what_has_the_same_sizes(folder) -> None:
    found = plan_study(read_study(study_of(folder, "true")))
    assert [(p.name, p.datasets, len(p.runs)) for p in found.populations] == [
        ("2-datasets--recipe--00", ("additive", "matching"), 4),
        ("2-datasets--cloning--00", ("additive", "matching"), 4),
        ("hunt--recipe--00", ("hunt",), 2),
        ("hunt--cloning--00", ("hunt",), 2),
    ]
    apart = plan_study(read_study(study_of(folder, "false")))
    assert len(apart.populations) == 6 and {run.name for run in apart.runs} == {run.name for run in found.runs}


def test_what_cannot_be_joined_is_planned_apart(folder, tmp_path) -> None:
    """Where nothing can be played, and where the bounds of actions are those of each dataset."""
    rng = numpy.random.default_rng(0)
    rows = {"observations": (40, 2, 3), "actions": (40, 2, 2), "rewards": (40,)}
    text = TEXT.partition("[datasets.additive]")[0].replace("{joined}", "true")
    for name in ("one", "two"):
        arrays = {key: rng.uniform(-1, 1, size=shape) for key, shape in rows.items()}
        from_arrays(**arrays, terminals=numpy.arange(40) % 10 == 9).save(tmp_path / name)
        text += f'[datasets.{name}]\nsource = "{name}"\n[datasets.{name}-bounded]\nsource = "omar:mpe/simple_spread/'
        text += ("Expert" if name == "one" else "Medium") + '"\noptions.bounds = "data"\n'
        text += f'[datasets.{name}-as-it-is]\nsource = "omar:mpe/simple_spread/'
        text += ("Expert" if name == "one" else "Medium") + '"\n'
    plan = plan_study(read_study(write_study(tmp_path, text)))
    joined = {population.datasets for population in plan.populations if len(population.datasets) > 1}
    assert joined == {("one-as-it-is", "two-as-it-is")}


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
def test_a_joined_run_is_the_run_that_is_not(folder) -> None:
    policies, returns = {}, {}
    for joined in ("true", "false"):
        quietly(study_of(folder, joined), train=train_population)
        output = folder / f"out-{joined}"
        frame = read_results(output)
        assert len(frame) == 12 and frame["finished"].all()
        for file in sorted(output.glob("jobs/*/members/*/policy.pt")):
            policies.setdefault(file.parent.name, []).append(load_policy(file).policy)
        returns[joined] = dict(zip(frame["run"], frame["return"]))
    assert len(policies) == 12
    for name, (one, other) in policies.items():
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)
    own = {name: value for name, value in returns["true"].items() if "additive" in name}
    assert own == pytest.approx({name: returns["false"][name] for name in own}, abs=0.5)
    html, _ = write_study_report(folder / "out-true")
    text = html.read_text()
    assert "matching" in text and "additive--recipe--seed=1" in text


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
@pytest.mark.parametrize("how", ["joined", "one run a population"])
def test_runs_of_other_seeds_play_other_episodes(folder, tmp_path, monkeypatch, how) -> None:
    """So an interval over seeds has the noise of both; runs of one seed are compared on the same episodes."""
    played: set[int] = set()
    for name in ("evaluate", "evaluate_population"):
        original = getattr(training, name)

        def heard(*arguments, original=original, **options):
            played.add(options["seed"])
            return original(*arguments, **options)

        monkeypatch.setattr(training, name, heard)
    text = TEXT.partition("[methods.cloning]")[0] + TEXT[TEXT.index("[datasets.additive]") :]
    if how != "joined":
        text = text.replace("join_datasets = {joined}", "members = 1")
    quietly(write_study(folder, text.replace("{joined}", "true"), output=str(tmp_path / "out")), train=train_population)
    assert sorted(played) == [1000, 1_001_003]


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
def test_what_does_not_count_does_not_count_in_a_joined_run(tmp_path) -> None:
    """Rows, dead agents and next actions that were never recorded, each in one of the datasets alone."""
    for number, name in enumerate(("additive", "matching")):  # whose episodes end by a time limit
        data = collect(make_env("games/grid_navigation", num_envs=4, seed=number), episodes=8, seed=number)
        if name == "matching":
            data.data[MASK][::3] = False
            alive = torch.arange(len(data)).unsqueeze(-1) % 4 != torch.arange(data.spec.n_agents)
            data.data[AGENT_MASK], data.data[next_key(AGENT_MASK)] = alive, torch.ones_like(alive)
            data.data[AGENT_MASK] |= ~data.data[MASK].unsqueeze(-1)
        data.save(tmp_path / name)
    text = TEXT.partition("[datasets.hunt]")[0].replace("seeds = 2\nsteps = 25", "seeds = 1\nsteps = 6")
    text = text.replace("every = 25", "every = 6").replace("episodes = 8", "episodes = 2")
    methods = '[methods.recipe]\nvalue_learning = "sarsa"\n[methods.spacql]\nalgorithm = "spacql"\nnum_heads = 2\n'
    text = text.replace("[methods.recipe]\n", methods + 'decomposition = "vdn"\n')
    policies = {}
    for joined in ("true", "false"):
        file = write_study(tmp_path, text.replace("{joined}", joined), output=f"out-{joined}")
        quietly(file, train=train_population)
        for policy in sorted((tmp_path / f"out-{joined}").glob("jobs/*/members/*/policy.pt")):
            policies.setdefault(policy.parent.name, []).append(load_policy(policy).policy)
    assert len(policies) == 6
    for name, (one, other) in policies.items():
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def test_choices_by_estimates_are_not_joined(folder) -> None:
    file = study_of(folder, "true")
    file.write_text(file.read_text().replace('metric = "return"', 'metric = "return"\nselect = "fqe"'))
    with pytest.raises(StudyError, match="join_datasets"):
        read_study(file)


@pytest.mark.filterwarnings("ignore::torchrl_marl_offline.data.DatasetWarning")
def test_bounds_of_values_may_be_each_datasets_own(tmp_path) -> None:
    """B3C's, which is the largest return in the data: each run has its own, and is the run that is not joined."""
    methods = '[methods.b3c]\nalgorithm = "b3c"\non.one.max_next_value = 0.5\non.two.max_next_value = 80.0\n'
    one = '[datasets.one]\ntask = "mpe/simple_spread"\nepisodes = 8\n'
    policies = {}
    for joined in ("true", "false"):
        text = TEXT.partition("[methods.recipe]")[0].replace("{joined}", joined) + methods + one
        file = write_study(tmp_path, text + one.replace("one", "two") + "seed = 1\n", output=f"out-{joined}")
        sizes = [len(population.runs) for population in plan_study(read_study(file)).populations]
        assert sizes == ([4] if joined == "true" else [2, 2])
        quietly(file, train=train_population)
        for policy in sorted((tmp_path / f"out-{joined}").glob("jobs/*/members/*/policy.pt")):
            policies.setdefault(policy.parent.name, []).append(load_policy(policy).policy)
    assert len(policies) == 4
    for name, (ours, apart) in policies.items():
        for a, b in zip(ours.parameters(), apart.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)
