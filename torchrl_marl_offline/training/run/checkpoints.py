"""Checkpoints that survive a kill at any moment, on TorchRL's :class:`~torchrl.checkpoint.Checkpoint`.

One checkpoint is one archive file, written under a hidden name and then renamed, so that a name that can be seen is
complete. An archive keeps a checksum (CRC-32) of each of its members: a file damaged later is found *before* any live
object is touched, and the one before it is taken instead, with a warning. An archive may come from others: its members
are those that :meth:`CheckpointManager.save` writes, uncompressed, and hold tensors and numbers alone, or it is refused
before one of them is read.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torchrl.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointRotation,
    JSONCheckpointAdapter,
    StateDictCheckpointAdapter,
)

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.files import remove_if_abandoned, staged, writing
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.plain_tensors import load_plain_tensors
from torchrl_marl_offline.core.ranges import COUNT
from torchrl_marl_offline.core.regular_files import open_regular, require_regular
from torchrl_marl_offline.core.zip_files import ArchiveError, check_members
from torchrl_marl_offline.data.transitions.buffers import EpisodeSliceSampler
from torchrl_marl_offline.data.transitions.fingerprints import spread_checksums
from torchrl_marl_offline.training.run.restoring import Holder, restore

if TYPE_CHECKING:
    from torchrl.data import ReplayBuffer

_SUFFIX = ".torchrl"
_MANIFEST, _MANIFEST_BYTES = "manifest.json", 2**24
_PAYLOADS = {StateDictCheckpointAdapter.adapter_id: "state.pt", JSONCheckpointAdapter.adapter_id: "value.json"}
_COMPONENT = re.compile(r"components/\d{4}-[\w.%-]+", re.ASCII)


class PlainStateAdapter(StateDictCheckpointAdapter):
    """TorchRL's adapter of state dicts as one file of ``torch.save``; reading takes no other form.

    TorchRL's own reads whichever form lies there, a TensorDict's folder with its pickles among them.
    """

    def __init__(self) -> None:
        super().__init__("torch")

    def load(
        self,
        component: Any,
        path: Path,
        *,
        map_location: Any,
        tensor_load_kwargs: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Restore ``component`` from the file in the folder ``path``."""
        state = load_plain_tensors(path / self.state_torch, map_location=map_location, **tensor_load_kwargs)
        component.load_state_dict(state, *args, **kwargs)


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
        """Write a checkpoint of ``components`` at ``step``, then drop the oldest beyond ``keep``.

        Raises:
            WriteError: it cannot be written, for instance on a full disk; those before it stay.
        """
        return self._save(self._newest, step, metadata, components)

    def save_best(self, step: int, *, metadata: Mapping[str, Any] | None = None, **components: Any) -> Path:
        """Write the one checkpoint that is kept as the best, replacing the best before it."""
        return self._save(self._best, step, metadata, components)

    def _save(
        self, rotation: CheckpointRotation, step: int, metadata: Mapping[str, Any] | None, components: Mapping[str, Any]
    ) -> Path:
        """Write the archive beside its place, where the next writer finds and deletes what a killed one leaves."""
        path = self.directory / f"{rotation.prefix}-{step:012d}{_SUFFIX}"
        with writing(path):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self._check_neighbours()
            with staged(path, folder=True) as folder:
                checkpoint = self._checkpoint(components)
                written = checkpoint.save(folder / path.name, metadata={"step": step, **(metadata or {})})
                os.replace(written, path)
            rotation.prune()
        return path

    def tidy(self) -> None:
        """Delete what a killed writer left, and the checkpoints beyond ``keep`` that it did not come to delete."""
        if self.directory.is_dir():
            self._remove_leftovers()
            self._newest.prune()
            self._best.prune()

    def _remove_leftovers(self) -> None:
        """Delete the hidden half-written files of a killed run."""
        for entry in self.directory.glob(".*-*"):
            if entry.name.startswith((".checkpoint-", ".best-")):
                remove_if_abandoned(entry)

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
            CheckpointError: if ``path`` is damaged or does not fit the components; then none of them is changed.
        """
        if path is None:
            path = self.latest()
            if path is None:
                raise FileNotFoundError(
                    f"No whole checkpoint in {self.directory}; start again without resuming, or name another folder."
                )
        elif (damage := find_damage(Path(path))) is not None:
            raise CheckpointError(f"The checkpoint {path} is damaged ({damage}); load an earlier one.")
        live = {name: component for name, component in components.items() if hasattr(component, "state_dict")}
        held = {name: Holder() for name in live}
        try:
            with writing(Path(tempfile.gettempdir(), "the checkpoint's copy")):
                result = self._checkpoint({**components, **held}).load(path, map_location=map_location)
            restore(live, {name: holder.state for name, holder in held.items()})
        except (CheckpointError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint {path} does not fit this run; resume it with the settings it was started with: {error}"
            ) from error
        return int(result.manifest["metadata"]["step"])

    def _checkpoint(self, components: Mapping[str, Any]) -> Checkpoint:
        checkpoint = Checkpoint(format="archive")
        for name, component in components.items():
            # One torch.save per component: an Adam state in a file per tensor is hundreds of small files.
            adapter = _Payload() if hasattr(component, "state_dict") else JSONCheckpointAdapter()
            checkpoint.register(name, component, adapter=adapter)
        return checkpoint

    def _check_neighbours(self) -> None:
        """Refuse what is no file under a checkpoint's name: TorchRL opens them all, and a pipe would never answer."""
        for path in self.directory.glob(f"*{_SUFFIX}"):
            require_regular(path)

    def _newest_whole(self, prefix: str) -> Path | None:
        for path in sorted(self.directory.glob(f"{prefix}-*{_SUFFIX}"), reverse=True):
            damage = find_damage(path)
            if damage is None:
                return path
            warnings.warn(
                f"The checkpoint {path} is damaged ({damage}); falling back to the one before it.", stacklevel=3
            )
        return None


class _Payload(PlainStateAdapter):
    """One ``torch.save`` per component, through a stream, whose errors say why it cannot be written."""

    def save(self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        path.mkdir(parents=True, exist_ok=True)
        state = component.state_dict(*args, **kwargs)
        with (path / self.state_torch).open("wb") as stream:
            torch.save(state, stream)
        return state


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
            "batch_size": getattr(self.buffer, "_batch_size", None),
            "slices": slices_of(self.buffer),
            "content": content_of(self.buffer),
            "hindsight": words_of_hindsight(self.buffer),
        }

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse what :meth:`load_state_dict` refuses, and change nothing."""
        check_content(self.buffer, state)
        generator = self._generator
        if (generator is None) != (state["generator"] is None):
            raise ValueError("the buffer has a generator of its own in only one of the checkpoint and this run")
        if generator is not None:
            check_generator(generator, state["generator"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; the dataset must be the same, and the sizes of a batch."""
        self.check_state_dict(state)
        generator = self._generator
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
    check_generator(generator, state)
    generator.set_state(state.cpu())


def check_generator(generator: torch.Generator, state: torch.Tensor) -> None:
    """Refuse a state of another kind of device.

    Raises:
        ValueError: see :func:`restore_generator`.
    """
    if state.numel() != generator.get_state().numel():
        raise ValueError(
            f"the checkpoint's random numbers are of another kind of device than {generator.device.type!r}; go on "
            "where the run was, or start a new one from its policy"
        )


_CONTENT: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()


def words_of_hindsight(buffer: Any) -> str | None:
    """Return how a buffer relabels what it draws, or ``None`` where it does not."""
    hindsight = getattr(buffer, "hindsight", None)
    return None if hindsight is None else str(hindsight)


def content_of(buffer: Any) -> dict[str, str] | None:
    """Return a checksum of each leaf of what a buffer samples from, as it was when this was first asked for.

    ``None`` where its storage does not hold rows of tensors.
    """
    if buffer not in _CONTENT:
        try:
            storage = buffer.storage
            place = getattr(storage, "device", "cpu")
            _CONTENT[buffer] = spread_checksums(lambda index: storage.get(index.to(place)), len(storage))
        except Exception:  # a storage of another kind, of which nothing is known
            return None
    return _CONTENT[buffer]


def check_content(buffer: Any, state: Mapping[str, Any]) -> None:
    """Refuse to go on with other data than a checkpoint was trained on, or with batches of another size.

    Raises:
        ValueError: they differ. A checkpoint of an earlier version tells the number of rows alone.
    """
    remedy = "go on with that of the run, or start a new run"
    if state["size"] != len(buffer):
        raise ValueError(f"the checkpoint was trained on {state['size']} rows, this buffer has {len(buffer)}; {remedy}")
    own, saved = content_of(buffer) or {}, state.get("content") or {}
    if others := [name for name in own if name in saved and own[name] != saved[name]]:
        raise ValueError(f"the checkpoint was trained on other data of the same length ({others[0]} differs); {remedy}")
    before, now = state.get("hindsight"), words_of_hindsight(buffer)
    if "hindsight" in state and before != now:
        raise ValueError(f"hindsight was {before or 'off'} and is {now or 'off'} now; {remedy}")
    sizes = state.get("batch_size"), getattr(buffer, "_batch_size", getattr(buffer, "batch_size", None))
    if None not in sizes and sizes[0] != sizes[1]:
        raise ValueError(f"batch_size was {sizes[0]} and is {sizes[1]} now; {remedy}")
    own, saved = slices_of(buffer), state.get("slices")
    for name in [] if saved is None else dict.fromkeys([*saved, *own]):
        if saved.get(name) != own.get(name):
            raise ValueError(f"{name} was {saved.get(name)} and is {own.get(name)} now; {remedy}")


def slices_of(buffer: Any) -> dict[str, int]:
    """Return by what settings a dataset's buffer draws slices of episodes; of one that does not, nothing."""
    sampler = getattr(buffer, "sampler", None) or getattr(buffer, "member_sampler", None)  # of a population
    while not isinstance(sampler, EpisodeSliceSampler):
        # a process's share of the joined sampler, or one that counts in slices
        sampler = getattr(sampler, "joined", None) or getattr(sampler, "sampler", None)
        if sampler is None:
            return {}
    return sampler.settings


def find_damage(path: Path) -> str | None:
    """Read a checkpoint through and say what is wrong with it, or ``None`` where its checksums hold."""
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            _check_archive(archive)
            member = archive.testzip()
        Checkpoint.manifest(path)
    except Exception as error:  # a damaged archive raises almost anything: BadZipFile, zlib.error, EOFError, ValueError
        return f"{type(error).__name__}: {error}"
    return None if member is None else f"checksum of {member}"


def _check_archive(archive: zipfile.ZipFile) -> None:
    """Hold the members of an archive against what its manifest lists, and that against what is written here.

    Raises:
        ValueError: there is a member or a kind of payload that :class:`CheckpointManager` does not write.
    """
    members = {info.filename: info for info in check_members(archive)}
    manifest = members.pop(_MANIFEST, None)
    if manifest is None or manifest.file_size > _MANIFEST_BYTES:
        raise ArchiveError(f"holds no {_MANIFEST}, or too large a one")
    content = json.loads(archive.read(manifest))
    if type(content["metadata"]["step"]) is not int:
        raise ArchiveError(f"has the step {content['metadata']['step']!r}")
    listed = [_payload(name, record) for name, record in content["components"].items()]
    strange = sorted({*listed} ^ {*members})
    if strange or len(set(listed)) < len(listed):
        raise ArchiveError(f"holds {strange[:1]}, which is none of its components, or lacks it")


def _payload(name: str, record: Mapping[str, Any]) -> str:
    """Return the one member that holds a component."""
    file = _PAYLOADS.get(record["adapter"])
    if file is None or record["files"] != [file] or not _COMPONENT.fullmatch(record["path"]):
        raise ArchiveError(f"holds {name!r} in a form that is not written here")
    return f"{record['path']}/{file}"
