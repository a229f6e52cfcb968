"""What an earlier version of 0.1.0 wrote still loads: datasets, policies, checkpoints of a run, a population, an online
run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import processes
import pytest
import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_marl_offline import OnlineReplay, Trainer, load_dataset, load_policy, make_env, make_loss
from torchrl_marl_offline.training import Learner
from torchrl_marl_offline.training.online import CollectorSource
from torchrl_marl_offline.training.run.checkpoints import CheckpointManager
from torchrl_marl_offline.training.run.run_settings import differing

EARLIER = Path(__file__).parent / "files" / "earlier_version"


class Component:
    """Takes whatever a checkpoint holds of one component."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        self.state = state


def saved(folder: Path, step: int, component: str = "loss") -> dict[str, torch.Tensor]:
    """Return one component of a checkpoint."""
    holder = Component()
    path = folder / "checkpoints" / f"checkpoint-{step:012d}.torchrl"
    CheckpointManager(folder / "checkpoints").load(path, **{component: holder})
    return holder.state


def assert_equal_tensors(found: dict, expected: dict) -> None:
    tensors = {name: value for name, value in expected.items() if isinstance(value, torch.Tensor)}
    assert len(tensors) > 5
    for name, value in tensors.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rows", "episodes"), [("continuous", 200, 8), ("discrete", 179, 8), ("arrays", 20, 4)]
)
def test_datasets(name, rows, episodes):
    data = load_dataset(str(EARLIER / f"dataset_{name}"))
    assert (len(data), data.n_episodes) == (rows, episodes)
    assert data.data["agents", "observation"].isfinite().all()


@pytest.mark.parametrize("name", ["gaussian", "tanh", "categorical", "deterministic", "greedy"])
def test_policies_act_as_they_did(name):
    saved_policy = load_policy(EARLIER / "policies" / f"{name}.pt")
    kind = "discrete" if saved_policy.spec.discrete else "continuous"
    rows = load_dataset(str(EARLIER / f"dataset_{kind}")).data[:3].to_tensordict()
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        action = saved_policy.policy(rows)["agents", "action"]
    expected = torch.tensor(json.loads((EARLIER / "policies" / "expected.json").read_text())[name])
    torch.testing.assert_close(action, expected.to(action.dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["single", "population"])
def test_a_run_goes_on(tmp_path, kind):
    for name in ("dataset_continuous", "dataset_discrete"):
        shutil.copytree(EARLIER / name, tmp_path / name)
    run = shutil.copytree(EARLIER / f"run_{kind}", tmp_path / "run")
    for folder in (run, run / "cloning"):
        (folder / "checkpoints" / "checkpoint-000000000020.torchrl").unlink()
    done = processes.run("-m", "torchrl_marl_offline", "train", "--resume", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    component = "loss" if kind == "single" else "population"
    assert_equal_tensors(saved(run, 20, component), saved(EARLIER / f"run_{kind}", 20, component))


def test_an_online_run_goes_on(tmp_path):
    run = shutil.copytree(EARLIER / "run_online", tmp_path / "run_online")
    torch.manual_seed(0)
    env = make_env("games/two_step", num_envs=4)
    loss = make_loss(env.task_spec, decomposition="vdn", hidden=(8, 8))
    source = CollectorSource(env, loss.actor_network, steps_per_round=4, exploration="sample")
    options = {"capacity": 100, "batch_size": 8, "update_to_data": 1 / 4, "keys": loss.in_keys}
    replay = OnlineReplay(source, journal=run / "experience", **options)
    trainer = Trainer(
        Learner(loss, compile="off"), replay, steps=6, output=run, checkpoint_every=4, progress=False, log_every=2
    )
    assert trainer.resume() == 4
    assert len(replay) == 16
    assert_equal_tensors(loss.state_dict(), saved(EARLIER / "run_online", 4))
    trainer.train()
    assert trainer.step == 6


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [("loss kind", "OMARLoss", "OfflineMARLLoss"), ("extraction", "OMAR", "RectifiedGradient")],
)
def test_classes_by_their_earlier_names_are_no_other_settings(name, before, now):
    assert differing({name: before}, {name: now}) is None
    assert differing({name: before}, {name: "AWR"}) == f"{name} was {before} and is AWR now"
