"""Files of ``torch.save``, read as what this library writes: tensors in dictionaries, lists and tuples, and numbers.

``torch.load(weights_only=True)`` executes nothing by itself, but it unpacks whatever the archive declares and takes
what the process has allowed elsewhere. Here the archive's members and the pickle's names are looked at first.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from torchrl_marl_offline.core.regular_files import open_regular
from torchrl_marl_offline.core.zip_files import ArchiveError, check_members

_MEMBER = re.compile(
    r"[^/]+/(data\.pkl|version|byteorder|\.format_version|\.storage_alignment|data/\d+|\.data/serialization_id)"
)
_STORAGES = (
    "Float",
    "Double",
    "Half",
    "BFloat16",
    "Long",
    "Int",
    "Short",
    "Char",
    "Byte",
    "Bool",
    "ComplexFloat",
    "ComplexDouble",
)
_NAMES = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch.storage UntypedStorage",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "_codecs encode",
    *(f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("complex", "set")),
    *(f"torch {kind}Storage" for kind in _STORAGES),
    *(f"torch {name}" for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)),
}
"""What a pickle may name."""
_OTHER_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}
_END, _END_BYTES = b"PK\x05\x06", 22
_EXPANSION, _SLACK_BYTES = 10, 2**20


class UnsafeFileError(ValueError):
    """A file of ``torch.save`` holds something else than tensors and numbers; the message says what."""


def load_plain_tensors(file: str | Path, *, map_location: Any = "cpu", older: bool = False) -> Any:
    """Read a file of ``torch.save``.

    Args:
        file: in the format that torch has written since its version 1.6.
        map_location: as of :func:`torch.load`.
        older: whether the format before it is read, too.

    Raises:
        OSError: there is none.
        ValueError: it is something else, is damaged, or would become larger than it is.
    """
    if not (older and _is_older(file)):
        check_torch_file(file)
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file raises almost anything
        raise UnsafeFileError(f"cannot be read as tensors and numbers ({_cause(error)})") from error
    size, total = Path(file).stat().st_size, 0
    for tensor in _tensors(content):
        total += tensor.numel() * tensor.element_size()
        if total > _EXPANSION * size + _SLACK_BYTES:
            raise UnsafeFileError(f"of {size:,} bytes holds a tensor of shape {tuple(tensor.shape)}, {total:,} in all")
    return content


def _cause(error: Exception) -> str:
    """Say what torch objects to, without its advice to read the file unsafely."""
    told = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    sentences = re.split(r"(?<=[.!?:])\s+|\n", told)
    kept = [part for part in sentences if not re.search(r"weights_only|torch\.load|safe_globals|trust|http", part)]
    return " ".join(" ".join(kept[:2]).split())[:200].rstrip(".:") or type(error).__name__


def _is_older(file: str | Path) -> bool:
    with open_regular(file) as stream:
        return not zipfile.is_zipfile(stream) and stream.seek(0) == 0 and stream.read(2) != b"PK"


def check_torch_file(file: str | Path) -> None:
    """Look at the members of a file of ``torch.save`` and at the names in its pickle; nothing is built.

    Raises:
        OSError: there is none.
        ValueError: see :func:`load_plain_tensors`.
    """
    try:
        _check_content(file)
    except (OSError, UnsafeFileError, ArchiveError):
        raise
    except Exception as error:  # a damaged file raises almost anything
        raise UnsafeFileError(f"is damaged ({type(error).__name__}: {error})") from error


def _check_content(file: str | Path) -> None:
    with open_regular(file) as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _END_BYTES))
        if not stream.read().startswith(_END):  # so that every reader sees the same members
            raise UnsafeFileError("is no file of torch.save, or is cut short")
        with zipfile.ZipFile(stream) as archive:
            names = [info.filename for info in check_members(archive)]
            for name in names:
                if not _MEMBER.fullmatch(name) or name.partition("/")[0] != names[0].partition("/")[0]:
                    raise UnsafeFileError(f"holds the member {name!r}, which torch.save does not write")
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UnsafeFileError("holds no data.pkl")
            _check_names(archive.read(pickles[0]))


def _check_names(content: bytes) -> None:
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in _OTHER_CALLS or (operation.name == "GLOBAL" and argument not in _NAMES):
            named = argument if operation.name == "GLOBAL" else operation.name
            raise UnsafeFileError(f"names {str(named)[:80]!r}, which is no tensor or number")


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor once, whatever contains whatever."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
