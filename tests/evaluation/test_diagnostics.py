"""Diagnoses: numbers by hand, every form of loss, verdicts, folders of runs, the page."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diagnosis_toys import SETTINGS, config_of, data_for, imitating_loss, policy_data, train_run
from objective_toys import COMBINATIONS, PRESET_CASES, SYSTEM_CASES, Case
from population_toys import make_data, make_population
from selection import some_of
from torch.testing import assert_close
from torchrl.modules import GRUModule
from torchrl_toys import remembering_critic
from trainers import trainer_for

from torchrl_marl_offline.algorithms import make_loss
from torchrl_marl_offline.core.layout import REWARD, next_key
from torchrl_marl_offline.core.run_presets import preset_of
from torchrl_marl_offline.evaluation import Diagnosis, diagnose, diagnose_run, save_diagnoses
from torchrl_marl_offline.evaluation.diagnostics import NUMBERS, diagnoses_text
from torchrl_marl_offline.evaluation.diagnostics.diagnosis_figures import convex_hull, plane
from torchrl_marl_offline.evaluation.diagnostics.recorded_runs import _of_member
from torchrl_marl_offline.evaluation.diagnostics.sampled_rows import rank_correlation, returns_to_go
from torchrl_marl_offline.evaluation.diagnostics.verdicts import Impossible, growing, judged
from torchrl_marl_offline.evaluation.distances import nearest
from torchrl_marl_offline.objectives import SARSA, BehaviourCloning, OfflineMARLLoss
from torchrl_marl_offline.objectives.diagnosis import agreement
from torchrl_marl_offline.training import RunLogger, split_population

DATA = {discrete: data_for(discrete=discrete) for discrete in (False, True)}
GAMMA = 0.9  # of the toy losses


# ------------------------------------------------------------------------ numbers by hand


def test_the_gain_of_a_sum_is_that_of_the_paper():
    found = diagnose(Case("vdn").build(), DATA[False], rows=20).numbers
    for name in ("discounted_gain", "discounted_gain_low", "discounted_gain_high"):
        assert found[name] == pytest.approx(GAMMA * math.sqrt(3))
    assert found["mixer_gain"] == pytest.approx(math.sqrt(3))
    assert found["credit_low"] == found["credit_high"] == pytest.approx(1 / 3)


def test_the_gain_of_weights_is_their_norm():
    loss = Case("linear").build()
    params = loss.mixer_network_params
    for value in params.values(True, True):
        value.data.zero_()
    params.get(("module", "last", "0", "bias")).data.copy_(torch.tensor([3.0, 0.0, 4.0]))
    found = diagnose(loss, DATA[False], rows=20)
    assert found.numbers["mixer_gain"] == pytest.approx(5.0)
    assert_close(torch.tensor(found.by_agent["credit"]), torch.tensor([3.0, 0.0, 4.0]) / 7)
    assert [reason.word for reason in found.verdict.reasons] == ["suspicious"]
    assert "One agent has 0 % of the credit, an equal share is 33.3 %" in found.verdict.reasons[0].text


def test_returns_of_an_episode_that_was_cut_off_go_on():
    """Episodes of 7 rows: one that terminates earns what it earned, others go on as if played again."""
    loss, data = Case("vdn").build(), DATA[False]
    reward = data.data[next_key(("agents", "reward"))].double().mean(-2)  # [T, 1]
    found = returns_to_go(loss, data, GAMMA)
    ended = sum(GAMMA**t * reward[t] for t in range(7))
    assert_close(found[0], ended)
    once = sum(GAMMA**t * reward[7 + t] for t in range(7))
    assert_close(found[7], once / (1 - GAMMA**7))
    assert_close(found[13], reward[13] + GAMMA * found[7])
    assert_close(returns_to_go(loss, data, 1.0)[7], reward[7:14].sum(0))


def test_values_against_bound_and_returns():
    loss, data = Case("vdn", "td", "brac").build(), DATA[False]
    found = diagnose(loss, data, rows=1000).numbers
    reward = data.data[next_key(("agents", "reward"))]
    kept = data.data["collector", "mask"]
    assert found["qvalue_bound"] == pytest.approx(float(reward.mean(-2)[kept].abs().max()) / (1 - GAMMA), rel=1e-5)
    q, returns = loss.qvalue(data.data[kept]).flatten(), returns_to_go(loss, data, GAMMA)[kept].flatten()
    assert found["qvalue_abs"] == pytest.approx(float(q.abs().mean()), rel=1e-5)
    assert found["qvalue_largest"] == pytest.approx(float(q.abs().max()), rel=1e-5)
    assert found["qvalue_bias"] == pytest.approx(float(q.double().mean() - returns.mean()), rel=1e-5)
    assert found["return_largest"] == pytest.approx(float(returns.abs().max()))
    assert found["qvalue_rank_correlation"] == pytest.approx(rank_correlation(q, returns), abs=1e-9)


def test_rank_correlation_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert rank_correlation(x, x**3) == pytest.approx(1.0) and rank_correlation(x, -x) == pytest.approx(-1.0)
    ties = torch.tensor([0.0, 0.0, 1.0, 1.0])  # ranks 1.5, 1.5, 3.5, 3.5 against 1, 2, 3, 4
    assert rank_correlation(x, ties) == pytest.approx(4 / math.sqrt(5 * 4))
    assert math.isnan(rank_correlation(x, torch.ones(4)))


def test_the_nearest_are_found_exactly():
    a, b = torch.randn(600, 3), torch.randn(50, 3)
    assert_close(nearest(a, b), (a.unsqueeze(1) - b).norm(dim=-1).amin(-1))


def test_the_datas_own_policy_is_as_near_as_the_data_and_a_shifted_one_far():
    data = policy_data()
    own = diagnose(imitating_loss(0.0), data).numbers
    assert own["neighbour_ratio"] == pytest.approx(1.0) and own["policy_distance"] == pytest.approx(0.0, abs=1e-6)
    near, far = (diagnose(imitating_loss(shift), data) for shift in (0.05, 3.0))
    assert far.numbers["policy_distance"] == pytest.approx(3.0, rel=1e-5)
    assert 1 < near.numbers["neighbour_ratio"] < 2 < 10 < far.numbers["neighbour_ratio"]
    assert near.verdict.word == "sane" and far.verdict.word == "suspicious"
    assert "times as far from the data" in far.text()


def test_advantages_correlate_as_torch_says():
    loss = Case("independent", "td", "awr").build()
    found = diagnose(loss, DATA[False], rows=60)
    matrix = torch.tensor(found.by_agent["advantage_correlation"])
    assert_close(matrix.diagonal(), torch.ones(3))
    assert_close(matrix, matrix.T)
    apart = matrix[~torch.eye(3, dtype=torch.bool)]
    assert float(apart.mean()) == pytest.approx(found.numbers["advantage_agreement"], abs=1e-5)
    batch = loss.batch(DATA[False].data[DATA[False].data["collector", "mask"]])
    advantage = batch.advantage("local")
    whole = diagnose(loss, DATA[False], rows=1000)
    correlation = torch.tensor(whole.by_agent["advantage_correlation"])
    assert_close(correlation, torch.corrcoef(advantage.T), rtol=1e-4, atol=1e-4)
    one_sign = (advantage > 0).all(-1) | (advantage < 0).all(-1)
    assert whole.numbers["advantage_one_sign"] == pytest.approx(float(one_sign.float().mean()))


# ------------------------------------------------------------------- every form of loss

FORMS = [case for case in COMBINATIONS if (case.learning, case.extraction) in (("iql", "awr"), ("td", "brac"))]
FORMS = some_of(FORMS, every=1) + some_of([*PRESET_CASES, *SYSTEM_CASES], every=4)


def unbroken(found: Diagnosis) -> str:
    """Return the text in one line."""
    return " ".join(found.text().split())


def of_critic(case: Case) -> set[str]:
    """Return what exists of a critic, by its decomposition."""
    found = {"qvalue_abs", "qvalue_largest", "qvalue_bound", "return_mean", "return_largest"}
    found |= {"qvalue_rank_correlation", "qvalue_bias"}
    if case.decomposition not in ("independent", "centralized", "graph"):
        found |= {"mixer_gain", "discounted_gain", "discounted_gain_low", "discounted_gain_high"}
        found |= {"credit_low", "credit_high"}
    return found


@pytest.mark.parametrize("case", FORMS, ids=str)
def test_every_form_has_the_numbers_that_exist(case):
    loss = case.build()
    state, generators = {k: v.clone() for k, v in loss.state_dict().items()}, torch.get_rng_state()
    found = diagnose(loss, DATA[case.discrete], rows=32)
    assert torch.equal(torch.get_rng_state(), generators) and loss.training
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())
    names = set(found.numbers)
    assert names <= NUMBERS.keys() and all(map(math.isfinite, found.numbers.values()))
    if case.preset == "BehaviourCloning":
        assert not names & {"qvalue_abs", "mixer_gain"} and "the loss has no critic" in unbroken(found)
    else:
        assert names >= of_critic(case)
    if case.preset not in ("SARSALoss", "IQLLoss"):
        assert names >= {"policy_distance", "neighbour_distance", "neighbour_distance_data", "neighbour_ratio"}
    if case.preset is None:
        assert "policy_slope" in names and ("effective_sample_size" in names) == (case.extraction == "awr")
        assert ("closed_loop_gain" in names) == ("discounted_gain" in names)
        assert ("advantage_agreement" in names) == (case.decomposition not in ("centralized", "graph"))
    known = ("there is no mixer", "one value for the team", "no critic", "no actor", "no weights", "neither policies")
    known += ("no rule extracts", "trains no critic")
    assert all(any(words in each for words in known) for each in found.missing), found.missing
    assert max(map(len, found.text().splitlines())) <= 80


@pytest.mark.parametrize("discrete", [False, True])
def test_dead_agents_do_not_count(discrete):
    data, loss = data_for(discrete=discrete, deaths=True), Case("mixer", discrete=discrete).build()
    found = diagnose(loss, data, rows=1000)
    other = data_for(discrete=discrete, deaths=True)
    dead = ~other.data["agents", "mask"]
    for key in (("agents", "observation"), next_key(("agents", "reward"))):
        other.data[key][dead] = 1e6
    assert diagnose(loss, other, rows=1000).numbers == pytest.approx(found.numbers)
    chosen = found.material.chosen[found.material.alive]
    assert found.material.alive.all(-1).sum() < len(found.material.alive) and chosen.isfinite().all()


def test_data_of_one_episode_has_no_neighbours():
    found = diagnose(Case("vdn").build(), DATA[False].select_episodes([0]), rows=32)
    assert "neighbour_ratio" not in found.numbers and "policy_distance" in found.numbers
    assert any("one episode" in each for each in found.missing)


def test_a_mixer_that_cannot_be_differentiated_is_left_out_and_said():
    loss = Case("mixer").build()
    loss.mixer_network.module.mix = lambda *_: torch.zeros(len(_[0]), _[0].shape[-1])
    found = diagnose(loss, DATA[False], rows=32)
    assert "mixer_gain" not in found.numbers and "policy_distance" in found.numbers
    assert any(each.startswith("gains and credit: ") for each in found.missing)


def test_running_statistics_stay_and_those_of_critics_are_the_batchs():
    data = make_data()
    loss = make_loss(data.spec, hidden=(8,), batch_norm=True)
    buffers = {name: value.clone() for name, value in loss.named_buffers()}
    found = diagnose(loss, data, rows=32)
    assert all(torch.equal(value, buffers[name]) for name, value in loss.named_buffers())
    assert all(module.training for module in loss.qvalue_network.modules())
    for name, value in loss.named_buffers():
        if name.startswith("qvalue_network_params") and name.endswith(".mean"):
            value.fill_(100.0)
    assert diagnose(loss, data, rows=32).numbers == found.numbers


def test_a_loss_that_was_never_trained_has_the_discount_of_training():
    data = make_data()
    loss = make_loss(data.spec, hidden=(8,))
    loss._value_estimator = None
    found = diagnose(loss, data, rows=32)
    assert found.numbers.keys() >= {"return_mean", "discounted_gain", "closed_loop_gain"}


def test_advantages_that_differ_by_rounding_alone_have_no_correlation():
    same = torch.tensor([0.1, 0.3]).expand(4096, 2) * (1 + 1e-7 * torch.randn(4096, 2))
    assert float(agreement(same)) == 0.0 == float(agreement(same, torch.ones(4096, 2, dtype=torch.bool)))
    assert float(agreement(torch.stack([torch.arange(9.0), -torch.arange(9.0)], -1))) == pytest.approx(-1.0)


def test_curves_of_whole_numbers_count_and_a_row_without_a_step_is_refused():
    data = make_data()
    loss = make_loss(data.spec, hidden=(8,))
    assert diagnose(loss, data, rows=8, curves=[{"step": 1, "qvalue_abs": 10**9}]).curves[0]["qvalue_abs"] == 1e9
    for wrong in ({"qvalue_abs": 1.0}, {"step": 1.5}, {"step": "1"}):
        with pytest.raises(ValueError, match='needs its "step"'):
            diagnose(loss, data, rows=8, curves=[wrong])


def test_the_draw_is_that_of_the_seed():
    loss = Case("mixer").build()
    first, again, other = (diagnose(loss, DATA[False], rows=16, seed=seed).numbers for seed in (0, 0, 1))
    assert first == again != other
    with pytest.raises(ValueError, match="rows must be at least 1"):
        diagnose(loss, DATA[False], rows=0)


# -------------------------------------------------------------------------------- verdicts


def rows_of(values):
    return [{"step": 100 * (i + 1), "qvalue_abs": float(value)} for i, value in enumerate(values)]


DOUBLING = rows_of(2.0**i for i in range(12))


def test_values_that_are_as_they_were_at_the_start_are_no_overestimate():
    numbers = {"qvalue_abs": 3.0, "return_largest": 1.0}
    for start, word in ((4.0, "sane"), (2.0, "suspicious")):
        curves = [{"step": 1, "qvalue_abs": start}]
        assert judged(numbers, curves, agents=2, impossible=None).word == word


def test_growth_by_hand():
    assert growing(rows_of(1.5**i for i in range(12))) == pytest.approx(1.5**4)
    assert growing(rows_of(range(1, 13))) is None  # linear
    assert growing(rows_of(1 - 0.5**i for i in range(1, 13))) is None
    assert growing(rows_of(1.05**i for i in range(12))) is None  # too slow to tell from noise
    assert growing(rows_of(2.0**i for i in range(5))) is None  # too short


@pytest.mark.parametrize(
    ("numbers", "curves", "impossible", "word", "said"),
    [
        ({"qvalue_abs": 1.0, "return_largest": 1.0}, [], None, "sane", ""),
        ({"qvalue_abs": 1.6, "return_largest": 1.0}, [], None, "suspicious", "overestimated"),
        (
            {"qvalue_abs": 9.0, "return_mean": 1.0},
            DOUBLING,
            None,
            "suspicious",
            "exponentially",
        ),
        ({"qvalue_abs": 9.0, "return_mean": 10.0}, DOUBLING, None, "sane", ""),
        ({}, DOUBLING, None, "suspicious", "exponentially"),
        ({}, rows_of([1.0, math.nan]), None, "diverged", "not finite at step 200"),
        ({"qvalue_abs": math.inf}, [], None, "diverged", "qvalue_abs is not finite"),
        ({"qvalue_abs": 9.0}, [], Impossible(300, 70.0, 3.0), "diverged", "was, at step 300, 70, where the rewards"),
        ({"qvalue_abs": 9.0}, [], Impossible(None, 9.0, 3.0, start_is_known=False), "suspicious", "is 9, where"),
        ({"effective_sample_size": 0.019}, [], None, "suspicious", "Lower the temperature"),
        ({"effective_sample_size": 0.021}, [], None, "sane", ""),
        ({"neighbour_ratio": 2.1}, [], None, "suspicious", "2.1 times as far"),
        ({"advantage_agreement": -0.36}, [], None, "suspicious", "-0.50 is the least possible"),
        ({"advantage_agreement": -0.3}, [], None, "sane", ""),
        ({"credit_low": 0.003}, [], None, "suspicious", "an equal share is 33.3 %"),
        ({"credit_low": 0.004}, [], None, "sane", ""),
    ],
)
def test_verdicts_by_hand(numbers, curves, impossible, word, said):
    found = judged(numbers, curves, agents=3, impossible=impossible)
    assert found.word == word and bool(found.reasons) == bool(said)
    assert any(said in reason.text for reason in found.reasons) or not said


def test_a_correlation_of_few_rows_is_not_judged():
    numbers = {"advantage_agreement": -1.0}
    assert judged(numbers, [], agents=2, impossible=None, rows=29).word == "sane"
    assert judged(numbers, [], agents=2, impossible=None, rows=30).word == "suspicious"


def test_values_of_networks_as_they_are_drawn_are_no_divergence():
    """Where rewards are zero, any value is impossible, and those of a loss that never learned say nothing."""
    data, case = data_for(discrete=False), Case("vdn", "sarsa", "awr")
    loss, reward = case.build(), next_key(REWARD)
    data.data[reward] = torch.zeros_like(data.data[reward])
    for name, parameter in loss.named_parameters():
        if name.startswith("qvalue_network_params"):
            parameter.data.mul_(4.0)
    found = diagnose(loss, data, rows=64)
    assert found.numbers["qvalue_abs"] > 1.0 and found.verdict.word != "diverged"


# ------------------------------------------------------------------------- folders of runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a short run and its data."""
    place = tmp_path_factory.mktemp("diagnosed")
    train_run(place / "run", place / "recorded")
    return place


def test_a_short_run_is_sane_and_its_page_whole(trained, tmp_path):
    found = diagnose_run(trained / "run")
    assert found.verdict.word == "sane" and found.step == 30 and found.name == "run"
    assert set(found.numbers) >= of_critic(Case()) | {"neighbour_ratio", "effective_sample_size"}
    page = found.save(tmp_path / "page")
    text = page.read_text()
    assert "run: sane, at step 30" in text and len(re.findall("data:image/png;base64,", text)) == 3
    assert all(meaning.split("'")[0] in text for name, meaning in NUMBERS.items() if name in found.numbers)
    assert "<script src" not in text and "http" not in re.sub(r"base64,[^\"]+", "", text)
    assert {each.name for each in page.parent.iterdir()} == {f"diagnosis.{e}" for e in ("html", "png", "json")}
    (stored,) = json.loads((page.parent / "diagnosis.json").read_text())["runs"]
    assert stored["verdict"] == "sane" and stored["numbers"] == pytest.approx(dict(found.numbers))


def test_the_networks_are_those_of_the_checkpoint(trained):
    data = make_data()
    loss = make_loss(data.spec, **preset_of("quick", "recipe") | SETTINGS)
    given = diagnose_run(trained / "run", data, loss=loss)
    assert given.numbers == pytest.approx(dict(diagnose_run(trained / "run").numbers))
    assert given.numbers == pytest.approx(dict(diagnose(loss, data).numbers))


def test_a_run_whose_curves_diverge_has_diverged(trained, tmp_path):
    folder = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    (folder / "train.csv").unlink()
    logger = RunLogger(folder)
    for row in rows_of(10.0 * 3.0**i for i in range(12)):
        logger.log_train(row.pop("step"), row)
    found = diagnose_run(folder)
    assert found.verdict.word == "diverged" and "where the rewards of the data allow" in unbroken(found)
    (folder / "config.json").unlink()  # what is possible is not known without data, growth is seen all the same
    alone = diagnose_run(folder)
    assert alone.verdict.word == "suspicious" and "grows exponentially" in unbroken(alone)


def test_the_runs_own_alarm_counts_where_the_data_is_gone(tmp_path):
    data = make_data()
    loss = make_loss(data.spec, **SETTINGS)
    buffer = data.replay_buffer(batch_size=16, seed=0, keys=loss.in_keys)
    trainer = trainer_for(loss, buffer, steps=4, output=tmp_path / "run", log_every=2, progress=False)
    trainer.alarm.found = {"": 2}
    trainer.train()
    found = diagnose_run(tmp_path / "run")
    assert found.verdict.word == "diverged" and "was, at step 2," in unbroken(found) and "allow less" in unbroken(found)


def test_what_is_missing_is_said_and_the_curves_are_judged(trained, tmp_path):
    for name, words in (("config.json", "settings"), ("checkpoints", "no checkpoint")):
        folder = Path(shutil.copytree(trained / "run", tmp_path / name / "run"))
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        found = diagnose_run(folder)
        assert found.step is None and words in found.missing[0] and "qvalue_abs" in found.numbers
        assert found.verdict.word == "sane"
    assert found.save(tmp_path / "page").read_text().count("data:image/png;base64,") == 1  # curves
    folder = Path(shutil.copytree(trained / "run", tmp_path / "gone"))
    (folder / "config.json").write_text(json.dumps(config_of(dataset=str(tmp_path / "nowhere"))))
    assert "cannot be read" in diagnose_run(folder).missing[0]
    for dataset in ("hf://x", "hf:OWNER/NAME"):  # nothing is fetched because a folder says so
        (folder / "config.json").write_text(json.dumps(config_of(dataset=dataset)))
        assert f"is {dataset}; name it to fetch it" in diagnose_run(folder).missing[0]
    (folder / "config.json").write_text(json.dumps(config_of(episodes=3, seed=0)))
    assert "not in its place" in diagnose_run(folder).missing[0]
    (folder / "train.csv").unlink()
    with pytest.raises(ValueError, match="nothing to look at"):
        diagnose_run(folder)


def test_networks_without_curves_say_so(trained, tmp_path):
    folder = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    assert not any(each.startswith("curves") for each in diagnose_run(folder, rows=8).missing)
    (folder / "train.csv").write_text("step\n")
    found = diagnose_run(folder, rows=8)
    assert "qvalue_abs" in found.numbers and found.missing[-1].startswith("curves: train.csv")


def test_damaged_and_strange_folders_are_one_sentence(trained, tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(trained / "run", tmp_path / name))

    with pytest.raises(FileNotFoundError, match="There is no folder"):
        diagnose_run(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file"):
        diagnose_run(trained / "run" / "train.csv")
    with pytest.raises(FileNotFoundError, match=r"holds no train\.csv"):
        diagnose_run(tmp_path)
    folder = copy("settings")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        diagnose_run(folder)
    for wrong in ({"algorithm": "none"}, {"algorithm": []}, {"preset": 3}, {"settings": {"hidden": "x"}}):
        (folder / "config.json").write_text(json.dumps(config_of(**wrong, dataset=str(trained / "recorded"))))
        with pytest.raises(ValueError, match="do not fit this version"):
            diagnose_run(folder)
    folder = copy("curves")
    (folder / "train.csv").write_text("step,a\n1,2,3\n")
    with pytest.raises(ValueError, match="damaged"):
        diagnose_run(folder)
    folder = copy("checkpoints")
    for file in (folder / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    with warnings.catch_warnings(), pytest.raises(FileNotFoundError, match="No whole checkpoint"):
        warnings.simplefilter("ignore")
        diagnose_run(folder)
    with pytest.raises(RuntimeError, match="not those that the run's settings make of this data"):
        diagnose_run(trained / "run", data_for(discrete=False))
    with pytest.raises(ValueError, match="does not fit the run"):
        diagnose_run(trained / "run", DATA[True], loss=make_loss(make_data().spec, **SETTINGS))


def test_members_of_a_population_each_in_its_folder(tmp_path):
    data = make_data()
    data.save(tmp_path / "recorded")
    rules = SETTINGS | {"decomposition": "vdn"}
    trainer = make_population(data, (0, 1), tmp_path / "many", rules=rules, log_every=5)
    trainer.train()
    for _, loss in trainer.learner.member_losses():
        assert diagnose(loss, data, rows=20).numbers["mixer_gain"] == pytest.approx(math.sqrt(2))
    split_population(trainer)
    config = config_of(settings=rules, dataset=str(tmp_path / "recorded"))
    (tmp_path / "many" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is a population's; name one of its members, such as .*m0"):
        diagnose_run(tmp_path / "many")
    found = [diagnose_run(tmp_path / "many" / "members" / name) for name in ("m0", "m1")]
    assert [each.step for each in found] == [20, 20]
    gains = [each.numbers["discounted_gain"] for each in found]
    assert gains == pytest.approx([0.9 * math.sqrt(2), 0.99 * math.sqrt(2)])  # each with its own discount


def test_runs_side_by_side(trained, tmp_path):
    first = diagnose_run(trained / "run", name="td")
    name = "of another task, with a long name"
    discrete = diagnose(Case("mixer", discrete=True).build(), DATA[True], rows=40, name=name)
    cloned = diagnose(BehaviourCloning(Case().actor()), DATA[False], rows=40, name="cloning")
    page = save_diagnoses([first, discrete, cloned], tmp_path).read_text()
    assert all(f"<p>{each}: sane" in page for each in ("td", name, "cloning"))
    five = diagnoses_text([replace(first, name=f"temperature=1e-05-seed={index}") for index in range(5)])
    assert max(map(len, five.splitlines())) <= 80 and five.count("qvalue_abs") == 2
    for wrong, said in (([first, first], "td, td"), ([], "none")):
        with pytest.raises(ValueError, match=f"names differ, got {said}"):
            save_diagnoses(wrong, tmp_path)


def test_a_members_name_tells_its_settings():
    assert _of_member("recipe", "alpha=1e-05-temperature=3-lr=0.1-seed=2") == {"alpha": 1e-5, "temperature": 3.0}
    assert _of_member("recipe", "m0") == {}


def test_planes_and_hulls_by_hand():
    square = [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)]
    assert convex_hull([*square, (1.0, 1.0), (1.0, 0.0)]) == square
    assert convex_hull([(1.0, 1.0), (1.0, 1.0)]) == [(1.0, 1.0)] and convex_hull([]) == []
    recorded = torch.zeros(4, 3)
    assert plane(recorded, torch.tensor([1.0, 0.0, 2.0]).expand(4, 3)) == (0, 2)
    assert plane(torch.tensor([[0.0, 5.0, 1.0], [0.0, -5.0, 0.0]]), None) == (1, 2)


def test_networks_with_memory_see_whole_episodes():
    critic = remembering_critic(GRUModule, "hidden")
    loss = OfflineMARLLoss(None, critic, value_learning=SARSA(), extraction=None).make_value_estimator(gamma=GAMMA)
    found = diagnose(loss, DATA[False], rows=20)
    assert found.rows == 21 and {"qvalue_abs", "qvalue_rank_correlation"} <= set(found.numbers)
    alone = [diagnose(loss, DATA[False].select_episodes([e]), rows=20).numbers["qvalue_abs"] for e in range(12)]
    together = diagnose(loss, DATA[False], rows=84).numbers["qvalue_abs"]  # memory starts anew in each episode
    counted = DATA[False].data["collector", "mask"].reshape(12, 7).sum(-1)
    assert together == pytest.approx(float((torch.tensor(alone) * counted).sum() / counted.sum()), rel=1e-5)
