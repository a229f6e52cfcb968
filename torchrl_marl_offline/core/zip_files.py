"""Zip archives that others wrote: their members are looked at before one of them is read.

A member's name could lead out of the folder that it is unpacked into, it could be a link, and a few kilobytes could be
declared to become terabytes. Nothing of the library and no torch is imported here.
"""

from __future__ import annotations

import stat
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

_SLACK_BYTES, _DEEPEST = 2**20, 64


class ArchiveError(ValueError):
    """An archive has a member that must not be read; the message says which and why."""


def check_members(archive: zipfile.ZipFile, *, ratio: float | None = None) -> list[zipfile.ZipInfo]:
    """Return the members of an archive, folders left out, after a look at names, kinds and sizes.

    Args:
        archive: open for reading, from a path or a file.
        ratio: how many times its own size an archive may become; ``None`` wants its members uncompressed.

    Raises:
        ArchiveError: a name is absolute, leads upwards or is there twice; a member is encrypted or no regular file; all
            of them together become too large.
    """
    members = archive.infolist()
    doubles = [name for name, times in Counter(info.filename for info in members).items() if times > 1]
    if doubles:
        raise ArchiveError(f"holds {doubles[0]!r} twice")
    for info in members:
        _check_member(info, compressed=ratio is not None)
    files = [info for info in members if not info.is_dir()]
    _check_places(files)
    size, total = _size(archive), sum(info.file_size for info in files)
    if total > (size if ratio is None else ratio * size + _SLACK_BYTES):
        raise ArchiveError(f"of {size:,} bytes would become {total:,} bytes")
    return files


def _check_member(info: zipfile.ZipInfo, *, compressed: bool) -> None:
    name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
    path = PurePosixPath(name)
    parts = path.parts or ("..",)
    if path.is_absolute() or ".." in parts or "\\" in name or ":" in parts[0] or "\0" in name or len(parts) > _DEEPEST:
        raise ArchiveError(f"holds the name {name!r}, which leads out of it")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"holds {name!r}, which is a link or a device")
    if info.flag_bits & 1:
        raise ArchiveError(f"holds {name!r}, which is encrypted")
    if not compressed and (info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size):
        raise ArchiveError(f"holds {name!r}, which is compressed")


def _check_places(files: list[zipfile.ZipInfo]) -> None:
    paths = {PurePosixPath(info.filename) for info in files}
    if len(paths) < len(files):
        raise ArchiveError("holds two members that are one file")
    for path in paths:
        if not paths.isdisjoint(path.parents):
            raise ArchiveError(f"holds {str(path)!r} below another file")


def _size(archive: zipfile.ZipFile) -> int:
    if isinstance(archive.filename, str) and archive.fp is None:
        return Path(archive.filename).stat().st_size
    position = archive.fp.tell()
    end = archive.fp.seek(0, 2)
    archive.fp.seek(position)
    return end
