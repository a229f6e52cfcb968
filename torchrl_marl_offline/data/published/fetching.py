"""Fetching a published archive: resumed where it stopped, checked against its checksum, or one sentence of advice."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from torchrl_marl_offline.core.files import free_bytes
from torchrl_marl_offline.core.hub_client import append_rest, endpoint, first_line, without_password
from torchrl_marl_offline.core.regular_files import open_regular
from torchrl_marl_offline.core.zip_files import check_members
from torchrl_marl_offline.data.published.cards import is_quality
from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError, reading

if TYPE_CHECKING:
    from torchrl_marl_offline.data.published.cards import DatasetCard

REPOSITORY = "InstaDeepAI/og-marl"
REVISION = "main"
_COPY_BYTES = 2**20
_MOST_EXPANSION = 20  # a vault's chunks are compressed already
_MOST_ARCHIVE_BYTES = 50 * 10**9  # huggingface_hub fetches no more over HTTP


def archive_url(card: DatasetCard, mirror: str | None = None) -> str:
    """Return the address of the archive that holds a set."""
    return f"{endpoint(mirror)}/datasets/{REPOSITORY}/resolve/{REVISION}/{card.archive}"


def fetch_archive(card: DatasetCard, target: Path, *, mirror: str | None = None) -> Path:
    """Fetch the archive of a set by ``huggingface_hub``, unless it is there.

    What has arrived is kept beside the target under the checksum's name: the next call goes on from there. The whole
    file must have the size and the SHA-256 that the server states; otherwise it is deleted.

    Args:
        card: of the set.
        target: the file to write.
        mirror: a server that serves the same paths; see :func:`endpoint`.

    Raises:
        DatasetError: what came is not what the server announced.
        OSError: the server cannot be reached, or answers with an error.
        ImportError: huggingface_hub is not installed.
    """
    if target.is_file():
        return target
    try:
        from huggingface_hub import get_hf_file_metadata
    except ImportError as error:
        message = "Fetching datasets needs huggingface_hub; install it with pip install huggingface_hub."
        raise ImportError(message) from error
    url = archive_url(card, mirror)
    shown = without_password(url)
    try:
        facts = get_hf_file_metadata(url, token=False, endpoint=endpoint(mirror))
    except Exception as error:  # the client's own errors differ between its versions
        raise OSError(f"{shown} cannot be reached ({first_line(error)})") from error
    if not re.fullmatch(r"[0-9a-f]{64}", facts.etag or "") or facts.size is None:
        raise DatasetError(f"{shown} states no SHA-256 and size; use a mirror that keeps Hugging Face's headers.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{facts.etag[:16]}.part")
    _check_room(shown, facts.size, target.parent)
    with part.open("ab") as stream:
        try:
            # hf_hub_download would begin anew after a kill, compare the size alone, and take more than was announced
            append_rest(url, stream, facts.size)
        except Exception as error:
            raise OSError(
                f"{shown} broke off after {stream.tell()} of {facts.size} bytes ({first_line(error)})"
            ) from error
    found = _sha256(part)
    if found != facts.etag:
        part.unlink()
        raise DatasetError(
            f"{shown} arrived with SHA-256 {found} instead of {facts.etag} and was deleted; fetch it again."
        )
    os.replace(part, target)
    return target


def unpack_quality(archive: Path, card: DatasetCard, folder: Path) -> Path:
    """Unpack one quality's vault, ``<scenario>.vlt/<quality>/``, from a scenario's archive into ``folder``.

    Raises:
        DatasetError: the archive is damaged, or holds no such vault.
    """
    scenario = card.task.rpartition("/")[2]
    inside = (f"{scenario}.vlt", card.quality)
    with reading(archive), open_regular(archive) as stream, zipfile.ZipFile(stream) as file:
        members = {}
        for info in check_members(file, ratio=_MOST_EXPANSION):
            parts = PurePosixPath(info.filename).parts
            start = next((i for i in range(len(parts) - 1) if parts[i : i + 2] == inside), None)
            if start is not None and len(parts) > start + 2:
                members[parts[start + 2 :]] = info
        if not members:
            raise DatasetError(f"{archive} holds no {'/'.join(inside)}; fetch it again.")
        _check_room(archive, sum(info.file_size for info in members.values()), folder)
        for name, info in members.items():
            path = folder.joinpath(*name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.open(info) as source, path.open("wb") as sink:
                while block := source.read(_COPY_BYTES):  # a wrong CRC raises at the end
                    sink.write(block)
    return folder


def qualities_in(archive: Path, card: DatasetCard) -> set[str]:
    """Return the names of the vaults of a scenario's archive: ``<scenario>.vlt/<quality>/``."""
    folder = f"{card.task.rpartition('/')[2]}.vlt"
    with reading(archive), zipfile.ZipFile(archive) as file:
        parts = [PurePosixPath(name).parts for name in file.namelist()]
    found = {names[names.index(folder) + 1] for names in parts if folder in names[:-2]}
    return {name for name in found if is_quality(name)}


def _check_room(source: str | Path, size: int, folder: Path) -> None:
    """Refuse what the disk cannot hold, before a byte of it is written."""
    free = free_bytes(folder)
    if size > min(free, _MOST_ARCHIVE_BYTES):
        raise DatasetError(
            f"{source} takes {size:,} bytes, where {folder} has {free:,} free and {_MOST_ARCHIVE_BYTES:,} are the most "
            "that is taken from a server; free some space, or name another cache folder."
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
