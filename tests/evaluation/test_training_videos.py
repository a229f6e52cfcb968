"""Videos that runs record of themselves, and the loggers that show them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from selection import thorough

from torchrl_marl_offline import collect, make_env, make_loss
from torchrl_marl_offline.evaluation import add_videos
from torchrl_marl_offline.training import PopulationBuffer, PopulationLearner, Trainer, read_csv

LIBRARIES_WARN = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def data():
    return collect(make_env("games/grid_navigation", num_envs=8), episodes=8, seed=0)


def run_of(data, folder, *, members: int = 1, **options) -> Trainer:
    losses = {}
    for member in range(members):
        torch.manual_seed(member)
        losses[f"m{member}"] = make_loss(data.spec, hidden=(8,))
    loss = losses["m0"]
    if members > 1:
        learner = PopulationLearner(losses)
        buffer = PopulationBuffer(data.data, batch_size=8, seeds=list(range(members)), keys=loss.in_keys)
    else:
        learner, buffer = loss, data.replay_buffer(batch_size=8, seed=0, keys=loss.in_keys)
    return Trainer(learner, buffer, steps=5, log_every=5, eval_every=1, output=folder, progress=False, **options)


def shown_in(folder, tag: str):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (folder / "tensorboard").iterdir()
    found = EventAccumulator(str(events)).Reload()
    return found.Images(tag), found.Scalars("train/loss_qvalue")


@LIBRARIES_WARN
@pytest.mark.parametrize("members", [thorough(1), 2])
def test_an_episode_is_recorded_every_so_many_evaluations_and_shown_by_tensorboard(data, tmp_path, members):
    trainer = run_of(data, tmp_path, members=members, logger=["csv", "tensorboard"])
    add_videos(trainer, make_env("games/grid_navigation"), every=2, size=48)
    trainer.train()
    for member in trainer.learner.members:
        folder = trainer.member_folder(member)
        files = sorted((folder / "videos").iterdir())
        assert [file.name for file in files] == [f"step-{step:09d}.gif" for step in (2, 4, 5)]
        with Image.open(files[0]) as video:
            assert video.n_frames > 1
        images, losses = shown_in(folder, "video/episode")
        assert [image.step for image in images] == [2, 4, 5]
        assert images[0].encoded_image_string == files[0].read_bytes()
        (row,) = read_csv(folder / "train.csv")
        assert [event.value for event in losses] == pytest.approx([row["loss_qvalue"]])


def test_the_run_is_the_same_with_videos_and_without(data, tmp_path):
    found = []
    for name in ("with", "without"):
        trainer = run_of(data, tmp_path / name, evaluators={"none": lambda: None})
        if name == "with":
            add_videos(trainer, make_env("games/grid_navigation"), size=48)
        trainer.train()
        found.append(torch.cat([p.flatten() for p in trainer.loss.parameters()]))
    assert torch.equal(*found)


@LIBRARIES_WARN
@pytest.mark.thorough
def test_each_member_is_a_run_of_weights_and_biases(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = run_of(data, tmp_path, members=2, logger=["wandb"])
    add_videos(trainer, make_env("games/grid_navigation"), every=5, size=48)
    trainer.train()
    folders = [trainer.member_folder(member) for member in trainer.learner.members]
    assert len({(folder / "wandb.id").read_text() for folder in folders}) == 2
    assert all(list(folder.glob("wandb/offline-run-*/run-*.wandb")) for folder in folders)
    assert all(list(folder.glob("wandb/offline-run-*/files/media/videos/video/*.gif")) for folder in folders)


def test_what_cannot_be_recorded_is_refused_before_the_first_step(data, tmp_path):
    trainer = run_of(data, tmp_path)
    with pytest.raises(NotImplementedError, match="games/xor has nothing to draw"):
        add_videos(trainer, make_env("games/xor"))
    with pytest.raises(ValueError, match="video_format"):
        add_videos(trainer, make_env("games/grid_navigation"), video_format="avi")
    with pytest.raises(ValueError, match=r"give Trainer\(output=..., eval_every=...\)"):
        add_videos(run_of(data, None), make_env("games/grid_navigation"))
    with pytest.raises(ValueError, match="logger must be 'csv', 'tensorboard' or 'wandb', got 'mlflow'"):
        run_of(data, tmp_path, logger=["mlflow"])
    with pytest.raises(ValueError, match="names one twice"):
        run_of(data, tmp_path, logger=["csv", "csv"])
    with pytest.raises(ValueError, match="need a folder to write to"):
        run_of(data, None, logger=["tensorboard"])
