"""TorchRL's loggers of TensorBoard and Weights & Biases, for a run's folder; each library is imported when used."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

from torchrl_marl_offline.core.files import write_text_atomic
from torchrl_marl_offline.core.outputs import LoggerName
from torchrl_marl_offline.core.ranges import shown
from torchrl_marl_offline.core.regular_files import read_text


def check_loggers(names: Collection[str], where: str = "logger") -> None:
    """Refuse loggers that there are not.

    Raises:
        ValueError: one is unknown, or named twice.
    """
    if isinstance(names, str) or not isinstance(names, Collection):
        raise ValueError(f"{where} must be a list of names, such as ['tensorboard'], got {shown(names)}.")
    for name in names:
        if name not in get_args(LoggerName):
            raise ValueError(f"{where} must be 'csv', 'tensorboard' or 'wandb', got {shown(name)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"{where} names one twice: {' '.join(names)}; leave one out.")


def tensorboard_logger(output: Path, name: str) -> Any:
    """Return a logger that writes events into ``output/tensorboard/NAME``."""
    from torchrl.record.loggers.tensorboard import TensorboardLogger

    try:
        return TensorboardLogger(name, log_dir=str(output / "tensorboard"))
    except ImportError as error:
        raise ImportError("TensorBoard is not installed; pip install tensorboard.") from error


def wandb_logger(output: Path, name: str, *, mode: bool | str, project: str, group: str | None) -> Any:
    """Return a logger that writes to Weights & Biases, and to a run of its own there beside others of one process.

    Args:
        output: the run's folder; a run that is resumed goes on under the identity that it keeps there.
        name: of the run.
        mode: ``"offline"``, ``"online"``, or true: offline where the environment variable ``WANDB_MODE`` is.
        project: the project.
        group: the runs that belong together.
    """
    from torchrl.record.loggers.wandb import WandbLogger

    # TorchRL's logger, asked for "offline", leaves the old word "dryrun" in the variable
    offline = mode == "offline" or (mode is True and os.environ.get("WANDB_MODE") in ("offline", "dryrun"))
    identity = output / "wandb.id"
    try:
        logger = WandbLogger(
            name,
            offline=offline,
            save_dir=str(output),
            project=project,
            id=read_text(identity) if identity.exists() else None,
            log_env_packages=False,
            group=group,
            reinit="create_new",  # or the members of a population would all write to the first one's run
        )
    except ImportError as error:
        raise ImportError("Weights & Biases is not installed; pip install wandb.") from error
    write_text_atomic(identity, logger.experiment.id)
    return logger


def log_video_file(logger: Any, name: str, path: Path, step: int) -> bool:
    """Show a GIF or MP4 file in a logger, as it is; TorchRL's own way would encode it again, by another library.

    Returns:
        Whether the logger can show it: TensorBoard shows GIFs alone.
    """
    kind = type(logger).__name__
    if kind == "WandbLogger":
        import wandb

        video = wandb.Video(str(path), format=path.suffix.removeprefix("."))
        logger.experiment.log({name: video, "video_step": step})
        return True
    if kind == "TensorboardLogger" and path.suffix.lower() == ".gif":
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        logger.experiment._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        return True
    return False
