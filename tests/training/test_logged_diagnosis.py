"""The diagnosis that every run logs beside its metrics."""

from __future__ import annotations

import pytest
import torch
from population_toys import SEEDS, make_alone, make_data, make_population

from torchrl_marl_offline.objectives.diagnosis import batch_diagnosis
from torchrl_marl_offline.training import Trainer, read_csv
from torchrl_marl_offline.training.run import logged_diagnosis as diagnosis

RULES = {"decomposition": "mixer", "value_learning": "td", "extraction": "brac"}
COLUMNS = {"mixer_gain", "discounted_gain", "closed_loop_gain", "policy_slope", "policy_distance", "qvalue_largest"}


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(diagnosis, "EVERY", 10)


def test_it_stands_in_the_table_at_every_so_many_steps(data, tmp_path):
    trainer = make_alone(data, 0, tmp_path, rules=RULES, steps=40, log_every=4)
    trainer.train()
    rows = read_csv(tmp_path / "train.csv")
    assert [row["step"] for row in rows if "mixer_gain" in row] == [12, 24, 36]  # logging points, 10 steps apart
    assert all(rows[2].keys() >= COLUMNS for row in rows if row["step"] == 12)


def test_its_numbers_are_those_of_the_newest_batch_and_networks(data):
    trainer = make_alone(data, 0, rules=RULES, steps=20, log_every=10)
    trainer.train()
    row = trainer.logger.train.rows[-1]
    for name, value in batch_diagnosis(trainer.loss, trainer._newest).items():
        assert row[name] == pytest.approx(float(value), rel=1e-6), name


def test_a_member_of_a_population_has_the_numbers_of_a_run_alone(data):
    trainer = make_population(data, (0, 1), rules=RULES, steps=10, log_every=10)
    trainer.train()
    for member in (0, 1):
        alone = make_alone(data, member, rules=RULES, steps=10, log_every=10)
        alone.train()
        row, found = alone.logger.train.rows[-1], trainer.loggers[f"m{member}"].train.rows[-1]
        for name in COLUMNS:
            assert found[name] == pytest.approx(row[name], rel=1e-3, abs=1e-5), (SEEDS[member], name)


@pytest.mark.parametrize("options", [{}, {"batch_norm": True}], ids=["plain", "running statistics"])
@pytest.mark.parametrize("make", [make_alone, make_population], ids=["alone", "population"])
def test_training_is_the_same_with_it(data, monkeypatch, make, options):
    which = 0 if make is make_alone else (0, 1)
    first = make(data, which, rules=RULES | options, steps=20, log_every=10)
    first.train()
    logger = first.loggers["m0" if make is make_population else ""]
    assert logger.train.rows[-1].keys() >= COLUMNS
    monkeypatch.setattr(diagnosis.LoggedDiagnosis, "check", lambda *_: {})
    second = make(data, which, rules=RULES | options, steps=20, log_every=10)
    second.train()
    for name, value in first.loss.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second.loss.state_dict()[name]), name


@pytest.mark.parametrize("error", [RuntimeError, IndexError, AssertionError, ZeroDivisionError])
def test_networks_that_cannot_be_diagnosed_end_no_run(data, monkeypatch, error):
    def fails(*_):
        raise error("no gradient here")

    monkeypatch.setattr(diagnosis, "batch_diagnosis", fails)
    trainer = make_alone(data, 0, rules=RULES, steps=30, log_every=10)
    with pytest.warns(UserWarning, match=r"cannot be diagnosed \(no gradient here\); the run goes on") as caught:
        trainer.train()
    assert len(caught) == 1 and trainer.step == 30


def test_losses_of_others_are_left_alone(data):
    trainer = make_alone(data, 0, rules={"algorithm": "cloning"}, steps=10, log_every=10)
    trainer.train()
    assert not COLUMNS & trainer.logger.train.rows[-1].keys()
    assert isinstance(trainer, Trainer)
