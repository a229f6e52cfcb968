"""By what a study chooses: its tables, what is refused before anything is trained, and what the schema says."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import jsonschema
import pytest
from population_toys import make_data
from study_toys import STUDY, quietly, write_study

from torchrl_marl_offline import OfflineDataset
from torchrl_marl_offline.commands.study import main
from torchrl_marl_offline.recording import record_mixed_skill
from torchrl_marl_offline.study import Plan, StudyError, plan_study, read_study, study_schema
from torchrl_marl_offline.study.choosing import OfflineSettings, SearchSettings

SEARCH = STUDY.replace("[grid]\ntemperature = [1, 3.0]", "[search]\ntrials = 9\n\n[ranges]\ntemperature = [1, 2, 3]")
RANGE = "temperature = { low = 0.1, high = 10, log = true }"


def refused(folder, text: str, sentence: str) -> None:
    """Check that a study is refused in one sentence, and that nothing is written."""
    file = write_study(folder, text.replace("{ ", "{{ ").replace(" }", " }}"))
    with pytest.raises(StudyError, match=sentence) as raised:
        quietly(file)
    assert "\n" not in str(raised.value) and [path.name for path in folder.iterdir()] == ["study.toml"]


def searching(ranges: str = RANGE, search: str = "trials = 9") -> str:
    return SEARCH.replace("temperature = [1, 2, 3]", ranges).replace("trials = 9", search)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            searching().replace("[search]\ntrials = 9\n", ""),
            r"\[ranges\] is what a search draws from; add .*\[search\]",
        ),
        (searching("").replace("[ranges]", ""), r"\[search\] has nothing to draw from; add a table such as \[ranges\]"),
        (searching() + "\n[grid]\nlr = [1e-3]\n", r"\[grid\] tries every value, \[search\] draws some; put its lists"),
        (searching(search="trials = 1"), r"\[search\] trials must be at least 2, got 1\."),
        (
            searching(search="rungs = 4"),
            r"trials = 32 are too few for rungs = 4 with eta = 3, .* take 3 or fewer rungs",
        ),
        (searching(search="updates = 40"), r"\[search\] updates = 40 are too few for 3 rungs; give 96 or more\."),
        (
            searching(search="trials = 9\nby = 'agreement'"),
            r"\[search\] by must be one of return, fqe, wis, dr, model, got",
        ),
        (searching("temperature = [1, 2]"), r"hold 2 settings, \[search\] asks for 9 trials; ask for 2, or .*\[grid\]"),
        (
            searching("temperature = { low = 3, high = 1 }"),
            r"\[ranges\] temperature low must be below high \(1\), got 3",
        ),
        (searching("temperature = { low = 0, high = 1, log = true }"), r"low must be above 0 with log = true, got 0\."),
        (
            searching("temperature = { low = -1, high = 1 }"),
            r"\[ranges\] temperature low must be at least 0, got -1\.0",
        ),
        (searching("temperature = { low = 1 }"), r"\[ranges\] temperature has no high; give it low and high\."),
        (searching("num_heads = { low = 1.5, high = 3 }"), r"num_heads low must be a whole number, got 1\.5\."),
        (searching("steps = [10, 20]"), r"\[ranges\] steps: how long trials train is what the rungs of \[search\] say"),
        (
            searching("threshold = { low = 0.1, high = 0.2 }"),
            r"\[ranges\] threshold reaches no method: each sets it itself or",
        ),
        (
            searching().replace("[methods.mix]\n", "[methods.mix]\ntemperature = 3\n"),
            r"\[ranges\] temperature reaches no method",
        ),
        (searching("temperature = [1]"), r"hold 1 settings, \[search\] asks for 9 trials; give them more values\."),
        (STUDY + "[offline]\nseed = 1\n", r"Nothing is estimated .* \[offline\] says nothing; give \[study\] select"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_in_a_sentence(tmp_path, text, sentence):
    refused(tmp_path, text, sentence)


@pytest.mark.parametrize(
    ("select", "offline", "sentence"),
    [
        ("fqe", "held_out = 0.2", r"\[offline\] held_out = 0.2 holds 4 episodes of spread out, an estimate needs 8"),
        (
            "wis",
            "held_out = 0.5",
            r"\[study\] select = 'wis': .* takes one continuous action, .*\[offline\] mode = \"sample\"",
        ),
        ("dr", "held_out = 0.5\nweights = 'agent'", r"'dr' needs the weights of the joint action"),
        ("wis", "held_out = 0.5\nhorizon = 'endless'", r"'wis' weighs what episodes earned"),
        (
            "fqe",
            "weights = 'agent'",
            r"\[offline\] weights is read where runs are estimated by 'wis' or 'dr', and these .* 'fqe'",
        ),
        ("fqe", "clip = 2.0", r"\[offline\] clip is read where runs are estimated by 'wis' or 'dr'"),
        ("wis", "mode = 'sample'\nfitting.steps = 3", r"\[offline\] fitting is read where .* 'fqe' or 'dr', .* 'wis'"),
    ],
)
def test_an_estimate_that_cannot_be_made_is_refused_before_anything_is_trained(tmp_path, select, offline, sentence):
    text = STUDY.replace("steps = 40", f'steps = 40\nselect = "{select}"') + f"\n[offline]\n{offline}\n"
    refused(tmp_path, text, sentence)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("bond = 'data'", r"\[datasets.logs\] options: got an unexpected keyword argument 'bond'\."),
        ("inspect = false", r"\[datasets.logs\] options: inspect is none of a study's"),
        ("strict = true", r"\[datasets.logs\] options: strict is none of a study's"),
    ],
)
def test_options_of_a_source_are_refused_before_anything_is_trained(tmp_path, options, sentence):
    make_data(episodes=20).save(tmp_path / "logs")
    text = STUDY.partition("[datasets.spread]")[0] + f'[datasets.logs]\nsource = "../logs"\noptions.{options}\n'
    refused(tmp_path / "study", text, sentence)
    of_task = STUDY.replace("episodes = 20", "episodes = 20\noptions.bounds = 'data'")
    refused(tmp_path / "study", of_task, r"\[datasets.spread\] options: without a quality scripted policies play")


def test_policies_without_log_probabilities_are_refused_for_weights_alone(tmp_path):
    text = STUDY.replace('algorithm = "cloning"', 'algorithm = "mac_flow"')
    text += '\n[offline]\nheld_out = 0.5\nmode = "sample"\n'
    sentence = r"select = 'wis': cloning has samples but no density; evaluate it by 'fqe'\."
    refused(tmp_path, text.replace("steps = 40", 'steps = 40\nselect = "wis"'), sentence)
    assert plan_study(read_study(write_study(tmp_path, text.replace("steps = 40", 'steps = 40\nselect = "fqe"')))).runs


def test_trials_are_not_played_without_a_simulator(tmp_path):
    dataset = record_mixed_skill("mpe/simple_spread", tmp_path / "made", episodes=20)
    OfflineDataset(dataset.data, replace(dataset.spec, task=None)).save(tmp_path / "recorded")
    text = SEARCH.replace('task = "mpe/simple_spread"\nepisodes = 20', 'source = "recorded"')
    text = text.replace("trials = 9", "trials = 3")
    with pytest.raises(StudyError, match=r'\[search\] by = "return" plays .* no simulator of spread; use by = "fqe"'):
        quietly(write_study(tmp_path, text))
    assert not (tmp_path / "out").exists()


def test_two_words_for_an_estimate_are_one_too_many(tmp_path):
    text = SEARCH.replace("trials = 9", 'trials = 3\nby = "fqe"').replace("steps = 40", 'steps = 40\nselect = "wis"')
    with pytest.raises(StudyError, match=r"select = 'wis' and .* by = 'fqe' are two estimates; name one"):
        read_study(write_study(tmp_path, text))


def test_another_choice_needs_another_folder(tmp_path):
    quietly(write_study(tmp_path), only=["cloning"])
    text = STUDY.replace("steps = 40", 'steps = 40\nselect = "fqe"') + "\n[offline]\nheld_out = 0.5\n"
    with pytest.raises(
        StudyError, match=r"was started with select = None, .* says fqe: .* give the study another output"
    ):
        quietly(write_study(tmp_path, text))


def test_the_tables_reach_the_settings_and_the_plan(tmp_path):
    text = SEARCH.replace("trials = 9", 'trials = 3\nby = "dr"\nseeds = 2') + (
        '[offline]\nheld_out = 0.5\nmode = "sample"\nfitting.decomposition = "vdn"\nfitting.hidden = [8]\n'
        "cloning.steps = 5\n"
    )
    study = read_study(write_study(tmp_path, text))
    assert study.search == SearchSettings(trials=3, by="dr", seeds=(0, 1)) and study.estimated_by == "dr"
    assert study.offline.fitting.decomposition == "vdn" and study.offline.cloning.steps == 5
    options = study.offline.comparison()
    assert options["held_out"] == 0.25 and options["fitting"].hidden == (8,) and options["mode"] == "sample"
    plan = plan_study(study)
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == replace(plan, populations=Plan.load(tmp_path).populations)
    content = json.loads((tmp_path / "plan.json").read_text())
    for name in ("estimated_by", "offline", "search"):  # as earlier versions wrote it
        del content[name]
    for population in content["populations"]:
        for run in population["runs"]:
            del run["trial"], run["rung"]
    (tmp_path / "plan.json").write_text(json.dumps(content))
    assert (Plan.load(tmp_path).search, Plan.load(tmp_path).offline) == (None, OfflineSettings())


def test_the_schema_takes_what_is_read():
    validator = jsonschema.Draft202012Validator(study_schema())
    least = '[methods.mix]\n{mix}\n[datasets.s]\ntask = "a"\n[search]\ntrials = 4\nby = "fqe"\n'
    for line in ("ranges.lr = { low = 1e-4, high = 1e-2, log = true }", "ranges.decomposition = ['mixer', 'vdn']"):
        assert validator.is_valid(tomllib.loads(least.format(mix=line)))
    for line in ("ranges.lr = 3", "ranges.lr = { low = 'a' }", "ranges.decomposition = { low = 1, high = 2 }"):
        assert not validator.is_valid(tomllib.loads(least.format(mix=line)))
    for line in ("[offline]\nfitting.steps = 0", "[offline]\nfittings.steps = 1", "[study]\nselect = 'agreement'"):
        assert not validator.is_valid(tomllib.loads(least.format(mix="") + line))
    properties = study_schema()["$defs"]["OfflineTable"]["properties"]
    assert properties["held_out"]["default"] == 0.3 and properties["gamma"]["maximum"] == 1


def test_the_plan_says_what_a_search_will_cost(tmp_path, capsys):
    file = write_study(tmp_path, SEARCH.replace("[1, 2, 3]", "[1, 2, 3, 4, 5, 6, 7, 8, 9]"))
    assert main(["plan", str(file)]) == 0
    told = (
        "search of mix-mixer on spread: trials 9 for 14 updates, 3 for 40 updates; 246 updates with 1 seed(s), then 120"
    )
    assert told in capsys.readouterr().out and not (tmp_path / "out").exists()
