from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.objectives import LossModule, SoftUpdate
from trainers import trainer_for
from training_toys import make_buffer, make_trainer, weights

from torchrl_marl_offline.training import ForeachSoftUpdate, NonFiniteLossError, Trainer, TrainingFinished, read_csv
from torchrl_marl_offline.training.run.metrics import GradientNorm, MetricWindow, first_non_finite_parameter


class TwoNets(LossModule):
    """``loss_a = 3 a``, ``loss_b = 4 b`` and a metric: the gradients are 3 and 4 whatever the batch is."""

    def __init__(self):
        super().__init__()
        self.a_network_params = nn.ParameterDict({"w": nn.Parameter(torch.tensor(1.0))})
        self.b_network_params = nn.ParameterDict({"w": nn.Parameter(torch.tensor(1.0))})
        self.in_keys, self.out_keys = ["x"], ["loss_a", "loss_b", "double"]

    def forward(self, tensordict):
        a, b = self.a_network_params["w"], self.b_network_params["w"]
        return TensorDict({"loss_a": 3 * a, "loss_b": 4 * b, "double": 2 * a.detach(), "vector": torch.ones(3)})


def two_nets(**options) -> Trainer:
    loss = TwoNets()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    return trainer_for(
        loss, make_buffer(), optimizer=optimizer, progress=False, **({"steps": 4, "log_every": 2} | options)
    )


def test_one_step_by_hand():
    trainer = two_nets(steps=1)
    assert trainer.train() == TrainingFinished(step=1)
    assert trainer.loss.a_network_params["w"].item() == pytest.approx(1 - 0.1 * 3)
    assert trainer.loss.b_network_params["w"].item() == pytest.approx(1 - 0.1 * 4)
    (row,) = trainer.logger.train.rows
    row.pop("seconds")
    expected = {"loss_a": 3, "loss_b": 4, "double": 2, "grad_norm": 5, "grad_norm_a": 3, "grad_norm_b": 4}
    assert row == pytest.approx({"step": 1, **expected})


def test_rows_hold_means_over_the_steps_since_the_row_before():
    trainer = two_nets(steps=5, log_every=2)  # a: 1, .7, .4, .1, -.2
    trainer.train()
    rows = trainer.logger.train.rows
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [row["loss_a"] for row in rows] == pytest.approx([3 * 0.85, 3 * 0.25, 3 * -0.2])


def test_clipping_scales_the_whole_gradient():
    trainer = two_nets(steps=1, clip_grad_norm=1.0)
    trainer.train()
    assert trainer.loss.a_network_params["w"].item() == pytest.approx(1 - 0.1 * 3 / 5, abs=1e-6)
    assert trainer.loss.b_network_params["w"].item() == pytest.approx(1 - 0.1 * 4 / 5, abs=1e-6)
    assert trainer.logger.train.rows[0]["grad_norm"] == pytest.approx(5)
    trainer = two_nets(steps=1, clip_grad_norm=6.0)
    trainer.train()
    assert trainer.loss.a_network_params["w"].item() == pytest.approx(0.7)


def test_gradient_norm_equals_torchs():
    loss = make_trainer().loss
    loss(make_buffer().sample())["loss_value"].backward()
    parameters = [p for p in loss.parameters() if p.grad is not None]
    assert len(parameters) == 4
    assert GradientNorm(loss)()["grad_norm"] == pytest.approx(nn.utils.clip_grad_norm_(parameters, 1e9).item())


def test_target_networks_follow_by_tau():
    trainer = make_trainer(steps=1, tau=0.25, lr=0.1)
    before = nn.utils.parameters_to_vector(trainer.loss.parameters()).detach().clone()
    trainer.train()
    source = nn.utils.parameters_to_vector(trainer.loss.parameters()).detach()
    target = torch.cat([t.flatten() for t in trainer.loss.target_value_network_params.values(True, True)])
    assert (source - before).abs().min() > 0.05  # Adam's first step is the learning rate
    torch.testing.assert_close(target, before * 0.75 + source * 0.25)


def test_the_default_target_updater_equals_torchrls_bit_for_bit():
    trainers = []
    for ours in (True, False):
        trainer = make_trainer(steps=20, tau=0.1)
        if not ours:
            trainer.learner.target_updater = SoftUpdate(trainer.loss, tau=0.1)
        trainer.train()
        trainers.append(trainer)
    assert type(trainers[0].learner.target_updater) is ForeachSoftUpdate
    assert torch.equal(*map(weights, trainers))
    # Loading another state into the loss must not leave the updater with the tensors of before.
    trainer = trainers[0]
    state = trainer.learner.target_updater.state_dict()
    trainer.loss.load_state_dict(
        {
            k: v + 1 if "target" in k and v.is_floating_point() else v
            for k, v in trainer.loss.state_dict().items()
            if isinstance(v, torch.Tensor)
        },
        strict=False,
    )
    trainer.learner.target_updater.load_state_dict(state)
    before = torch.cat([t.flatten() for t in trainer.loss.target_value_network_params.values(True, True)])
    trainer.learner.target_updater.step()
    after = torch.cat([t.flatten() for t in trainer.loss.target_value_network_params.values(True, True)])
    source = nn.utils.parameters_to_vector(trainer.loss.parameters()).detach()
    torch.testing.assert_close(after, before + 0.1 * (source - before))
    assert (after != before).all()


def test_training_lowers_the_loss():
    trainer = make_trainer(steps=300, log_every=100)
    trainer.train()
    first, *_, last = (row["loss_value"] for row in trainer.logger.train.rows)
    assert last < 0.6 * first


def test_log_eval_and_checkpoint_at_the_end_whatever_the_intervals(tmp_path):
    trainer = make_trainer(
        tmp_path, steps=10, log_every=4, eval_every=4, checkpoint_every=4, evaluators={"a": lambda: {"return": 1.0}}
    )
    assert trainer.train() == TrainingFinished(10, tmp_path / "checkpoints/checkpoint-000000000010.torchrl")
    assert [row["step"] for row in read_csv(tmp_path / "train.csv")] == [4, 8, 10]
    assert [row["step"] for row in read_csv(tmp_path / "eval.csv")] == [4, 8, 10]
    assert len(trainer.checkpoints.checkpoints()) == 3


def test_an_evaluator_may_return_nothing():
    trainer = make_trainer(steps=2, eval_every=1, evaluators={"a": lambda: None})
    trainer.train()
    assert trainer.logger.eval.rows == []


@pytest.mark.parametrize("log_every", [1, 7, 50])
def test_a_non_finite_loss_stops_with_its_step_term_and_the_last_good_checkpoint(tmp_path, log_every):
    trainer = make_trainer(tmp_path, poison_at=18, log_every=log_every, checkpoint_every=5)
    with pytest.raises(NonFiniteLossError, match="loss_value is not finite at step 18") as caught:
        trainer.train()
    assert (caught.value.step, caught.value.term) == (18, "loss_value")
    assert caught.value.checkpoint.name == "checkpoint-000000000015.torchrl"
    assert caught.value.checkpoint.name in str(caught.value)
    assert trainer.checkpoints.checkpoints()[-1] == caught.value.checkpoint
    good = make_trainer(tmp_path)
    assert good.resume() == 15
    assert weights(good).isfinite().all()


def test_non_finite_without_checkpoints_says_so():
    with pytest.raises(NonFiniteLossError, match="no checkpoint was written"):
        make_trainer(poison_at=3).train()


def test_a_parameter_that_is_not_finite_is_never_written(tmp_path):
    def poison():
        trainer.loss.value_network_params.data.flatten_keys(".").apply_(lambda x: x.fill_(float("inf")))

    trainer = make_trainer(tmp_path, eval_every=10, checkpoint_every=10, evaluators={"poison": poison})
    with pytest.raises(
        NonFiniteLossError, match=r"value_network_params.* at step 10, the last good checkpoint is .*0000"
    ):
        trainer.train()
    assert first_non_finite_parameter(trainer.loss).startswith("value_network_params")
    assert [path.name for path in trainer.checkpoints.checkpoints()] == ["checkpoint-000000000000.torchrl"]


def test_a_metric_may_be_nan_but_a_changing_set_of_metrics_is_an_error():
    window = MetricWindow()
    window.append({"loss_a": torch.tensor(1.0), "other": torch.tensor(float("nan"))})
    assert window.first_non_finite() is None
    with pytest.raises(ValueError, match="same scalars every step"):
        window.append({"loss_a": torch.tensor(1.0)})


def test_a_module_without_a_loss_is_a_clear_error():
    trainer = two_nets()
    trainer.loss.forward = lambda tensordict: TensorDict({"value": torch.ones(())})
    with pytest.raises(KeyError, match='nothing that starts with "loss"'):
        trainer.train()


@pytest.mark.parametrize("name", ["steps", "log_every", "eval_every", "checkpoint_every"])
def test_intervals_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        make_trainer(**{name: 0})
