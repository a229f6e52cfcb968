"""A video of one episode, as a GIF or an MP4, with its step and its return written above the picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import torch
from tensordict import TensorDictBase
from torchrl.envs.utils import set_exploration_type

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.exploration import EXPLORATION, Mode
from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.layout import DONE, REWARD, next_key
from torchrl_marl_offline.core.outputs import VideoFormat
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.put_back import evaluation_mode, preserved_rng
from torchrl_marl_offline.core.ranges import COUNT_OR_NONE, FRAMES, PIXELS, SEED, SIZE
from torchrl_marl_offline.data.policy_fit import Carried, fitted

if TYPE_CHECKING:
    import numpy as np
    from torchrl.envs import EnvBase


def check_video_path(path: str | os.PathLike, name: str = "path") -> Path:
    """Refuse a file that no video can be written to, before an episode is played for it.

    Args:
        path: the file.
        name: what it is called in the message.

    Raises:
        ValueError: its name ends in neither ``.gif`` nor ``.mp4``.
        ImportError: an MP4 is wanted, and the library that writes it is not installed.
    """
    path = user_path(path)
    if path.suffix.lower().removeprefix(".") not in get_args(VideoFormat):
        raise ValueError(f"{name} must end in .gif or .mp4, the formats of a video, got {path}.")
    if path.suffix.lower() == ".mp4" and find_spec("av") is None:
        raise ImportError(
            "An MP4 needs the extra video, pip install 'torchrl-marl-offline[video]'; a GIF needs nothing: name a file "
            "that ends in .gif."
        )
    return path


def check_drawn(env: EnvBase) -> None:
    """Refuse a task that cannot be drawn, by drawing it once.

    Raises:
        NotImplementedError: it has nothing to draw.
    """
    with preserved_rng():
        env.reset()
        env.render(0, size=32)


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
    size: Annotated[int, PIXELS] = 256,
    caption: bool = True,
) -> Path:
    """Play an episode and write what ``env.render(index)`` shows of it, the start and the end included.

    Nothing needs a display. torch's generators are put back afterwards; the environment is left in the middle of the
    other slots' episodes.

    Args:
        env: an environment of :func:`~torchrl_marl_offline.make_env` whose task can be drawn.
        policy: writes ``("agents", "action")``.
        path: the file, ``*.gif`` or ``*.mp4`` (extra ``video``); its folder is made, and a file of that name is
            replaced.
        seed: of the environment and of the sampling: the episode is the first one of slot ``index`` of
            ``evaluate(policy, env, seed=seed)``.
        mode: ``"mode"`` executes the policy's deterministic action, ``"sample"`` draws from it.
        index: which slot of the batch.
        max_frames: of a longer episode, only the beginning is shown.
        frames_per_second: of the video.
        size: height of the picture in pixels; the caption stands above it.
        caption: write the step and the return so far (the sum over steps of the mean over agents) above the picture.

    Returns:
        The path of the file.

    Raises:
        NotImplementedError: the task has nothing to draw.
        ValueError: the file's name ends in neither ``.gif`` nor ``.mp4``, or there is no such slot.
        ImportError: an MP4 without the extra ``video``.
    """
    path = check_video_path(path)
    if index >= env.batch_size[0]:
        raise ValueError(f"index must be below the environment's {env.batch_size[0]} slots, got {index}.")
    with preserved_rng(), evaluation_mode(policy), set_exploration_type(EXPLORATION[mode]):
        torch.manual_seed(seed)
        env.set_seed(seed)
        act, carried = fitted(policy, env), Carried(policy)
        tensordict = carried.begin(env.reset())
        frames, returns = [env.render(index, size=size)], [0.0]
        while len(frames) < max_frames:
            # without a reset, so that the last frame shows the end
            tensordict = env.step(act(tensordict))
            frames.append(env.render(index, size=size))
            returns.append(returns[-1] + tensordict.get(next_key(REWARD))[index].double().mean().item())
            if bool(tensordict.get(next_key(DONE))[index]):
                break
            tensordict = carried.onward(tensordict, env.maybe_reset(env.step_mdp(tensordict)))
    if caption:
        frames = [_captioned(frame, step, total) for step, (frame, total) in enumerate(zip(frames, returns))]
    write = write_gif if path.suffix.lower() == ".gif" else write_mp4
    write(frames, path, frames_per_second=frames_per_second)
    return path


def _captioned(frame: np.ndarray, step: int, total: float) -> np.ndarray:
    """Return a picture below a line that says the step and the return up to it, black on white."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont  # comes with matplotlib

    height, width = frame.shape[:2]
    letters = max(9, min(height, width) // 18)
    strip = Image.new("RGB", (width, letters + letters // 2 + 2), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(letters)
    draw.text((letters // 2, letters // 4), f"step {step}", fill="black", font=font)
    draw.text((width - letters // 2, letters // 4), f"return {total:.4g}", fill="black", font=font, anchor="ra")
    return np.concatenate([np.asarray(strip), frame])


def write_gif(frames: Sequence[np.ndarray], path: Path, *, frames_per_second: float) -> None:
    """Write pictures ``[height, width, 3]`` of uint8 as a GIF that repeats."""
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    options = {"save_all": True, "append_images": others, "duration": 1000 / frames_per_second, "loop": 0}
    with replacing_file(path) as temporary:
        first.save(temporary, **options)


def write_mp4(frames: Sequence[np.ndarray], path: Path, *, frames_per_second: float) -> None:
    """Write pictures ``[height, width, 3]`` of uint8 as an MP4 (H.264), by the extra ``video``."""
    import av
    import numpy as np

    height, width = frames[0].shape[:2]
    rest = ((0, height % 2), (0, width % 2), (0, 0))  # H.264 halves the resolution of colours
    with replacing_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.pad(frame, rest, mode="edge"), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
