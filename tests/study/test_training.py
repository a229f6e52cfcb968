"""Jobs done by the population trainer itself."""

from __future__ import annotations

import pandas
import pytest
import torch
from study_toys import STUDY, Inline, quietly, write_study

from torchrl_marl_offline import OfflineDataset, Trainer, evaluate, evaluation, make_env, make_loss
from torchrl_marl_offline.recording import record_mixed_skill
from torchrl_marl_offline.study import read_results, read_study
from torchrl_marl_offline.study.jobs import job_state
from torchrl_marl_offline.study.runs import expand
from torchrl_marl_offline.study.study_report import write_study_report
from torchrl_marl_offline.study.training import HELD_OUT, build_loss, train_population
from torchrl_marl_offline.training import Learner, load_policy

EVALUATION = "every = 10\nepisodes = 4\nmodes = ['mode', 'sample']"
REAL = STUDY.replace("every = 10", EVALUATION).replace(
    "seeds = {seeds}", "seeds = {seeds}\nlr = 1e-2\ncompile = 'off'\nlogger = ['tensorboard']"
)


def real(folder, text=REAL, **options):
    return quietly(write_study(folder, text, seeds=2), train=train_population, **options)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert real(folder).failed == {}
    return folder


@pytest.mark.thorough
def test_a_run_of_a_study_is_the_run_trained_alone(study):
    table = read_results(study / "out")
    assert len(table) == 10 * 4 * 2 and table["finished"].all() and not table["diverged"].any()
    run = next(r for r in expand(read_study(study / "study.toml")) if r.method == "mix-vdn" and r.seed == 1)
    dataset = record_mixed_skill("mpe/simple_spread", study / "out/data", episodes=20)
    loss = build_loss(run, dataset)
    torch.manual_seed(run.seed)
    buffer = dataset.replay_buffer(batch_size=32, seed=run.seed, keys=loss.in_keys)
    Trainer(Learner(loss, lr=1e-2), buffer, steps=40, progress=False).train()
    folder = study / "out/jobs/spread--mix-vdn--00/members" / run.name
    assert list((folder / "tensorboard").rglob("events.*"))
    kept = load_policy(folder).policy.state_dict()
    for name, value in loss.actor_network.state_dict().items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-5)
    last = table[(table["run"] == run.name) & (table["step"] == 40) & (table["evaluator"] == "mode")]
    assert last["episodes"].tolist() == [4.0]
    env = make_env("mpe/simple_spread", num_envs=4)
    assert evaluate(loss.actor_network, env, episodes=4, seed=1000).std > 0  # there is something to compare


def test_the_table_of_an_interrupted_study_is_equal(study, tmp_path, monkeypatch):
    original, calls = Trainer._evaluate, []

    def stop_in_the_middle(trainer, bar):
        calls.append(trainer.step)
        if len(calls) == 3:
            trainer.deadline = 0.0
        return original(trainer, bar)

    monkeypatch.setattr(Trainer, "_evaluate", stop_in_the_middle)
    backend = Inline(most=1)
    real(tmp_path, backend=backend)
    (name,) = backend.seen
    assert job_state(tmp_path / "out/jobs" / name) == "begun" and max(calls) == 30
    monkeypatch.undo()
    partial = read_results(tmp_path / "out")
    assert set(partial["step"]) == {10, 20, 30} and not partial["finished"].any() and partial["diverged"].isna().all()
    assert real(tmp_path).remaining == 0
    pandas.testing.assert_frame_equal(read_results(tmp_path / "out"), read_results(study / "out"), check_exact=True)


def test_what_is_kept(study, tmp_path):
    job = study / "out/jobs/spread--cloning--00"
    assert sorted(path.name for path in job.iterdir()) == [
        ".lock",
        ".run.lock",
        "members",
        "progress.json",
        "result.json",
    ]
    kept = {path.name for path in next((job / "members").iterdir()).iterdir()}
    assert kept == {"train.csv", "eval.csv", "policy.pt", "tensorboard"}
    text = REAL.replace("seeds = {seeds}", "seeds = {seeds}\nkeep_checkpoints = true")
    real(tmp_path, text, only=["cloning"])
    assert list((tmp_path / "out/jobs/spread--cloning--00/checkpoints").glob("checkpoint-*"))
    timings = pandas.read_csv(study / "out/timings.csv")
    assert set(timings["state"]) == {"finished"} and (timings["updates_per_second"] > 0).all()


def test_a_run_that_diverges_is_marked_and_the_rest_go_on(tmp_path):
    text = REAL.replace("[grid]\ntemperature = [1, 3.0]", "[grid]\nlr = [1e-3, 1e17]").replace(
        "[study]", "[study]\non_impossible_values = 'ignore'"
    )
    outcome = real(tmp_path, text, only=["mix-vdn"])
    assert outcome.failed == {}
    table = read_results(tmp_path / "out")
    runs = table.groupby("lr")[["diverged", "diverged_step"]].agg("first")
    assert runs["diverged"].tolist() == [False, True]
    assert runs["diverged_step"].isna().tolist() == [True, False]
    assert table[table["lr"] == 1e-3]["return"].notna().all()
    assert "2 runs stopped being finite" in write_study_report(tmp_path / "out")[1].read_text()


def test_without_a_simulator_runs_are_held_against_recorded_episodes(tmp_path):
    dataset = record_mixed_skill("mpe/simple_spread", tmp_path, episodes=20)
    spec = {**dataset.spec.to_dict(), "task": None}
    OfflineDataset(dataset.data, type(dataset.spec)(**spec)).save(tmp_path / "recorded")
    text = REAL.replace('task = "mpe/simple_spread"\nepisodes = 20', 'source = "recorded"')
    assert text != REAL and real(tmp_path, text, only=["mix-vdn", "cloning"]).failed == {}
    table = read_results(tmp_path / "out")
    assert set(table["evaluator"]) == {HELD_OUT} and table["return"].isna().all()
    assert table["action_error"].between(0, 2).all()
    assert table[table["method"] == "mix-vdn"]["q_correlation"].notna().all()
    assert table[table["method"] == "cloning"]["q_correlation"].isna().all()
    per_run = table[table["step"] == 40].groupby("run")["action_error"].first()
    assert per_run.nunique() == len(per_run)  # each is judged by its own policy


def test_held_out_values_are_held_against_returns_of_the_runs_own_discount_and_reward(tmp_path, monkeypatch):
    dataset = record_mixed_skill("mpe/simple_spread", tmp_path, episodes=20)
    spec = {**dataset.spec.to_dict(), "task": None}
    OfflineDataset(dataset.data, type(dataset.spec)(**spec)).save(tmp_path / "recorded")
    text = REAL.replace('task = "mpe/simple_spread"\nepisodes = 20', 'source = "recorded"')
    text = text.replace("[grid]\ntemperature = [1, 3.0]", "[grid]\ngamma = [0.5, 0.9]")
    text = text.replace("[methods.mix]\n", '[methods.mix]\nteam_reward = "sum"\n')
    asked, original = set(), evaluation.evaluate_held_out

    def spy(*arguments, **options):
        asked.add((options.get("gamma"), options.get("team_reward")))
        return original(*arguments, **options)

    monkeypatch.setattr("torchrl_marl_offline.study.training.evaluate_held_out", spy)
    assert real(tmp_path, text, only=["mix-vdn", "cloning"]).failed == {}
    assert asked == {(0.5, "sum"), (0.9, "sum"), (None, None)}  # the last is cloning, which has no values


NORMALIZED = REAL.replace("lr = 1e-2", "lr = 1e-2\nnormalize_inputs = '{how}'", 1)


@pytest.mark.parametrize(
    ("how", "factor", "is_normalized"), [("on", 1, True), ("auto", 1, False), ("auto", 1000, True)]
)
def test_runs_of_a_study_normalize_their_inputs_where_it_is_asked_for(tmp_path, how, factor, is_normalized):
    text = NORMALIZED.replace("{how}", how)
    run = expand(read_study(write_study(tmp_path, text, seeds=1)))[0]
    dataset = record_mixed_skill("mpe/simple_spread", tmp_path / "data", episodes=4)
    for key in (("agents", "observation"), ("next", "agents", "observation")):
        dataset.data.get(key)[..., 0] *= factor
    loss, plain = build_loss(run, dataset), make_loss(dataset.spec, **run.loss_settings)
    torch.manual_seed(run.seed)
    by_hand = make_loss(dataset.spec, inputs=dataset.input_statistics(), **run.loss_settings)
    expected = (by_hand if is_normalized else plain).state_dict()
    assert loss.state_dict().keys() == expected.keys()
    assert is_normalized == (loss.state_dict().keys() != plain.state_dict().keys())


def test_a_population_of_normalized_runs_leaves_policies_that_normalize(tmp_path):
    text = NORMALIZED.replace("{how}", "on")
    assert real(tmp_path, text).failed == {}
    (job, *_) = (tmp_path / "out/jobs").iterdir()
    (member, *_) = (job / "members").iterdir()
    names = load_policy(member).policy.state_dict().keys()
    assert any("mean" in name or "loc" in name for name in names)
