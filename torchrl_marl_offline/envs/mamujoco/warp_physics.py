"""MuJoCo's steps for a batch of environments on a GPU, by MuJoCo Warp."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchrl_marl_offline.envs.base import Game
from torchrl_marl_offline.envs.mamujoco.physics import STATE_FIELDS

if TYPE_CHECKING:
    import mujoco


class WarpMujoco:
    """MuJoCo Warp: all environments at once, in single precision, on a GPU (or, slowly, on the CPU).

    Torch and Warp share the memory of every field (``wp.to_torch``), so nothing passes through the host. The launches
    of a step are recorded once, on a GPU as a CUDA graph (which takes CUDA 12.4), and replayed. Warp compiles its
    kernels before that, which takes half a minute, and keeps them in a folder of its own.

    Three things differ from MuJoCo: Warp has no projected Gauss-Seidel solver, so models that ask for it (the
    humanoids) are solved by Newton's method; the rope of the coupled cheetahs, which is rigid at its full length, gives
    a little, as single precision demands; and the number of contacts is bounded, by two for each geom.

    Args:
        model: MuJoCo's model, without actuator activations.
        frame_skip: simulator steps per environment step.
        fields: fields of ``MjData`` that are wanted besides the state.
        num_envs: number of environments.
        device: a CUDA device or the CPU.
        threads: must be ``None``; Warp has its own.
    """

    dtype = torch.float32

    def __init__(
        self,
        model: mujoco.MjModel,
        *,
        frame_skip: int,
        fields: Sequence[str],
        num_envs: int,
        device: torch.device,
        threads: int | None,
    ) -> None:
        if threads is not None:
            raise ValueError("threads are for backend 'mujoco'; backend 'warp' takes none.")
        import mujoco
        import mujoco_warp
        import warp

        warp.init()
        self._warp, self._mujoco_warp = warp, mujoco_warp
        self.frame_skip, self.device = frame_skip, device
        self._outputs = (*STATE_FIELDS, *fields)
        self._contact_forces = "cfrc_ext" in fields
        model_given, model = model, copy.copy(model)
        if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
            model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
        # A weight of zero makes a row of 1e15 beside rows of 10, of which Newton's method makes NaN.
        model.tendon_invweight0[:] = model.tendon_invweight0.clip(min=1e-4)
        contacts = max(48, 2 * model.ngeom)
        rows = 4 * contacts + 2 * model.njnt  # a pyramid of friction has four rows, a joint's limits two
        with warp.ScopedDevice(warp.device_from_torch(device)):
            self._model = mujoco_warp.put_model(model)
            self._data = mujoco_warp.make_data(model, nworld=num_envs, nconmax=contacts, njmax=rows)
        self._memory = {
            name: warp.to_torch(getattr(self._data, name)).view(num_envs, -1) for name in (*self._outputs, "ctrl")
        }
        self._graph = None
        self._made_of = model_given, frame_skip, tuple(fields), num_envs, device

    def __reduce__(self) -> tuple:
        """Copy by making another: the memory and the recorded launches belong to this process."""
        return _made_again, self._made_of

    def start(self, qpos: Tensor, qvel: Tensor) -> Game:
        """See :class:`~torchrl_marl_offline.envs.mamujoco.physics.Physics`."""
        rows = len(qpos)
        if not rows:
            return self._read(0)
        with self._on_torchs_stream():
            for memory in self._memory.values():
                memory.zero_()
            self._memory["qpos"][:] = qpos[:1]  # also beyond the rows, where nobody reads but all is computed
            self._memory["qpos"][:rows] = qpos
            self._memory["qvel"][:rows] = qvel
            self._mujoco_warp.forward(self._model, self._data)
            return self._read(rows)

    def step(self, game: Game, control: Tensor) -> Game:
        """See :class:`~torchrl_marl_offline.envs.mamujoco.physics.Physics`."""
        with self._on_torchs_stream():
            for name in STATE_FIELDS:
                self._memory[name].copy_(game[name])
            self._memory["ctrl"].copy_(control)
            if self._graph is None:
                self._graph = self._record()
            self._warp.capture_launch(self._graph, stream=self._torchs_stream())
            return self._read(len(control))

    def _launch(self) -> None:
        for _ in range(self.frame_skip):
            self._mujoco_warp.step(self._model, self._data)
        if self._contact_forces:
            self._mujoco_warp.rne_postconstraint(self._model, self._data)

    def _record(self):
        """Compile the kernels by a step whose result is put back, then record the launches."""
        before = {name: self._memory[name].clone() for name in (*STATE_FIELDS, "ctrl")}
        self._launch()
        # torch's default stream cannot be recorded, so the recording has one of its own
        device = self._warp.device_from_torch(self.device)
        stream = None if device.is_cpu else self._warp.Stream(device)
        self._warp.synchronize_device(device)
        with self._warp.ScopedStream(stream), self._warp.ScopedCapture(device, stream) as capture:
            self._launch()
        for name, value in before.items():
            self._memory[name].copy_(value)
        return capture.graph

    def _torchs_stream(self):
        if self.device.type == "cpu":
            return None
        return self._warp.stream_from_torch(torch.cuda.current_stream(self.device))

    def _on_torchs_stream(self):
        """Order Warp's launches with torch's."""
        if self.device.type == "cpu":
            return self._warp.ScopedDevice("cpu")
        return self._warp.ScopedStream(self._torchs_stream())

    def _read(self, rows: int) -> Game:
        return {name: self._memory[name][:rows].clone() for name in self._outputs}


def _made_again(
    model: mujoco.MjModel, frame_skip: int, fields: Sequence[str], num_envs: int, device: torch.device
) -> WarpMujoco:
    at = {"num_envs": num_envs, "device": device}
    return WarpMujoco(model, frame_skip=frame_skip, fields=fields, threads=None, **at)
