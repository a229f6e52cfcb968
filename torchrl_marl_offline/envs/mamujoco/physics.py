"""MuJoCo's steps for a batch of environments, and their form on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from torchrl_marl_offline.envs.base import Game

if TYPE_CHECKING:
    import mujoco

STATE_FIELDS = ("qpos", "qvel", "qacc_warmstart")
"""What the next step depends on, for models without actuator activations: names as in ``MjData``."""

_CHUNKS_PER_THREAD = 4
_Simulation = Callable[["mujoco.MjModel", "mujoco.MjData"], None]


class Physics(Protocol):
    """Steps of a batch: from a dictionary of tensors ``[B, ...]`` to the next one, nothing kept in between.

    The dictionary holds :data:`STATE_FIELDS` and, flattened, those further fields of ``MjData`` that were asked for.
    As in Gymnasium, these are as ``mj_step`` leaves them: of the integrator's last evaluation, not of the new position.
    """

    dtype: torch.dtype

    def start(self, qpos: Tensor, qvel: Tensor) -> Game:
        """Return the batch at rest of warm starts and contact forces, ``[R, nq]`` and ``[R, nv]``."""

    def step(self, game: Game, control: Tensor) -> Game:
        """Apply ``control``, ``[B, nu]``, for the frame skip."""


class _Workspace:
    """A thread's ``MjData`` and its memory.

    ``block`` reaches from the positions to the controls, which lie one behind the other in ``MjData``, so that a state
    goes in and out by one copy: while NumPy copies, no other thread can run Python.
    """

    def __init__(self, model: mujoco.MjModel, fields: Sequence[str]) -> None:
        import mujoco

        self.data = mujoco.MjData(model)
        arrays = {name: getattr(self.data, name) for name in (*STATE_FIELDS, "ctrl")}
        places = {name: (each.ctypes.data - arrays["qpos"].ctypes.data) // 8 for name, each in arrays.items()}
        width = places["ctrl"] + model.nu
        if sorted(places.values()) != list(places.values()) or width > 2 * model.nq + 3 * model.nv + model.nu + 64:
            raise RuntimeError(f"MuJoCo {mujoco.__version__} orders MjData in another way; install mujoco 3.5.")
        self.slices = {name: slice(place, place + arrays[name].size) for name, place in places.items()}
        self.block = as_strided(arrays["qpos"], (width,), (8,))
        self.fields = {name: getattr(self.data, name).reshape(-1) for name in fields}


class ThreadedMujoco:
    """MuJoCo in double precision on the CPU, environments shared out among threads.

    Bit for bit what ``mj_step`` gives to an environment that has its ``MjData`` to itself, because the solver's warm
    start travels with the state. ``mujoco.rollout``, of the same speed here, returns neither the warm start nor contact
    forces, so that its roll-outs leave Gymnasium's after a few contacts.

    Args:
        model: MuJoCo's model, without actuator activations.
        frame_skip: simulator steps per environment step.
        fields: fields of ``MjData`` that are wanted besides the state.
        num_envs: not needed here.
        device: the CPU.
        threads: threads that step; 1 steps in the caller's, ``None`` takes torch's number.
    """

    dtype = torch.float64

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
        threads = torch.get_num_threads() if threads is None else threads
        if device.type != "cpu":
            raise ValueError(f"backend 'mujoco' runs on the CPU; for {str(device)!r} take backend 'warp'.")
        if model.na:
            raise ValueError("Models whose actuators have activations are not supported.")
        self.model, self.frame_skip, self.threads = model, frame_skip, threads
        self._fields, self._contact_forces = tuple(fields), "cfrc_ext" in fields
        self._workspaces: SimpleQueue[_Workspace] = SimpleQueue()
        for _ in range(threads):
            space = _Workspace(model, fields)
            self._workspaces.put(space)
        self._slices = space.slices
        self._sizes = {name: array.size for name, array in space.fields.items()}
        self._empty_block = torch.as_tensor(space.block.copy())

    def __reduce__(self) -> tuple:
        """Copy by making another: threads and their memory belong to this process, and nothing is kept in them."""
        return _made_again, (type(self), self.model, self.frame_skip, self._fields, self.threads)

    def start(self, qpos: Tensor, qvel: Tensor) -> Game:
        """See :class:`Physics`."""
        from mujoco import mj_forward, mj_resetData

        return self._run({"qpos": qpos, "qvel": qvel}, before=mj_resetData, advance=mj_forward)

    def step(self, game: Game, control: Tensor) -> Game:
        """See :class:`Physics`."""
        from mujoco import mj_rnePostConstraint, mj_step

        def advance(model: mujoco.MjModel, data: mujoco.MjData) -> None:
            mj_step(model, data, self.frame_skip)
            if self._contact_forces:
                mj_rnePostConstraint(model, data)

        return self._run({**{name: game[name] for name in STATE_FIELDS}, "ctrl": control}, advance=advance)

    def _run(self, inputs: Game, *, advance: _Simulation, before: _Simulation | None = None) -> Game:
        """Write each row of ``inputs`` into a workspace, advance it, and return the rows of state and fields."""
        rows = len(inputs["qpos"])
        blocks = self._empty_block.repeat(rows, 1)
        for name, value in inputs.items():
            blocks[:, self._slices[name]] = value
        fields = {name: torch.empty(rows, size, dtype=self.dtype) for name, size in self._sizes.items()}
        states, seen = blocks.numpy(), {name: value.numpy() for name, value in fields.items()}

        def work(chunk: range) -> None:
            space = self._workspaces.get()
            data, block = space.data, space.block
            reads = [(space.fields[name], target) for name, target in seen.items()]
            try:
                for i in chunk:
                    if before is not None:
                        before(self.model, data)
                    state = states[i]
                    block[:] = state
                    advance(self.model, data)
                    state[:] = block
                    for memory, target in reads:
                        target[i] = memory
            finally:
                self._workspaces.put(space)

        if min(self.threads, rows) <= 1:
            work(range(rows))
        else:
            size = -(-rows // (_CHUNKS_PER_THREAD * self.threads))
            for _ in self._pool.map(work, [range(i, min(i + size, rows)) for i in range(0, rows, size)]):
                pass  # `map` is lazy about exceptions
        return {name: blocks[:, self._slices[name]] for name in STATE_FIELDS} | fields

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="mujoco")


def _made_again(kind: type, model: mujoco.MjModel, frame_skip: int, fields: Sequence[str], threads: int) -> Physics:
    at = {"num_envs": 0, "device": torch.device("cpu")}  # not needed there
    return kind(model, frame_skip=frame_skip, fields=fields, threads=threads, **at)
