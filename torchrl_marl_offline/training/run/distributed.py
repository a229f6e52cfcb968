"""One run over several processes, each with a share of the rows of every batch: ``torchrun`` and its GPUs.

The run equals that of one process on the joined batch, up to the rounding of sums: every process draws the same rows
and the same noise from the same generators and takes its share, statistics of the batch are those of the joined one
(:mod:`torchrl_marl_offline.core.synchronized`), and gradients are averaged. The first process alone logs,
evaluates and writes checkpoints, from which a run goes on with any number of processes.

Gradients and metrics are averaged by one call on one flat tensor after the backward pass. Torch's
``DistributedDataParallel`` would start on the first gradients while the last are computed, but it acts in the hooks of
a module's ``forward`` and of its parameters' gradient, and where loss and gradients are one compiled function, neither
is called.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_marl_offline.core.parts import part
from torchrl_marl_offline.core.synchronized import Shares, joined_batch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store
    from torchrl.data import ReplayBuffer

Differentiate = Callable[[TensorDictBase], dict[str, Tensor]]
AGREE_EVERY = 10
"""Steps between the moments at which the processes agree on whether to stop."""
PATIENCE = timedelta(days=1)
"""How long the others wait for what the first does alone, such as an evaluation."""


class ProcessFailedError(RuntimeError):
    """Another process of the run failed, or is gone, and this one cannot go on alone."""


class SingleProcess:
    """What the training loop asks of the processes that share a run; here one process has all of it.

    Attributes:
        rank: number of this process, from 0.
        count: how many processes there are.
        device: where this one trains.
    """

    def __init__(self, device: torch.device | str = "cpu", *, rank: int = 0, count: int = 1) -> None:
        self.device, self.rank, self.count = torch.device(device), rank, count

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs, evaluates and writes files."""
        return self.rank == 0

    def share(self, buffer: ReplayBuffer) -> ReplayBuffer:
        """Let a buffer sample this process's rows alone, and return it."""
        return buffer

    def averaged(self, gradients: Differentiate, loss: nn.Module) -> Differentiate:
        """Return what differentiates the joined batch, given what differentiates a share."""
        return gradients

    def any_wants_to_stop(self, wanted: bool, step: int) -> bool:
        """Whether all stop now; asked before every step."""
        return wanted

    def from_main(self, value: Any) -> Any:
        """Return the first process's value, for which the others wait."""
        return value

    def start_alike(self, components: Callable[[], Mapping[str, Any]]) -> None:
        """Give the components of all processes the state that they have in the first."""

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process run the block before the others, as where files are made and then read."""
        yield

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block, tell the others of an exception here, and say so here where another process failed."""
        yield


class ManyProcesses(SingleProcess):
    """One of several processes that share a run; made by :func:`distributed_from_environment`.

    Args:
        group: over which gradients and statistics are summed.
        host_group: of the same processes, on the CPU, for what the hosts agree on.
        store: in which a process that fails leaves its reason.
        device: where this process trains.
    """

    def __init__(self, group: ProcessGroup, host_group: ProcessGroup, store: Store, device: torch.device) -> None:
        super().__init__(device, rank=group.rank(), count=group.size())
        self.group, self.host_group, self._store = group, host_group, store

    def share(self, buffer: ReplayBuffer) -> ReplayBuffer:
        """Let a buffer sample this process's rows alone; its sampler is replaced in place."""
        sampler = getattr(buffer, "sampler", None)
        if not isinstance(sampler, Sampler):
            raise TypeError(
                f"A {type(buffer).__name__} cannot be shared by {self.count} processes; give a replay buffer over a "
                "fixed dataset, or run one process."
            )
        if not isinstance(sampler, ShareOfSampler):
            buffer.set_sampler(ShareOfSampler(sampler, self.rank, self.count, buffer._batch_size))
        return buffer

    def averaged(self, gradients: Differentiate, loss: nn.Module) -> Differentiate:
        """Return what differentiates the joined batch, given what differentiates a share."""
        return AveragedGradients(gradients, loss, Shares(self.group, self.rank, self.count))

    def any_wants_to_stop(self, wanted: bool, step: int) -> bool:
        """Whether one of the processes wanted to stop when they last agreed, every :data:`AGREE_EVERY` steps."""
        if step % AGREE_EVERY:
            return False
        flag = torch.tensor(int(wanted))
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self.host_group)
        return bool(flag)

    def from_main(self, value: Any) -> Any:
        """Return the first process's value, for which the others wait."""
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.host_group)
        return values[0]

    def start_alike(self, components: Callable[[], Mapping[str, Any]]) -> None:
        """Send the state of the first process's components to the others: parameters, moments, generators."""
        parts = components()
        states = self._send({name: part.state_dict() for name, part in parts.items()} if self.is_main else None)
        if not self.is_main:
            for name, part in parts.items():
                part.load_state_dict(states[name])
        if self.device.type == "cuda":  # the run's noise is that of the first process's device
            torch.cuda.set_rng_state(torch.cuda.get_rng_state(0), self.device)

    def _send(self, states: dict[str, Any] | None) -> dict[str, Any]:
        content = io.BytesIO()
        if self.is_main:
            torch.save(states, content)
        size = torch.tensor(len(content.getbuffer()))
        torch.distributed.broadcast(size, src=0, group=self.host_group)
        data = torch.empty(int(size), dtype=torch.uint8)
        if self.is_main:
            data = torch.frombuffer(content.getbuffer(), dtype=torch.uint8)
        torch.distributed.broadcast(data, src=0, group=self.host_group)
        return torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process run the block before the others, as where files are made and then read."""
        with self.watched():
            if not self.is_main:
                self.from_main(None)
            yield
            if self.is_main:
                self.from_main(None)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block, tell the others of an exception here, and say so here where another process failed."""
        try:
            yield
        except ProcessFailedError:
            raise
        except Exception as error:
            atexit.unregister(_leave)  # taking leave of processes that are gone could wait for them
            with _sigterm_waits():
                if (reason := self._reason_elsewhere(error)) is None:
                    raise
                failed = ProcessFailedError(f"{reason}; process {self.rank} cannot go on without it.")
                # at once, since torchrun ends what is left of the run, maybe before there is a traceback
                print(f"{type(failed).__name__}: {failed}", file=sys.stderr, flush=True)
            raise failed from error

    def _reason_elsewhere(self, error: Exception) -> str | None:
        """Say what happened to another process, or leave a note of what happened here."""
        from_transport = isinstance(error, RuntimeError) and any(
            word in str(error) for word in ("gloo", "NCCL", "Connection closed", "ProcessGroup")
        )
        try:
            if not from_transport:
                self._store.set("failed", f"Process {self.rank} of this run failed ({type(error).__name__}: {error})")
            elif self._store.check(["failed"]):
                return self._store.get("failed").decode()
        except RuntimeError:  # torchrun, which keeps the notes, is gone, too
            pass
        return "Another process of this run is gone" if from_transport else None


@contextmanager
def _sigterm_waits() -> Iterator[None]:
    """Within the block, let SIGTERM wait, where the operating system can."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ShareOfSampler(Sampler):
    """A sampler that draws the rows of the joined batch and hands out one process's share of them.

    Args:
        joined: draws the rows of all; its state is this sampler's.
        rank: which share, from 0.
        count: how many shares.
        batch_size: rows of the joined batch, where they are known before.

    Raises:
        ValueError: the rows, or the slices of episodes, cannot be shared equally.
    """

    def __init__(self, joined: Sampler, rank: int, count: int, batch_size: int | None = None) -> None:
        self.joined, self.rank, self.count = joined, rank, count
        self._rng = getattr(joined, "_rng", None)
        if batch_size is not None:
            self._check(batch_size)

    def _check(self, batch_size: int) -> None:
        slice_len = getattr(self.joined, "slice_len", None) or len(getattr(self.joined, "time", [0]))
        if batch_size % (self.count * slice_len):
            rows = f"{batch_size} rows" if slice_len == 1 else f"{batch_size // slice_len} slices of {slice_len} rows"
            raise ValueError(
                f"A batch of {rows} cannot be shared equally by {self.count} processes; choose a batch_size that is a "
                f"multiple of {self.count * slice_len}."
            )

    def sample(self, storage: Any, batch_size: int) -> tuple[Any, dict]:
        """Draw ``batch_size`` rows and return the own ``batch_size / count`` of them."""
        self.joined._rng = self._rng
        index, info = self.joined.sample(storage, batch_size)
        first = index[0] if isinstance(index, tuple) else index
        rows = len(first)  # the last batch of an epoch may be smaller; of sequences [S, T] it is S
        self._check(first.numel() if isinstance(first, Tensor) else rows)
        size = rows // self.count
        own = slice(self.rank * size, (self.rank + 1) * size)

        def share(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(share, value))
            return value[own] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value

        return share(index), {key: share(value) for key, value in info.items()}

    @property
    def ran_out(self) -> bool:
        """Whether the joined sampler has no more rows."""
        return self.joined.ran_out

    @ran_out.setter
    def ran_out(self, value: bool) -> None:
        self.joined.ran_out = value

    def state_dict(self) -> dict[str, Any]:
        """Return the joined sampler's state: a run may go on with another number of processes."""
        return self.joined.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the joined sampler's state."""
        self.joined.load_state_dict(state_dict)

    def dumps(self, path: Any) -> None:
        """Write the joined sampler's state."""
        self.joined.dumps(path)

    def loads(self, path: Any) -> None:
        """Read the joined sampler's state."""
        self.joined.loads(path)

    def _empty(self) -> None:
        self.joined._empty()


class AveragedGradients:
    """Differentiate a share within the joined batch, then average gradients and metrics over the processes.

    Args:
        gradients: sets the ``grad`` of the loss's parameters and returns the metrics of a batch.
        loss: whose parameters they are.
        shares: the processes.
    """

    def __init__(self, gradients: Differentiate, loss: nn.Module, shares: Shares) -> None:
        self.gradients, self.loss, self.shares = gradients, loss, shares

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Set every trainable parameter's ``grad`` and return the metrics of the joined batch, each of shape ``[]``."""
        with joined_batch(self.shares):
            metrics = self.gradients(batch)
        with part("averaging over processes"):
            return self._average(metrics)

    def _average(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        parameters = [parameter for parameter in self.loss.parameters() if parameter.grad is not None]
        tensors = [*(parameter.grad for parameter in parameters), *metrics.values()]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat, group=self.shares.group)
        parts = flat.div_(self.shares.count).split([tensor.numel() for tensor in tensors])
        averaged = [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors)]
        for parameter, gradient in zip(parameters, averaged):
            parameter.grad = gradient
        return dict(zip(metrics, averaged[len(parameters) :]))


def distributed_from_environment(device: torch.device | str | None = None) -> SingleProcess:
    """Return the processes of the run that this one belongs to, by the environment variables that ``torchrun`` sets.

    Call it once, before the training, and seed all processes alike. Without those variables it is one process. Where it
    is asked for CUDA, process ``LOCAL_RANK`` of a machine gets GPU ``LOCAL_RANK`` and they talk by NCCL; else they
    talk by Gloo.

    Args:
        device: ``"cpu"`` or ``"cuda"``; by default CUDA where there is a GPU.

    Raises:
        ValueError: there are more processes on this machine than GPUs.

    Example:
        >>> processes = distributed_from_environment("cpu")
        >>> processes.is_main, processes.count, processes.device
        (True, 1, device(type='cpu'))
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SingleProcess(kind if device is None else device)
    own = torch.device(kind)
    if kind == "cuda":
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ValueError(
                f"Process {local_rank} of this machine has no GPU of its own, there are {gpus}; start torchrun with "
                f"--nproc-per-node {gpus}."
            )
        own = torch.device("cuda", local_rank)
        torch.cuda.set_device(own)
    store, rank, count = next(torch.distributed.rendezvous("env://", timeout=timedelta(minutes=5)))
    options = {"store": torch.distributed.PrefixStore("group", store), "rank": rank, "world_size": count}
    torch.distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo", device_id=own if kind == "cuda" else None, **options
    )
    atexit.register(_leave)
    host_group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    notes = torch.distributed.PrefixStore("notes", store)
    return ManyProcesses(torch.distributed.group.WORLD, host_group, notes, own)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
