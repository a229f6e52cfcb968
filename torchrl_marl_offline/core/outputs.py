"""What a run can write, by name; no torch is imported here, so that commands can say it."""

from typing import Literal

LoggerName = Literal["csv", "tensorboard", "wandb"]
"""What a run can be logged to; CSV files are written in any case, since a run goes on from them."""

VideoFormat = Literal["gif", "mp4"]
"""What a video can be written as."""
