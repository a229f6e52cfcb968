"""Pictures of a MuJoCo environment, without a display."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from gymnasium.envs.mujoco.mujoco_env import MujocoEnv


class Renderer:
    """Gymnasium's renderer with the scenario's camera, which follows the robot.

    Args:
        env: the Gymnasium environment, unwrapped; its ``MjData`` is overwritten.
        size: height and width of the picture, in pixels.
    """

    def __init__(self, env: MujocoEnv, *, size: int) -> None:
        from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

        self.size, self._env = size, env
        buffer = env.model.vis.global_
        buffer.offwidth, buffer.offheight = max(buffer.offwidth, size), max(buffer.offheight, size)
        camera = env.mujoco_renderer.default_cam_config
        self._renderer = MujocoRenderer(env.model, env.data, camera, size, size)
        errors = []
        for library in _libraries():
            try:
                with _open_gl(library):
                    self._viewer = self._renderer._get_viewer("rgb_array")
                # EGL ends by an exit handler that the context has registered, so this one comes before it.
                atexit.register(_free, weakref.ref(self))
                return
            except Exception as error:  # whatever a missing driver raises
                errors.append(f"{library}: {type(error).__name__}")
        raise RuntimeError(
            f"MuJoCo cannot draw here ({'; '.join(errors)}); install EGL (libegl1) or OSMesa (libosmesa6), and choose "
            "one of them by the environment variable MUJOCO_GL."
        )

    def __call__(self, qpos: Tensor, qvel: Tensor) -> np.ndarray:
        """Return the picture of a state, ``[nq]`` and ``[nv]``: uint8 ``[size, size, 3]``."""
        data = self._env.data
        self._env.set_state(qpos.double().cpu().numpy(), qvel.double().cpu().numpy())
        self._viewer.make_context_current()
        self._viewer.cam.lookat[:2] = data.subtree_com[0, :2]
        return self._renderer.render("rgb_array").copy()


def _free(renderer: weakref.ref[Renderer]) -> None:
    if (alive := renderer()) is not None:
        alive._viewer.free()


def _libraries() -> tuple[str, ...]:
    chosen = os.environ.get("MUJOCO_GL")
    if chosen:
        return (chosen,)
    if sys.platform != "linux":
        return ("glfw",)
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return ("egl", "osmesa", "glfw") if display else ("egl", "osmesa")


@contextmanager
def _open_gl(library: str) -> Iterator[None]:
    """Let Gymnasium take this library; it reads the environment variable only when it opens a context."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = library
    try:
        yield
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before
