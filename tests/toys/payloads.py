"""Things that would leave a mark if they were executed, and the folders and archives that carry them."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from torchrl_marl_offline.data.transitions import storage


class Payload:
    """Creates an empty file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return os.mknod, (self.mark,)


def payload_bytes(mark: Path) -> bytes:
    return pickle.dumps(Payload(mark))


def reseal(folder: Path, *, header: str = "recomputed", change: Any = None) -> None:
    """Make a changed dataset folder consistent again: its files' sizes and checksums, and its header's own.

    Args:
        folder: of the dataset.
        header: the header's checksum is ``"recomputed"`` or ``"deleted"``.
        change: called with the header before it is sealed.
    """
    file = folder / "metadata.json"
    content = json.loads(file.read_text())
    content.pop("header", None)
    files = [path for path in sorted((folder / "data").rglob("*")) if path.is_file()]
    content["files"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "blake2b": storage.checksum(path)}
        for path in files
    }
    if change is not None:
        change(content)
    if header == "recomputed":
        content["header"] = storage._header_checksum(content)
    file.write_text(json.dumps(content))


def with_non_tensor(folder: Path, mark: Path) -> None:
    """Add a leaf that tensordict would unpickle."""
    inner = folder / "data" / "evil"
    inner.mkdir()
    kind = {"_type": "<class 'tensordict.tensorclass.NonTensorData'>", "_is_non_tensor": True}
    (inner / "meta.json").write_text(json.dumps(kind))
    (inner / "other.pickle").write_bytes(payload_bytes(mark))
    meta = folder / "data" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"evil": {"type": "NonTensorData"}}))


def rewrite_archive(path: Path, change: Any, **options: Any) -> None:
    """Write a zip file anew from what ``change`` makes of its members, ``{name: bytes}``."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members = change(members) or members
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def torch_payload(mark: Path) -> bytes:
    """What ``torch.save`` makes of a payload beside a tensor."""
    import io

    stream = io.BytesIO()
    torch.save({"x": torch.zeros(1), "evil": Payload(mark)}, stream)
    return stream.getvalue()
