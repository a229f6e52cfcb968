"""Videos that a run records of itself while it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.outputs import VideoFormat
from torchrl_marl_offline.core.ranges import COUNT, PIXELS, SEED
from torchrl_marl_offline.evaluation.video import check_drawn, check_video_path, record_video

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_marl_offline.training.trainer import Trainer

VIDEOS = "videos"


@checked
def add_videos(
    trainer: Trainer,
    env: EnvBase,
    *,
    every: Annotated[int, COUNT] = 1,
    size: Annotated[int, PIXELS] = 256,
    video_format: VideoFormat = "gif",
    seed: Annotated[int, SEED] = 0,
) -> None:
    """Let a Trainer record an episode of its policy at every so-many-th evaluation, and after the last step.

    The files are ``videos/step-NUMBER.gif`` in the run's folder, or of each member of a population in the member's; the
    loggers that can show videos show them. The numbers of the run stay the same, bit for bit.

    Args:
        trainer: with an ``output`` folder and ``eval_every``.
        env: of one slot, used for nothing else.
        every: evaluations between two videos.
        size: height of the picture in pixels.
        video_format: ``"gif"``, or ``"mp4"`` by the extra ``video``.
        seed: of the episode.

    Raises:
        ValueError: the trainer has no folder, or never evaluates.
        NotImplementedError: the task has nothing to draw.
        ImportError: an MP4 without its library.

    Example:
        >>> add_videos(trainer, make_env("mpe/simple_spread"), every=5)  # doctest: +SKIP
    """
    if trainer.output is None or trainer.eval_every is None:
        raise ValueError(
            "Videos are recorded at evaluations and written to a folder; give Trainer(output=..., eval_every=...)."
        )
    check_video_path(trainer.output / f"video.{video_format}", "video_format")
    check_drawn(env)

    def record() -> None:
        if (trainer.step // trainer.eval_every) % every and trainer.step < trainer.steps:
            return
        for member, loss in trainer.learner.member_losses():
            path = trainer.member_folder(member) / VIDEOS / f"step-{trainer.step:09d}.{video_format}"
            record_video(env, loss.actor_network, path, seed=seed, size=size)
            trainer.loggers[member].log_video(trainer.step, "episode", path)

    if trainer.processes.is_main:
        trainer.evaluators["video"] = record
