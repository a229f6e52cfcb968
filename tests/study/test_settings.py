from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from study_toys import STUDY, write_study

from torchrl_marl_offline import list_datasets
from torchrl_marl_offline.algorithms import Recipe, settings_of
from torchrl_marl_offline.core.annotations import parameters_of
from torchrl_marl_offline.core.relevance import conditions_of
from torchrl_marl_offline.study import Machine, StudyError, read_study, with_recordings
from torchrl_marl_offline.study.runner import make_plan
from torchrl_marl_offline.study.runs import expand
from torchrl_marl_offline.study.settings import EvaluationSettings, StudySettings, run_hints
from torchrl_marl_offline.study.sources import DatasetSource, read_source

SHIPPED = Path(__file__).parents[2] / "examples/studies"
SMALL = """
[study]
{study}
[methods.mix]
{mix}
[datasets.spread]
{spread}
{more}
"""


def small(folder: Path, *, study: str = "", mix: str = "", spread: str = 'task = "mpe/simple_spread"', more: str = ""):
    return read_study(write_text(folder, SMALL.format(study=study, mix=mix, spread=spread, more=more)))


def write_text(folder: Path, text: str) -> Path:
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


def test_defaults_are_the_papers(tmp_path):
    study = small(tmp_path)
    (first, *_) = runs = expand(study)
    assert [run.seed for run in runs] == [0, 1, 2, 3, 4]
    training = {"steps": 500_000, "batch_size": 640, "lr": 3e-4, "tau": 0.005, "actor_every": 1}
    training |= {"clip_grad_norm": 0.0, "precision": "fp32", "normalize_inputs": "auto"}
    training |= {"critic_first": 0, "lr_schedule": "constant", "hindsight": "off"}
    loss = {name: list(value) if isinstance(value, tuple) else value for name, value in settings_of("recipe").items()}
    for name in ("alpha", "memory_size", "slice_len", "burn_in"):  # which only BRAC and networks with memory read
        del loss[name]
    assert first.settings == {"algorithm": "recipe", **training, **loss}
    assert (study.evaluation.every, study.evaluation.episodes, study.evaluation.modes) == (50_000, 10, ("mode",))
    assert study.settings.name == "study" and study.settings.output == tmp_path / "runs/study"


def test_the_product_is_expanded_to_runs_with_names(tmp_path):
    runs = expand(read_study(write_study(tmp_path)))
    assert len(runs) == 2 * 2 * 3 + 3  # two decompositions, two temperatures, three seeds; cloning has no temperature
    assert [run.name for run in runs[::3]] == [
        "spread--mix-mixer--temperature=1--seed=0",
        "spread--mix-mixer--temperature=3--seed=0",
        "spread--mix-vdn--temperature=1--seed=0",
        "spread--mix-vdn--temperature=3--seed=0",
        "spread--cloning--seed=0",
    ]
    assert runs[3].grid == {"temperature": 3.0} and runs[3].settings["temperature"] == 3.0
    assert runs[-1].method == "cloning" and runs[-1].seed == 2 and "temperature" not in runs[-1].settings


def test_the_nearer_setting_wins(tmp_path):
    study = small(
        tmp_path,
        study="steps = 10\ngamma = 0.5\nlr = 1\nseeds = [7]",
        mix="lr = 3",
        spread='task = "mpe/simple_spread"\nsettings = { steps = 20, lr = 2, gamma = 0.6 }',
        more="[grid]\nlr = [8, 9]\nexpectile = [0.7, 0.9]",
    )
    found = [(run.settings["lr"], run.settings["expectile"], run.seed) for run in expand(study)]
    assert found == [(3.0, 0.7, 7), (3.0, 0.9, 7)]  # the method's own value keeps the common grid out
    assert expand(study)[0].settings["steps"] == 20 and expand(study)[0].settings["gamma"] == 0.6


READ_ONLY_WITH = {
    name: (conditions_of(hint)[0].other, conditions_of(hint)[0].values)
    for name, (hint, _) in parameters_of(Recipe).items()
    if name in ("temperature", "weights", "advantage", "online_advantage", "alpha", "expectile", "frozen")
}


@pytest.mark.parametrize("setting", READ_ONLY_WITH)
def test_a_setting_that_changes_nothing_makes_no_runs(tmp_path, setting):
    """The settings said to be read only with another are settings, of methods that exist."""
    other, wanted = READ_ONLY_WITH[setting]
    elsewhere = {"extraction": "brac", "value_learning": "td", "decomposition": "vdn"}[other]
    if setting == "alpha":
        elsewhere = "awr"
    words = {"advantage": '["joint", "local"]', "weights": '["bounded", "clipped"]'}
    words |= {"frozen": "[true, false]", "online_advantage": "[true, false]"}
    values = words.get(setting, "[0.5, 0.6]")
    more = f"[grid]\n{setting} = {values}"
    for value in wanted:
        assert len(expand(small(tmp_path, study="seeds = 1", mix=f'{other} = "{value}"', more=more))) == 2
    alone = {"study": "seeds = 1", "mix": f'{other} = "{elsewhere}"'}
    beside = f'[methods.reader]\n{other} = "{wanted[0]}"\n{more}'
    assert [run.method for run in expand(small(tmp_path, **alone, more=beside))] == ["mix", "reader", "reader"]
    with pytest.raises(StudyError, match=rf"\[grid\] {setting} is read by no method as they are set; leave it out"):
        expand(small(tmp_path, **alone, more=more))
    alone["study"] += f"\n{setting} = {json.loads(values)[-1]!r}".replace("False", "false")
    with pytest.raises(StudyError, match=rf"\[study\] {setting} is read by no method as they are set; leave it out"):
        expand(small(tmp_path, **alone))
    own = f'{other} = "{elsewhere}"\ngrid.{setting} = {values}'
    named = " or ".join(map(repr, wanted))
    with pytest.raises(StudyError, match=f"sets '{setting}', but only {other} = {named} reads it; leave it out"):
        expand(small(tmp_path, mix=own))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"study": "step = 3"}, r"\[study\] has an unknown key 'step'; did you mean 'steps'\?"),
        ({"mix": "temprature = 3"}, r"\[methods.mix\] has an unknown key 'temprature'; did you mean 'temperature'\?"),
        ({"mix": "grid.expectil = [1]"}, r"\[methods.mix.grid\] .* unknown key 'expectil'; did you mean 'expectile'"),
        ({"more": "[evaluation]\nevry = 3"}, r"\[evaluation\] has an unknown key 'evry'; did you mean 'every'\?"),
        ({"more": "[grids]\nlr = [1]"}, r"study.toml has an unknown key 'grids'; did you mean 'grid'\?"),
        ({"spread": "sorce = 'x'"}, r"\[datasets.spread\] has an unknown key 'sorce'; did you mean 'source'\?"),
        ({"spread": "task = 'a/b'\nsettings.stepps = 1"}, "'stepps'; did you mean 'steps'"),
        ({"mix": "xyzzy = 3"}, r"'xyzzy'; it knows algorithm, steps"),
        ({"mix": 'decomposition = "mixre"'}, r"decomposition must be 'centralized', 'mixer', .*, got 'mixre'\."),
        ({"mix": 'algorithm = "cloning"\nexpectile = 0.9'}, "sets 'expectile', but cloning has none; leave it out"),
        (
            {"mix": 'algorithm = "cloning"\ncritic_first = 3'},
            "sets 'critic_first', but cloning has no critic; leave it",
        ),
        (
            {"mix": 'algorithm = "cloning"\ngrid.critic_first = [0, 3]'},
            "sets 'critic_first', but cloning has no critic",
        ),
        ({"study": "steps = 3.5"}, r"\[study\] steps must be a whole number, got 3\.5\."),
        ({"study": "steps = true"}, r"\[study\] steps must be a whole number, got True\."),
        ({"study": "lr = -1"}, r"\[study\] lr must be above 0, got -1\.0\."),
        ({"study": "seeds = 0"}, r"\[study\] seeds must be at least 1, got 0\."),
        ({"more": "[grid]\nlr = 3"}, r"\[grid\] lr must be a list of values, got 3\."),
        ({"more": "[grid]\nlr = [1, 1.0]"}, r"\[grid\] lr has 1\.0 twice; leave one out\."),
        ({"mix": "lr = 3\ngrid.lr = [1]"}, r"\[methods.mix\] gives 'lr' twice; leave one of them out\."),
        ({"mix": "on.spread.lr = 3\ngrid.lr = [1]"}, r"\[methods.mix\] gives 'lr' twice; leave one of them out\."),
        ({"mix": "on.spread.lr = 3\nvariants.lr = [1]"}, r"\[methods.mix\] gives 'lr' twice"),
        ({"mix": "variants.lr = [1]\ngrid.lr = [1]"}, r"\[methods.mix\] gives 'lr' twice"),
        ({"mix": "on.spraed.lr = 3"}, r"\[methods.mix.on\] has an unknown key 'spraed'; did you mean 'spread'\?"),
        ({"mix": "on.spread.lrr = 3"}, r"\[methods.mix.on.spread\] has an unknown key 'lrr'; did you mean 'lr'\?"),
        ({"mix": "on = 3"}, r"methods.mix.on must be a table, \[methods.mix.on\], got 3\."),
        (
            {"mix": "on.spread.alpha = 3"},
            r"sets 'alpha', but only extraction = 'brac' or 'weighted_brac' reads it; leave it out",
        ),
        ({"more": '[evaluation]\nmodes = ["best"]'}, r"modes must be one of mode, sample, got 'best'\."),
        ({"spread": ""}, r"\[datasets.spread\] needs either a source to load or a task to record\."),
        ({"spread": "source = 'x'\nepisodes = 3"}, "episodes belongs to data that is recorded"),
        ({"spread": "task = 'x'\nrepair = true"}, "repair belongs to a source"),
        (
            {"spread": "task = 'x'\noptions = {learner = {}}"},
            "scripted policies play, who have no learner; only task_opt",
        ),
        ({"study": "seeds = [1, 1]"}, "seeds has 1 twice; leave one out"),
    ],
)
def test_errors_name_the_key_and_the_nearest(tmp_path, parts, message):
    with pytest.raises(StudyError, match=message) as raised:
        expand(small(tmp_path, **parts))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[study", "is no TOML"),
        ("[study]\nseeds = 1", r"has no method; add a table such as \[methods.recipe\]"),
        ("[methods.mix]\n", r"has no dataset; add a table such as \[datasets.spread\]"),
        ("study = 3", r"study must be a table, \[study\], got 3"),
        ("[methods]\nmix = 3", r"methods.mix must be a table, \[methods.mix\], got 3"),
        ("datasets = 3\n[methods.mix]", "datasets must be tables"),
    ],
)
def test_a_file_that_is_no_study(tmp_path, text, message):
    with pytest.raises(StudyError, match=message):
        read_study(write_text(tmp_path, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(StudyError, match=r"cannot be read .*; name another"):
        read_study(tmp_path / "nowhere.toml")


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "recorded").mkdir()
    sources = ["pymarl:../a.h5", "recorded", "/abs/b", "omar:mpe/simple_spread/Expert", "minari:mujoco/ant/expert-v0"]
    text = f"datasets = {sources}\n[study]\noutput = '../out'\n[methods.mix]\n"
    study = read_study(write_text(tmp_path, text))
    assert study.settings.output == tmp_path.parent / "out"
    assert [source.source for source in study.datasets] == [
        f"pymarl:{tmp_path.parent / 'a.h5'}",
        str(tmp_path / "recorded"),
        "/abs/b",
        *sources[3:],
    ]
    names = [source.name for source in study.datasets]
    assert names == ["a", "recorded", "b", "mpe-simple_spread-Expert", "expert-v0"]


def test_a_methods_settings_on_a_dataset_win_over_all(tmp_path):
    study = small(
        tmp_path,
        study="gamma = 0.5\nseeds = 1\nlr = 1",
        mix="gamma = 0.7\non.spread = { gamma = 0.8, min_q_weight = 3 }",
        spread='task = "mpe/simple_spread"\nsettings = { gamma = 0.6, lr = 2 }',
        more='[datasets.other]\ntask = "mpe/simple_spread"\n[methods.cql]\nalgorithm = "cql"\n[grid]\ngamma = [0.1]',
    )
    mix = study.methods[0]
    assert mix.on == {"spread": {"gamma": 0.8, "min_q_weight": 3.0}}
    with pytest.raises(StudyError, match=r"\[methods.mix\] sets 'min_q_weight', but recipe has none; leave it out"):
        expand(study)
    study = replace(study, methods=(replace(mix, on={"spread": {"gamma": 0.8}}), study.methods[1]))
    found = [(run.dataset, run.method, run.settings["gamma"], run.settings["lr"]) for run in expand(study)]
    assert found == [
        ("spread", "mix", 0.8, 2.0),
        ("spread", "cql", 0.1, 2.0),
        ("other", "mix", 0.7, 1.0),
        ("other", "cql", 0.1, 1.0),
    ]


def test_a_method_is_trained_on_the_datasets_that_it_names(tmp_path):
    other = '[datasets.other]\ntask = "mpe/simple_spread"\n[methods.cql]\nalgorithm = "cql"\ndatasets = ["other"]'
    study = small(tmp_path, study="seeds = 1", mix='variants.decomposition = ["mixer", "vdn"]', more=other)
    assert [method.datasets for method in study.methods] == [None, ("other",)]
    found = [(run.dataset, run.method) for run in expand(study)]
    both = [("mix-mixer"), ("mix-vdn")]
    assert found == [*(("spread", name) for name in both), *(("other", name) for name in both), ("other", "cql")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ('["spraed"]', r"\[methods.mix\] datasets has an unknown dataset 'spraed'; did you mean 'spread'\?"),
        ('["nope"]', r"\[methods.mix\] datasets has an unknown dataset 'nope'; it knows spread, other\."),
        ("[]", r"\[methods.mix\] datasets must be a list with at least one value, got \[\]\."),
        ('["spread", "spread"]', r"\[methods.mix\] datasets has 'spread' twice; leave one out\."),
        ('"spread"', r"datasets must be a list"),
        ("[3]", r"datasets"),
        ('["other"]', r"leaves 'spread' out, which \[methods.mix.on\] has settings for; drop one\."),
        ('["spread"]', r"No method is trained on \[datasets.other\]; name it in a method's datasets, or drop it\."),
    ],
)
def test_datasets_of_a_method_that_cannot_be(tmp_path, names, message):
    with pytest.raises(StudyError, match=message):
        small(
            tmp_path,
            mix=f"datasets = {names}\non.spread.lr = 1",
            more='[datasets.other]\ntask = "mpe/simple_spread"',
        )


@pytest.mark.parametrize("name", ("max_next_value", "sampler_loc"))
def test_a_number_below_0_where_it_means_something(tmp_path, name):
    study = small(tmp_path, study="seeds = 1", mix=f'algorithm = "omar"\ngrid.{name} = [-4, 2.5]')
    assert [run.settings[name] for run in expand(study)] == [-4.0, 2.5]


def test_a_share_of_the_episodes(tmp_path):
    text = 'task = "mpe/simple_spread"\nepisodes = 8\nfraction = {}\nseed = 3'
    (whole,), (half,), (few,) = (small(tmp_path, spread=text.format(f)).datasets for f in (1.0, 0.5, 0.01))
    assert half.facts()[1] == 4 * 25 and few.facts()[1] == 2
    found = [source.load(tmp_path / "data") for source in (whole, half, few)]
    assert [dataset.n_episodes for dataset in found] == [8, 4, 1]
    rows = [dataset.data["agents", "observation"][:, 0].flatten(1) for dataset in found]
    for smaller, larger in ((rows[2], rows[1]), (rows[1], rows[0])):
        assert all((row == larger).all(-1).any() for row in smaller)
    for share in ("0", "1.5"):
        with pytest.raises(StudyError, match=r"fraction must be above 0 and at most 1, got"):
            small(tmp_path, spread=text.format(share))
    with pytest.raises(StudyError, match="fraction must be above 0 and at most 1"):
        small(tmp_path, spread=text.format("-0.5"))


def test_two_datasets_of_one_name(tmp_path):
    with pytest.raises(StudyError, match="Two datasets are named 'b'; give one of them another name"):
        read_study(write_text(tmp_path, "datasets = ['a/b', 'c/b']\n[methods.mix]"))


def test_the_papers_figure_7_has_16384_runs():
    study = read_study(SHIPPED / "recipe_fig7.toml")
    runs = expand(study)
    counts = {rule: sum(run.settings["value_learning"] == rule for run in runs) for rule in ("td", "sarsa", "iql")}
    assert counts == {"td": 4096, "sarsa": 4096, "iql": 8192}  # appendix C.3
    assert len({run.method for run in runs}) == 24 and len({run.dataset for run in runs}) == 16
    assert {run.settings["svn"] for run in runs if run.settings["decomposition"] != "mixer"} == {False}
    assert {source.source for source in study.datasets} <= set(list_datasets())


def test_the_toys_are_a_study_that_can_be_read(tmp_path):
    assert "[grid]" in STUDY and read_study(write_study(tmp_path)).settings.members == 4


PUBLISHED = """
[study]
output = "out"
[methods.mix]
decomposition = "mixer"
[datasets.spread]
source = "omar:mpe/simple_spread/Medium-Replay"
fraction = 0.5
settings = {{ steps = 7 }}
[datasets.hopper]
source = "omiga:mamujoco/3hopper/Medium-Expert"
[datasets.marines]
source = "og_marl:smac_v1/3m/Good"
[datasets.good]
source = "og_marl:mamujoco/2halfcheetah/Good"
[datasets.own]
task = "mpe/simple_tag"
seed = 4
"""


def test_published_sets_give_way_to_recordings(tmp_path):
    study = read_study(write_study(tmp_path, PUBLISHED))
    recorded, left_out = with_recordings(study)
    assert left_out == ("marines", "good")
    spread, hopper, own = recorded.datasets
    assert (spread.task, spread.quality, spread.source) == ("mpe/simple_spread", "medium-replay", None)
    assert (spread.name, spread.fraction, spread.settings) == ("spread", 0.5, {"steps": 7})
    assert (hopper.task, hopper.quality) == ("mamujoco/3hopper", "medium-expert")
    assert own == study.datasets[4]
    assert recorded.settings.output == tmp_path / "out-recorded"
    assert {run.dataset for run in expand(recorded)} == {"spread", "hopper", "own"}


def test_a_coverage_is_a_quality_of_its_game(tmp_path):
    source = read_source("d", {"task": "games/stitch", "quality": "two_teams", "transitions": 300}, tmp_path)
    assert source.load(tmp_path).metadata["quality"] == "two_teams"


def test_no_recording_of_any_task(tmp_path):
    text = PUBLISHED[: PUBLISHED.index("[datasets.spread]")] + PUBLISHED[PUBLISHED.index("[datasets.marines]") :]
    study = read_study(write_study(tmp_path, text[: text.index("[datasets.own]")]))
    with pytest.raises(StudyError, match="None of the tasks"):
        with_recordings(study)


OF_EVERY_TYPE = ('"a word"', '""', "3", "-1", "0.5", "nan", "true", "[1]", '["a"]', "[]", "{a = 1}", "1979-05-27")


@pytest.mark.parametrize("table", ["study", "mix", "spread", "evaluation"])
def test_a_value_of_any_type_is_taken_or_ends_in_a_sentence(tmp_path, table):
    kinds = {"study": StudySettings, "evaluation": EvaluationSettings, "spread": DatasetSource}
    keys = [*(parameters_of(kinds[table]) if table in kinds else ())]
    keys += [*run_hints(), "variants", "grid", "on"] if table == "mix" else []
    for key in keys:
        for value in OF_EVERY_TYPE:
            text = f"{key} = {value}"
            given = {"more": f"[evaluation]\n{text}"} if table == "evaluation" else {table: text}
            if table == "spread":
                given["spread"] = text if key in ("task", "source") else f'task = "mpe/simple_spread"\n{text}'
            try:
                expand(small(tmp_path, **given))
            except StudyError as error:
                assert "something else" not in str(error) and "\n" not in str(error), text


@pytest.mark.parametrize("value", ["3", '"a"', "[1]", "{a = 1}", "1979-05-27"])
@pytest.mark.parametrize("key", ["study", "evaluation", "methods", "datasets", "grid", "another"])
def test_a_table_of_any_type_is_taken_or_ends_in_a_sentence(tmp_path, key, value):
    file = write_text(tmp_path, f"{key} = {value}\n")
    with pytest.raises(StudyError):
        read_study(file)


@pytest.mark.parametrize("name", ["", ".", "..", "../../zz", "/tmp/zz", "a/b"])
def test_a_name_makes_no_folder_outside(tmp_path, name):
    with pytest.raises(StudyError, match=r"Without an output the \[study\] name becomes the name of a folder"):
        small(tmp_path, study=f'name = "{name}"')
    assert small(tmp_path, study=f'name = "{name}"\noutput = "out"').settings.output == tmp_path / "out"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"study": "seeds = [1, 2, 1]"}, r"\[study\] seeds has 1 twice; leave one out"),
        ({"more": '[evaluation]\nmodes = ["mode", "mode"]'}, r"\[evaluation\] modes has 'mode' twice"),
        ({"spread": "source = 5"}, r"source must be a string, got 5"),
        ({"study": "output = [1]"}, r"\[study\] output must be a path, got \[1\]"),
        ({"study": "steps = 5\nactor_every = 100"}, r"actor_every must be at most steps \(5\), got 100"),
        ({"study": "steps = 5\ncritic_first = 5"}, r"critic_first must be below steps \(5\), got 5"),
    ],
)
def test_what_means_nothing_is_said_in_a_sentence(tmp_path, given, sentence):
    with pytest.raises(StudyError, match=sentence):
        expand(small(tmp_path, **given))


def test_scripted_policies_play_with_the_options_of_the_task(tmp_path):
    table = {"task": "games/recall", "episodes": 4, "options": {"task_options": {"delay": 2, "cues": 3}}}
    source = read_source("near", table, tmp_path)
    spec, rows = source.facts()
    data = source.load(tmp_path / "data")
    assert (data.spec, len(data)) == (spec, rows) and spec.action_size == 3 and rows == 12
    with pytest.raises(ValueError, match="games/recall has no option 'sight'"):
        read_source("x", {"task": "games/recall", "options": {"task_options": {"sight": 2}}}, tmp_path).facts()


@pytest.mark.parametrize(
    ("table", "evaluation", "words"),
    [
        ('quality = "medium"\nepisodes = 20', "", r"\[datasets.d\] episodes belongs to scripted policies"),
        ("transitions = 300", "", r"\[datasets.d\] transitions belongs to a quality"),
        ("", "held_out = 0.2", r"\[evaluation\] held_out belongs to datasets without a simulator"),
        ("", 'held_out = 0.2\n[search]\nby = "fqe"', r"\[evaluation\] held_out belongs to runs that are not"),
    ],
    ids=["episodes of a quality", "transitions of scripts", "a simulator", "estimates"],
)
def test_keys_that_nothing_reads_are_refused(tmp_path, table, evaluation, words) -> None:
    file = tmp_path / "study.toml"
    ranges = "[ranges]\ngamma = [0.9, 0.95]\n" if "search" in evaluation else ""
    file.write_text(
        f'[study]\nname = "s"\nsteps = 10\n[evaluation]\n{evaluation}\n{ranges}[methods.recipe]\n'
        f'[datasets.d]\ntask = "mpe/simple_spread"\n{table}\n'
    )
    with pytest.raises(StudyError, match=words):
        read_study(file)


def test_a_datasets_settings_that_none_of_its_methods_reads(tmp_path) -> None:
    spread = 'task = "mpe/simple_spread"\nsettings = { alpha = 3.0 }'
    beside = '[methods.reader]\nalgorithm = "brac"\ndatasets = ["other"]\n[datasets.other]\ntask = "mpe/simple_tag"'
    with pytest.raises(StudyError, match=r"\[datasets.spread\] settings: alpha is read by no method as they are set"):
        expand(small(tmp_path, spread=spread, more=beside))
    assert expand(small(tmp_path, spread=spread, more=beside.replace('datasets = ["other"]\n', "")))


@pytest.mark.parametrize("name", ["tau = 0.1", "critic_first = 2"])
def test_what_a_critic_reads_is_refused_without_one(tmp_path, name) -> None:
    with pytest.raises(StudyError, match=f"sets '{name.split()[0]}', but cloning has no critic; leave it out"):
        expand(small(tmp_path, mix=f'algorithm = "cloning"\n{name}'))
    with pytest.raises(StudyError, match=rf"\[study\] {name.split()[0]} is read by no method"):
        expand(small(tmp_path, study=name, mix='algorithm = "cloning"'))


@pytest.mark.parametrize("key", ["scale = 0.3", "noise = 0.3", "num_random = 3", "sampler_loc = 0.5"])
def test_what_continuous_actions_read_is_refused_of_discrete_ones(tmp_path, key) -> None:
    game, name = 'task = "games/grid_navigation"', key.split()[0]
    with pytest.raises(StudyError, match=f"sets '{name}', but only a task of continuous actions reads it; leave it"):
        expand(small(tmp_path, mix=f'algorithm = "omar"\n{key}', spread=game))
    values = f"[grid]\n{name} = [1, 2]"
    with pytest.raises(StudyError, match=rf"\[grid\] {name} is read by no method"):
        expand(small(tmp_path, mix='algorithm = "omar"', spread=game, more=values))
    both = f'{values}\n[datasets.other]\ntask = "mpe/simple_spread"'
    runs = expand(small(tmp_path, study="seeds = 1", mix='algorithm = "omar"', spread=game, more=both))
    assert [(run.dataset, name in run.settings) for run in runs] == [
        ("spread", False),
        ("other", True),
        ("other", True),
    ]


def test_a_value_that_discrete_actions_do_not_tell_apart(tmp_path) -> None:
    """Refused when the loss is built, in the words of the study's file."""
    table = 'task = "games/grid_navigation"\nepisodes = 4'
    study = small(
        tmp_path, study="steps = 4\nhidden = [4]", mix='algorithm = "icq"\ndistribution = "gaussian"', spread=table
    )
    with pytest.raises(
        StudyError, match=r"\[methods.mix\] on spread: icq: distribution 'gaussian' is one of continuous"
    ):
        make_plan(study, Machine())


@pytest.mark.parametrize(
    ("task", "metric", "words"),
    [
        ("mpe/simple_spread", "success", "has no success; options: 'auto', 'return', 'normalized'"),
        ("vmas/balance", "normalized", "has no reference returns; options: 'auto', 'return'"),
        ("games/grid_navigation", "success", None),
    ],
)
def test_a_metric_that_a_task_is_not_evaluated_for(tmp_path, task, metric, words) -> None:
    about = f'steps = 4\nhidden = [4]\nbatch_size = 8\nmetric = "{metric}"'
    study = small(tmp_path, study=about, mix='algorithm = "cloning"', spread=f'task = "{task}"\nepisodes = 4')
    if words is None:
        assert make_plan(study, Machine()).runs
        return
    with pytest.raises(StudyError, match=rf"metric = '{metric}', but the task of spread {words}"):
        make_plan(study, Machine())


def test_a_file_is_no_output(tmp_path) -> None:
    with pytest.raises(StudyError, match=r"\[study\] output: .*study.toml is a file; name a folder"):
        small(tmp_path, study='output = "study.toml"')
        read_study(tmp_path / "study.toml")


def test_an_option_that_the_task_has_not_names_its_table(tmp_path) -> None:
    table = {"task": "mpe/simple_spread", "options": {"task_options": {"max_stepz": 3}}}
    with pytest.raises(StudyError, match=r"\[datasets.d\] options: mpe/simple_spread has no option 'max_stepz'"):
        read_source("d", table, tmp_path).facts()
