"""A video of one episode, as a GIF."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from tensordict import TensorDictBase
from torchrl.envs.utils import set_exploration_type

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.exploration import EXPLORATION, Mode
from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.layout import DONE, next_key
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.core.ranges import COUNT_OR_NONE, FRAMES, SEED, SIZE
from torchrl_marl_offline.data.policy_fit import fitted

if TYPE_CHECKING:
    import numpy as np
    from torchrl.envs import EnvBase


@torch.no_grad()
@checked
def record_video(
    env: EnvBase,
    policy: Callable[[TensorDictBase], TensorDictBase],
    path: str | os.PathLike,
    *,
    seed: Annotated[int, SEED] = 0,
    mode: Mode = "mode",
    index: Annotated[int, COUNT_OR_NONE] = 0,
    max_frames: Annotated[int, SIZE] = 500,
    frames_per_second: Annotated[float, FRAMES] = 10.0,
) -> Path:
    """Play an episode and write what ``env.render(index)`` shows of it, the start and the end included.

    Nothing needs a display. torch's generators are put back afterwards; the environment is left in the middle of the
    other slots' episodes.

    Args:
        env: an environment of :func:`~torchrl_marl_offline.make_env` whose task can be drawn.
        policy: writes ``("agents", "action")``.
        path: the file, ``*.gif``; its folder is made, and a file of that name is replaced.
        seed: of the environment and of the sampling: the episode is the first one of slot ``index`` of
            ``evaluate(policy, env, seed=seed)``.
        mode: ``"mode"`` executes the policy's deterministic action, ``"sample"`` draws from it.
        index: which slot of the batch.
        max_frames: of a longer episode, only the beginning is shown.
        frames_per_second: of the video.

    Returns:
        The path of the file.

    Raises:
        NotImplementedError: the task has nothing to draw.
        ValueError: the file's name does not end in ``.gif``.
    """
    path = user_path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"A video is written as a GIF: path must end in .gif, got {path}.")
    with preserved_rng(), evaluation_mode(policy), set_exploration_type(EXPLORATION[mode]):
        torch.manual_seed(seed)
        env.set_seed(seed)
        act = fitted(policy, env)
        tensordict = env.reset()
        frames = [env.render(index)]
        while len(frames) < max_frames:
            # without a reset, so that the last frame shows the end
            tensordict = env.step(act(tensordict))
            frames.append(env.render(index))
            if bool(tensordict.get(next_key(DONE))[index]):
                break
            tensordict = env.maybe_reset(env.step_mdp(tensordict))
    write_gif(frames, path, frames_per_second=frames_per_second)
    return path


def write_gif(frames: list[np.ndarray], path: Path, *, frames_per_second: float) -> None:
    """Write pictures ``[height, width, 3]`` of uint8 as a GIF that repeats."""
    from PIL import Image  # comes with matplotlib

    first, *others = (Image.fromarray(frame) for frame in frames)
    options = {"save_all": True, "append_images": others, "duration": 1000 / frames_per_second, "loop": 0}
    with replacing_file(path) as temporary:
        first.save(temporary, **options)
