from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from study_toys import STUDY, write_study
from tensordict import TensorDict
from torch import nn

from torchrl_marl_offline import TaskSpec
from torchrl_marl_offline.algorithms import make_loss, members_settings
from torchrl_marl_offline.study import Plan, StudyError, plan_study, read_study
from torchrl_marl_offline.study.memory import OVERHEAD, Capacity, estimate_member, free_memory, made_up_batch
from torchrl_marl_offline.study.plan import pack, select
from torchrl_marl_offline.study.runs import expand

MIX = "[methods.mix]\nvariants.decomposition"


def plan_of(folder, **changes) -> Plan:
    study = read_study(write_study(folder))
    return plan_study(replace(study, settings=replace(study.settings, **changes)))


def test_populations_are_runs_that_differ_in_numbers_alone(tmp_path):
    plan = plan_of(tmp_path, members=64)
    assert [(p.name, len(p.runs)) for p in plan.populations] == [
        ("spread--mix-mixer--00", 6),
        ("spread--mix-vdn--00", 6),
        ("spread--cloning--00", 3),
    ]
    for population in plan.populations:
        for run in population.runs:
            differing = {name for name, value in run.settings.items() if population.runs[0].settings[name] != value}
            assert differing <= {*members_settings("recipe"), "lr"}
    assert plan.populations[0].updates == 6 * 40 and "temperature" not in plan.populations[0].settings


def test_a_grid_over_networks_makes_populations_of_their_own(tmp_path):
    study = read_study(write_study(tmp_path, STUDY + "svn = [true, false]\n", seeds=1))
    mix = [p for p in plan_study(study).populations if p.method == "mix-mixer"]
    assert [[run.settings["svn"] for run in p.runs] for p in mix] == [[True, True], [False, False]]
    assert {p.method for p in mix} == {"mix-mixer"}  # one method, whose best setting is looked for


@pytest.mark.parametrize(
    ("members", "capacity", "sizes"),
    [
        (64, None, [6, 6, 3]),
        (4, None, [3, 3, 3, 3, 3]),
        (64, 5, [3, 3, 3, 3, 3]),
        (2, 5, [2, 2, 2, 2, 2, 2, 1, 2]),
        (64, 0, [1] * 15),
    ],
)
def test_populations_are_of_even_size(tmp_path, members, capacity, sizes):
    runs = expand(read_study(write_study(tmp_path)))
    populations = pack(runs, members=members, capacity=None if capacity is None else lambda _: capacity)
    assert [len(p.runs) for p in populations] == sizes
    assert [run for p in populations for run in p.runs] == runs
    assert len({p.name for p in populations}) == len(populations)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = plan_of(tmp_path)
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    whole = json.loads((tmp_path / "plan.json").read_text())
    changes = [{"name": None}, {"name": 3}, {"datasets": None}, {"datasets": 3}, {"datasets": []}, {"populations": []}]
    for content in ({"name": 1}, [], *(whole | change for change in changes)):
        (tmp_path / "plan.json").write_text(json.dumps(content))
        with pytest.raises(StudyError, match="damaged or of another version; give the study another output"):
            Plan.load(tmp_path)
    assert Plan.load(tmp_path / "nowhere") is None


def test_a_study_that_grows_keeps_its_populations(tmp_path):
    first = plan_of(tmp_path, members=64)
    first.save(tmp_path / "out")
    assert plan_of(tmp_path, members=2) == first  # whatever memory there is now
    grown = plan_study(read_study(write_study(tmp_path, seeds=5)))
    assert grown.populations[:3] == first.populations
    new = [(p.name, [run.seed for run in p.runs]) for p in grown.populations[3:]]
    assert new == [
        ("spread--mix-mixer--01", [3, 4, 3, 4]),
        ("spread--mix-vdn--01", [3, 4, 3, 4]),
        ("spread--cloning--01", [3, 4]),
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 40", "steps = 41", r"with steps = 40, .*study.toml says 41; give the study another output"),
        ("temperature = [1, 3.0]", "temperature = [1]", "holds the run .*temperature=3.*, which .* does not name"),
        ("every = 10", "every = 5", "was started with EvaluationSettings.every=10.* says .*every=5"),
        ("episodes = 20", "episodes = 30", "was started with DatasetSource.* says"),
    ],
)
def test_a_study_that_was_changed_says_in_what(tmp_path, old, new, message):
    plan_of(tmp_path).save(tmp_path / "out")
    assert old in STUDY
    with pytest.raises(StudyError, match=message):
        plan_study(read_study(write_study(tmp_path, STUDY.replace(old, new))))


def test_a_part_of_a_plan(tmp_path):
    plan = plan_of(tmp_path, members=64)
    assert [p.method for p in select(plan, ["cloning"])] == ["cloning"]
    assert [p.method for p in select(plan, ["cloning", "mix-vdn", "spread"])] == ["mix-vdn", "cloning"]
    assert select(plan, []) == plan.populations
    with pytest.raises(StudyError, match="--only has an unknown key 'clonig'; did you mean 'cloning'"):
        select(plan, ["clonig"])


class Toy(nn.Module):
    """Keeps its input [B, 4] and its output [B, 8] for the backward, and no copy of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 8))
        self.register_buffer("target", torch.zeros(10))

    def forward(self, batch):
        return (batch["x"] @ self.weight).tanh().sum()


def test_what_a_member_takes_is_counted():
    found = estimate_member(Toy(), lambda rows: TensorDict({"x": torch.zeros(rows, 4)}, [rows]), 1000)
    assert (found.parameters, found.gradients, found.moments) == (128, 128, 256)
    assert (found.targets, found.activations) == (40, 1000 * (4 + 8) * 4)
    assert found.total == 128 + 128 + 256 + 40 + 48_000


@pytest.mark.parametrize("discrete", [False, True])
def test_the_line_through_two_small_batches_holds_for_a_large_one(discrete):
    spec = TaskSpec(3, 18, 54, 5, discrete=discrete, has_action_mask=discrete)
    loss = make_loss(spec, hidden=(32, 32), value_learning="sarsa", extraction="brac")

    def batch(rows):
        batch = made_up_batch(spec, rows)
        assert set(loss.in_keys) <= set(batch.keys(True, True))
        return batch

    near, far = (estimate_member(loss, lambda rows, f=f: batch(f * rows), 256 // f) for f in (1, 16))
    assert near.activations == pytest.approx(far.activations, rel=0.02)
    parameters = sum(p.numel() for p in loss.parameters() if p.requires_grad)
    assert near.parameters == 4 * parameters


def test_capacity_follows_the_budget(tmp_path):
    study = read_study(write_study(tmp_path))
    runs, sources = expand(study), {source.name: source for source in study.datasets}
    one = Capacity(0, sources)
    member = one.bytes_of(runs[0])
    assert member == OVERHEAD * one.member(runs[0]).total
    assert one(runs) == 1  # at least, whatever there is
    few, many = (Capacity(budget * member, sources)(runs) for budget in (100, 1000))
    assert many - few in (899, 900, 901)
    assert 0 < 100 - few < 100  # the data takes a part, too
    assert one.bytes_of(runs[-1]) < member  # cloning has no critic


def test_there_is_memory(monkeypatch):
    assert 2**28 < free_memory("cpu") < 2**50
    monkeypatch.setattr("torchrl_marl_offline.study.memory.Path.exists", lambda path: False)  # no /proc, as on macOS
    assert 2**28 < free_memory("cpu") < 2**50
    monkeypatch.delattr("os.sysconf")  # and as on Windows
    with pytest.raises(StudyError, match="say how much to use by --memory"):
        free_memory("cpu")


def with_memory(folder, **settings):
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    return expand(read_study(write_study(folder, STUDY.replace("hidden = [16]\n", "hidden = [16]\n" + lines))))


def test_runs_with_memory_take_slices(tmp_path):
    runs = with_memory(tmp_path / "a", memory="gru", memory_size=8)
    assert {(run.settings["slice_len"], run.settings["burn_in"]) for run in runs} == {(32, 8)}
    runs = with_memory(tmp_path / "b", memory="window:3", slice_len=16, burn_in=0)
    assert {(run.settings["slice_len"], run.settings["burn_in"]) for run in runs} == {(16, 0)}
    assert not any("memory_size" in run.settings for run in runs)
    assert not any("slice_len" in run.settings for run in expand(read_study(write_study(tmp_path / "c"))))
    with pytest.raises(StudyError, match="batch_size=32 is no multiple of slice_len=20"):
        with_memory(tmp_path / "d", memory="gru", slice_len=20)


def test_what_a_member_with_memory_takes_is_estimated():
    spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=2)
    found = [
        estimate_member(make_loss(spec, hidden=(8,), **options), lambda rows: made_up_batch(spec, rows), 64)
        for options in ({}, {"memory": "gru", "memory_size": 16})
    ]
    assert found[1].activations > found[0].activations
    assert found[1].parameters > found[0].parameters


def test_a_part_without_any_run_is_refused(tmp_path):
    text = STUDY + '[datasets.other]\ntask = "mpe/simple_spread"\nepisodes = 30\n'
    study = read_study(
        write_study(tmp_path, text.replace("[methods.cloning]", '[methods.cloning]\ndatasets = ["other"]'))
    )
    wanted = "--only cloning spread: cloning is not trained on spread; it is on other."
    with pytest.raises(StudyError, match=re.escape(wanted)):
        select(plan_study(study), ["cloning", "spread"])
    assert {p.method for p in select(plan_study(study), ["cloning", "other"])} == {"cloning"}


def test_near_values_of_a_grid_have_names_of_their_own(tmp_path):
    text = STUDY.replace("[1, 3.0]", "[0.03, 0.030000001]")
    runs = expand(read_study(write_study(tmp_path, text, seeds=1)))
    assert [run.name.split("--")[2] for run in runs[:2]] == ["temperature=0.03", "temperature=0.030000001"]


def test_a_name_that_no_folder_can_have_is_refused(tmp_path):
    text = STUDY.replace("[methods.cloning]", f"[methods.{'c' * 200}]")
    with pytest.raises(StudyError, match=r"has a name of 216 letters, .* at most 200 letters"):
        expand(read_study(write_study(tmp_path, text)))


@pytest.mark.parametrize(
    ("changed", "named"),
    [("transitions = 600", "transitions"), ("options.levels = { medium = 1.0, expert = 2.0 }", "options")],
)
def test_qualities_of_one_recording_with_other_settings_are_refused(tmp_path, changed, named):
    quality = '[datasets.{}]\ntask = "mpe/simple_spread"\nquality = "{}"\n'
    text = STUDY.replace("[grid]", f"{quality.format('a', 'random')}\n{quality.format('b', 'medium')}{changed}\n[grid]")
    wanted = rf"\[datasets.a\] and \[datasets.b\] are qualities of one recording .* differ in {named}; give one of them"
    with pytest.raises(StudyError, match=wanted):
        read_study(write_study(tmp_path, text.replace("{ medium", "{{ medium").replace("2.0 }", "2.0 }}")))
    text = text.replace(changed, "seed = 1")
    assert len(read_study(write_study(tmp_path, text)).datasets) == 3


def test_a_value_out_of_range_names_the_method(tmp_path):
    text = STUDY.replace("[methods.cloning]", '[methods.strict]\nalgorithm = "brac"\nalpha = -1\n\n[methods.cloning]')
    with pytest.raises(StudyError, match=r"\[methods.strict\] on spread: alpha must be at least 0, got -1"):
        expand(read_study(write_study(tmp_path, text)))
