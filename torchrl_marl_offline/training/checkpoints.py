"""Checkpoints that survive a kill at any moment, on TorchRL's :class:`~torchrl.checkpoint.Checkpoint`.

One checkpoint is one archive file, written under a hidden name and then renamed, so that a name that can be seen is
complete. An archive keeps a checksum (CRC-32) of each of its members: a file damaged later is found *before* any live
object is touched, and the one before it is taken instead, with a warning.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from torchrl.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointRotation,
    StateDictCheckpointAdapter,
)

from torchrl_marl_offline.core.files import remove_if_abandoned
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import COUNT, checked

if TYPE_CHECKING:
    import torch
    from torchrl.data import ReplayBuffer

_SUFFIX = ".torchrl"


class CheckpointManager:
    """Save, keep the newest ``keep``, and restore components by name.

    A component has ``state_dict`` and ``load_state_dict``, or is a mapping of JSON values. Beside the newest, the best
    checkpoint can be kept under a name of its own (:meth:`save_best`).

    Args:
        directory: where the checkpoints lie; made on the first save.
        keep: how many of the newest are kept.

    Example:
        >>> import tempfile, torch
        >>> directory = tempfile.mkdtemp()
        >>> source, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> path = CheckpointManager(directory).save(100, loss=source)
        >>> CheckpointManager(directory).load(loss=target)
        100
        >>> torch.equal(source.weight, target.weight)
        True
    """

    @checked
    def __init__(self, directory: str | Path, *, keep: Annotated[int, COUNT] = 3) -> None:
        self.directory = user_path(directory)
        self._newest = CheckpointRotation(self.directory, keep_last=keep)
        self._best = CheckpointRotation(self.directory, keep_last=1, prefix="best")

    def save(self, step: int, *, metadata: Mapping[str, Any] | None = None, **components: Any) -> Path:
        """Write a checkpoint of ``components`` at ``step``, then drop the oldest beyond ``keep``."""
        self._remove_leftovers()
        return self._newest.save(self._checkpoint(components), step=step, metadata={"step": step, **(metadata or {})})

    def save_best(self, step: int, *, metadata: Mapping[str, Any] | None = None, **components: Any) -> Path:
        """Write the one checkpoint that is kept as the best, replacing the best before it."""
        return self._best.save(self._checkpoint(components), step=step, metadata={"step": step, **(metadata or {})})

    def tidy(self) -> None:
        """Delete what a killed writer left, and the checkpoints beyond ``keep`` that it did not come to delete."""
        if self.directory.is_dir():
            self._remove_leftovers()
            self._newest.prune()
            self._best.prune()

    def checkpoints(self) -> list[Path]:
        """Return the files by step, oldest first, damaged ones included."""
        return sorted(self.directory.glob(f"checkpoint-*{_SUFFIX}"))

    def latest(self) -> Path | None:
        """Return the newest checkpoint that is whole, or ``None``; warns of every damaged one passed over."""
        return self._newest_whole("checkpoint")

    def best(self) -> Path | None:
        """Return the best checkpoint, or ``None`` where none was saved."""
        return self._newest_whole("best")

    def load(self, path: str | Path | None = None, *, map_location: Any = None, **components: Any) -> int:
        """Restore ``components`` in place from ``path`` (by default the newest whole checkpoint).

        Returns:
            The step at which the checkpoint was written.

        Raises:
            FileNotFoundError: if there is no checkpoint, or only damaged ones.
            CheckpointError: if ``path`` is damaged or does not fit the components.
        """
        if path is None:
            path = self.latest()
            if path is None:
                raise FileNotFoundError(
                    f"No whole checkpoint in {self.directory}; start again without resuming, or name another folder."
                )
        elif (damage := find_damage(Path(path))) is not None:
            raise CheckpointError(f"The checkpoint {path} is damaged ({damage}); load an earlier one.")
        try:
            result = self._checkpoint(components).load(path, map_location=map_location)
        except CheckpointError as error:
            raise CheckpointError(
                f"The checkpoint {path} does not fit this run; resume it with the settings it was started with: {error}"
            ) from error
        return int(result.manifest["metadata"]["step"])

    def _checkpoint(self, components: Mapping[str, Any]) -> Checkpoint:
        checkpoint = Checkpoint(format="archive")
        for name, component in components.items():
            # One torch.save per component: an Adam state in a file per tensor is hundreds of small files.
            adapter = StateDictCheckpointAdapter("torch") if hasattr(component, "state_dict") else None
            checkpoint.register(name, component, adapter=adapter)
        return checkpoint

    def _newest_whole(self, prefix: str) -> Path | None:
        for path in sorted(self.directory.glob(f"{prefix}-*{_SUFFIX}"), reverse=True):
            damage = find_damage(path)
            if damage is None:
                return path
            warnings.warn(
                f"The checkpoint {path} is damaged ({damage}); falling back to the one before it.", stacklevel=3
            )
        return None

    def _remove_leftovers(self) -> None:
        """Delete the hidden half-written files of a killed run."""
        for entry in self.directory.glob(".*-*"):
            if entry.name.startswith((".checkpoint-", ".best-")):
                remove_if_abandoned(entry)


class BufferState:
    """The state of a replay buffer's sampling, without its storage: an offline buffer's content never changes.

    Args:
        buffer: the buffer. Its sampler's state and its generator, where it has one, are saved and restored; a buffer
            without a generator draws from the global one, which belongs to :class:`~torchrl.checkpoint.GlobalRNGState`.

    Raises:
        ValueError: for a buffer that prefetches: its batches are drawn ahead of the step that a checkpoint records.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        if getattr(buffer, "_prefetch", False):
            raise ValueError(
                "The replay buffer prefetches, so a resumed run could not repeat its batches; use prefetch=None."
            )
        self.buffer = buffer

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state, the generator's state and the number of stored rows."""
        generator = self._generator
        return {
            "sampler": dict(self.buffer.sampler.state_dict()),
            "generator": None if generator is None else generator.get_state(),
            "size": len(self.buffer),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; the dataset must have the same number of rows."""
        if state["size"] != len(self.buffer):
            raise ValueError(f"the checkpoint was trained on {state['size']} rows, this buffer has {len(self.buffer)}")
        generator = self._generator
        if (generator is None) != (state["generator"] is None):
            raise ValueError("the buffer has a generator of its own in only one of the checkpoint and this run")
        self.buffer.sampler.load_state_dict(state["sampler"])
        if generator is not None:
            restore_generator(generator, state["generator"])

    @property
    def _generator(self) -> Any:
        generator = getattr(self.buffer, "_rng", None)
        return getattr(self.buffer.sampler, "_rng", None) if generator is None else generator


def restore_generator(generator: torch.Generator, state: torch.Tensor) -> None:
    """Let a generator go on from a state that was saved.

    Raises:
        ValueError: for a state of another kind of device, whose numbers this one cannot draw.
    """
    if state.numel() != generator.get_state().numel():
        raise ValueError(
            f"the checkpoint's random numbers are of another kind of device than {generator.device.type!r}; go on "
            "where the run was, or start a new one from its policy"
        )
    generator.set_state(state.cpu())


def find_damage(path: Path) -> str | None:
    """Read a checkpoint through and say what is wrong with it, or ``None`` where its checksums hold."""
    try:
        Checkpoint.manifest(path)
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except Exception as error:  # a damaged archive raises almost anything: BadZipFile, zlib.error, EOFError, ValueError
        return f"{type(error).__name__}: {error}"
    return None if member is None else f"checksum of {member}"
